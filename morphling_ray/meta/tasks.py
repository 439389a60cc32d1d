"""What is known of earlier tasks, as methods learn from it: tables of measured configurations."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from morphling_ray.objective import Objective
from morphling_ray.space import Configuration, Knob
from morphling_ray.surface import Surface

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class TrainingTask:
    """What was measured for one earlier task.

    Attributes:
        task: Name.
        family: Tasks of one family are alike; they are held out together.
        knobs: Of the space that was measured.
        configurations: n of them.
        metrics: By name, shape `(n,)`; NaN where there is none.
        feasible: Whether each worked, shape `(n,)`.
        constants: Numbers of the task, for example `base_latency_ms`.
        extra: Further numbers of each configuration, shape `(n,)`.
    """

    task: str
    family: str
    knobs: tuple[Knob, ...]
    configurations: Sequence[Configuration]
    metrics: Mapping[str, FloatArray]
    feasible: BoolArray
    constants: Mapping[str, float] = field(default_factory=dict)
    extra: Mapping[str, FloatArray] = field(default_factory=dict)

    @classmethod
    def of_surface(cls, surface: Surface) -> "TrainingTask":
        """All that a recorded surface holds."""
        return cls(
            task=surface.task,
            family=surface.family,
            knobs=surface.space.knobs,
            configurations=surface.space.configurations,
            metrics=surface.metrics,
            feasible=surface.feasible,
            constants=surface.constants,
            extra=surface.extra,
        )

    @property
    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """What an objective takes as `columns`: knobs, extra, and the constants repeated, each of shape `(n,)`."""
        n = len(self.configurations)
        constants = {name: np.full(n, value) for name, value in self.constants.items()}
        knobs = {k.name: np.array([c[k.name] for c in self.configurations]) for k in self.knobs}
        return {**constants, **self.extra, **knobs}

    def values(self, objective: Objective) -> FloatArray | None:
        """The objective of every configuration, shape `(n,)`; 0 where infeasible or a bound is broken.

        None where the task lacks a metric that the objective needs.
        """
        if any(name not in self.metrics for name in objective.metrics):
            return None
        metrics = {name: np.asarray(self.metrics[name], float) for name in objective.metrics}
        values = np.asarray(objective(self.columns, metrics), float)
        known = np.all([np.isfinite(v) for v in metrics.values()], axis=0) if metrics else np.ones(len(values), bool)
        return np.where(self.feasible & known & np.isfinite(values), values, 0.0)


def pack(tasks: Sequence[TrainingTask]) -> dict[str, npt.NDArray[Any]]:
    """Tasks as arrays for an .npz file; `unpack` reads them back, and nothing is executed by that."""
    out: dict[str, npt.NDArray[Any]] = {}
    about = []
    for t, task in enumerate(tasks):
        position = [{_key(v): i for i, v in enumerate(k.values)} for k in task.knobs]
        codes = [[p[_key(c[k.name])] for p, k in zip(position, task.knobs)] for c in task.configurations]
        out[f"task{t}_codes"] = np.array(codes, np.uint16).reshape(len(task.configurations), len(task.knobs))
        out[f"task{t}_feasible"] = np.asarray(task.feasible, bool)
        for kind, columns in (("metric", task.metrics), ("extra", task.extra)):
            for i, values in enumerate(columns.values()):
                out[f"task{t}_{kind}{i}"] = np.asarray(values, np.float64)
        about.append(
            {
                "task": task.task,
                "family": task.family,
                "knobs": [
                    {"name": k.name, "values": list(k.values), "kind": k.kind, "scale": k.scale} for k in task.knobs
                ],
                "metrics": list(task.metrics),
                "extra": list(task.extra),
                "constants": dict(task.constants),
            }
        )
    return {"tasks": np.array(json.dumps(about)), **out}


def unpack(arrays: Mapping[str, npt.NDArray[Any]]) -> list[TrainingTask]:
    """The tasks that `pack` wrote.

    Raises:
        KeyError, ValueError, TypeError: The arrays are something else.
    """
    tasks = []
    for t, about in enumerate(json.loads(str(arrays["tasks"]))):
        knobs = tuple(Knob(k["name"], tuple(k["values"]), k["kind"], k["scale"]) for k in about["knobs"])
        codes = np.asarray(arrays[f"task{t}_codes"])
        names = [k.name for k in knobs]
        rows = [dict(zip(names, (k.values[int(i)] for k, i in zip(knobs, row)))) for row in codes]
        feasible = np.asarray(arrays[f"task{t}_feasible"], bool)
        columns = {
            kind: {name: np.asarray(arrays[f"task{t}_{kind}{i}"], np.float64) for i, name in enumerate(about[key])}
            for kind, key in (("metric", "metrics"), ("extra", "extra"))
        }
        if any(len(values) != len(rows) for values in (feasible, *columns["metric"].values())):
            raise ValueError(f"task {about['task']!r} has columns of unequal length")
        tasks.append(
            TrainingTask(
                task=str(about["task"]),
                family=str(about["family"]),
                knobs=knobs,
                configurations=rows,
                metrics=columns["metric"],
                feasible=feasible,
                constants={str(k): float(v) for k, v in about["constants"].items()},
                extra=columns["extra"],
            )
        )
    return tasks


def matching_rows(tasks: Sequence[TrainingTask], configurations: Sequence[Configuration]) -> list[IntArray]:
    """For each task, which of its rows each configuration is, shape `(n,)`; -1 where it was not measured.

    Knobs that a task did not have do not matter; a configuration that lacks one of a task's knobs is none of its rows.
    """
    out = []
    keys: dict[tuple[str, ...], list[tuple[object, ...] | None]] = {}
    for task in tasks:
        names = tuple(k.name for k in task.knobs)
        if names not in keys:
            keys[names] = [
                tuple(_key(c[name]) for name in names) if all(name in c for name in names) else None
                for c in configurations
            ]
        position = _positions.get(task)
        if position is None:
            position = {tuple(_key(c[name]) for name in names): row for row, c in enumerate(task.configurations)}
            _positions[task] = position
        out.append(np.array([position.get(key, -1) for key in keys[names]], np.int64))
    return out


_positions: WeakKeyDictionary[TrainingTask, dict[object, int]] = WeakKeyDictionary()  # one prior serves many searches


def _key(value: object) -> tuple[bool, object]:
    return isinstance(value, bool), value  # True == 1, but they are two values
