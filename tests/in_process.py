"""A server in the tests' own process, and what offers load to it."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from typing import Any

from morphling_ray.load.driver import LoadDriver
from morphling_ray.objective import Slo

SLO = Slo(latency_s=0.05, percentile=99.0, max_error_rate=0.01)


class OneAtATime:
    """A server with a fixed service time and one worker (M/D/1 under Poisson load)."""

    def __init__(self, service_s: float, fail_after: int = 10**9) -> None:
        self.service_s, self.fail_after, self.served = service_s, fail_after, 0
        self.free_at = 0.0
        self.given_up = 0

    async def send(self, payload: Any) -> Any:
        self.served += 1
        if self.served > self.fail_after:
            raise RuntimeError("broken")
        self.free_at = max(time.perf_counter(), self.free_at) + self.service_s
        try:
            await asyncio.sleep(self.free_at - time.perf_counter())
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        return payload

    def stream(self, payload: Any) -> AsyncIterator[int]:
        raise AssertionError("nobody has asked for a stream")

    async def close(self) -> None:
        pass


def driver(server: OneAtATime) -> LoadDriver:
    """A driver in this process."""
    return LoadDriver(lambda: server, itertools.repeat({"x": 1}))
