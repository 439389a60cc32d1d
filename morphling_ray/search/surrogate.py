"""What is believed about the candidates of a new task: hypotheses, weighed by how well they foretold what was seen.

prior   the new task is like the earlier ones (meta/prior.py)
loose   it has their mean, but strays from it as far as it likes
plain   it has nothing to do with them (meta/plain.py)

A prior that does not fit loses its weight within a few observations, for the metrics and for feasibility alike: to
guard one of the two is not enough, since a wrong feasibility keeps a search away from the optimum just as well.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from morphling_ray.meta.encoding import Encoding
from morphling_ray.meta.feasibility import OPTIMISTIC, log_evidence, p_feasible
from morphling_ray.meta.gaussian import GaussianModel, Observations, Posterior
from morphling_ray.meta.plain import LENGTH, plain_model
from morphling_ray.meta.prior import Prior
from morphling_ray.search.history import History

FloatArray = npt.NDArray[np.float64]

_GUARD_FROM = 2  # observed points before hypotheses are compared: the first one only tells the level
_LOG_ODDS = {"prior": np.log(0.7), "loose": np.log(0.15), "plain": np.log(0.15)}
_LOOSE_SD = 0.4
_NEGLIGIBLE = 0.01


@dataclass(frozen=True, eq=False)
class Belief:
    """One hypothesis after the observations.

    Attributes:
        name: Which.
        weight: Posterior probability of the hypothesis.
        model: Before the observations.
        posterior: Of the log-metrics.
        works: Probability that each point works, shape `(n,)`.
    """

    name: str
    weight: float
    model: GaussianModel
    posterior: Posterior
    works: FloatArray


class Surrogate:
    """The hypotheses about one space.

    Args:
        history: What was measured; more may be added later.
        prior: What earlier tasks taught, or None.
    """

    def __init__(self, history: History, prior: Prior | None) -> None:
        self._history = history
        self._prior = prior
        self._plain: tuple[tuple[int, int], GaussianModel, float] | None = None
        self._rebuild()

    def _rebuild(self) -> None:
        """Computes what depends on the points alone; they are few, except at the start."""
        history, knobs = self._history, self._history.space.knobs
        self._size = len(history.points)
        encoding = Encoding.of_space(knobs)
        self._groups = encoding.groups
        self.z = encoding.encode(history.points)  # (n, d)
        self._before, self._place, self._given = (
            {"plain": np.full(self._size, OPTIMISTIC)},
            {"plain": self.z / LENGTH},
            {},
        )
        if self._prior is not None:
            model = self._prior.model(history.points, knobs, history.objective.metrics)
            loose = replace(model, residual_sd=np.maximum(model.residual_sd, _LOOSE_SD))
            self._given = {"prior": model, "loose": loose}
            for name in self._given:
                self._before[name] = self._prior.feasible(history.points)
                self._place[name] = self._prior.neighbourhood(history.points, knobs)

    def start(self) -> GaussianModel | None:
        """The prior before any observation, or None without one."""
        if self._size < len(self._history.points):
            self._rebuild()
        return self._given.get("prior")

    def works(self) -> FloatArray:
        """Probability that each point works, by the most trusted hypothesis, shape `(n,)`."""
        if self._size < len(self._history.points):
            self._rebuild()
        name = "plain" if self._prior is None else "prior"
        return p_feasible(self._before[name], self._place[name], *self._history.outcomes)

    def beliefs(self, *, pending: bool) -> list[Belief]:
        """All hypotheses that have a weight worth mentioning, the likeliest first.

        Args:
            pending: Whether to take what is being measured as measured, with the result that is expected.
        """
        if self._size < len(self._history.points):
            self._rebuild()
        obs = self._history.observations()
        expected = self._history.expected() if pending else None
        points, works = self._history.outcomes
        guarded = len(np.unique(obs.point)) >= _GUARD_FROM
        names = ["plain"] if self._prior is None else ["prior", "loose", "plain"] if guarded else ["prior"]
        found: list[tuple[float, Belief]] = []
        for name in names:
            model, log_prior = self._given.get(name), 0.0
            if model is None:
                model, log_prior = self._plain_model(obs)
            posterior = model.condition(obs, expected)
            score = 0.0
            if len(names) > 1:
                before, place = self._before[name], self._place[name]
                score = posterior.log_evidence - _log_evidence_of_first(model, obs) + log_prior
                score += log_evidence(before, place, points, works) + float(_LOG_ODDS[name])
            chance = p_feasible(self._before[name], self._place[name], points, works)
            found.append((score, Belief(name, 1.0, model, posterior, chance)))
        weights = np.exp(np.array([score for score, _ in found]) - max(score for score, _ in found))
        weights /= weights.sum()
        weights = np.where(weights < _NEGLIGIBLE, 0.0, weights)
        weights /= weights.sum()
        kept = [replace(belief, weight=float(w)) for w, (_, belief) in zip(weights, found) if w > 0]
        return sorted(kept, key=lambda belief: -belief.weight)

    def _plain_model(self, obs: Observations) -> tuple[GaussianModel, float]:
        """The plain model, estimated once after each measurement."""
        now = (self._history.told, self._size)
        if self._plain is None or self._plain[0] != now:
            metrics = len(self._history.objective.metrics)
            self._plain = (now, *plain_model(self.z, self._groups, obs, metrics))
        return self._plain[1:]


def _log_evidence_of_first(model: GaussianModel, obs: Observations) -> float:
    """Log density of the first point's values: taken off, since it mostly says how vague a level is."""
    first = np.flatnonzero(obs.point == obs.point[0])
    some = Observations(obs.point[first], obs.metric[first], obs.value[first], obs.variance[first])
    return model.log_density(some)
