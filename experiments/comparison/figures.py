"""Figures from finished runs, as PNG and SVG: legible in print, and without telling colours apart."""

import math
import re
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from experiments.comparison.groups import Group
from experiments.comparison.pairs import Estimate, paired
from experiments.comparison.results import Run
from experiments.comparison.statistics import NEAR, Summary, samples_to
from experiments.comparison.table import count_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FloatArray = npt.NDArray[np.float64]

INK, MUTED, LINE, OTHERS = "#222222", "#5f5f5f", "#d9d9d9", "#c4c4c4"
# Rows and panels are labelled, so colour only says good or bad: two of Okabe and Ito's, which the colour-blind tell
# apart and which differ in a grey print.
GOOD, BAD = "#0072B2", "#D55E00"
_WIDTH_IN = 7.2
_RC: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "comparison",
    "font.family": "sans-serif",
    "font.size": 8.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.5,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "savefig.dpi": 200,
    "savefig.facecolor": "white",
}


def draw_all(groups: Sequence[Group], folder: Path, against: str | None = None) -> list[Path]:
    """Draws every figure of every group into a folder, and returns the PNG files; each has an SVG beside it.

    Args:
        groups: What was run.
        folder: Exists.
        against: Label of the searcher that all others are compared with; None for no such figures.
    """
    written: list[Path] = []
    names: dict[str, int] = {}
    for group in groups:
        name = re.sub(r"[^a-zA-Z0-9_.]+", "-", group.title).strip("-")
        names[name] = names.get(name, 0) + 1
        if names[name] > 1:  # the same data and objective on other tasks or under other conditions
            name = f"{name}-{names[name]}"
        with style():
            figures = {"quality": quality(group, against), "samples": samples(group)}
            if against in group.searchers and len(group.searchers) > 1:
                figures["paired"] = differences(group, str(against))
            for kind, figure in figures.items():
                path = folder / f"{name}-{kind}.png"
                figure.savefig(path)
                figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
                written.append(path)
    return written


def quality(group: Group, against: str | None = None) -> "Figure":
    """Quality against samples: one panel per searcher with median and quartiles, the medians of all others in grey."""
    labels = list(group.searchers)
    curves = {label: np.array([run.quality for run in runs]) for label, runs in group.searchers.items()}  # (runs, n)
    columns = min(3, len(labels))
    rows = math.ceil(len(labels) / columns)
    figure = sheet(0.75 + 1.75 * rows)
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    n = np.arange(1, min(c.shape[1] for c in curves.values()) + 1)
    lowest = min(float(np.quantile(c[:, : len(n)], 0.25, axis=0)[min(2, len(n) - 1)]) for c in curves.values())
    for axes, label in zip(panels.flat, labels):
        for other in labels:
            if other not in (label, against):
                axes.plot(n, _quantile(curves[other], 0.5, n), color=OTHERS, linewidth=0.8)
        if against in curves and against != label:
            axes.plot(n, _quantile(curves[str(against)], 0.5, n), color=INK, linewidth=1.1, linestyle=(0, (3, 2)))
        low, middle, high = (_quantile(curves[label], q, n) for q in (0.25, 0.5, 0.75))
        axes.fill_between(n, low, high, color=GOOD, alpha=0.22, linewidth=0)
        axes.plot(n, middle, color=GOOD, linewidth=1.8)
        axes.axhline(NEAR, color=MUTED, linewidth=0.7, linestyle=(0, (1, 2)))
        axes.set_title(fill(label, 34))
        axes.set_xlim(1, max(len(n), 2))
        axes.set_ylim(max(0.0, min(0.9, lowest - 0.05)), 1.01)
        _whole_numbers(axes)
    for axes in panels.flat[len(labels) :]:
        axes.set_visible(False)
    for column in range(columns):  # the lowest panel that is there, of each column
        last = [row for row in range(rows) if row * columns + column < len(labels)][-1]
        panels[last, column].tick_params(labelbottom=True)
    figure.supxlabel("deployments" if _by_deployment(group) else "samples", fontsize=9)
    figure.supylabel("share of the best", fontsize=9)
    told = "line: median, band: quartiles, dotted: within 5 %"
    told += f", dashed: {against}" if against in curves and len(labels) > 1 else ""
    _title(figure, group, f"Quality of what is recommended ({told})")
    return figure


def samples(group: Group) -> "Figure":
    """Samples to within 5 and 10 % of the clear optimum: a box of quartiles with the median and the 90 % mark."""
    labels = sorted(group.searchers, key=lambda label: _soonest(group.searchers[label]), reverse=True)
    names = [fill(label, 26) for label in labels]
    figure = sheet(1.25 + _row_in(names, 0.3) * len(labels))
    panels = figure.subplots(1, 2, sharey=True)
    for axes, threshold in zip(panels, (NEAR, 0.9)):
        for row, label in enumerate(labels):
            runs = group.searchers[label]
            budget = len(runs[0].quality)
            counts = [samples_to(run.quality_clear, threshold) for run in runs]
            low, middle, high, most = np.quantile(counts, [0.25, 0.5, 0.75, 0.9], method="inverted_cdf")
            middle = np.median(counts)
            axes.plot([low, most], [row, row], color=GOOD, linewidth=1.1, solid_capstyle="butt")
            axes.barh(row, high - low, left=low, height=0.56, color=GOOD, alpha=0.3, linewidth=0)
            axes.plot([middle, middle], [row - 0.28, row + 0.28], color=GOOD, linewidth=2.4, solid_capstyle="butt")
            axes.plot(most, row, "D", color=GOOD, markersize=4.5, clip_on=False)
            text = f"{count_text(float(middle), budget)} / {count_text(float(most), budget)}"
            at: Any = ("axes fraction", "data")
            axes.annotate(text, (1.0, row), (5, 0), xycoords=at, textcoords="offset points", va="center", fontsize=8)
        axes.axvspan(budget + 0.5, budget + 1.8, color=LINE, alpha=0.6, linewidth=0, zorder=0)
        axes.set_xlim(0, budget + 1.8)
        ticks = _ticks(budget)
        axes.set_xticks([*ticks, budget + 1], [*map(str, ticks), f">{budget}"])
        axes.grid(axis="y", visible=False)
        axes.set_title(f"to within {100 * (1 - threshold):.0f} % (median / nine in ten)")
        axes.tick_params(axis="y", length=0)
    panels[0].set_yticks(range(len(labels)), names)
    panels[0].set_ylim(-0.6, len(labels) - 0.4)
    figure.supxlabel("deployments" if _by_deployment(group) else "samples", fontsize=9)
    _title(figure, group, "Samples to come near the best clear configuration (box: quartiles, bar: median, ◆: 90 %)")
    return figure


def differences(group: Group, against: str) -> "Figure":
    """Paired differences against one searcher, with bootstrap intervals over tasks."""
    rival = group.searchers[against]
    pairs = [p for label, runs in group.searchers.items() if label != against and (p := paired(runs, rival))]
    pairs.sort(key=lambda pair: pair.samples.value)
    shown = [n for n in (5, 10) if n in pairs[0].quality]
    parts: list[tuple[str, list[Estimate], float]] = [
        (f"gain in quality\nafter {n} samples", [pair.quality[n] for pair in pairs], 0.0) for n in shown
    ]
    parts.append((f"{against} needs so many times\nas many samples to 5 %", [pair.ratio for pair in pairs], 1.0))
    names = [fill(pair.label, 26) for pair in pairs]
    figure = sheet(1.5 + _row_in(names, 0.24) * len(pairs))
    panels = figure.subplots(1, len(parts), sharey=True, squeeze=False)[0]
    for axes, (label, estimates, nothing) in zip(panels, parts):
        axes.axvline(nothing, color=INK, linewidth=0.9)
        for row, estimate in enumerate(estimates):
            colour = GOOD if estimate.low > nothing else BAD if estimate.high < nothing else MUTED
            face = "white" if colour == MUTED else colour
            axes.plot([estimate.low, estimate.high], [row, row], color=colour, linewidth=1.6, solid_capstyle="butt")
            axes.plot(estimate.value, row, "o", markersize=5.5, mec=colour, mfc=face, mew=1.4)
        axes.set_xlabel(label)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        if nothing:
            _ratio_axis(axes, estimates)
    at: Any = ("axes fraction", "data")
    for row, pair in enumerate(pairs):
        text = f"{pair.better} / {pair.worse}"
        panels[-1].annotate(text, (1.0, row), (6, 0), xycoords=at, textcoords="offset points", va="center")
    head = f"tasks sooner / later\nof {pairs[0].tasks}"
    panels[-1].set_title(head, loc="right", fontsize=8)
    panels[0].set_yticks(range(len(pairs)), names)
    panels[0].set_ylim(-0.6, len(pairs) - 0.4)
    text = f"Against {against}, paired by task and seed (95 % intervals over tasks; hollow: may be no difference)"
    _title(figure, group, text)
    return figure


def _row_in(names: Sequence[str], least: float) -> float:
    """Inches that each row needs, so that labels of several lines do not touch."""
    return max(least, 0.05 + 0.15 * max(name.count("\n") + 1 for name in names))


def _soonest(runs: Sequence[Run]) -> tuple[float, float]:
    summary = Summary.of(runs)
    return summary.clear5.median, summary.clear5.p90


def _by_deployment(group: Group) -> bool:
    return all("at once" in label for label in group.searchers)


def _quantile(curves: FloatArray, q: float, n: npt.NDArray[np.int_]) -> FloatArray:
    return np.asarray(np.quantile(curves[:, : len(n)], q, axis=0))


def _ticks(budget: int) -> list[int]:
    step = 10 if budget > 20 else 5 if budget > 8 else 2
    return [1, *(n for n in range(step, budget, step) if n <= budget - step / 3)]  # the last would touch the label >30


def _ratio_axis(axes: "Axes", estimates: Iterable[Estimate]) -> None:
    """A log axis with plain numbers."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    values = [v for e in estimates for v in (e.low, e.high)]
    low, high = min(0.8, *values) / 1.08, max(1.25, *values) * 1.08
    narrow = high / low < 4
    known = (0.5, 0.7, 0.8, 1.0, 1.2, 1.5, 2.0, 3.0) if narrow else (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
    inside = [v for v in known if low <= v <= high]
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(FixedLocator(inside))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def _whole_numbers(axes: "Axes") -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))


def _title(figure: "Figure", group: Group, text: str) -> None:
    about = fill(f"{group.title}; {group.extent}; {group.conditions}", 100)
    figure.suptitle(f"{text}\n{about}", x=0.01, ha="left", fontsize=8.5)


def sheet(height_in: float, width_in: float = _WIDTH_IN) -> "Figure":
    """An empty figure."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width_in, height_in), layout="constrained")


def style() -> AbstractContextManager[None]:
    """How every figure of the experiments looks, while it lasts."""
    import matplotlib

    return matplotlib.rc_context(_RC)
