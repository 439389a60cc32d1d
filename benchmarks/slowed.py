"""Two models behind a brake: `slower` in its `user_config` makes each batch take that share longer.

So that two configurations differ by a known factor and are alike in everything else.
"""

import time
from collections.abc import Sequence
from typing import Any

from ray import serve

from morphling_ray.serving.torch_server import USER_CONFIG, TorchServer


class Slowed(TorchServer):
    """See the module."""

    _slower = 0.0

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """See `TorchServer`."""
        self._slower = float(user_config["slower"])
        super().reconfigure({key: value for key, value in user_config.items() if key != "slower"})

    def _forward(self, payloads: Sequence[Any]) -> list[Any]:
        began = time.perf_counter()
        out = super()._forward(payloads)
        until = began + (time.perf_counter() - began) * (1 + self._slower)
        while time.perf_counter() < until:  # a core that computes, not one that sleeps
            pass
        return out


def braked(model: str) -> serve.Application:
    """The application of a `ServedModel` that `model` names as `module:attribute`."""
    config = {**USER_CONFIG, "slower": 0.0}
    return serve.deployment(Slowed, name="Slowed", user_config=config, max_ongoing_requests=1000).bind(model)


demo = braked("morphling_ray.serving.demo:model")
text_encoder = braked("experiments.zoo.models:text_encoder_model")
space = {
    "cpu_cores": [1],
    "max_batch_size": [8],
    "batch_wait_timeout_ms": [5],
    "precision": ["float32"],
    "slower": [0.0, 1.0],
}
