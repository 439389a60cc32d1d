"""A work-conserving batcher for Serve replicas, beside `@serve.batch`.

The rule, exactly. Requests wait in one queue, first come, first served; one batch is computed at a time, in a thread
of its own, so that the event loop keeps receiving requests meanwhile. Let a request arrive at `a`, and let the worker
be free from `f` on. The next batch is taken at

    max(f, min(arrival of the max_batch_size-th request in the queue, arrival of the first one + batch_wait_timeout_s))

and holds the first `max_batch_size` requests that have arrived by then, or all of them if they are fewer. A request
that its caller gives up leaves the queue.

So the worker never idles while a request is due, and a batch grows while the one before it is computed. `@serve.batch`
differs in both (serve_batch.py): it forms batches on its timer whether or not the worker is free, or blocks its event
loop. `twin.py` computes what this rule does under any load, from the times that batches take: `sweep` measures those.
"""

import asyncio
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

Forward = Callable[[Sequence[Any]], Sequence[Any]]

LOGGED = 20_000  # batches that are remembered
_SWEEP_GIVES_UP_S = 1.0  # without enough requests for the next size


_live: "weakref.WeakSet[Batcher]" = weakref.WeakSet()


def only() -> "Batcher | None":
    """The process's batcher; None where there are none or several."""
    alive = list(_live)
    return alive[0] if len(alive) == 1 else None


class Dropped(Exception):
    """The request was still waiting when everything that waited was dropped."""


class Batch(NamedTuple):
    """One batch that was computed; times are those of `time.perf_counter`."""

    size: int
    taken: float
    done: float
    waiting: int
    """Requests that were left in the queue when it was taken."""


def latest(log: Iterable[Batch], count: int) -> list[Batch]:
    """The last `count` batches of a log, or as many of them as it remembers."""
    batches = list(log)
    return batches[max(0, len(batches) - max(0, count)) :]


class Batcher:
    """Collects single requests into batches for `forward`.

    Args:
        forward: Computes a batch: n items in, n results out, in order. Runs in one thread.
        max_batch_size: Largest batch.
        batch_wait_timeout_s: How long the oldest request may wait for company while the worker is free.

    Raises:
        ValueError: A batch size below 1 or a negative wait.
    """

    def __init__(self, forward: Forward, *, max_batch_size: int = 1, batch_wait_timeout_s: float = 0.0) -> None:
        self._forward = forward
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="forward")
        self._queue: OrderedDict[asyncio.Future[Any], tuple[float, Any]] = OrderedDict()  # result -> arrival, item
        self._changed = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sweep: deque[int] = deque()
        self.log: deque[Batch] = deque(maxlen=LOGGED)
        """The latest batches that were computed, in order."""
        self.computed = 0
        """How many there were in all."""
        self.reconfigure(max_batch_size=max_batch_size, batch_wait_timeout_s=batch_wait_timeout_s)
        _live.add(self)

    rule: Literal["work-conserving"] = "work-conserving"

    def reconfigure(self, *, max_batch_size: int, batch_wait_timeout_s: float) -> None:
        """Changes the settings; they hold from the next batch on."""
        if max_batch_size < 1:
            raise ValueError(f"max_batch_size must be at least 1, got {max_batch_size}")
        if batch_wait_timeout_s < 0:
            raise ValueError(f"batch_wait_timeout_s must not be negative, got {batch_wait_timeout_s}")
        self.max_batch_size = int(max_batch_size)
        self.batch_wait_timeout_s = float(batch_wait_timeout_s)
        self._changed.set()

    def sweep(self, sizes: Sequence[int]) -> None:
        """Makes the next batches of exactly these sizes, each as soon as the queue holds so many requests.

        Under a closed loop with enough requests in flight the worker is never idle, and the time from one batch to the
        next is what a batch of that size costs under load. The sweep ends early if requests stop coming.
        """
        self._sweep = deque(int(size) for size in sizes)
        self._changed.set()

    def drop(self) -> int:
        """Fails all waiting requests with `Dropped`; returns how many. What is being computed is finished."""
        dropped = list(self._queue)
        self._queue.clear()
        self._sweep.clear()
        for result in dropped:
            if not result.done():
                result.set_exception(Dropped("dropped while it was waiting"))
        self._changed.set()
        return len(dropped)

    def since(self, computed: int) -> list[Batch]:
        """The batches after the first `computed` ones, as far as they are remembered; callable from any thread."""
        return latest(self.log.copy(), self.computed - computed)

    def soon(self, function: Callable[[], Any]) -> None:
        """Has `function` called where requests are received, from any thread."""
        if self._loop is None:
            function()
        else:
            self._loop.call_soon_threadsafe(function)

    async def __call__(self, item: Any) -> Any:
        """The result for one item; raises what `forward` raised for its batch."""
        loop = asyncio.get_running_loop()
        if self._worker is None:  # here and not in __init__: now there surely is a running loop
            self._loop = loop
            self._worker = loop.create_task(self._work())
        result: asyncio.Future[Any] = loop.create_future()
        self._queue[result] = time.perf_counter(), item  # the loop's own clock counts milliseconds under uvloop
        self._changed.set()
        try:
            return await result
        finally:
            self._queue.pop(result, None)  # still there if the caller has given it up

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = await self._next_batch()
            if not batch:
                continue
            taken, waiting = time.perf_counter(), len(self._queue)
            try:
                results = await loop.run_in_executor(self._executor, self._forward, list(batch.values()))
                if len(results) != len(batch):
                    raise ValueError(f"forward returned {len(results)} results for {len(batch)} items")
            except Exception as error:  # noqa: BLE001  whatever the model raises belongs to the requests of its batch
                for future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for future, value in zip(batch, results, strict=True):
                if not future.done():
                    future.set_result(value)
            self.log.append(Batch(len(batch), taken, time.perf_counter(), waiting))
            self.computed += 1

    async def _next_batch(self) -> dict[asyncio.Future[Any], Any]:
        """Waits until a batch is due and takes it from the queue; results to items."""
        while True:
            self._changed.clear()
            most = self._sweep[0] if self._sweep else self.max_batch_size
            if len(self._queue) >= most:
                break
            wait_s: float | None = None
            if self._sweep:
                wait_s = _SWEEP_GIVES_UP_S
            elif self._queue:
                wait_s = next(iter(self._queue.values()))[0] + self.batch_wait_timeout_s - time.perf_counter()
                if wait_s <= 0:
                    break
            try:
                await asyncio.wait_for(self._changed.wait(), wait_s)
            except asyncio.TimeoutError:
                self._sweep.clear()
        if self._sweep:
            self._sweep.popleft()
        batch: dict[asyncio.Future[Any], Any] = {}
        while self._queue and len(batch) < most:
            result, (_, item) = self._queue.popitem(last=False)
            if not result.done():
                batch[result] = item
        return batch
