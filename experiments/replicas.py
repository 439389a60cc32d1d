"""What it is worth that replicas are known to be copies: `python -m experiments.replicas [--seeds 1]`.

The recorded models of the zoo, each as if it could have 1 to 16 replicas, under laws of how these add up: nothing of
this was recorded, it shows what the search makes of a knob that its prior never saw. A family of models is held out of
all learning. `num_replicas` is the knob by its own name (`morphling_ray/meta/copies.py` knows what it does), `a knob`
the same space with the knob called otherwise, `gp` has no prior. Prints samples to within 5 % of the best, median and
number by which nine in ten searches are there, and the mean quality after 2 and 5 samples.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from experiments.comparison.protocol import Problem, search
from experiments.comparison.statistics import NEAR, Reach, samples_to
from experiments.comparison.table import count_text
from morphling_ray.meta.copies import KNOB
from morphling_ray.meta.fit import fit_prior
from morphling_ray.meta.prior import Prior
from morphling_ray.meta.tasks import TrainingTask
from morphling_ray.objective import ExpressionObjective
from morphling_ray.search import SEARCHERS
from morphling_ray.space import Knob, SearchSpace
from morphling_ray.surface import Surface, load_surfaces

ZOO = Path(__file__).parent / "surfaces" / "zoo"
REPLICAS = (1, 2, 4, 8, 16)
BUDGET, NOISE = 16, 0.05
LAWS: dict[str, Callable[[int], float]] = {
    "each adds what the first has": float,
    "they get in each other's way: 3 % less at each doubling": lambda n: n * (1 - 0.03 * np.log2(n)),
    "they share a queue well: 4 % more at each doubling": lambda n: n * (1 + 0.04 * np.log2(n)),
    "nothing is gained above 4": lambda n: n if n <= 4 else 4 * (1 - 0.05 * np.log2(n / 4)),
}
OBJECTIVES = {
    "rps": ("peak_rps", "1"),
    "rps_per_dollar": ("peak_rps / cost", "{n} * (0.2 + 0.02 * cpu_cores)"),
    "rps_per_dollar, $1.50 beside": ("peak_rps / cost", "1.5 + {n} * (0.2 + 0.02 * cpu_cores)"),
}
SEARCHES = (("num_replicas", KNOB, "morphling"), ("a knob", "copies", "morphling"), ("gp", KNOB, "gp"))


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a table; returns 0."""
    parser = argparse.ArgumentParser(prog="python -m experiments.replicas", description=(__doc__ or "")[:72])
    parser.add_argument("--seeds", type=int, default=1, metavar="N")
    parser.add_argument("--tasks", type=int, metavar="N", help="the first N models only")
    arguments = parser.parse_args(argv)
    tasks = list(load_surfaces(ZOO).surfaces.values())
    priors = {family: _prior([t for t in tasks if t.family != family]) for family in {t.family for t in tasks}}
    say = sys.stdout.write
    say("| replicas | objective | as | samples | quality after 2 | 5 |\n|---|---|---|---|---|---|\n")
    for law, scale in LAWS.items():
        for objective in OBJECTIVES:
            for name, knob, searcher in SEARCHES:
                curves = [
                    _search(task, scale, objective, knob, searcher, priors[task.family], seed)
                    for task in tasks[: arguments.tasks]
                    for seed in range(arguments.seeds)
                ]
                reach = Reach.of([samples_to(curve, NEAR) for curve in curves], BUDGET)
                samples = f"{count_text(reach.median, BUDGET)} / {count_text(reach.p90, BUDGET)}"
                quality = np.mean(curves, 0)
                say(f"| {law} | {objective} | {name} | {samples} | {quality[1]:.2f} | {quality[4]:.2f} |\n")
                sys.stdout.flush()
    return 0


def _prior(tasks: Sequence[Surface]) -> Prior:
    return fit_prior([TrainingTask.of_surface(t) for t in tasks], seed=0)


def _search(
    task: Surface, scale: Callable[[int], float], objective: str, knob: str, searcher: str, prior: Prior, seed: int
) -> list[float]:
    """Quality of what is recommended after each sample."""
    space = SearchSpace(
        [*task.space.knobs, Knob(knob, REPLICAS, scale="log")],
        configurations=[{**c, knob: n} for c in task.space.configurations for n in REPLICAS],
    )
    peak_rps = np.outer(task.metrics["peak_rps"], [scale(n) for n in REPLICAS]).ravel()
    copies = Surface(task.task, task.family, space, {"peak_rps": peak_rps}, task.feasible.repeat(len(REPLICAS)))
    maximised, cost = OBJECTIVES[objective]
    known = ExpressionObjective(objective, maximised, [], metrics=("peak_rps",), cost=cost.format(n=knob))
    truth = np.where(copies.feasible, known(copies.columns, copies.metrics), 0.0)
    problem = Problem(copies, known, truth, float(truth.max()), float(truth.max()))
    learned = prior if searcher == "morphling" else None
    sampler = SEARCHERS[searcher].make(space, known, seed=seed, learned=learned)
    return search(problem, sampler, budget=BUDGET, noise=NOISE, noise_seed=seed).quality


if __name__ == "__main__":
    sys.exit(main())
