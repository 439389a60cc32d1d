"""An application as a user has it: `@serve.batch`, settings in `user_config`, nothing of this project."""

import os
import time
from typing import Any

from ray import serve


@serve.deployment(user_config={"max_batch_size": 1}, max_ongoing_requests=64)
class Doubler:
    def __init__(self) -> None:
        self.offset = 0

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        self.double.set_max_batch_size(user_config["max_batch_size"])

    @serve.batch(max_batch_size=1, batch_wait_timeout_s=0.005)
    async def double(self, numbers: list[int]) -> list[dict[str, Any]]:
        time.sleep(0.004)  # a batch costs the same whatever its size: larger ones pay
        cores = sorted({core for t in os.listdir("/proc/self/task") for core in os.sched_getaffinity(int(t))})
        return [{"double": 2 * n, "cores": cores, "threads": os.environ.get("OMP_NUM_THREADS")} for n in numbers]

    async def __call__(self, number: int) -> dict[str, Any]:
        return await self.double(number)


app = Doubler.bind()
