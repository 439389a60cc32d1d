"""A work-conserving batcher for Serve replicas, beside `@serve.batch`.

The rule, exactly:

1. Requests wait in one queue, first come, first served. One batch is computed at a time, in a thread of its own, so
   the event loop keeps receiving requests meanwhile.
2. When no batch is being computed and the queue holds `max_batch_size` requests, or its oldest has waited
   `batch_wait_timeout_s`, the first `max_batch_size` (or all, if fewer) are taken at once.
3. A request that its caller has given up is dropped when its turn comes, and does not count.

So the worker never idles while a request is due, and a batch grows while the one before it is computed. `@serve.batch`
differs in both: it forms batches on its timer whether or not the worker is free, or blocks its event loop.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

Forward = Callable[[Sequence[Any]], Sequence[Any]]


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
        self._queue: deque[tuple[float, Any, asyncio.Future[Any]]] = deque()
        self._changed = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        self.reconfigure(max_batch_size=max_batch_size, batch_wait_timeout_s=batch_wait_timeout_s)

    def reconfigure(self, *, max_batch_size: int, batch_wait_timeout_s: float) -> None:
        """Changes the settings; they hold from the next batch on."""
        if max_batch_size < 1:
            raise ValueError(f"max_batch_size must be at least 1, got {max_batch_size}")
        if batch_wait_timeout_s < 0:
            raise ValueError(f"batch_wait_timeout_s must not be negative, got {batch_wait_timeout_s}")
        self.max_batch_size = int(max_batch_size)
        self.batch_wait_timeout_s = float(batch_wait_timeout_s)
        self._changed.set()

    async def __call__(self, item: Any) -> Any:
        """The result for one item; raises what `forward` raised for its batch."""
        loop = asyncio.get_running_loop()
        if self._worker is None:  # here and not in __init__: now there surely is a running loop
            self._worker = loop.create_task(self._work())
        result: asyncio.Future[Any] = loop.create_future()
        self._queue.append((loop.time(), item, result))
        self._changed.set()
        return await result

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = await self._next_batch()
            if not batch:
                continue
            try:
                results = await loop.run_in_executor(self._executor, self._forward, [item for _, item, _ in batch])
                if len(results) != len(batch):
                    raise ValueError(f"forward returned {len(results)} results for {len(batch)} items")
            except Exception as error:  # noqa: BLE001  whatever the model raises belongs to the requests of its batch
                for _, _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, _, future), value in zip(batch, results, strict=True):
                if not future.done():
                    future.set_result(value)

    async def _next_batch(self) -> list[tuple[float, Any, asyncio.Future[Any]]]:
        loop = asyncio.get_running_loop()
        while True:
            self._changed.clear()
            while self._queue and self._queue[0][2].done():  # given up by its caller
                self._queue.popleft()
            if not self._queue:
                await self._changed.wait()
                continue
            wait_s = self._queue[0][0] + self.batch_wait_timeout_s - loop.time()
            if len(self._queue) >= self.max_batch_size or wait_s <= 0:
                break
            try:
                await asyncio.wait_for(self._changed.wait(), wait_s)
            except asyncio.TimeoutError:
                break
        batch: list[tuple[float, Any, asyncio.Future[Any]]] = []
        while self._queue and len(batch) < self.max_batch_size:
            entry = self._queue.popleft()
            if not entry[2].done():
                batch.append(entry)
        return batch
