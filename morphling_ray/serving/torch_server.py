"""A Serve deployment for one torch model on the CPU: what the bundled demo and the models of the training set share.

Its knobs are keys of `user_config`, all changed live: `max_batch_size`, `batch_wait_timeout_ms`, `precision`. The
number of cores is not its business: the replica is pinned from outside (limits.py) and torch follows.
"""

import copy
import json
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from ray import serve
from starlette.requests import Request

from morphling_ray.serving.batcher import Batcher

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
USER_CONFIG = {"max_batch_size": 1, "batch_wait_timeout_ms": 0, "precision": "float32"}


@dataclass(frozen=True)
class ServedModel:
    """A model with the two ends of its pipeline.

    Attributes:
        build: Makes the network; called once, after the random seed is set.
        decode: One request's payload (JSON) to one input tensor, without the batch dimension.
        encode: One output row to the JSON that is answered.
        request: A payload to send.
    """

    build: Callable[[], torch.nn.Module]
    decode: Callable[[Any], torch.Tensor]
    encode: Callable[[torch.Tensor], Any]
    request: Callable[[], Any]


class TorchServer:
    """Serves the `ServedModel` that `model` names as `module:attribute`."""

    def __init__(self, model: str) -> None:
        module, _, attribute = model.partition(":")
        self._model: ServedModel = getattr(import_module(module), attribute)
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "0")) or torch.get_num_threads())
        torch.manual_seed(0)
        network = self._model.build().eval().requires_grad_(False)
        # Both precisions are kept, so that the knob is changed without a restart.
        self._networks = {name: copy.deepcopy(network).to(dtype) for name, dtype in PRECISIONS.items()}
        self._settings = threading.Lock()
        self._precision = "float32"
        self._batcher = Batcher(self._forward)

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Called by Serve at start and whenever `user_config` changes."""
        settings = {**USER_CONFIG, **user_config}
        if settings["precision"] not in PRECISIONS:
            raise ValueError(f"precision is one of {', '.join(PRECISIONS)}, got {settings['precision']!r}")
        self._batcher.reconfigure(
            max_batch_size=settings["max_batch_size"], batch_wait_timeout_s=settings["batch_wait_timeout_ms"] / 1e3
        )
        with self._settings:
            self._precision = settings["precision"]

    async def __call__(self, request: Any = None) -> Any:
        """Answers one request: a payload through a Serve handle, or HTTP with the payload as a JSON body."""
        if isinstance(request, Request):
            body = await request.body()
            request = json.loads(body) if body else None
        return await self._batcher(self._model.request() if request is None else request)

    def _forward(self, payloads: Sequence[Any]) -> list[Any]:
        with self._settings:
            precision = self._precision
        batch = torch.stack([self._model.decode(payload) for payload in payloads])
        if batch.is_floating_point():
            batch = batch.to(PRECISIONS[precision])
        with torch.inference_mode():
            output = self._networks[precision](batch).float()
        return [self._model.encode(row) for row in output]


def application(model: str, name: str) -> serve.Application:
    """A Serve application with one `TorchServer`.

    Args:
        model: `module:attribute` of a `ServedModel`, importable in the cluster.
        name: Name of the deployment.
    """
    deployment = serve.deployment(TorchServer, name=name, user_config=dict(USER_CONFIG), max_ongoing_requests=1000)
    return deployment.bind(model)
