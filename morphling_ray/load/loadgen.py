"""The cross-check by the field's own tool: MLPerf LoadGen offers the load (Server scenario) and takes the latencies.

    cross_check ─► run at a rate ─► LoadGen: Poisson arrivals ─► our client ─► replicas
                                    its summary: the percentile ─► the rate at which that is the SLO's bound

Ours is only the client, and which rates are run. LoadGen draws the arrivals, counts latency from the scheduled instant,
and says what its percentile was.
"""

import asyncio
import re
import secrets
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import ray

from morphling_ray.load.crew import ENVIRONMENT
from morphling_ray.load.driver import ServeLoadDriver
from morphling_ray.load.requests import RequestSource
from morphling_ray.objective import Slo
from morphling_ray.serving.application import python_path

RUNS = 6
RUN_S = 10.0
STEP = 0.1  # from one rate to the next, until the SLO is met at one and missed at another
NEAREST = 4  # runs that the answer is read off


@dataclass(frozen=True)
class LoadGenRun:
    """One run of LoadGen.

    Attributes:
        rate_rps: Mean Poisson rate that was asked for.
        tail_s: Latency at the SLO's percentile, as LoadGen's summary has it; infinite if too many requests failed.
    """

    rate_rps: float
    tail_s: float


@dataclass(frozen=True)
class CrossCheck:
    """What LoadGen found.

    Attributes:
        peak_rps: The rate at which its percentile is the SLO's bound; 0 where even the lowest one missed.
        version: Of LoadGen.
        runs: In order.
    """

    peak_rps: float
    version: str
    runs: tuple[LoadGenRun, ...]


def available() -> bool:
    """Whether LoadGen is installed."""
    return find_spec("mlperf_loadgen") is not None


def cross_check(
    app_name: str,
    source: RequestSource,
    root_url: str | None,
    slo: Slo,
    *,
    cores: Sequence[int],
    around_rps: float,
    seed: int = 0,
    run_s: float = RUN_S,
    say: Callable[[str], None] = lambda text: None,
) -> CrossCheck:
    """The peak of the application that is up, by LoadGen; takes about a minute.

    Args:
        app_name: The application.
        source: What requests send.
        root_url: Where the HTTP proxy listens; None to go through the Serve handle.
        slo: Bounds.
        cores: For LoadGen's process.
        around_rps: Where to begin.
        seed: Of the schedules.
        run_s: Seconds of each run.
        say: Told which rate is run.
    """
    driver = (
        ray.remote(LoadGenDriver)
        .options(
            name=f"{app_name}-loadgen-{secrets.token_hex(4)}",
            num_cpus=0,
            max_concurrency=4,
            runtime_env={"env_vars": {**ENVIRONMENT, **python_path(source.folder)}},
        )
        .remote(app_name, source, root_url)
    )

    def run(rate_rps: float, number: int) -> LoadGenRun:
        say(f"LoadGen at {rate_rps:.0f} RPS")
        arguments = {"rate_rps": rate_rps, "window_s": run_s, "seed": 1000 * seed + number, "slo": slo}
        found: LoadGenRun = ray.get(driver.server_run.remote(**arguments))
        return found

    try:
        ray.get(driver.pin.remote(list(cores)))
        runs = around_the_bound(run, around_rps, slo.latency_s)
    finally:
        ray.kill(driver)
    return CrossCheck(crossing(runs, slo.latency_s), version("mlcommons-loadgen"), tuple(runs))


def around_the_bound(run: Callable[[float, int], LoadGenRun], start_rps: float, slo_s: float) -> list[LoadGenRun]:
    """Runs at rates around the one at which the percentile is the SLO's bound.

    Args:
        run: Makes one, given its rate and its number.
        start_rps: First rate.
        slo_s: The bound.

    Returns:
        `RUNS` of them, in order.
    """
    runs: list[LoadGenRun] = []
    rate = start_rps
    for number in range(RUNS):
        runs.append(run(rate, number))
        met = [r.rate_rps for r in runs if r.tail_s <= slo_s]
        missed = [r.rate_rps for r in runs if r.tail_s > slo_s]
        beyond = max(met) * (1 + STEP) if met else min(missed) / (1 + STEP)
        rate = crossing(runs, slo_s) if met and missed else beyond
    return runs


def crossing(runs: Sequence[LoadGenRun], slo_s: float) -> float:
    """The rate at which the percentile is `slo_s`: a line through the nearest runs, in logs; 0 where none met it."""
    usable = sorted((r for r in runs if np.isfinite(r.tail_s)), key=lambda r: abs(np.log(r.tail_s / slo_s)))[:NEAREST]
    met = [r.rate_rps for r in runs if r.tail_s <= slo_s]
    if not met:
        return 0.0
    low, high = min(r.rate_rps for r in usable), max(r.rate_rps for r in usable)
    rates, tails = np.log([r.rate_rps for r in usable]), np.log([r.tail_s for r in usable])
    if low == high or (slope := float(np.polyfit(rates, tails, 1)[0])) <= 0:
        return max(met)
    found = float(np.exp(rates.mean() + (np.log(slo_s) - tails.mean()) / slope))
    return min(max(found, low / (1 + STEP)), high * (1 + STEP))


class LoadGenDriver(ServeLoadDriver):
    """The driver's client, steered by LoadGen instead of by our own schedules."""

    async def server_run(self, *, rate_rps: float, window_s: float, seed: int, slo: Slo) -> LoadGenRun:
        """One run of the Server scenario, in performance mode.

        Args:
            rate_rps: Mean Poisson rate.
            window_s: Shortest duration.
            seed: Of the schedule.
            slo: Bounds.
        """
        import mlperf_loadgen as loadgen

        loop = asyncio.get_running_loop()
        failed, sent = 0, 0

        async def answer(query: int) -> None:
            nonlocal failed, sent
            sent += 1
            try:
                await self._open.send(next(self._payloads))
            except Exception:  # noqa: BLE001  a failed request is a result
                failed += 1
            loadgen.QuerySamplesComplete([loadgen.QuerySampleResponse(query, 0, 0)])

        def issue(samples: Sequence[Any]) -> None:  # in LoadGen's thread
            for sample in samples:
                asyncio.run_coroutine_threadsafe(answer(sample.id), loop)

        settings = loadgen.TestSettings()
        settings.scenario, settings.mode = loadgen.TestScenario.Server, loadgen.TestMode.PerformanceOnly
        settings.server_target_qps = rate_rps
        settings.server_target_latency_ns = round(slo.latency_s * 1e9)
        settings.server_target_latency_percentile = slo.percentile / 100
        settings.min_duration_ms, settings.min_query_count = round(window_s * 1e3), 1
        settings.schedule_rng_seed = settings.sample_index_rng_seed = settings.qsl_rng_seed = seed + 1
        with tempfile.TemporaryDirectory() as folder:
            log = loadgen.LogSettings()
            log.log_output.outdir, log.log_output.copy_summary_to_stdout = folder, False
            system = loadgen.ConstructSUT(issue, lambda: None)
            samples = loadgen.ConstructQSL(1, 1, lambda indices: None, lambda indices: None)
            try:
                await loop.run_in_executor(
                    None, lambda: loadgen.StartTestWithLogSettings(system, samples, settings, log, "")
                )
            finally:
                loadgen.DestroyQSL(samples)
                loadgen.DestroySUT(system)
            tail_s = percentile_of(Path(folder, "mlperf_log_summary.txt").read_text(), slo.percentile)
        return LoadGenRun(rate_rps, tail_s if failed <= slo.max_error_rate * sent else float("inf"))


def percentile_of(summary: str, percentile: float) -> float:
    """The latency at a percentile, in seconds, from LoadGen's summary.

    Raises:
        ValueError: The summary has no such line.
    """
    found = re.search(rf"^{percentile:.2f} percentile latency \(ns\)\s*:\s*(\d+)", summary, re.M)
    if found is None:
        raise ValueError(f"LoadGen's summary has no {percentile:.2f} percentile: {summary[:300]!r}")
    return int(found[1]) / 1e9
