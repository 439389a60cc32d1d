"""Models behind `@serve.batch`, as most applications have them: called in the event loop, and in a thread."""

import asyncio
from importlib import import_module
from typing import Any

import torch
from ray import serve

from morphling_ray.serving.torch_model import ServedModel


class Decorated:
    """Serves the `ServedModel` that `model` names as `module:attribute`.

    Args:
        model: Which one.
        in_a_thread: Whether the event loop goes on while a batch is computed.
    """

    def __init__(self, model: str, in_a_thread: bool) -> None:
        module, _, attribute = model.partition(":")
        self._model: ServedModel = getattr(import_module(module), attribute)
        torch.set_num_threads(1)
        self._network = self._model.build().eval().requires_grad_(False)
        self._in_a_thread = in_a_thread

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Called by Serve at start and whenever `user_config` changes."""
        self._predict.set_max_batch_size(user_config["max_batch_size"])
        self._predict.set_batch_wait_timeout_s(user_config["batch_wait_timeout_ms"] / 1e3)

    async def __call__(self, payload: Any) -> Any:
        """Answers with the request's row of its batch."""
        return await self._predict(payload)

    @serve.batch(max_batch_size=8, batch_wait_timeout_s=0.0)  # type: ignore[untyped-decorator]
    async def _predict(self, payloads: list[Any]) -> list[Any]:
        return await asyncio.to_thread(self._forward, payloads) if self._in_a_thread else self._forward(payloads)

    def _forward(self, payloads: list[Any]) -> list[Any]:
        with torch.inference_mode():
            rows = self._network(torch.stack([self._model.decode(payload) for payload in payloads]))
        return [self._model.encode(row) for row in rows]


def application(model: str, in_a_thread: bool) -> serve.Application:
    """See `Decorated`."""
    user_config = {"max_batch_size": 8, "batch_wait_timeout_ms": 0}
    deployment = serve.deployment(Decorated, user_config=user_config, max_ongoing_requests=1000)
    return deployment.bind(model, in_a_thread)


text_encoder = application("experiments.zoo.models:text_encoder_model", False)
text_encoder_in_a_thread = application("experiments.zoo.models:text_encoder_model", True)
