"""The offline side of the seam: configurations are looked up in a recorded surface, and time is simulated."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from morphling_ray.errors import InputError
from morphling_ray.evaluate import Progress
from morphling_ray.evaluate.attempt import compared
from morphling_ray.load.pairs import unpaired
from morphling_ray.measurement import Measurement
from morphling_ray.objective import Objective
from morphling_ray.space import Configuration
from morphling_ray.surface import Surface


@dataclass
class SimulatedClock:
    """A clock that only moves when it is told to.

    Attributes:
        now_s: Seconds since it was made.
    """

    now_s: float = 0.0

    def advance(self, seconds: float) -> None:
        """Lets time pass.

        Raises:
            ValueError: `seconds` is negative.
        """
        if not seconds >= 0:
            raise ValueError(f"time runs forward: seconds must be at least 0, got {seconds}")
        self.now_s += seconds


class ReplayEvaluator:
    """Answers from a recorded surface, with the noise that a real measurement would have. An `Evaluator`.

    The noise of a measurement depends on the seed, the configuration and how often that was measured before, so two
    searches that visit the same configurations in another order are told the same numbers.

    Args:
        surface: What was recorded.
        objective: What the search maximises; `truth` applies it to the recorded metrics.
        noise: Standard deviation of the logarithm of each metric's multiplicative noise (0.03 is about 3 %).
        seed: Of the noise, at least 0.
        clock: Advanced by each measurement; a clock of its own if None.
        trial_s: Simulated seconds that a measurement takes.

    Raises:
        InputError: `noise`, `seed` or `trial_s` is negative or not finite.
    """

    def __init__(
        self,
        surface: Surface,
        objective: Objective,
        *,
        noise: float = 0.0,
        seed: int,
        clock: SimulatedClock | None = None,
        trial_s: float = 0.0,
    ) -> None:
        for name, value in {"noise": noise, "seed": seed, "trial_s": trial_s}.items():
            if not (np.isfinite(value) and value >= 0):
                raise InputError(f"{name} must be at least 0, got {value}")
        self.surface = surface
        self.objective = objective
        self.clock = SimulatedClock() if clock is None else clock
        self._noise = noise
        self._seed = seed
        self._trial_s = trial_s
        self._times_measured: Counter[int] = Counter()

    def measure(
        self,
        configuration: Configuration,
        *,
        needed: Mapping[str, float] | None = None,
        confirm: bool = False,
        exact: bool = True,
        progress: Progress | None = None,
    ) -> Measurement:
        """Looks a configuration up; see `Evaluator.measure`. Nothing is rejected early: a row has all its metrics.

        Raises:
            SpaceError: The configuration is not one of the surface's candidates.
        """
        index = self.surface.space.index(configuration)
        if progress is not None:
            progress("replaying")
        repeat = self._times_measured[index]
        self._times_measured[index] += 1
        self.clock.advance(self._trial_s)
        timings_s = {"replay": self._trial_s}
        if not self.surface.feasible[index]:
            reason = "recorded as infeasible"
            return Measurement(configuration=dict(configuration), infeasible_because=reason, timings_s=timings_s)
        names = sorted(self.surface.metrics)  # not the order of a file, which must not change the noise
        normal = np.random.default_rng([self._seed, index, repeat]).standard_normal(len(names))
        metrics = {
            name: float(self.surface.metrics[name][index] * np.exp(self._noise * z)) for name, z in zip(names, normal)
        }
        return Measurement(configuration=dict(configuration), metrics=metrics, timings_s=timings_s)

    def compare(
        self,
        configuration: Configuration,
        rival: Configuration,
        *,
        ratio: float = 1.0,
        cheaper: bool = False,
        progress: Progress | None = None,
    ) -> tuple[Measurement, Measurement]:
        """Looks both up once more; the objective itself decides, whatever `ratio` is. See `Evaluator`."""
        one, other = self.measure(configuration, progress=progress), self.measure(rival, progress=progress)
        values = [self._value(m) for m in (one, other)]
        if not any(values):
            return one, other
        found = unpaired(*values, sd=max(self._noise, 1e-6))
        return compared(one, other, found, first_won=found.first_wins(cheaper))

    def _value(self, measurement: Measurement) -> float:
        if not measurement.feasible:
            return 0.0
        return float(np.asarray(self.objective(measurement.configuration, measurement.metrics)))

    def truth(self, configuration: Configuration) -> float:
        """The objective without noise, 0 where infeasible: what regret is computed from.

        Raises:
            SpaceError: The configuration is not one of the surface's candidates.
        """
        index = self.surface.space.index(configuration)
        if not self.surface.feasible[index]:
            return 0.0
        columns = {name: values[index] for name, values in self.surface.columns.items()}
        return float(self.objective(columns, {name: values[index] for name, values in self.surface.metrics.items()}))

    def close(self) -> None:
        """There is nothing to take down."""
