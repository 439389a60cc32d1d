"""Learns a prior from the surfaces of earlier tasks, in three steps.

1. How smooth surfaces are: the marginal likelihood of each task on its own.
2. Every task's surface as a function, smoothed onto one basis (basis.py).
3. How far a new task strays from them: each family of tasks is predicted from the others, and the spread, the level,
   the residual and the white part maximise the likelihood of what was held out. A prior that saw few or unlike tasks
   therefore trusts them less.

T tasks, M metrics, r rows drawn from each task; F[t] is what all tasks' smoothed surfaces say at the rows of task t,
shape (T, M, r, T), last axis the task that says it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from morphling_ray.errors import InputError
from morphling_ray.meta.basis import MAX_CENTRES, Smoothing, basis, smooth_tasks, spread
from morphling_ray.meta.encoding import Encoding
from morphling_ray.meta.gaussian import squared_distances
from morphling_ray.meta.prior import Prior
from morphling_ray.meta.tasks import TrainingTask
from morphling_ray.space import Knob

FloatArray = npt.NDArray[np.float64]

_ROWS = 32  # of each task, for a step of the likelihood: its cost grows with the cube
_STEPS = 60
_MIN_OFFSET_SD = 0.3  # a new model may be faster or slower than any that was seen


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
    smooth = _smoothness(drawn, encoding, len(metrics))
    lengths = smooth["length"][encoding.groups]

    taught = np.array([[bool(np.isfinite(y[m]).any()) for y in logs] for m in range(len(metrics))], float)  # (M, T)
    alpha = np.zeros((len(metrics), 1 + centres.shape[1] + len(centres), len(tasks)))
    for m in range(len(metrics)):
        who = np.flatnonzero(taught[m])
        good = [np.isfinite(logs[t][m]) for t in who]
        rows = [z_all[t][g] for t, g in zip(who, good)]
        values = [logs[t][m][g] for t, g in zip(who, good)]
        scale = [float(smooth[name][m]) for name in ("slope", "residual", "white")]
        alpha[m][:, who] = smooth_tasks(rows, values, centres, Smoothing(lengths, *scale))
    correlation = _correlation(centres, alpha, taught, lengths)
    held = _held_out(drawn, centres, lengths, alpha, taught, [t.family for t in tasks])
    start = {
        "spread": np.array(1.0 if len(tasks) > 2 else 0.0),  # fewer show a mean, but not how tasks differ
        "slope": np.zeros(len(metrics)),
        "offset": np.full(len(metrics), 0.5),
        "residual": np.full(len(metrics), 0.15),
        "white": np.full(len(metrics), 0.05),
        "length": smooth["length"],
    }
    from morphling_ray.meta.likelihood import Batch, maximise

    batch = Batch(drawn.z, held.y, drawn.mask * held.usable, held.fixed, correlation, encoding.groups)
    learned, score = maximise(batch, start, _STEPS)
    return Prior(
        encoding=encoding,
        metrics=metrics,
        tasks=tuple(t.task for t in tasks),
        centres=centres,
        alpha=alpha,
        taught=taught,
        smooth_lengths=lengths,
        residual_lengths=learned["length"][encoding.groups],
        spread=float(learned["spread"]),
        offset_sd=np.maximum(learned["offset"], _MIN_OFFSET_SD),
        residual_sd=learned["residual"],
        white_sd=learned["white"],
        correlation=correlation,
        outcomes=_outcomes(tasks, z_all, centres),
        earlier=tuple(tasks),
        about={**(about or {}), "seed": seed, "held_out_log_likelihood_per_row": round(score, 4)},
    )


@dataclass(frozen=True, eq=False)
class _Drawn:
    """Rows of every task, padded: z (T, r, d), y and mask (T, M r)."""

    z: FloatArray
    y: FloatArray
    mask: FloatArray


@dataclass(frozen=True, eq=False)
class _HeldOut:
    """Every task as the other families predict it: what their mean leaves over, and their covariance."""

    y: FloatArray  # (T, M r)
    fixed: FloatArray  # (T, M r, M r)
    usable: FloatArray  # (T, M r); 0 where no other family has the metric


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
    out = _Drawn(np.zeros((len(z), _ROWS, d)), *(np.zeros((len(z), metrics * _ROWS)) for _ in range(2)))
    for t, (rows, values) in enumerate(zip(z, logs)):
        good = np.flatnonzero(np.isfinite(values).any(0))
        some = np.sort(rng.permutation(good)[:_ROWS])
        out.z[t, : len(some)] = rows[some]
        for m in range(metrics):
            entry = slice(m * _ROWS, m * _ROWS + len(some))
            known = np.isfinite(values[m, some])
            out.mask[t, entry] = known
            out.y[t, entry] = np.where(known, values[m, some], 0.0)
    return out


def _smoothness(drawn: _Drawn, encoding: Encoding, metrics: int) -> dict[str, FloatArray]:
    """Step 1: slope, smooth part, white part (M,) and length scales (knobs,) of surfaces, each task on its own."""
    y = drawn.y.copy()
    for m in range(metrics):
        entry = slice(m * _ROWS, (m + 1) * _ROWS)
        count = np.maximum(drawn.mask[:, entry].sum(1, keepdims=True), 1.0)
        y[:, entry] -= y[:, entry].sum(1, keepdims=True) / count
    start = {
        "spread": np.array(0.0),
        "slope": np.full(metrics, 0.5),
        "offset": np.full(metrics, 0.5),
        "residual": np.full(metrics, 0.5),
        "white": np.full(metrics, 0.05),
        "length": np.full(len(encoding.codes), 0.7),
    }
    nothing = np.zeros((len(y), y.shape[1], y.shape[1]))
    from morphling_ray.meta.likelihood import Batch, maximise  # torch takes seconds to import

    learned, _ = maximise(Batch(drawn.z, y, drawn.mask, nothing, np.eye(metrics), encoding.groups), start, _STEPS)
    return learned


def _held_out(
    drawn: _Drawn,
    centres: FloatArray,
    lengths: FloatArray,
    alpha: FloatArray,
    taught: FloatArray,
    families: Sequence[str],
) -> _HeldOut:
    """Step 3, what does not depend on its parameters."""
    metrics, _, tasks = alpha.shape
    names = np.array(families)
    if len(set(families)) == 1:  # nothing else to hold out
        names = np.arange(tasks).astype(str)
    y, usable = drawn.y.copy(), np.ones_like(drawn.y)
    fixed = np.zeros((tasks, y.shape[1], y.shape[1]))
    for t in range(tasks):
        b = basis(drawn.z[t], centres, lengths)  # (r, P)
        phi = np.zeros((metrics * _ROWS, tasks))
        for m in range(metrics):
            others = taught[m] * (names != names[t])
            entry = slice(m * _ROWS, (m + 1) * _ROWS)
            if not others.any():
                usable[t, entry] = 0.0
                continue
            said = b @ alpha[m]  # (r, T)
            mean = said @ others / others.sum()
            y[t, entry] -= mean
            phi[entry] = (said - mean[:, None]) * others / np.sqrt(others.sum())
        fixed[t] = phi @ phi.T
    return _HeldOut(y, fixed, usable)


def _correlation(centres: FloatArray, alpha: FloatArray, taught: FloatArray, lengths: FloatArray) -> FloatArray:
    """How tasks' deviations from the mean go together between metrics, shrunk so that no two count as one."""
    b = basis(centres, centres, lengths)
    metrics = len(alpha)
    out = np.eye(metrics)
    for m in range(metrics):
        for k in range(m):
            who = np.flatnonzero(taught[m] * taught[k])
            if len(who) > 2:
                a, c = (v - v.mean(1, keepdims=True) for v in (b @ alpha[m][:, who], b @ alpha[k][:, who]))
                rho = float((a * c).sum() / max(np.sqrt((a**2).sum() * (c**2).sum()), 1e-12))
                out[m, k] = out[k, m] = 0.9 * rho
    return out


def _outcomes(tasks: Sequence[TrainingTask], z: Sequence[FloatArray], centres: FloatArray) -> FloatArray:
    """How often configurations worked and failed at the centre nearest to each, once per task, shape `(U, 2)`."""
    out = np.zeros((len(centres), 2))
    for task, rows in zip(tasks, z):
        near = squared_distances(rows, centres).argmin(1)
        mine = np.zeros_like(out)
        np.add.at(mine, (near, np.where(task.feasible, 0, 1)), 1.0)
        out += mine / np.maximum(mine.sum(1, keepdims=True), 1.0)
    return out
