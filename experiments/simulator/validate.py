"""How well the physics foretells models that it was not fitted to: `python -m experiments.simulator.validate`.

The simulator has a handful of numbers that no data sheet gives. Here they are fitted to recorded surfaces, one family
of models held out at a time, and what they foretell of that family is compared with what was recorded. The surfaces of
the project are of a CPU and an H100; `--v100` and `--a100` take public recordings of cards (`rapp-dev` and `parvagpu`,
see experiments/results/compare/README.md), and tell which numbers the simulator should use.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.optimize import least_squares  # type: ignore[import-untyped]
from scipy.stats import spearmanr  # type: ignore[import-untyped]

from experiments.simulator.profile import FloatArray
from experiments.simulator.recordings import Numbers, Recording, Task, a100, cpu, h100, v100


def main(argv: Sequence[str] | None = None) -> int:
    """Prints one line a model, one for all, and the numbers fitted to all; returns 0."""
    parser = argparse.ArgumentParser(prog="python -m experiments.simulator.validate", description=__doc__)
    parser.add_argument("--surfaces", type=Path, default=Path("experiments/surfaces/zoo"), metavar="DIR")
    parser.add_argument("--h100", type=Path, default=Path("experiments/surfaces/h100"), metavar="DIR")
    parser.add_argument("--v100", type=Path, metavar="DIR", help="recordings of RaPP")
    parser.add_argument("--a100", type=Path, metavar="DIR", help="recordings of ParvaGPU")
    arguments = parser.parse_args(argv)
    validate(cpu(arguments.surfaces))
    validate(h100(arguments.h100))
    for folder, read in ((arguments.v100, v100), (arguments.a100, a100)):
        if folder is not None:
            validate(read(folder))
    return 0


def validate(recording: Recording) -> None:
    """Prints what the law foretells of families that it was not fitted to."""
    errors, ranks = [], []
    for family in dict.fromkeys(task.family for task in recording.tasks):
        numbers = fit(recording, [task for task in recording.tasks if task.family != family])
        for task in recording.tasks:
            if task.family != family:
                continue
            told = recording.law(numbers, task)
            off = np.log(told / task.found)
            level, shape = np.median(np.abs(off)), np.median(np.abs(off - np.median(off)))
            rank = float(spearmanr(told, task.found)[0])
            print(
                f"{task.name:<30}{family:<14}{len(off):>4} cells, Spearman {rank:.2f}, off by {level:.0%} in the "
                f"median, {shape:.0%} once its level is known"
            )
            errors.append((level, shape))
            ranks.append(rank)
    level, shape = np.median(errors, axis=0)
    print(
        f"{recording.about}: {len(ranks)} models, families held out: Spearman {np.median(ranks):.2f} (lowest "
        f"{min(ranks):.2f}), off by {level:.0%} in the median, {shape:.0%} once the level of a model is known"
    )
    fitted = fit(recording, recording.tasks)
    print("  fitted to all: " + ", ".join(f"{name} {value:.3g}" for name, value in fitted.items()))


def fit(recording: Recording, tasks: Sequence[Task]) -> Numbers:
    """The numbers for which logs of what is foretold are nearest to what was found, every task counting alike."""
    names = list(recording.start)

    def off(scaled: FloatArray) -> FloatArray:
        numbers = _numbers(names, scaled)
        return np.concatenate([np.log(recording.law(numbers, t) / t.found) / len(t.found) ** 0.5 for t in tasks])

    start = np.array([recording.start[name] for name in names])
    low, high = np.array([recording.limits.get(n, (s / 30, s * 30)) for n, s in zip(names, start)]).T
    bounds = np.log(np.maximum(low, 1e-3 * start)), np.log(high)
    begin = np.clip(np.log(start), bounds[0] + 1e-6, bounds[1] - 1e-6)
    found = least_squares(off, begin, bounds=bounds, loss="soft_l1", f_scale=0.05)
    return _numbers(names, found.x)


def _numbers(names: Sequence[str], logs: FloatArray) -> Numbers:
    return dict(zip(names, np.exp(logs).tolist()))


if __name__ == "__main__":
    sys.exit(main())
