"""What a request to a model of the zoo holds, by the model's name: `experiments.zoo.requests:resnet_50`."""

from collections.abc import Callable
from typing import Any

from experiments.zoo import models


def __getattr__(name: str) -> Callable[[], Any]:
    """The function that makes the payload."""
    if name.startswith("__"):
        raise AttributeError(name)
    return models.MODELS[name].request if name in models.MODELS else getattr(models, name).request
