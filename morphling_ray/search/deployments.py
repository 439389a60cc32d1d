"""Which configurations one deployment tells about, and what a trial of each takes.

A trial may tell of siblings: configurations that differ in settings which change live (Measurement.siblings). The next
deployment is then worth what it and all its siblings may bring, and a configuration of the one that is up takes less
time than one that must be brought up first.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from morphling_ray.measurement import Measurement
from morphling_ray.space import Configuration

_NEW_OVER_LIVE = 2.0  # times as long, as long as trials of both kinds were not seen


class Deployments:
    """Bookkeeping of one search.

    Args:
        knobs: Names of all knobs.
        free_knobs: Those that every trial measures with all their values; else what siblings differ in tells.
    """

    def __init__(self, knobs: Sequence[str], free_knobs: Sequence[str] = ()) -> None:
        self._knobs = tuple(knobs)
        self.free = tuple(free_knobs)
        self._up: tuple[object, ...] | None = None
        self._told: list[Configuration] = []
        self._seconds: dict[bool, list[float]] = {True: [], False: []}  # by whether the deployment was a new one

    def tell(self, measurement: Measurement) -> None:
        """Takes in what was measured."""
        own = measurement.configuration
        if measurement.siblings:
            self.free = tuple(n for n in self._knobs if any(s.configuration[n] != own[n] for s in measurement.siblings))
        self._told.append(own)
        seconds, key = sum(measurement.timings_s.values()), self.key(own)
        if seconds > 0 and measurement.feasible:
            self._seconds[key != self._up].append(seconds)
        self._up = key

    def key(self, configuration: Configuration) -> tuple[object, ...]:
        """What all configurations of one deployment share."""
        return tuple(configuration[name] for name in self._knobs if name not in self.free)

    def number(self, configurations: Sequence[Configuration]) -> npt.NDArray[np.int64]:
        """Number of the deployment of each, shape `(n,)`."""
        numbers: dict[tuple[object, ...], int] = {}
        return np.array([numbers.setdefault(self.key(c), len(numbers)) for c in configurations], np.int64)

    def new(self, configurations: Sequence[Configuration]) -> npt.NDArray[np.bool_]:
        """Whether nothing of its deployment was measured, so that a trial tells of all its siblings, shape `(n,)`."""
        known = {self.key(c) for c in self._told} if self.free else set()
        return np.array([bool(self.free) and self.key(c) not in known for c in configurations], bool)

    def relative_seconds(self, configurations: Sequence[Configuration]) -> npt.NDArray[np.float64]:
        """What a trial of each takes, over one of the deployment that is up, shape `(n,)`."""
        ratio = _NEW_OVER_LIVE
        if all(self._seconds.values()):
            ratio = float(np.median(self._seconds[True]) / np.median(self._seconds[False]))
        up = [bool(self.free) and self.key(c) == self._up for c in configurations]
        return np.where(up, 1.0, ratio)
