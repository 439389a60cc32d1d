"""Uniformly random configurations without replacement: the baseline that anything must beat."""

from collections.abc import Sequence

import numpy as np

from morphling_ray.objective import Objective
from morphling_ray.search.measured import MeasuredSampler
from morphling_ray.space import SearchSpace


class RandomSampler(MeasuredSampler):
    """Proposes in a random order and recommends the best that was measured. A `Sampler`.

    Args:
        space: The candidates.
        objective: What to maximise.
        seed: Of the order.
        learned: Unused: it takes nothing from earlier tasks.
    """

    def __init__(self, space: SearchSpace, objective: Objective, *, seed: int, learned: None = None) -> None:
        rng = np.random.default_rng(seed)
        super().__init__(space, objective, rng)
        self._order = rng.permutation(self._history.candidates)

    def _choose(self, free: Sequence[int]) -> int:
        untried = set(free)
        return next(int(i) for i in self._order if int(i) in untried)
