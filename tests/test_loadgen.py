"""The cross-check by MLPerf LoadGen: the tool itself in front of a server of known latency, and what is read off it."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from morphling_ray.load.driver import LoadDriver
from morphling_ray.load.loadgen import RUNS, LoadGenDriver, LoadGenRun, around_the_bound, crossing, percentile_of
from morphling_ray.objective import Slo

pytestmark = pytest.mark.timed

SUMMARY = """
Result is : INVALID
95.00 percentile latency (ns)   : 11000000
99.00 percentile latency (ns)   : 12345678
99.90 percentile latency (ns)   : 99000000
"""


class Sleeping:
    """Answers after 20 ms, whoever else is there; every n-th request fails."""

    def __init__(self, fails_every: int = 0) -> None:
        self.sent, self._fails_every = 0, fails_every

    async def send(self, payload: Any) -> None:
        self.sent += 1
        if self._fails_every and self.sent % self._fails_every == 0:
            raise ValueError("no")
        await asyncio.sleep(0.02)

    def stream(self, payload: Any) -> AsyncIterator[int]:
        """LoadGen knows no streams."""
        raise NotImplementedError

    async def close(self) -> None:
        """Nothing is open."""


def driver(client: Sleeping) -> LoadGenDriver:
    made = LoadGenDriver.__new__(LoadGenDriver)
    LoadDriver.__init__(made, lambda: client, itertools.repeat(None))
    return made


@pytest.mark.parametrize(("fails_every", "low", "high"), [(0, 0.019, 0.045), (10, np.inf, np.inf)])
async def test_loadgen_drives_a_server(fails_every: int, low: float, high: float) -> None:
    """Fails if its callbacks, its schedule or its summary are misread, or if failing requests count as quick ones."""
    pytest.importorskip("mlperf_loadgen")
    client = Sleeping(fails_every)
    run = await driver(client).server_run(rate_rps=100.0, window_s=1.5, seed=3, slo=Slo(latency_s=0.1))
    assert 100 <= client.sent <= 220
    assert run.rate_rps == 100.0
    assert low <= run.tail_s <= high


def test_the_percentile_is_the_one_that_was_asked_for() -> None:
    """Fails if another line of the summary is taken, or a missing one for 0."""
    assert percentile_of(SUMMARY, 99.0) == pytest.approx(0.012345678)
    assert percentile_of(SUMMARY, 99.9) == pytest.approx(0.099)
    with pytest.raises(ValueError, match=r"no 90\.00 percentile"):
        percentile_of(SUMMARY, 90.0)


@pytest.mark.parametrize("start", [60.0, 95.0, 105.0, 150.0])
def test_the_rate_at_the_bound_is_found_from_either_side(start: float) -> None:
    """Fails if the runs stay on one side of it, or the answer is one of the rates that were tried."""

    def run(rate: float, number: int) -> LoadGenRun:
        jitter = np.random.default_rng(number).normal(0.0, 0.03)
        return LoadGenRun(rate, 0.1 * (rate / 100.0) ** 6 * float(np.exp(jitter)))

    runs = around_the_bound(run, start, 0.1)
    assert len(runs) == RUNS
    assert crossing(runs, 0.1) == pytest.approx(100.0, rel=0.02)


def test_where_nothing_meets_the_bound_there_is_no_peak() -> None:
    """Fails if a rate is made up beyond what was run."""
    assert crossing([LoadGenRun(50.0, float("inf")), LoadGenRun(40.0, 0.5)], 0.1) == 0.0
    assert crossing([LoadGenRun(50.0, float("inf")), LoadGenRun(40.0, 0.05)], 0.1) == 40.0
