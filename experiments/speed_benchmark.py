"""How long searchers take to think: fitting a prior, and one round of a search.

    python -m experiments.speed_benchmark [--rounds 15] [--searchers morphling,gp,optuna-gp,botorch,vizier]

One thread. A round is a suggestion, telling what it measured, and asking for a recommendation. The tasks are made up (a
batch takes a fixed and a growing time, cores help less and less): what they are does not matter to how long it takes.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Sequence

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
os.environ.update(dict.fromkeys(THREADS, "1"))  # before anything that computes is imported

import numpy as np  # noqa: E402

from morphling_ray.measurement import Measurement  # noqa: E402
from morphling_ray.meta.fit import fit_prior  # noqa: E402
from morphling_ray.meta.prior import Prior  # noqa: E402
from morphling_ray.meta.tasks import TrainingTask  # noqa: E402
from morphling_ray.objective import ExpressionObjective  # noqa: E402
from morphling_ray.search import SEARCHERS  # noqa: E402
from morphling_ray.space import Configuration, Knob, SearchSpace  # noqa: E402

TASKS = 40
OBJECTIVE = ExpressionObjective(
    "value", "rps / cost", ["latency_ms <= 100"], metrics=("rps", "latency_ms"), cost="0.5 + cores"
)
LARGE_FOR = ("morphling", "gp", "random")  # the others would take minutes a round


def space(batches: int, cores: int, waits: int) -> SearchSpace:
    """A space of `batches * cores * waits` configurations."""
    return SearchSpace(
        [
            Knob("batch", tuple(range(1, batches + 1)), scale="log"),
            Knob("cores", tuple(range(1, cores + 1)), scale="log"),
            Knob("wait_ms", tuple(range(waits)), scale="linear"),
        ]
    )


def measure(task: int, configuration: Configuration) -> Measurement:
    """What a made-up model does in a configuration."""
    fixed, item, scaling = np.exp(np.random.default_rng([7, task]).normal([2.5, 0.5, -0.4], [0.5, 0.5, 0.2]))
    batch, cores, wait = (float(configuration[name]) for name in ("batch", "cores", "wait_ms"))
    latency = fixed + item * batch * cores ** -float(scaling) + wait
    if batch > 40:
        return Measurement(configuration=configuration, infeasible_because="out of memory")
    return Measurement(configuration=configuration, metrics={"rps": 1e3 * batch / latency, "latency_ms": latency})


def training(task: int, where: SearchSpace) -> TrainingTask:
    """The whole surface of a made-up model."""
    measured = [measure(task, c) for c in where.configurations]
    return TrainingTask(
        task=f"task-{task}",
        family=f"family-{task % 10}",
        knobs=where.knobs,
        configurations=where.configurations,
        metrics={m: np.array([x.metrics.get(m, np.nan) for x in measured]) for m in OBJECTIVE.metrics},
        feasible=np.array([x.feasible for x in measured]),
    )


def seconds_of_rounds(name: str, where: SearchSpace, learned: Prior | None, rounds: int) -> list[float]:
    """Seconds of each round; the first, which also sets up, is left out."""
    sampler = SEARCHERS[name].make(where, OBJECTIVE, seed=0, learned=learned if name == "morphling" else None)
    out = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        configuration = sampler.suggest()
        if configuration is None:
            break
        suggested = time.perf_counter() - began
        measurement = measure(TASKS, configuration)
        began = time.perf_counter()
        sampler.observe(configuration, measurement)
        sampler.recommend()
        out.append(suggested + time.perf_counter() - began)
    return out[1:]


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a table of times; returns 0."""
    parser = argparse.ArgumentParser(prog="python -m experiments.speed_benchmark", description=(__doc__ or "")[:76])
    parser.add_argument("--rounds", type=int, default=15, metavar="N")
    parser.add_argument("--searchers", default="morphling,gp,random,optuna-tpe,optuna-gp,botorch,vizier", metavar="A,B")
    arguments = parser.parse_args(argv)
    import torch

    torch.set_num_threads(1)
    small = space(10, 8, 10)
    tasks = [training(t, small) for t in range(TASKS)]
    fits = []
    for seed in range(3):
        began = time.perf_counter()
        prior = fit_prior(tasks, seed=seed)
        fits.append(time.perf_counter() - began)
    say = sys.stdout.write
    say(f"fitting a prior on {TASKS} tasks x {len(small)} configurations: median {statistics.median(fits):.1f} s\n\n")
    say("| searcher | configurations | rounds | median ms | worst ms |\n|---|---|---|---|---|\n")
    for where in (space(10, 10, 10), space(20, 25, 40)):
        for name in arguments.searchers.split(","):
            if len(where) > 1000 and name not in LARGE_FOR:
                continue
            taken = [1e3 * s for s in seconds_of_rounds(name, where, prior, arguments.rounds)]
            cells = (name, f"{len(where):,}", str(len(taken)), f"{statistics.median(taken):.1f}", f"{max(taken):.0f}")
            say(f"| {' | '.join(cells)} |\n")
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
