"""An application that waits for something else, with many requests at once; who finds the queue full is turned away."""

import asyncio
from typing import Any

from ray import serve

AT_ONCE, EACH_S = 64, 0.2


@serve.deployment(max_ongoing_requests=AT_ONCE, max_queued_requests=16)
class Waiting:
    async def __call__(self, request: Any = None) -> str:
        await asyncio.sleep(EACH_S)
        return "done"


app = Waiting.bind()
