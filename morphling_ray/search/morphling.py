"""The default search: a prior over the measured metrics, and expected improvement of the objective on draws.

1. The first configuration is the one that reaches the largest share of the optimum on the tasks that the prior deems
   likely; without a prior, a point in the middle and two far from it.
2. Then the largest expected improvement over the best so far, times the probability that the configuration works.
3. The recommendation is the measured configuration with the highest expected objective: a lucky measurement is not
   taken at face value.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from morphling_ray.measurement import Measurement
from morphling_ray.meta.gaussian import cholesky, squared_distances
from morphling_ray.meta.prior import Prior
from morphling_ray.meta.tasks import TrainingTask
from morphling_ray.objective import Objective
from morphling_ray.search.acquisition import expected_improvement, expected_share, objective_draws, quasi_normals
from morphling_ray.search.history import History
from morphling_ray.search.sampler import Recommendation
from morphling_ray.search.surrogate import Belief, Surrogate
from morphling_ray.space import Configuration, SearchSpace

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_DRAWS = 64  # of the metrics of each candidate, for the expected improvement
_JOINT_DRAWS = 256  # of several candidates together, for probabilities
_RIVALS = 150  # candidates that the best in the space is sought among
_DESIGN = 3  # configurations that are spread over the space when there is no prior
_TIE = 1e-3  # weight of the expected objective, which decides where no improvement is expected anywhere
_NEAR_BEST = 0.95
_CLEARLY_WORSE = 0.05  # probability of being better below which a runner-up is not measured again


def learn(tasks: Sequence[TrainingTask], objective: Objective, seed: int) -> Prior:
    """The prior of earlier tasks; it holds for any objective over their metrics."""
    from morphling_ray.meta.fit import fit_prior

    return fit_prior(tasks, seed=seed)


class MorphlingSampler:
    """The default search. A `Sampler`.

    Args:
        space: The candidates.
        objective: What to maximise.
        seed: Of the draws.
        learned: What earlier tasks taught, or None.
    """

    def __init__(self, space: SearchSpace, objective: Objective, *, seed: int, learned: Prior | None = None) -> None:
        rng = np.random.default_rng(seed)
        self._history = History(space, objective, rng)
        self._objective = objective
        self._surrogate = Surrogate(self._history, learned)
        metrics, tasks = len(objective.metrics), len(learned.tasks) if learned is not None else 0
        self._normals = quasi_normals(_DRAWS, metrics, rng.random(metrics))
        self._start_normals = rng.standard_normal((_JOINT_DRAWS, tasks + metrics))
        self._joint_seed = int(rng.integers(2**31))

    def suggest(self) -> Configuration | None:
        """See `Sampler`."""
        free = np.array(self._history.free(), int)
        if len(free):
            point = int(free[int(self._scores()[free].argmax())])
        else:
            fresh = self._history.fresh()
            if fresh is None:
                return None
            point = self._history.point(fresh)
        self._history.reserve(point)
        return dict(self._history.points[point])

    def reserve(self, configuration: Configuration) -> None:
        """See `Sampler`."""
        self._history.reserve(self._history.point(configuration))

    def observe(self, configuration: Configuration, measurement: Measurement) -> None:
        """See `Sampler`."""
        self._history.tell(configuration, measurement)

    def recommend(self) -> Recommendation | None:
        """See `Sampler`."""
        beliefs, ranked = self._ranked()
        if not ranked:
            return None
        best = ranked[0][1]
        mean, square = 0.0, 0.0
        for belief in beliefs:
            values = self._values(belief, np.array([best]))
            mean, square = mean + belief.weight * values.mean(), square + belief.weight * (values**2).mean()
        return Recommendation(
            configuration=dict(self._history.points[best]),
            objective=float(mean),
            sd=float(np.sqrt(max(square - mean**2, 0.0))),
            p_near_best=self._p_near_best(best, beliefs),
        )

    def finalists(self, count: int) -> list[Configuration]:
        """See `Sampler`."""
        beliefs, ranked = self._ranked()
        chosen = [point for _, point in ranked[:count]]
        if len(chosen) > 1:
            points = np.array(chosen)
            better = sum(
                b.weight * (v[:, 1:] > v[:, :1]).mean(0) for b in beliefs for v in [self._joint_values(b, points)]
            )
            chosen = [chosen[0], *(p for p, chance in zip(chosen[1:], better) if chance >= _CLEARLY_WORSE)]
        return [dict(self._history.points[i]) for i in chosen]

    def _scores(self) -> FloatArray:
        """How promising each point is, shape `(n,)`."""
        seen = self._history.observations()
        start = self._surrogate.start()
        works = self._surrogate.works()
        if start is not None and not len(seen):
            columns, pending = self._history.columns(), self._history.pending
            return expected_share(start, self._start_normals, self._objective, columns, pending) * works
        if (start is None and len(self._history.used) < _DESIGN) or not len(seen):
            return self._spread() * works
        beliefs = self._surrogate.beliefs(pending=True)
        everywhere = np.arange(len(self._history.points))
        values = [self._values(belief, everywhere) for belief in beliefs]  # each (S, n)
        mean = sum(b.weight * v.mean(0) for b, v in zip(beliefs, values))
        best = max((float(mean[i]) for i in self._history.contenders), default=0.0)
        score = np.zeros(len(everywhere))
        for belief, drawn in zip(beliefs, values):
            gain = expected_improvement(drawn, best) + _TIE * drawn.mean(0)
            score += belief.weight * gain * belief.works
        return score

    def _spread(self) -> FloatArray:
        """The distance of each point from what was tried; at first, closeness to the middle of the space."""
        z, used = self._surrogate.z, sorted(self._history.used)
        if not used:
            return np.asarray(1.0 / (1.0 + ((z - z.mean(0)) ** 2).sum(1)))
        return np.asarray(np.sqrt(squared_distances(z, z[used]).min(1)) + _TIE)

    def _values(self, belief: Belief, points: IntArray) -> FloatArray:
        """Objective on draws of each point on its own, shape `(S, len(points))`."""
        posterior = belief.posterior.at(points)
        columns = {name: values[points] for name, values in self._history.columns().items()}
        return objective_draws(posterior, self._normals, self._objective, columns)

    def _joint_values(self, belief: Belief, points: IntArray) -> FloatArray:
        """Objective on joint draws of several points, shape `(S, len(points))`."""
        mean, covariance = belief.model.joint(self._history.observations(), points)
        normal = np.random.default_rng(self._joint_seed).standard_normal((_JOINT_DRAWS, len(mean)))
        logs = (mean + normal @ cholesky(covariance).T).reshape(_JOINT_DRAWS, len(points), -1)  # (S, k, M)
        draws = {m: np.exp(np.clip(logs[:, :, i], -300, 300)) for i, m in enumerate(self._objective.metrics)}
        columns = {name: values[points] for name, values in self._history.columns().items()}
        values = np.asarray(self._objective(columns, draws), float)
        return np.broadcast_to(values, (_JOINT_DRAWS, len(points)))

    def _ranked(self) -> tuple[list[Belief], list[tuple[float, int]]]:
        """What is believed, and expected objective and point of everything that may be recommended, best first."""
        contenders = np.array(self._history.contenders, int)
        if not len(contenders):
            return [], []
        beliefs = self._surrogate.beliefs(pending=False)
        mean = sum(b.weight * self._values(b, contenders).mean(0) for b in beliefs)
        measured = [self._history.measured_objective(int(i)) for i in contenders]
        # One whose own measurement breaks a bound is not recommended, however the model may explain it away.
        ranked = [(float(e), int(p)) for e, p, own in zip(np.atleast_1d(mean), contenders, measured) if own > 0]
        return beliefs, sorted(ranked, key=lambda v: (-v[0], v[1]))

    def _p_near_best(self, point: int, beliefs: list[Belief]) -> float:
        """Probability that a point is within 5 % of the best that works, among the most promising points."""
        out = 0.0
        for belief in beliefs:
            everywhere = np.arange(len(self._history.points))
            promise = np.quantile(self._values(belief, everywhere), 0.9, axis=0) * belief.works
            rivals = np.unique(np.append(np.argsort(-promise, kind="stable")[:_RIVALS], point))
            values = self._joint_values(belief, rivals)
            works = np.random.default_rng(self._joint_seed + 1).random(values.shape) < belief.works[rivals]
            works[:, rivals == point] = True
            own = values[:, rivals == point][:, 0]
            out += belief.weight * float((own >= _NEAR_BEST * (values * works).max(1)).mean())
        return out
