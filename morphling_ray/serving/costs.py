"""What an application costs: the sum over its deployments, whichever of their settings are knobs."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from morphling_ray.objective import Prices
from morphling_ray.serving.application import ApplicationFacts
from morphling_ray.serving.serve_config import SHORT_NAMES, place_of
from morphling_ray.space import Knob

_PRICED = {keys: name for name, keys in SHORT_NAMES.items()}


class ApplicationCosts:
    """Dollars an hour of configurations of one application.

    Args:
        prices: What resources cost.
        facts: The application: what its code fixes costs money as well.
        knobs: Of the configurations.
    """

    def __init__(self, prices: Prices, facts: ApplicationFacts, knobs: tuple[Knob, ...]) -> None:
        self._prices = prices
        self._fixed: dict[str, dict[str, Any]] = {}
        for deployment in facts.deployments.values():
            options = deployment.ray_actor_options
            cores = options.get("num_cpus", 1) or 0
            fixed: dict[str, Any] = {"cpu_cores": cores, "num_replicas": deployment.num_replicas or 1}
            if options.get("accelerator_type"):
                fixed.update(gpu_type=options["accelerator_type"], num_gpus=options.get("num_gpus") or 1)
            self._fixed[deployment.name] = fixed
        places = {knob.name: place_of(knob.name, facts) for knob in knobs}
        self._priced = {
            name: (place.deployment, _PRICED[place.keys])
            for name, place in places.items()
            if place.deployment is not None and place.keys in _PRICED
        }

    def cost_per_hour(self, columns: Mapping[str, Any]) -> npt.NDArray[Any]:
        """See `Prices.cost_per_hour`: all deployments together."""
        each = {name: dict(fixed) for name, fixed in self._fixed.items()}
        for knob, (deployment, name) in self._priced.items():
            if knob in columns:
                each[deployment][name] = columns[knob]
        return np.asarray(sum(self._prices.cost_per_hour(settings) for settings in each.values()))
