"""Configurations as positions in the lists of values: what methods work on that think in steps, not in units.

level  position of a value in its knob's list, from 0; a number between two values lies between their positions, one
       beyond the list at its end, and a category that is not listed at -1
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from morphling_ray.space import Configuration, Knob, Value

FloatArray = npt.NDArray[np.float64]

_CORNERS = 8
# Which of three signs a knob follows: the first three freely, the next four their products (a 2^(7-4) design).
_FACTORS = (1, 2, 4, 3, 5, 6, 7)


class Levels:
    """The lists of values of some knobs.

    Args:
        knobs: d of them.

    Attributes:
        sizes: How many values each knob has, shape `(d,)`.
        categorical: Whether distance between values means nothing, shape `(d,)`.
    """

    def __init__(self, knobs: Sequence[Knob]) -> None:
        self._knobs = tuple(knobs)
        self._position = [{value_key(v): i for i, v in enumerate(k.values)} for k in self._knobs]
        self.sizes = np.array([len(k.values) for k in self._knobs])
        self.categorical = np.array([k.kind == "categorical" for k in self._knobs])

    def of(self, configurations: Sequence[Configuration]) -> FloatArray:
        """Levels of configurations, shape `(n, d)`."""
        columns = [[self._level(j, c[knob.name]) for c in configurations] for j, knob in enumerate(self._knobs)]
        return np.array(columns, float).reshape(len(self._knobs), len(configurations)).T

    def _level(self, j: int, value: Value) -> float:
        position, knob = self._position[j].get(value_key(value)), self._knobs[j]
        if position is not None:
            return float(position)
        if knob.kind == "categorical" or isinstance(value, (str, bool)):
            return -1.0
        return float(np.interp(float(value), [float(v) for v in knob.values], np.arange(len(knob.values))))

    def steps(self, levels: FloatArray, origin: FloatArray) -> FloatArray:
        """How far levels lie from an origin along each knob; 1 from one category to any other. Shape `(n, d)`."""
        apart = levels - origin
        return np.where(self.categorical, (apart != 0).astype(float), apart)

    def nearest(self, levels: FloatArray, target: FloatArray, candidates: Sequence[int]) -> int:
        """The candidate that is the fewest steps from a target; of several the first.

        Args:
            levels: Shape `(n, d)`.
            target: Levels, shape `(d,)`.
            candidates: Rows of `levels`.
        """
        rows = np.asarray(candidates, int)
        squared = (self.steps(levels[rows], target) ** 2).sum(1)
        return int(rows[int(squared.argmin())])

    def corners(self, levels: FloatArray) -> list[int]:
        """The candidates nearest to the Morphling paper's 8 corners, each once.

        Each ordinal knob is at its lowest or highest value, categorical ones at their first. With up to three ordinal
        knobs these are all corners there are; beyond, a fractional factorial design.

        Args:
            levels: Of all candidates, shape `(n, d)`.
        """
        ordinal = np.flatnonzero(~self.categorical & (self.sizes > 1))
        out: list[int] = []
        for run in range(_CORNERS):
            corner = np.zeros(len(self.sizes))
            for k, knob in enumerate(ordinal):
                high = (run & _FACTORS[k % len(_FACTORS)]).bit_count() % 2 == 1
                corner[knob] = self.sizes[knob] - 1.0 if high else 0.0
            out.append(self.nearest(levels, corner, range(len(levels))))
        return list(dict.fromkeys(out))

    def spread(self, levels: FloatArray, number: int, candidates: Sequence[int]) -> int:
        """The candidate nearest to one point of a sequence of which every part is evenly spread over the grid.

        The sequence is Halton's (1960), one prime base for each knob, moved by half of every side: its first point is
        the middle. One that adds an irrational step for each knob would not do: where a multiple of that is nearly
        whole, as for two of three knobs with the generalised golden ratio, it keeps missing values of a short list.

        Args:
            levels: Shape `(n, d)`.
            number: Of the point, from 0.
            candidates: Rows of `levels`.
        """
        point = (0.5 + np.array([_mirrored(number, base) for base in _primes(len(self.sizes))])) % 1.0
        return self.nearest(levels, np.floor(point * self.sizes), candidates)


def _mirrored(number: int, base: int) -> float:
    """The digits of a number in a base, mirrored at the point (van der Corput): 6 = 110 in base 2 becomes 0.011."""
    out, weight = 0.0, 1.0
    while number:
        weight /= base
        number, digit = divmod(number, base)
        out += weight * digit
    return out


def _primes(count: int) -> list[int]:
    out: list[int] = []
    number = 2
    while len(out) < count:
        if all(number % prime for prime in out):
            out.append(number)
        number += 1
    return out


def value_key(value: Value) -> tuple[bool, Value]:
    """What tells values apart: True == 1, but they are two values."""
    return isinstance(value, bool), value
