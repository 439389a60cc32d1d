"""Requests without company: what they show of a server that is too slow, or nearly so."""

import asyncio
import itertools
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from morphling_ray.evaluate.attempt import Attempt, Stopwatch
from morphling_ray.evaluate.plain import PlainProbes
from morphling_ray.load import driver
from morphling_ray.load.driver import LoadDriver
from morphling_ray.load.sequential import late_alone
from morphling_ray.measurement import Measurement, Probe, Verdict
from morphling_ray.objective import Slo

SLO = Slo(latency_s=0.05)
QUICK, SLOW = 0.02, 0.08


class Server:
    """A client of a server whose requests take what is said, in turn."""

    def __init__(self, takes_s: Sequence[float]) -> None:
        self._takes_s = itertools.cycle(takes_s)

    async def send(self, payload: Any) -> Any:
        await asyncio.sleep(next(self._takes_s))

    def stream(self, payload: Any) -> Any:
        raise AssertionError("nothing is streamed here")

    async def close(self) -> None:
        pass


async def alone(takes_s: Sequence[float], within_s: float = 0.01) -> list[float]:
    """Latencies of up to 16 requests, one after the other."""
    return await LoadDriver(lambda: Server(takes_s), itertools.repeat(None)).alone(16, SLO, within_s)


@pytest.mark.parametrize(
    ("late", "of", "shown"), [(0, 16, False), (1, 5, False), (2, 16, False), (3, 3, True), (3, 5, True), (4, 16, True)]
)
def test_a_few_late_ones_show_it_and_two_do_not(late: int, of: int, shown: bool) -> None:
    """Fails if a pause of the machine makes a server hopeless, or if it takes as many as where they queue."""
    assert late_alone([SLOW] * late + [QUICK] * (of - late), SLO) is shown


async def test_a_hopeless_server_is_asked_three_times() -> None:
    """Fails if requests go on where it is clear what they show."""
    latency_s = await alone([SLOW])
    assert len(latency_s) == 3
    assert late_alone(latency_s, SLO)


@pytest.mark.timed
async def test_a_server_in_doubt_is_asked_more_often() -> None:
    """Fails if a late one among the first few is all that is known, or if all servers take as long as that."""
    assert len(await alone([QUICK])) == 5
    assert len(await alone([QUICK, SLOW, *[QUICK] * 14])) == 16
    assert late_alone(await alone([QUICK, QUICK, SLOW]), SLO)  # every third


async def test_one_that_never_answers_is_late_and_one_that_fails_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if a server that hangs has no latencies, as if nothing were known of it."""
    monkeypatch.setattr(driver, "DRAIN_S", 0.1)
    assert await alone([3600.0]) == [0.1, 0.1, 0.1]

    class Failing(Server):
        async def send(self, payload: Any) -> Any:
            raise RuntimeError("no")

    assert await LoadDriver(lambda: Failing([0.0]), itertools.repeat(None)).alone(16, SLO, 0.01) == []


class Crew:
    """Drivers of a server that answers lone requests as said, and misses the SLO at any rate."""

    def __init__(self, latency_s: Sequence[float], later_s: Sequence[float] = ()) -> None:
        self._looks = [list(latency_s), list(later_s or latency_s)]
        self.rates: list[float] = []

    def alone(self, count: int) -> list[float]:
        return self._looks.pop(0)

    def probe(self, *, rate_rps: float, window_s: float, **how: Any) -> Probe:
        self.rates.append(rate_rps)
        seconds: dict[str, Any] = dict.fromkeys(("p50_s", "p90_s", "p99_s", "slo_latency_s"), 1.5)
        return Probe(
            kind="open",
            rate_rps=rate_rps,
            window_s=window_s,
            requests=8,
            achieved_rps=rate_rps,
            errors=0,
            late=3,
            driver_lag_s=0.0,
            driver_cpu=0.0,
            verdict=Verdict.MISSED,
            **seconds,
        )


def searched(
    latency_s: Sequence[float], capacity_rps: float, later_s: Sequence[float] = ()
) -> tuple[list[float], Measurement]:
    """The rates that were tried, as shares of the capacity, and what the search ended in."""
    crew = Crew(latency_s, later_s)
    stand: Any = SimpleNamespace(crew=crew, settle=lambda: None)
    plain = PlainProbes(Slo(latency_s=1.0), stand, None, closed_loop=False)
    attempt = Attempt({"cores": 1}, Stopwatch(lambda text: None))
    found = plain.found(attempt, plain.find_peak(attempt, capacity_rps))
    return [rate / capacity_rps for rate in crew.rates], found


def test_where_lone_requests_are_late_no_low_rate_is_tried() -> None:
    """Fails if a hopeless server is followed down to a request a minute, or if the reason does not say why."""
    shares, found = searched([0.9, 1.1, 1.2, 1.1], 1.27)
    assert min(shares) >= 0.5
    assert len(shares) <= 2 * 3  # looked at twice
    assert found.infeasible_because.endswith("3 of 4 requests without company were late")


def test_a_machine_that_stood_still_is_no_result() -> None:
    """Fails if what is seen once decides that a configuration does not work."""
    shares, found = searched([1.1, 1.2, 1.1], 100.0, later_s=[0.1] * 5)
    assert min(shares) < 0.05  # the second time as for any other server
    assert "company" not in found.infeasible_because


@pytest.mark.parametrize(("capacity_rps", "least"), [(1.27, 0.25), (10.0, 0.066), (1000.0, 0.031)])
def test_of_a_slow_server_no_rate_is_tried_whose_windows_are_all_but_empty(capacity_rps: float, least: float) -> None:
    """Fails if two requests in half a minute are taken for a measurement, or if a quick server is given up too soon."""
    shares, found = searched([0.8] * 5, capacity_rps)
    assert least <= min(shares) < 2 * least
    assert found.infeasible_because.startswith("SLO missed at any rate")
    assert "company" not in found.infeasible_because
