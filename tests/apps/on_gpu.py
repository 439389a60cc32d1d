"""An application for a GPU, with a fake driver: its model takes 3 GiB, and each of a batch's inputs another one."""

import time
from typing import Any

import fake_cuda
from ray import serve

GIB = 2**30


@serve.deployment(user_config={"max_batch_size": 1}, max_ongoing_requests=200)
class Classifier:
    def __init__(self) -> None:
        fake_cuda.allocate(3 * GIB)

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        self.classify.set_max_batch_size(user_config["max_batch_size"])

    @serve.batch(max_batch_size=1, batch_wait_timeout_s=0.002)
    async def classify(self, inputs: list[int]) -> list[int]:
        fake_cuda.allocate((3 + len(inputs)) * GIB)
        began = time.perf_counter()
        fake_cuda.compute(0.004)
        while time.perf_counter() < began + 0.004:
            pass
        return inputs

    async def __call__(self, number: int) -> int:
        return await self.classify(number)


app = Classifier.bind()
