"""Applications and other things that do not work, each in its own way."""

import os
import sys
import time

from ray import serve


@serve.deployment(user_config={"max_batch_size": 1})
class NeverStarts:
    def __init__(self) -> None:
        raise MemoryError("cannot allocate 4.0 GiB for the weights")

    async def __call__(self) -> None: ...


@serve.deployment
class AlwaysFails:
    async def __call__(self, number: int = 0) -> int:
        return 1 // 0


@serve.deployment
class TooSlow:
    async def __call__(self) -> None:
        import asyncio

        await asyncio.sleep(0.3)


class Batched:
    """Serves batches by `@serve.batch`; what happens to large ones is for others to say."""

    def reconfigure(self, user_config: dict[str, int]) -> None:
        self.compute.set_max_batch_size(user_config["max_batch_size"])

    @serve.batch(max_batch_size=1, batch_wait_timeout_s=0.01)
    async def compute(self, numbers: list[int]) -> list[int]:
        time.sleep(0.01)
        if len(numbers) > 4:
            self.fails()
        return numbers

    async def __call__(self, number: int = 0) -> int:
        return await self.compute(number)


@serve.deployment(user_config={"max_batch_size": 1}, max_ongoing_requests=100)
class OutOfMemory(Batched):
    def fails(self) -> None:
        raise MemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@serve.deployment(user_config={"max_batch_size": 1}, max_ongoing_requests=100)
class Crashes(Batched):
    def fails(self) -> None:
        print("a kernel went wrong", file=sys.stderr, flush=True)
        os._exit(1)


@serve.deployment(user_config={"max_batch_size": 1}, max_ongoing_requests=100, health_check_period_s=0.2)
class Unhealthy(Batched):
    failed = False

    def fails(self) -> None:
        self.failed = True

    def check_health(self) -> None:
        if self.failed:
            raise RuntimeError("the card has fallen off the bus")


@serve.deployment
class HangsAtStart:
    def __init__(self) -> None:
        time.sleep(1000)

    async def __call__(self) -> None: ...


out_of_memory = OutOfMemory.bind()
crashes = Crashes.bind()
unhealthy = Unhealthy.bind()
hangs_at_start = HangsAtStart.bind()
never_starts = NeverStarts.bind()
always_fails = AlwaysFails.bind()
too_slow = TooSlow.bind()
unbound = AlwaysFails
number = 42


def builds_nothing(args: dict[str, str]) -> int:
    return 42
