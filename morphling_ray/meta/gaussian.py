"""Gaussian covariances over (metric, candidate), and what conditioning them takes.

n     candidates;  M  metrics;  T  features;  N  observations (one metric of one candidate each)
f     log-metric, shape (M, n), with   f_m(i) - mean_m(i) = phi_m(i) w + offset_m + residual_m(i) + white_m(i)
phi   features, shape (M, n, T); their weights w ~ Normal(0, I) are shared by the metrics
R     correlation of offsets, residuals and white parts between metrics, shape (M, M)

Everything is closed form (Rasmussen & Williams 2006, Eq. 2.22-2.24); no gradients, numpy only.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Value = TypeVar("Value")

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
    def first(self) -> int:
        """How many entries the first candidate has, at the beginning."""
        others = np.flatnonzero(self.point != self.point[:1])
        return int(others[0]) if len(others) else len(self)


class Last(Generic[Value]):
    """What was computed last, for whoever asks for it with the same candidates: the same array, not an equal one."""

    def __init__(self) -> None:
        self._kept: tuple[IntArray, Value] | None = None

    def of(self, points: IntArray, compute: Callable[[IntArray], Value]) -> Value:
        """`compute(points)`; not to be written to."""
        if self._kept is None or self._kept[0] is not points:
            self._kept = points, compute(points)
        return self._kept[1]


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


def products(a: FloatArray) -> FloatArray:
    """Of the metrics of each point with one another: shape `(M, k, T)` to `(k, M, M)`, summed over T."""
    out = np.empty((a.shape[1], len(a), len(a)))
    for m in range(len(a)):
        for k in range(m + 1):
            out[:, m, k] = out[:, k, m] = np.einsum("it,it->i", a[m], a[k])
    return out


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
        """Covariance of all metrics at candidates `i` with all at candidates `j`, shape `(M, M, len(i), len(j))`."""
        metrics, extra = self.metrics, [self.extra] if self.extra.shape[1] else []
        parts = (self.residual_sd, self.offset_sd, self.extra_sd, self.white_sd)
        residual, offset, own_extra, white = map(self._between_metrics, parts)
        same = np.nonzero(i[:, None] == j if self.same is None else self.same[i][:, None] == self.same[j])
        out = np.zeros((metrics, metrics, len(i), len(j)))
        for m in range(metrics):  # by blocks, which fit into the processor's cache
            for k in range(m + 1):
                if self.correlation[m, k] == 0.0:
                    continue
                block = out[m, k]
                np.multiply(self.nearness.between([self.inputs[m], *extra], i, j), residual[m, k], out=block)
                block += offset[m, k]
                if extra:
                    block += own_extra[m, k] * self.nearness.between(extra, i, j)
                block[same] += white[m, k]
                out[k, m] = block
        if self.features.shape[2]:
            left, right = (self.features.take(at, 1).reshape(metrics * len(at), -1) for at in (i, j))
            out += (left @ right.T).reshape(metrics, len(i), metrics, len(j)).transpose(0, 2, 1, 3)
        return out

    def _between_metrics(self, sd: FloatArray) -> FloatArray:
        """Covariance between the metrics of a part with these standard deviations, shape `(M, M)`."""
        return np.asarray(self.correlation * np.outer(sd, sd))

    def at_each(self, points: IntArray) -> FloatArray:
        """Covariance between the metrics of each single candidate, shape `(k, M, M)` for k points."""
        parts = [self.offset_sd, self.residual_sd, self.white_sd]
        if self.extra.shape[1]:
            parts.append(self.extra_sd)
        out = np.tile(sum(map(self._between_metrics, parts)), (len(points), 1, 1))
        if self.features.shape[2]:
            out += products(self.features.take(points, 1))
        return out

    def joint(self, points: IntArray) -> FloatArray:
        """Covariance of all metrics at k points with one another, shape `(k M, k M)`, metrics varying fastest."""
        size = len(points) * self.metrics
        return self.cross(points, points).transpose(2, 0, 3, 1).reshape(size, size)

    def between(self, obs: Observations, points: IntArray) -> FloatArray:
        """Covariance of observed values with all metrics at k points, shape `(N, k, M)`."""
        at, row = obs.distinct
        return np.asarray(self.cross(at, points)[obs.metric, :, row].transpose(0, 2, 1))

    def gram(self, obs: Observations) -> FloatArray:
        """Covariance of observed values with one another, noise included, shape `(N, N)`."""
        at, row = obs.distinct
        out = self.cross(at, at)[obs.metric[:, None], obs.metric[None, :], row[:, None], row[None, :]]
        out[np.diag_indices(len(obs))] += obs.variance
        return np.asarray(out)


NOTHING = Observations(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), np.zeros(0))


def cholesky(matrix: FloatArray) -> FloatArray:
    """Lower Cholesky factor of one or more matrices; what rounding took from their diagonal is put back if need be."""
    for jitter in (0.0, 1e-10, 1e-7, 1e-4):
        try:
            return np.asarray(np.linalg.cholesky(matrix + _jitter(matrix, jitter) if jitter else matrix))
        except np.linalg.LinAlgError:
            continue
    raise AssertionError("a covariance is far from positive definite")  # a defect of the caller, not of the data


def _jitter(matrix: FloatArray, share: float) -> FloatArray:
    """A share of the largest variance, on the diagonal."""
    size = np.maximum(np.abs(np.diagonal(matrix, axis1=-2, axis2=-1)).max(-1), 1e-12)[..., None, None]
    return np.asarray(share * size * np.eye(matrix.shape[-1]))
