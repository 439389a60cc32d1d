"""One search of one task, judged after every sample by the noise-free truth."""

import time
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from morphling_ray.evaluate.replay import ReplayEvaluator
from morphling_ray.objective import ExpressionObjective
from morphling_ray.search.sampler import Sampler
from morphling_ray.space import SearchSpace
from morphling_ray.surface import Surface, SurfaceSet

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.intp]

PROBES_IF_WORSE, PROBES_IF_NOT = 1, 7  # one probe at the incumbent's rate rejects; a contender is pinned down


@dataclass(frozen=True, eq=False)
class Problem:
    """A task under an objective, with what only the judge knows.

    Attributes:
        surface: What was recorded.
        objective: With the task's constants.
        truth: Noise-free objective of each candidate, 0 where it is infeasible or breaks a bound, shape `(n,)`.
        best: The largest of them; 0 where nothing keeps the bounds.
        best_clear: The largest among those that keep every bound with the noise to spare; `best` where none does.
    """

    surface: Surface
    objective: ExpressionObjective
    truth: FloatArray
    best: float
    best_clear: float

    @classmethod
    def of(cls, surfaces: SurfaceSet, objective: str, task: str, noise: float) -> "Problem":
        """The problem of a task; `noise` is the relative margin that a clear optimum keeps to every bound."""
        surface, known = surfaces.task(task), surfaces.objective(objective, task)
        truth = np.where(surface.feasible, known(surface.columns, surface.metrics), 0.0)
        clear = surface.feasible & (known.slack(surface.columns, surface.metrics) >= noise)
        best, best_clear = float(truth.max()), float(truth.max(where=clear, initial=0.0))
        return cls(surface, known, truth, best, best_clear if best_clear > 0 else best)


@dataclass(frozen=True, eq=False)
class Search:
    """What a search did; the first six have one entry per sample and are padded to the budget.

    Attributes:
        quality: True objective of what is recommended, over the true optimum; 0 where nothing is, or it does not work.
        quality_clear: The same over the clear optimum; above 1 where the recommendation is closer to a bound than that.
        probes: Probes spent so far, if a trial that is worse than the incumbent is rejected early.
        recommended: Index of what is recommended among the candidates, or None.
        p_near_best: The searcher's own probability that it is within 5 % of the best, or None.
        proposed: Indices of what was proposed, one per sample taken.
        suggest_ms: Milliseconds of thought, one per sample taken: to suggest, to observe and to recommend, since what
            one of them has computed spares another.
        recommend_ms: The part of that which went into recommending.
    """

    quality: list[float] = field(default_factory=list)
    quality_clear: list[float] = field(default_factory=list)
    probes: list[int] = field(default_factory=list)
    recommended: list[int | None] = field(default_factory=list)
    p_near_best: list[float | None] = field(default_factory=list)
    proposed: list[int] = field(default_factory=list)
    suggest_ms: list[float] = field(default_factory=list)
    recommend_ms: list[float] = field(default_factory=list)

    def pad(self, budget: int) -> None:
        """Repeats the last entries: a search that has nothing left to try stays where it is."""
        missing = budget - len(self.quality)
        self.quality.extend(self.quality[-1:] * missing or [0.0] * missing)
        self.quality_clear.extend(self.quality_clear[-1:] * missing or [0.0] * missing)
        self.probes.extend(self.probes[-1:] * missing or [0] * missing)
        self.recommended.extend(self.recommended[-1:] * missing or [None] * missing)
        self.p_near_best.extend(self.p_near_best[-1:] * missing or [None] * missing)


def search(
    problem: Problem,
    sampler: Sampler,
    *,
    budget: int,
    noise: float,
    noise_seed: int,
    free_knobs: tuple[str, ...] = (),
    until_best: bool = False,
) -> Search:
    """Runs a search on a recorded surface.

    Args:
        problem: The task and the truth about it.
        sampler: Fresh.
        budget: Samples; with free knobs, deployments.
        noise: Standard deviation of the logarithm of each measured metric.
        noise_seed: Equal seeds give equal noise at equal configurations, whatever the searcher.
        free_knobs: One sample gives observations of all candidates that differ from it in these knobs only.
        until_best: End once the best configuration was measured; the rest is as it was then.
    """
    space, out = problem.surface.space, Search()
    evaluator = ReplayEvaluator(problem.surface, problem.objective, noise=noise, seed=noise_seed)
    deployment = deployments(space, free_knobs)
    incumbent, probes = 0.0, 0
    while len(out.proposed) < budget:
        began = time.perf_counter()
        configuration = sampler.suggest()
        seconds = time.perf_counter() - began
        if configuration is None:
            break
        proposed = space.index(configuration)
        also = [int(i) for i in np.flatnonzero(deployment == deployment[proposed]) if i != proposed]
        measured = []
        for i in (proposed, *also):
            if i != proposed:
                sampler.reserve(space[i])
            measurement = evaluator.measure(space[i])
            began = time.perf_counter()
            sampler.observe(measurement.configuration, measurement)
            seconds += time.perf_counter() - began
            value = problem.objective(space[i], measurement.metrics) if measurement.feasible else 0.0
            measured.append(float(value))
        # A trial that breaks the SLO is as good as one that fails: neither needs more than one probe.
        probes += PROBES_IF_NOT if 0 < max(measured) >= incumbent else PROBES_IF_WORSE
        incumbent = max(incumbent, *measured)
        began = time.perf_counter()
        found = sampler.recommend()
        recommend_s = time.perf_counter() - began
        out.recommend_ms.append(1e3 * recommend_s)
        out.suggest_ms.append(1e3 * (seconds + recommend_s))
        out.proposed.append(proposed)
        index = None if found is None else space.index(found.configuration)
        truth = 0.0 if index is None else float(problem.truth[index])
        out.recommended.append(index)
        out.p_near_best.append(None if found is None else found.p_near_best)
        out.quality.append(truth / problem.best)
        out.quality_clear.append(truth / problem.best_clear)
        out.probes.append(probes)
        if until_best and problem.truth[proposed] >= problem.best:
            break
    out.pad(budget)
    return out


def deployments(space: SearchSpace, free_knobs: tuple[str, ...]) -> IntArray:
    """Number of the deployment of each candidate, shape `(n,)`: candidates that agree in all knobs but the free ones.

    Without free knobs every candidate is a deployment of its own.
    """
    if not free_knobs:
        return np.arange(len(space))
    names = [knob.name for knob in space.knobs if knob.name not in free_knobs]
    numbers: dict[tuple[object, ...], int] = {}
    keys = (tuple((type(c[name]), c[name]) for name in names) for c in space.configurations)
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.intp)
