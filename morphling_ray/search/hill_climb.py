"""Hill climbing over the grid, after the quick search of Triton Model Analyzer.

The original (its documentation of the quick search mode and its neighbourhood of coordinates) has one coordinate for
each dimension, the position in a list of values. From a home, at first the lowest corner:

1. Measure neighbours within 3 steps until three are known, each time the one with the most values that no neighbour
   has had yet.
2. In each dimension sum the relative gains of the neighbours over the home, signed by their side, and divide by the
   steps that they are away. More than 9 %, 30 %, 100 % a step: go 1, 2, 3 steps that way. That is the new home.
3. Slow mode, where some neighbours meet the constraints and others do not: measure every adjacent coordinate and go to
   the best.
4. A home that fails after one that worked: step back towards the best so far, in slow mode.
5. It ends when the home stays where it is, or was home before.

It differs here in what a finite space with named knobs, and a budget that is to be used up, call for:

* A categorical knob has no sides: every other category is one step away, and of those that gain more than 9 % the best
  is gone to. A step into what the space does not hold ends at the nearest configuration that it does.
* How far a failing configuration is from meeting a bound is not known: it counts as 0. From a home that fails it moves
  to the best neighbour that is known, and restarts if none works.
* It does not end. Where the original would, it climbs on in slow mode from the best so far if that has neighbours yet
  to be measured, and else restarts from the next point of an even sweep (see `GridSampler`).
* A step back leads to the best itself, not to the neighbour nearest to it.
* The original's default configuration and its last sweep over request concurrency have no counterpart.
"""

from collections.abc import Sequence

import numpy as np

from morphling_ray.objective import Objective
from morphling_ray.search.grid import GridSampler
from morphling_ray.search.levels import FloatArray
from morphling_ray.space import SearchSpace

_RADIUS = 3.0
_NEIGHBOURS = 3  # known ones that a step is computed from
_GAINS = (0.09, 0.3, 1.0)  # a step along one knob above which 1, 2, 3 positions are gone


class HillClimbSampler(GridSampler):
    """Climbs from the lowest corner. A `Sampler`.

    Args:
        space: The candidates.
        objective: What to maximise.
        seed: Of the part of a very large space.
        learned: Unused: it takes nothing from earlier tasks.
    """

    def __init__(self, space: SearchSpace, objective: Objective, *, seed: int, learned: None = None) -> None:
        super().__init__(space, objective, seed=seed)
        candidates = range(self._history.candidates)
        self._home = self._levels.nearest(self._table, np.zeros(len(space.knobs)), candidates)
        self._homes = {self._home}  # all so far: one that comes round again goes in circles
        self._slow = False
        self._has_worked = False

    def _choose(self, free: Sequence[int]) -> int:
        untried, value = set(free), self._penalised()
        while self._home not in untried:
            if self._home in value:
                self._step_back(value)
            near = self._adjacent() if self._is_slow(value) else self._neighbours()
            known = [i for i in near if i in value]
            slow = self._is_slow(value)
            wanted = len(near) if slow else min(_NEIGHBOURS, len(near))
            if len(known) < wanted and (ahead := [i for i in near if i in untried]):
                return ahead[0] if slow else self._most_new(ahead, known)
            self._move(self._next_home(known, value, slow=slow), value, untried)
        return self._home

    def _step_back(self, value: dict[int, float]) -> None:
        """Leaves a home that failed for the best so far, if that works."""
        best = self._best(value)
        if value[self._home] > 0:
            self._has_worked = True
        elif self._has_worked and best is not None:
            self._home, self._slow = best, True

    def _move(self, home: int, value: dict[int, float], untried: set[int]) -> None:
        """Goes to a new home; where there is none, to the best so far, and when that is done with, elsewhere."""
        if home not in self._homes:
            self._home, self._slow = home, False
        else:
            best = self._best(value)
            if best is not None and untried & set(self._around(best, adjacent=True)):
                self._home, self._slow = best, True
            else:
                self._home, self._slow, self._has_worked = super()._choose(sorted(untried)), False, False
        self._homes.add(self._home)

    def _best(self, value: dict[int, float]) -> int | None:
        """The best candidate so far, or None while none works."""
        works = [i for i, v in value.items() if v > 0 and i < len(self._table)]
        return max(works, key=lambda i: value[i], default=None)

    def _next_home(self, known: Sequence[int], value: dict[int, float], *, slow: bool) -> int:
        """Where to go from here, by the neighbours that are known."""
        here = value.get(self._home, 0.0)
        if slow or not here > 0:
            return max([self._home, *known], key=lambda i: value.get(i, 0.0))
        steps = self._levels.steps(self._table[known], self._table[self._home])  # (k, d)
        there = np.array([value[i] for i in known])
        gain = 2.0 * (there - here) / (there + here)  # relative to the mean of both, so in [-2, 2]
        away = np.abs(steps).sum(0)
        slope = (np.sign(steps) * gain[:, None]).sum(0) / np.where(away > 0, away, 1.0)
        length = np.searchsorted(_GAINS, np.abs(slope), side="left")  # positions to go
        target = self._table[self._home] + np.sign(slope) * length
        for j in np.flatnonzero(self._levels.categorical):
            target[j] = self._best_category(int(j), known, gain)
        target = np.clip(target, 0.0, self._levels.sizes - 1.0)
        return self._levels.nearest(self._table, target, range(len(self._table)))

    def _best_category(self, knob: int, known: Sequence[int], gain: FloatArray) -> float:
        """The category with the largest mean gain, or that of the home if none gains enough."""
        home = float(self._table[self._home, knob])
        categories = self._table[known, knob]
        mean = {float(c): float(gain[categories == c].mean()) for c in np.unique(categories) if c != home}
        best = max(mean, key=lambda c: mean[c], default=home)
        return best if mean.get(best, 0.0) > _GAINS[0] else home

    def _is_slow(self, value: dict[int, float]) -> bool:
        """Whether to go carefully: neighbours that work and neighbours that do not are both about."""
        works = {value[i] > 0 for i in (self._home, *self._neighbours()) if i in value}
        return self._slow or len(works) == 2

    def _neighbours(self) -> list[int]:
        return self._around(self._home, adjacent=False)

    def _adjacent(self) -> list[int]:
        return self._around(self._home, adjacent=True)

    def _around(self, home: int, *, adjacent: bool) -> list[int]:
        """Candidates within the radius, nearest first; or only the nearest, which are one step away in a full grid."""
        distance = np.sqrt((self._levels.steps(self._table, self._table[home]) ** 2).sum(1))
        distance[home] = np.inf
        radius = max(1.0, float(distance.min())) if adjacent else _RADIUS
        order = np.argsort(distance, kind="stable")
        return [int(i) for i in order[: int((distance <= radius).sum())]]

    def _most_new(self, ahead: Sequence[int], known: Sequence[int]) -> int:
        """Of the neighbours ahead the one with the most values that no known one has; of several the nearest."""
        seen = self._table[[self._home, *known]]
        new = [(~(self._table[i] == seen).any(0)).sum() for i in ahead]
        return int(ahead[int(np.argmax(new))])
