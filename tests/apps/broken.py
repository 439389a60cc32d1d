"""Applications and other things that do not work, each in its own way."""

from ray import serve


@serve.deployment(user_config={"max_batch_size": 1})
class NeverStarts:
    def __init__(self) -> None:
        raise MemoryError("cannot allocate 4.0 GiB for the weights")

    async def __call__(self) -> None: ...


@serve.deployment
class AlwaysFails:
    async def __call__(self, number: int) -> int:
        return 1 // 0


@serve.deployment
class TooSlow:
    async def __call__(self) -> None:
        import asyncio

        await asyncio.sleep(0.3)


never_starts = NeverStarts.bind()
always_fails = AlwaysFails.bind()
too_slow = TooSlow.bind()
unbound = AlwaysFails
number = 42


def builds_nothing(args: dict[str, str]) -> int:
    return 42
