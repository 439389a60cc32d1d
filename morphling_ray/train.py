"""Learns a prior from recorded surfaces and run directories, and writes it to one file.

    python -m morphling_ray.train --surfaces DIR --from runs --out prior.npz

The file goes to `--prior` of morphling_ray.tune. Equal data, in the same order, give the same file byte for byte,
on the same make of CPU. Nothing in it is executed when it is read.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from morphling_ray.errors import InputError, MorphlingError

if TYPE_CHECKING:
    from morphling_ray.measurement import Measurement
    from morphling_ray.meta.tasks import TrainingTask
    from morphling_ray.store import RunDirectory


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status: 0, or 2 for input that cannot work."""
    parser = argparse.ArgumentParser(prog="morphling-ray train", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--surfaces", action="append", default=[], type=Path, metavar="DIR", help="recorded surfaces")
    parser.add_argument(
        "--from",
        "--run-dir",
        dest="runs",
        action="append",
        default=[],
        type=Path,
        metavar="DIR",
        help="a finished search, or a folder of them, as `runs` is",
    )
    parser.add_argument("--out", required=True, type=Path, metavar="FILE.npz", help="where the prior goes")
    parser.add_argument("--hold-out", action="append", default=[], metavar="TASK", help="leave this task or family out")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="equal seeds give equal priors")
    arguments = parser.parse_args(argv)
    try:
        _train(arguments.surfaces, arguments.runs, arguments.out, arguments.hold_out, arguments.seed)
    except MorphlingError as error:
        print(f"morphling-ray train: {error}", file=sys.stderr)  # noqa: T201  # a command may print
        return 2
    return 0


def _train(surfaces: Sequence[Path], runs: Sequence[Path], out: Path, hold_out: Sequence[str], seed: int) -> None:
    if not surfaces and not runs:
        raise InputError("nothing to learn from: give --surfaces DIR or --from RUNS, each as often as you like")
    if seed < 0:
        raise InputError(f"--seed must be at least 0, got {seed}")
    if not out.parent.is_dir():
        raise InputError(f"--out {out}: the folder {out.parent} does not exist")
    from morphling_ray import __version__
    from morphling_ray.meta.check import compare_held_out
    from morphling_ray.meta.fit import fit_prior
    from morphling_ray.store import RunDirectory

    run_dirs = [directory for folder in runs for directory in RunDirectory.all_in(folder)]
    everything = [t for folder in surfaces for t in _of_surfaces(folder)] + [t for d in run_dirs for t in _of_run(d)]
    names = {t.task for t in everything} | {t.family for t in everything}
    if unknown := sorted(set(hold_out) - names):
        raise InputError(
            f"--hold-out {unknown[0]}: no task or family of that name; there is {', '.join(sorted(names)[:8])}"
        )
    tasks = [t for t in everything if t.task not in hold_out and t.family not in hold_out]
    about = {
        "sets": [p.resolve().name for p in (*surfaces, *(d.path for d in run_dirs))],
        "held_out": list(hold_out),
        "version": __version__,
    }
    began = time.monotonic()
    prior = fit_prior(tasks, seed=seed, about=about)
    checks = compare_held_out(tasks, prior, seed=seed)
    prior.save(out)
    rows = sum(len(t.configurations) for t in tasks)
    families = len({t.family for t in tasks})
    seconds = time.monotonic() - began
    _say(f"learned from {len(tasks)} tasks of {families} families, {rows} configurations, in {seconds:.0f} s")
    _say(f"it knows {', '.join(prior.knobs)}; of a space with others it says so")
    for check in checks:
        _say(str(check))
    _say(f"wrote {out}")


def _of_surfaces(folder: Path) -> "list[TrainingTask]":
    from morphling_ray.meta.tasks import TrainingTask
    from morphling_ray.surface import load_surfaces

    return [TrainingTask.of_surface(s) for s in load_surfaces(folder).surfaces.values()]


def _of_run(directory: "RunDirectory") -> "list[TrainingTask]":
    """The trials of a search as one task; none if nothing worked."""
    experiment = directory.experiment()
    app = str(experiment.get("app", directory.path.name))
    known = {str(k): float(v) for k, v in (experiment.get("descriptors") or {}).items()}
    measured = [trial.measurement for trial in directory.trials()]
    task = task_of_search(f"{app} ({directory.path.resolve().name})", app, measured, known)
    return [] if task is None else [task]


def task_of_search(
    task: str, family: str, measured: "Sequence[Measurement]", constants: Mapping[str, float] | None = None
) -> "TrainingTask | None":
    """What a search has measured, as a task to learn from; None if nothing worked.

    Args:
        task: Name.
        family: Tasks of one family are held out together.
        measured: Its trials. A rejected one was only shown to lie below something: neither a value nor a failure.
        constants: Numbers of the task.
    """
    import numpy as np

    from morphling_ray.meta.tasks import TrainingTask
    from morphling_ray.search.history import pinned
    from morphling_ray.space import Knob

    names = list(dict.fromkeys(name for m in measured for name in m.metrics))
    rows = [(m, values) for m in measured if (values := pinned(m, names)) or not m.feasible]
    if not any(values for _, values in rows):
        return None
    knobs = list(dict.fromkeys(name for m, _ in rows for name in m.configuration))
    seen = {k: [m.configuration[k] for m, _ in rows if k in m.configuration] for k in knobs}
    return TrainingTask(
        task=task,
        family=family,
        knobs=tuple(Knob.infer(name, list(dict.fromkeys(values))) for name, values in seen.items()),
        configurations=[m.configuration for m, _ in rows],
        metrics={name: np.array([values.get(name, np.nan) for _, values in rows]) for name in names},
        feasible=np.array([bool(values) for _, values in rows]),
        constants=dict(constants or {}),
    )


def _say(text: str) -> None:
    print(text)  # noqa: T201  # a command may print


if __name__ == "__main__":
    sys.exit(main())
