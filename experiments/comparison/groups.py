"""Which runs stand in one table: the same data, objective and conditions, and tasks that every row has run."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.comparison.pairs import pairing
from experiments.comparison.results import Results, Run
from morphling_ray.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs that may be compared.

    Attributes:
        dataset: Name of the data set.
        objective: Name of the objective, or several, joined.
        conditions: How they were run, in words.
        searchers: The runs of each, by label; all on the same tasks and seeds.
        left_out: Tasks that were not searched, since no configuration keeps the bounds.
        of_tasks: How many tasks the data set has, if that is known.
    """

    dataset: str
    objective: str
    conditions: str
    searchers: dict[str, list[Run]]
    left_out: frozenset[str] = frozenset()
    of_tasks: int | None = None

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks that were searched."""
        return sorted({run.task for run in next(iter(self.searchers.values()))})

    @property
    def is_part(self) -> bool:
        """Whether tasks that could have been searched were not."""
        return self.of_tasks is not None and len(self.tasks) + len(self.left_out) < self.of_tasks

    @property
    def title(self) -> str:
        """Data set and objective."""
        return f"{self.dataset}, {self.objective}"

    @property
    def extent(self) -> str:
        """How much was run, in words."""
        runs = next(iter(self.searchers.values()))
        seeds, objectives = len({run.seed for run in runs}), len({run.objective for run in runs})
        parts = [
            f"{len(self.tasks)} of {_many(self.of_tasks or 0, 'task')}"
            if self.is_part
            else _many(len(self.tasks), "task"),
            _many(seeds, "seed"),
            *([f"{objectives} objectives"] if objectives > 1 else []),
        ]
        return f"{_many(len(runs), 'run')} each ({', '.join(parts)})"


def groups_of(files: Sequence[Results]) -> list[Group]:
    """The groups of one or several results files, in the order of the files.

    Runs of the same searcher under other training (a shuffled prior, say) are rows of the same group. Where searchers
    have run on different tasks, each set of tasks that one has run makes a group, with everybody who has run it all. A
    data set with several objectives also gets a group with all of them.

    Raises:
        InputError: Two files have other data under the same name.
    """
    sizes = _sizes(files)
    by_place: dict[tuple[str, str, str], dict[str, list[Run]]] = {}
    left_out: dict[str, set[str]] = {}
    for file in files:
        conditions = _conditions(file.meta.get("settings", {}), file.runs.values())
        order = {name: i for i, name in enumerate(file.meta.get("searchers", []))}
        for run in sorted(file.runs.values(), key=lambda run: order.get(run.searcher, len(order))):
            by_place.setdefault((run.dataset, run.objective, conditions), {}).setdefault(run.label, []).append(run)
        for place, tasks in file.meta.get("left_out", {}).items():
            left_out.setdefault(place, set()).update(tasks)
    out: list[Group] = []
    pooled: dict[tuple[str, str], dict[str, dict[str, list[Run]]]] = {}
    for (dataset, objective, conditions), labels in by_place.items():
        hopeless = frozenset(left_out.get(f"{dataset}, {objective}", ()))
        out += _on_equal_tasks(dataset, objective, conditions, labels, hopeless, sizes.get(dataset))
        pooled.setdefault((dataset, conditions), {})[objective] = labels
    for (dataset, conditions), objectives in pooled.items():
        if len(objectives) > 1:
            names = [name for labels in objectives.values() for name in labels]
            everywhere = [n for n in dict.fromkeys(names) if all(n in labels for labels in objectives.values())]
            together = {n: [run for labels in objectives.values() for run in labels[n]] for n in everywhere}
            out += _on_equal_tasks(dataset, " + ".join(objectives), conditions, together)
    return out


def _on_equal_tasks(
    dataset: str,
    objective: str,
    conditions: str,
    labels: dict[str, list[Run]],
    left_out: frozenset[str] = frozenset(),
    of_tasks: int | None = None,
) -> list[Group]:
    """One group for each set of tasks and seeds that some searcher has run, the largest first."""
    ran = {label: frozenset(map(pairing, runs)) for label, runs in labels.items()}
    out = []
    for extent in sorted(dict.fromkeys(ran.values()), key=lambda e: (-len(e), sorted(e))):
        rows = {}
        for label, runs in labels.items():
            if ran[label] >= extent:
                # By pairing, so that a run that two files have counts once: the later file's.
                kept = {pairing(run): run for run in runs if pairing(run) in extent}
                rows[label] = [kept[key] for key in sorted(kept)]
        out.append(
            Group(
                dataset=dataset,
                objective=objective,
                conditions=conditions,
                searchers=rows,
                left_out=left_out,
                of_tasks=of_tasks,
            )
        )
    return out


def _sizes(files: Sequence[Results]) -> dict[str, int]:
    """How many tasks each data set has."""
    sizes: dict[str, int] = {}
    data: dict[str, str] = {}
    for file in files:
        for name, about in file.meta.get("datasets", {}).items():
            if data.setdefault(name, about["data"]) != about["data"]:
                raise InputError(f"{file.path}: {name} has other data than in the files before it; report them apart")
            if "tasks" in about:
                sizes[name] = int(about["tasks"])
    return sizes


def _many(n: int, thing: str) -> str:
    return f"{n} {thing}{'s' * (n != 1)}"


def _conditions(settings: dict[str, Any], runs: Iterable[Run]) -> str:
    budget = settings.get("budget") or max((len(run.quality) for run in runs), default=0)
    parts = [f"budget {budget} samples"]
    if "noise" in settings:
        parts.append(f"{100 * settings['noise']:g} % noise")
    if settings.get("train_on"):
        parts.append(f"learned from {len(settings['train_on'])} tasks that are not searched")
    elif "hold_out" in settings:
        parts.append({"family": "whole families held out", "task": "single tasks held out"}[settings["hold_out"]])
    return ", ".join(parts)
