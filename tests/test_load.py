"""Arrivals, verdicts, and the driver against servers whose behaviour is known."""

import asyncio
import itertools
import math
import time
from typing import Any

import numpy as np
import pytest

from morphling_ray.load.arrivals import poisson_arrivals
from morphling_ray.load.client import is_http
from morphling_ray.load.driver import LoadDriver, RequestSource
from morphling_ray.load.window import allowed_late, judge
from morphling_ray.measurement import Probe, Verdict
from morphling_ray.objective import Slo

SLO = Slo(latency_s=0.05, percentile=99.0, max_error_rate=0.01)


def test_arrivals_are_poisson_sorted_and_repeatable() -> None:
    """Fails for evenly spaced arrivals (variance of counts 0) and for an unused seed."""
    times = poisson_arrivals(200.0, 50.0, seed=1)
    assert np.all(np.diff(times) >= 0)
    assert times[0] >= 0
    assert times[-1] < 50.0
    counts = np.histogram(times, bins=500, range=(0, 50))[0]
    assert counts.mean() == pytest.approx(200 / 10, rel=0.05)
    assert counts.var() == pytest.approx(counts.mean(), rel=0.25)  # a Poisson count's variance is its mean
    assert np.array_equal(times, poisson_arrivals(200.0, 50.0, seed=1))
    assert not np.array_equal(times[:50], poisson_arrivals(200.0, 50.0, seed=2)[:50])


@pytest.mark.parametrize(("rate", "window"), [(0.0, 1.0), (10.0, 0.0), (float("nan"), 1.0)])
def test_arrivals_refuse_nonsense(rate: float, window: float) -> None:
    """Fails without the check."""
    with pytest.raises(ValueError, match="positive"):
        poisson_arrivals(rate, window, seed=0)


@pytest.mark.parametrize(("requests", "late"), [(1, 0), (99, 0), (100, 1), (199, 1), (200, 2), (1000, 10)])
def test_nearest_rank_decides_how_many_may_be_late(requests: int, late: int) -> None:
    """Fails if the percentile is interpolated, or rounded the other way."""
    assert allowed_late(requests, SLO) == late


def verdict(**changes: Any) -> Probe:
    """A window of 200 requests at 10 ms, changed."""
    arguments: dict[str, Any] = {
        "kind": "open",
        "rate_rps": 100.0,
        "window_s": 2.0,
        "latencies_s": [0.01] * 200,
        "errors": 0,
        "planned": 200,
        "achieved_rps": 100.0,
        "lags_s": [0.001] * 200,
        "driver_cpu": 0.1,
        "slo": SLO,
        "ended_early": False,
    }
    return judge(**{**arguments, **changes})


def test_verdicts() -> None:
    """Fails if late requests, errors, or a late driver are not told apart."""
    assert verdict().verdict is Verdict.MET
    assert verdict(latencies_s=[0.01] * 198 + [0.06] * 2).verdict is Verdict.MET
    missed = verdict(latencies_s=[0.01] * 197 + [0.06] * 3)
    assert (missed.verdict, missed.late, missed.p99_s) == (Verdict.MISSED, 3, 0.06)
    failed = verdict(latencies_s=[0.01] * 197 + [math.inf] * 3, errors=3)
    assert (failed.verdict, failed.errors) == (Verdict.MISSED, 3)
    lagging = verdict(latencies_s=[0.01] * 150 + [0.06] * 50, lags_s=[0.03] * 200)
    assert lagging.verdict is Verdict.INVALID
    assert "driver" in lagging.reason
    assert verdict(lags_s=[0.03] * 200).verdict is Verdict.MET  # in time all the same
    assert verdict(ended_early=True).verdict is Verdict.MISSED


class OneAtATime:
    """A server with a fixed service time and one worker (M/D/1 under Poisson load)."""

    def __init__(self, service_s: float, fail_after: int = 10**9) -> None:
        self.service_s, self.fail_after, self.served = service_s, fail_after, 0
        self.free_at = 0.0
        self.given_up = 0

    async def send(self, payload: Any) -> Any:
        self.served += 1
        if self.served > self.fail_after:
            raise RuntimeError("broken")
        self.free_at = max(time.perf_counter(), self.free_at) + self.service_s
        try:
            await asyncio.sleep(self.free_at - time.perf_counter())
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        return payload

    async def close(self) -> None:
        pass


def driver(server: OneAtATime) -> LoadDriver:
    """A driver in this process."""
    return LoadDriver(lambda: server, itertools.repeat({"x": 1}))


async def test_capacity_of_a_known_server() -> None:
    """Fails if filling the pipeline counts, or if the closed loop is not closed."""
    probe = await driver(OneAtATime(0.005)).saturate(in_flight=4, window_s=0.8, slo=SLO)
    assert probe.achieved_rps == pytest.approx(200.0, rel=0.1)
    assert probe.p50_s == pytest.approx(4 * 0.005, rel=0.3)  # Little's law


async def test_a_rate_that_the_server_can_take_is_met() -> None:
    """Fails if latency is not measured, or if the rate is not offered."""
    probe = await driver(OneAtATime(0.002)).probe(rate_rps=150.0, window_s=1.0, seed=3, slo=SLO)
    assert probe.verdict is Verdict.MET
    assert probe.requests == len(poisson_arrivals(150.0, 1.0, 3))
    assert 0.002 <= probe.p50_s < 0.02


async def test_an_overload_ends_early_and_what_is_in_flight_is_given_up() -> None:
    """Fails if the driver waits for a backlog, or if latency counts from sending instead of the schedule."""
    server = OneAtATime(0.02)
    start = time.perf_counter()
    probe = await driver(server).probe(rate_rps=200.0, window_s=5.0, seed=1, slo=SLO)
    assert probe.verdict is Verdict.MISSED
    assert time.perf_counter() - start < 2.5
    assert server.given_up > 0


async def test_a_driver_that_cannot_keep_up_is_invalid_not_missed() -> None:
    """Fails if the driver's own delay is blamed on the server."""

    class BlocksTheLoop(OneAtATime):
        async def send(self, payload: Any) -> Any:
            time.sleep(0.01)  # what a driver without enough CPU looks like
            return payload

    probe = await driver(BlocksTheLoop(0.0)).probe(rate_rps=300.0, window_s=1.0, seed=1, slo=SLO)
    assert probe.verdict is Verdict.INVALID


async def test_errors_are_misses_and_the_first_one_is_kept() -> None:
    """Fails if a failed request is ignored."""
    probe = await driver(OneAtATime(0.001, fail_after=20)).probe(rate_rps=200.0, window_s=1.0, seed=1, slo=SLO)
    assert probe.verdict is Verdict.MISSED
    assert probe.errors > 0
    assert probe.reason == "RuntimeError: broken"


async def test_asking_once_tells_what_went_wrong() -> None:
    """Fails if errors or time-outs of the first request are swallowed."""
    assert await driver(OneAtATime(0.001)).ask(1.0) == ("", {"x": 1})
    assert await driver(OneAtATime(0.001, fail_after=0)).ask(1.0) == ("RuntimeError: broken", None)
    problem, _ = await driver(OneAtATime(5.0)).ask(0.05)
    assert problem == "no answer within 0.05 s"


def test_request_sources(tmp_path: Any) -> None:
    """Fails if a function is called once only, or a generator is not cycled."""
    (tmp_path / "my_requests.py").write_text(
        "import itertools\n_n = itertools.count()\n"
        "def each():\n    return next(_n)\n"
        "def items():\n    yield 'a'\n    yield 'b'\n"
    )
    folder = str(tmp_path)
    assert list(itertools.islice(RequestSource(value=[1]).payloads(), 2)) == [[1], [1]]
    assert list(itertools.islice(RequestSource(function="my_requests:each", folder=folder).payloads(), 3)) == [0, 1, 2]
    items = RequestSource(function="my_requests:items", folder=folder).payloads()
    assert list(itertools.islice(items, 3)) == ["a", "b", "a"]


def test_what_an_http_request_is() -> None:
    """Fails if any dict counts as HTTP."""
    assert is_http({"method": "POST", "path": "/x", "json": {}})
    assert not is_http({"method": "POST"})
    assert not is_http({"method": "POST", "path": "/", "pixels": []})
    assert not is_http(["method", "path"])
