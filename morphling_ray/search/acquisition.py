"""Which candidate to measure next: the objective is computed on draws of the metrics, so cost and bounds are exact.

S      draws;  n  candidates;  M  metrics
draws  of the log-metrics of each candidate, shape (S, n, M); the same S normals for every candidate, so that two
       candidates differ by what is believed of them and not by luck
"""

from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from morphling_ray.meta.gaussian import GaussianModel, Posterior, cholesky
from morphling_ray.objective import Objective

FloatArray = npt.NDArray[np.float64]


def quasi_normals(count: int, dimension: int, shift: FloatArray) -> FloatArray:
    """Evenly spread standard normals, shape `(count, dimension)`.

    A Kronecker sequence on the generalised golden ratio (Roberts 2018, "The unreasonable effectiveness of quasirandom
    sequences"), shifted and mapped through the inverse normal distribution.

    Args:
        count: S.
        dimension: M.
        shift: In [0, 1), shape `(dimension,)`.
    """
    ratio = 2.0
    for _ in range(50):  # the positive root of x^(dimension + 1) = x + 1
        ratio = (1.0 + ratio) ** (1.0 / (dimension + 1))
    steps = ratio ** -np.arange(1.0, dimension + 1)
    uniform = (shift + np.arange(1.0, count + 1)[:, None] * steps) % 1.0
    inverse = NormalDist().inv_cdf
    clipped = np.clip(uniform, 1e-4, 1.0 - 1e-4)
    return np.array([[inverse(float(u)) for u in row] for row in clipped])


def objective_draws(
    posterior: Posterior, normals: FloatArray, objective: Objective, columns: Mapping[str, npt.NDArray[Any]]
) -> FloatArray:
    """The objective on draws of each candidate's metrics, shape `(S, n)`.

    Args:
        posterior: Of the log-metrics.
        normals: Shape `(S, M)`.
        objective: What to maximise; its metrics in the posterior's order.
        columns: Knob values, shape `(n,)` each.
    """
    metrics = posterior.mean.shape[1]
    if metrics == 1:  # the common case, and a Cholesky factor of 1 x 1 takes its time
        factor = np.sqrt(np.maximum(posterior.covariance, 0.0))
    else:
        factor = cholesky(posterior.covariance + 1e-12 * np.eye(metrics))
    draws = {}
    for m, name in enumerate(objective.metrics):
        log = normals[:, : m + 1] @ factor[:, m, : m + 1].T + posterior.mean[:, m]  # (S, n)
        draws[name] = np.exp(np.clip(log, -300.0, 300.0))
    out = np.asarray(objective(columns, draws), float)
    return np.broadcast_to(out, (len(normals), len(posterior.mean)))  # an objective of knobs alone has no draws


def expected_improvement(values: FloatArray, best: float) -> FloatArray:
    """E[max(value - best, 0)] over the first axis of `values`, shape `(S, n)` to `(n,)`."""
    return np.asarray(np.maximum(values - best, 0.0).mean(0))


def expected_share(
    model: GaussianModel,
    normals: FloatArray,
    objective: Objective,
    columns: Mapping[str, npt.NDArray[Any]],
    pending: Sequence[int],
) -> FloatArray:
    """Before anything is measured: the expected best-so-far as a share of each drawn task's own optimum, shape `(n,)`.

    Tasks differ in level by orders of magnitude; an expected objective would only look at the fastest of them.

    Args:
        model: The prior. Its residual is left out: it says nothing about where to start.
        normals: Weights of features and offsets, shape `(S, T + M)`.
        objective: What to maximise.
        columns: Knob values, shape `(n,)` each.
        pending: Candidates that are being measured.
    """
    tasks = model.features.shape[2]
    level = normals[:, tasks:] @ cholesky(model.correlation).T * model.offset_sd  # (S, M)
    draws = {}
    for m, name in enumerate(objective.metrics):
        log = model.mean[m] + normals[:, :tasks] @ model.features[m].T + level[:, m : m + 1]  # (S, n)
        draws[name] = np.exp(np.clip(log, -300.0, 300.0))
    n = model.mean.shape[1]
    values = np.broadcast_to(np.asarray(objective(columns, draws), float), (len(normals), n))
    best = values.max(1, keepdims=True)
    share = values / np.where(best > 0, best, 1.0)
    if pending:
        share = np.maximum(share, share[:, list(pending)].max(1, keepdims=True))
    return np.asarray(share.mean(0))
