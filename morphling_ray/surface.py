"""Recorded surfaces: what was measured for the configurations of a task, read from a folder and checked at the door.

A folder holds `surfaces.yaml` (knobs, metrics, objectives, where the data came from) and the table that it names, CSV
or Parquet, with one row per task and configuration. Meta-training and replay use the same `Surface`.
"""

import csv
import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import yaml

from morphling_ray.errors import InputError, SurfaceError
from morphling_ray.expressions import Expression
from morphling_ray.objective import ExpressionObjective
from morphling_ray.space import Knob, SearchSpace, Value
from morphling_ray.surface_table import BoolArray, FloatArray, Table

DESCRIPTION = "surfaces.yaml"


@dataclass(frozen=True, eq=False)
class Surface:
    """The measured candidates of one task; every array has shape `(n,)`, in the order of `space.configurations`.

    Args:
        task: Name of the task (one model at one workload).
        family: Tasks of one family are alike (for example one model at several input lengths).
        space: Exactly the candidates.
        metrics: By name, positive and finite where feasible, NaN elsewhere.
        feasible: Whether the configuration works.
        constants: Further numbers of the task, for example `base_latency_ms`.
        extra: Further numbers of each configuration; NaN where unknown.

    Raises:
        SurfaceError: A shape or a value that breaks the above.
    """

    task: str
    family: str
    space: SearchSpace
    metrics: Mapping[str, FloatArray]
    feasible: BoolArray
    constants: Mapping[str, float] = field(default_factory=dict)
    extra: Mapping[str, FloatArray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = (len(self.space),)
        if not self.metrics:
            raise SurfaceError(f"task {self.task!r} has no metrics")
        if self.feasible.shape != shape or self.feasible.dtype != np.bool_:
            got = f"{self.feasible.dtype} of shape {self.feasible.shape}"
            raise SurfaceError(f"task {self.task!r}: feasible must be bool of shape {shape}, got {got}")
        for name, values in {**self.extra, **self.metrics}.items():
            if values.shape != shape:
                raise SurfaceError(f"task {self.task!r}: {name} must have shape {shape}, got {values.shape}")
        for name, values in self.metrics.items():
            good = np.isfinite(values) & (values > 0)
            if not good[self.feasible].all():
                i = int(np.flatnonzero(self.feasible & ~good)[0])
                rule = f"{name} must be positive where feasible"
                raise SurfaceError(f"task {self.task!r}: {rule}, got {values[i]} at {self.space[i]}")
            if not np.isnan(values[~self.feasible]).all():
                raise SurfaceError(f"task {self.task!r}: {name} must be NaN where infeasible")

    @cached_property
    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """What an objective takes as `columns`: knobs, `extra`, and the constants repeated, each of shape `(n,)`."""
        constants = {name: np.full(len(self.space), value) for name, value in self.constants.items()}
        return {**constants, **self.extra, **self.space.columns}


@dataclass(frozen=True, eq=False)
class SurfaceSet:
    """One folder of recorded surfaces.

    Attributes:
        name: Short name of the data set.
        about: What was measured, and on what.
        source: Where the data came from.
        licence: Its licence.
        knobs: The knobs, in order.
        better: Whether `higher` or `lower` is better, by metric.
        missing: What a configuration of the grid without a row means: `infeasible`, or `absent` (not measured).
        cost: Arithmetic expression over knobs and numeric columns that `cost` stands for.
        objectives: By name, `{"maximize": EXPR, "subject_to": [BOUND, ...]}`.
        surfaces: By task.
    """

    name: str
    about: str
    source: str
    licence: str
    knobs: tuple[Knob, ...]
    better: Mapping[str, Literal["higher", "lower"]]
    missing: Literal["infeasible", "absent"]
    cost: str | None
    objectives: Mapping[str, Mapping[str, Any]]
    surfaces: Mapping[str, Surface]

    def task(self, name: str) -> Surface:
        """The surface of a task.

        Raises:
            SurfaceError: There is no such task; the message names some that there are.
        """
        if name not in self.surfaces:
            near = difflib.get_close_matches(name, self.surfaces, n=3, cutoff=0.4)
            some = near or list(self.surfaces)[:5]
            kind = "did you mean" if near else f"its {len(self.surfaces)} tasks begin with"
            raise SurfaceError(f"{self.name} has no task {name!r}; {kind} {', '.join(some)}")
        return self.surfaces[name]

    def objective(self, name: str, task: str) -> ExpressionObjective:
        """An objective with the constants of a task filled in.

        Raises:
            SurfaceError: There is no such objective or no such task.
        """
        if name not in self.objectives:
            known = ", ".join(self.objectives) or "none"
            raise SurfaceError(f"{self.name} has no objective {name!r}; there is {known}")
        return _objective(name, self.objectives[name], self.better, self.cost, self.task(task).constants)


def load_surfaces(folder: Path) -> SurfaceSet:
    """Reads a folder of recorded surfaces.

    Raises:
        SurfaceError: The folder is incomplete or contradicts itself; one line that names file and column.
    """
    path = Path(folder) / DESCRIPTION
    raw = _read_description(path)
    try:
        knobs = tuple(_knob(name, spec) for name, spec in raw["knobs"].items())
        metric_columns, better = _metrics(raw["metrics"])
    except InputError as error:
        raise SurfaceError(f"{path}: {error}") from error
    missing = raw.get("missing", "infeasible")
    if missing not in ("infeasible", "absent"):
        raise SurfaceError(f"{path}: missing is infeasible or absent, got {missing!r}")
    knob_names = [knob.name for knob in knobs]
    if clash := sorted((set(knob_names) & set(better)) | ({"cost"} & {*knob_names, *better})):
        raise SurfaceError(f"{path}: {', '.join(clash)} stands for two things; knobs, metrics and cost need own names")
    if not isinstance(raw.get("table"), str):
        raise SurfaceError(f"{path}: table must name the CSV or Parquet file beside it, got {raw.get('table')!r}")

    table = Table(Path(folder) / raw["table"])
    task_column, family_column = (str(raw.get(key, key)) for key in ("task", "family"))
    tasks, families = table.names(task_column), table.names(family_column)
    codes = np.stack([table.codes(knob) for knob in knobs], axis=1)  # (rows, knobs)
    values = {name: table.numbers(column) for name, column in metric_columns.items()}
    feasible = table.flags(str(raw["feasible"])) if raw.get("feasible") else np.ones(len(tasks), bool)
    used = {task_column, family_column, str(raw.get("feasible", "")), *metric_columns.values(), *better, *knob_names}
    others = table.other_numbers(used)
    needed = _check_expressions(path, raw, {*knob_names, *better, *others})

    builder = _Builder(table.path, knobs, missing, codes, values, feasible, others, needed)
    rows_of: dict[str, list[int]] = {}
    for row, task in enumerate(tasks):
        rows_of.setdefault(task, []).append(row)
    surfaces = {}
    for task, rows in rows_of.items():
        if len(names := {families[row] for row in rows}) > 1:
            raise SurfaceError(f"{table.path}: task {task!r} has two families: {', '.join(sorted(names))}")
        surfaces[task] = builder.surface(task, families[rows[0]], np.array(rows))
    out = SurfaceSet(
        name=str(raw.get("name", Path(folder).name)),
        about=str(raw.get("about", "")).strip(),
        source=str(raw.get("source", "")),
        licence=str(raw.get("licence", "")),
        knobs=knobs,
        better=better,
        missing=missing,
        cost=None if raw.get("cost") is None else str(raw["cost"]),
        objectives={str(name): spec for name, spec in raw.get("objectives", {}).items()},
        surfaces=surfaces,
    )
    _try_objectives(path, out)
    return out


def save_surfaces(folder: Path, surfaces: SurfaceSet) -> None:
    """Writes `surfaces.yaml` and `surfaces.csv`, which `load_surfaces` reads back; the folder is made if need be.

    Raises:
        SurfaceError: The folder cannot be written.
    """
    knob_names = [knob.name for knob in surfaces.knobs]
    others = list(dict.fromkeys(n for s in surfaces.surfaces.values() for n in (*s.constants, *s.extra)))
    taken = {*knob_names, *surfaces.better, *others}
    task, family, feasible = (_free_name(name, taken) for name in ("task", "family", "feasible"))
    description = {
        **{key: getattr(surfaces, key) for key in ("name", "about", "source", "licence")},
        **{"table": "surfaces.csv", "task": task, "family": family},
        "knobs": {k.name: {"kind": k.kind, "scale": k.scale, "values": list(k.values)} for k in surfaces.knobs},
        "metrics": {name: {"column": name, "better": better} for name, better in surfaces.better.items()},
        **{"feasible": feasible, "missing": surfaces.missing},
        **({} if surfaces.cost is None else {"cost": surfaces.cost}),
        "objectives": {name: dict(spec) for name, spec in surfaces.objectives.items()},
    }
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with (Path(folder) / "surfaces.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow([task, family, *knob_names, *surfaces.better, feasible, *others])
            for surface in surfaces.surfaces.values():
                nothing = np.full(len(surface.space), np.nan)
                numbers = [surface.metrics[name] for name in surfaces.better]
                extras = [surface.columns.get(name, nothing) for name in others]
                for i, configuration in enumerate(surface.space.configurations):
                    writer.writerow(
                        [surface.task, surface.family]
                        + [configuration[name] for name in knob_names]
                        + [_cell(column[i]) for column in numbers]
                        + [int(surface.feasible[i])]
                        + [_cell(column[i]) for column in extras]
                    )
        text = yaml.safe_dump(description, sort_keys=False, allow_unicode=True)
        (Path(folder) / DESCRIPTION).write_text(text, encoding="utf-8")
    except OSError as error:
        raise SurfaceError(f"{folder}: cannot be written ({error.strerror})") from error


@dataclass(frozen=True)
class _Builder:
    """Turns the rows of one task into a surface; every array has one entry per row of the table."""

    path: Path
    knobs: tuple[Knob, ...]
    missing: str
    codes: npt.NDArray[np.intp]  # (rows, knobs): position of each value in its knob
    metrics: Mapping[str, FloatArray]
    feasible: BoolArray
    others: Mapping[str, FloatArray]
    needed: frozenset[str]  # names of `others` that cost or an objective uses

    @cached_property
    def grid(self) -> SearchSpace:
        """The full grid, shared by all tasks."""
        try:
            return SearchSpace(self.knobs)
        except InputError as error:
            raise SurfaceError(f"{self.path}: {error}; write missing: absent for a sparse surface") from error

    def surface(self, task: str, family: str, rows: npt.NDArray[np.intp]) -> Surface:
        """The surface of the task whose rows these are."""
        shape = tuple(len(knob.values) for knob in self.knobs)
        position = np.ravel_multi_index(tuple(self.codes[rows].T), shape)  # in the grid
        order = np.argsort(position, kind="stable")  # the order of rows in the file must not change a search
        rows, position = rows[order], position[order]
        if (twice := np.flatnonzero(np.diff(position) == 0)).size:
            row = self._configuration(rows[twice[0]])
            raise SurfaceError(f"{self.path}: task {task!r} has a second row for {row}")
        if not self.feasible[rows].any():
            raise SurfaceError(f"{self.path}: task {task!r} has no feasible row")
        if self.missing == "absent":
            space = SearchSpace(self.knobs, configurations=[self._configuration(row) for row in rows])
            position = np.arange(len(rows))
        else:
            space = self.grid
        feasible = np.zeros(len(space), bool)
        feasible[position] = self.feasible[rows]
        constants: dict[str, float] = {}
        extra: dict[str, FloatArray] = {}
        for name, column in self.others.items():
            known = np.unique(column[rows][np.isfinite(column[rows])])
            if name in self.needed and not np.isfinite(column[rows][self.feasible[rows]]).all():
                raise SurfaceError(f"{self.path}: column {name} lacks a value for a feasible row of task {task!r}")
            if len(known) == 1:
                constants[name] = float(known[0])
            elif len(known) > 1:
                extra[name] = _placed(column[rows], position, len(space))
        metrics = {
            name: np.where(feasible, _placed(column[rows], position, len(space)), np.nan)
            for name, column in self.metrics.items()
        }
        try:
            return Surface(task, family, space, metrics, feasible, constants, extra)
        except SurfaceError as error:
            raise SurfaceError(f"{self.path}: {error}") from error

    def _configuration(self, row: int) -> dict[str, Value]:
        return {knob.name: knob.values[code] for knob, code in zip(self.knobs, self.codes[row])}


def _read_description(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SurfaceError(f"{path}: cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise SurfaceError(f"{path}: is not YAML ({' '.join(str(error).split())[:160]})") from error
    if not isinstance(raw, dict):
        raise SurfaceError(f"{path}: must hold knobs, metrics and objectives, got {raw!r:.80}")
    for key in ("knobs", "metrics", "objectives"):
        if not isinstance(raw.get(key, {}), dict) or (key != "objectives" and not raw.get(key)):
            raise SurfaceError(f"{path}: {key} must map names to descriptions, got {raw.get(key)!r:.80}")
    return raw


def _knob(name: object, spec: object) -> Knob:
    if not isinstance(spec, dict) or not isinstance(spec.get("values"), list):
        raise SurfaceError(f"knob {name!r} needs kind and values: [...], got {spec!r:.80}")
    if bad := [v for v in spec["values"] if not isinstance(v, (int, float, str, bool))]:
        raise SurfaceError(f"knob {name!r}: a value is a number or a text, got {bad[0]!r}")
    return Knob(str(name), tuple(spec["values"]), spec.get("kind", "ordinal"), spec.get("scale", "linear"))


def _metrics(specs: Mapping[object, object]) -> tuple[dict[str, str], dict[str, Literal["higher", "lower"]]]:
    """By metric, the column that holds it and which direction is better."""
    columns: dict[str, str] = {}
    better: dict[str, Literal["higher", "lower"]] = {}
    for name, spec in specs.items():
        if not isinstance(spec, dict) or spec.get("better") not in ("higher", "lower"):
            raise SurfaceError(f"metric {name!r} needs better: higher or better: lower, got {spec!r:.80}")
        columns[str(name)] = str(spec.get("column", name))
        better[str(name)] = spec["better"]
    return columns, better


def _objective(
    name: str,
    spec: Mapping[str, Any],
    metrics: Iterable[str],
    cost: str | None,
    constants: Mapping[str, float] | None = None,
) -> ExpressionObjective:
    bounds = [str(bound) for bound in spec.get("subject_to") or ()]
    metrics = tuple(metrics)
    return ExpressionObjective(name, str(spec["maximize"]), bounds, metrics=metrics, cost=cost, constants=constants)


def _check_expressions(path: Path, raw: Mapping[str, Any], known: Iterable[str]) -> frozenset[str]:
    """Checks that cost and objectives can be read and name only what is `known`; returns the names that they use."""
    names: set[str] = set()
    cost = None if raw.get("cost") is None else str(raw["cost"])
    vocabulary = {*known, *(() if cost is None else ("cost",))}
    texts = [] if cost is None else [("cost", cost)]
    try:
        for name, spec in raw.get("objectives", {}).items():
            if not isinstance(spec, dict) or "maximize" not in spec or not isinstance(spec.get("subject_to", []), list):
                raise SurfaceError(f"objective {name} needs maximize: EXPR and may have subject_to: [BOUND, ...]")
            _objective(str(name), spec, (), cost)
            texts += [(f"objective {name}", str(text)) for text in (spec["maximize"], *spec.get("subject_to", ()))]
        for owner, text in texts:
            used = Expression(text).names
            if unknown := sorted(used - vocabulary | (used & {"cost"} if owner == "cost" else set())):
                raise SurfaceError(f"{owner} names {', '.join(unknown)}; known are {', '.join(sorted(vocabulary))}")
            names |= used
    except InputError as error:
        raise SurfaceError(f"{path}: {error}") from error
    return frozenset(names)


def _try_objectives(path: Path, surfaces: SurfaceSet) -> None:
    """Evaluates every objective, so that a wrong one is refused here and not in the middle of a search."""
    for name in surfaces.objectives:
        for task, surface in surfaces.surfaces.items():
            try:
                values = surfaces.objective(name, task)(surface.columns, surface.metrics)
            except InputError as error:
                raise SurfaceError(f"{path}: objective {name}: {error}") from error
            if (values < 0).any():  # 0 stands for a broken bound, and nothing may rank below it
                raise SurfaceError(f"{path}: objective {name} is negative in task {task!r}; maximize 1 / x, not -x")


def _placed(values: FloatArray, position: npt.NDArray[np.intp], size: int) -> FloatArray:
    """`values` at their positions in an array of `size`, NaN elsewhere."""
    out = np.full(size, np.nan)
    out[position] = values
    return out


def _free_name(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    return name


def _cell(value: float) -> str:
    return "" if math.isnan(value) else repr(float(value))
