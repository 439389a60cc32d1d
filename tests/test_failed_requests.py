"""Requests that fail or are turned away: which of them count, and what is told of them."""

import math
import time
from dataclasses import replace
from typing import Any

import grpc
import numpy as np
import pytest
from in_process import SLO, OneAtATime, driver
from ray.exceptions import RayTaskError
from ray.serve.exceptions import BackPressureError

from morphling_ray.load.client import HttpError, turned_away
from morphling_ray.load.tally import Tally
from morphling_ray.load.window import judge
from morphling_ray.measurement import Verdict
from morphling_ray.objective import Slo


class Crowded(OneAtATime):
    """One that takes no more than `most` requests at a time, and none at all if that is 0."""

    def __init__(self, service_s: float, most: int) -> None:
        super().__init__(service_s)
        self.most, self.inside, self.refused = most, 0, 0

    async def send(self, payload: Any) -> Any:
        if self.inside >= self.most:
            self.refused += 1
            raise BackPressureError(self.inside, self.most)
        self.inside += 1
        try:
            return await super().send(payload)
        finally:
            self.inside -= 1


@pytest.mark.timed
async def test_capacity_of_a_server_that_turns_requests_away() -> None:
    """Fails if those count as failures, or as answers, or if they end the loop, or come again without a pause."""
    server = Crowded(0.005, most=3)
    record = await driver(server).saturate(in_flight=40, window_s=0.8, slo=SLO)
    assert record.achieved_rps == pytest.approx(200.0, rel=0.1)
    assert np.median(record.latency_s) == pytest.approx(3 * 0.005, rel=0.4)
    assert (record.errors, record.first_error) == (0, "")
    assert 37 <= server.refused < 500
    closed = await driver(Crowded(0.005, most=3)).saturate(in_flight=40, window_s=0.8, slo=SLO, patient=False)
    assert closed.errors >= 20
    assert "BackPressureError: Request dropped" in closed.first_error


@pytest.mark.timed
async def test_a_server_that_turns_everyone_away_serves_nothing() -> None:
    """Fails if a closed loop waits for it, or if its failures are forgiven."""
    start = time.perf_counter()
    record = await driver(Crowded(0.005, most=0)).saturate(in_flight=4, window_s=0.3, slo=SLO)
    assert time.perf_counter() - start < 1.0
    assert record.achieved_rps == 0.0
    assert record.errors > 4
    assert "BackPressureError" in record.first_error


def test_who_is_turned_away_is_told_from_who_fails() -> None:
    """Fails for either kind of error taken for the other, and where the replica's own error is not looked at."""
    cause = BackPressureError(8, 8)
    away = [cause, RayTaskError("f", "", cause).as_instanceof_cause(), HttpError(503, b""), HttpError(429, b"")]
    away += [grpc_error(grpc.StatusCode.RESOURCE_EXHAUSTED)]
    failed = [ValueError("no"), HttpError(500, b""), grpc_error(grpc.StatusCode.UNAVAILABLE)]
    assert [turned_away(error) for error in away] == [True] * 5
    assert [turned_away(error) for error in failed] == [False] * 3


def test_failures_that_the_slo_allows_are_not_late() -> None:
    """Fails if more than 1 % can never fail under a p99, or if failures that are allowed or not are not counted."""

    def verdict(errors: int, late: int, slo: Slo) -> tuple[Verdict, float]:
        tally = Tally(time.perf_counter() - 1.0, slo)
        for number in range(200):
            tally.end(tally.begin(tally.start), ValueError("no") if number < errors else None)
        for row in range(errors, 200):
            tally.latency_s[row] = 1.0 if row < errors + late else 0.01
        probe = judge(tally.record(planned=200, settled=None), kind="open", rate_rps=200.0, window_s=1.0, slo=slo)
        assert (probe.requests, probe.errors) == (200, errors)
        return probe.verdict, probe.slo_latency_s

    lenient = replace(SLO, max_error_rate=0.05)
    assert verdict(9, 0, SLO) == (Verdict.MISSED, math.inf)
    assert verdict(9, 0, lenient) == (Verdict.MET, 0.01)
    assert verdict(9, 5, lenient) == (Verdict.MISSED, 1.0)
    assert verdict(11, 0, lenient)[0] is Verdict.MISSED
    assert verdict(1, 1, SLO)[0] is Verdict.MET
    assert verdict(1, 2, SLO)[0] is Verdict.MISSED


def test_one_failure_of_few_requests_proves_nothing() -> None:
    """Fails if a single failure while a server warms up makes a configuration infeasible, or if a tenth does not."""
    assert [SLO.too_many_errors(errors, 40) for errors in (1, 2, 4)] == [False, True, True]
    assert replace(SLO, max_error_rate=0.0).too_many_errors(1, 10_000)
    assert not SLO.too_many_errors(0, 0)


def grpc_error(code: grpc.StatusCode) -> grpc.aio.AioRpcError:
    """Of a call."""
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata())


async def test_the_first_real_failure_is_what_is_told() -> None:
    """Fails if a request that was turned away before hides why others failed."""
    tally = Tally(time.perf_counter(), SLO)
    for error in (BackPressureError(8, 8), BackPressureError(8, 8), ValueError("no"), KeyError("x")):
        tally.end(tally.begin(tally.start), error)
    tally.end(tally.begin(tally.start))
    assert tally.first_error == "ValueError: no"
    assert tally.known() == (5, 4)
    tally.forgive()
    assert (tally.errors, tally.first_error, tally.known()) == (2, "ValueError: no", (3, 2))
