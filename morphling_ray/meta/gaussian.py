"""Gaussian covariances over (metric, candidate), and what conditioning them takes.

n     candidates;  M  metrics;  T  features;  N  observations (one metric of one candidate each)
f     log-metric, shape (M, n), with   f_m(i) - mean_m(i) = phi_m(i) w + offset_m + residual_m(i) + white_m(i)
phi   features, shape (M, n, T); their weights w ~ Normal(0, I) are shared by the metrics
R     correlation of offsets, residuals and white parts between metrics, shape (M, M)

Everything is closed form (Rasmussen & Williams 2006, Eq. 2.22-2.24); no gradients, numpy only.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_KEPT = 12  # matrices: hypotheses look at a handful of the same pairs of candidates


def squared_distances(a: FloatArray, b: FloatArray) -> FloatArray:
    """Squared Euclidean distances of rows, shapes `(n, d)` and `(k, d)` to `(n, k)`, never negative."""
    cross = (a**2).sum(1)[:, None] + (b**2).sum(1)[None, :] - 2.0 * (a @ b.T)
    return np.asarray(np.maximum(cross, 0.0))


def matern52(squared: FloatArray) -> FloatArray:
    """Matern-5/2 correlation at squared scaled distances; 1 at 0."""
    r = np.sqrt(5.0 * squared)
    return np.asarray((1.0 + r + r * r / 3.0) * np.exp(-r))


@dataclass(frozen=True)
class Observations:
    """Noisy values of single log-metrics, one entry each, shape `(N,)`.

    Attributes:
        point: Index of the candidate.
        metric: Index of the metric.
        value: Log of what was measured.
        variance: Variance of its noise.
    """

    point: IntArray
    metric: IntArray
    value: FloatArray
    variance: FloatArray

    def __len__(self) -> int:
        return len(self.point)

    @cached_property
    def distinct(self) -> tuple[IntArray, IntArray]:
        """The candidates, each once, and which of these each entry is of."""
        at, row = np.unique(self.point, return_inverse=True)
        return at, row

    @cached_property
    def first(self) -> "tuple[IntArray, Observations]":
        """The entries of the first candidate: which, and what they say."""
        which = np.flatnonzero(self.point == self.point[0]) if len(self) else np.array([], int)
        return which, Observations(self.point[which], self.metric[which], self.value[which], self.variance[which])


class Nearness:
    """Matern-5/2 correlations between candidates, of which the last few are kept.

    Several hypotheses ask for the same ones in turn: what is asked for again are the same arrays, not equal ones.
    """

    def __init__(self) -> None:
        self._kept: deque[tuple[Sequence[FloatArray], IntArray, IntArray, FloatArray]] = deque(maxlen=_KEPT)

    def between(self, places: Sequence[FloatArray], i: IntArray, j: IntArray) -> FloatArray:
        """By distances along the columns of all `places`, shape `(len(i), len(j))`; not to be written to."""
        for of, rows, columns, values in self._kept:
            if rows is i and columns is j and len(of) == len(places) and all(a is b for a, b in zip(of, places)):
                return values
        values = matern52(sum((squared_distances(a[i], a[j]) for a in places), start=np.zeros((len(i), len(j)))))
        self._kept.append((places, i, j, values))
        return values


@dataclass(frozen=True)
class Covariance:
    """A joint covariance over (metric, candidate).

    Attributes:
        features: Shape `(M, n, T)`; T may be 0.
        inputs: For each metric, candidates in units of length scales, shape `(n, d)`. Metrics that are correlated must
            share one array, else the covariance is not positive definite.
        extra: Candidates along what the features know nothing of, in units of length scales, shape `(n, e)`.
        offset_sd: Shape `(M,)`.
        residual_sd: Of the smooth residual over `inputs` and `extra`, shape `(M,)`.
        extra_sd: Of a smooth effect of `extra` alone, shape `(M,)`.
        white_sd: Of what belongs to a single configuration and repeats with it, shape `(M,)`.
        same: A number for each candidate, shape `(n,)`: those with equal ones share their white part. None: none do.
        correlation: R, shape `(M, M)`.
        nearness: Shared by covariances that `dataclasses.replace` made of one another.
    """

    features: FloatArray
    inputs: Sequence[FloatArray]
    extra: FloatArray
    offset_sd: FloatArray
    residual_sd: FloatArray
    extra_sd: FloatArray
    white_sd: FloatArray
    correlation: FloatArray
    same: IntArray | None = None
    nearness: Nearness = field(default_factory=Nearness, repr=False, compare=False)

    @property
    def metrics(self) -> int:
        """M."""
        return len(self.correlation)

    def cross(self, i: IntArray, j: IntArray) -> FloatArray:
        """Covariance of all metrics at candidates `i` with all at candidates `j`, shape `(M, len(i), M, len(j))`."""
        metrics = self.metrics
        out = np.empty((metrics, len(i), metrics, len(j)))
        same = i[:, None] == j if self.same is None else self.same[i][:, None] == self.same[j]
        extra = [self.extra] if self.extra.shape[1] else []
        effect = self.nearness.between(extra, i, j) if extra else None
        for m in range(metrics):
            for k in range(metrics):
                features = self.features[m][i] @ self.features[k][j].T if self.features.shape[2] else 0.0
                r = self.correlation[m, k]
                if r == 0.0:
                    out[m, :, k] = features
                    continue
                near = self.nearness.between([self.inputs[m], *extra], i, j)
                own = (self.residual_sd[m] * self.residual_sd[k]) * near
                own += self.offset_sd[m] * self.offset_sd[k]
                if effect is not None:
                    own += self.extra_sd[m] * self.extra_sd[k] * effect
                own[same] += self.white_sd[m] * self.white_sd[k]
                own *= r
                own += features
                out[m, :, k] = own
        return out

    def at_each(self, points: IntArray) -> FloatArray:
        """Covariance between the metrics of each single candidate, shape `(k, M, M)` for k points."""
        constant = [self.offset_sd, self.residual_sd, self.white_sd]
        if self.extra.shape[1]:
            constant.append(self.extra_sd)
        own = self.correlation * sum(np.outer(s, s) for s in constant)
        features = self.features[:, points]
        return np.asarray(np.einsum("mit,kit->imk", features, features, optimize=True) + own)

    def joint(self, points: IntArray) -> FloatArray:
        """Covariance of all metrics at k points with one another, shape `(k M, k M)`, metrics varying fastest."""
        size = len(points) * self.metrics
        return self.cross(points, points).transpose(1, 0, 3, 2).reshape(size, size)

    def between(self, obs: Observations, points: IntArray) -> FloatArray:
        """Covariance of observed values with all metrics at k points, shape `(N, k, M)`."""
        at, row = obs.distinct
        return np.asarray(self.cross(at, points)[obs.metric, row].transpose(0, 2, 1))

    def gram(self, obs: Observations) -> FloatArray:
        """Covariance of observed values with one another, noise included, shape `(N, N)`."""
        at, row = obs.distinct
        out = self.cross(at, at)[obs.metric[:, None], row[:, None], obs.metric[None, :], row[None, :]]
        out[np.diag_indices(len(obs))] += obs.variance
        return np.asarray(out)


NOTHING = Observations(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), np.zeros(0))


def cholesky(matrix: FloatArray) -> FloatArray:
    """Lower Cholesky factor of one or more matrices; what rounding took from their diagonal is put back if need be."""
    size = np.maximum(np.abs(np.diagonal(matrix, axis1=-2, axis2=-1)).max(-1), 1e-12)[..., None, None]
    for jitter in (0.0, 1e-10, 1e-7, 1e-4):
        try:
            return np.asarray(np.linalg.cholesky(matrix + jitter * size * np.eye(matrix.shape[-1])))
        except np.linalg.LinAlgError:
            continue
    raise AssertionError("a covariance is far from positive definite")  # a defect of the caller, not of the data
