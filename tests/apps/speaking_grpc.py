"""A gRPC application on the service that Ray itself brings along, and what a request to it is."""

import asyncio
from typing import Any

from ray import serve
from ray.serve.generated import serve_pb2


@serve.deployment(max_ongoing_requests=100)
class Greeter:
    async def __call__(self, message: Any) -> Any:
        await asyncio.sleep(0.01)
        if message.name != "somebody":
            raise ValueError(f"who is {message.name!r}?")
        return serve_pb2.UserDefinedResponse(greeting=f"hello, {message.name}")


app = Greeter.bind()


def call() -> dict[str, Any]:
    message = serve_pb2.UserDefinedMessage(name="somebody")
    return {"method": "/ray.serve.UserDefinedService/__call__", "message": message}
