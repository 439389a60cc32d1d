"""Knobs and the space of configurations that they span.

A configuration is a plain dict from knob name to one of the knob's values. A space is the grid of all of them, less
those that a constraint rules out, in a fixed order: candidates are addressed by their index in it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from morphling_ray.errors import SpaceError
from morphling_ray.expressions import Expression

Value = int | float | str | bool
Configuration = dict[str, Value]

MAX_CONFIGURATIONS = 1_000_000


@dataclass(frozen=True)
class Knob:
    """A named setting with a finite list of values.

    Args:
        name: What the configuration calls it.
        values: The values to choose from, in order; ordinal knobs ascending.
        kind: `ordinal` (numbers with a meaningful distance) or `categorical`.
        scale: Whether ordinal values are compared by difference (`linear`) or by ratio (`log`).

    Raises:
        SpaceError: No value, a value twice, an ordinal value that is no number, or a `log` scale with a negative value.
    """

    name: str
    values: tuple[Value, ...]
    kind: Literal["ordinal", "categorical"] = "ordinal"
    scale: Literal["linear", "log"] = "linear"

    def __post_init__(self) -> None:
        if not self.values:
            raise SpaceError(f"knob {self.name!r} has no values")
        if self.kind not in ("ordinal", "categorical") or self.scale not in ("linear", "log"):
            raise SpaceError(f"knob {self.name!r}: kind is ordinal or categorical, scale is linear or log")
        keys = [(isinstance(v, bool), v) for v in self.values]  # True == 1, but they are two values
        if len(set(keys)) < len(keys):
            raise SpaceError(f"knob {self.name!r} lists a value twice: {list(self.values)}")
        if self.kind == "ordinal":
            if not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in self.values):
                raise SpaceError(f"knob {self.name!r} is ordinal, so its values must be numbers: {list(self.values)}")
            if not all(np.isfinite(float(v)) for v in self.values):
                raise SpaceError(f"knob {self.name!r} has a value that is not finite: {list(self.values)}")
            if self.scale == "log" and min(float(v) for v in self.values) < 0:
                raise SpaceError(f"knob {self.name!r} has a log scale and a negative value: {list(self.values)}")
            if list(self.values) != sorted(self.values, key=float):
                object.__setattr__(self, "values", tuple(sorted(self.values, key=float)))

    @classmethod
    def infer(cls, name: str, values: Sequence[Value]) -> "Knob":
        """A knob known by its values alone: numbers are ordinal, on a log scale where they grow like powers."""
        if not isinstance(values, (list, tuple)):
            raise SpaceError(f"knob {name!r}: expected a list of values, got {values!r}")
        for value in values:
            if not isinstance(value, (int, float, str, bool)):
                raise SpaceError(f"knob {name!r}: a value is a number or a text, got {value!r}")
        numbers = [float(v) for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)]
        if len(numbers) < len(values) or not numbers:
            return cls(name, tuple(values), kind="categorical")
        positive = sorted(v for v in numbers if v > 0)
        grows_like_powers = len(positive) >= 2 and min(numbers) >= 0 and positive[-1] / positive[0] >= 8
        return cls(name, tuple(values), scale="log" if grows_like_powers else "linear")


class SearchSpace:
    """All configurations, in a fixed order.

    Args:
        knobs: The knobs, each name once.
        constraints: Comparisons over knob names; a configuration that breaks one is not in the space.
        configurations: Instead of the full grid, exactly these (a sparse surface). Constraints still apply.

    Raises:
        SpaceError: No knobs, a name twice, an unknown name in a constraint, or nothing left.
    """

    def __init__(
        self,
        knobs: Iterable[Knob],
        constraints: Sequence[str] = (),
        configurations: Iterable[Configuration] | None = None,
    ) -> None:
        self.knobs = tuple(knobs)
        self.constraints = tuple(str(c) for c in constraints)
        names = [k.name for k in self.knobs]
        if not names:
            raise SpaceError("the space is empty: it has no knobs")
        if len(set(names)) < len(names):
            raise SpaceError(f"a knob is named twice: {names}")
        rules = [Expression(c) for c in self.constraints]
        for rule in rules:
            if not rule.is_comparison:
                raise SpaceError(f"constraint {rule.text!r} is not a comparison")
            if unknown := sorted(rule.names - set(names)):
                known = ", ".join(names)
                raise SpaceError(f"constraint {rule.text!r} names {', '.join(unknown)}; the knobs are {known}")
        if configurations is None:
            size = int(np.prod([len(k.values) for k in self.knobs], dtype=float))
            if size > MAX_CONFIGURATIONS:
                raise SpaceError(f"the space has {size:,} configurations; at most {MAX_CONFIGURATIONS:,} are searched")
            configurations = (dict(zip(names, values)) for values in product(*(k.values for k in self.knobs)))
        self.configurations: list[Configuration] = [c for c in configurations if all(bool(rule(c)) for rule in rules)]
        if not self.configurations:
            raise SpaceError(f"the space is empty: no configuration satisfies {' and '.join(self.constraints)}")
        self._index = {self._key(c): i for i, c in enumerate(self.configurations)}

    def _key(self, configuration: Mapping[str, Value]) -> tuple[object, ...]:
        values = [configuration[k.name] for k in self.knobs]
        return tuple(("bool", v) if isinstance(v, bool) else v for v in values)  # True == 1, but they are two values

    def __len__(self) -> int:
        return len(self.configurations)

    def __getitem__(self, index: int) -> Configuration:
        return dict(self.configurations[index])

    def __contains__(self, configuration: Mapping[str, Value]) -> bool:
        try:
            return self._key(configuration) in self._index
        except (KeyError, TypeError):  # TypeError: a list, which no knob has as a value
            return False

    def index(self, configuration: Mapping[str, Value]) -> int:
        """Position of a configuration.

        Raises:
            SpaceError: It is not in the space.
        """
        try:
            return self._index[self._key(configuration)]
        except (KeyError, TypeError):
            raise SpaceError(f"configuration {dict(configuration)} is not in the space") from None

    def knob(self, name: str) -> Knob:
        """The knob of that name (KeyError if there is none)."""
        return {k.name: k for k in self.knobs}[name]

    @cached_property
    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """One array per knob, shape `(n,)`, in the order of the configurations: what expressions are evaluated on."""
        return {k.name: np.array([c[k.name] for c in self.configurations]) for k in self.knobs}

    def to_dict(self) -> dict[str, Any]:
        """Values and constraints, as an experiment file writes them."""
        return {"space": {k.name: list(k.values) for k in self.knobs}, "constraints": list(self.constraints)}
