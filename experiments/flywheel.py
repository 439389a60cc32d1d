"""What earlier searches are worth to the next one: `python -m experiments.flywheel --surfaces DIR --objective NAME`.

Every recorded model is searched by `morphling` when 0, 1, 2, 5, 10 or 20 others are known, drawn from other families,
each by one finished search of its own of 12 trials without any prior: as `morphling_ray.train --from RUNS` learns from
run directories. Counted are samples until what is recommended is within 5 % of the best there is.
"""

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from experiments.comparison.datasets import Dataset, seed_of
from experiments.comparison.protocol import Problem, search
from experiments.comparison.statistics import NEAR, Reach, samples_to
from experiments.comparison.table import count_text
from morphling_ray.errors import InputError, MorphlingError
from morphling_ray.evaluate.replay import ReplayEvaluator
from morphling_ray.measurement import Measurement
from morphling_ray.meta.tasks import TrainingTask
from morphling_ray.search import SEARCHERS
from morphling_ray.train import task_of_search

KNOWN = (0, 1, 2, 5, 10, 20)
TRIALS, BUDGET, NOISE = 12, 24, 0.05
WITHOUT, WITH = "gp", "morphling"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0, or 2 for input that cannot work."""
    parser = argparse.ArgumentParser(prog="python -m experiments.flywheel", description=__doc__)
    parser.add_argument("--surfaces", type=Path, default=Path("experiments/surfaces/zoo"), metavar="DIR")
    parser.add_argument("--objective", default="rps_per_dollar", metavar="NAME")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="draws of the known models (default 3)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON lines; written anew")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), metavar="N", help="at once")
    arguments = parser.parse_args(argv)
    try:
        dataset = Dataset.open(arguments.surfaces)
        counts = _all(dataset, arguments.objective, arguments.seeds, arguments.processes)
    except MorphlingError as error:
        print(f"flywheel: {error}", file=sys.stderr)
        return 2
    print("| earlier searches known | samples to within 5 %, median / 90th percentile | mean |\n|---|---|---|")
    for known, found in counts.items():
        reach = Reach.of(found, BUDGET)
        told = f"{count_text(reach.median, BUDGET)} / {count_text(reach.p90, BUDGET)}"
        print(f"| {known} | {told} | {np.mean(found):.1f} |")
    if arguments.out:
        about = {"surfaces": dataset.name, "data": dataset.data, "objective": arguments.objective}
        lines = [json.dumps({**about, "known": known, "samples": found}) for known, found in counts.items()]
        arguments.out.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return 0


def _all(dataset: Dataset, objective: str, seeds: int, processes: int) -> dict[int, list[int]]:
    """Samples to within 5 % of every model and seed, by how many others are known; one more than the budget: never."""
    sizes = Counter(surface.family for surface in dataset.surfaces.surfaces.values())
    if len(sizes) < 2:
        raise InputError(f"{dataset.name} has one family only: nothing is known of any other")
    known = [n for n in KNOWN if n <= sizes.total() - max(sizes.values())]
    cases = [(n, task, seed) for n in known for seed in range(seeds) for task in dataset.surfaces.surfaces]
    one = partial(samples_of, dataset, objective)
    if processes == 1:
        found = list(map(one, *zip(*cases)))
    else:
        with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
            found = list(pool.map(one, *zip(*cases)))
    return {n: [count for case, count in zip(cases, found) if case[0] == n] for n in known}


def samples_of(dataset: Dataset, objective: str, known: int, task: str, seed: int) -> int:
    """One search.

    Args:
        dataset: Recorded surfaces.
        objective: One of theirs.
        known: How many models of other families there are searches of.
        task: Is searched.
        seed: Of the draw, the noise and the searches.

    Returns:
        Samples until what is recommended is within 5 % of the best.
    """
    surfaces = dataset.surfaces
    others = [name for name, s in surfaces.surfaces.items() if s.family != surfaces.task(task).family]
    rng = np.random.default_rng(seed_of("known", dataset.name, task, seed))
    drawn = rng.permutation(others)[:known].tolist()  # the same ones, and more
    problem = Problem.of(surfaces, objective, task, NOISE)
    with threadpool_limits(1):
        earlier = [found for name in drawn if (found := finished(dataset, objective, name, seed)) is not None]
        method = SEARCHERS[WITH]
        learned = method.learned(earlier, problem.objective, seed)
        sampler = method.make(
            problem.surface.space, problem.objective, seed=seed_of("sampler", task, seed), learned=learned
        )
        noise_seed = seed_of("noise", dataset.name, task, seed)
        done = search(problem, sampler, budget=BUDGET, noise=NOISE, noise_seed=noise_seed)
    return samples_to(done.quality_clear, NEAR)


@lru_cache(maxsize=1024)
def finished(dataset: Dataset, objective: str, task: str, seed: int) -> TrainingTask | None:
    """What a finished search of a model leaves behind."""
    problem = Problem.of(dataset.surfaces, objective, task, NOISE)
    sampler = SEARCHERS[WITHOUT].make(problem.surface.space, problem.objective, seed=seed_of("earlier", task, seed))
    evaluator = ReplayEvaluator(problem.surface, problem.objective, noise=NOISE, seed=seed_of("earlier noise", seed))
    measured: list[Measurement] = []
    while len(measured) < TRIALS and (configuration := sampler.suggest()) is not None:
        measured.append(evaluator.measure(configuration))
        sampler.observe(configuration, measured[-1])
    return task_of_search(task, problem.surface.family, measured)


if __name__ == "__main__":
    sys.exit(main())
