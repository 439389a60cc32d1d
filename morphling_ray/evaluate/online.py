"""The online evaluator: serves a configuration on Ray Serve, loads it, and finds its peak under the SLO.

deploy ─► warm up ─► saturate (capacity) ─► probe, probe, ... (peak) ─► the same replicas still there? ─► Measurement
"""

import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray

from morphling_ray.evaluate import Progress
from morphling_ray.load.driver import RequestSource, ServeLoadDriver
from morphling_ray.load.peak import PeakSearch, find_peak
from morphling_ray.load.window import Record, judge
from morphling_ray.measurement import Measurement, Probe
from morphling_ray.objective import Slo
from morphling_ray.serving.application import ApplicationFacts, python_path
from morphling_ray.serving.deployment import Deployer, DeploymentFailed, Replica, is_local
from morphling_ray.serving.limits import cores_of
from morphling_ray.serving.serve_config import APP_NAME, largest_batch
from morphling_ray.space import Configuration

WARM_UP_S = 0.4
SATURATE_S = 0.8
PROBE_REQUESTS = 300  # a window is long enough for that many, within the bounds below
SEARCH_WINDOW_S = (1.0, 2.0)
CONFIRM_WINDOW_S = (2.5, 4.0)
FIRST_RATIO = 0.75  # peak over capacity, before any was measured
SEARCH_STEP, CONFIRM_STEP = 0.15, 0.06
SEARCH_TOL, CONFIRM_TOL = 0.1, 0.06
# Of the logarithm of a peak that is measured again, on 2 cores of a shared machine; `morphling_ray.record --repeats`
# writes what it found into surfaces.yaml.
SEARCH_NOISE_SD, CONFIRM_NOISE_SD = 0.12, 0.09
FIRST_ANSWER_S = 30.0


class OnlineEvaluator:
    """Measures configurations of one application, each on live replicas under real load.

    Args:
        facts: The application.
        slo: What a rate must meet.
        source: What requests send.
        root_url: Where HTTP requests go; None for requests through the Serve handle.
        seed: Of the arrival schedules.
        startup_timeout_s: A candidate that is not up by then is infeasible.
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
    ) -> None:
        self._slo = slo
        self._seed = seed
        self._deployer = Deployer(facts, startup_timeout_s=startup_timeout_s)
        # The optimised mode runs the handle's router in the driver's own event loop: three times the requests a second.
        environment = {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", **python_path(source.folder)}
        self._driver: Any = (
            ray.remote(ServeLoadDriver)
            .options(num_cpus=0, max_concurrency=4, runtime_env={"env_vars": environment})
            .remote(APP_NAME, source, root_url)
        )
        self._node_id = ray.get_runtime_context().get_node_id()
        self._all_cores = sorted(os.sched_getaffinity(0))
        self._peaks: dict[str, float] = {}  # what was found before: where a confirmation starts
        self._ratios = [FIRST_RATIO]  # peak over capacity, of the peaks found so far: where the next search starts
        self._confirmations = 0

    def measure(
        self,
        configuration: Configuration,
        *,
        needed: Mapping[str, float] | None = None,
        confirm: bool = False,
        progress: Progress | None = None,
    ) -> Measurement:
        """See `Evaluator`."""
        watch = _Stopwatch(progress or (lambda text: None))
        notes: list[str] = []
        for attempt in (1, 2):
            measurement, intact = self._measure_once(configuration, dict(needed or {}), confirm, watch, notes)
            if intact:
                return measurement
            notes.append(f"attempt {attempt} was voided: a replica was replaced while it was measured")
        return Measurement(
            configuration=configuration,
            infeasible_because="crash under load: a replica was replaced during the measurement, twice",
            probes=measurement.probes,
            timings_s=watch.seconds,
            notes=tuple(notes),
            details=measurement.details,
        )

    def _measure_once(
        self,
        configuration: Configuration,
        needed: dict[str, float],
        confirm: bool,
        watch: "_Stopwatch",
        notes: list[str],
    ) -> tuple[Measurement, bool]:
        """One attempt, and whether the same replicas served it from beginning to end."""
        details: dict[str, Any] = {}

        def infeasible(reason: str, probes: tuple[Probe, ...] = ()) -> Measurement:
            return Measurement(
                configuration=configuration,
                infeasible_because=reason,
                probes=probes,
                timings_s=watch.seconds,
                notes=tuple(notes),
                details=details,
            )

        with watch.stage("deploying"):
            try:
                replicas = self._deployer.deploy(configuration)
            except DeploymentFailed as failure:
                details["log"] = failure.log[-4000:]
                self._deployer.delete(wait=True)
                return infeasible(failure.reason), True
            details["replicas"] = [{"pid": r.pid, "cores": cores_of(r.pid)} for r in replicas]
            shared = self._keep_driver_away(replicas)
        if shared:
            notes.append("the load driver had to share the replicas' cores: this peak is a lower bound")
        with watch.stage("warming up"):
            problem, _ = ray.get(self._driver.ask.remote(FIRST_ANSWER_S))
            if problem:
                return infeasible(f"the first request failed: {problem}"), self._intact(replicas)
            in_flight = max(4, 2 * largest_batch(configuration) * len(replicas))
            warm: Probe = self._saturate(min(in_flight, 16 * len(replicas)), WARM_UP_S)
        with watch.stage("probing", "measuring the capacity"):
            # As many in flight as the SLO leaves room for: more would form batches that no passing rate can form.
            room = round(warm.achieved_rps * self._slo.latency_s)
            capacity: Probe = self._saturate(max(2, min(in_flight, room)), SATURATE_S)
            if capacity.errors > self._slo.max_error_rate * capacity.requests:
                return infeasible(f"requests failed: {capacity.reason}", (capacity,)), self._intact(replicas)
            search = self._find_peak(configuration, capacity, needed, confirm, watch)
            intact = self._intact(replicas)
        probes = (capacity, *search.probes)
        if search.driver_limited:
            notes.append("the load driver, not the server, limited the highest rate that was tried")
        if search.peak_rps == 0 and not search.rejected:
            errors = next((p.reason for p in search.probes if p.errors), "")
            reason = f"SLO missed at any rate: {_percentile(self._slo)} above {self._slo.latency_s * 1e3:g} ms at "
            reason += f"{search.upper_rps:.3g} RPS" + (f"; requests failed: {errors}" if errors else "")
            return infeasible(reason, probes), intact
        if not search.rejected:
            self._peaks[str(configuration)] = search.peak_rps
            self._ratios.append(search.peak_rps / capacity.achieved_rps)
        measurement = Measurement(
            configuration=configuration,
            metrics={"peak_rps": search.peak_rps, "capacity_rps": capacity.achieved_rps} if search.peak_rps else {},
            bounds={"peak_rps": (search.peak_rps, search.upper_rps)} if search.rejected else {},
            noise_sd={"peak_rps": CONFIRM_NOISE_SD if confirm else SEARCH_NOISE_SD},
            probes=probes,
            timings_s=watch.seconds,
            notes=tuple(notes),
            details=details,
        )
        return measurement, intact

    def _find_peak(
        self,
        configuration: Configuration,
        capacity: Probe,
        needed: dict[str, float],
        confirm: bool,
        watch: "_Stopwatch",
    ) -> PeakSearch:
        shortest, longest = CONFIRM_WINDOW_S if confirm else SEARCH_WINDOW_S
        # All searches share one set of schedules, so that they differ by less; a confirmation gets fresh ones.
        self._confirmations += confirm
        seed = 1_000_003 * self._seed + 1000 * self._confirmations
        count = 0

        def probe(rate_rps: float) -> Probe:
            nonlocal count
            count += 1
            watch.say(f"probing at {rate_rps:.0f} RPS" if rate_rps >= 10 else f"probing at {rate_rps:.2g} RPS")
            window_s = min(longest, max(shortest, PROBE_REQUESTS / rate_rps))
            record: Record = ray.get(
                self._driver.probe.remote(rate_rps=rate_rps, window_s=window_s, seed=seed + count, slo=self._slo)
            )
            if record.given_up:
                ray.get(self._driver.drain.remote(self._slo))
            return judge(record, kind="open", rate_rps=rate_rps, window_s=window_s, slo=self._slo)

        known = self._peaks.get(str(configuration)) if confirm else None
        return find_peak(
            probe,
            capacity_rps=capacity.achieved_rps,
            start_rps=known or statistics.median(self._ratios) * capacity.achieved_rps,
            step=CONFIRM_STEP if known else SEARCH_STEP,
            rel_tol=CONFIRM_TOL if confirm else SEARCH_TOL,
            needed_rps=None if confirm else needed.get("peak_rps"),
        )

    def _saturate(self, in_flight: int, window_s: float) -> Probe:
        record: Record = ray.get(self._driver.saturate.remote(in_flight=in_flight, window_s=window_s, slo=self._slo))
        return judge(record, kind="saturate", rate_rps=0.0, window_s=window_s, slo=self._slo)

    def _keep_driver_away(self, replicas: list[Replica]) -> bool:
        """Moves the driver off the replicas' cores; True where none is left and it has to share."""
        taken = {c for r in replicas if is_local(r, self._node_id) for c in cores_of(r.pid)}
        free = [c for c in self._all_cores if c not in taken]
        ray.get(self._driver.pin.remote(free or self._all_cores))
        return not free

    def _intact(self, before: list[Replica]) -> bool:
        return {(r.replica_id, r.pid) for r in self._deployer.replicas()} == {(r.replica_id, r.pid) for r in before}

    def close(self) -> None:
        """Takes the application and the driver down."""
        ray.kill(self._driver)
        self._deployer.delete(wait=False)


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
