"""How well a prior foretells tasks that it has not seen.

Each family is held out, a few of its rows are shown, and the rest is predicted: once with what the other families
teach, and once with nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from morphling_ray.meta.encoding import Encoding
from morphling_ray.meta.ensemble import Ensemble, Hypothesis
from morphling_ray.meta.gaussian import Observations
from morphling_ray.meta.plain import plain_hypothesis
from morphling_ray.meta.prior import Prior
from morphling_ray.meta.tasks import TrainingTask

FloatArray = npt.NDArray[np.float64]

_SHOWN = 5  # rows of the held-out task that both are shown
_ROWS = 200  # rows of a task that are looked at, at most


@dataclass(frozen=True)
class Check:
    """Root mean squared error of a log-metric on held-out tasks, after a few rows of each were shown.

    Attributes:
        metric: Name.
        tasks: How many tasks were held out in turn.
        with_prior: Error with the prior of the other families; 0.1 is about 10 %.
        without: Error of a Gaussian process that knows only the rows shown.
    """

    metric: str
    tasks: int
    with_prior: float
    without: float

    def __str__(self) -> str:
        rows = f"after {_SHOWN} rows of a new family (mean of {self.tasks} tasks)"
        return f"{self.metric}: typical error {rows} {self.with_prior:.0%}, without a prior {self.without:.0%}"


def compare_held_out(tasks: Sequence[TrainingTask], prior: Prior, *, seed: int) -> list[Check]:
    """Holds each family out of the features in turn. Smoothing and spreads stay as they were learned from all.

    Args:
        tasks: What the prior was learned from.
        prior: The prior.
        seed: Of the rows that are shown.
    """
    rng = np.random.default_rng(seed)
    family = {t.task: t.family for t in tasks}
    errors: dict[str, list[tuple[float, float]]] = {m: [] for m in prior.metrics}
    for task in tasks:
        works = np.flatnonzero(task.feasible)
        rows = np.sort(rng.permutation(works)[:_ROWS])
        points = [task.configurations[int(i)] for i in rows]
        others = [i for i, name in enumerate(prior.tasks) if family[name] != task.family]
        encoding = Encoding.of_space(task.knobs)
        z = encoding.encode(points)
        for m, metric in enumerate(prior.metrics):
            if metric not in task.metrics or len(rows) < 2 * _SHOWN or not prior.taught[m][others].any():
                continue
            values = np.log(np.asarray(task.metrics[metric], float)[rows])
            if not np.isfinite(values).all():
                continue
            shown = rng.permutation(len(rows))[:_SHOWN]
            obs = Observations(shown, np.zeros(_SHOWN, np.int64), values[shown], np.full(_SHOWN, 0.03**2))
            learned = prior.of_tasks(others).hypotheses(points, task.knobs, [metric])
            plain = [plain_hypothesis(z, encoding.groups, obs, 1)]
            errors[metric].append((_error(learned, obs, values), _error(plain, obs, values)))
    return [
        Check(metric, len(found), *(float(np.mean([pair[i] for pair in found])) for i in range(2)))
        for metric, found in errors.items()
        if found
    ]


def _error(hypotheses: Sequence[Hypothesis], obs: Observations, values: FloatArray) -> float:
    rest = np.setdiff1d(np.arange(len(values)), obs.point)
    ensemble = Ensemble(hypotheses, obs, [0.0] * len(hypotheses))
    return float(np.sqrt(((ensemble.mean(rest)[:, 0] - values[rest]) ** 2).mean()))
