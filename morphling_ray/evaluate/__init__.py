"""The seam of the project: `Evaluator.measure(configuration) -> Measurement`.

`replay` looks a configuration up in a recorded surface; `online` serves it and loads it. Everything above the seam is
the same for both.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

from morphling_ray.measurement import Measurement
from morphling_ray.space import Configuration

Progress = Callable[[str], None]
"""Told in a few words what is being done now, for example `probing at 212 rps`."""


class Evaluator(Protocol):
    """Measures configurations, one at a time."""

    def measure(
        self,
        configuration: Configuration,
        *,
        needed: Mapping[str, float] | None = None,
        confirm: bool = False,
        exact: bool = False,
        progress: Progress | None = None,
    ) -> Measurement:
        """Measures one configuration. One that fails is a `Measurement` with a reason, never an exception.

        Args:
            configuration: One value for each knob.
            needed: By metric, what it takes to beat the incumbent. A configuration that is clearly below may be
                rejected early: its measurement then holds bounds instead of a pinned-down value.
            confirm: Measure a finalist again, longer and with fresh arrivals.
            exact: Measure this very configuration. Else the measurement may be of another one that costs nothing more
                to try and serves better; it then tells of this one among its siblings.
            progress: Told what is being done.
        """
        ...

    def compare(
        self,
        configuration: Configuration,
        rival: Configuration,
        *,
        ratio: float = 1.0,
        cheaper: bool = False,
        progress: Progress | None = None,
    ) -> tuple[Measurement, Measurement]:
        """Measures two finalists in turn, until one of them is the better one or they are a tie.

        Args:
            configuration: One of them.
            rival: The other.
            ratio: Its peak over the rival's at which both are equally good.
            cheaper: It costs less, and so wins a tie; else the one that seems better does.
            progress: Told what is being done.

        Returns:
            The measurements of both, each with its `comparison`.
        """
        ...

    def close(self) -> None:
        """Takes down whatever was put up."""
        ...
