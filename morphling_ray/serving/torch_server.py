"""A Serve deployment for one torch model: what the bundled demo and the models of the training set share.

Its knobs are keys of `user_config`, all changed live: `max_batch_size`, `batch_wait_timeout_ms`, `precision`. The
number of cores is not its business: the replica is pinned from outside (limits.py) and torch follows.
"""

import json
import threading
from collections.abc import Sequence
from typing import Any

from ray import serve
from starlette.requests import Request

from morphling_ray.serving.batcher import Batcher
from morphling_ray.serving.torch_model import PRECISIONS, TorchModel

USER_CONFIG = {"max_batch_size": 1, "batch_wait_timeout_ms": 0, "precision": "float32"}


class TorchServer:
    """Serves the `ServedModel` that `model` names as `module:attribute`."""

    def __init__(self, model: str) -> None:
        self._model = TorchModel(model)
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
        return await self._batcher(self._model.served.request() if request is None else request)

    def _forward(self, payloads: Sequence[Any]) -> list[Any]:
        with self._settings:
            precision = self._precision
        return self._model.forward(payloads, precision)


def application(model: str, name: str) -> serve.Application:
    """A Serve application with one `TorchServer`.

    Args:
        model: `module:attribute` of a `ServedModel`, importable in the cluster.
        name: Name of the deployment.
    """
    deployment = serve.deployment(TorchServer, name=name, user_config=dict(USER_CONFIG), max_ongoing_requests=1000)
    return deployment.bind(model)
