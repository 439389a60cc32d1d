"""What is believed about the candidates of a new task: hypotheses, weighed by how well they foretold what was seen.

alike    the task varies around the mean of the earlier ones as they did (meta/prior.py)
mixture  it is one of them, or between two of them, at a level of its own, and strays a little from that
bottlenecks  it needs other amounts of what limits them too, so that limits move (meta/bottlenecks.py)
plain    it has nothing to do with them (meta/plain.py)

A prior that does not fit loses its weight within a few observations, for the metrics and for feasibility alike: to
guard one of the two is not enough, since a wrong feasibility keeps a search away from the optimum just as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from morphling_ray.meta.encoding import Encoding
from morphling_ray.meta.ensemble import Ensemble, Hypothesis
from morphling_ray.meta.feasibility import OPTIMISTIC, Outcomes
from morphling_ray.meta.gaussian import Observations
from morphling_ray.meta.naming import translated
from morphling_ray.meta.plain import LENGTH, plain_hypothesis
from morphling_ray.meta.prior import Prior
from morphling_ray.search.history import History

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_P_PLAIN = 0.03  # that a task has nothing to do with earlier ones, before anything is seen


@dataclass(frozen=True, eq=False)
class Belief:
    """What is believed after the observations.

    Attributes:
        ensemble: Of the log-metrics.
        before: Probability that each point works before any outcome, by hypothesis, shape `(n,)` each.
        outcomes: What is known of that, by hypothesis.
    """

    ensemble: Ensemble
    before: Sequence[FloatArray]
    outcomes: Sequence[Outcomes]

    def works(self, count: int, points: IntArray) -> FloatArray:
        """Probability that each of k points works in each of `count` draws of the ensemble, shape `(count, k)`."""
        owners, which = self.ensemble.picks(count)
        out = np.empty((count, len(points)))
        for h in np.unique(owners):
            mine, known, says = owners == h, self.outcomes[h], self.ensemble.conditioned[h].hypothesis.works
            if says is None:
                out[mine] = known.probability(self.before[h][points], self.before[h][known.points], points)
            else:
                used, back = np.unique(which[mine], return_inverse=True)
                out[mine] = known.probability(says(used, points), says(used, known.points), points)[back]
        return out


class Surrogate:
    """The hypotheses about one space.

    Args:
        history: What was measured; more may be added later.
        prior: What earlier tasks taught, or None.
    """

    def __init__(self, history: History, prior: Prior | None) -> None:
        self._history = history
        self._prior = prior
        self._plain: tuple[tuple[int, int], Hypothesis] | None = None
        self._rebuild()

    def _rebuild(self) -> None:
        """Computes what depends on the points alone; they are few, except at the start."""
        history, knobs = self._history, self._history.space.knobs
        self._size = len(history.points)
        encoding = Encoding.of_space(knobs)
        self._groups = encoding.groups
        self._z = encoding.encode(history.points)
        self._given: list[Hypothesis] = []
        before, place = np.full(self._size, OPTIMISTIC), self._z / LENGTH
        self._outlook = {"plain": (before, place)}
        if self._prior is not None:
            goal = history.objective
            known, points = translated(knobs, history.points, self._prior.knobs)
            self._given = [
                replace(h, log_prior=h.log_prior + float(np.log(1.0 - _P_PLAIN)))
                for h in self._prior.hypotheses(points, known, goal.metrics, goal.descriptors)
            ]
            outlook = self._prior.feasible(points), self._prior.neighbourhood(points, known)
            self._outlook |= {h.name: outlook for h in self._given}

    @property
    def informed(self) -> bool:
        """Whether there is a prior."""
        return self._prior is not None

    @property
    def z(self) -> FloatArray:
        """Encoded points, shape `(n, d)`."""
        if self._size < len(self._history.points):
            self._rebuild()
        return self._z

    def belief(self) -> Belief | None:
        """What is believed now; None as long as there is neither a prior nor an observation."""
        if self._size < len(self._history.points):
            self._rebuild()
        obs = self._history.observations()
        hypotheses = list(self._given)
        if len(obs):
            hypotheses.append(self._plain_hypothesis(obs))
        if not hypotheses:
            return None
        known = {id(place): Outcomes(place, *self._history.outcomes) for _, place in self._outlook.values()}
        outcomes = [known[id(self._outlook[h.name][1])] for h in hypotheses]  # those of one prior share their places
        before = [self._outlook[h.name][0] for h in hypotheses]
        evidence = [
            o.log_evidence(p[o.points] if h.works is None else h.works(None, o.points))
            for h, p, o in zip(hypotheses, before, outcomes)
        ]
        return Belief(Ensemble(hypotheses, obs, evidence), before, outcomes)

    def works(self) -> FloatArray:
        """Probability that each point works, by the first hypothesis, shape `(n,)`."""
        if self._size < len(self._history.points):
            self._rebuild()
        before, place = self._outlook[self._given[0].name if self._given else "plain"]
        known = Outcomes(place, *self._history.outcomes)
        return known.probability(before, before[known.points], np.arange(len(before)))

    def _plain_hypothesis(self, obs: Observations) -> Hypothesis:
        """The plain hypothesis, estimated once after each measurement."""
        now = (self._history.told, self._size)
        if self._plain is None or self._plain[0] != now:
            fitted = plain_hypothesis(self._z, self._groups, obs, len(self._history.objective.metrics))
            if self._given:
                fitted = replace(fitted, log_prior=fitted.log_prior + float(np.log(_P_PLAIN)))
            self._plain = (now, fitted)
        return self._plain[1]
