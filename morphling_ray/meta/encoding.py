"""Configurations as vectors, by the names of knobs, so that a prior holds for spaces it was not learned on.

z       encoded configuration, shape (n, d); an ordinal knob is one column, about [0, 1] over the values it was built
        from; a categorical knob is one column per value, 0 or 1 / sqrt(2), so that two values are 1 apart
groups  which knob each column of z belongs to, shape (d,)
extra   the same for what the encoding has never seen: further knobs, further categories; shape (n, e)
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from morphling_ray.space import Configuration, Knob, Value

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_ONE_HOT = 0.5**0.5
_SLACK = 1e-6  # of a range: a value at its end lies inside
_BEYOND = 1.5  # how many ranges outside its own a knob is extrapolated before it is clipped


@dataclass(frozen=True)
class KnobCode:
    """How one knob becomes numbers.

    Attributes:
        name: Name of the knob.
        scale: `log` or `linear` for numbers, `categories` for everything else.
        low: Lowest value, on that scale.
        width: Highest less lowest value, on that scale.
        floor: What a number of 0 counts as on a log scale.
        vocabulary: Keys of the categories.
        reference: The code of the value that stands in where a space lacks the knob.
    """

    name: str
    scale: str
    low: float = 0.0
    width: float = 1.0
    floor: float = 1.0
    vocabulary: tuple[str, ...] = ()
    reference: tuple[float, ...] = ()

    @property
    def columns(self) -> int:
        """How many columns it takes."""
        return len(self.vocabulary) if self.scale == "categories" else 1

    def encode(self, values: Sequence[Value | None]) -> FloatArray:
        """The codes of values, shape `(n, columns)`; the reference where a value is missing or no number."""
        place: dict[tuple[type, Value | None], int] = {}  # few values occur in many rows
        which = [place.setdefault((type(value), value), len(place)) for value in values]
        codes = np.array([self._encode(value) for _, value in place], float).reshape(-1, self.columns)
        return np.asarray(codes[which])

    def _encode(self, value: Value | None) -> Sequence[float]:
        number = _number(value)
        if self.scale == "categories":
            key = _key(value) if value is not None else None
            return self.reference if key is None else [_ONE_HOT * (key == known) for known in self.vocabulary]
        if number is None:
            return self.reference
        level = np.log(max(number, self.floor)) if self.scale == "log" else number
        return [float(np.clip((level - self.low) / self.width, -_BEYOND, 1.0 + _BEYOND))]


def knob_code(knob: Knob, seen: Iterable[Value]) -> KnobCode:
    """The code of a knob, from the values that really occurred.

    Args:
        knob: Says whether its values are ordinal, and on which scale.
        seen: Its value in each row that is learned from, at least one.
    """
    rows = list(seen)
    numbers = [n for n in map(_number, rows) if n is not None]
    if knob.kind == "categorical" or len(numbers) < len(rows):
        vocabulary = tuple(sorted({_key(v) for v in rows}))
        often = max(vocabulary, key=lambda key: sum(_key(v) == key for v in rows))
        reference = tuple(_ONE_HOT if key == often else 0.0 for key in vocabulary)
        return KnobCode(knob.name, "categories", vocabulary=vocabulary, reference=reference)
    positive = [n for n in numbers if n > 0]
    floor = min(positive) / 2 if positive else 1.0
    levels = np.log(np.maximum(numbers, floor)) if knob.scale == "log" else np.array(numbers)
    low, width = float(levels.min()), float(np.ptp(levels)) or 1.0
    reference = (float((np.median(levels) - low) / width),)
    return KnobCode(knob.name, knob.scale, low, width, floor, reference=reference)


class Encoding:
    """The codes of some knobs, in order.

    Args:
        codes: One for each knob.
    """

    def __init__(self, codes: Sequence[KnobCode]) -> None:
        self.codes = tuple(codes)
        self.groups: IntArray = np.repeat(np.arange(len(self.codes)), [c.columns for c in self.codes])

    @classmethod
    def of(cls, knobs: Sequence[Knob], configurations: Sequence[Mapping[str, Value]]) -> "Encoding":
        """The encoding of what was measured. A knob that never varied says nothing about itself and is left out."""
        codes = []
        for knob in knobs:
            seen = [c[knob.name] for c in configurations if knob.name in c]
            if len({_key(value) for _, value in {(type(v), v) for v in seen}}) > 1:  # few values occur in many rows
                codes.append(knob_code(knob, seen))
        return cls(codes)

    @classmethod
    def of_space(cls, knobs: Sequence[Knob]) -> "Encoding":
        """The encoding of a space by its own values."""
        return cls([knob_code(knob, knob.values) for knob in knobs])

    def encode(self, configurations: Sequence[Mapping[str, Value]]) -> FloatArray:
        """Codes of configurations, shape `(n, d)`."""
        parts = [code.encode([c.get(code.name) for c in configurations]) for code in self.codes]
        return np.hstack([np.empty((len(configurations), 0)), *parts])

    def unseen(self, knobs: Sequence[Knob]) -> "Encoding":
        """The encoding of what this one cannot tell apart in a space: unknown knobs, and unknown categories."""
        known = {code.name: code for code in self.codes}
        extra = []
        for knob in knobs:
            code = known.get(knob.name)
            numeric = all(_number(v) is not None for v in knob.values)
            if code is None or (code.scale != "categories" and not numeric):
                if len(knob.values) > 1:
                    extra.append(knob_code(knob, knob.values))
            elif code.scale == "categories":
                fresh = tuple(sorted({_key(v) for v in knob.values} - set(code.vocabulary)))
                if fresh:
                    extra.append(KnobCode(knob.name, "categories", vocabulary=fresh, reference=(0.0,) * len(fresh)))
        return Encoding(extra)

    def beyond(self, knobs: Sequence[Knob]) -> list[str]:
        """What of a space this encoding was not made for, one phrase for each knob."""
        known = {code.name: code for code in self.codes}
        fresh = {code.name: code for code in self.unseen(knobs).codes}
        out = [f"the knob {name}" for name in fresh if name not in known]
        for knob in knobs:
            code = known.get(knob.name)
            if code is None:
                continue
            if knob.name in fresh:
                outside = [v for v in knob.values if _key(v) not in code.vocabulary]
            else:
                levels = [float(code.encode([v])[0, 0]) for v in knob.values] if code.scale != "categories" else []
                outside = [v for v, level in zip(knob.values, levels) if not -_SLACK <= level <= 1.0 + _SLACK]
            if outside:
                out.append(f"{knob.name} {', '.join(map(str, outside))}")
        return out

    def to_list(self) -> list[dict[str, Any]]:
        """A form that `json.dumps` takes and `from_list` reads back."""
        return [asdict(code) for code in self.codes]

    @classmethod
    def from_list(cls, data: Sequence[Mapping[str, Any]]) -> "Encoding":
        """The encoding that `to_list` wrote."""
        return cls(
            [
                KnobCode(**{**d, "vocabulary": tuple(d["vocabulary"]), "reference": tuple(map(float, d["reference"]))})
                for d in data
            ]
        )


def columns_of(configurations: Sequence[Configuration], names: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    """One array per knob, shape `(n,)`: what objectives are evaluated on."""
    return {name: np.array([c[name] for c in configurations]) for name in names}


def _number(value: Value | None) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _key(value: Value) -> str:
    """A text that tells values apart as Python does, except that 8 and 8.0 are one value."""
    number = _number(value)
    return json.dumps(int(number) if number is not None and number.is_integer() else value)
