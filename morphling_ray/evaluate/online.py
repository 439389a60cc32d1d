"""The online evaluator: serves a configuration on Ray Serve, loads it, and finds its peak under the SLO.

deploy ─► new replicas? warm up ─► a batcher we know? table, forecast of all batch settings, probes at the best of them
                                 └► else: saturate (capacity), probe, probe, ... (plain.py)
       ─► the same replicas still there? ─► Measurement

Two finalists are compared in turn (duel.py).
"""

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from morphling_ray.evaluate import Progress
from morphling_ray.evaluate.attempt import Attempt, Stopwatch
from morphling_ray.evaluate.batching import CALIBRATED_SD, FORECAST_SD, WINDOW_WEIGHT, BatchingTwin
from morphling_ray.evaluate.duel import Duel
from morphling_ray.evaluate.plain import GROWS, PlainProbes
from morphling_ray.evaluate.stand import Stand
from morphling_ray.load.loadgen import CrossCheck, cross_check
from morphling_ray.load.peak import read_off
from morphling_ray.load.requests import RequestSource
from morphling_ray.measurement import Measurement, Probe, Verdict
from morphling_ray.objective import Slo
from morphling_ray.serving.application import ApplicationFacts
from morphling_ray.serving.deployment import DeploymentFailed, suffix_on
from morphling_ray.space import Configuration, SearchSpace

NEIGHBOUR_S = 0.8  # of a window that shows what two lanes cost each other
BELOW_FORECAST = 0.9  # share of a foreseen peak at which a real probe must meet the SLO


class OnlineEvaluator:
    """Measures configurations of one application, each on live replicas under real load.

    Args:
        facts: The application.
        slo: What a rate must meet.
        source: What requests send.
        root_url: Where Serve's proxy takes requests; None for requests through the Serve handle.
        seed: Of the arrival schedules.
        startup_timeout_s: A candidate that is not up by then is infeasible.
        node_timeout_s: So is one that has waited that long for nodes of an autoscaler; 0: there is none.
        space: A measurement may also tell of other configurations of it, and be of the one among those that differ in
            batch settings alone that serves best. None: each is measured by itself.
        closed_loop: Load is a number of requests in flight instead of Poisson arrivals.
        own_ray: See `Stand`.
        home: Id of the node where the replicas have to be, one of several such evaluators; None: it is the only one.
        seat: Its number there.
        shared: There may be others there.
        turns: See `Deployer`.
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
        node_timeout_s: float = 0.0,
        space: SearchSpace | None = None,
        closed_loop: bool = False,
        own_ray: bool = False,
        home: str | None = None,
        seat: int = 0,
        shared: bool = False,
        turns: Any = None,
    ) -> None:
        self._slo = slo
        self._seed = seed
        self.stand = Stand(
            facts,
            slo,
            source,
            root_url=root_url,
            startup_timeout_s=startup_timeout_s,
            node_timeout_s=node_timeout_s if home is None else 0.0,  # it has its node
            own_ray=own_ray,
            suffix=suffix_on(home, seat) if home is not None else "",
            node_id=home,
            among_others=shared,
            turns=turns,
        )
        foreseen = space is not None and not closed_loop and not slo.streaming  # batches of tokens are not foretold
        self._twin = BatchingTwin(facts, slo, self.stand.crew, space) if foreseen and space is not None else None
        self._plain = PlainProbes(slo, self.stand, self._twin, closed_loop=closed_loop)
        self._tried: set[str] = set()  # measured already, with whatever outcome
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
        watch, notes = Stopwatch(progress or (lambda text: None)), list[str]()
        needed_rps = None if confirm else (needed or {}).get("peak_rps")
        seed = self._next_seed(confirm)
        attempts: list[Attempt] = []

        def once() -> Measurement:
            attempt = Attempt(configuration, watch, needed_rps, confirm=confirm, exact=exact, notes=notes, seed=seed)
            attempts.append(attempt)
            return self._measure_once(attempt)

        measurement = self.stand.steady(once, lambda: attempts[-1])
        self._tried.add(str(measurement.configuration))
        return measurement

    def compare(
        self,
        configuration: Configuration,
        rival: Configuration,
        *,
        ratio: float = 1.0,
        cheaper: bool = False,
        progress: Progress | None = None,
    ) -> tuple[Measurement, Measurement]:
        """See `Evaluator`."""
        return self.duel(configuration, rival, ratio=ratio, cheaper=cheaper, progress=progress).fight()

    def duel(
        self,
        configuration: Configuration,
        rival: Configuration,
        *,
        ratio: float = 1.0,
        cheaper: bool = False,
        progress: Progress | None = None,
    ) -> Duel:
        """What `compare` does, in its parts."""
        seed = self._next_seed(True)
        first, second = (
            Attempt(c, Stopwatch(progress or (lambda text: None)), confirm=True, seed=seed)
            for c in (configuration, rival)
        )
        return Duel(first, second, stand=self.stand, plain=self._plain, slo=self._slo, ratio=ratio, cheaper=cheaper)

    def again(self, configuration: Configuration, *, by_probes: bool, seed: int) -> Measurement:
        """Measures as if nothing had been learned before, with arrivals of its own; shows how repeatable that is.

        Args:
            configuration: What to measure.
            by_probes: Without the batching twin.
            seed: Of the arrivals.
        """
        twin, plain = self._twin, self._plain
        if twin is not None:
            twin.forget()
        self._twin = None if by_probes else twin
        self._plain = PlainProbes(self._slo, self.stand, self._twin, closed_loop=plain.closed_loop)
        attempt = Attempt(configuration, Stopwatch(lambda text: None), seed=1_000_003 * (seed + 1))
        try:
            return self._measure_once(attempt)
        finally:
            self._twin, self._plain = twin, plain

    def cross_check(
        self, configuration: Configuration, progress: Progress | None = None, *, seed: int | None = None
    ) -> CrossCheck:
        """The peak by MLPerf LoadGen; see `load.loadgen`. The configuration has been measured before."""
        self.stand.bring_up(configuration)
        self.stand.first_answer()
        return cross_check(
            *self.stand.crew.address,
            self._slo,
            cores=self.stand.crew.cores,
            around_rps=self._plain.peaks[str(configuration)],
            seed=self._seed if seed is None else seed,
            say=progress or (lambda text: None),
        )

    @property
    def probes(self) -> deque[Probe]:
        """The latest probe; see `Crew.probes`."""
        return self.stand.crew.probes

    def tried(self, configurations: Iterable[str]) -> None:
        """Tells of configurations (as texts) that others have measured, or that were measured in an earlier run."""
        self._tried |= set(configurations)

    def throughput(self, configuration: Configuration) -> float:
        """Requests a second of a short closed loop, from batches that are full.

        Raises:
            DeploymentFailed: It does not come up.
        """
        attempt = Attempt(configuration, Stopwatch(lambda text: None))
        if self.stand.bring_up(configuration):
            self.stand.first_answer()
        return self.stand.crew.saturate(in_flight=self.stand.fill(attempt), window_s=NEIGHBOUR_S).achieved_rps

    def release(self) -> None:
        """Takes the application down, until a configuration is brought up again."""
        self.stand.clear()

    def _next_seed(self, confirm: bool) -> int:
        """All searches share one set of schedules, so that they differ by less; a confirmation gets fresh ones."""
        self._confirmations += confirm
        return 1_000_003 * self._seed + 1000 * self._confirmations

    def _measure_once(self, attempt: Attempt) -> Measurement:
        """One attempt; whether the same replicas served it from beginning to end is for the caller to see."""
        watch, configuration, stand = attempt.watch, attempt.configuration, self.stand
        warm = stand.ready(attempt)
        if isinstance(warm, str):
            return attempt.measurement(infeasible_because=warm)
        if warm.achieved_rps <= 0:
            return self._plain.measure(attempt, 0.0, stand.fill(attempt))
        holds = self._twin is not None and self._twin.attach(configuration, stand.replicas)
        if self._twin is not None and holds and not attempt.confirm:
            if not self._twin.knows(configuration):
                with watch.stage("table", "timing batches"):
                    holds = self._twin.measure(configuration, warm.achieved_rps)
            if holds:
                return self._measure_deployment(attempt, self._twin, warm.achieved_rps)
        return self._plain.measure(attempt, warm.achieved_rps, stand.fill(attempt))

    def _measure_deployment(self, attempt: Attempt, twin: BatchingTwin, warm_rps: float) -> Measurement:
        """The best batch setting of the deployment that is up, by its twin and real probes, and forecasts of others."""
        watch, asked, plain = attempt.watch, attempt.configuration, self._plain
        with watch.stage("forecast"):
            variants = twin.variants(asked)
            foreseen = dict(zip(map(str, variants), twin.forecast(variants), strict=True))
        best = max(variants, key=lambda v: foreseen[str(v)])

        def told(ratio: float) -> dict[str, Any]:
            others = [_foreseen(v, ratio * foreseen[str(v)]) for v in variants if v != attempt.configuration]
            return {"siblings": tuple(others), "asked": asked if attempt.configuration != asked else None}

        if best != asked and not attempt.exact and str(best) not in self._tried:
            attempt.configuration = best
            with watch.stage("deploying"):
                try:
                    self.stand.bring_up(best)
                except DeploymentFailed as failure:
                    return attempt.measurement(infeasible_because=failure.reason, **told(1.0))
        peak_rps = foreseen[str(attempt.configuration)]
        attempt.details["foreseen_rps"] = round(peak_rps, 1)
        attempt.details["batches_formed"] = twin.rule(asked)
        # A forecast that falls short is checked where it would have to be wrong, any other one a little below.
        beaten = peak_rps * math.exp(2 * FORECAST_SD) < (attempt.needed_rps or 0.0)
        rate = attempt.needed_rps if beaten and attempt.needed_rps else BELOW_FORECAST * peak_rps or warm_rps / 8
        search = None
        with watch.stage("probing"):
            windows = GROWS if beaten else 1  # only of the one that rejects it does the verdict decide
            if (verdict := plain.probe(attempt, rate, windows=windows).verdict) is not Verdict.MET:
                verdict = plain.probe(attempt, rate, windows=windows).verdict  # a pause can spoil a window
            if verdict is Verdict.INVALID or (verdict is Verdict.MET) == (beaten or peak_rps == 0.0):
                search = plain.find_peak(attempt, twin.capacity_rps(attempt.configuration))
        if search is not None:
            found = search.peak_rps or search.upper_rps
            attempt.notes.append(f"the batching twin foresaw {peak_rps:.3g} RPS, plain probes found {found:.3g}")
            if peak_rps == 0.0 or not (search.peak_rps or search.rejected):
                return plain.found(attempt, search)
            if not self._twin_holds(attempt, twin, peak_rps, found):
                return plain.found(attempt, search, asked=told(1.0)["asked"])
            twin.compared(peak_rps, found)
            return plain.found(attempt, search, **told(found / peak_rps))
        if peak_rps == 0.0:
            return plain.hopeless(attempt, rate, **told(1.0))
        if beaten:
            bounds = _foreseen(attempt.configuration, peak_rps).bounds
            return attempt.measurement(bounds=bounds, noise_sd={"peak_rps": 0.0}, **told(1.0))
        found = read_off(
            attempt.probes[-1],
            capacity_rps=twin.capacity_rps(attempt.configuration),
            alone_s=twin.alone_s(attempt.configuration),
            slo_s=self._slo.latency_s,
            median=plain.median(twin.alone_s(attempt.configuration)),
        )
        if found and attempt.probes[-1].tail_s and not self._twin_holds(attempt, twin, peak_rps, found):
            measured = plain.measure(attempt, warm_rps, self.stand.fill(attempt))
            return replace(measured, asked=told(1.0)["asked"])
        ratio = 1.0
        if found and attempt.probes[-1].tail_s:  # 0: the window was too short to tell
            twin.compared(peak_rps, found)
            ratio = (found / peak_rps) ** WINDOW_WEIGHT
        plain.peaks[str(attempt.configuration)] = ratio * peak_rps
        return attempt.measurement(
            metrics={"peak_rps": ratio * peak_rps},
            noise_sd={"peak_rps": CALIBRATED_SD},
            estimated=True,
            **told(ratio),
        )

    @staticmethod
    def _twin_holds(attempt: Attempt, twin: BatchingTwin, foreseen_rps: float, found_rps: float) -> bool:
        """Asks the twin (which forgets a table that does not hold), and says so."""
        if twin.holds(attempt.configuration, foreseen_rps, found_rps):
            return True
        attempt.notes.append("batches of this @serve.batch are not foretold well enough: plain probes from now on")
        return False

    def close(self) -> None:
        """Takes the application and the drivers down."""
        self.stand.close()


def _foreseen(configuration: Configuration, peak_rps: float) -> Measurement:
    """What a forecast tells of a configuration: an interval with the forecast's own mean and standard deviation."""
    if peak_rps == 0.0:
        return Measurement(
            configuration=configuration, infeasible_because="no rate is foreseen to meet the SLO: not measured"
        )
    width = math.exp(math.sqrt(3.0) * FORECAST_SD)
    bounds = {"peak_rps": (peak_rps / width, peak_rps * width)}
    return Measurement(configuration=configuration, bounds=bounds, noise_sd={"peak_rps": 0.0})
