"""The default search: hypotheses about the measured metrics, and expected improvement of the objective on draws.

1. The first configuration is the one that reaches the largest share of the optimum on the tasks that the prior deems
   likely; without a prior, a point in the middle and two far from it.
2. Then the largest expected improvement over the best so far and over all that is being measured, as a share of the
   best, times the probability that the configuration works; where one deployment tells about several configurations,
   the improvement that the best of them brings, per second of the trial.
3. The recommendation is the measured configuration with the highest expected objective: a lucky measurement is not
   taken at face value.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from morphling_ray.measurement import Measurement
from morphling_ray.meta.gaussian import squared_distances
from morphling_ray.meta.naming import translated
from morphling_ray.meta.prior import Prior
from morphling_ray.meta.tasks import TrainingTask
from morphling_ray.objective import Objective
from morphling_ray.search.acquisition import Values, quasi_normals
from morphling_ray.search.deployments import Deployments
from morphling_ray.search.history import History
from morphling_ray.search.sampler import Recommendation
from morphling_ray.search.surrogate import Belief, Surrogate
from morphling_ray.space import Configuration, SearchSpace

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_DRAWS = 512  # of several candidates together
_AT_START, _LATER = 256, 96  # candidates that are drawn together; the rest was less promising when looked at alone
_SCREEN = 64_000  # draws times candidates of that look
_CONTENDERS = 12  # measured configurations that may be recommended
_PENDING = 32  # trials under way that are looked at, at most
_DESIGN = 3  # configurations that are spread over the space when there is no prior
_TIE = 1e-4  # weight of the expected share, which decides where no improvement is expected anywhere
_NEAR_BEST = 0.95
_TIED = 0.25  # probability of being better from which on another one is as good
_CLEARLY_WORSE = 0.05  # probability of being better below which a runner-up is not measured again


def learn(tasks: Sequence[TrainingTask], objective: Objective, seed: int) -> Prior:
    """The prior of earlier tasks; it holds for any objective over their metrics."""
    from morphling_ray.meta.fit import fit_prior

    return fit_prior(tasks, seed=seed)


@dataclass(frozen=True, eq=False)
class Draws:
    """Joint draws of the promising candidates.

    Attributes:
        points: Which, k of them.
        values: The objective on the draws.
        works: Probability that each works, by draw, shape `(S, k)`.
        peaks: Expected logarithm of its peak, shape `(k,)`: of two that cost the same by the whole copy, the one with
            more to spare is the better one. Zeros where no peak is measured.
    """

    points: IntArray
    values: Values
    works: FloatArray
    peaks: FloatArray

    @property
    def expected(self) -> FloatArray:
        """Expected objective of each, shape `(k,)`."""
        return np.asarray(self.values.values.mean(0))


class MorphlingSampler:
    """The default search. A `Sampler`.

    Args:
        space: The candidates.
        objective: What to maximise.
        seed: Of the draws.
        learned: What earlier tasks taught, or None.
        free_knobs: Knobs that cost nothing to vary: one trial of a configuration measures it with all of their values,
            so that what is proposed is the rest of the configuration, by the best that it may hold. Where a measurement
            has siblings, it says so itself.
    """

    def __init__(
        self,
        space: SearchSpace,
        objective: Objective,
        *,
        seed: int,
        learned: Prior | None = None,
        free_knobs: Sequence[str] = (),
    ) -> None:
        rng = np.random.default_rng(seed)
        self._deployments = Deployments([knob.name for knob in space.knobs], free_knobs)
        self.notes = ""
        """What the user should know about the prior; empty if it fits."""
        if learned is not None:
            knobs, _ = translated(space.knobs, [], learned.knobs)
            self.notes = learned.mismatch(knobs, objective.metrics)
            if not learned.knows(knobs, objective.metrics):
                learned = None
        self._history = History(space, objective, rng)
        self._objective = objective
        self._surrogate = Surrogate(self._history, learned)
        self._drawn: tuple[object, Draws | None] = (None, None)
        metrics = len(objective.metrics)
        self._shift = rng.random(metrics)
        self._seed = int(rng.integers(2**31))
        # The same normals every time: two proposals, or two moments, then differ by what is believed.
        most = (_AT_START + _CONTENDERS + _PENDING) * metrics
        self._normals = np.random.default_rng(self._seed).standard_normal((_DRAWS, most), dtype=np.float32)

    def suggest(self) -> Configuration | None:
        """See `Sampler`."""
        free = np.array(self._history.free(), int)
        if self._deployments.free and len(free) and self._history.pending:
            number = self._deployments.number(self._history.points)
            others = free[~np.isin(number[free], number[self._history.pending])]  # those will be told of anyway
            free = others if len(others) else free
        if len(free):
            point = self._most_promising(free)
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
        self._deployments.tell(measurement)

    def foresee(self, configuration: Configuration, measurement: Measurement) -> None:
        """See `Sampler`."""
        self._history.foresee(configuration, measurement)

    def recommend(self, among: Sequence[Configuration] | None = None) -> Recommendation | None:
        """See `Sampler`."""
        ranked, draws = self._ranked()
        first = [p for p in ranked if among is not None and self._history.points[p] in among]
        ranked = first + [p for p in ranked if p not in first]
        if draws is None or not ranked:
            return None
        coin = np.random.default_rng(self._seed + 1).random(draws.works.shape) < draws.works
        value = {p: draws.values.values[:, draws.points == p][:, 0] for p in ranked}

        def about(point: int) -> Recommendation:
            works, own = coin.copy(), value[point]
            works[:, draws.points == point] = True
            return Recommendation(
                configuration=dict(self._history.points[point]),
                objective=float(own.mean()),
                sd=float(own.std()),
                p_near_best=float((own >= _NEAR_BEST * (draws.values.values * works).max(1)).mean()),
            )

        best, *others = ranked
        chances = {p: _chance(value[p], value[best]) for p in others}
        return replace(
            about(best),
            p_better=1.0 - max(chances.values()) if chances else None,
            tied=tuple(
                about(p) for p in others if chances[p] >= _TIED and value[p].mean() >= _NEAR_BEST * value[best].mean()
            ),
        )

    def finalists(self, count: int) -> list[Configuration]:
        """See `Sampler`."""
        ranked, draws = self._ranked()
        if draws is None or not ranked:
            return []
        values = {p: draws.values.values[:, draws.points == p][:, 0] for p in ranked}
        lead = {p: values[p] - values[ranked[0]] for p in ranked[1:]}
        # Another look pays where the difference may turn out large: not at two that are sure to be alike.
        rivals = sorted((p for p in lead if (lead[p] > 0).mean() >= _CLEARLY_WORSE), key=lambda p: -_gain(lead[p]))
        return [dict(self._history.points[p]) for p in [ranked[0], *rivals][:count]]

    def predict(self) -> FloatArray:
        """The objective to be expected of every configuration, shape `(n,)`; NaN before there is anything to go by.

        It is the median of the draws, times the probability to work: before much is known, a mean would be that of the
        few fastest draws.
        """
        belief, points = self._surrogate.belief(), np.arange(len(self._history.points))
        if belief is None:
            return np.full(len(points), np.nan)
        normals = quasi_normals(_DRAWS // 8, len(self._shift), self._shift)
        logs = belief.ensemble.marginal_draws(points, normals)
        values = Values(logs, self._objective, self._columns(points)).values
        return np.asarray(np.median(values, 0) * belief.works(len(normals), points).mean(0))

    @property
    def points(self) -> Sequence[Configuration]:
        """What `predict` is about: the space, or a drawn part of a very large one, and what else was measured."""
        return self._history.points

    @property
    def most_drawn(self) -> int:
        """How many configurations `draw` takes."""
        return int(self._normals.shape[1]) // len(self._shift)

    def draw(self, configurations: Sequence[Configuration]) -> FloatArray | None:
        """Joint draws of the objective, shape `(S, k)`: 0 where a configuration is not to work, or breaks a bound.

        None before there is anything to go by.
        """
        points = np.array([self._history.point(c) for c in configurations], int)
        belief = self._surrogate.belief()
        if belief is None or not len(points):
            return None
        logs = belief.ensemble.joint_draws(points, self._normals[:, : len(points) * len(self._shift)])
        values = Values(logs, self._objective, self._columns(points)).values
        coin = np.random.default_rng(self._seed + 1).random(values.shape)
        return np.asarray(values * (coin < belief.works(_DRAWS, points)))

    def _most_promising(self, free: IntArray) -> int:
        draws = self._draws()
        designing = not self._surrogate.informed and len(self._history.used | self._history.foreseen) < _DESIGN
        if draws is None or designing or not np.isin(draws.points, free).any():
            return int(free[int(self._spread()[free].argmax())])
        there = np.isin(draws.points, self._history.pending)
        works = draws.works.copy()
        contenders = np.isin(draws.points, self._history.contenders)
        if contenders.any():
            incumbent = int(np.flatnonzero(contenders)[int(draws.expected[contenders].argmax())])
            there[incumbent], works[:, incumbent] = True, 1.0
        known = np.flatnonzero(there)
        gains = draws.values.gains(known, works[:, known]) + _TIE * draws.values.shares
        gains *= draws.works
        gains[:, ~np.isin(draws.points, free)] = -1.0
        score = gains.mean(0)
        if self._deployments.free:
            score = self._per_second(draws.points, gains, score)
        return int(draws.points[int(score.argmax())])

    def _per_second(self, points: IntArray, gains: FloatArray, score: FloatArray) -> FloatArray:
        """Expected gain per second of a trial; that of a new deployment is what the best of it may bring."""
        configurations = [self._history.points[int(p)] for p in points]
        number, new = self._deployments.number(configurations), self._deployments.new(configurations)
        out = score.copy()
        for deployment in np.unique(number[new]):
            together = np.flatnonzero(number == deployment)
            best = int(together[int(score[together].argmax())])
            out[together], out[best] = -1.0, gains[:, together].max(1).mean()
        return np.asarray(np.where(out > 0, out / self._deployments.relative_seconds(configurations), out))

    def _spread(self) -> FloatArray:
        """The distance of each point from what was tried; at first, closeness to the middle of the space."""
        z, used, works = self._surrogate.z, sorted(self._history.used), self._surrogate.works()
        if not used:
            return np.asarray(works / (1.0 + ((z - z.mean(0)) ** 2).sum(1)))
        return np.asarray(works * (np.sqrt(squared_distances(z, z[used]).min(1)) + _TIE))

    def _draws(self) -> Draws | None:
        """Draws of what is promising and of what may be recommended; None while there is nothing to go by."""
        now = (self._history.told, tuple(self._history.pending), len(self._history.points))
        if self._drawn[0] != now:
            self._drawn = (now, self._draw())
        return self._drawn[1]

    def _draw(self) -> Draws | None:
        belief = self._surrogate.belief()
        if belief is None:
            return None
        points = self._promising(belief, _LATER if self._history.told else _AT_START)
        if not len(points):
            return None
        logs = belief.ensemble.joint_draws(points, self._normals[:, : len(points) * len(self._shift)])
        metrics = self._objective.metrics
        peaks = logs[:, :, metrics.index("peak_rps")].mean(0) if "peak_rps" in metrics else np.zeros(len(points))
        values = Values(logs, self._objective, self._columns(points))
        return Draws(points, values, belief.works(_DRAWS, points), np.asarray(peaks, float))

    def _promising(self, belief: Belief, count: int) -> IntArray:
        """Free candidates that may turn out well when each is looked at alone, contenders, and what is measured now."""
        history = self._history
        free = np.array(history.free(), int)
        contenders = sorted(history.contenders, key=lambda p: -history.measured_objective(p))[:_CONTENDERS]
        if len(free) > count:
            normals = quasi_normals(max(16, min(64, _SCREEN // len(free))), len(self._shift), self._shift)
            logs = belief.ensemble.marginal_draws(free, normals)
            shares = Values(logs, self._objective, self._columns(free)).shares * belief.works(len(normals), free)
            promise = (shares**3).mean(0)  # what it may be counts for more than what it is on average
            free = free[np.sort(np.argpartition(-promise, count)[:count])]
        pending = [p for p in dict.fromkeys(history.pending) if p not in contenders]
        return np.concatenate([free, np.array([*contenders, *pending[:_PENDING]], int)])

    def _columns(self, points: IntArray) -> dict[str, npt.NDArray[np.generic]]:
        return {name: values[points] for name, values in self._history.columns().items()}

    def _ranked(self) -> tuple[list[int], Draws | None]:
        """Everything that may be recommended, the highest expected objective first."""
        contenders = self._history.contenders
        draws = self._draws()
        if draws is None:
            return [], None
        # To nine digits: what is equal by the whole copy is not told apart by how it was added up.
        expected = {int(p): float(f"{value:.9g}") for p, value in zip(draws.points, draws.expected)}
        peaks = dict(zip(map(int, draws.points), draws.peaks))
        ranked = [p for p in contenders if expected.get(p, 0.0) > 0]
        return sorted(ranked, key=lambda p: (-expected[p], -peaks[p], p)), draws


def _chance(one: FloatArray, other: FloatArray) -> float:
    """Probability of being the better one, given draws of both; equal ones are better half of the time."""
    return float((one > other).mean() + (one == other).mean() / 2)


def _gain(lead: FloatArray) -> float:
    """What it is worth to know which of two is the better one, given draws of the second one's lead."""
    return float(np.maximum(lead, 0.0).mean())
