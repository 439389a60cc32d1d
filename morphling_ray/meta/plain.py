"""A Gaussian process over log-metrics that knows nothing of other tasks: what a prior is measured against.

Matern-5/2 with one length scale per knob and a free level. Hyper-parameters are maximum a posteriori, re-estimated from
the observations by coordinate search on a grid: a few dozen small Cholesky factors, the same result in every process.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from morphling_ray.meta.gaussian import GaussianModel, Observations, cholesky, matern52, squared_distances

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

LENGTH = 0.7  # in ranges of a knob: a metric bends about once over the range
SIGNAL_SD = 0.8  # a metric varies by a factor of about two around its level
WHITE_SD = 0.04
LEVEL_SD = 10.0  # of log units around the observed mean, that is: free
_STEPS = np.array([-1.5, -0.75, 0.0, 0.75, 1.5])  # of the grid, in logs
_LOG_SD = 1.0  # of the prior of each hyper-parameter, in logs
_SWEEPS = 2
_ENOUGH = 4  # observations before anything is estimated from them


@dataclass(frozen=True)
class Hyper:
    """Hyper-parameters of one metric, in logs, shape `(knobs + 2,)`: length scale by knob, signal sd, white sd."""

    log: FloatArray

    @property
    def log_prior(self) -> float:
        """How unusual they are, 0 for the defaults: what fitting them to the data has to pay for."""
        return float(-0.5 * (((self.log - Hyper.default(len(self.log) - 2).log) / _LOG_SD) ** 2).sum())

    @classmethod
    def default(cls, knobs: int) -> "Hyper":
        """What is assumed before there are observations."""
        return cls(np.log(np.array([LENGTH] * knobs + [SIGNAL_SD, WHITE_SD])))


def estimate(z: FloatArray, y: FloatArray, variance: FloatArray, groups: IntArray) -> Hyper:
    """Hyper-parameters of one metric.

    Args:
        z: Encoded configurations that were measured, shape `(k, d)`.
        y: Log-metric less its mean, shape `(k,)`.
        variance: Of the noise, shape `(k,)`.
        groups: Knob of each column of z, shape `(d,)`.
    """
    knobs = int(groups.max()) + 1 if len(groups) else 0
    default = Hyper.default(knobs)
    if len(y) < _ENOUGH:
        return default
    parts = np.stack([squared_distances(z[:, groups == g], z[:, groups == g]) for g in range(knobs)])  # (knobs, k, k)
    same = squared_distances(z, z) < 1e-12
    best = default.log.copy()
    for _ in range(_SWEEPS):
        for i in range(len(best)):
            tried = np.tile(best, (len(_STEPS), 1))  # (steps, knobs + 2)
            tried[:, i] = default.log[i] + _STEPS
            score = _log_evidence(tried, parts, same, y, variance)
            score -= 0.5 * (((tried - default.log) / _LOG_SD) ** 2).sum(1)
            best = tried[int(score.argmax())]
    return Hyper(best)


def _log_evidence(
    hyper: FloatArray, parts: FloatArray, same: npt.NDArray[np.bool_], y: FloatArray, variance: FloatArray
) -> FloatArray:
    """Log marginal likelihood of `y` for several hyper-parameters at once, shape `(steps,)`."""
    weights = np.exp(-2.0 * hyper[:, :-2])  # (steps, knobs)
    near = matern52(np.einsum("sg,gij->sij", weights, parts))
    k = np.exp(2.0 * hyper[:, -2])[:, None, None] * near + np.exp(2.0 * hyper[:, -1])[:, None, None] * same
    k += LEVEL_SD**2 + np.diag(variance)
    factor = cholesky(k)
    white = np.linalg.solve(factor, np.broadcast_to(y[:, None], (len(hyper), len(y), 1)))[..., 0]
    return np.asarray(-0.5 * (white**2).sum(1) - np.log(np.diagonal(factor, axis1=1, axis2=2)).sum(1))


def plain_model(z: FloatArray, groups: IntArray, obs: Observations, metrics: int) -> tuple[GaussianModel, float]:
    """The belief without a prior. It must still be conditioned on the observations.

    Args:
        z: Encoded candidates, shape `(n, d)`.
        groups: Knob of each column of z, shape `(d,)`.
        obs: What was measured; sets levels and hyper-parameters.
        metrics: How many there are.

    Returns:
        The model, and the log prior of its hyper-parameters.
    """
    n = len(z)
    knobs = int(groups.max()) + 1 if len(groups) else 0
    level, hypers = np.zeros(metrics), []
    for m in range(metrics):
        mine = obs.metric == m
        level[m] = obs.value[mine].mean() if mine.any() else 0.0
        hypers.append(estimate(z[obs.point[mine]], obs.value[mine] - level[m], obs.variance[mine], groups))
    logs = np.stack([h.log for h in hypers]).reshape(metrics, knobs + 2)
    model = GaussianModel(
        mean=np.tile(level[:, None], (1, n)),
        features=np.zeros((metrics, n, 0)),
        inputs=_scaled(z, groups, logs),
        extra=np.zeros((n, 0)),
        offset_sd=np.full(metrics, LEVEL_SD),
        residual_sd=np.exp(logs[:, -2]),
        extra_sd=np.zeros(metrics),
        white_sd=np.exp(logs[:, -1]),
        correlation=np.eye(metrics),
    )
    return model, sum(h.log_prior for h in hypers)


def _scaled(z: FloatArray, groups: IntArray, logs: FloatArray) -> Sequence[FloatArray]:
    return [z * np.exp(-row[:-2][groups]) for row in logs]
