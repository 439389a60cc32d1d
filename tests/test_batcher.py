"""The batcher's rule, on a virtual model that says what it was given."""

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from morphling_ray.serving.batcher import Batcher


class Model:
    """Doubles numbers; waits for `go` before it answers, and remembers the batches."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self.go = threading.Event()
        self.started = threading.Event()

    def __call__(self, items: Sequence[Any]) -> list[Any]:
        self.batches.append(list(items))
        self.started.set()
        assert self.go.wait(5.0)
        return [2 * item for item in items]


async def test_what_arrives_during_a_batch_forms_the_next_one() -> None:
    """Fails if the forward blocks the event loop, or if batches form one request at a time."""
    model = Model()
    batcher = Batcher(model, max_batch_size=4)
    first = asyncio.ensure_future(batcher(0))
    await asyncio.to_thread(model.started.wait, 5.0)
    others = [asyncio.ensure_future(batcher(i)) for i in range(1, 7)]
    await asyncio.sleep(0.01)
    model.go.set()
    assert await asyncio.gather(first, *others) == [0, 2, 4, 6, 8, 10, 12]
    assert model.batches == [[0], [1, 2, 3, 4], [5, 6]]


async def test_waits_for_company_only_as_long_as_it_may() -> None:
    """Fails if the wait is ignored (first batch of one), or if a full batch waits for the timer."""
    model = Model()
    model.go.set()
    batcher = Batcher(model, max_batch_size=2, batch_wait_timeout_s=0.2)
    loop = asyncio.get_running_loop()
    start = loop.time()
    await asyncio.gather(batcher(1), batcher(2))
    assert loop.time() - start < 0.15  # full: no wait
    start = loop.time()
    await batcher(3)
    assert 0.19 < loop.time() - start < 1.0
    assert model.batches == [[1, 2], [3]]


async def test_settings_change_live_and_reach_a_request_that_waits() -> None:
    """Fails if the waiting worker does not notice new settings."""
    model = Model()
    model.go.set()
    batcher = Batcher(model, max_batch_size=8, batch_wait_timeout_s=60.0)
    waiting = asyncio.ensure_future(batcher(1))
    await asyncio.sleep(0.02)
    batcher.reconfigure(max_batch_size=1, batch_wait_timeout_s=0.0)
    assert await asyncio.wait_for(waiting, 2.0) == 2


async def test_a_request_that_was_given_up_is_dropped() -> None:
    """Fails if cancelled requests are still computed."""
    model = Model()
    batcher = Batcher(model, max_batch_size=1)
    running = asyncio.ensure_future(batcher(0))
    await asyncio.to_thread(model.started.wait, 5.0)
    stale, fresh = asyncio.ensure_future(batcher(1)), asyncio.ensure_future(batcher(2))
    await asyncio.sleep(0.01)
    stale.cancel()
    model.go.set()
    assert (await running, await fresh) == (0, 4)
    assert model.batches == [[0], [2]]


async def test_an_error_belongs_to_its_batch_alone() -> None:
    """Fails if the worker dies with the first error."""

    def forward(items: Sequence[Any]) -> list[Any]:
        return [1 / item for item in items]

    batcher = Batcher(forward)
    with pytest.raises(ZeroDivisionError):
        await batcher(0)
    assert await batcher(2) == 0.5


async def test_too_few_results_are_an_error() -> None:
    """Fails if a short answer leaves its requests waiting for ever."""
    batcher = Batcher(lambda items: [])
    with pytest.raises(ValueError, match="0 results for 1 items"):
        await asyncio.wait_for(batcher(1), 2.0)


@pytest.mark.parametrize("bad", [{"max_batch_size": 0}, {"batch_wait_timeout_s": -1.0}])
def test_settings_are_checked(bad: dict[str, Any]) -> None:
    """Fails without the checks in `reconfigure`."""
    with pytest.raises(ValueError, match="must"):
        Batcher(lambda items: items, **bad)
