"""An even sweep over the whole grid, coarse first: what is measured so far always covers it about evenly."""

from collections.abc import Sequence

import numpy as np

from morphling_ray.objective import Objective
from morphling_ray.search.levels import FloatArray, Levels
from morphling_ray.search.measured import MeasuredSampler
from morphling_ray.space import SearchSpace


class GridSampler(MeasuredSampler):
    """Proposes the whole space in one fixed order. A `Sampler`.

    A row-by-row sweep that is cut short has seen one corner. Here the k-th proposal is the untried candidate nearest to
    the k-th point of a low-discrepancy sequence over the positions of the values (Halton's, see `Levels.spread`), so
    that any prefix is spread over all knobs. Nothing is random, except which part of a very large space is searched.

    Args:
        space: The candidates.
        objective: What to maximise.
        seed: Of the part of a very large space.
        learned: Unused: it takes nothing from earlier tasks.
    """

    def __init__(self, space: SearchSpace, objective: Objective, *, seed: int, learned: object = None) -> None:
        super().__init__(space, objective, np.random.default_rng(seed))
        self._levels = Levels(space.knobs)
        self._swept = 0
        self._table: FloatArray = self._levels.of(self._history.points)  # (candidates, d)

    def _choose(self, free: Sequence[int]) -> int:
        self._swept += 1
        return self._levels.spread(self._table, self._swept - 1, free)
