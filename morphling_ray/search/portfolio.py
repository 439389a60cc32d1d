"""The static portfolio: a list of configurations that between them suit the earlier tasks, made before the search.

share   value of a configuration on an earlier task as a share of the best of that task; 0 where it failed
list    greedy: each entry adds most to the mean over earlier tasks of the best share so far; when nothing adds
        anything, the rest by mean share
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from morphling_ray.errors import InputError
from morphling_ray.meta.tasks import TrainingTask
from morphling_ray.objective import Objective
from morphling_ray.search.grid import GridSampler
from morphling_ray.search.levels import value_key
from morphling_ray.space import Configuration, SearchSpace, Value

FloatArray = npt.NDArray[np.float64]

_SHRINKAGE = 1.0  # tasks' worth of the average candidate in what is believed of one that few tasks measured
_NO_GAIN = 1e-9


@dataclass(frozen=True, eq=False)
class TaskShares:
    """What one earlier task says.

    Attributes:
        names: Its knobs.
        configurations: Values of these, n of them.
        shares: Of the best of them, shape `(n,)`.
    """

    names: tuple[str, ...]
    configurations: tuple[tuple[Value, ...], ...]
    shares: FloatArray

    def at(self, candidates: Sequence[Configuration]) -> FloatArray:
        """Shares of candidates of another space, shape `(len(candidates),)`; NaN where nothing is known.

        Configurations are compared by the knobs that both have. What differs in others only is averaged here: the
        candidates do not say which of them they are.
        """
        names = [name for name in self.names if name in candidates[0]]
        if not names:
            return np.full(len(candidates), np.nan)
        columns = [self.names.index(name) for name in names]
        known: dict[tuple[Any, ...], list[float]] = {}
        for values, share in zip(self.configurations, self.shares):
            known.setdefault(tuple(value_key(values[j]) for j in columns), []).append(float(share))
        mean = {key: float(np.mean(shares)) for key, shares in known.items()}
        return np.array([mean.get(tuple(value_key(c[name]) for name in names), np.nan) for c in candidates])


def learn(tasks: Sequence[TrainingTask], objective: Objective, seed: int) -> tuple[TaskShares, ...]:
    """What the earlier tasks say; those that the objective cannot be computed for, or where nothing works, say nothing.

    Args:
        tasks: The earlier tasks.
        objective: Of the search.
        seed: Unused: nothing is random.
    """
    out = []
    for task in tasks:
        try:
            values = task.values(objective)
        except (InputError, KeyError):  # it needs a knob that the task did not have, or a price that is not known
            continue
        if values is None or not len(values) or not values.max() > 0:
            continue
        names = tuple(knob.name for knob in task.knobs)
        rows = tuple(tuple(c[name] for name in names) for c in task.configurations)
        out.append(TaskShares(names, rows, values / values.max()))
    return tuple(out)


def greedy(shares: FloatArray) -> list[int]:
    """Candidates in the order of the portfolio.

    Where a task did not measure a candidate, that task has no say about it; the mean over those that did is drawn
    towards the average candidate, as if one more task had found it average, lest one lucky task decide.

    Args:
        shares: T tasks by n candidates, NaN where unknown.
    """
    known = np.isfinite(shares)
    filled = np.where(known, shares, 0.0)
    order: list[int] = []
    best = np.zeros(len(shares))  # of each task so far
    left = np.ones(shares.shape[1], bool)
    while left.any():
        gains = np.where(known, np.maximum(filled - best[:, None], 0.0), 0.0)
        total = gains.sum(0)
        if total[left].max() <= _NO_GAIN:
            break
        score = np.where(left & (total > _NO_GAIN), _shrunk(total, known), -1.0)
        order.append(int(score.argmax()))
        left[order[-1]] = False
        best = np.maximum(best, filled[:, order[-1]])
    rest = np.flatnonzero(left)
    mean = _shrunk(filled.sum(0), known)
    return order + [int(i) for i in rest[np.argsort(-mean[rest], kind="stable")]]


def _shrunk(total: FloatArray, known: npt.NDArray[np.bool_]) -> FloatArray:
    """Means over the tasks that know a candidate, from their totals, drawn towards the mean over all; shape `(n,)`."""
    average = total.sum() / max(known.sum(), 1)
    return np.asarray((total + _SHRINKAGE * average) / (known.sum(0) + _SHRINKAGE))


class PortfolioSampler(GridSampler):
    """Proposes the list, whatever is measured meanwhile. A `Sampler`. Without earlier tasks it sweeps the grid.

    Args:
        space: The candidates. The list is made of these, whichever knobs and values the earlier tasks had.
        objective: What to maximise.
        seed: Of the part of a very large space.
        learned: What `learn` returned, or None.
    """

    def __init__(
        self, space: SearchSpace, objective: Objective, *, seed: int, learned: Sequence[TaskShares] | None = None
    ) -> None:
        super().__init__(space, objective, seed=seed)
        points = self._history.points[: self._history.candidates]
        table = np.array([task.at(points) for task in learned or ()]).reshape(-1, len(points))
        table = table[np.isfinite(table).any(1)]
        self._order = greedy(table) if len(table) else []

    def _choose(self, free: Sequence[int]) -> int:
        untried = set(free)
        listed = next((i for i in self._order if i in untried), None)
        return listed if listed is not None else super()._choose(free)
