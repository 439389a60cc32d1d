"""The report's plots of knobs: what each is worth, and the objective over the two that matter most.

They show what the search's model believes in the end (`recommendation.json`, `insight`). A run that was killed before
that shows what was found with each value instead.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from morphling_ray.plots import label, objective_label
from morphling_ray.summary import Summary
from morphling_ray.svg import ACCENT, INK, LINE, MUTED, figure_of, style, svg
from morphling_ray.wording import number, setting

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_IN_A_ROW = 3


def effects(summary: Summary) -> str:
    """For each knob, what is left of the best with each of its values; what matters most first."""
    found: Mapping[str, Sequence[Mapping[str, Any]]] = summary.insight.get("effects") or {}
    if not any(len(values) > 1 for values in found.values()):
        return ""
    chosen = summary.configuration or {}
    with style():
        figure, all_axes = _panels(len(found))
        for axes, (knob, values) in zip(all_axes, found.items()):
            axes.set_title(knob)
            axes.grid(axis="x", visible=False)
            middles = [100 * float(v["middle"]) for v in values]
            if all(isinstance(v["value"], (int, float)) and not isinstance(v["value"], bool) for v in values):
                axes.plot(range(len(values)), middles, color=LINE, linewidth=1.4, zorder=1)
            for x, (value, middle) in enumerate(zip(values, middles)):
                colour = ACCENT if chosen.get(knob) == value["value"] else MUTED
                axes.plot([x, x], [100 * value["low"], 100 * value["high"]], color=colour, linewidth=3.2, alpha=0.45)
                axes.plot(x, middle, "o", color=colour, markersize=6)
            axes.set_xticks(range(len(values)), [setting(v["value"]) for v in values])
            axes.set_xlim(-0.6, len(values) - 0.4)
            axes.set_ylim(0, 108)
        for axes in all_axes[::_IN_A_ROW]:
            axes.set_ylabel("% of the best")
        return svg(figure, "plot-effects", "share of the best that each value of each knob leaves")


def plane(summary: Summary) -> str:
    """The objective over the two knobs that matter most, as a table in colour; dots mark what was measured."""
    found = summary.insight.get("plane")
    if not found:
        return ""
    (row_knob, rows), (column_knob, columns) = found["rows"], found["columns"]
    cells = [v for row in found["values"] for v in row if v]
    if not cells:
        return ""
    best = min(cells) if summary.lower_is_better else max(cells)
    measured = {(t.configuration.get(row_knob), t.configuration.get(column_knob)) for t in summary.measured}
    chosen = summary.configuration or {}
    with style():
        from matplotlib.patches import Rectangle

        figure = figure_of(0.9 + 0.42 * len(rows))
        axes = figure.add_subplot()
        for y, row in enumerate(rows):
            for x, column in enumerate(columns):
                value = found["values"][y][x]
                if value:
                    share = best / value if summary.lower_is_better else value / best
                    axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, color=ACCENT, alpha=0.6 * share**2, linewidth=0))
                text = number(value) if value else "" if value is None else "fails"
                axes.text(x, y, text, ha="center", va="center", color=INK if value else MUTED)
                if (row, column) in measured:
                    axes.plot(x - 0.4, y, "o", color=INK, markersize=4)
                if chosen.get(row_knob) == row and chosen.get(column_knob) == column:
                    axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, edgecolor=ACCENT, linewidth=2))
        axes.set_xticks(range(len(columns)), [setting(v) for v in columns])
        axes.set_yticks(range(len(rows)), [setting(v) for v in rows])
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(-0.5, len(rows) - 0.5)
        axes.set_xlabel(column_knob)
        axes.set_ylabel(row_knob)
        axes.grid(False)
        return svg(figure, "plot-plane", f"{objective_label(summary)} over {row_knob} and {column_knob}")


def found_with(summary: Summary) -> str:
    """For each knob that was varied: the best objective found with each of its values."""
    values = {k: _values(summary, k) for k in summary.knobs}
    varied = [k for k, v in values.items() if len(v) > 1]
    if not varied or not summary.measured:
        return ""
    better = min if summary.lower_is_better else max
    with style():
        figure, all_axes = _panels(len(varied))
        for axes, knob in zip(all_axes, varied):
            axes.set_title(knob)
            axes.grid(axis="x", visible=False)
            labels = []
            for position, value in enumerate(values[knob]):
                tried = [t for t in summary.trials if t.configuration.get(knob) == value]
                found = [v for t in tried if (v := summary.value(t)) is not None]
                labels.append(f"{setting(value)}\n{len(found)}/{len(tried)}")
                if found:
                    recommended = (summary.configuration or {}).get(knob) == value
                    axes.bar(
                        position,
                        better(found),
                        width=0.6,
                        color=ACCENT if recommended else MUTED,
                        alpha=1.0 if recommended else 0.5,
                    )
                    label(axes, number(better(found)), (position, better(found)), (0, 2), "center")
            axes.set_xticks(range(len(labels)), labels)
            axes.set_xlim(-0.6, len(labels) - 0.4)
            axes.margins(y=0.16)
        for axes in all_axes[::_IN_A_ROW]:
            axes.set_ylabel(objective_label(summary))
        return svg(figure, "plot-knobs", "best objective found for each value of each knob")


def _panels(count: int) -> "tuple[Any, list[Axes]]":
    """A figure with so many small axes, three in a row, that share their vertical one."""
    columns = min(_IN_A_ROW, count)
    rows = math.ceil(count / columns)
    figure = figure_of(0.3 + 2.1 * rows)
    every = list(figure.subplots(rows, columns, squeeze=False, sharey=True).flat)
    for axes in every[count:]:
        axes.set_visible(False)
    return figure, every[:count]


def _values(summary: Summary, knob: str) -> list[Any]:
    """The values of a knob that were tried, in the order of the space where that is known."""
    tried = list(dict.fromkeys(t.configuration[knob] for t in summary.trials if knob in t.configuration))
    space = summary.experiment.get("space")
    order = list(space.get(knob) or ()) if isinstance(space, dict) else []
    if all(v in order for v in tried):
        return sorted(tried, key=order.index)
    numeric = all(isinstance(v, (int, float)) for v in tried)
    return sorted(tried, key=(lambda v: float(v)) if numeric else str)
