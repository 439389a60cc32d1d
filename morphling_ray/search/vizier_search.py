"""Google Vizier's own Gaussian-process designers, and its transfer from earlier studies.

vizier           VizierGPUCBPEBandit, the default algorithm of Vizier's service
vizier-transfer  VizierGPBandit with prior studies: a stack of Gaussian processes, each on the residuals of those below
                 (Golovin et al., KDD 2017, section 3.3), which is the paper's baseline of that name

As in Vizier's service, a designer is made for each suggestion and told all trials; its settings are the library's.
Three things are made fit for a finite space:

* Its acquisition is evaluated on every untried candidate, instead of being climbed by an evolutionary search: the best
  is found exactly, and what is proposed exists and is new.
* A configuration that fails or breaks a bound is an infeasible trial, which the library warps to below the worst value.
* Until something works, and for a first trial without earlier studies, an even sweep (`GridSampler`) takes the place of
  its own start, which likewise begins in the middle of the space.

The paper has 10 training models; as many earlier tasks are drawn, and 60 configurations of each that the new space has.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from morphling_ray.meta.encoding import knob_code
from morphling_ray.objective import Objective
from morphling_ray.search.grid import GridSampler
from morphling_ray.search.levels import FloatArray
from morphling_ray.search.portfolio import TaskShares, learn
from morphling_ray.space import Configuration, SearchSpace

__all__ = ["VizierSampler", "learn"]

_STUDIES = 10
_PRIOR_TRIALS = 60
"""Of each earlier study. Every study takes as long to fit as a suggestion, and all are evaluated in each."""


class VizierSampler(GridSampler):
    """A designer of Google Vizier. A `Sampler`.

    Args:
        space: The candidates.
        objective: What to maximise.
        seed: Of the designer, and of which earlier trials it is told of.
        learned: What `portfolio.learn` returned, or None.
        transfer: Whether to learn from earlier tasks.
    """

    def __init__(
        self,
        space: SearchSpace,
        objective: Objective,
        *,
        seed: int,
        learned: Sequence[TaskShares] | None = None,
        transfer: bool = False,
    ) -> None:
        super().__init__(space, objective, seed=seed)
        self._seed = seed
        self._studies = self._earlier_studies(learned) if transfer and learned else []
        self._begun: dict[int, int] = {}  # point: how many measurements had ended when its own began
        self._prior: Any = None  # what the library fitted to the earlier studies: made when needed, never pickled

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_prior": None}

    def _earlier_studies(self, learned: Sequence[TaskShares]) -> list[tuple[list[int], FloatArray]]:
        """Candidates that were measured in earlier tasks, and their shares: some of some tasks."""
        rng = np.random.default_rng([self._seed, 1])
        candidates = self._history.points[: self._history.candidates]
        out = []
        for t in rng.permutation(len(learned))[:_STUDIES]:
            shares = learned[int(t)].at(candidates)
            known = np.flatnonzero(np.isfinite(shares))
            drawn = np.sort(rng.permutation(known)[:_PRIOR_TRIALS])
            if len(drawn) and shares[drawn].max() > 0:
                out.append(([int(i) for i in drawn], shares[drawn]))
        return out

    def reserve(self, configuration: Configuration) -> None:
        """See `Sampler`."""
        super().reserve(configuration)
        self._begun[self._history.point(configuration)] = self._history.told

    def _choose(self, free: Sequence[int]) -> int:
        points, space = self._history.points, self._history.space
        value = {point: v for point, v in self._penalised().items() if points[point] in space}
        if len(free) == 1 or not (self._studies or any(v > 0 for v in value.values())):
            chosen = super()._choose(free)
        else:
            with warnings.catch_warnings():  # its imports warn of what its libraries will drop one day
                warnings.simplefilter("ignore")
                chosen = self._ask(free, value)
        self._begun[chosen] = self._history.told
        return chosen

    def _ask(self, free: Sequence[int], value: dict[int, float]) -> int:
        """The designer's choice among the untried candidates, given the values of measured ones."""
        from morphling_ray.search.vizier_designers import Scene

        scene = Scene(self._codes(), self._seed)
        if self._studies:
            if self._prior is None:
                self._prior = scene.fit_prior(self._studies)
            return scene.best_with_prior(free, value, self._prior)
        points, space = self._history.points, self._history.space
        waiting = [p for p in dict.fromkeys(self._history.pending) if p not in value and points[p] in space]
        return scene.best(free, value, {p: self._begun[p] for p in waiting})

    def _codes(self) -> list[list[float | str]]:
        """Every point: numbers in [0, 1] on the scale of their knob, and categories by their position."""
        columns: list[list[float | str]] = []
        for knob in self._history.space.knobs:
            values = [c[knob.name] for c in self._history.points]
            if knob.kind == "categorical":
                columns.append([str(value) for value in values])
            else:
                columns.append([float(z) for z in knob_code(knob, knob.values).encode(values)[:, 0]])
        return [list(row) for row in zip(*columns)]
