"""Chooses what the Morphling paper leaves open of `maml`, by holding out families of recorded surfaces.

    python -m experiments.choose_maml --surfaces DIR --objective NAME --out FILE.jsonl

One setting is varied at a time, beginning with the defaults; a value that scores better than the best so far is kept.
The score is the mean over tasks of held-out families, seeds and the first samples of a search: how good the best
measured configuration really is, as a share of the optimum. Every value tried appends one line to the file.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from experiments.comparison.datasets import Dataset, folds, open_all, seed_of
from experiments.comparison.planning import Unit, plan
from experiments.comparison.protocol import Problem, search
from experiments.comparison.settings import Settings
from experiments.comparison.training import learning_objective, training_names, training_tasks
from morphling_ray.errors import InputError, MorphlingError
from morphling_ray.meta.maml import Learned, MamlSettings, learn
from morphling_ray.search.maml import MamlSampler

# In this order. A setting of the search alone is tried without training again.
SEARCHING: Mapping[str, Sequence[Any]] = {
    "online_steps": (None, 3, 30),
    "delta": (0.0, 0.3, 3.0),
    "mean": ("before",),
    "online_rate": (0.03, 0.3),
    "online_data": ("newest",),
    "restart": (True,),
    "corners": (True,),
}
TRAINING: Mapping[str, Sequence[Any]] = {
    "alpha": (0.05, 0.2),
    "activation": ("silu", "relu"),
    "beta": (2e-3, 1e-2),
    "episodes": (600,),
    "shots": (10, 36),
    "query": ("same",),
    "inner_steps": (3,),
    "outer": ("sgd",),
    "input_scale": (2.0,),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0, or 2 for input that cannot work."""
    about = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m experiments.choose_maml", description=about)
    parser.add_argument("--surfaces", action="append", required=True, type=Path, metavar="DIR", help="repeatable")
    parser.add_argument("--objective", action="append", required=True, metavar="NAME", help="repeatable")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="JSON lines; appended to")
    parser.add_argument("--only", metavar="A,B", help="settings to vary, in this order (default: all)")
    parser.add_argument("--begin", default="{}", metavar="JSON", help="settings to begin with, where not the defaults")
    parser.add_argument("--families", type=int, metavar="N", help="hold out the N largest only (default: each)")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="trainings and searches (default 1)")
    parser.add_argument("--budget", type=int, default=20, metavar="N", help="samples of each search (default 20)")
    parser.add_argument("--noise", type=float, default=0.03, metavar="F", help="of each metric (default 0.03)")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="at once (default 1)")
    arguments = parser.parse_args(argv)
    try:
        _choose(arguments)
    except MorphlingError as error:
        print(f"choose_maml: {error}", file=sys.stderr)
        return 2
    return 0


def _choose(arguments: argparse.Namespace) -> None:
    values = {**SEARCHING, **TRAINING}
    names = list(values) if arguments.only is None else arguments.only.split(",")
    if unknown := [name for name in names if name not in values]:
        raise InputError(f"--only {unknown[0]}: choose of {', '.join(values)}")
    try:
        best = replace(MamlSettings(), **json.loads(arguments.begin))
    except (ValueError, TypeError) as error:
        raise InputError(f"--begin {arguments.begin}: {error}") from error
    settings = Settings(budget=arguments.budget, noise=arguments.noise)
    datasets = open_all(arguments.surfaces)
    units = _largest(plan(settings, datasets, arguments.objective, ["maml"], seeds=arguments.seeds).units, arguments)
    about = {
        "surfaces": {dataset.name: dataset.data for dataset in datasets},
        "objectives": arguments.objective,
        "held_out": sorted({f"{unit.dataset.name}/{unit.fold}" for unit in units}),
        "tasks": sum(len(unit.tasks) for unit in units) // arguments.seeds,
        **{name: getattr(arguments, name) for name in ("seeds", "budget", "noise")},
    }
    pool = None if arguments.processes == 1 else ProcessPoolExecutor(arguments.processes, get_context("spawn"))

    def score(candidate: MamlSettings, varied: str) -> float:
        began = time.monotonic()
        search_all = partial(qualities_of, settings, candidate)
        found = float(np.mean(np.concatenate(list((map if pool is None else pool.map)(search_all, units)))))
        took = {"seconds": round(time.monotonic() - began, 1), "date": time.strftime("%Y-%m-%d")}
        line = {"score": round(found, 4), "varied": varied, "settings": asdict(candidate), **about, **took}
        with arguments.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(f"{found:.4f}  {varied}", flush=True)
        return found

    best_score = score(best, "begin")
    for name in names:
        for value in values[name]:
            candidate = replace(best, **{name: value})
            if candidate != best and (found := score(candidate, f"{name}={value}")) > best_score:
                best, best_score = candidate, found
    if pool is not None:
        pool.shutdown()
    print(json.dumps(asdict(best)))


def _largest(units: Sequence[Unit], arguments: argparse.Namespace) -> list[Unit]:
    """The units of the largest families of each data set."""
    kept = {}
    for dataset in {unit.dataset for unit in units}:
        families = folds(dataset.surfaces, "family")
        kept[dataset] = sorted(families, key=lambda name: -len(families[name]))[: arguments.families]
    return [unit for unit in units if unit.fold in kept[unit.dataset]]


def qualities_of(settings: Settings, candidate: MamlSettings, unit: Unit) -> list[list[float]]:
    """Searches the tasks of a held-out family.

    Returns:
        For each task, true share of the optimum of what is recommended after each sample.
    """
    out = []
    with threadpool_limits(1):
        defaults = {name: getattr(MamlSettings(), name) for name in SEARCHING}
        learned = _learned(settings, replace(candidate, **defaults), unit.dataset, unit.objective, unit.fold, unit.seed)
        for task in unit.tasks:
            problem = Problem.of(unit.dataset.surfaces, unit.objective, task, settings.noise)
            sampler = MamlSampler(
                problem.surface.space,
                problem.objective,
                seed=seed_of("sampler", unit.dataset.name, task, unit.seed),
                learned=learned,
                settings=candidate,
            )
            noise_seed = seed_of("noise", unit.dataset.name, task, unit.seed)
            found = search(problem, sampler, budget=settings.budget, noise=settings.noise, noise_seed=noise_seed)
            out.append(found.quality)
    return out


@lru_cache(maxsize=256)
def _learned(
    settings: Settings, candidate: MamlSettings, dataset: Dataset, objective: str, fold: str, seed: int
) -> Learned | None:
    """What is learned with a family held out; once for all settings of the search alone."""
    tasks = training_tasks(settings, dataset, training_names(settings, dataset, fold, seed), seed)
    return learn(tasks, learning_objective(dataset, objective), seed, candidate)


if __name__ == "__main__":
    sys.exit(main())
