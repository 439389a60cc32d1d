"""The peak of what is up, by plain probes: for any application, and for every confirmation.

saturate (capacity) ─► a few windows around the expected peak ─► read off, or by verdicts ─► Measurement
"""

import math
import statistics
from collections.abc import Sequence
from copy import copy

from morphling_ray.evaluate.attempt import Attempt
from morphling_ray.evaluate.batching import BatchingTwin
from morphling_ray.evaluate.stand import Stand
from morphling_ray.load.peak import (
    AT_CAPACITY,
    CAPACITY_ERROR,
    HELD_BACK,
    MedianBound,
    PeakSearch,
    closed_peak,
    find_peak,
    pooled_peak,
)
from morphling_ray.load.sequential import late_alone
from morphling_ray.load.window import lone_tail_s
from morphling_ray.measurement import Measurement, Probe, Verdict
from morphling_ray.objective import Slo
from morphling_ray.serving.failures import of_requests, ran_out
from morphling_ray.serving.serve_config import largest_batch
from morphling_ray.space import Configuration

SATURATE_S, ROUNDS = 0.8, 2  # a closed loop lasts so long, and until it has been answered so many times over
ALONE = 16  # requests without company, which tell what is left of the SLO for waiting
PROBE_REQUESTS = 300  # a window is long enough for that many, within the bounds below
LEAST_REQUESTS, LONGEST_WINDOW_S = 20, 30.0  # of a slow server, a window lasts until it has so many, within that
LEAST_RPS = LEAST_REQUESTS / LONGEST_WINDOW_S
SEARCH_WINDOW_S = (1.0, 1.5)  # three of them, the capacity and lone requests take 6 s together
CONFIRM_WINDOW_S = (2.5, 4.0)
WINDOWS = 3  # that a peak is read off
# Share of the capacity below which no rate is tried: the usual one; of a server so slow that a window of low rate holds
# next to nothing; and where requests are late even without company.
LOWEST, LOWEST_SLOW, LOWEST_LATE_ALONE = 1 / 32, 1 / 4, 1 / 2
# Times the latency without company, below which requests in flight do not wait for each other: then so many times as
# many are tried (twice as many, where that would take long), and again where they are served so many times as well.
UNHURRIED, MANY_MORE, LEAST_GAIN = 1.5, 4, 1.1
EASILY = 0.75  # of the SLO's latency: below that, twice as many are tried if the batches are not known
STRAY = 3.0  # times the median: so long a request is not like the others
TELLING = 10.0  # times the SLO's latency: in a window of that length a backlog that grows by a tenth makes late
GROWS = 2  # times as long as usual: a window whose verdict counts, as long as that is not settled
SETTLE_AFTER_S = 0.3  # from then on a settled verdict ends a window of the search
FIRST_RATIO = 0.75  # peak over capacity, before any was measured
SEARCH_STEP, CONFIRM_STEP = 0.15, 0.06
SEARCH_TOL, CONFIRM_TOL = 0.1, 0.06
# Of the logarithm of a peak that is measured again, on 2 cores of a shared machine; `morphling_ray.record --repeats`
# writes what it found into surfaces.yaml.
SEARCH_NOISE_SD, CONFIRM_NOISE_SD = 0.12, 0.09


class PlainProbes:
    """Finds peaks by windows of load alone, and remembers them: the next search starts where they say.

    Args:
        slo: What a rate must meet.
        stand: Where it is served and loaded.
        twin: Told of what a probe did to our batcher, if there is one.
        closed_loop: Requests in flight are what is varied, instead of a Poisson rate.
    """

    def __init__(self, slo: Slo, stand: Stand, twin: BatchingTwin | None, *, closed_loop: bool) -> None:
        self._slo = slo
        self._stand, self._crew = stand, stand.crew
        self._twin = twin
        self.closed_loop = closed_loop
        self.peaks: dict[str, float] = {}
        """What was found before, by configuration: where a confirmation starts."""
        self.fills: dict[str, int] = {}
        """Requests in flight that it took to make full use of a configuration."""
        self.grown: dict[str, float] = {}
        """How many times as many that is as fill its batches."""
        self._ratios = [FIRST_RATIO]  # peak over capacity, of the peaks found so far: where the next search starts

    def on(self, stand: Stand) -> "PlainProbes":
        """The same on another stand: what was found before is shared."""
        other = copy(self)
        other._stand, other._crew = stand, stand.crew
        return other

    def expected(self, configuration: Configuration, capacity_rps: float) -> float:
        """What the peak was when it was measured last, or the usual share of the capacity."""
        return self.peaks.get(str(configuration)) or statistics.median(self._ratios) * capacity_rps

    def measure(self, attempt: Attempt, warm_rps: float, in_flight: int) -> Measurement:
        """The peak of the one configuration that is up.

        Args:
            attempt: At this configuration.
            warm_rps: About what it serves in a closed loop.
            in_flight: Requests that fill its batches.
        """
        with attempt.watch.stage("probing", "measuring the capacity"):
            self._stand.settle()
            alone = self._crew.alone(ALONE)
            # As many in flight as the SLO leaves room for: more would form batches that no passing rate can form.
            # Of streams as many as fill the batches: they go on for longer than the SLO says.
            room = in_flight if self._slo.streaming else round(warm_rps * self._slo.latency_s)
            slots = self._stand.slots(attempt)
            capacity = self._capacity(attempt, max(2, min(in_flight, room)), in_flight, alone, slots)
            if self.failing(capacity):
                reason = of_requests(capacity.reason, largest_batch(attempt.configuration, 1))
                return attempt.measurement(infeasible_because=reason)
            if capacity.achieved_rps <= 0:
                return attempt.measurement(
                    infeasible_because=f"SLO missed at any rate: not {self._slo}, no answer at all"
                )
            search = self.find_peak(attempt, capacity.achieved_rps, busy=capacity.driver_cpu, alone=alone)
        if search.peak_rps > 0 and not search.rejected:
            self._ratios.append(search.peak_rps / capacity.achieved_rps)
        return self.found(attempt, search, capacity_rps=capacity.achieved_rps)

    def _capacity(self, attempt: Attempt, in_flight: int, most: int, alone: Sequence[float], slots: int) -> Probe:
        """What a closed loop of so many requests is served, or of more where a few were too few.

        While it warms up, a slow server answers too few requests to tell what room there is: those in flight then make
        small batches, which serve little, which leaves room for small batches. So there it is tried whether twice as
        many keep the SLO and are served better. Where requests take hardly longer than without company, a server that
        waits for something else than its cores has room for many more; and where they keep the SLO easily, one whose
        batches no knob tells of may form larger ones. And where one of few took much longer than the others (the first
        batch of its size, for many a library) there is a second look.
        """
        for _ in range(2):
            capacity = self._crew.saturate(in_flight=in_flight, window_s=SATURATE_S, rounds=ROUNDS)
            attempt.probes.append(capacity)
            if capacity.requests >= LEAST_REQUESTS or capacity.p99_s <= STRAY * capacity.p50_s:
                break
        unhurried_s = UNHURRIED * statistics.median(alone) if alone else 0.0
        easily_s = 0.0 if largest_batch(attempt.configuration, 0) else EASILY * self._slo.latency_s
        grown = 1.0
        while not self.failing(capacity):
            few = capacity.requests < LEAST_REQUESTS + in_flight and in_flight < most
            if few:
                more, gain = min(most, 2 * in_flight), 1.0
            elif in_flight < slots and (capacity.p50_s < unhurried_s or capacity.p99_s < easily_s):
                many = capacity.p50_s < unhurried_s and MANY_MORE * in_flight < SATURATE_S * capacity.achieved_rps
                more, gain = min(slots, (MANY_MORE if many else 2) * in_flight), LEAST_GAIN
            else:
                break
            larger = self._crew.saturate(in_flight=more, window_s=SATURATE_S, rounds=ROUNDS if few else 1)
            attempt.probes.append(larger)
            if larger.achieved_rps <= gain * capacity.achieved_rps or (self.failing(larger) and not few):
                break  # to fail with more than it needs says nothing against it; with its own batches it would
            if few and larger.achieved_rps * self._slo.latency_s < more:
                break
            grown *= 1.0 if few else more / in_flight
            capacity, in_flight = larger, more
        self.fills[str(attempt.configuration)], self.grown[str(attempt.configuration)] = in_flight, grown
        return capacity

    def find_peak(
        self, attempt: Attempt, capacity_rps: float, busy: float = 0.0, alone: Sequence[float] | None = None
    ) -> PeakSearch:
        """Read off a few windows, or by their verdicts where these cannot be read.

        Args:
            attempt: At the configuration that is up.
            capacity_rps: What a closed loop was served.
            busy: Share of its time in which the driver of that loop computed, while the server may have waited for it.
            alone: Latencies of requests without company; None: not known yet.
        """
        if self.closed_loop:
            return self._in_closed_loop(attempt, capacity_rps)
        search = self._in_open_loop(attempt, capacity_rps, busy, alone)
        if attempt.late_alone and not (search.peak_rps or search.rejected):
            # A machine that stands still for a few seconds looks just like that.
            search = self._in_open_loop(attempt, capacity_rps, busy)
        if search.driver_limited:
            attempt.notes.append("the load driver, not the server, limited the highest rate that was tried")
        return search

    def _in_open_loop(
        self, attempt: Attempt, capacity_rps: float, busy: float, alone: Sequence[float] | None = None
    ) -> PeakSearch:
        """The highest rate that meets the SLO."""
        before = len(attempt.probes)
        usual = statistics.median(self._ratios) * capacity_rps
        start_rps = self.expected(attempt.configuration, capacity_rps) if attempt.confirm else usual
        self._stand.settle()
        if alone is None:
            alone = self._crew.alone(ALONE)
        lowest = min(max(LOWEST, LEAST_RPS / capacity_rps), LOWEST_SLOW)
        search, attempt.late_alone = None, ""
        if late_alone(alone, self._slo):
            # At low rates requests have no company either; at high ones they may fill a batch that waits for them.
            lowest = LOWEST_LATE_ALONE
            attempt.late_alone = f"{sum(s > self._slo.latency_s for s in alone)} of {len(alone)}"
        elif alone:
            search = pooled_peak(
                lambda rate, whole: self.probe(attempt, rate, whole=whole),
                capacity_rps=capacity_rps,
                alone_s=lone_tail_s(alone, self._slo.percentile),
                slo_s=self._slo.latency_s,
                start_rps=start_rps,
                needed_rps=attempt.needed_rps,
                windows=WINDOWS,
                median=self.median(statistics.median(alone)),
                least_rps=LEAST_RPS,
                most_rps=_most_rps(capacity_rps, busy),
            )
        if search is None:
            met = [p.rate_rps for p in attempt.probes[before:] if p.verdict is Verdict.MET]
            needed_rps, most_rps = attempt.needed_rps, None
            if max(met, default=0.0) >= AT_CAPACITY * capacity_rps:
                start_rps = max(met)
                needed_rps = needed_rps if needed_rps is not None and needed_rps > start_rps else None
                most_rps = HELD_BACK * capacity_rps
                if GROWS * self._window_s(attempt, most_rps) < TELLING * self._slo.latency_s:
                    # What is beyond the capacity would not show in such a window: a second look at that.
                    in_flight = self.fills.get(str(attempt.configuration), self._stand.fill(attempt))
                    again = self._crew.saturate(in_flight=in_flight, window_s=SATURATE_S, rounds=ROUNDS)
                    attempt.probes.append(again)
                    capacity_rps, busy = max((capacity_rps, busy), (again.achieved_rps, again.driver_cpu))
                    most_rps = _most_rps(capacity_rps, busy)
            search = find_peak(
                lambda rate: self.probe(attempt, rate, windows=GROWS),
                capacity_rps=capacity_rps,
                most_rps=most_rps,
                start_rps=start_rps,
                step=CONFIRM_STEP if attempt.confirm else SEARCH_STEP,
                rel_tol=CONFIRM_TOL if attempt.confirm else SEARCH_TOL,
                needed_rps=needed_rps,
                floor_ratio=lowest,
            )
        return search

    def median(self, alone_s: float) -> MedianBound | None:
        """The bound of the median, if the SLO has one."""
        return MedianBound(alone_s, self._slo.median_s) if self._slo.median_s is not None else None

    def _in_closed_loop(self, attempt: Attempt, capacity_rps: float) -> PeakSearch:
        """The throughput of as many requests in flight as meet the SLO."""
        window_s = self._window_s(attempt, capacity_rps)

        def probe(in_flight: int) -> Probe:
            attempt.watch.say(f"probing with {in_flight} in flight")
            attempt.probes.append(self._crew.saturate(in_flight=in_flight, window_s=window_s, kind="closed"))
            return attempt.probes[-1]

        start = max(1, round(capacity_rps * self._slo.latency_s / 2))
        return closed_peak(probe, start=start, capacity_rps=capacity_rps, needed_rps=attempt.needed_rps)

    @staticmethod
    def _window_s(attempt: Attempt, rate_rps: float) -> float:
        """How long a window at a rate lasts."""
        shortest, longest = CONFIRM_WINDOW_S if attempt.confirm else SEARCH_WINDOW_S
        usual = min(longest, max(shortest, PROBE_REQUESTS / rate_rps))
        return max(usual, min(LONGEST_WINDOW_S, LEAST_REQUESTS / rate_rps))

    def probe(self, attempt: Attempt, rate_rps: float, *, windows: int = 1, whole: bool = False) -> Probe:
        """One window of an attempt, on a schedule of its own; see `LoadDriver.probe`."""
        attempt.watch.say(f"probing at {rate_rps:.0f} RPS" if rate_rps >= 10 else f"probing at {rate_rps:.2g} RPS")
        watched = self._twin if not attempt.confirm else None
        if watched is not None:
            watched.before_probe()
        probe = self._crew.probe(
            rate_rps=rate_rps,
            window_s=self._window_s(attempt, rate_rps),
            seed=attempt.seed + len(attempt.probes),
            settle_after_s=None if attempt.confirm else SETTLE_AFTER_S,
            representative=True,
            windows=windows,
            whole=whole,
        )
        attempt.probes.append(probe)
        if watched is not None:
            watched.after_probe(attempt.configuration)
        self._stand.settle()
        return probe

    def found(
        self, attempt: Attempt, search: PeakSearch, capacity_rps: float | None = None, **told: object
    ) -> Measurement:
        """The measurement that a search for the peak ends in."""
        if search.peak_rps == 0 and not search.rejected:
            return self.hopeless(attempt, search.upper_rps, **told)
        metrics = {"peak_rps": search.peak_rps} if search.peak_rps else {}
        if capacity_rps is not None and metrics:
            metrics["capacity_rps"] = capacity_rps
        if search.rejected:
            bounds = {"peak_rps": (search.peak_rps, search.upper_rps)}
            return attempt.measurement(metrics=metrics, bounds=bounds, noise_sd={"peak_rps": SEARCH_NOISE_SD}, **told)
        self.peaks[str(attempt.configuration)] = search.peak_rps
        if search.sd:
            low, high = (search.peak_rps * math.exp(sign * search.sd) for sign in (-1, 1))
            attempt.details["peak_rps_interval"] = [round(low, 2), round(high, 2)]
        noise_sd = max(CONFIRM_NOISE_SD if attempt.confirm else SEARCH_NOISE_SD, search.sd)
        return attempt.measurement(metrics=metrics, noise_sd={"peak_rps": noise_sd}, **told)

    def hopeless(self, attempt: Attempt, lowest_rps: float, **told: object) -> Measurement:
        """The measurement of a configuration that meets the SLO at no rate."""
        errors = next((p.reason for p in attempt.probes if p.errors), "")
        if ran_out(errors):
            reason = of_requests(errors, largest_batch(attempt.configuration, 1))
            return attempt.measurement(infeasible_because=reason, **told)
        reason = f"SLO missed at any rate: not {self._slo} at {lowest_rps:.3g} RPS"
        if attempt.late_alone:
            reason += f", and {attempt.late_alone} requests without company were late"
        elif lowest_rps <= LEAST_RPS:
            reason += f", and a lower rate has too few requests in {LONGEST_WINDOW_S:.0f} s to tell"
        reason += f"; requests failed: {errors}" if errors else ""
        return attempt.measurement(infeasible_because=reason, **told)

    def failing(self, closed: Probe) -> bool:
        """Whether too many requests of a closed loop failed."""
        return self._slo.too_many_errors(closed.errors, closed.requests)


def _most_rps(capacity_rps: float, busy: float) -> float:
    """What a server may serve where its closed loop was kept going by a driver that was so busy."""
    return min(HELD_BACK, (1 + CAPACITY_ERROR) / max(1.0 - busy, 1 / HELD_BACK)) * capacity_rps
