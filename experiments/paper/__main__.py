"""The paper's evaluation, a figure at a time: `python -m experiments.paper [FIGURE ...]`.

Without a figure, all of them: 4, 6a, 6b, 7, 8, 9, 10, 11, overhead, and beyond: what the paper never studied. Searches
that a figure needs and that the results do not have yet are run first. Tables go to stdout, "ours [the paper's]",
figures to the folder of the results.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from experiments.paper import beyond, charts, planes, published
from experiments.paper.studies import Line, read, run, spaces, studies

EC2, PRODUCTION = "ec2-simulated", "production-simulated"
NEEDS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "4": (EC2, ()),
    "6a": (EC2, ("objective1",)),
    "6b": (EC2, ("objective1",)),
    "7": (EC2, ("objective2", "objective3")),
    "8": (EC2, ()),
    "9": (EC2, ()),
    "10": (EC2, ("objective1",)),
    "11": (PRODUCTION, ("objective1",)),
    "overhead": (EC2, ("objective1",)),
    "beyond": (EC2, ()),
}
"""The searches of a figure: a space and objectives."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0, or 1 if a search failed."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.paper",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help=", ".join(NEEDS))
    parser.add_argument("--out", type=Path, default=Path("experiments/results/paper"), metavar="DIR")
    parser.add_argument("--cache", type=Path, default=Path("build/paper"), metavar="DIR", help="of simulated surfaces")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), metavar="N", help="at once")
    parser.add_argument("--searchers", metavar="A,B", help="run these only (default: all)")
    parser.add_argument("--models", type=int, metavar="N", help="search N of the test models only, with one seed")
    arguments = parser.parse_args(argv)
    figures = arguments.figures or list(NEEDS)
    if unknown := [name for name in figures if name not in NEEDS]:
        parser.error(f"no figure {unknown[0]}; there is {', '.join(NEEDS)}")
    began = time.monotonic()
    datasets, path = spaces(arguments.cache), arguments.out / "searches.jsonl"
    well = True
    for space, objectives in dict.fromkeys(NEEDS[name] for name in figures):
        for study in studies(space, objectives) if objectives else ():
            only = arguments.searchers.split(",") if arguments.searchers else study.searchers
            study = replace(study, searchers=tuple(name for name in study.searchers if name in only))
            if arguments.models:
                study = replace(study, subset=min(arguments.models, study.subset or arguments.models), seeds=1)
            if study.searchers:
                well &= run(study, datasets[space], path, arguments.processes)
    if "beyond" in figures:
        well &= beyond.run(datasets[EC2], arguments.out / "beyond.jsonl", arguments.processes, models=arguments.models)
    lines = read(path)
    for name in figures:
        print(f"\nFigure {name}" if name[0].isdigit() else f"\n{name.capitalize()}")
        print(FIGURES[name](lines, datasets[NEEDS[name][0]], arguments.out / f"figure-{name}.png"))
    minutes = (time.monotonic() - began) / 60
    print(f"\n{minutes:.0f} minutes, {arguments.processes} searches at once", file=sys.stderr)
    return 0 if well else 1


def _figure_6a(lines: Sequence[Line], dataset: object, path: Path) -> str:
    rows = charts.rows_of(lines, EC2, "objective1")
    title = "Figure 6a: the best found over the optimum of 720 (box: quartiles, line from the 10th percentile)"
    charts.draw_quality(rows, list(published.FIGURE_6A), published.FIGURE_6A, title, path)
    return charts.quality_table(rows, list(published.FIGURE_6A), published.FIGURE_6A)


def _figure_6b(lines: Sequence[Line], dataset: object, path: Path) -> str:
    rows = charts.rows_of(lines, EC2, "objective1")
    title = "Figure 6b: samples to a share of the optimum (bar: median, line: 10th to 90th percentile)"
    charts.draw_samples(rows, list(published.FIGURE_6B), published.FIGURE_6B, title, path)
    return charts.samples_table(rows, list(published.FIGURE_6B), published.FIGURE_6B)


def _figure_7(lines: Sequence[Line], dataset: object, path: Path) -> str:
    out = []
    for number in (2, 3):
        rows = charts.rows_of(lines, EC2, f"objective{number}")
        paper = {1.0: published.FIGURE_7[f"objective{number}"]}
        title = f"Figure 7: samples to the optimum by objective #{number}"
        charts.draw_samples(rows, [1.0], paper, title, path.with_stem(f"{path.stem}-objective{number}"))
        out.append(f"objective #{number}\n{charts.samples_table(rows, [1.0], paper)}")
    return "\n\n".join(out)


def _figure_11(lines: Sequence[Line], dataset: object, path: Path) -> str:
    rows = charts.rows_of(lines, PRODUCTION, "objective1")
    title = "Figure 11: services in production, 100 configurations"
    charts.draw_quality(rows, [10, 20], published.FIGURE_11A, title, path.with_stem(f"{path.stem}a"))
    charts.draw_samples(rows, [1.0], published.FIGURE_11B, title, path.with_stem(f"{path.stem}b"))
    quality = charts.quality_table(rows, [10, 20], published.FIGURE_11A)
    return f"{quality}\n\n{charts.samples_table(rows, [1.0], published.FIGURE_11B)}"


FIGURES: Mapping[str, Callable[..., str]] = {
    "4": lambda lines, dataset, path: planes.figure_4(dataset, path),
    "6a": _figure_6a,
    "6b": _figure_6b,
    "7": _figure_7,
    "8": lambda lines, dataset, path: planes.figure_8(dataset, path),
    "9": lambda lines, dataset, path: planes.figure_9(dataset, path),
    "10": planes.figure_10,
    "11": _figure_11,
    "beyond": lambda lines, dataset, path: beyond.table(beyond.read(path.with_name("beyond.jsonl"))),
    "overhead": lambda lines, dataset, path: charts.overhead_table(charts.rows_of(lines, EC2, "objective1")),
}


if __name__ == "__main__":
    sys.exit(main())
