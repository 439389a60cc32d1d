"""Serve applications whose service times are known, so that their peaks can be computed. They sleep: no core is needed.

`md1`, `mm1`: one request at a time, 9 ms each, or exponential with a mean of 9 ms. `batching`, `decorated`: our batcher
and `@serve.batch`, 6 ms a batch and 2 ms a request. `noop`: answers at once.
"""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

from ray import serve

from morphling_ray.serving.batcher import Batcher

MEAN_S = 0.009
BATCH_S, ITEM_S = 0.006, 0.002
USER_CONFIG = {"max_batch_size": 8, "batch_wait_timeout_ms": 0}


class Single:
    """Serves one request at a time.

    Args:
        exponential: Whether times are drawn, or all the same.
    """

    def __init__(self, exponential: bool) -> None:
        self._draw: Callable[[], float] = (lambda: random.expovariate(1 / MEAN_S)) if exponential else lambda: MEAN_S
        self._free = 0.0

    async def __call__(self, request: Any = None) -> str:
        """Answers when its turn is over; turns follow each other without a gap, whatever a sleep overruns by."""
        now = time.perf_counter()
        self._free = max(now, self._free) + self._draw()
        await asyncio.sleep(self._free - now)
        return "done"


class Batching:
    """Serves batches by our batcher."""

    def __init__(self) -> None:
        self._batcher = Batcher(self._forward)

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Called by Serve at start and whenever `user_config` changes."""
        wait_s = user_config["batch_wait_timeout_ms"] / 1e3
        self._batcher.reconfigure(max_batch_size=user_config["max_batch_size"], batch_wait_timeout_s=wait_s)

    async def __call__(self, request: Any = None) -> str:
        """Answers with the request's batch."""
        return str(await self._batcher(request))

    @staticmethod
    def _forward(items: Sequence[Any]) -> Sequence[str]:
        time.sleep(BATCH_S + ITEM_S * len(items))
        return ["done"] * len(items)


class Decorated:
    """Serves batches by `@serve.batch`, in the event loop."""

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Called by Serve at start and whenever `user_config` changes."""
        self._forward.set_max_batch_size(user_config["max_batch_size"])
        self._forward.set_batch_wait_timeout_s(user_config["batch_wait_timeout_ms"] / 1e3)

    async def __call__(self, request: Any = None) -> str:
        """Answers with the request's batch."""
        return str(await self._forward(request))

    @serve.batch  # type: ignore[untyped-decorator]
    async def _forward(self, items: list[Any]) -> list[str]:
        time.sleep(BATCH_S + ITEM_S * len(items))
        return ["done"] * len(items)


class Noop:
    """Answers at once."""

    async def __call__(self, request: Any = None) -> str:
        """Answers."""
        return "done"


def _app(server: type, *args: Any, **options: Any) -> serve.Application:
    return serve.deployment(server, name="Server", max_ongoing_requests=10_000, **options).bind(*args)


md1 = _app(Single, False)
mm1 = _app(Single, True)
batching = _app(Batching, user_config=USER_CONFIG)
decorated = _app(Decorated, user_config=USER_CONFIG)
# So that the driver is the limit and not the replica, which serves less in Serve's default mode.
QUICK = {"runtime_env": {"env_vars": {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}}}
noop = _app(Noop, ray_actor_options=QUICK)
space = {"cpu_cores": [1], "max_batch_size": [1, 2, 4, 8, 16], "batch_wait_timeout_ms": [0, 10]}
