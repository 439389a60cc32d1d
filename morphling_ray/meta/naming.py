"""The knobs of a space by the names, and in the units, that a prior knows them by.

A prior goes by names. A knob that is written as a place in a Serve config (`deployments.Model.cpu_cores`) is known by
the last part of it where no other knob of the space ends alike, and seconds are known as milliseconds or the other way
round (`batch_wait_timeout_s`, as Serve has it, and `batch_wait_timeout_ms`).
"""

from collections import Counter
from collections.abc import Collection, Sequence

from morphling_ray.space import Configuration, Knob, Value

_UNITS = (("_s", "_ms", 1e3), ("_ms", "_s", 1e-3))
_DIGITS = 15  # significant ones: 0.0029 s is 2.9 ms, not a rounding error more, and small values stay apart


def known_as(knobs: Sequence[Knob], known: Collection[str]) -> dict[str, tuple[str, float]]:
    """What knobs are known as, where that is not as they are called: the name, and what to multiply values by.

    Args:
        knobs: Of a space.
        known: Names that the prior knows.
    """
    found = {}
    for knob in knobs:
        last = knob.name.rpartition(".")[2]
        names = [(last, 1.0)]
        if knob.kind == "ordinal":
            names += [(last.removesuffix(a) + b, factor) for a, b, factor in _UNITS if last.endswith(a)]
        fits = [(name, factor) for name, factor in names if name in known]
        if knob.name not in known and fits:
            found[knob.name] = fits[0]
    taken = Counter([*(name for name, _ in found.values()), *(knob.name for knob in knobs)])
    return {own: (name, factor) for own, (name, factor) in found.items() if taken[name] == 1}


def translated(
    knobs: Sequence[Knob], configurations: Sequence[Configuration], known: Collection[str]
) -> tuple[list[Knob], list[Configuration]]:
    """Knobs and configurations as a prior knows them; what it does not know stays as it is."""
    names = known_as(knobs, known)
    if not names:
        return list(knobs), list(configurations)

    def entry(name: str, value: Value) -> tuple[str, Value]:
        other, factor = names.get(name, (name, 1.0))
        if factor == 1.0 or not isinstance(value, (int, float)):  # what was measured elsewhere may be no number
            return other, value
        return other, float(f"{value * factor:.{_DIGITS}g}")

    renamed = []
    for knob in knobs:
        entries = [entry(knob.name, value) for value in knob.values]
        renamed.append(Knob(entries[0][0], tuple(value for _, value in entries), knob.kind, knob.scale))
    return renamed, [dict(entry(name, value) for name, value in c.items()) for c in configurations]
