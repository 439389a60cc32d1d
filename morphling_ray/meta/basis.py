"""Surfaces of earlier tasks as functions that can be evaluated at any configuration.

Each task's log-metric is smoothed onto one shared basis: a constant, the encoded knobs (so that trends extrapolate) and
Matern-5/2 bumps at centres (subset of regressors; Rasmussen & Williams 2006, Section 8.3.1).

z       encoded configurations, shape (n, d)
centres where the bumps sit, in the encoding's units, shape (U, d)
B       basis at z, shape (n, P) with P = 1 + d + U
alpha   weights, shape (P,) for one task and metric:  f(z) = B alpha
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from morphling_ray.meta.gaussian import cholesky, matern52, squared_distances

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

MAX_CENTRES = 256
_SMOOTHING_ROUNDS = 3  # the common mean and the tasks' own levels are found in turn; 3 suffice where designs overlap


def basis(z: FloatArray, centres: FloatArray, length_scales: FloatArray) -> FloatArray:
    """B, shape `(n, 1 + d + U)`; `length_scales` has shape `(d,)`."""
    near = squared_distances(z / length_scales, centres / length_scales)
    return np.hstack([np.ones((len(z), 1)), z, matern52(near)])


def spread(z: FloatArray, count: int) -> FloatArray:
    """Up to `count` distinct rows of `z`, each the farthest from those before it; the first is nearest the centre."""
    rows = np.unique(z, axis=0)
    if len(rows) <= count:
        return rows
    chosen = [int(((rows - rows.mean(0)) ** 2).sum(1).argmin())]
    distance = ((rows - rows[chosen[0]]) ** 2).sum(1)
    while len(chosen) < count:
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, ((rows - rows[chosen[-1]]) ** 2).sum(1))
    return np.asarray(rows[np.sort(chosen)])


@dataclass(frozen=True)
class Smoothing:
    """How strongly surfaces are smoothed.

    Attributes:
        length_scales: By column of z, shape `(d,)`.
        slope_sd: Prior standard deviation of the linear weights.
        bump_sd: Of the smooth part.
        noise_sd: Of what is smoothed away.
    """

    length_scales: FloatArray
    slope_sd: float
    bump_sd: float
    noise_sd: float


def smooth_tasks(z: Sequence[FloatArray], y: Sequence[FloatArray], centres: FloatArray, how: Smoothing) -> FloatArray:
    """Weights of every task's smoothed surface, shape `(P, T)`.

    A task's surface is a common mean plus its own level plus its own deviation; where it was not measured, its
    deviation shrinks to 0 and the common mean stands in.

    Args:
        z: By task, encoded configurations, shape `(n_t, d)`.
        y: By task, log-metric, shape `(n_t,)`.
        centres: Shape `(U, d)`.
        how: Strength.
    """
    bases = [basis(rows, centres, how.length_scales) for rows in z]
    precision = _prior_precision(centres, how)
    grams = [b.T @ b / how.noise_sd**2 for b in bases]
    level = np.array([rows.mean() for rows in y])
    mean = np.zeros(len(precision))
    # A common mean of many tasks: what a task deviates by is noise to it, hence one row's weight per task and place.
    pooled = precision + sum(grams) / max(np.sqrt(len(z)), 1.0)
    for _ in range(_SMOOTHING_ROUNDS):
        right = sum(b.T @ (rows - lv) for b, rows, lv in zip(bases, y, level)) / how.noise_sd**2
        mean = np.linalg.solve(pooled, right / max(np.sqrt(len(z)), 1.0))
        level = np.array([(rows - b @ mean).mean() for b, rows in zip(bases, y)])
    out = np.empty((len(precision), len(z)))
    for t, (b, rows, gram) in enumerate(zip(bases, y, grams)):
        own = np.linalg.solve(precision + gram, b.T @ (rows - level[t] - b @ mean) / how.noise_sd**2)
        out[:, t] = mean + own
        out[0, t] += level[t]
    return out


def _prior_precision(centres: FloatArray, how: Smoothing) -> FloatArray:
    """Inverse prior covariance of alpha, shape `(P, P)`; the constant is kept small, since levels are taken apart."""
    scaled = centres / how.length_scales
    bumps = matern52(squared_distances(scaled, scaled)) / how.bump_sd**2
    d = centres.shape[1]
    out = np.zeros((1 + d + len(centres),) * 2)
    out[0, 0] = 1.0
    out[range(1, 1 + d), range(1, 1 + d)] = 1.0 / how.slope_sd**2
    out[1 + d :, 1 + d :] = bumps
    out += 1e-8 * np.eye(len(out))
    cholesky(out)  # positive definite, so that the systems above have one solution
    return out
