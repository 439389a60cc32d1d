"""Made-up serving tasks with known optima: a batching model on a number of cores, in one of three builds."""

from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt

from morphling_ray.measurement import Measurement
from morphling_ray.meta.fit import fit_prior
from morphling_ray.meta.prior import Prior
from morphling_ray.meta.tasks import TrainingTask
from morphling_ray.objective import ExpressionObjective
from morphling_ray.space import Configuration, Knob, SearchSpace

FloatArray = npt.NDArray[np.float64]

KNOBS = (
    Knob("batch", (1, 2, 4, 8, 16, 32), scale="log"),
    Knob("cores", (1, 2, 4, 8), scale="log"),
    Knob("build", ("slow", "fast", "lean"), kind="categorical"),
)
SPACE = SearchSpace(KNOBS)
OBJECTIVE = ExpressionObjective(
    "value", "rps / cost", ["latency_ms <= 100"], metrics=("rps", "latency_ms"), cost="0.5 + cores"
)


class Task:
    """One made-up model: how long a batch takes by its size and the cores, and what fits into memory."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng([7, seed])
        self.name = f"task-{seed}"
        self._fixed_ms, self._item_ms = np.exp(rng.normal(np.log([12.0, 3.0]), 0.5))
        self._scaling = rng.uniform(0.4, 0.95)
        self._best_cores = rng.choice([4.0, 6.0, 8.0])
        self._build = {"slow": 1.6, "fast": 1.0, "lean": float(rng.uniform(0.7, 1.3))}
        self._memory = int(rng.choice([16, 32, 32]))

    def latency_ms(self, configuration: Configuration) -> float:
        batch, cores = float(configuration["batch"]), min(float(configuration["cores"]), self._best_cores)
        item = self._item_ms * cores**-self._scaling
        return float((self._fixed_ms + item * batch) * self._build.get(str(configuration.get("build")), 1.0))

    def feasible(self, configuration: Configuration) -> bool:
        return bool(float(configuration["batch"]) <= self._memory)

    def measure(self, configuration: Configuration, noise: FloatArray | None = None) -> Measurement:
        if not self.feasible(configuration):
            return Measurement(configuration=configuration, infeasible_because="out of memory")
        latency = self.latency_ms(configuration)
        metrics = {"rps": 1e3 * float(configuration["batch"]) / latency, "latency_ms": latency}
        if noise is not None:
            metrics = {name: value * float(np.exp(z)) for (name, value), z in zip(metrics.items(), noise)}
        return Measurement(configuration=configuration, metrics=metrics)

    def truth(self, configuration: Configuration) -> float:
        measurement = self.measure(configuration)
        return float(OBJECTIVE(configuration, measurement.metrics)) if measurement.feasible else 0.0

    def best(self) -> float:
        return max(self.truth(c) for c in SPACE.configurations)

    def training(self, knobs: Sequence[Knob] = KNOBS, *, shuffled: int | None = None) -> TrainingTask:
        """All of the surface; `shuffled` permutes it, so that knobs say nothing true about metrics."""
        configurations = list(SearchSpace(knobs).configurations)
        measured = [self.measure(c) for c in configurations]
        order = (
            np.arange(len(measured)) if shuffled is None else np.random.default_rng(shuffled).permutation(len(measured))
        )
        measured = [measured[i] for i in order]
        return TrainingTask(
            task=self.name,
            family=self.name,
            knobs=tuple(knobs),
            configurations=configurations,
            metrics={m: np.array([x.metrics.get(m, np.nan) for x in measured]) for m in ("rps", "latency_ms")},
            feasible=np.array([x.feasible for x in measured]),
        )


@cache
def prior(tasks: int = 12) -> Prior:
    """Learned from tasks 0 to 11; held-out tasks have other numbers."""
    return fit_prior([Task(i).training() for i in range(tasks)], seed=0)


@cache
def wrong_prior() -> Prior:
    """One permutation of the configurations for all tasks: consistent, confident, and wrong everywhere."""
    return fit_prior([Task(i).training(shuffled=3) for i in range(12)], seed=0)
