"""A FastAPI ingress made by a builder function, with a model deployment behind it."""

import asyncio

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

api = FastAPI()


@serve.deployment
class Model:
    async def score(self, text: str) -> int:
        await asyncio.sleep(0.002)
        return len(text)


@serve.deployment
@serve.ingress(api)
class Web:
    def __init__(self, model: DeploymentHandle) -> None:
        self.model = model

    @api.post("/score")
    async def score(self, body: dict[str, str]) -> dict[str, int]:
        return {"score": await self.model.score.remote(body["text"])}


def build(args: dict[str, str]) -> serve.Application:
    return Web.bind(Model.bind())
