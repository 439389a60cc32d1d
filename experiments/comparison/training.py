"""What a searcher may learn from: everything outside the held-out fold, or a worse prior on purpose."""

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

from experiments.comparison.datasets import Dataset, seed_of
from experiments.comparison.settings import Settings, kept_values
from morphling_ray.meta.tasks import TrainingTask
from morphling_ray.objective import ExpressionObjective
from morphling_ray.space import Configuration, Knob, Value


def training_names(settings: Settings, dataset: Dataset, fold: str, seed: int) -> tuple[str, ...]:
    """Names of the tasks to learn from; no task of the fold, in another data set neither.

    Args:
        settings: Where they come from, and how many.
        dataset: The set that is searched.
        fold: Name of the family or task that is held out.
        seed: Of the draw, if not all are taken.
    """
    source = dataset if settings.learn_from is None else settings.learn_from
    if settings.train_on:
        names = list(settings.train_on)
    else:
        names = [
            name
            for name, s in source.surfaces.surfaces.items()
            if fold not in _folds(settings, name, s.family, elsewhere=settings.learn_from is not None)
        ]
    if settings.train_tasks is not None and settings.train_tasks < len(names):
        rng = np.random.default_rng(seed_of("training tasks", source.name, fold, seed))
        drawn = rng.choice(len(names), settings.train_tasks, replace=False)
        names = [names[i] for i in sorted(drawn)]
    return tuple(names)


def names_beside(settings: Settings, fold: str) -> tuple[str, ...]:
    """Names of the tasks of `settings.learn_also`, but for those that are of the fold."""
    if settings.learn_also is None:
        return ()
    every = settings.learn_also.surfaces.surfaces
    return tuple(name for name, s in every.items() if fold not in _folds(settings, name, s.family, elsewhere=True))


def tasks_beside(settings: Settings, names: Sequence[str]) -> list[TrainingTask]:
    """The named tasks of `settings.learn_also`, as they are."""
    if settings.learn_also is None:
        return []
    tasks = [TrainingTask.of_surface(settings.learn_also.surfaces.task(name)) for name in names]
    return [task for task in tasks if task.feasible.any()]


def training_tasks(settings: Settings, dataset: Dataset, names: Sequence[str], seed: int) -> list[TrainingTask]:
    """The named tasks, with what the settings take from them or do to them."""
    source = (dataset if settings.learn_from is None else settings.learn_from).surfaces
    tasks = [TrainingTask.of_surface(source.task(name)) for name in names]
    if settings.train_cells is not None:
        tasks = [_part(task, settings.train_cells, seed) for task in tasks]
    if settings.drop_values:
        knobs = [_of_values(knob, kept_values(knob, settings.drop_values)) for knob in source.knobs]
        tasks = [_with_knobs(task, knobs) for task in tasks]
    if settings.drop_knob is not None:
        tasks = without_knob(tasks, settings.drop_knob)
    if settings.shuffle_prior:
        tasks = [shuffled(task, seed) for task in tasks]
    return [task for task in tasks if task.feasible.any()]  # a method may expect that something worked


def learning_objective(dataset: Dataset, name: str) -> ExpressionObjective:
    """The objective to learn for. It holds no task's constants: training tasks bring their own as columns."""
    surfaces = dataset.surfaces
    spec = surfaces.objectives[name]
    bounds = [str(bound) for bound in spec.get("subject_to") or ()]
    metrics = tuple(surfaces.better)
    return ExpressionObjective(name, str(spec["maximize"]), bounds, metrics=metrics, cost=surfaces.cost)


def shuffled(task: TrainingTask, seed: int) -> TrainingTask:
    """The same rows under other configurations; equal configurations are exchanged alike in all tasks.

    Configurations are ordered by a random number of their own, and the k-th of them in that order gets the row of the
    k-th in the order of the task: one permutation for all tasks that measured the same configurations.
    """
    names = sorted(knob.name for knob in task.knobs)
    keys = [
        blake2b(repr((seed, [c[name] for name in names])).encode(), digest_size=8).digest() for c in task.configurations
    ]
    ranks = np.argsort(np.argsort(np.array(keys), kind="stable"), kind="stable")
    return _take(task, ranks.tolist(), task.configurations, task.knobs)


def without_knob(tasks: Sequence[TrainingTask], name: str) -> list[TrainingTask]:
    """Tasks measured at one value of a knob, which then is no knob of theirs but, if a number, a constant.

    The value is the one with the most rows over all tasks, among equals the first.
    """
    if not tasks:
        return []
    knob = next(knob for knob in tasks[0].knobs if knob.name == name)
    values = [c[name] for task in tasks for c in task.configurations]
    fixed = max(knob.values, key=values.count)
    out = []
    for task in tasks:
        rows = _where([c[name] == fixed for c in task.configurations])
        configurations = [{k: v for k, v in task.configurations[i].items() if k != name} for i in rows]
        known = {name: float(fixed)} if knob.kind == "ordinal" else {}
        knobs = [k for k in task.knobs if k.name != name]
        out.append(_take(task, rows, configurations, knobs, known))
    return out


def _where(flags: Sequence[bool]) -> list[int]:
    return [i for i, flag in enumerate(flags) if flag]


def _folds(settings: Settings, task: str, family: str, *, elsewhere: bool) -> set[str]:
    """The folds that a task must not be learned from for: in another set, a task of the fold's name is it too."""
    return {task, family} if elsewhere else {family if settings.hold_out == "family" else task}


def _of_values(knob: Knob, values: Sequence[Value]) -> Knob:
    return Knob(knob.name, tuple(values), knob.kind, knob.scale)


def _with_knobs(task: TrainingTask, knobs: Sequence[Knob]) -> TrainingTask:
    """The rows whose every value is one of the knobs'."""
    allowed = {knob.name: set(map(str, knob.values)) for knob in knobs}
    rows = _where([all(str(c[k]) in allowed[k] for k in allowed) for c in task.configurations])
    return _take(task, rows, [task.configurations[i] for i in rows], knobs)


def _part(task: TrainingTask, count: int, seed: int) -> TrainingTask:
    """Some rows of a task, drawn."""
    rng = np.random.default_rng(seed_of("training rows", task.task, seed))
    rows = sorted(rng.permutation(len(task.configurations))[:count].tolist())
    return _take(task, rows, [task.configurations[i] for i in rows], task.knobs)


def _take(
    task: TrainingTask,
    rows: list[int],
    configurations: Sequence[Configuration],
    knobs: Sequence[Knob],
    constants: dict[str, float] | None = None,
) -> TrainingTask:
    """Rows of a task, given to as many configurations."""
    return TrainingTask(
        task=task.task,
        family=task.family,
        knobs=tuple(knobs),
        configurations=list(configurations),
        metrics={name: values[rows] for name, values in task.metrics.items()},
        feasible=task.feasible[rows],
        constants={**task.constants, **(constants or {})},
        extra={name: values[rows] for name, values in task.extra.items()},
    )
