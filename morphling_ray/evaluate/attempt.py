"""One attempt at measuring a configuration: what is collected on the way, where the time goes; and two compared."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from morphling_ray.evaluate import Progress
from morphling_ray.load.pairs import PairedPeaks
from morphling_ray.measurement import Comparison, Measurement, Probe
from morphling_ray.space import Configuration


class Stopwatch:
    """Where the time of a trial goes, by stage, and who is told about it."""

    def __init__(self, say: Progress, clock: Callable[[], float] = time.monotonic) -> None:
        self.say = say
        self.seconds: dict[str, float] = {}
        self._clock = clock

    @contextmanager
    def stage(self, name: str, text: str | None = None) -> Iterator[None]:
        """Adds what happens inside to the seconds of a stage."""
        self.say(text or name)
        start = self._clock()
        try:
            yield
        finally:
            self.add(name, self._clock() - start)

    def add(self, name: str, seconds: float) -> None:
        """Adds to the seconds of a stage what was spent elsewhere."""
        self.seconds[name] = round(self.seconds.get(name, 0.0) + seconds, 3)


@dataclass
class Attempt:
    """What is to be measured, how, and what was found so far."""

    configuration: Configuration
    watch: Stopwatch
    needed_rps: float | None = None
    confirm: bool = False
    exact: bool = True
    notes: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    probes: list[Probe] = field(default_factory=list)
    seed: int = 0
    late_alone: str = ""
    """How many requests without company were late, where they show that the SLO is missed at any rate."""

    def measurement(self, **found: Any) -> Measurement:
        """What was found, with all that was collected."""
        return Measurement(
            **{"configuration": self.configuration, **found},
            probes=tuple(self.probes),
            timings_s=dict(self.watch.seconds),
            notes=tuple(self.notes),
            details=self.details,
        )


def compared(
    one: Measurement, other: Measurement, found: PairedPeaks, *, first_won: bool
) -> tuple[Measurement, Measurement]:
    """Two measurements that know of each other.

    Args:
        one: Of the first configuration.
        other: Of its rival.
        found: What their comparison showed.
        first_won: Whether the first is the better one, or to be preferred in a tie.
    """
    comparison = Comparison(
        rival=other.configuration,
        ratio=math.exp(found.log_ratio),
        sd=found.sd,
        rounds=found.rounds,
        p_better=found.p_better,
        tie=found.tie,
        won=first_won,
    )
    mirrored = comparison.mirrored(one.configuration)
    return (
        replace(one, comparison=comparison, notes=(*one.notes, _in_words(comparison))),
        replace(other, comparison=mirrored, notes=(*other.notes, _in_words(mirrored))),
    )


def _in_words(comparison: Comparison) -> str:
    seen = f"in {comparison.rounds} rounds" if comparison.rounds else "from one measurement of each"
    verdict = "a tie" if comparison.tie else "better" if comparison.won else "worse"
    spread = comparison.sd * comparison.ratio
    return f"over its rival: {comparison.ratio:.3f} +- {spread:.3f} {seen}; {verdict} by the objective"
