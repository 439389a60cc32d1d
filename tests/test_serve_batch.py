"""`@serve.batch` watched: Serve's own queue against the rule by which the twin simulates it."""

import asyncio
import gc
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray import serve
from ray._common.signature import DUMMY_TYPE
from ray.serve.batching import _BatchQueue, _SingleRequest

from morphling_ray.serving import serve_batch
from morphling_ray.serving.serve_batch import WatchedQueue
from morphling_ray.serving.twin import NO_STRAYS, Rule, ServiceTimes, capacity_rps, simulate

BATCH_S, ITEM_S = 0.03, 0.005
SECONDS = np.array([0.0, *(BATCH_S + ITEM_S * n for n in range(1, 9))])


async def blocking(numbers: list[int]) -> list[int]:
    """As most applications have it: the model is called where requests are received."""
    time.sleep(SECONDS[len(numbers)])
    return numbers


async def in_a_thread(numbers: list[int]) -> list[int]:
    """The event loop goes on."""
    await asyncio.sleep(SECONDS[len(numbers)])
    return numbers


MODELS = {"blocking": blocking, "timer": in_a_thread}
RULES: dict[str, Rule] = {"blocking": "blocking", "timer": "timer"}


@pytest.fixture(autouse=True)
def replica(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Serve's queue asks its replica for."""
    context = SimpleNamespace(_deployment_config=SimpleNamespace(max_ongoing_requests=1000))
    monkeypatch.setattr(serve, "get_replica_context", lambda: context)


@asynccontextmanager
async def watching(
    model: str, size: int, wait_s: float, max_concurrent_batches: int = 1
) -> AsyncIterator[WatchedQueue]:
    """Serve's own queue, watched."""
    queue = _BatchQueue(size, wait_s, max_concurrent_batches, MODELS[model])
    try:
        yield WatchedQueue(queue)
    finally:
        queue._handle_batch_task.cancel()
        await asyncio.gather(queue._handle_batch_task, return_exceptions=True)
        queue._handle_batch_task = None  # else the queue would look for a running loop when it is collected


def send(watched: WatchedQueue, number: int = 0) -> "asyncio.Future[Any]":
    result: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    context = serve.context._get_serve_request_context()
    watched._queue.put(_SingleRequest(None, [DUMMY_TYPE, number], result, context, None))
    return result


async def latencies(watched: WatchedQueue, arrivals: list[float]) -> list[float]:
    """From when a request was due to its answer, which a loop that is blocked receives late."""
    loop = asyncio.get_running_loop()
    ends = [0.0] * len(arrivals)
    began = time.perf_counter()

    async def one(i: int, due: float) -> None:
        await asyncio.sleep(max(0.0, began + due - time.perf_counter()))
        await send(watched)
        ends[i] = time.perf_counter() - began - due

    await asyncio.gather(*(loop.create_task(one(i, due)) for i, due in enumerate(arrivals)))
    return ends


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("size", "wait_s"), [(4, 0.0), (8, 0.06), (3, 0.5)])
async def test_serve_itself_follows_the_rule(model: str, size: int, wait_s: float) -> None:
    """Fails if batches are formed at other times than simulated: Serve's own code, and the same arrivals."""
    rate = 0.75 * capacity_rps(ServiceTimes(np.arange(1, 9), SECONDS[1:], NO_STRAYS), (size, wait_s), RULES[model])
    arrivals = np.cumsum(np.random.default_rng(8).exponential(1 / rate, 60)) + 0.05
    async with watching(model, size, wait_s) as watched:
        found = np.array(await latencies(watched, list(arrivals)))
        assert watched.rule == model
    off = {}
    for rule in ("work-conserving", "timer", "blocking"):
        (expected,) = simulate(arrivals[None], SECONDS, [(size, wait_s)], NO_STRAYS, 0, rule)
        off[rule] = max(abs(np.log(f(found) / f(expected))) for f in (np.mean, lambda x: np.quantile(x, 0.9)))
    assert off[model] < 0.25, off  # sooner or later a batch takes one request more, and what follows differs
    if (model, size) in (("timer", 4), ("blocking", 8)):  # elsewhere they hardly differ
        assert off["work-conserving"] > 0.15, off
        assert off[model] < min(v for rule, v in off.items() if rule != model), off


@pytest.mark.parametrize("model", MODELS)
async def test_a_sweep_finds_the_time_of_each_size(model: str) -> None:
    """Fails if batches are not of the sizes that were asked for, or if the settings do not hold again afterwards."""
    async with watching(model, 2, 0.01) as watched:
        going = True

        async def client() -> None:
            while going:
                await send(watched)

        clients = [asyncio.ensure_future(client()) for _ in range(40)]
        await asyncio.sleep(0.3)
        before, sizes = watched.computed, [1, 4, 8, 8, 4, 1] * 3
        wanted = ",".join(map(str, sizes))
        deadline = time.monotonic() + 10
        watched.sweep(sizes)
        assert (watched.max_batch_size, watched.batch_wait_timeout_s) == (2, 0.01)
        while wanted not in (made := ",".join(str(b.size) for b in watched.since(before))):
            assert time.monotonic() < deadline, made
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.3)
        watched.sweep([])
        going = False
        await asyncio.gather(*clients)
        log = watched.since(before)
        assert log[-1].size <= 2
        assert (watched._queue.max_batch_size, watched._queue.batch_wait_timeout_s) == (2, 0.01)
        times = ServiceTimes.measured(log)
        assert times.of(8)[[1, 4, 8]] == pytest.approx(SECONDS[[1, 4, 8]], rel=0.15)
        assert watched.rule == model


async def test_what_waits_can_be_dropped() -> None:
    """Fails if requests of an ended probe are still computed, or if the queue is stuck afterwards."""
    async with watching("timer", 1, 0.0) as watched:
        watched._queue._handle_batch_task.cancel()  # so that nothing takes them
        sent = [send(watched) for _ in range(3)]
        assert watched.drop() == 3
        results = await asyncio.gather(*sent, return_exceptions=True)
        assert {type(r).__name__ for r in results} == {"Dropped"}


async def test_only_one_queue_that_is_known_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if a queue that computes several batches at once is taken for one that follows the rule."""
    monkeypatch.setattr(serve_batch, "_watched", [])
    gc.collect()  # queues of other tests
    assert serve_batch.only() is None
    async with watching("timer", 2, 0.0, max_concurrent_batches=2) as several:
        assert serve_batch.only() is None
        several._queue.max_concurrent_batches = 1
        found = serve_batch.only()
        assert found is not None
        assert found is serve_batch.only()
        monkeypatch.setattr(serve_batch, "_watched", [])
        async with watching("timer", 2, 0.0):
            assert serve_batch.only() is None  # which of the two?


def test_what_a_timer_serves_at_most() -> None:
    """Fails if a timer that forms single requests is credited with what full batches would serve."""
    times = ServiceTimes(np.arange(1, 9), SECONDS[1:], NO_STRAYS)
    assert capacity_rps(times, (8, 0.0), "timer") == pytest.approx(1 / 0.035, rel=0.02)
    assert capacity_rps(times, (8, 0.0), "blocking") == pytest.approx(8 / 0.07, rel=0.02)
    assert capacity_rps(times, (8, 1.0), "timer") == pytest.approx(8 / 0.07, rel=0.02)
