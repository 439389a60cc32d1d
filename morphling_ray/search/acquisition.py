"""What draws of the metrics say about the objective: cost and bounds are applied to each draw, so they are exact.

S       draws;  k  candidates;  M  metrics
values  objective of each candidate on each draw, shape (S, k); 0 where a bound is broken
shares  values by the best of their draw, shape (S, k): tasks differ in level by orders of magnitude, and an expected
        objective would look at the fastest draws alone. In a draw in which nothing keeps the bounds, being close to
        keeping them counts instead, so that a search comes nearer to what is feasible before it has seen any of it.
"""

from collections.abc import Mapping
from functools import cached_property
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from morphling_ray.objective import Objective

FloatArray = npt.NDArray[np.float64]
AnyFloats = npt.NDArray[np.floating]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

_NEAR_BOUND = 0.1  # in logs: how much farther from a bound halves (or so) what a candidate counts
_ONLY_NEARER = 0.3  # what coming nearer to the bounds counts, against an improvement by the whole of the best


def quasi_normals(count: int, dimension: int, shift: FloatArray) -> FloatArray:
    """Evenly spread standard normals, shape `(count, dimension)`.

    A Kronecker sequence on the generalised golden ratio (Roberts 2018, "The unreasonable effectiveness of quasirandom
    sequences"), shifted and mapped through the inverse normal distribution.

    Args:
        count: S.
        dimension: M.
        shift: In [0, 1), shape `(dimension,)`.
    """
    ratio = 2.0
    for _ in range(50):  # the positive root of x^(dimension + 1) = x + 1
        ratio = (1.0 + ratio) ** (1.0 / (dimension + 1))
    steps = ratio ** -np.arange(1.0, dimension + 1)
    uniform = (shift + np.arange(1.0, count + 1)[:, None] * steps) % 1.0
    clipped = np.clip(uniform, 1e-4, 1.0 - 1e-4)
    return np.asarray(_inverse(clipped), float)


_inverse = np.frompyfunc(NormalDist().inv_cdf, 1, 1)


class Values:
    """The objective on draws.

    Args:
        logs: Log-metrics, shape `(S, k, M)`.
        objective: What to maximise; its metrics in this order.
        columns: Knob values, shape `(k,)` each.
    """

    def __init__(self, logs: AnyFloats, objective: Objective, columns: Mapping[str, npt.NDArray[Any]]) -> None:
        # Draws may be single floats, which overflow beyond 88; no metric is that large.
        metrics = {name: np.exp(np.clip(logs[:, :, m], -80.0, 80.0)) for m, name in enumerate(objective.metrics)}
        self.values: FloatArray = np.broadcast_to(np.asarray(objective(columns, metrics), float), logs.shape[:2])
        self.best: FloatArray = self.values.max(1)  # of each draw, (S,)
        self.keeps: BoolArray = self.best > 0  # whether anything in the draw keeps the bounds, (S,)
        self.nearness = np.zeros((0, logs.shape[1]))  # of each draw in which nothing does
        if not self.keeps.all():
            broken = {name: values[~self.keeps] for name, values in metrics.items()}
            shape = (int((~self.keeps).sum()), logs.shape[1])
            slack = np.broadcast_to(np.asarray(objective.slack(columns, broken), float), shape)
            excess = np.log1p(np.maximum(-np.nan_to_num(slack, nan=0.0), 0.0))
            self.nearness = np.exp((excess.min(1, keepdims=True) - excess) / _NEAR_BOUND)

    @cached_property
    def shares(self) -> FloatArray:
        """Shares of the best, shape `(S, k)`; nearness where nothing keeps the bounds."""
        out = np.empty(self.values.shape)
        out[self.keeps] = self.values[self.keeps] / self.best[self.keeps, None]
        out[~self.keeps] = _ONLY_NEARER * self.nearness
        return out

    def gains(self, known: IntArray, works: FloatArray) -> FloatArray:
        """How much each candidate is better than what there is already, as a share of the best of the draw.

        Args:
            known: Candidates that are there already: the incumbent, and what is being measured. May be none.
            works: Probability that each of these works, by draw, shape `(S, len(known))`.
        """
        out = self.shares
        if len(known):
            there = (out[:, known] * works).max(1, keepdims=True)
            out = np.maximum(out - there * self.keeps[:, None], 0.0)
        return out
