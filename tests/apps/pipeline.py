"""Two deployments made by a builder function, as `pipeline.yaml` beside it deploys them; nothing of this project."""

import asyncio
import os
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle


@serve.deployment(user_config={"factor": 1})
class Scorer:
    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.factor = 1
        self.turn = asyncio.Lock()

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        self.factor = user_config["factor"]

    async def score(self, number: int) -> int:
        async with self.turn:
            await asyncio.sleep(self.seconds)
        return self.factor * number


@serve.deployment(num_replicas=2)
class Front:
    def __init__(self, scorer: DeploymentHandle) -> None:
        self.scorer = scorer

    async def __call__(self, number: int) -> dict[str, Any]:
        return {"score": await self.scorer.score.remote(number or 0), "mode": os.environ.get("SCORER_MODE")}


def build(args: dict[str, Any]) -> serve.Application:
    return Front.bind(Scorer.bind(float(args.get("seconds", 0.02))))
