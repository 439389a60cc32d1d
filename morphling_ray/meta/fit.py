"""Learns a prior from the surfaces of earlier tasks, in four steps.

1. How smooth surfaces are: the marginal likelihood of each task on its own.
2. Every task's surface as a function, smoothed onto one basis (basis.py).
3. How far the level of a new task may lie from theirs: each family of tasks is held out in turn, and what the others
   foretell of it decides.
4. What the tasks' bottlenecks have in common (bottlenecks.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from morphling_ray.errors import InputError
from morphling_ray.meta import bottlenecks
from morphling_ray.meta.basis import MAX_CENTRES, Smoothing, basis, smooth_tasks, spread
from morphling_ray.meta.encoding import Encoding
from morphling_ray.meta.ensemble import log_evidence
from morphling_ray.meta.gaussian import Observations, squared_distances
from morphling_ray.meta.prior import Prior
from morphling_ray.meta.resembling import resembling
from morphling_ray.meta.tasks import TrainingTask
from morphling_ray.space import Knob

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_ROWS = 32  # of each task, for a step of the likelihood: its cost grows with the cube
_HELD_OUT_ROWS = 12  # of each task, for step 3
_OFFSETS = (0.4, 0.8, 1.6)  # a new model may be faster or slower than any that was seen, hence none that is smaller
_SHRINKAGE = 0.9995  # of correlations: two metrics that say the same must not make a singular matrix


def fit_prior(tasks: Sequence[TrainingTask], *, seed: int, about: Mapping[str, Any] | None = None) -> Prior:
    """Learns a prior.

    Args:
        tasks: At least one, with at least one measured metric.
        seed: Of the rows that are drawn.
        about: Provenance to keep in the file.

    Raises:
        InputError: There is nothing to learn from.
    """
    tasks = [t for t in tasks if t.feasible.any()]
    metrics = tuple(sorted({name for t in tasks for name, values in t.metrics.items() if np.isfinite(values).any()}))
    if not metrics:
        raise InputError("there is nothing to learn from: no task has a feasible configuration with a metric")
    encoding = Encoding.of(_merged_knobs(tasks), [c for t in tasks for c in t.configurations])
    z_all = [encoding.encode(t.configurations) for t in tasks]
    centres = spread(np.vstack(z_all), MAX_CENTRES)
    logs = [_log_metrics(t, metrics) for t in tasks]  # each (M, n_t), NaN where missing
    drawn = _draw(z_all, logs, np.random.default_rng(seed))
    from morphling_ray.meta.likelihood import smoothness  # torch takes seconds to import

    smooth = smoothness(drawn.z, drawn.y, drawn.mask, encoding.groups, len(encoding.codes))
    lengths = smooth.length[encoding.groups]

    taught = np.array([[bool(np.isfinite(y[m]).any()) for y in logs] for m in range(len(metrics))], float)  # (M, T)
    alpha = np.zeros((len(metrics), 1 + centres.shape[1] + len(centres), len(tasks)))
    for m in range(len(metrics)):
        who = np.flatnonzero(taught[m])
        good = [np.isfinite(logs[t][m]) for t in who]
        rows = [z_all[t][g] for t, g in zip(who, good)]
        values = [logs[t][m][g] for t, g in zip(who, good)]
        how = Smoothing(lengths, *(float(sd[m]) for sd in (smooth.slope, smooth.smooth, smooth.white)))
        alpha[m][:, who] = smooth_tasks(rows, values, centres, how)
    enough = len(tasks) >= bottlenecks.ENOUGH
    prior = Prior(
        encoding=encoding,
        metrics=metrics,
        tasks=tuple(t.task for t in tasks),
        centres=centres,
        alpha=alpha,
        taught=taught,
        smooth_lengths=lengths,
        correlation=_correlation(centres, alpha, taught, lengths),
        effects=np.array([_effect(code.name, tasks, logs) for code in encoding.codes]),
        outcomes=_outcomes(tasks, z_all, centres),
        offset_sd=_OFFSETS[0],
        bottlenecks=bottlenecks.fit(z_all, logs, [t.feasible for t in tasks], centres, np.random.default_rng(seed))
        if enough
        else None,
        earlier=tuple(tasks),
        about={**(about or {}), "seed": seed},
    )
    return replace(prior, offset_sd=_offset(prior, logs, drawn.rows))


@dataclass(frozen=True, eq=False)
class _Drawn:
    """Rows of every task: which, then padded z (T, r, d), y and mask (T, M r)."""

    rows: list[IntArray]
    z: FloatArray
    y: FloatArray
    mask: FloatArray


def _merged_knobs(tasks: Sequence[TrainingTask]) -> list[Knob]:
    """One knob for each name; where sets disagree, categories win over numbers and a log scale over a linear one."""
    merged: dict[str, Knob] = {}
    for task in tasks:
        for knob in task.knobs:
            old = merged.setdefault(knob.name, knob)
            if (knob.kind, old.kind) == ("categorical", "ordinal") or (
                knob.kind == old.kind == "ordinal" and (knob.scale, old.scale) == ("log", "linear")
            ):
                merged[knob.name] = knob
    return list(merged.values())


def _log_metrics(task: TrainingTask, metrics: Sequence[str]) -> FloatArray:
    out = np.full((len(metrics), len(task.configurations)), np.nan)
    for m, name in enumerate(metrics):
        if name in task.metrics:
            values = np.asarray(task.metrics[name], float)
            good = task.feasible & np.isfinite(values) & (values > 0)
            out[m, good] = np.log(values[good])
    return out


def _draw(z: Sequence[FloatArray], logs: Sequence[FloatArray], rng: np.random.Generator) -> _Drawn:
    metrics, d = len(logs[0]), z[0].shape[1]
    out = _Drawn([], np.zeros((len(z), _ROWS, d)), *(np.zeros((len(z), metrics, _ROWS)) for _ in range(2)))
    for t, (rows, values) in enumerate(zip(z, logs)):
        shuffled = rng.permutation(np.flatnonzero(np.isfinite(values).any(0)))
        out.rows.append(shuffled[:_HELD_OUT_ROWS])
        some = np.sort(shuffled[:_ROWS])
        known = np.isfinite(values[:, some])
        out.z[t, : len(some)] = rows[some]
        out.mask[t, :, : len(some)] = known
        out.y[t, :, : len(some)] = np.where(known, values[:, some], 0.0)
    return out


def _offset(prior: Prior, logs: Sequence[FloatArray], rows: Sequence[IntArray]) -> float:
    """Step 3: the standard deviation of levels that foretells held-out families best."""
    points = [t.configurations[int(i)] for t, some in zip(prior.earlier, rows) for i in some]
    ends = np.cumsum([0, *map(len, rows)])
    surfaces = prior.surfaces(points, prior.metrics)  # (T, all rows, M)
    families = np.array([t.family for t in prior.earlier])
    if len(set(families)) == 1:  # nothing else to hold out
        families = np.arange(len(families)).astype(str)
    scores = np.zeros(len(_OFFSETS))
    for t, task in enumerate(prior.earlier):
        others = families != families[t]
        shared = [m for m in range(len(prior.metrics)) if prior.taught[m, t] and prior.taught[m][others].any()]
        if not shared:
            continue
        values = logs[t][shared][:, rows[t]]
        metric, row = np.nonzero(np.isfinite(values))
        obs = Observations(row, metric, values[metric, row], np.zeros(len(row)))
        said = surfaces[others][:, ends[t] : ends[t + 1]][:, :, shared]
        names = [prior.metrics[m] for m in shared]
        own = prior.own(points[ends[t] : ends[t + 1]], task.knobs, names)
        for i, offset in enumerate(_OFFSETS):
            spread = replace(own, offset_sd=np.full(len(names), offset))
            scores[i] += log_evidence(resembling(said, spread, spread), obs)
    return _OFFSETS[int(scores.argmax())]


def _correlation(centres: FloatArray, alpha: FloatArray, taught: FloatArray, lengths: FloatArray) -> FloatArray:
    """How tasks' deviations from the mean go together between metrics, shrunk a little so that no two count as one."""
    b = basis(centres, centres, lengths)
    metrics = len(alpha)
    out = np.eye(metrics)
    for m in range(metrics):
        for k in range(m):
            who = np.flatnonzero(taught[m] * taught[k])
            if len(who) > 2:
                a, c = (v - v.mean(1, keepdims=True) for v in (b @ alpha[m][:, who], b @ alpha[k][:, who]))
                rho = float((a * c).sum() / max(np.sqrt((a**2).sum() * (c**2).sum()), 1e-12))
                out[m, k] = out[k, m] = _SHRINKAGE * rho
    return out


def _effect(knob: str, tasks: Sequence[TrainingTask], logs: Sequence[FloatArray]) -> float:
    """How far log-metrics of two configurations of a task lie apart that differ in one knob alone, noise and all.

    It is the standard deviation, of the metric that the knob moves most; infinite if no task has two such
    configurations.
    """
    squares = np.array([_squares(knob, task, values) for task, values in zip(tasks, logs)])  # (T, M)
    known = np.isfinite(squares)
    if not known.any():
        return np.inf
    mean = np.where(known, squares, 0.0).sum(0) / np.maximum(known.sum(0), 1)
    return float(np.sqrt(mean.max()))


def _squares(knob: str, task: TrainingTask, logs: FloatArray) -> FloatArray:
    """Mean square of such distances in one task, shape `(M,)`; NaN where there are none."""
    names = [k.name for k in task.knobs if k.name != knob]
    place: dict[object, int] = {}
    group = np.array([place.setdefault(tuple(c[n] for n in names), len(place)) for c in task.configurations])
    total, pairs = np.zeros(len(logs)), np.zeros(len(logs))
    for m, values in enumerate(logs):
        good = np.isfinite(values)
        count = np.bincount(group[good], minlength=len(place))
        mean = np.bincount(group[good], values[good], len(place)) / np.maximum(count, 1)
        total[m] = 2.0 * ((values[good] - mean[group[good]]) ** 2).sum()
        pairs[m] = np.maximum(count - 1, 0).sum()
    return np.where(pairs > 0, total / np.maximum(pairs, 1), np.nan)


def _outcomes(tasks: Sequence[TrainingTask], z: Sequence[FloatArray], centres: FloatArray) -> FloatArray:
    """How often configurations worked and failed at the centre nearest to each, once per task, shape `(U, 2)`."""
    out = np.zeros((len(centres), 2))
    for task, rows in zip(tasks, z):
        near = squared_distances(rows, centres).argmin(1)
        mine = np.zeros_like(out)
        np.add.at(mine, (near, np.where(task.feasible, 0, 1)), 1.0)
        out += mine / np.maximum(mine.sum(1, keepdims=True), 1.0)
    return out
