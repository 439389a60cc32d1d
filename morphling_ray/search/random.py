"""Uniformly random configurations without replacement: the baseline that anything must beat."""

import numpy as np

from morphling_ray.measurement import Measurement
from morphling_ray.objective import Objective
from morphling_ray.search.history import History
from morphling_ray.search.sampler import Recommendation
from morphling_ray.space import Configuration, SearchSpace

_CLEARLY_WORSE = 0.85  # with no model: what 3 % of noise on two measurements cannot turn round


class RandomSampler:
    """Proposes in a random order and recommends the best that was measured. A `Sampler`.

    Args:
        space: The candidates.
        objective: What to maximise.
        seed: Of the order.
        learned: Unused: it takes nothing from earlier tasks.
    """

    def __init__(self, space: SearchSpace, objective: Objective, *, seed: int, learned: None = None) -> None:
        rng = np.random.default_rng(seed)
        self._history = History(space, objective, rng)
        self._order = rng.permutation(self._history.candidates)

    def suggest(self) -> Configuration | None:
        """See `Sampler`."""
        used = self._history.used
        point = next((int(i) for i in self._order if int(i) not in used), None)
        if point is None:
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
        ranked = self._ranked()
        if not ranked:
            return None
        return Recommendation(configuration=dict(self._history.points[ranked[0][1]]), objective=ranked[0][0])

    def finalists(self, count: int) -> list[Configuration]:
        """See `Sampler`."""
        ranked = self._ranked()[:count]
        return [dict(self._history.points[i]) for value, i in ranked if value >= _CLEARLY_WORSE * ranked[0][0]]

    def _ranked(self) -> list[tuple[float, int]]:
        """Objective and point of everything that may be recommended, best first."""
        values = [(self._history.measured_objective(i), i) for i in self._history.contenders]
        return sorted([v for v in values if v[0] > 0], key=lambda v: (-v[0], v[1]))
