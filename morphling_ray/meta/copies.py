"""Replicas are copies of one server: what is known of them before anything is measured.

    log y_m(x) = log y_m(x with one replica) + SCALING log(replicas of x)         for rates, where they do not get in
                                                                                  each other's way

Most machines come near to that, as long as every replica has cores or a part of a GPU to itself. Where something else
is the limit (a proxy, a card that they share) it does not hold, and whoever computes with it has to give it up.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from morphling_ray.meta.ensemble import Hypothesis, Templates
from morphling_ray.meta.gaussian import Observations
from morphling_ray.space import Configuration, Knob

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

KNOB = "num_replicas"
SCALING = 0.9  # ten replicas serve eight times what one does: they share memory, proxies, whoever asks them
P_SCALES = 0.8  # that it holds


def scaling_knobs(knobs: Sequence[Knob]) -> list[str]:
    """Knobs that are a number of replicas; of several deployments any may be the one that limits the rate."""
    several = [k for k in knobs if k.name.rpartition(".")[2] == KNOB and k.kind == "ordinal" and len(k.values) > 1]
    return [k.name for k in several if all(isinstance(v, (int, float)) and v > 0 for v in k.values)]


def scaling(configurations: Sequence[Configuration], knob: str, metrics: Sequence[str]) -> FloatArray:
    """What the replicas add to each log-metric, shape `(n, M)`: 0 for whatever is no rate."""
    rate = np.array([name == "rps" or name.endswith("_rps") for name in metrics], float)
    replicas = np.array([float(c[knob]) for c in configurations])
    return np.asarray(SCALING * np.log(np.maximum(replicas, 1e-9))[:, None] * rate)


def scaled(hypotheses: Sequence[Hypothesis], added: FloatArray, probability: float) -> list[Hypothesis]:
    """Hypotheses about one replica as those about as many as there are.

    Args:
        hypotheses: About one replica.
        added: See `scaling`.
        probability: That their number tells.
    """
    templates: dict[int, Scaled] = {}  # some hypotheses share theirs, which saves time
    return [
        replace(
            h,
            log_prior=h.log_prior + float(np.log(probability)),
            templates=templates.setdefault(id(h.templates), Scaled(h.templates, added)),
        )
        for h in hypotheses
    ]


@dataclass(frozen=True, eq=False)
class Scaled:
    """Templates of one replica, for as many as there are. `Templates`.

    Attributes:
        single: Of one replica.
        added: See `scaling`.
    """

    single: Templates
    added: FloatArray

    @property
    def count(self) -> int:
        """See `Templates`."""
        return self.single.count

    def at(self, which: IntArray, points: IntArray) -> FloatArray:
        """See `Templates`."""
        return np.asarray(self.single.at(which, points) + self.added[points].reshape(-1))

    def observed(self, obs: Observations) -> FloatArray:
        """See `Templates`."""
        return np.asarray(self.single.observed(obs) + self.added[obs.point, obs.metric])
