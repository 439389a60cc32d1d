"""What an application costs: the sum over its deployments, whichever of their settings are knobs."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from morphling_ray.objective import Prices
from morphling_ray.serving.application import ApplicationFacts
from morphling_ray.serving.knobs import SHORT_NAMES, has_gpu, instance_share, place_of
from morphling_ray.space import Knob

_PRICED = {keys: name for name, keys in SHORT_NAMES.items()}
_TAKEN = ("cpu_cores", "num_gpus", "gpu_memory", "gpu_share")
_GPU = ("num_gpus", "gpu_memory", "gpu_share", "gpu_instance")


class ApplicationCosts:
    """Dollars an hour of configurations of one application.

    Args:
        prices: What resources cost.
        facts: The application: what its code fixes costs money as well.
        knobs: Of the configurations.
        gpu_type: Of the cluster's cards, for a deployment that has a GPU and names no type; None: they cost nothing.
    """

    def __init__(
        self, prices: Prices, facts: ApplicationFacts, knobs: tuple[Knob, ...], gpu_type: str | None = None
    ) -> None:
        self._prices = prices
        places = {knob.name: place_of(knob.name, facts) for knob in knobs}
        self._priced = {
            name: (place.deployment, _PRICED[place.keys])
            for name, place in places.items()
            if place.deployment is not None and place.keys in _PRICED
        }
        self._fixed: dict[str, dict[str, Any]] = {}
        self._beside: dict[str, tuple[float, float]] = {}  # cores and cards of a replica's placement group
        for deployment in facts.deployments.values():
            options, beside = deployment.ray_actor_options, deployment.beside
            cores = options.get("num_cpus", 1) or 0
            fixed: dict[str, Any] = {"cpu_cores": cores, "num_replicas": deployment.num_replicas or 1}
            knobs_of_it = {name for owner, name in self._priced.values() if owner == deployment.name}
            kind = deployment.gpu_type or gpu_type
            own = has_gpu(options) or bool(knobs_of_it.intersection(_GPU))
            if kind and (own or beside.get("GPU")):
                fixed.update(gpu_type=kind, num_gpus=(options.get("num_gpus") or 1) if own else 0)
            self._fixed[deployment.name] = fixed
            self._beside[deployment.name] = beside.get("CPU", 0.0), beside.get("GPU", 0.0)

    def cost_per_hour(self, columns: Mapping[str, Any]) -> npt.NDArray[Any]:
        """See `Prices.cost_per_hour`: all deployments together."""
        return np.asarray(sum(self._prices.cost_per_hour(settings) for settings in self._settings(columns)))

    def takes(self, columns: Mapping[str, Any]) -> npt.NDArray[Any]:
        """What replicas take, all deployments together: cores, and shares of cards' memory and multiprocessors.

        That is no price. It tells apart what costs the same: of a card the larger one of both shares is paid for.
        """
        each = [
            np.asarray(settings["num_replicas"], float)
            * sum(np.asarray(settings.get(name, 0), float) for name in _TAKEN)
            for settings in self._settings(columns)
        ]
        return np.asarray(sum(each))

    def _settings(self, columns: Mapping[str, Any]) -> list[dict[str, Any]]:
        """What each deployment has."""
        each = {name: dict(fixed) for name, fixed in self._fixed.items()}
        for knob, (deployment, name) in self._priced.items():
            if knob in columns:
                each[deployment][name] = columns[knob]
        for deployment, settings in each.items():
            if "gpu_instance" in settings:
                settings["gpu_memory"] = np.vectorize(instance_share, otypes=[float])(settings.pop("gpu_instance"))
            cores, cards = self._beside[deployment]
            for name in settings.keys() & set(_TAKEN):
                settings[name] = np.asarray(settings[name], float) + (cores if name == "cpu_cores" else cards)
        return list(each.values())
