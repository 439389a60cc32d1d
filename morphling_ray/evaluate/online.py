"""The online evaluator: serves a configuration on Ray Serve, loads it, and finds its peak under the SLO.

deploy ─► new replicas? warm up ─► our batcher? table, forecast of all batch settings, probes at the best of them
                                 └► another: saturate (capacity), probe, probe, ... (peak)
       ─► the same replicas still there? ─► Measurement
"""

import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import ray

from morphling_ray.evaluate import Progress
from morphling_ray.evaluate.batching import ALONE, CALIBRATED_SD, FORECAST_SD, WINDOW_WEIGHT, BatchingTwin
from morphling_ray.load.crew import Crew
from morphling_ray.load.driver import RequestSource
from morphling_ray.load.peak import PeakSearch, find_peak, pooled_peak, read_off
from morphling_ray.measurement import Measurement, Probe, Verdict
from morphling_ray.objective import Slo
from morphling_ray.serving.application import ApplicationFacts
from morphling_ray.serving.deployment import Deployer, DeploymentFailed, Replica, is_local
from morphling_ray.serving.limits import cores_of
from morphling_ray.serving.serve_config import APP_NAME, largest_batch
from morphling_ray.space import Configuration, SearchSpace

WARM_UP_S = 0.4
SATURATE_S = 0.8
PROBE_REQUESTS = 300  # a window is long enough for that many, within the bounds below
SEARCH_WINDOW_S = (1.0, 2.0)
CONFIRM_WINDOW_S = (2.5, 4.0)
SEARCH_WINDOWS, CONFIRM_WINDOWS = 3, 4
SETTLE_AFTER_S = 0.3  # from then on a settled verdict ends a window of the search
FIRST_RATIO = 0.75  # peak over capacity, before any was measured
BELOW_FORECAST = 0.9  # share of a foreseen peak at which a real probe must meet the SLO
SEARCH_STEP, CONFIRM_STEP = 0.15, 0.06
SEARCH_TOL, CONFIRM_TOL = 0.1, 0.06
# Of the logarithm of a peak that is measured again, on 2 cores of a shared machine; `morphling_ray.record --repeats`
# writes what it found into surfaces.yaml.
SEARCH_NOISE_SD, CONFIRM_NOISE_SD = 0.12, 0.09
FIRST_ANSWER_S = 30.0


@dataclass
class _Trial:
    """One attempt at a configuration, and what is collected on the way."""

    configuration: Configuration
    needed_rps: float | None
    confirm: bool
    exact: bool
    watch: "_Stopwatch"
    notes: list[str]
    details: dict[str, Any] = field(default_factory=dict)
    probes: list[Probe] = field(default_factory=list)
    seed: int = 0

    def measurement(self, **found: Any) -> Measurement:
        """What was found, with all that was collected."""
        return Measurement(
            **{"configuration": self.configuration, **found},
            probes=tuple(self.probes),
            timings_s=dict(self.watch.seconds),
            notes=tuple(self.notes),
            details=self.details,
        )


class OnlineEvaluator:
    """Measures configurations of one application, each on live replicas under real load.

    Args:
        facts: The application.
        slo: What a rate must meet.
        source: What requests send.
        root_url: Where HTTP requests go; None for requests through the Serve handle.
        seed: Of the arrival schedules.
        startup_timeout_s: A candidate that is not up by then is infeasible.
        space: A measurement may also tell of other configurations of it, and be of the one among those that differ in
            batch settings alone that serves best. None: each is measured by itself.
    """

    def __init__(
        self,
        facts: ApplicationFacts,
        slo: Slo,
        source: RequestSource,
        *,
        root_url: str | None,
        seed: int,
        startup_timeout_s: float = 120.0,
        space: SearchSpace | None = None,
    ) -> None:
        self._slo = slo
        self._seed = seed
        self.deployer = Deployer(facts, startup_timeout_s=startup_timeout_s)
        self.crew = Crew(APP_NAME, source, root_url, slo)
        self._twin = BatchingTwin(facts, slo, self.crew, space) if space is not None else None
        self._node_id = ray.get_runtime_context().get_node_id()
        self._all_cores = sorted(os.sched_getaffinity(0))
        self._replicas: list[Replica] = []
        self._shared = False  # whether the driver has to share the replicas' cores
        self._peaks: dict[str, float] = {}  # what was found before: where a confirmation starts
        self._tried: set[str] = set()  # measured already, with whatever outcome
        self._ratios = [FIRST_RATIO]  # peak over capacity, of the peaks found so far: where the next search starts
        self._confirmations = 0

    def measure(
        self,
        configuration: Configuration,
        *,
        needed: Mapping[str, float] | None = None,
        confirm: bool = False,
        exact: bool = False,
        progress: Progress | None = None,
    ) -> Measurement:
        """See `Evaluator`."""
        watch, notes = _Stopwatch(progress or (lambda text: None)), list[str]()
        needed_rps = None if confirm else (needed or {}).get("peak_rps")
        # All searches share one set of schedules, so that they differ by less; a confirmation gets fresh ones.
        self._confirmations += confirm
        seed = 1_000_003 * self._seed + 1000 * self._confirmations
        for attempt in (1, 2):
            trial = _Trial(configuration, needed_rps, confirm, exact, watch, notes, seed=seed)
            try:
                measurement = self._measure_once(trial)
                if not trial.details.get("replicas") or self._intact():
                    self._tried.add(str(measurement.configuration))
                    return measurement
            except Exception:  # a replica that is gone may show anywhere
                if not trial.details.get("replicas") or self._intact():
                    raise
            notes.append(f"attempt {attempt} was voided: a replica was replaced while it was measured")
        return trial.measurement(
            infeasible_because="crash under load: a replica was replaced during the measurement, twice"
        )

    def again(self, configuration: Configuration, *, by_probes: bool, seed: int) -> Measurement:
        """Measures as if nothing had been learned before, with arrivals of its own; shows how repeatable that is.

        Args:
            configuration: What to measure.
            by_probes: Without the batching twin.
            seed: Of the arrivals.
        """
        twin, self._twin = self._twin, None if by_probes else self._twin
        peaks, ratios = self._peaks, self._ratios
        if twin is not None:
            twin.forget()
        self._peaks, self._ratios = {}, [FIRST_RATIO]
        trial = _Trial(configuration, None, False, True, _Stopwatch(lambda text: None), [], seed=1_000_003 * (seed + 1))
        try:
            return self._measure_once(trial)
        finally:
            self._twin, self._peaks, self._ratios = twin, peaks, ratios

    def _measure_once(self, trial: _Trial) -> Measurement:
        """One attempt; whether the same replicas served it from beginning to end is for the caller to see."""
        watch, configuration = trial.watch, trial.configuration
        with watch.stage("deploying"):
            try:
                before, self._replicas = self._replicas, self.deployer.deploy(configuration)
            except DeploymentFailed as failure:
                trial.details["log"] = failure.log[-4000:]
                self.deployer.delete(wait=True)
                self._replicas = []
                return trial.measurement(infeasible_because=failure.reason)
            new = self._replicas != before
            if new:
                self._shared = self._keep_driver_away(self._replicas)
        trial.details["replicas"] = [{"pid": r.pid, "cores": cores_of(r.pid)} for r in self._replicas]
        if self._shared:
            trial.notes.append("the load driver had to share the replicas' cores: this peak is a lower bound")
        with watch.stage("warming up"):
            if new and (problem := self.crew.ask(FIRST_ANSWER_S)[0]):
                return trial.measurement(infeasible_because=f"the first request failed: {problem}")
            in_flight = max(4, 2 * largest_batch(configuration) * len(self._replicas))
            warm = self.crew.saturate(in_flight=min(in_flight, 16 * len(self._replicas)), window_s=WARM_UP_S)
        if self._failing(warm):
            trial.probes.append(warm)
            return trial.measurement(infeasible_because=f"requests failed: {warm.reason}")
        holds = self._twin is not None and self._twin.attach(configuration, self._replicas)
        if self._twin is not None and holds and not trial.confirm:
            if not self._twin.knows(configuration):
                with watch.stage("table", "timing batches"):
                    holds = self._twin.measure(configuration, warm.achieved_rps)
            if holds:
                return self._measure_deployment(trial, self._twin, warm.achieved_rps)
        return self._measure_alone(trial, warm.achieved_rps, in_flight)

    def _measure_alone(self, trial: _Trial, warm_rps: float, in_flight: int) -> Measurement:
        """The peak of this one configuration, by plain probes."""
        with trial.watch.stage("probing", "measuring the capacity"):
            # As many in flight as the SLO leaves room for: more would form batches that no passing rate can form.
            room = round(warm_rps * self._slo.latency_s)
            capacity = self.crew.saturate(in_flight=max(2, min(in_flight, room)), window_s=SATURATE_S)
            trial.probes.append(capacity)
            if self._failing(capacity):
                return trial.measurement(infeasible_because=f"requests failed: {capacity.reason}")
            search = self._find_peak(trial, capacity.achieved_rps)
        if search.peak_rps > 0 and not search.rejected:
            self._ratios.append(search.peak_rps / capacity.achieved_rps)
        return self._searched(trial, search, capacity_rps=capacity.achieved_rps)

    def _measure_deployment(self, trial: _Trial, twin: BatchingTwin, warm_rps: float) -> Measurement:
        """The best batch setting of the deployment that is up, by its twin and real probes, and forecasts of others."""
        watch, asked = trial.watch, trial.configuration
        with watch.stage("forecast"):
            variants = twin.variants(asked)
            foreseen = dict(zip(map(str, variants), twin.forecast(variants), strict=True))
        best = max(variants, key=lambda v: foreseen[str(v)])

        def told(ratio: float) -> dict[str, Any]:
            others = [_foreseen(v, ratio * foreseen[str(v)]) for v in variants if v != trial.configuration]
            return {"siblings": tuple(others), "asked": asked if trial.configuration != asked else None}

        if best != asked and not trial.exact and str(best) not in self._tried:
            trial.configuration = best
            with watch.stage("deploying"):
                try:
                    self._replicas = self.deployer.deploy(best)
                except DeploymentFailed as failure:
                    return trial.measurement(infeasible_because=failure.reason, **told(1.0))
        peak_rps = foreseen[str(trial.configuration)]
        trial.details["foreseen_rps"] = round(peak_rps, 1)
        # A forecast that falls short is checked where it would have to be wrong, any other one a little below.
        beaten = peak_rps * math.exp(2 * FORECAST_SD) < (trial.needed_rps or 0.0)
        rate = trial.needed_rps if beaten and trial.needed_rps else BELOW_FORECAST * peak_rps or warm_rps / 8
        with watch.stage("probing"):
            if (verdict := self._probe(trial, rate).verdict) is not Verdict.MET:
                verdict = self._probe(trial, rate).verdict  # one pause of the machine can spoil a window
            if verdict is Verdict.INVALID or (verdict is Verdict.MET) == (beaten or peak_rps == 0.0):
                search = self._find_peak(trial, twin.capacity_rps(trial.configuration))
                found = search.peak_rps or search.upper_rps
                trial.notes.append(f"the batching twin foresaw {peak_rps:.3g} RPS, plain probes found {found:.3g}")
                if peak_rps == 0.0 or not (search.peak_rps or search.rejected):
                    return self._searched(trial, search)
                twin.compared(peak_rps, found)
                return self._searched(trial, search, **told(found / peak_rps))
        if peak_rps == 0.0:
            return self._hopeless(trial, rate, **told(1.0))
        if beaten:
            bounds = _foreseen(trial.configuration, peak_rps).bounds
            return trial.measurement(bounds=bounds, noise_sd={"peak_rps": 0.0}, **told(1.0))
        found = read_off(
            trial.probes[-1],
            capacity_rps=twin.capacity_rps(trial.configuration),
            alone_s=twin.alone_s(trial.configuration),
            slo_s=self._slo.latency_s,
        )
        ratio = 1.0
        if found and trial.probes[-1].tail_s:  # 0: the window was too short to tell
            twin.compared(peak_rps, found)
            ratio = (found / peak_rps) ** WINDOW_WEIGHT
        self._peaks[str(trial.configuration)] = ratio * peak_rps
        return trial.measurement(
            metrics={"peak_rps": ratio * peak_rps},
            noise_sd={"peak_rps": CALIBRATED_SD},
            estimated=True,
            **told(ratio),
        )

    def _searched(
        self, trial: _Trial, search: PeakSearch, capacity_rps: float | None = None, **told: Any
    ) -> Measurement:
        """What a search for the peak by plain probes found."""
        if search.peak_rps == 0 and not search.rejected:
            return self._hopeless(trial, search.upper_rps, **told)
        metrics = {"peak_rps": search.peak_rps} if search.peak_rps else {}
        if capacity_rps is not None and metrics:
            metrics["capacity_rps"] = capacity_rps
        if search.rejected:
            bounds = {"peak_rps": (search.peak_rps, search.upper_rps)}
            return trial.measurement(metrics=metrics, bounds=bounds, noise_sd={"peak_rps": SEARCH_NOISE_SD}, **told)
        self._peaks[str(trial.configuration)] = search.peak_rps
        if search.sd:
            low, high = (search.peak_rps * math.exp(sign * search.sd) for sign in (-1, 1))
            trial.details["peak_rps_interval"] = [round(low, 2), round(high, 2)]
        noise_sd = CONFIRM_NOISE_SD if trial.confirm else SEARCH_NOISE_SD
        return trial.measurement(metrics=metrics, noise_sd={"peak_rps": noise_sd}, **told)

    def _find_peak(self, trial: _Trial, capacity_rps: float) -> PeakSearch:
        """The peak by plain probes: read off a few windows, or by their verdicts where these cannot be read."""
        known = self._peaks.get(str(trial.configuration)) if trial.confirm else None
        start_rps = known or statistics.median(self._ratios) * capacity_rps
        alone = self.crew.alone(ALONE)
        search = None
        if alone:
            search = pooled_peak(
                lambda rate: self._probe(trial, rate),
                capacity_rps=capacity_rps,
                alone_s=statistics.median(alone),
                slo_s=self._slo.latency_s,
                start_rps=start_rps,
                needed_rps=trial.needed_rps,
                windows=CONFIRM_WINDOWS if trial.confirm else SEARCH_WINDOWS,
            )
        if search is None:
            search = self._by_verdicts(trial, capacity_rps, start_rps)
        return search

    def _by_verdicts(self, trial: _Trial, capacity_rps: float, start_rps: float) -> PeakSearch:
        search = find_peak(
            lambda rate: self._probe(trial, rate),
            capacity_rps=capacity_rps,
            start_rps=start_rps,
            step=CONFIRM_STEP if trial.confirm else SEARCH_STEP,
            rel_tol=CONFIRM_TOL if trial.confirm else SEARCH_TOL,
            needed_rps=trial.needed_rps,
        )
        if search.driver_limited:
            trial.notes.append("the load driver, not the server, limited the highest rate that was tried")
        return search

    def _probe(self, trial: _Trial, rate_rps: float) -> Probe:
        """One window of the trial, on a schedule of its own."""
        trial.watch.say(f"probing at {rate_rps:.0f} RPS" if rate_rps >= 10 else f"probing at {rate_rps:.2g} RPS")
        shortest, longest = CONFIRM_WINDOW_S if trial.confirm else SEARCH_WINDOW_S
        watched = self._twin if not trial.confirm else None
        if watched is not None:
            watched.before_probe()
        probe = self.crew.probe(
            rate_rps=rate_rps,
            window_s=min(longest, max(shortest, PROBE_REQUESTS / rate_rps)),
            seed=trial.seed + len(trial.probes),
            settle_after_s=None if trial.confirm else SETTLE_AFTER_S,
            representative=True,
        )
        trial.probes.append(probe)
        if watched is not None:
            watched.after_probe(trial.configuration)
        if self.crew.record is not None and self.crew.record.given_up:
            if self._twin is not None:
                self._twin.drop()
            self.crew.drain()
        return probe

    def _hopeless(self, trial: _Trial, lowest_rps: float, **told: Any) -> Measurement:
        errors = next((p.reason for p in trial.probes if p.errors), "")
        reason = f"SLO missed at any rate: {_percentile(self._slo)} above {self._slo.latency_s * 1e3:g} ms at "
        reason += f"{lowest_rps:.3g} RPS" + (f"; requests failed: {errors}" if errors else "")
        return trial.measurement(infeasible_because=reason, **told)

    def _failing(self, closed: Probe) -> bool:
        return closed.errors > self._slo.max_error_rate * closed.requests

    def _keep_driver_away(self, replicas: list[Replica]) -> bool:
        """Moves the driver off the replicas' cores; True where none is left and it has to share."""
        taken = {c for r in replicas if is_local(r, self._node_id) for c in cores_of(r.pid)}
        free = [c for c in self._all_cores if c not in taken]
        self.crew.pin(free or self._all_cores)
        return not free

    def _intact(self) -> bool:
        return self.deployer.replicas() == self._replicas

    def close(self) -> None:
        """Takes the application and the drivers down."""
        self.crew.close()
        self.deployer.delete(wait=False)


def _foreseen(configuration: Configuration, peak_rps: float) -> Measurement:
    """What a forecast tells of a configuration: an interval with the forecast's own mean and standard deviation."""
    if peak_rps == 0.0:
        return Measurement(
            configuration=configuration, infeasible_because="no rate is foreseen to meet the SLO: not measured"
        )
    width = math.exp(math.sqrt(3.0) * FORECAST_SD)
    bounds = {"peak_rps": (peak_rps / width, peak_rps * width)}
    return Measurement(configuration=configuration, bounds=bounds, noise_sd={"peak_rps": 0.0})


class _Stopwatch:
    """Where the time of a trial goes, by stage, and who is told about it."""

    def __init__(self, say: Progress, clock: Callable[[], float] = time.monotonic) -> None:
        self.say = say
        self.seconds: dict[str, float] = {}
        self._clock = clock

    @contextmanager
    def stage(self, name: str, text: str | None = None) -> Iterator[None]:
        self.say(text or name)
        start = self._clock()
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + self._clock() - start, 3)


def _percentile(slo: Slo) -> str:
    return f"p{slo.percentile:g}"
