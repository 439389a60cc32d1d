"""Compares searchers on recorded surfaces: who comes near the best configuration with how many samples.

    python experiments/compare.py --surfaces DIR --objective NAME --searchers random,gp,morphling --json out.json

Every task is searched with noise on each measurement, by searchers that have learned from the tasks outside its fold
only. The JSON is written as runs finish: give the same command again to go on after an interruption, or with more
searchers or seeds to add to it. The table goes to stdout; `python -m experiments.compare_report` draws figures.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__" and not __package__:  # started by its path, from wherever: the root is then not on the path
    sys.path[0] = str(Path(__file__).resolve().parents[1])

if TYPE_CHECKING:
    from experiments.comparison.datasets import Dataset
    from experiments.comparison.planning import Plan
    from experiments.comparison.results import Results
    from experiments.comparison.settings import Settings


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0, 1 if something failed, 2 for input that cannot work, 130 if interrupted."""
    arguments = _parser().parse_args(argv)
    from morphling_ray.errors import MorphlingError

    try:
        return _compare(arguments)
    except MorphlingError as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    about, *more = (__doc__ or "").split("\n\n", 1)
    parser = argparse.ArgumentParser(
        prog="python experiments/compare.py",
        description=about,
        epilog=more[0],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_argument_group("what is compared")
    what.add_argument("--surfaces", action="append", required=True, type=Path, metavar="DIR", help="recorded surfaces")
    what.add_argument("--objective", action="append", required=True, metavar="NAME", help="of the surfaces; repeatable")
    what.add_argument("--searchers", required=True, metavar="A,B,C", help="names, separated by commas")
    what.add_argument("--seeds", type=int, default=3, metavar="N", help="searches of each task (default 3)")
    what.add_argument(
        "--tasks", default="*", metavar="GLOB", help="search these only; all others are still learned from"
    )
    what.add_argument("--subset", type=int, metavar="N", help="search N of them only, the same in every call")
    how = parser.add_argument_group("how")
    how.add_argument(
        "--hold-out", choices=["family", "task"], default="family", help="not learned from (default family)"
    )
    how.add_argument("--budget", type=int, default=30, metavar="N", help="samples of each search (default 30)")
    how.add_argument("--noise", type=float, default=0.03, metavar="F", help="of each measured metric (default 0.03)")
    how.add_argument("--until-best", action="store_true", help="end a search at the best there is (with --noise 0)")
    how.add_argument("--free-knobs", default="", metavar="K[,K]", help="knobs whose every value a sample tells about")
    prior = parser.add_argument_group("another prior, to see how robust a searcher is")
    prior.add_argument("--train-on", default="", metavar="A,B,C", help="learn from these tasks, search all others")
    prior.add_argument("--learn-from", type=Path, metavar="DIR", help="learn from other surfaces only")
    prior.add_argument("--learn-also", type=Path, metavar="DIR", help="learn from other surfaces too, as they are")
    prior.add_argument("--shuffle-prior", action="store_true", help="exchange configurations, alike in all tasks")
    prior.add_argument("--train-tasks", type=int, metavar="N", help="learn from N tasks, drawn anew for each seed")
    prior.add_argument("--train-cells", type=int, metavar="N", help="learn from N rows of each task, drawn")
    prior.add_argument("--drop-values", action="append", default=[], metavar="KNOB=V[,V]", help="values never seen")
    prior.add_argument("--drop-knob", metavar="KNOB", help="a knob never seen: learn at one of its values, without it")
    out = parser.add_argument_group("output")
    out.add_argument("--json", required=True, type=Path, metavar="FILE", help="results; gone on with if it exists")
    out.add_argument("--restart", action="store_true", help="throw away what the file holds")
    out.add_argument("--redo", default="", metavar="A,B", help="run these searchers again")
    out.add_argument("--against", metavar="NAME", help="pair all others with this one in the table")
    out.add_argument("--processes", type=int, default=_cores(), metavar="N", help="at once (default: one per core)")
    return parser


def _compare(arguments: argparse.Namespace) -> int:
    from experiments.comparison.datasets import open_all
    from experiments.comparison.groups import groups_of
    from experiments.comparison.planning import plan
    from experiments.comparison.results import Results
    from experiments.comparison.table import report
    from morphling_ray.errors import InputError
    from morphling_ray.search import check_searcher

    searchers = _names(arguments.searchers)
    redo = _names(arguments.redo)
    for option, value in (("--seeds", arguments.seeds), ("--processes", arguments.processes)):
        if value < 1:
            raise InputError(f"{option} must be at least 1, got {value}")
    if arguments.subset is not None and arguments.subset < 1:
        raise InputError(f"--subset must be at least 1, got {arguments.subset}")
    if not searchers:
        raise InputError("--searchers is empty: name some, separated by commas")
    for name in searchers:
        check_searcher(name)
    for name in (*redo, *([arguments.against] if arguments.against else [])):
        if name not in searchers:
            raise InputError(f"{name!r} is not among --searchers {','.join(searchers)}")
    objectives = list(dict.fromkeys(name for text in arguments.objective for name in _names(text)))
    datasets = open_all(arguments.surfaces)
    settings = _settings(arguments)
    settings.check(datasets)
    todo = plan(
        settings,
        datasets,
        objectives,
        searchers,
        seeds=arguments.seeds,
        tasks=arguments.tasks,
        subset=arguments.subset,
    )
    meta = _meta(arguments, settings, datasets, objectives, searchers, todo)
    results = Results.open(arguments.json, meta, restart=arguments.restart, redo=redo)
    status = _run(settings, todo, results, arguments.processes)
    if results.runs and status != 130:
        variant = settings.variant(learns=False)
        against = f"{arguments.against} ({variant})" if variant and arguments.against else arguments.against
        # From the file, where figures are rounded and in order: the same command prints the same table again.
        print(report(groups_of([Results.read(results.path)]), against))
    return status


def _run(settings: "Settings", todo: "Plan", results: "Results", processes: int) -> int:
    """Runs what is missing and writes the file; returns the exit status."""
    from experiments.comparison.planning import missing
    from experiments.comparison.progress import Progress
    from experiments.comparison.work import code, run_all

    units = missing(todo.units, results.runs)
    progress = Progress(units, processes, sys.stderr)
    for note in todo.notes:
        progress.say(f"note: {note}")
    for place, tasks in todo.left_out.items():
        progress.say(f"note: {place}: left out, since no configuration keeps the bounds: {', '.join(tasks)}")
    if kept := sum(len(unit.tasks) for unit in todo.units) - sum(len(unit.tasks) for unit in units):
        progress.say(f"{kept} runs are in {results.path.name} already")
    if old := sum(run.code not in ("", code()) for run in results.runs.values()):
        progress.say(f"note: the searchers' code has changed since {old} of them; --redo or --restart runs them again")
    failures: list[str] = []
    began = time.monotonic()
    seconds_before = float(results.meta.get("seconds", 0.0))
    results.meta |= {"complete": False, "failures": failures}
    try:
        for outcome in run_all(settings, units, processes):
            if outcome.error:
                failures.append(f"{outcome.unit}: {outcome.error}")
            progress.tell(outcome)
            results.add(outcome.runs)
    except KeyboardInterrupt:
        progress.say(f"interrupted; give the same command again to go on from {results.path.name}")
        return 130
    else:
        results.meta["complete"] = not failures
    finally:
        results.meta["seconds"] = round(seconds_before + time.monotonic() - began, 1)
        results.write()
    if failures:
        progress.say(f"{len(failures)} of {len(units)} units failed; the same command tries them again")
    return 1 if failures else 0


def _settings(arguments: argparse.Namespace) -> "Settings":
    from experiments.comparison.datasets import Dataset
    from experiments.comparison.settings import Settings
    from morphling_ray.errors import InputError

    drop_values: dict[str, tuple[str, ...]] = {}
    for text in arguments.drop_values:
        knob, _, values = text.partition("=")
        if not knob or not _names(values):
            raise InputError(f"--drop-values {text}: write KNOB=VALUE or KNOB=VALUE,VALUE")
        drop_values[knob] = (*drop_values.get(knob, ()), *_names(values))
    return Settings(
        budget=arguments.budget,
        noise=arguments.noise,
        hold_out=arguments.hold_out,
        free_knobs=tuple(_names(arguments.free_knobs)),
        train_on=tuple(_names(arguments.train_on)),
        until_best=arguments.until_best,
        learn_from=None if arguments.learn_from is None else Dataset.open(arguments.learn_from),
        learn_also=None if arguments.learn_also is None else Dataset.open(arguments.learn_also),
        shuffle_prior=arguments.shuffle_prior,
        train_tasks=arguments.train_tasks,
        train_cells=arguments.train_cells,
        drop_values=tuple(drop_values.items()),
        drop_knob=arguments.drop_knob,
    )


def _meta(
    arguments: argparse.Namespace,
    settings: "Settings",
    datasets: Sequence["Dataset"],
    objectives: Sequence[str],
    searchers: Sequence[str],
    todo: "Plan",
) -> dict[str, Any]:
    """What a reader of the results must know; nothing about the machine but its speed's bounds."""
    import platform

    import numpy as np

    import morphling_ray
    from morphling_ray.search import SEARCHERS

    about = {
        d.name: {
            "data": d.data,
            "source": d.surfaces.source,
            "licence": d.surfaces.licence,
            "tasks": len(d.surfaces.surfaces),
            "families": len({s.family for s in d.surfaces.surfaces.values()}),
        }
        for d in datasets
    }
    meta = {
        "settings": settings.to_dict(),
        "searchers": list(searchers),
        "objectives": list(objectives),
        "seeds": arguments.seeds,
        "datasets": about,
        "left_out": todo.left_out,
        "notes": todo.notes,
        "versions": {
            "morphling_ray": morphling_ray.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "date": time.strftime("%Y-%m-%d"),
        "processes": arguments.processes,
    }
    if settings.free_knobs:
        meta["told_of_free_knobs"] = [name for name in searchers if SEARCHERS[name].takes_free_knobs]
    return meta


def _names(text: str) -> list[str]:
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _cores() -> int:
    return len(os.sched_getaffinity(0))


if __name__ == "__main__":
    sys.exit(main())
