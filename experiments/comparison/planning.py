"""What there is to run, in units that are learned for once."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import numpy as np

from experiments.comparison.datasets import Dataset, folds, seed_of
from experiments.comparison.protocol import Problem
from experiments.comparison.results import Key
from experiments.comparison.settings import Settings
from morphling_ray.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Searches of one searcher that share what was learned: the tasks of a fold, with one seed."""

    dataset: Dataset
    objective: str
    fold: str
    tasks: tuple[str, ...]
    searcher: str
    seed: int

    def __str__(self) -> str:
        return f"{self.searcher} on {self.dataset.name}, {self.objective}, {self.fold}, seed {self.seed}"

    def key(self, task: str) -> Key:
        """What tells its run of a task apart."""
        return self.dataset.name, self.objective, self.searcher, task, self.seed


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be run.

    Attributes:
        units: In an order in which partial results can be compared: searcher by searcher within each fold.
        left_out: By `DATASET, OBJECTIVE`, tasks in which no configuration keeps the bounds.
        notes: What else a reader must know.
    """

    units: Sequence[Unit]
    left_out: dict[str, list[str]]
    notes: list[str]


def plan(
    settings: Settings,
    datasets: Sequence[Dataset],
    objectives: Sequence[str],
    searchers: Sequence[str],
    *,
    seeds: int,
    tasks: str = "*",
    subset: int | None = None,
) -> Plan:
    """Lists the units of a comparison.

    Args:
        settings: How each is run.
        datasets: What is searched.
        objectives: Names; each data set is searched for those that it has.
        searchers: Names.
        seeds: How often each task is searched.
        tasks: Pattern of the names of tasks that are searched; all others are still learned from.
        subset: How many of those are searched, drawn alike for every searcher and objective; None for all.

    Raises:
        InputError: No objective or no task is left.
    """
    units, left_out, notes = [], {}, []
    for dataset in datasets:
        surfaces = dataset.surfaces
        matching = [t for t in surfaces.surfaces if fnmatchcase(t, tasks) and t not in settings.train_on]
        if not matching:
            notes.append(f"{dataset.name} has no task that matches {tasks!r}")
            continue
        if subset is not None and subset < len(matching):
            rng = np.random.default_rng(seed_of("subset", dataset.name))
            matching = sorted(rng.permutation(sorted(matching))[:subset].tolist())
        cut = folds(surfaces, settings.hold_out)
        if settings.train_on:
            cut = {task: [task] for task in matching}  # what is learned is the same for all
        elif len(cut) == 1 and settings.learn_from is None and settings.learn_also is None:
            notes.append(f"{dataset.name} has one {settings.hold_out} only: nothing is left to learn from")
        for objective in objectives:
            if objective not in surfaces.objectives:
                known = ", ".join(surfaces.objectives) or "none"
                notes.append(f"{dataset.name} has no objective {objective}, only {known}: skipped")
                continue
            hopeless = [t for t in matching if not Problem.of(surfaces, objective, t, settings.noise).best > 0]
            if hopeless:
                left_out[f"{dataset.name}, {objective}"] = hopeless
            for fold, members in cut.items():
                if chosen := tuple(t for t in members if t in matching and t not in hopeless):
                    units += [
                        Unit(
                            dataset=dataset, objective=objective, fold=fold, tasks=chosen, searcher=searcher, seed=seed
                        )
                        for seed in range(seeds)
                        for searcher in searchers
                    ]
    if not units:
        why = "; ".join(notes) or "no configuration of any task keeps the bounds"
        raise InputError(f"nothing to compare: {why}")
    units.sort(key=lambda unit: unit.seed)  # the first seed of everything, then the second
    return Plan(units=units, left_out=left_out, notes=notes)


def missing(units: Sequence[Unit], done: Collection[Key]) -> list[Unit]:
    """The units without the tasks that are done."""
    rest = [replace(unit, tasks=tuple(t for t in unit.tasks if unit.key(t) not in done)) for unit in units]
    return [unit for unit in rest if unit.tasks]
