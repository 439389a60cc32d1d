"""Gaussian beliefs over the log-metrics of all candidates at once, and exact conditioning on observations.

n     candidates;  M  metrics;  T  features;  N  observations (one metric of one candidate each)
f     log-metric, shape (M, n), with   f_m(i) = mean_m(i) + phi_m(i) w + offset_m + residual_m(i) + white_m(i)
phi   features, shape (M, n, T); their weights w ~ Normal(0, I) are shared by the metrics
R     correlation of offsets, residuals and white parts between metrics, shape (M, M)

Everything is closed form (Rasmussen & Williams 2006, Eq. 2.22-2.24 and 2.30); no gradients, numpy only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


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


@dataclass(frozen=True)
class Posterior:
    """What is believed of each candidate on its own.

    Attributes:
        mean: Of the log-metrics, shape `(n, M)`.
        covariance: Between the metrics of one candidate, shape `(n, M, M)`.
        log_evidence: Log density of the observed values.
    """

    mean: FloatArray
    covariance: FloatArray
    log_evidence: float

    def at(self, points: IntArray) -> "Posterior":
        """The same for some of the candidates."""
        return Posterior(self.mean[points], self.covariance[points], self.log_evidence)


@dataclass(frozen=True)
class GaussianModel:
    """A joint Gaussian over (metric, candidate).

    Attributes:
        mean: Shape `(M, n)`.
        features: Shape `(M, n, T)`.
        inputs: For each metric, candidates in units of length scales, shape `(n, d)`. Metrics that are correlated must
            share one array, else the covariance is not positive definite.
        extra: Candidates along what the features know nothing of, in units of length scales, shape `(n, e)`.
        offset_sd: Shape `(M,)`.
        residual_sd: Of the smooth residual over `inputs` and `extra`, shape `(M,)`.
        extra_sd: Of a smooth effect of `extra` alone, shape `(M,)`.
        white_sd: Of what belongs to a single configuration and repeats with it, shape `(M,)`.
        correlation: R, shape `(M, M)`.
    """

    mean: FloatArray
    features: FloatArray
    inputs: Sequence[FloatArray]
    extra: FloatArray
    offset_sd: FloatArray
    residual_sd: FloatArray
    extra_sd: FloatArray
    white_sd: FloatArray
    correlation: FloatArray

    def block(self, m: int, i: IntArray, k: int, j: IntArray) -> FloatArray:
        """Covariance of metric `m` at candidates `i` with metric `k` at candidates `j`, shape `(len(i), len(j))`."""
        out = self.features[m][i] @ self.features[k][j].T
        r = self.correlation[m, k]
        if r != 0.0:
            near_extra = squared_distances(self.extra[i], self.extra[j])
            near = squared_distances(self.inputs[m][i], self.inputs[k][j]) + near_extra
            own = self.offset_sd[m] * self.offset_sd[k] + self.residual_sd[m] * self.residual_sd[k] * matern52(near)
            if self.extra.shape[1]:
                own += self.extra_sd[m] * self.extra_sd[k] * matern52(near_extra)
            own += self.white_sd[m] * self.white_sd[k] * (i[:, None] == j[None, :])
            out = out + r * own
        return np.asarray(out)

    def at_each(self) -> FloatArray:
        """Prior covariance between the metrics of one candidate, shape `(n, M, M)`."""
        constant = [self.offset_sd, self.residual_sd, self.white_sd]
        if self.extra.shape[1]:
            constant.append(self.extra_sd)
        own = self.correlation * sum(np.outer(s, s) for s in constant)
        return np.asarray(np.einsum("mit,kit->imk", self.features, self.features, optimize=True) + own)

    def between(self, obs: Observations, points: IntArray) -> FloatArray:
        """Covariance of observed values with all metrics at `points`, shape `(N, len(points), M)`."""
        out = np.empty((len(obs), len(points), len(self.mean)))
        for m in np.unique(obs.metric):
            rows = np.flatnonzero(obs.metric == m)
            for k in range(len(self.mean)):
                out[rows, :, k] = self.block(int(m), obs.point[rows], k, points)
        return out

    def gram(self, obs: Observations) -> FloatArray:
        """Covariance of observed values with one another, noise included, shape `(N, N)`."""
        out = np.empty((len(obs), len(obs)))
        for m in np.unique(obs.metric):
            rows = np.flatnonzero(obs.metric == m)
            for k in np.unique(obs.metric):
                columns = np.flatnonzero(obs.metric == k)
                out[np.ix_(rows, columns)] = self.block(int(m), obs.point[rows], int(k), obs.point[columns])
        out[np.diag_indices(len(obs))] += obs.variance
        return out

    def condition(self, obs: Observations, pending: Observations | None = None) -> Posterior:
        """The belief after observations.

        Args:
            obs: What was measured.
            pending: What is being measured. Its values are not used: it is taken to come out as expected, which leaves
                the mean as it is and narrows the belief around it (Kriging believer).
        """
        everything = np.arange(self.mean.shape[1])
        mean, covariance, evidence = self.mean.T.copy(), self.at_each(), 0.0  # (n, M), (n, M, M)
        n, metrics = mean.shape
        if len(obs):
            white = np.linalg.inv(cholesky(self.gram(obs)))  # rows whiten: white @ K @ white.T = I
            z = white @ (obs.value - self.mean[obs.metric, obs.point])  # (N,)
            v = white @ self.between(obs, everything).reshape(len(obs), -1)  # (N, n M)
            mean += (v.T @ z).reshape(n, metrics)
            evidence = float(-0.5 * z @ z + np.log(np.diag(white)).sum() - 0.5 * len(obs) * np.log(2.0 * np.pi))
        known = obs if pending is None or not len(pending) else joined(obs, pending)
        if len(known) > len(obs):
            white = np.linalg.inv(cholesky(self.gram(known)))
            v = white @ self.between(known, everything).reshape(len(known), -1)
        if len(known):
            v = v.reshape(len(known), n, metrics)
            for m in range(metrics):
                for k in range(m, metrics):
                    less = np.einsum("ai,ai->i", v[:, :, m], v[:, :, k])
                    covariance[:, m, k] -= less
                    covariance[:, k, m] = covariance[:, m, k]
        return Posterior(mean, covariance, evidence)

    def log_density(self, obs: Observations) -> float:
        """Log density of observed values (Rasmussen & Williams, Eq. 2.30)."""
        if not len(obs):
            return 0.0
        factor = cholesky(self.gram(obs))
        z = np.linalg.solve(factor, obs.value - self.mean[obs.metric, obs.point])
        return float(-0.5 * z @ z - np.log(np.diag(factor)).sum() - 0.5 * len(obs) * np.log(2.0 * np.pi))

    def joint(self, obs: Observations, points: IntArray) -> tuple[FloatArray, FloatArray]:
        """Mean `(k M,)` and covariance `(k M, k M)` of all metrics at `k` points, metrics varying fastest."""
        metrics, k = len(self.mean), len(points)
        prior = np.empty((k, metrics, k, metrics))
        for m in range(metrics):
            for j in range(metrics):
                prior[:, m, :, j] = self.block(m, points, j, points)
        mean, covariance = self.mean[:, points].T.reshape(-1).copy(), prior.reshape(k * metrics, k * metrics)
        if len(obs):
            white = np.linalg.inv(cholesky(self.gram(obs)))
            v = white @ self.between(obs, points).reshape(len(obs), -1)
            mean += v.T @ (white @ (obs.value - self.mean[obs.metric, obs.point]))
            covariance = covariance - v.T @ v
        return mean, covariance


def joined(a: Observations, b: Observations) -> Observations:
    """Both, one after the other."""
    pairs = zip((a.point, a.metric, a.value, a.variance), (b.point, b.metric, b.value, b.variance))
    point, metric, value, variance = (np.concatenate(pair) for pair in pairs)
    return Observations(point, metric, value, variance)


def cholesky(matrix: FloatArray) -> FloatArray:
    """Lower Cholesky factor of one or more matrices; what rounding took from their diagonal is put back if need be."""
    size = np.maximum(np.abs(np.diagonal(matrix, axis1=-2, axis2=-1)).max(-1), 1e-12)[..., None, None]
    for jitter in (0.0, 1e-10, 1e-7, 1e-4):
        try:
            return np.asarray(np.linalg.cholesky(matrix + jitter * size * np.eye(matrix.shape[-1])))
        except np.linalg.LinAlgError:
            continue
    raise AssertionError("a covariance is far from positive definite")  # a defect of the caller, not of the data
