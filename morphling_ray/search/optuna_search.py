"""Optuna as a good user of it runs it: a study with a sampler at the library's defaults, asked and told.

* The objective is the penalised one: 0 where a configuration fails, lacks a metric or breaks a bound.
* An ordinal knob is an integer, the position of the value in its list: what a user writes as `suggest_int` over the
  exponents of a batch size, or with a step over a percentage. A categorical knob is a categorical choice.
* The library may propose what it proposed before, or what a constraint rules out. It is then told what is known, as
  its documentation advises, and asked again: the value that was measured, or 0 for what is not in the space. After
  some such proposals the untried candidate nearest to the last one is taken.
* A configuration outside the space cannot be told to the study; it is only recommended if it is the best.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from morphling_ray.measurement import Measurement
from morphling_ray.objective import Objective
from morphling_ray.search.levels import Levels
from morphling_ray.search.measured import MeasuredSampler
from morphling_ray.space import Configuration, SearchSpace

_PROPOSALS = 5  # how often the library is asked before the nearest untried candidate is taken


class OptunaSampler(MeasuredSampler):
    """A study of Optuna. A `Sampler`.

    Args:
        space: The candidates.
        objective: What to maximise.
        seed: Of the library's sampler.
        learned: Unused: it takes nothing from earlier tasks.
        algorithm: Name of a class of `optuna.samplers`.
    """

    def __init__(
        self,
        space: SearchSpace,
        objective: Objective,
        *,
        seed: int,
        learned: None = None,
        algorithm: str = "TPESampler",
    ) -> None:
        import optuna

        super().__init__(space, objective, np.random.default_rng(seed))
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._levels = Levels(space.knobs)
        self._space: dict[str, Any] = {
            knob.name: optuna.distributions.CategoricalDistribution(range(len(knob.values)))
            if knob.kind == "categorical"
            else optuna.distributions.IntDistribution(0, len(knob.values) - 1)
            for knob in space.knobs
        }
        sampler = getattr(optuna.samplers, algorithm)(seed=seed)
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        self._running: dict[int, int] = {}  # point that is being measured: number of its trial

    def _choose(self, free: Sequence[int]) -> int:
        used, known, history = self._history.used, self._penalised(), self._history
        position: list[int] = []
        for _ in range(_PROPOSALS):
            trial = self._study.ask(self._space)
            position = [int(trial.params[name]) for name in self._space]
            proposed = {knob.name: knob.values[i] for knob, i in zip(history.space.knobs, position)}
            point = history.point(proposed) if proposed in history.space else None
            if point is not None and point not in used:
                self._running[point] = trial.number
                return point
            self._drop(trial.number)
            if point is None:
                self._tell(position, 0.0)
            elif point in known:
                self._tell(position, known[point])
        return self._levels.nearest(self._levels.of(history.points), np.array(position, float), free)

    def observe(self, configuration: Configuration, measurement: Measurement) -> None:
        """See `Sampler`."""
        super().observe(configuration, measurement)
        point = self._history.point(configuration)
        if point in self._running:
            self._drop(self._running.pop(point))
        if configuration in self._history.space:
            position = [int(i) for i in self._levels.of([self._history.points[point]])[0]]
            self._tell(position, self._values[point][-1])

    def _tell(self, position: Sequence[int], value: float) -> None:
        """Adds a trial with the values at these positions."""
        import optuna

        params = dict(zip(self._space, position))
        self._study.add_trial(optuna.trial.create_trial(params=params, distributions=self._space, value=value))

    def _drop(self, number: int) -> None:
        """Ends a trial that the study asked for; what it stands for is told as one of its own."""
        import optuna

        self._study.tell(number, state=optuna.trial.TrialState.FAIL)
