"""`@serve.batch` as a replica sees it: the times of its batches, logged and swept like those of our own batcher.

The rule, exactly (`ray.serve.batching`, Ray 2.60, one batch at a time). Requests wait in one queue; a loop collects
them into batches. It begins one at `b`: when it has formed the one before, or when a request arrives, whichever is
later. Let the `max_batch_size`-th request in the queue arrive at `full`. The batch is formed at

    max(b, min(full, b + batch_wait_timeout_s))

of what has arrived by then, and is computed when those before are done (`timer`). So batches are formed by the clock,
whether or not the model is free: without a wait, of one request each. Where the decorated function does not give the
event loop back while it computes (`blocking`), the loop that forms batches stands still as well: what was not formed
before is formed after, of all that have come. Only where the wait ran out meanwhile, they come too late for that batch.

`twin.py` simulates both. The application needs no code for any of it; a queue that does anything else (several batches
at once, sizes of its own) is left alone.
"""

import asyncio
import gc
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from morphling_ray.serving.batcher import LOGGED, Batch, Dropped, latest
from morphling_ray.serving.twin import Rule

_FILLS_WITHIN_S = 0.5  # a batch of a sweep
_JUDGED = 20  # latest batches that show whether the event loop is blocked

_watched: "list[WatchedQueue]" = []  # one at most


def only() -> "WatchedQueue | None":
    """The process's one `@serve.batch` queue, from now on watched; None where there are none, several or others.

    Serve makes a queue with the first request, so it is looked for after that.
    """
    if _watched:
        return _watched[0]
    try:
        from ray.serve.batching import _BatchQueue
    except ImportError:  # private, and may move
        return None
    queues = [o for o in gc.get_objects() if type(o) is _BatchQueue]
    if len(queues) != 1 or not _is_known(queues[0]):
        return None
    (queue,) = queues
    _watched.append(WatchedQueue(queue))
    return _watched[0]


def _is_known(queue: Any) -> bool:
    """Whether it has all that is used here, and follows the rule above."""
    parts = ("queue", "max_batch_size", "batch_wait_timeout_s", "_loop", "wait_for_batch", "_process_batch_inner")
    if not all(hasattr(queue, part) for part in parts):
        return False
    return getattr(queue, "max_concurrent_batches", 1) == 1 and getattr(queue, "batch_size_fn", None) is None


class WatchedQueue:
    """A `_BatchQueue` of Serve with the log and the sweep of a `Batcher`.

    Args:
        queue: Watched by replacing two of its methods; what they do stays the same.
    """

    def __init__(self, queue: Any) -> None:
        self._queue = queue
        self._settings: tuple[int, float] | None = None  # what holds again after a sweep
        self._sweep: deque[int] = deque()
        self._formed = 0  # requests in batches that are not computed yet
        self._blocked: deque[bool] = deque(maxlen=_JUDGED)
        self.log: deque[Batch] = deque(maxlen=LOGGED)
        """The latest batches that were computed, in order."""
        self.computed = 0
        """How many there were since it is watched."""
        self._form, self._compute = queue.wait_for_batch, queue._process_batch_inner
        queue.wait_for_batch, queue._process_batch_inner = self._next_batch, self._computed

    @property
    def max_batch_size(self) -> int:
        """Largest batch."""
        return int(self._settings[0] if self._settings else self._queue.max_batch_size)

    @property
    def batch_wait_timeout_s(self) -> float:
        """How long a batch may be formed."""
        return float(self._settings[1] if self._settings else self._queue.batch_wait_timeout_s)

    @property
    def rule(self) -> Rule:
        """Whether computing blocks the event loop, as far as seen."""
        return "blocking" if 2 * sum(self._blocked) > len(self._blocked) else "timer"

    def sweep(self, sizes: Sequence[int]) -> None:
        """See `Batcher.sweep`; a batch of less than its size is formed where requests do not come in time."""
        if sizes and self._settings is None:
            self._settings = self._queue.max_batch_size, self._queue.batch_wait_timeout_s
        self._sweep = deque(int(size) for size in sizes)
        if not sizes:
            self._restore()

    def drop(self) -> int:
        """Fails the requests of which no batch is formed yet; returns how many."""
        dropped = 0
        while not self._queue.queue.empty():
            request = self._queue.queue.get_nowait()
            if not request.future.done():
                request.future.set_exception(Dropped("dropped while it was waiting"))
                dropped += 1
        return dropped

    def since(self, computed: int) -> list[Batch]:
        """See `Batcher.since`."""
        return latest(self.log.copy(), self.computed - computed)

    def soon(self, function: Callable[[], Any]) -> None:
        """See `Batcher.soon`."""
        self._queue._loop.call_soon_threadsafe(function)

    def _restore(self) -> None:
        if self._settings is not None:
            self._queue.max_batch_size, self._queue.batch_wait_timeout_s = self._settings
            self._settings = None

    async def _next_batch(self) -> Any:
        """In place of `wait_for_batch`."""
        if self._sweep:
            self._queue.max_batch_size, self._queue.batch_wait_timeout_s = self._sweep.popleft(), _FILLS_WITHIN_S
        else:
            self._restore()
        formed = await self._form()
        self._formed += len(formed[0])
        return formed

    async def _computed(self, function: Any, batch: Any) -> None:
        """In place of `_process_batch_inner`."""
        self._formed -= len(batch)
        waiting, turns = self._queue.queue.qsize() + self._formed, list[float]()
        taken = time.perf_counter()
        asyncio.get_running_loop().call_soon(lambda: turns.append(time.perf_counter()))
        await self._compute(function, batch)
        done = time.perf_counter()
        if any(_failed(request.future) for request in batch):
            return  # how long an error takes says nothing
        self._blocked.append(not turns or turns[0] - taken > 0.5 * (done - taken))
        self.log.append(Batch(len(batch), taken, done, waiting))
        self.computed += 1


def _failed(result: "asyncio.Future[Any]") -> bool:
    return result.done() and not result.cancelled() and result.exception() is not None
