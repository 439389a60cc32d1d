"""How likely a configuration works: counts of what its neighbours did, on top of what earlier tasks showed.

    P(x works) = (c p0(x) + sum_i near(x, x_i) works_i) / (c + sum_i near(x, x_i))

p0      probability before anything was measured on this task, shape (n,)
c       how many measurements p0 is worth
near    Matern-5/2 correlation at half the length scale of the metrics: failure has sharper edges than speed
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from morphling_ray.meta.gaussian import matern52, squared_distances

FloatArray = npt.NDArray[np.float64]

OPTIMISTIC = 0.9  # without a prior: most of what a user lists works
_SHARPNESS = 4.0  # factor on squared distances
_CLIP = 0.02


def p_feasible(
    before: FloatArray, place: FloatArray, points: Sequence[int], works: Sequence[bool], worth: float = 1.0
) -> FloatArray:
    """Probability that each candidate works, shape `(n,)`.

    Args:
        before: p0.
        place: Candidates in units of length scales, shape `(n, d)`.
        points: Indices of the candidates whose outcome is known.
        works: Their outcomes.
        worth: c.
    """
    good, total = worth * before, np.full(len(before), worth)
    if len(points):
        near = matern52(_SHARPNESS * squared_distances(place, place[list(points)]))
        good, total = good + near @ np.asarray(works, float), total + near.sum(1)
    return np.asarray(np.clip(good / total, _CLIP, 1.0 - _CLIP))


def log_evidence(before: FloatArray, place: FloatArray, points: Sequence[int], works: Sequence[bool]) -> float:
    """Log probability of the outcomes, each predicted from those before it."""
    out = 0.0
    for i, (point, ok) in enumerate(zip(points, works)):
        own = np.array([point])
        rows = np.concatenate([own, np.array(points[:i], int)])
        p = float(p_feasible(before[rows], place[rows], range(1, i + 1), works[:i])[0])
        out += float(np.log(p if ok else 1.0 - p))
    return out
