"""What every method without a belief of its own shares: bookkeeping, and the best of what was measured.

Such a method only says which candidate comes next (`_choose`). It recommends by measurements alone: the largest
objective of the geometric mean of a configuration's metrics.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from morphling_ray.measurement import Measurement
from morphling_ray.objective import Objective
from morphling_ray.search.history import History, log_moments
from morphling_ray.search.sampler import Recommendation
from morphling_ray.space import Configuration, SearchSpace

_CLEARLY_WORSE = 0.85  # with no model: what 3 % of noise on two measurements cannot turn round


def penalised_value(configuration: Configuration, measurement: Measurement, objective: Objective) -> float:
    """The objective of a measurement, in one number as methods want it that model the objective itself.

    Returns:
        0 where it is infeasible, lacks a metric or breaks a bound. A metric that only an interval is known of counts
        as the middle of it, in logs: a trial that was cut short, since it could not win, did not fail.
    """
    if not measurement.feasible:
        return 0.0
    metrics: dict[str, float] = {}
    for name in objective.metrics:
        value = float(measurement.metrics.get(name, np.nan))
        if name in measurement.bounds:
            moments = log_moments(*measurement.bounds[name])
            value = float(np.exp(moments[0])) if moments is not None else np.nan
        if not (np.isfinite(value) and value > 0):
            return 0.0
        metrics[name] = value
    out = float(np.asarray(objective(configuration, metrics)))
    return out if np.isfinite(out) and out > 0 else 0.0


class MeasuredSampler(ABC):
    """Keeps what was measured and recommends the best of it. A `Sampler`, once `_choose` is there.

    Args:
        space: The candidates.
        objective: What to maximise.
        rng: Draws the part of a very large space that is searched.

    Attributes:
        _history: What was measured, and what is being measured.
        _values: Penalised values of each measurement of a point, points in the order of their first one.
    """

    def __init__(self, space: SearchSpace, objective: Objective, rng: np.random.Generator) -> None:
        self._objective = objective
        self._history = History(space, objective, rng)
        self._values: dict[int, list[float]] = {}

    @abstractmethod
    def _choose(self, free: Sequence[int]) -> int:
        """Which candidate to measure next.

        Args:
            free: Candidates that were neither measured nor are being measured, in order; at least one.
        """

    def suggest(self) -> Configuration | None:
        """See `Sampler`."""
        free = self._history.free()
        if free:
            point = self._choose(free)
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
        point = self._history.point(configuration)
        value = penalised_value(self._history.points[point], measurement, self._objective)
        self._values.setdefault(point, []).append(value)
        self._history.tell(configuration, measurement)

    def foresee(self, configuration: Configuration, measurement: Measurement) -> None:  # noqa: B027
        """See `Sampler`: a method without a belief of its own goes by measurements alone."""

    def recommend(self, among: Sequence[Configuration] | None = None) -> Recommendation | None:
        """See `Sampler`."""
        ranked = self._ranked()
        ranked = [r for r in ranked if among is not None and self._history.points[r[1]] in among] or ranked
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

    def _penalised(self) -> dict[int, float]:
        """Penalised value of every measured point, the mean of its measurements, in the order of the first one."""
        return {point: float(np.mean(values)) for point, values in self._values.items()}
