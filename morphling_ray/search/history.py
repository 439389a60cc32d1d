"""What has been measured, in the form that samplers compute with: points, log-values, outcomes.

A candidate is a row of `points`: the space (or a drawn part of a very large one), then whatever else was measured.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from morphling_ray.measurement import Measurement
from morphling_ray.meta.encoding import columns_of
from morphling_ray.meta.gaussian import Observations
from morphling_ray.objective import Objective
from morphling_ray.space import Configuration, SearchSpace

FloatArray = npt.NDArray[np.float64]

NOISE_SD = 0.03  # of one measurement of a log-metric, where the measurement does not say itself
MAX_POINTS = 20_000  # of a larger space a drawn part is searched: a model of all of it would take seconds a proposal
_OPEN_WIDTH = 3.0  # an interval with one end open is taken to be this factor wide


def log_moments(low: float, high: float | None) -> tuple[float, float] | None:
    """Mean and standard deviation of a log-metric that lies in an interval, uniform in log.

    Args:
        low: 0 where only `high` is known.
        high: None where only `low` is known.

    Returns:
        None where the interval says nothing, or is none.
    """
    if high is None or not np.isfinite(high):
        if not (np.isfinite(low) and low > 0):
            return None
        high = low * _OPEN_WIDTH
    elif not low > 0:
        low = high / _OPEN_WIDTH
    if not 0 < low <= high:
        return None
    return float(np.log(low) + np.log(high)) / 2, float(np.log(high / low) / np.sqrt(12.0))


def pinned(measurement: Measurement, metrics: Sequence[str]) -> dict[str, float]:
    """Those of the metrics that have a positive value and were not merely shown to lie below something."""
    out = {}
    for name in metrics if measurement.feasible else ():
        value = measurement.metrics.get(name)
        below = measurement.bounds.get(name, (0.0, None))[1]
        if value is not None and np.isfinite(value) and value > 0 and below is None:
            out[name] = float(value)
    return out


class History:
    """Everything that a sampler was told.

    Args:
        space: The candidates.
        objective: Decides which metrics count.
        rng: Draws the part of a very large space that is searched.
    """

    def __init__(self, space: SearchSpace, objective: Objective, rng: np.random.Generator) -> None:
        self.space = space
        self.objective = objective
        rows = np.arange(len(space))
        if len(space) > MAX_POINTS:
            rows = np.sort(rng.choice(len(space), MAX_POINTS, replace=False))
        self.points: list[Configuration] = [space[int(i)] for i in rows]
        self.candidates = len(self.points)
        self.pending: list[int] = []
        self.told = 0  # how many measurements: what was computed from them holds until the next
        self._names = [knob.name for knob in space.knobs]
        self._position = {self._key(c): i for i, c in enumerate(self.points)}
        self._columns: dict[str, npt.NDArray[Any]] | None = None
        self._outcomes: dict[int, list[bool]] = {}
        self._values: dict[int, list[tuple[int, float, float]]] = {}  # point: (metric, log value, variance)
        self._measured: dict[int, list[dict[str, float]]] = {}  # point: pinned-down metrics of each measurement
        self._objectives: dict[int, float] = {}  # of them, as far as they were asked for

    def _key(self, configuration: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(configuration[name] for name in self._names)

    def point(self, configuration: Configuration) -> int:
        """Row of a configuration; one that is not among the points is added to them.

        Raises:
            KeyError: It lacks a knob.
        """
        key = self._key(configuration)
        if key not in self._position:
            self._position[key] = len(self.points)
            self.points.append({name: configuration[name] for name in self._names})
        return self._position[key]

    def reserve(self, point: int) -> None:
        """Marks a point as being measured."""
        self.pending.append(point)

    def tell(self, configuration: Configuration, measurement: Measurement) -> None:
        """Takes in a measurement."""
        self.told += 1
        point = self.point(configuration)
        if point in self.pending:
            self.pending.remove(point)
        self._outcomes.setdefault(point, [])
        if not measurement.feasible:
            self._outcomes[point].append(False)
            return
        known = pinned(measurement, self.objective.metrics)
        values = self._log_values(measurement, known)
        if values:  # a measurement of nothing does not even show that it works
            self._outcomes[point].append(True)
            self._values.setdefault(point, []).extend(values)
        if len(known) == len(self.objective.metrics):
            self._measured.setdefault(point, []).append(known)
            self._objectives.pop(point, None)

    def foresee(self, configuration: Configuration, measurement: Measurement) -> None:
        """Takes in what another measurement tells of a configuration: it stays free, unless it is told to fail."""
        self.told += 1
        point = self.point(configuration)
        if not measurement.feasible:
            self._outcomes.setdefault(point, []).append(False)
        else:
            self._values.setdefault(point, []).extend(self._log_values(measurement, {}))

    def _log_values(self, measurement: Measurement, known: Mapping[str, float]) -> list[tuple[int, float, float]]:
        """Number, log value and variance of each metric that is known, be it within bounds."""
        values: list[tuple[int, float, float]] = []
        for m, name in enumerate(self.objective.metrics):
            noise_sd = measurement.noise_sd.get(name, NOISE_SD)
            if name in measurement.bounds:
                moments = log_moments(*measurement.bounds[name])
                if moments is not None:
                    values.append((m, moments[0], moments[1] ** 2 + noise_sd**2))
            elif name in known:
                values.append((m, float(np.log(known[name])), noise_sd**2))
        return values

    @property
    def used(self) -> set[int]:
        """Points that were measured or are being measured."""
        return {*self._outcomes, *self.pending}

    @property
    def foreseen(self) -> set[int]:
        """Points of which something is known, be it from the measurement of another one."""
        return set(self._values)

    def free(self) -> list[int]:
        """Candidates that were neither measured nor are being measured, in order."""
        used = self.used
        return [i for i in range(self.candidates) if i not in used]

    def fresh(self) -> Configuration | None:
        """A configuration of the space outside the drawn part that was not used, or None."""
        if self.candidates < len(self.space):
            for configuration in self.space.configurations:
                if self._key(configuration) not in self._position:
                    return dict(configuration)
        return None

    @property
    def outcomes(self) -> tuple[list[int], list[bool]]:
        """Points whose outcome is known, and whether each worked more often than it failed."""
        known = {point: 2 * sum(o) > len(o) for point, o in self._outcomes.items() if o}
        return list(known), list(known.values())

    @property
    def contenders(self) -> list[int]:
        """Points that work and were measured with every metric of the objective, in the order of measurement."""
        failed = {point for point, works in zip(*self.outcomes) if not works}
        return [point for point in self._measured if point not in failed]

    def observations(self) -> Observations:
        """All values, repeats pooled by their precision."""
        rows: list[tuple[int, int, float, float]] = []
        for point, values in self._values.items():
            for m in sorted({v[0] for v in values}):
                precision = np.array([1.0 / v[2] for v in values if v[0] == m])
                mean = float(precision @ np.array([v[1] for v in values if v[0] == m]) / precision.sum())
                rows.append((point, m, mean, float(1.0 / precision.sum())))
        return _observations(rows)

    def measured_objective(self, point: int) -> float:
        """Objective of a contender, from the geometric mean of its measurements."""
        if point not in self._objectives:
            each = self._measured[point]
            metrics = {m: float(np.exp(np.mean([np.log(e[m]) for e in each]))) for m in self.objective.metrics}
            self._objectives[point] = float(np.asarray(self.objective(self.points[point], metrics)))
        return self._objectives[point]

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """Knob values of all points, as objectives take them."""
        if self._columns is None or len(self._columns[self._names[0]]) < len(self.points):
            self._columns = columns_of(self.points, self._names)
        return self._columns


def _observations(rows: Sequence[tuple[int, int, float, float]]) -> Observations:
    table = np.array(rows, float).reshape(-1, 4)
    return Observations(table[:, 0].astype(np.int64), table[:, 1].astype(np.int64), table[:, 2], table[:, 3])
