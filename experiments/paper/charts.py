"""Figures 6, 7 and 11 and the overheads, from finished searches: ours beside what the paper shows."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.comparison.figures import GOOD, INK, MUTED, sheet, style
from experiments.comparison.statistics import Reach
from experiments.comparison.table import count_text
from experiments.paper import published
from experiments.paper.studies import Line

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROWS = ("morphling", "portfolio+gp", "gp", "maml", "finetune", "vizier-transfer", "bo", "ernest", "random")
QUANTILES = 0.1, 0.25, 0.5, 0.75
Rows = dict[str, list[Line]]


def rows_of(lines: Sequence[Line], space: str, objective: str) -> Rows:
    """The searches of each searcher, in the order of `ROWS`."""
    chosen = [line for line in lines if (line.space, line.objective) == (space, objective)]
    rows = {name: [line for line in chosen if line.searcher == name] for name in ROWS}
    return {name: found for name, found in rows.items() if found}


def quality_table(rows: Rows, budgets: Sequence[int], paper: Mapping[int, Mapping[str, published.Quality]]) -> str:
    """Share of the optimum at each budget: median (10th percentile), the paper's in brackets."""
    out = _head([f"{budget} samples" for budget in budgets])
    for name, lines in rows.items():
        cells = []
        for budget in budgets:
            if budget > lines[0].budget:
                cells.append("-")
                continue
            low, _, middle, _ = _qualities(lines, budget)
            theirs = paper.get(budget, {}).get(name)
            told = f" [{_both(theirs)}]" if theirs else ""
            cells.append(f"{100 * middle:.1f} ({100 * low:.1f}){told}")
        out.append(_row(_name(name, lines, rows), cells))
    return "\n".join(out)


def samples_table(rows: Rows, shares: Sequence[float], paper: Mapping[float, Mapping[str, published.Samples]]) -> str:
    """Samples to each share of the optimum: median / 90th percentile, the paper's in brackets."""
    out = _head([f"{share:.0%} of the optimum" for share in shares])
    for name, lines in rows.items():
        cells = []
        for share in shares:
            ours = _reach(lines, share)
            theirs = paper.get(share, {}).get(name)
            told = f" [{theirs[0]:g}{'' if theirs[1] is None else f' / {theirs[1]:g}'}]" if theirs else ""
            cells.append(f"{count_text(ours.median, ours.budget)} / {count_text(ours.p90, ours.budget)}{told}")
        out.append(_row(_name(name, lines, rows), cells))
    return "\n".join(out)


def overhead_table(rows: Rows) -> str:
    """What a searcher costs beside the trials: seconds to learn, once, and milliseconds of thought a sample."""
    out = _head(["learning, s", "thought a sample, ms"])
    for name, lines in rows.items():
        learning = max(line.train_s for line in lines)
        told = f" [< {published.META_TRAINING_S}]" if name == "maml" else ""
        thought = np.median([line.suggest_ms for line in lines])
        out.append(_row(_name(name, lines, rows), [f"{learning:.1f}{told}", f"{thought:.1f}"]))
    return "\n".join(out)


def draw_quality(
    rows: Rows, budgets: Sequence[int], paper: Mapping[int, Mapping[str, published.Quality]], title: str, path: Path
) -> None:
    """A box of quartiles with median and 10th percentile for each searcher and budget; the paper's median as a ring."""
    with style():
        figure = sheet(0.8 + 0.3 * len(rows), 1.2 + 1.9 * len(budgets))
        panels = figure.subplots(1, len(budgets), squeeze=False, sharey=True)[0]
        for axes, budget in zip(panels, budgets):
            for place, (name, lines) in enumerate(reversed(rows.items())):
                if budget <= lines[0].budget:
                    low, first, middle, third = (100 * q for q in _qualities(lines, budget))
                    _box(axes, place, low, first, middle, third, _colour(name))
                if theirs := paper.get(budget, {}).get(name):
                    axes.plot(100 * theirs[0], place, "o", mfc="none", mec=INK, ms=5, clip_on=False, zorder=4)
            axes.set_title(f"{budget} samples")
            axes.set_xlim(0, 101)
        _finish(figure, panels, rows, "percent of the optimum", title, path)


def draw_samples(
    rows: Rows, shares: Sequence[float], paper: Mapping[float, Mapping[str, published.Samples]], title: str, path: Path
) -> None:
    """A bar to the median with a whisker from the 10th to the 90th percentile; the paper's median as a ring."""
    with style():
        figure = sheet(0.8 + 0.3 * len(rows), 1.2 + 2.2 * len(shares))
        panels = figure.subplots(1, len(shares), squeeze=False, sharey=True)[0]
        for axes, share in zip(panels, shares):
            for place, (name, lines) in enumerate(reversed(rows.items())):
                ours, colour = _reach(lines, share), _colour(name)
                low = np.quantile([line.samples_to(share) for line in lines], 0.1, method="inverted_cdf")
                axes.barh(place, ours.median, height=0.6, color=colour, alpha=0.45)
                axes.plot([low, ours.p90], [place, place], color=colour, lw=1.4)
                theirs = paper.get(share, {}).get(name)
                if theirs:
                    axes.plot(theirs[0], place, "o", mfc="none", mec=INK, ms=5, zorder=4)
                last = max(ours.p90, ours.median, 1.3 * theirs[0] if theirs else 0)
                text = f" {count_text(ours.median, ours.budget)}"
                axes.text(last, place, text, va="center", fontsize=7, color=INK)
            axes.set_xscale("log")
            axes.set_xlim(0.9, 1400)
            axes.set_title(f"{share:.0%} of the optimum")
        _finish(figure, panels, rows, "samples", title, path)


def _box(axes: "Axes", place: int, low: float, first: float, middle: float, third: float, colour: str) -> None:
    axes.plot([low, first], [place, place], color=colour, lw=1.2)
    axes.barh(place, third - first, left=first, height=0.6, color=colour, alpha=0.35)
    axes.plot([middle, middle], [place - 0.3, place + 0.3], color=colour, lw=2.2)


def _finish(figure: Any, panels: Any, rows: Rows, label: str, title: str, path: Path) -> None:
    panels[0].set_yticks(range(len(rows)), [_name(name, lines, rows) for name, lines in reversed(rows.items())])
    for axes in panels:
        axes.grid(axis="y", visible=False)
    figure.supxlabel(f"{label}; rings: the paper's medians", fontsize=8, color=MUTED)
    figure.suptitle(title, fontsize=9, x=0.01, ha="left")
    figure.savefig(path)


def _colour(name: str) -> str:
    return GOOD if name == "morphling" else MUTED


def _qualities(lines: Sequence[Line], budget: int) -> tuple[float, float, float, float]:
    """10th percentile, lower quartile, median, upper quartile."""
    low, first, middle, third = np.quantile([line.quality(budget) for line in lines], QUANTILES, method="inverted_cdf")
    return float(low), float(first), float(middle), float(third)


def _reach(lines: Sequence[Line], share: float) -> Reach:
    """Samples to a share of the optimum."""
    return Reach.of([line.samples_to(share) for line in lines], lines[0].budget)


def _name(name: str, lines: Sequence[Line], rows: Rows) -> str:
    """With the number of test models where it is a part only."""
    tasks = len({line.task for line in lines})
    whole = max(len({line.task for line in others}) for others in rows.values())
    return name if tasks == whole else f"{name} ({tasks} of {whole} models)"


def _head(columns: Sequence[str]) -> list[str]:
    return [_row("searcher", columns), "|" + "---|" * (len(columns) + 1)]


def _both(quality: published.Quality) -> str:
    middle, low = quality
    return f"{100 * middle:.3g}" + ("" if low is None else f" ({100 * low:.3g})")


def _row(name: str, cells: Sequence[str]) -> str:
    return f"| {name} | " + " | ".join(cells) + " |"
