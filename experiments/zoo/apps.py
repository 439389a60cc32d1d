"""The zoo as Serve applications, one name each: `experiments.zoo.apps:resnet_50`. The knobs are those of the demo."""

from ray import serve

from experiments.zoo.models import FAMILIES, FULL
from morphling_ray.serving.demo import space
from morphling_ray.serving.torch_server import application

__all__ = ["space"]

request = None  # each model has its own, in requests.py


def __getattr__(name: str) -> serve.Application:
    """The application of one model, small (models.py) or of the catalogue."""
    if name.startswith("__"):
        raise AttributeError(name)
    if name in FAMILIES:
        attribute = f"{name}_model"
    else:
        from experiments.zoo.catalogue import MODELS

        if name.removesuffix(FULL) not in MODELS:
            raise AttributeError(f"the zoo has no model {name!r}")
        attribute = name
    return application(f"experiments.zoo.models:{attribute}", name=name.title().replace("_", ""))
