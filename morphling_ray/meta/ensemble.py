"""Hypotheses about a new task, weighed by how well they foretold what was measured, and draws from all of them.

A hypothesis is a set of templates (surfaces that the new task may resemble: earlier ones, mixtures of two, their mean,
or a flat one) with one Gaussian covariance of what the task deviates by. All templates of a hypothesis share a factor
of that covariance, so a thousand of them cost little more than one.

n   candidates;  M  metrics;  T  surfaces;  J  templates;  N  observations;  S  draws
    f = template_j + deviation,   deviation ~ Normal(0, covariance)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from morphling_ray.meta.gaussian import Covariance, Last, Observations, cholesky, products

FloatArray = npt.NDArray[np.float64]
AnyFloats = npt.NDArray[np.floating]
IntArray = npt.NDArray[np.int64]


_NEGLIGIBLE = 0.01  # a hypothesis that is so much less likely than the likeliest is left out: each costs time


class Templates(Protocol):
    """Surfaces that a new task may resemble, J of them."""

    @property
    def count(self) -> int:
        """J."""
        ...

    def at(self, which: IntArray, points: IntArray) -> FloatArray:
        """Some of them at k points, shape `(len(which), k M)`, metrics varying fastest."""
        ...

    def observed(self, obs: Observations) -> FloatArray:
        """All of them where something was observed, shape `(J, N)`."""
        ...


@dataclass(frozen=True, eq=False)
class Mixtures:
    """Weighted sums of surfaces. `Templates`.

    Attributes:
        surfaces: Log-metrics, shape `(T, n, M)`.
        weights: Shape `(J, T)`; each row is a template.
    """

    surfaces: FloatArray
    weights: FloatArray
    _there: Last[FloatArray] = field(default_factory=Last, init=False, repr=False)

    @property
    def count(self) -> int:
        """See `Templates`."""
        return len(self.weights)

    def at(self, which: IntArray, points: IntArray) -> FloatArray:
        """See `Templates`."""
        there = self._there.of(points, lambda p: self.surfaces.take(p, 1).reshape(len(self.surfaces), -1))
        return np.asarray(self.weights[which] @ there)

    def observed(self, obs: Observations) -> FloatArray:
        """See `Templates`."""
        return np.asarray(self.weights @ self.surfaces[:, obs.point, obs.metric])


@dataclass(frozen=True, eq=False)
class Hypothesis:
    """What a new task may be like.

    Attributes:
        name: For people.
        log_prior: Log of how likely it is at first, together with all of its templates.
        templates: What it may resemble.
        covariance: Of the deviation.
        levels: Whether the templates' levels mean anything. Where they do not, the first measurement sets them.
        log_likely: Log of how likely each template is at first, up to a constant, shape `(J,)`; None: all alike.
        works: Under some templates, or all if given None, the probability that k points work, shape
            `(len(which), k)`; None: templates say nothing of that.
    """

    name: str
    log_prior: float
    templates: Templates
    covariance: Covariance
    levels: bool = True
    log_likely: FloatArray | None = None
    works: Callable[[IntArray | None, IntArray], FloatArray] | None = None

    @property
    def log_priors(self) -> FloatArray:
        """Log of how likely each template is at first, shape `(J,)`."""
        likely = np.zeros(self.templates.count) if self.log_likely is None else self.log_likely
        return np.asarray(self.log_prior + likely - _log_sum(likely))


class Conditioned:
    """A hypothesis after observations.

    Args:
        hypothesis: Before them.
        obs: What was measured.
        observed: What its templates say of that, shape `(J, N)`, if it is known already.
    """

    def __init__(self, hypothesis: Hypothesis, obs: Observations, observed: FloatArray | None = None) -> None:
        self.hypothesis = hypothesis
        self._obs = obs
        self._explained: Last[FloatArray] = Last()  # means and covariances are asked for in turn
        templates = hypothesis.templates.observed(obs) if observed is None else observed
        self._white = _whitening(hypothesis.covariance, obs)
        self._z = (obs.value - templates) @ self._white.T  # (J, N)
        self.log_evidence = _log_density(self._z, self._white)  # (J,)
        """Log density of the observed values under each template, shape `(J,)`, up to a constant."""
        self.log_first = _log_density(self._z[:, : obs.first], self._white[: obs.first, : obs.first])
        """The same of the values at the first point alone: as factors are triangular, of whatever comes first."""

    def means(self, which: IntArray, points: IntArray) -> FloatArray:
        """Posterior means under some templates at k points, shape `(len(which), k, M)`."""
        out = self.hypothesis.templates.at(which, points)
        if len(self._obs):
            out = out + self._z[which] @ self._explained.of(points, self._explain)
        return out.reshape(len(which), len(points), -1)

    def each(self, points: IntArray) -> FloatArray:
        """Posterior covariance between the metrics of each point, the same under all templates, shape `(k, M, M)`."""
        out = self.hypothesis.covariance.at_each(points)
        if len(self._obs):
            v = self._explained.of(points, self._explain).reshape(len(self._obs), len(points), -1)
            out -= products(v.transpose(2, 1, 0))
        return out

    def joint(self, points: IntArray) -> FloatArray:
        """Posterior covariance of all metrics at k points, the same under all templates, shape `(k M, k M)`."""
        out = self.hypothesis.covariance.joint(points)
        if len(self._obs):
            v = self._explained.of(points, self._explain)
            out = out - v.T @ v
        return out

    def _explain(self, points: IntArray) -> FloatArray:
        """What whitened observations have to do with all metrics at k points, shape `(N, k M)`."""
        between = self.hypothesis.covariance.between(self._obs, points)
        return np.asarray(self._white @ between.reshape(len(self._obs), -1))


class Ensemble:
    """All hypotheses after observations.

    Args:
        hypotheses: At least one, all about the same candidates and metrics.
        obs: What was measured.
        log_outcomes: Log probability, by hypothesis, of which configurations worked and failed; a number, or one for
            each template.
    """

    def __init__(
        self, hypotheses: Sequence[Hypothesis], obs: Observations, log_outcomes: Sequence[float | FloatArray]
    ) -> None:
        # Hypotheses that differ in how much a task strays share their templates.
        observed = {id(t): t.observed(obs) for t in {id(h.templates): h.templates for h in hypotheses}.values()}
        self.conditioned = [Conditioned(h, obs, observed[id(h.templates)]) for h in hypotheses]
        scores = [
            c.log_evidence + h.log_priors + extra for c, h, extra in zip(self.conditioned, hypotheses, log_outcomes)
        ]
        if len(obs):
            # A level that means nothing neither speaks for a hypothesis nor against it: at the first point such a
            # hypothesis is taken to have foretold as well as the others did together.
            known = [c.log_first + h.log_priors for c, h in zip(self.conditioned, hypotheses) if h.levels]
            told = np.array([h.log_prior for h in hypotheses if h.levels])
            usual = _log_sum(np.concatenate(known)) - _log_sum(told) if known else 0.0
            scores = [
                s if h.levels else s - c.log_first + usual for s, c, h in zip(scores, self.conditioned, hypotheses)
            ]
        total = np.array([_log_sum(s) for s in scores])
        scores = [s if t > total.max() + np.log(_NEGLIGIBLE) else s - np.inf for s, t in zip(scores, total)]
        every = np.exp(np.concatenate(scores) - max(s.max() for s in scores))
        self._owner = np.repeat(np.arange(len(scores)), [len(s) for s in scores])
        self._template = np.concatenate([np.arange(len(s)) for s in scores])
        self._weights = every / every.sum()
        self.weights = np.bincount(self._owner, self._weights, len(scores))
        """Posterior probability of each hypothesis, shape `(H,)`."""

    def picks(self, count: int) -> tuple[IntArray, IntArray]:
        """Hypothesis and template of each of `count` draws, in proportion to their weights (systematic resampling)."""
        at = (np.arange(count) + 0.5) / count
        chosen = np.minimum(np.searchsorted(np.cumsum(self._weights), at), len(self._weights) - 1)
        return self._owner[chosen], self._template[chosen]

    def mean(self, points: IntArray, count: int = 256) -> FloatArray:
        """Posterior mean of the log-metrics at k points, shape `(k, M)`, over the templates of `count` draws."""
        owners, which = self.picks(count)
        total = sum(self.conditioned[h].means(which[owners == h], points).sum(0) for h in np.unique(owners))
        return np.asarray(total / count)

    def marginal_draws(self, points: IntArray, normals: FloatArray) -> FloatArray:
        """Draws of each point on its own, under the templates of `picks`.

        Args:
            points: k of them.
            normals: Shape `(S, M)`; all points share them, so two points differ by what is believed of them.

        Returns:
            Log-metrics, shape `(S, k, M)`.
        """
        owners, which = self.picks(len(normals))
        out = np.empty((len(normals), len(points), normals.shape[1]))
        for h in np.unique(owners):
            mine, conditioned = owners == h, self.conditioned[h]
            used, back = np.unique(which[mine], return_inverse=True)
            mean = conditioned.means(used, points)  # (U, k, M)
            factor = _small_factors(conditioned.each(points))  # (k, M, M)
            out[mine] = mean[back] + np.einsum("sj,kmj->skm", normals[mine], factor, optimize=True)
        return out

    def joint_draws(self, points: IntArray, normals: AnyFloats) -> AnyFloats:
        """Draws of several points together, under the templates of `picks`.

        Args:
            points: k of them.
            normals: Shape `(S, k M)`; float32 is enough, and quicker.

        Returns:
            Log-metrics, shape `(S, k, M)`.
        """
        owners, which = self.picks(len(normals))
        out = np.empty((len(normals), len(points), normals.shape[1] // len(points)), normals.dtype)
        for h in np.unique(owners):
            mine, conditioned = owners == h, self.conditioned[h]
            used, back = np.unique(which[mine], return_inverse=True)
            factor = cholesky(conditioned.joint(points)).astype(normals.dtype)
            deviation = normals[mine] @ factor.T
            out[mine] = conditioned.means(used, points)[back] + deviation.reshape(-1, *out.shape[1:])
        return out


def log_evidence(hypotheses: Sequence[Hypothesis], obs: Observations) -> float:
    """Log density of what was observed under all hypotheses, all of whose levels mean something, up to a constant."""
    every = [Conditioned(h, obs).log_evidence + h.log_priors for h in hypotheses]
    return _log_sum(np.concatenate(every))


def _whitening(covariance: Covariance, obs: Observations) -> FloatArray:
    """W with W gram W^T = I, shape `(N, N)`."""
    if not len(obs):
        return np.zeros((0, 0))
    return np.asarray(np.linalg.inv(cholesky(covariance.gram(obs))))


def _log_density(z: FloatArray, white: FloatArray) -> FloatArray:
    """Log density of whitened values, shape `(J, N)` to `(J,)`, up to a constant (Rasmussen & Williams, Eq. 2.30)."""
    return np.asarray(-0.5 * (z**2).sum(1) + np.log(np.diag(white)).sum())


def _log_sum(logs: FloatArray) -> float:
    return float(np.log(np.exp(logs - logs.max()).sum()) + logs.max())


def _small_factors(covariance: FloatArray) -> FloatArray:
    """Lower Cholesky factors of many small matrices, shape `(k, M, M)`: column by column, but all of them at once."""
    out = np.zeros(covariance.shape)
    for m in range(covariance.shape[1]):
        rest = covariance[:, m:, m] - np.einsum("kim,km->ki", out[:, m:, :m], out[:, m, :m])
        out[:, m:, m] = rest / np.sqrt(np.maximum(rest[:, :1], 1e-12))
    return out
