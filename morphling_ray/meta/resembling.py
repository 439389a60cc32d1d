"""What a new task may have in common with single earlier ones: hypotheses about its log-metrics.

alike    it varies around the mean of the earlier tasks as they did
mixture  it is one of them, or lies between two; by how much it strays from that is for its measurements to show
"""

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from morphling_ray.meta.ensemble import Hypothesis, Mixtures
from morphling_ray.meta.gaussian import Covariance

FloatArray = npt.NDArray[np.float64]

_ALIKE = 0.4  # probability of the first
# Of the second, by how many residuals the task strays: what it measures shows soon which. A narrower one foretells most
# configurations better and searches worse: it takes the few that are unlike all earlier tasks for impossible, and the
# optimum may be one of them.
_STRAYS = ((1.0, 0.3), (2.0, 0.2), (4.0, 0.1))
FAR = 4.0  # from so many on, knobs may make a difference that made none to earlier tasks: such a task is a rare one
_ALIKE_SD = 0.5  # of a descriptor between tasks that are alike, in logs
_MIXTURES = 600  # of two earlier tasks each
_BEYOND = 0.3  # how far a mixture may lie outside the two, as a share of their difference
_ENOUGH = 3  # tasks that show how tasks differ; fewer show a mean alone


def resembling(
    surfaces: FloatArray, own: Covariance, far: Covariance | None, gaps: FloatArray | None = None
) -> list[Hypothesis]:
    """What a new task may have to do with earlier ones.

    Args:
        surfaces: Log-metrics of the earlier tasks, shape `(T, n, M)`.
        own: Covariance of what a new task has of its own.
        far: The same of one that strays far; None: it does not.
        gaps: How far each earlier task lies from the new one in each of D descriptors, in logs, shape `(T, D)`.
    """
    tasks = len(surfaces)
    average = np.full((1, tasks), 1.0 / tasks)
    deviations = (surfaces - surfaces.mean(0)) / np.sqrt(tasks) * float(tasks >= _ENOUGH)
    alike = replace(own, features=np.concatenate([deviations.transpose(2, 1, 0), own.features], axis=2))
    mixtures = np.vstack([np.eye(tasks), pairs(tasks, _MIXTURES)])
    by_descriptors = None if gaps is None else likely(mixtures, gaps)
    between = Mixtures(surfaces, mixtures)
    wide = {f: far if f >= FAR else own for f, _ in _STRAYS}
    straying = [
        (f"mixture x{f:g}", p, replace(covariance, residual_sd=f * own.residual_sd))
        for f, p in _STRAYS
        if (covariance := wide[f]) is not None
    ]
    return [
        Hypothesis("alike", float(np.log(_ALIKE)), Mixtures(surfaces, average), alike),
        *(
            Hypothesis(name, float(np.log(p)), between, covariance, log_likely=by_descriptors)
            for name, p, covariance in straying
        ),
    ]


def likely(mixtures: FloatArray, gaps: FloatArray) -> FloatArray | None:
    """Log of how likely each mixture of earlier tasks is by its descriptors, shape `(J,)`; None where none is known."""
    return -0.5 * ((mixtures @ gaps / _ALIKE_SD) ** 2).sum(1) if gaps.size else None


def pairs(tasks: int, count: int) -> FloatArray:
    """Weights of mixtures of two tasks each, shape `(count, tasks)`, always the same; none of a single task."""
    rng = np.random.default_rng(0)
    out = np.zeros((count if tasks > 1 else 0, tasks))
    rows = np.arange(len(out))
    a = rng.integers(tasks, size=len(out))
    b = (a + rng.integers(1, max(tasks, 2), size=len(out))) % tasks
    share = rng.uniform(-_BEYOND, 1.0 + _BEYOND, len(out))
    out[rows, a], out[rows, b] = 1.0 - share, share
    return out
