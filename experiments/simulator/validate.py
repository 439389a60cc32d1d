"""How well the physics foretells models that it was not fitted to: `python -m experiments.simulator.validate`.

The simulator has a handful of numbers that no data sheet gives. Here they are fitted to recorded surfaces of a CPU, one
family of models held out at a time, and what they foretell of that family is compared with what was recorded: the
closed-loop capacity of each configuration. That tells about the form of the physics, not about any GPU.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import least_squares  # type: ignore[import-untyped]
from scipy.stats import spearmanr  # type: ignore[import-untyped]

from experiments.simulator.cards import Processor
from experiments.simulator.physics import Physics, batch_seconds
from experiments.simulator.profile import FloatArray, Profile, profile
from experiments.zoo import models
from morphling_ray.surface import Surface, load_surfaces

START = {
    "macs_per_s": 3e10,  # of one core, float32
    "bytes_per_s": 1e10,
    "bfloat16": 1.5,  # times as fast
    "cores": 0.8,  # n cores are n to this power as fast
    "launch_s": 1e-5,
    "request_s": 1e-3,
}
RANGE = {"cores": (0.1, 1.1), "bfloat16": (0.5, 16.0)}  # else 30 times less to 30 times more than the start
METRIC = "capacity_rps"


@dataclass(frozen=True)
class Task:
    """One recorded model.

    Attributes:
        surface: What was recorded.
        counted: One input, as it was served.
        cores, sizes, half: Of each configuration: cores, largest batch, whether bfloat16; shape `(n,)`.
        found: The recorded metric, shape `(n,)`.
    """

    surface: Surface
    counted: Profile
    cores: FloatArray
    sizes: FloatArray
    half: FloatArray
    found: FloatArray


def main(argv: Sequence[str] | None = None) -> int:
    """Prints one line a model and one for all; returns 0."""
    parser = argparse.ArgumentParser(prog="python -m experiments.simulator.validate", description=__doc__)
    parser.add_argument("--surfaces", type=Path, default=Path("experiments/surfaces/zoo"), metavar="DIR")
    surfaces = load_surfaces(parser.parse_args(argv).surfaces).surfaces
    tasks = [task_of(surface) for surface in surfaces.values()]
    errors, ranks = [], []
    for family in dict.fromkeys(task.surface.family for task in tasks):
        fitted = fit([task for task in tasks if task.surface.family != family])
        for task in tasks:
            if task.surface.family != family:
                continue
            told = np.log(foretold(fitted, task) / task.found)
            shape = told - np.median(told)
            rank = float(spearmanr(foretold(fitted, task), task.found)[0])
            print(
                f"{task.surface.task:<30}{family:<14}{len(told):>4} cells, Spearman {rank:.2f}, off by "
                f"{np.median(np.abs(told)):.0%} in the median, {np.median(np.abs(shape)):.0%} once its level is known"
            )
            errors.append((np.median(np.abs(told)), np.median(np.abs(shape))))
            ranks.append(rank)
    level, shape = np.median(errors, axis=0)
    print(
        f"{len(tasks)} models, families held out: Spearman {np.median(ranks):.2f} (lowest {min(ranks):.2f}), off by "
        f"{level:.0%} in the median, {shape:.0%} once the level of a model is known"
    )
    return 0


def task_of(surface: Surface) -> Task:
    """A recorded surface of the zoo with what its model computes."""
    known = surface.task in models.MODELS
    served = models.MODELS[surface.task] if known else getattr(models, surface.task)
    example = served.decode(served.request())[None].to("meta")
    with torch.device("meta"), torch.no_grad():
        counted = profile(served.build().eval(), example)
    cells = [c for c, works in zip(surface.space.configurations, surface.feasible) if works]
    columns = [[float(c[name]) for c in cells] for name in ("cpu_cores", "max_batch_size")]
    half = [c["precision"] == "bfloat16" for c in cells]
    found = surface.metrics[METRIC][surface.feasible]
    return Task(surface, counted, np.array(columns[0]), np.array(columns[1]), np.array(half, float), found)


def foretold(numbers: FloatArray, task: Task) -> FloatArray:
    """Capacity of each configuration with full batches, shape `(n,)`."""
    of = dict(zip(START, numbers))
    physics = Physics(1.0, 0.0, of["launch_s"])
    out = np.empty_like(task.found)
    for cores, half in {*zip(task.cores, task.half)}:
        cell = (task.cores == cores) & (task.half == half)
        speed = cores ** of["cores"]
        core = Processor(of["macs_per_s"] * speed * of["bfloat16"] ** half, of["bytes_per_s"] * 2**half)
        sizes = task.sizes[cell]
        out[cell] = sizes / (batch_seconds(task.counted, core, physics, sizes) + sizes * of["request_s"])
    return out


def fit(tasks: Sequence[Task]) -> FloatArray:
    """The numbers of `START` for which logs of the metric are nearest, every task counting alike."""

    def off(logs: FloatArray) -> FloatArray:
        return np.concatenate([np.log(foretold(np.exp(logs), t) / t.found) / len(t.found) ** 0.5 for t in tasks])

    bounds = np.log([RANGE.get(name, (start / 30, start * 30)) for name, start in START.items()])
    found = least_squares(off, np.log(list(START.values())), bounds=bounds.T, loss="soft_l1", f_scale=0.05)
    return np.asarray(np.exp(found.x))


if __name__ == "__main__":
    sys.exit(main())
