"""A Gaussian process over log-metrics that knows nothing of other tasks: what a prior is measured against.

    log y_m(x) = level_m + slopes_m z(x) + smooth_m(x) + white_m(x)

with a free level, one slope per encoded knob and metric, and a Matern-5/2 with one length scale per knob; smooth and
white parts of two metrics are correlated. Hyper-parameters are maximum a posteriori, re-estimated from the observations
by coordinate search on a grid: a few dozen small Cholesky factors, the same result in every process.
"""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from morphling_ray.meta.ensemble import Hypothesis, Mixtures
from morphling_ray.meta.gaussian import Covariance, Observations, cholesky, matern52, squared_distances

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

LENGTH = 0.7  # in ranges of a knob: what is no trend bends about once over the range
SIGNAL_SD = 0.8
WHITE_SD = 0.04
SLOPE_SD = 1.0  # a knob's trend over its range: a factor of about three
LEVEL_SD = 10.0  # of log units around the observed mean, that is: free
_STEPS = np.array([-1.5, -0.75, 0.0, 0.75, 1.5])  # of the grid, in logs
_LOG_SD = 1.0  # of the prior of each hyper-parameter, in logs
_CORRELATIONS = np.array([-0.99, -0.9, -0.5, 0.0, 0.5, 0.9, 0.99])
_SWEEPS = 2
_ENOUGH = 4  # points before anything is estimated from them


@dataclass(frozen=True, eq=False)
class Hyper:
    """Hyper-parameters.

    Attributes:
        log: Length scale by knob, signal sd, white sd, in logs, shape `(knobs + 2,)`.
        correlation: Between metrics, shape `(M, M)`.
    """

    log: FloatArray
    correlation: FloatArray

    @property
    def log_prior(self) -> float:
        """How unusual they are, 0 for the defaults: what fitting them to the data has to pay for."""
        return float(-0.5 * (((self.log - default(len(self.log) - 2)) / _LOG_SD) ** 2).sum())


def default(knobs: int) -> FloatArray:
    """Logs of what is assumed before there are observations, shape `(knobs + 2,)`."""
    return np.asarray(np.log([LENGTH] * knobs + [SIGNAL_SD, WHITE_SD]))


class Evidence:
    """Log marginal likelihood of the observations for any hyper-parameters.

    Args:
        z: Encoded candidates, shape `(n, d)`.
        groups: Knob of each column of z, shape `(d,)`.
        obs: What was measured, N entries; the metrics' means are taken off.
        metrics: M.
    """

    def __init__(self, z: FloatArray, groups: IntArray, obs: Observations, metrics: int) -> None:
        rows, self._metric = z[obs.point], obs.metric
        knobs = range(int(groups.max()) + 1 if len(groups) else 0)
        by_knob = [squared_distances(rows[:, groups == g], rows[:, groups == g]) for g in knobs]
        self._parts = np.stack(by_knob) if by_knob else np.zeros((0, len(obs), len(obs)))  # (knobs, N, N)
        self._same = obs.point[:, None] == obs.point[None, :]
        own = self._metric[:, None] == self._metric[None, :]
        self._fixed = own * (SLOPE_SD**2 * (rows @ rows.T) + LEVEL_SD**2) + np.diag(obs.variance)
        means = np.array(
            [obs.value[obs.metric == m].mean() if (obs.metric == m).any() else 0.0 for m in range(metrics)]
        )
        self._y = obs.value - means[self._metric]

    def __call__(self, log: FloatArray, correlation: FloatArray) -> FloatArray:
        """For several settings at once: `log` of shape `(s, knobs + 2)`, correlations `(s, M, M)`, to shape `(s,)`."""
        near = matern52(np.einsum("sg,gij->sij", np.exp(-2.0 * log[:, :-2]), self._parts))
        k = np.exp(2.0 * log[:, -2])[:, None, None] * near + np.exp(2.0 * log[:, -1])[:, None, None] * self._same
        k *= correlation[:, self._metric[:, None], self._metric[None, :]]
        factor = cholesky(k + self._fixed)
        y = np.broadcast_to(self._y[:, None], (len(log), len(self._y), 1))
        white = np.linalg.solve(factor, y)[..., 0]
        return np.asarray(-0.5 * (white**2).sum(1) - np.log(np.diagonal(factor, axis1=1, axis2=2)).sum(1))


def estimate(z: FloatArray, groups: IntArray, obs: Observations, metrics: int) -> Hyper:
    """Hyper-parameters from observations; the defaults where there are too few. Arguments as those of `Evidence`."""
    start = default(int(groups.max()) + 1 if len(groups) else 0)
    best, correlation = start.copy(), np.eye(metrics)
    if len(np.unique(obs.point)) < _ENOUGH:
        return Hyper(best, correlation)
    evidence = Evidence(z, groups, obs, metrics)
    for _ in range(_SWEEPS):
        for m, k in combinations(range(metrics), 2):
            others = np.tile(correlation, (len(_CORRELATIONS), 1, 1))
            others[:, m, k] = others[:, k, m] = _CORRELATIONS
            possible = others[np.linalg.eigvalsh(others)[:, 0] > 1e-3]  # of three metrics, not every triple can be
            score = evidence(np.tile(best, (len(possible), 1)), possible)
            correlation = possible[int(score.argmax())]
        for i in range(len(best)):
            tried = np.tile(best, (len(_STEPS), 1))
            tried[:, i] = start[i] + _STEPS
            score = evidence(tried, np.tile(correlation, (len(tried), 1, 1)))
            score -= 0.5 * (((tried - start) / _LOG_SD) ** 2).sum(1)
            best = tried[int(score.argmax())]
    return Hyper(best, correlation)


def plain_hypothesis(z: FloatArray, groups: IntArray, obs: Observations, metrics: int) -> Hypothesis:
    """The belief without a prior: one flat template. Its log prior is what its hyper-parameters cost.

    Args:
        z: Encoded candidates, shape `(n, d)`.
        groups: Knob of each column of z, shape `(d,)`.
        obs: What was measured; sets levels and hyper-parameters.
        metrics: How many there are.
    """
    n, d = z.shape
    hyper = estimate(z, groups, obs, metrics)
    slopes = np.zeros((metrics, n, metrics * d))
    level = np.zeros(metrics)
    for m in range(metrics):
        slopes[m, :, m * d : (m + 1) * d] = SLOPE_SD * z
        level[m] = obs.value[obs.metric == m].mean() if (obs.metric == m).any() else 0.0
    covariance = Covariance(
        features=slopes,
        inputs=[z * np.exp(-hyper.log[:-2][groups])] * metrics,
        extra=np.zeros((n, 0)),
        offset_sd=np.full(metrics, LEVEL_SD),
        residual_sd=np.full(metrics, np.exp(hyper.log[-2])),
        extra_sd=np.zeros(metrics),
        white_sd=np.full(metrics, np.exp(hyper.log[-1])),
        correlation=hyper.correlation,
    )
    surface = np.broadcast_to(level, (1, n, metrics))
    return Hypothesis("plain", hyper.log_prior, Mixtures(surface, np.ones((1, 1))), covariance, levels=False)
