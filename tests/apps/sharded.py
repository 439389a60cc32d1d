"""A model in parts: each replica starts workers in a placement group of its own."""

from typing import Any

import ray
from ray import serve


@ray.remote(num_cpus=0.5)
class Part:
    """One half of the model."""

    def forward(self, x: int) -> int:
        return 2 * x


@serve.deployment(
    ray_actor_options={"num_cpus": 1},
    placement_group_bundles=[{"CPU": 1.5}, {"CPU": 0.5}],
    placement_group_strategy="PACK",
)
class Sharded:
    def __init__(self) -> None:
        self.parts = [Part.remote() for _ in range(2)]

    async def __call__(self, request: Any = None) -> int:
        return sum([await part.forward.remote(1) for part in self.parts])


@serve.deployment(
    ray_actor_options={"num_cpus": 0}, placement_group_bundles=[{"CPU": 1, "GPU": 1, "accelerator_type:L4": 0.001}] * 2
)
class Parallel:
    async def __call__(self, request: Any = None) -> str:
        return "done"


app = Sharded.bind()
parallel = Parallel.bind()
