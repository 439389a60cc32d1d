"""Learns a prior from recorded surfaces and run directories, and writes it to one file.

    python -m morphling_ray.train --surfaces DIR --run-dir runs/20260101-120000 --out prior.npz

The file goes to `--prior` of morphling_ray.tune. Nothing in it is executed when it is read.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from morphling_ray.errors import InputError, MorphlingError

if TYPE_CHECKING:
    from morphling_ray.meta.tasks import TrainingTask


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status: 0, or 2 for input that cannot work."""
    parser = argparse.ArgumentParser(prog="morphling-ray train", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--surfaces", action="append", default=[], type=Path, metavar="DIR", help="recorded surfaces")
    parser.add_argument("--run-dir", action="append", default=[], type=Path, metavar="DIR", help="a finished search")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE.npz", help="where the prior goes")
    parser.add_argument("--hold-out", action="append", default=[], metavar="TASK", help="leave this task or family out")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="equal seeds give equal priors")
    arguments = parser.parse_args(argv)
    try:
        _train(arguments.surfaces, arguments.run_dir, arguments.out, arguments.hold_out, arguments.seed)
    except MorphlingError as error:
        print(f"morphling-ray train: {error}", file=sys.stderr)  # noqa: T201  # a command may print
        return 2
    return 0


def _train(surfaces: Sequence[Path], run_dirs: Sequence[Path], out: Path, hold_out: Sequence[str], seed: int) -> None:
    if not surfaces and not run_dirs:
        raise InputError("nothing to learn from: give --surfaces DIR or --run-dir DIR, each as often as you like")
    if seed < 0:
        raise InputError(f"--seed must be at least 0, got {seed}")
    if not out.parent.is_dir():
        raise InputError(f"--out {out}: the folder {out.parent} does not exist")
    from morphling_ray import __version__
    from morphling_ray.meta.check import compare_held_out
    from morphling_ray.meta.fit import fit_prior

    everything = [t for folder in surfaces for t in _of_surfaces(folder)] + [t for d in run_dirs for t in _of_run(d)]
    names = {t.task for t in everything} | {t.family for t in everything}
    if unknown := sorted(set(hold_out) - names):
        raise InputError(
            f"--hold-out {unknown[0]}: no task or family of that name; there is {', '.join(sorted(names)[:8])}"
        )
    tasks = [t for t in everything if t.task not in hold_out and t.family not in hold_out]
    about = {
        "sets": [p.resolve().name for p in (*surfaces, *run_dirs)],
        "held_out": list(hold_out),
        "date": time.strftime("%Y-%m-%d"),
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
    _say(f"it knows {', '.join(code.name for code in prior.encoding.codes)}; of a space with others it says so")
    for check in checks:
        _say(str(check))
    _say(f"wrote {out}")


def _of_surfaces(folder: Path) -> "list[TrainingTask]":
    from morphling_ray.meta.tasks import TrainingTask
    from morphling_ray.surface import load_surfaces

    return [TrainingTask.of_surface(s) for s in load_surfaces(folder).surfaces.values()]


def _of_run(folder: Path) -> "list[TrainingTask]":
    """The trials of a search as one task; none if nothing worked."""
    import numpy as np

    from morphling_ray.meta.tasks import TrainingTask
    from morphling_ray.search.history import pinned
    from morphling_ray.space import Knob
    from morphling_ray.store import RunDirectory

    directory = RunDirectory.open(folder)
    measured = [trial.measurement for trial in directory.trials()]
    names = list(dict.fromkeys(name for m in measured for name in m.metrics))
    values = [pinned(m, names) for m in measured]
    # A rejected trial was only shown to lie below something: neither a value nor a failure.
    kept = [i for i, (m, v) in enumerate(zip(measured, values)) if v or not m.feasible]
    if not any(values[i] for i in kept):
        return []
    knobs = list(dict.fromkeys(name for i in kept for name in measured[i].configuration))
    seen = {k: [measured[i].configuration[k] for i in kept if k in measured[i].configuration] for k in knobs}
    experiment = directory.experiment()
    app = str(experiment.get("app", folder.name))
    return [
        TrainingTask(
            task=f"{app} ({folder.resolve().name})",
            family=app,
            knobs=tuple(Knob.infer(name, list(dict.fromkeys(v))) for name, v in seen.items()),
            configurations=[measured[i].configuration for i in kept],
            metrics={name: np.array([values[i].get(name, np.nan) for i in kept]) for name in names},
            feasible=np.array([bool(values[i]) for i in kept]),
            constants={str(k): float(v) for k, v in (experiment.get("descriptors") or {}).items()},
        )
    ]


def _say(text: str) -> None:
    print(text)  # noqa: T201  # a command may print


if __name__ == "__main__":
    sys.exit(main())
