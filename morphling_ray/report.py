"""The report: everything about a run on one page that opens offline. `python -m morphling_ray.report RUN_DIR`.

The text around it is data/report.html; sections.py and tables.py write its parts, plots.py draws.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from string import Template

from morphling_ray import knob_plots, plots, sections, tables
from morphling_ray.errors import MorphlingError
from morphling_ray.sections import esc, figure, headline, section
from morphling_ray.store import RunDirectory
from morphling_ray.summary import Summary
from morphling_ray.tensorboard import write_events
from morphling_ray.wording import NOTHING, configuration_text, number

_QUALITY = (
    "Each dot is a trial, a diamond a finalist measured again; the line is the best so far, the ring marks what is "
    "recommended. Rejected trials ended early: they were shown to be worse than what was known. The grey bar behind a "
    "dot is what was expected before it was measured: four in five were to lie within it."
)
_LATENCY = (
    "Every window of load on the finalists, at the rate that was offered. The peak is the highest rate that keeps the "
    "SLO. In an INVALID window the load driver was the limit, so it counts neither way."
)
_EFFECTS = (
    "How much of the best is left when a knob is set to a value and all others are chosen well. What matters most "
    "comes first, the recommended value is in colour, a bar spans four in five of what the model deems possible."
)
_PLANE = (
    "The {unit} to be expected with each pair of values of the two knobs that matter most, all others chosen well. A "
    "dot marks pairs that were measured, the frame what is recommended."
)
_FOUND_WITH = (
    "The best objective found with each value, and how many of its trials reached one (3/4). The other knobs "
    "differ between the bars, so this shows where good configurations were found, not the effect of one knob alone."
)
_COST = (
    "The measured configurations, one copy each. Nothing that was measured is both cheaper and faster than those on "
    "the line."
)


def render(run_dir: Path) -> str:
    """The report of a run, also of an unfinished one, as HTML.

    Raises:
        InputError: There is no such folder.
        StoreError: It is no run directory, or a file in it cannot be read.
    """
    summary = Summary.read(run_dir)
    text = (resources.files("morphling_ray") / "data" / "report.html").read_text(encoding="utf-8")
    parts = [
        ("deploy", "Deploy it", sections.deploy(summary)),
        ("comparison", "Before and after", tables.comparison(summary)),
        ("search", "The search", figure(plots.quality(summary), _QUALITY) + sections.search(summary)),
        ("latency", "Latency against rate", figure(plots.latency(summary), _LATENCY)),
        ("knobs", "What the knobs do", _knobs(summary)),
        ("cost", "Cost against peak RPS", figure(plots.cost(summary), _COST)),
        ("trials", "Every trial", tables.trials(summary)),
        ("time", "Where the time went", figure(plots.timings(summary), "") + tables.timings(summary)),
        ("notes", "Notes and caveats", sections.notes(summary)),
        ("environment", "To repeat it", sections.environment(summary)),
    ]
    shown = [(name, title, body) for name, title, body in parts if body]
    links = "\n".join(f'<li><a href="#{name}">{title}</a></li>' for name, title, _ in shown)
    return Template(text).substitute(
        title=esc(f"{_short(summary)} ({run_dir.resolve().name})"),
        run=esc(run_dir.resolve().name),
        headline=headline(summary),
        tiles=sections.tiles(summary),
        links=links,
        sections="\n".join(section(name, title, body) for name, title, body in shown),
    )


def _knobs(summary: Summary) -> str:
    """What the model knows of the knobs; without one, what was found with their values."""
    if summary.configuration is None:  # nothing works: there is no best, of which values could leave more or less
        return ""
    effects, plane = knob_plots.effects(summary), knob_plots.plane(summary)
    if not effects:
        return figure(knob_plots.found_with(summary), _FOUND_WITH)
    return figure(effects, _EFFECTS) + figure(plane, _PLANE.format(unit=esc(summary.unit or summary.objective_name)))


def _short(summary: Summary) -> str:
    """A title for the tab of a browser."""
    if summary.configuration is None:
        return "Nothing recommended"
    value = summary.recommendation.get("objective")
    what = f"{number(value)} {summary.unit}".strip() if value is not None else ""
    return what if what and what != NOTHING else configuration_text(summary.configuration)


def main(argv: Sequence[str] | None = None) -> int:
    """Writes report.html into a run directory again and prints its path. 0, or 2 if that cannot be done."""
    parser = argparse.ArgumentParser(
        prog="python -m morphling_ray.report", description="Write the report of a run again."
    )
    parser.add_argument("run_dir", metavar="RUN_DIR", type=Path, help="run directory, such as runs/20250131-120000")
    parser.add_argument("--tensorboard", action="store_true", help="write the trials for TensorBoard as well")
    arguments = parser.parse_args(argv)
    run_dir: Path = arguments.run_dir
    try:
        directory = RunDirectory.open(run_dir)
        directory.write_text("report.html", render(run_dir))
        if arguments.tensorboard:
            write_events(directory)
    except MorphlingError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(f"{run_dir / 'report.html'}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
