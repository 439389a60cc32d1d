"""Arrivals, verdicts, and the driver against servers whose behaviour is known."""

import asyncio
import itertools
import math
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from aiohttp import web
from in_process import SLO, OneAtATime, driver

from morphling_ray.errors import InputError
from morphling_ray.load.arrivals import poisson_arrivals, representative_arrivals, times_in_queue
from morphling_ray.load.client import HttpClient, HttpError
from morphling_ray.load.driver import LoadDriver
from morphling_ray.load.sequential import Sequential
from morphling_ray.load.tally import Tally
from morphling_ray.load.window import Record, allowed_late, judge, lone_tail, lone_tail_s, tail_s, together
from morphling_ray.measurement import Probe, Verdict
from morphling_ray.objective import Slo


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
    with pytest.raises(ValueError, match="positive"):
        representative_arrivals(rate, window, seed=0)


def test_times_in_a_queue_are_those_of_lindley() -> None:
    """Fails for any error in the closed form."""
    arrivals = np.sort(np.random.default_rng(0).uniform(0, 60, (3, 50)), axis=1)
    for row, found in zip(arrivals, times_in_queue(arrivals), strict=True):
        end, expected = 0.0, []
        for arrival in row:
            end = max(end, arrival) + 1.0
            expected.append(end - arrival)
        assert found == pytest.approx(expected)


def test_a_short_representative_schedule_does_what_long_ones_do() -> None:
    """Fails if the choice is not made, or by wrong stationary times: 99 % at a load of 0.8 take up to 10.9 services."""
    rng = np.random.default_rng(3)
    long = times_in_queue(np.cumsum(rng.exponential(1 / 0.8, (4, 200_000)), axis=1))[:, 1000:]
    stationary = np.quantile(long, 0.99)

    def off(schedule: Any) -> float:
        spread = [np.quantile(times_in_queue(schedule(0.8, 400, s)[None]), 0.99) / stationary for s in range(40)]
        return float(np.sqrt(np.mean(np.log(spread) ** 2)))

    assert off(representative_arrivals) < 0.6 * off(poisson_arrivals)
    times = representative_arrivals(150.0, 2.0, seed=4)
    assert len(times) == 300
    assert np.all(np.diff(times) >= 0)
    assert 0 <= times[0] < times[-1] < 2.0
    assert np.array_equal(times, representative_arrivals(150.0, 2.0, seed=4))


def test_the_tail_is_foretold_by_the_upper_half_of_the_latencies() -> None:
    """Fails if one pause moves it, or for an error in the line: 99 % of an exponential with mean 20 ms take 92 ms."""
    latency = np.random.default_rng(0).exponential(0.02, 4000)
    assert tail_s(latency, 99.0) == pytest.approx(0.0921, rel=0.05)
    paused = np.append(latency, np.full(45, 1.0))
    assert tail_s(paused, 99.0) == pytest.approx(0.0921, rel=0.2)
    assert np.quantile(paused, 0.99) > 0.5
    assert tail_s(latency[:10], 99.0) == 0.0
    assert tail_s(np.append(latency[:100], np.full(20, np.inf)), 99.0) == 0.0


@pytest.mark.parametrize(("kind", "expected", "within"), [("same", 0.01, 0.02), ("exponential", 0.0461, 0.1)])
def test_what_a_request_without_company_takes_at_most(kind: str, expected: float, within: float) -> None:
    """Fails if service times that vary are taken for their median, or one pause of the machine for the usual case."""
    rng = np.random.default_rng(0)
    found, errors = [], []
    for _ in range(200):
        latency = rng.exponential(0.01, 16) if kind == "exponential" else rng.normal(0.01, 2e-5, 16)
        if kind == "same":
            latency[3] += 0.05
        found.append(lone_tail_s(latency.tolist(), 99.0))
        errors.append(lone_tail(latency.tolist(), 99.0)[1])
    assert np.mean(found) == pytest.approx(expected, rel=within)
    assert 0.7 < np.mean(errors) / np.std(found) < 1.5  # and how sure that is, is said
    assert lone_tail_s([0.01, 0.02, 0.03], 99.0) == pytest.approx(0.02)


@pytest.mark.parametrize(("requests", "late"), [(1, 0), (99, 0), (100, 1), (199, 1), (200, 2), (1000, 10)])
def test_nearest_rank_decides_how_many_may_be_late(requests: int, late: int) -> None:
    """Fails if the percentile is interpolated, or rounded the other way."""
    assert allowed_late(requests, SLO) == late


def verdict(
    latency_s: list[float], *, lag_s: float = 0.001, errors: int = 0, settled: Verdict | None = None, slo: Slo = SLO
) -> Probe:
    """What is made of a window of 200 planned requests."""
    record = Record(
        due_s=np.arange(len(latency_s)) / 100.0,
        latency_s=np.array(latency_s),
        lag_s=np.full(len(latency_s), lag_s),
        planned=200,
        errors=errors,
        given_up=0,
        first_error="",
        achieved_rps=100.0,
        elapsed_s=2.0,
        driver_cpu=0.1,
        settled=settled,
    )
    return judge(record, kind="open", rate_rps=100.0, window_s=2.0, slo=slo)


def test_verdicts() -> None:
    """Fails if late requests, errors, or a late driver are not told apart."""
    assert verdict([0.01] * 200).verdict is Verdict.MET
    assert verdict([0.01] * 198 + [0.06] * 2).verdict is Verdict.MET
    missed = verdict([0.01] * 197 + [0.06] * 3)
    assert (missed.verdict, missed.late, missed.p99_s) == (Verdict.MISSED, 3, 0.06)
    failed = verdict([0.01] * 197 + [math.inf] * 3, errors=3)
    assert (failed.verdict, failed.errors) == (Verdict.MISSED, 3)
    lagging = verdict([0.01] * 150 + [0.06] * 50, lag_s=0.03)
    assert lagging.verdict is Verdict.INVALID
    assert "driver" in lagging.reason
    assert verdict([0.01] * 200, lag_s=0.03).verdict is Verdict.MET  # in time all the same
    assert verdict([0.01] * 20, settled=Verdict.MISSED).verdict is Verdict.MISSED
    assert verdict([0.01] * 120 + [0.06] * 2, settled=Verdict.MET).verdict is Verdict.MISSED  # its own percentile


def test_a_slow_median_is_a_miss() -> None:
    """Fails if only the tail is judged, or if the median is held against a rate that keeps both."""
    both = replace(SLO, median_s=0.02)
    assert verdict([0.03] * 101 + [0.01] * 99, slo=both).verdict is Verdict.MISSED
    assert verdict([0.03] * 101 + [0.01] * 99, slo=both, settled=Verdict.MET).verdict is Verdict.MISSED
    assert verdict([0.03] * 99 + [0.01] * 101, slo=both).verdict is Verdict.MET
    assert verdict([0.03] * 101 + [0.01] * 99).mean_s == pytest.approx(0.0201, rel=0.01)


def test_records_of_several_drivers_are_one() -> None:
    """Fails if requests are lost or out of order, or if one driver that misses is outvoted."""

    def record(due_s: list[float], settled: Verdict | None) -> Record:
        n = len(due_s)
        return Record(
            due_s=np.array(due_s),
            latency_s=np.array(due_s) / 10,
            lag_s=np.zeros(n),
            planned=n,
            errors=1,
            given_up=2,
            first_error="",
            achieved_rps=10.0,
            elapsed_s=1.0,
            driver_cpu=0.1 * n,
            settled=settled,
        )

    both = together([record([0.1, 0.5], Verdict.MET), record([0.2, 0.3, 0.9], Verdict.MET)])
    assert both.due_s.tolist() == [0.1, 0.2, 0.3, 0.5, 0.9]
    assert np.allclose(both.latency_s, both.due_s / 10)
    assert (both.planned, both.errors, both.given_up, both.achieved_rps, both.settled) == (5, 2, 4, 20.0, Verdict.MET)
    assert both.driver_cpu == pytest.approx(0.3)
    assert together([record([0.1], Verdict.MET), record([0.2], Verdict.MISSED)]).settled is Verdict.MISSED
    assert together([record([0.1], Verdict.MET), record([0.2], None)]).settled is None


async def offer(server: OneAtATime, *, rate_rps: float, window_s: float, seed: int, settle: bool = False) -> Probe:
    """One window of open-loop load."""
    record = await driver(server).probe(
        rate_rps=rate_rps, window_s=window_s, seed=seed, slo=SLO, settle_after_s=0.1 if settle else None
    )
    return judge(record, kind="open", rate_rps=rate_rps, window_s=window_s, slo=SLO)


@pytest.mark.timed
async def test_capacity_of_a_known_server() -> None:
    """Fails if filling the pipeline counts, or if the closed loop is not closed."""
    record = await driver(OneAtATime(0.005)).saturate(in_flight=4, window_s=0.8, slo=SLO)
    assert record.achieved_rps == pytest.approx(200.0, rel=0.1)
    assert np.median(record.latency_s) == pytest.approx(4 * 0.005, rel=0.3)  # Little's law


@pytest.mark.timed
async def test_capacity_of_a_server_slower_than_the_window() -> None:
    """Fails if a closed loop ends before anything was answered: the capacity is then said to be 0."""
    record = await driver(OneAtATime(0.3)).saturate(in_flight=2, window_s=0.1, slo=SLO)
    assert record.achieved_rps == pytest.approx(1 / 0.3, rel=0.15)
    assert len(record.latency_s) >= 4


@pytest.mark.timed
async def test_a_rate_that_the_server_can_take_is_met() -> None:
    """Fails if latency is not measured, or if the rate is not offered."""
    probe = await offer(OneAtATime(0.002), rate_rps=150.0, window_s=1.0, seed=3)
    assert probe.verdict is Verdict.MET
    assert probe.requests == len(poisson_arrivals(150.0, 1.0, 3))
    assert 0.002 <= probe.p50_s < 0.02


@pytest.mark.timed
async def test_an_overload_ends_early_and_what_is_in_flight_is_given_up() -> None:
    """Fails if the driver waits for a backlog, or if latency counts from sending instead of the schedule."""
    server = OneAtATime(0.02)
    start = time.perf_counter()
    probe = await offer(server, rate_rps=200.0, window_s=5.0, seed=1)
    assert probe.verdict is Verdict.MISSED
    assert time.perf_counter() - start < 2.5
    assert server.given_up > 0


@pytest.mark.timed
async def test_a_driver_that_cannot_keep_up_is_invalid_not_missed() -> None:
    """Fails if the driver's own delay is blamed on the server."""

    class BlocksTheLoop(OneAtATime):
        async def send(self, payload: Any) -> Any:
            time.sleep(0.01)  # what a driver without enough CPU looks like
            return payload

    probe = await offer(BlocksTheLoop(0.0), rate_rps=300.0, window_s=1.0, seed=1)
    assert probe.verdict is Verdict.INVALID


@pytest.mark.timed
async def test_errors_are_misses_and_the_first_one_is_kept() -> None:
    """Fails if a failed request is ignored."""
    probe = await offer(OneAtATime(0.001, fail_after=20), rate_rps=200.0, window_s=1.0, seed=1)
    assert probe.verdict is Verdict.MISSED
    assert probe.errors > 0
    assert probe.reason == "RuntimeError: broken"


@pytest.mark.timed
async def test_no_request_is_counted_twice() -> None:
    """Fails if one that was answered late counts as overdue as well: the window would end on half the misses."""
    load = driver(OneAtATime(0.0))
    counted: list[tuple[int, int]] = []

    class Spy(Tally):
        def known(self) -> tuple[int, int]:
            known, late = super().known()
            ended = [s for s in self.latency_s if not math.isnan(s)]
            waiting = len(self.latency_s) - len(ended)
            counted.append((late, sum(s > SLO.latency_s for s in ended) + waiting))
            assert known <= len(self.due)
            return known, late

        def end(self, row: int, error: BaseException | None = None) -> None:
            super().end(row, error)
            self.known()  # the moment at which its task is not done yet

    window = Spy(time.perf_counter() - 1.0, SLO)
    tasks = []
    for at in np.linspace(window.start, window.start + 0.5, 40):  # all of them are late
        row = window.begin(float(at))
        tasks.append(asyncio.ensure_future(load._send(window, row, 0)))
        window.in_flight[row] = tasks[-1]
    await asyncio.gather(*tasks)
    assert not window.in_flight
    assert counted
    assert all(late == true for late, true in counted)


STREAMED = Slo(latency_s=0.05, streaming=True, tpot_s=0.02)


class Streams:
    """Streams answers: a first token, then others at equal distances. All at once, however many are going on."""

    def __init__(self, first_s: float, each_s: float, tokens: int = 6, *, slow_before: int = 0) -> None:
        self.first_s, self.each_s, self.tokens, self.slow_before = first_s, each_s, tokens, slow_before
        self.asked = self.given_up = 0

    async def stream(self, payload: Any) -> AsyncIterator[int]:
        self.asked += 1
        slow = self.asked <= self.slow_before
        try:
            for token in range(self.tokens):
                await asyncio.sleep(0.1 if slow else self.first_s if token == 0 else self.each_s)
                yield 1
        except (asyncio.CancelledError, GeneratorExit):
            self.given_up += 1
            raise

    async def send(self, payload: Any) -> Any:
        raise AssertionError("an answer that is streamed is asked for as a stream")

    async def close(self) -> None:
        pass


async def offer_streams(server: Streams, *, rate_rps: float = 100.0, window_s: float = 1.0, warm: bool = True) -> Probe:
    """One window of requests whose answers are streamed; the driver knows how long they go on where it is warm."""
    load = LoadDriver(lambda: server, itertools.repeat({"x": 1}), streaming=True)
    if warm:
        assert await load.ask(10.0) == ("", server.tokens)
    record = await load.probe(rate_rps=rate_rps, window_s=window_s, seed=1, slo=STREAMED)
    return judge(record, kind="open", rate_rps=rate_rps, window_s=window_s, slo=STREAMED)


@pytest.mark.timed
async def test_streams_are_timed_token_by_token() -> None:
    """Fails if the whole answer is taken for the first token, or the first one for all of them."""
    probe = await offer_streams(Streams(0.02, 0.01))
    assert probe.verdict is Verdict.MET
    assert probe.ttft_s == pytest.approx(0.02, abs=0.015)
    assert probe.tpot_s == pytest.approx(0.01, abs=0.005)
    assert probe.mean_s == pytest.approx(0.07, abs=0.02)  # until the last token
    assert probe.p50_s == pytest.approx(0.025, abs=0.01)  # half of its TPOT is half of its TTFT
    slow_to_begin, slow_to_go_on = Streams(0.06, 0.001), Streams(0.001, 0.03)
    assert [(await offer_streams(s)).verdict for s in (slow_to_begin, slow_to_go_on)] == [Verdict.MISSED] * 2


@pytest.mark.timed
async def test_streams_before_a_window_fill_the_server_and_do_not_count() -> None:
    """Fails if a window begins with an empty server, or what came before is judged."""
    server = Streams(0.001, 0.001, tokens=6, slow_before=1)  # which is what makes it known that they take long
    probe = await offer_streams(server)
    assert probe.verdict is Verdict.MET
    assert probe.requests == len(poisson_arrivals(100.0, 1.0, 1))
    assert server.asked > probe.requests + 50  # a second at 100 RPS came before


@pytest.mark.timed
async def test_a_stream_that_never_begins_is_late_and_given_up() -> None:
    """Fails if the window waits for it, or leaves it out."""
    server, start = Streams(30.0, 0.0), time.perf_counter()
    probe = await offer_streams(server, warm=False)
    assert probe.verdict is Verdict.MISSED
    assert time.perf_counter() - start < 2.0
    assert server.given_up == server.asked > 0


@pytest.mark.timed
async def test_an_empty_stream_is_an_error() -> None:
    """Fails if an application that answers nothing is quick."""
    probe = await offer_streams(Streams(0.0, 0.0, tokens=0), warm=False)
    assert (probe.verdict, probe.reason) == (Verdict.MISSED, "ValueError: the answer is an empty stream")


@pytest.mark.timed
async def test_streams_in_a_closed_loop_and_one_by_one() -> None:
    """Fails if the capacity is that of the first tokens, or a lone request's latency that of the last one."""
    load = LoadDriver(lambda: Streams(0.02, 0.01, tokens=4), itertools.repeat(None), streaming=True)
    alone = await load.alone(5, STREAMED)
    assert np.median(alone) == pytest.approx(0.025, abs=0.01)
    record = await load.saturate(in_flight=5, window_s=0.5, slo=STREAMED)
    assert record.achieved_rps == pytest.approx(100.0, rel=0.25)


@pytest.mark.timed
async def test_lines_of_a_stream_over_http_are_tokens() -> None:
    """Fails if tokens that travel together are one, an error is taken for tokens, or no piece comes before the end."""

    async def words(request: web.Request) -> web.StreamResponse:
        if request.path == "/none":
            raise web.HTTPBadRequest(text="no words")
        response = web.StreamResponse()
        await response.prepare(request)
        for piece in (b"data: one\n\n", b"data: two\n\ndata: three\n\n", b"data: four"):
            await response.write(piece)
            await asyncio.sleep(0.05)
        return response

    app = web.Application()
    app.router.add_get("/{any}", words)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    client = HttpClient(f"http://127.0.0.1:{runner.addresses[0][1]}")
    try:
        assert [n async for n in client.stream({"method": "GET", "path": "/some"})] == [1, 2, 1]
        with pytest.raises(HttpError, match="HTTP 400: no words"):
            assert [n async for n in client.stream({"method": "GET", "path": "/none"})]
    finally:
        await client.close()
        await runner.cleanup()


def test_what_an_slo_of_streams_says() -> None:
    """Fails if a bound is lost on the way to a person, or one makes no sense."""
    assert str(STREAMED) == "p99 of TTFT <= 50 ms and of TPOT <= 20 ms"
    assert str(SLO) == "p99 <= 50 ms"
    assert str(replace(SLO, median_s=0.02)) == "p99 <= 50 ms and p50 <= 20 ms"
    assert STREAMED.streamed(0.04, 0.01) == 0.04
    assert STREAMED.streamed(0.01, 0.03) == pytest.approx(0.075)  # half as long again as it may be
    with pytest.raises(InputError, match="goes with one for the first token"):
        replace(SLO, tpot_s=0.02)


@pytest.mark.timed
async def test_a_settled_verdict_ends_a_window() -> None:
    """Fails if windows always last as long as they may, or if a rate that a server can take is called missed."""
    start = time.perf_counter()
    probe = await offer(OneAtATime(0.0005), rate_rps=600.0, window_s=10.0, seed=1, settle=True)
    assert probe.verdict is Verdict.MET
    assert time.perf_counter() - start < 4.0
    assert 400 < probe.requests < 2000


class LateAtFirst(OneAtATime):
    """Is late with one request in 40 of its first 200, which is neither met nor missed for sure, and then never."""

    async def send(self, payload: Any) -> Any:
        self.served += 1
        late = self.served <= 200 and self.served % 40 == 0
        await asyncio.sleep(2 * SLO.latency_s if late else 0.001)
        return payload


@pytest.mark.timed
async def test_a_window_grows_while_its_verdict_is_not_settled() -> None:
    """Fails if it ends unsettled although it may grow, grows when it is settled, or never ends."""

    async def offer_up_to(windows: int, server: OneAtATime, rate_rps: float = 200.0) -> Record:
        return await driver(server).probe(rate_rps=rate_rps, window_s=1.0, seed=1, slo=SLO, windows=windows)

    one = await offer_up_to(1, LateAtFirst(0.0))
    grown = await offer_up_to(4, LateAtFirst(0.0))
    assert one.planned < 260
    assert 1.8 * one.planned < grown.planned < 4.5 * one.planned
    assert len(grown.due_s) == grown.planned
    assert (np.diff(grown.due_s) >= 0).all()
    assert np.median(grown.lag_s) < 0.02  # the next part goes on at once
    quick = await offer_up_to(4, OneAtATime(0.0), 700.0)
    assert quick.planned < 800  # one part is enough


def test_error_rates_of_the_sequential_test() -> None:
    """Fails if either of the stated error rates is exceeded on bursts of five, or if nothing is ever settled."""
    rng, tests = np.random.default_rng(0), Sequential(SLO)

    def settled(share: float) -> list[Verdict | None]:
        out: list[Verdict | None] = []
        for _ in range(400):
            late = np.repeat(rng.random(2000) < share, 5)  # five at a time
            seen = ((k, int(late[:k].sum())) for k in range(50, len(late), 50))
            out.append(next((v for known, n in seen if (v := tests.settled(known, n)) is not None), None))
        return out

    fair, good, bad, awful = settled(0.01 / 3), settled(0.01 / 5), settled(3 * 0.01), settled(0.5)
    assert np.mean([v is Verdict.MISSED for v in fair]) <= 0.01 + 0.01  # two standard errors of 400 windows
    assert np.mean([v is Verdict.MET for v in good]) > 0.9
    assert np.mean([v is Verdict.MET for v in bad]) <= 0.05 + 0.022
    assert all(v is Verdict.MISSED for v in awful)


@pytest.mark.timed
async def test_asking_once_tells_what_went_wrong() -> None:
    """Fails if errors or time-outs of the first request are swallowed."""
    assert await driver(OneAtATime(0.001)).ask(1.0) == ("", {"x": 1})
    assert await driver(OneAtATime(0.001, fail_after=0)).ask(1.0) == ("RuntimeError: broken", None)
    problem, _ = await driver(OneAtATime(5.0)).ask(0.05)
    assert problem == "no answer within 0.05 s"
