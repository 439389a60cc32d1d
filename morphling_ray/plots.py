"""The report's plots. Each function returns an `<svg>` element, or an empty string where there is nothing to draw."""

import math
from typing import TYPE_CHECKING, Any

from morphling_ray.measurement import Probe, Verdict
from morphling_ray.summary import Summary
from morphling_ray.svg import ACCENT, INK, LINE, MISSED, MUTED, PAPER, SERIES, STAGES, figure_of, style, svg
from morphling_ray.wording import Outcome, configuration_text, duration, number, outcome

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def quality(summary: Summary) -> str:
    """The objective of each trial, and the best so far; trials without one in a strip below."""
    if not summary.measured:
        return ""
    with style():
        figure = figure_of(3.1)
        grid = figure.add_gridspec(2, 1, height_ratios=(4.6, 1), hspace=0.06)
        axes = figure.add_subplot(grid[0])
        strip = figure.add_subplot(grid[1], sharex=axes)
        x: list[int] = []
        best: list[float] = []
        top = 0.0
        for trial in summary.trials:
            value, kind = summary.value(trial), outcome(trial)
            if value is None:
                marker = "v" if kind is Outcome.REJECTED else "x"
                colour = MUTED if kind is Outcome.REJECTED else MISSED
                strip.plot(trial.number, 1 if kind is Outcome.REJECTED else 0, marker, color=colour, markersize=6)
                continue
            low, middle, high = summary.expected(trial) or (None, None, None)
            if middle and high:
                ends = sorted((low or 0.0, high))
                axes.plot(
                    [trial.number] * 2, ends, color=MUTED, alpha=0.35, linewidth=5, solid_capstyle="butt", zorder=1
                )
                axes.plot(trial.number, middle, "_", color=MUTED, markersize=9, zorder=1.2)
            top = max(top, value)
            confirm = trial.stage == "confirm"
            axes.plot(trial.number, value, "D" if confirm else "o", color=ACCENT if confirm else INK, markersize=5.5)
            if summary.is_recommended(trial):
                axes.plot(trial.number, value, "o", mfc="none", mec=ACCENT, mew=1.6, markersize=12)
            if not confirm:
                better = min if summary.lower_is_better else max
                x.append(trial.number)
                best.append(better(value, best[-1]) if best else value)
        if x:
            end = max(t.number for t in summary.trials)
            axes.step([*x, end], [*best, best[-1]], where="post", color=ACCENT, linewidth=1.8, zorder=1.5)
        axes.set_ylim(0, 1.14 * top)  # what was expected may reach far beyond
        axes.set_ylabel(objective_label(summary))
        axes.tick_params(labelbottom=False, bottom=False)
        strip.set_yticks([0, 1], ["infeasible", "rejected"])
        strip.set_ylim(-0.7, 1.7)
        strip.grid(False)
        strip.set_xlabel("trial")
        _whole_numbers(strip)
        return svg(figure, "plot-quality", f"{objective_label(summary)} by trial")


def latency(summary: Summary) -> str:
    """Offered rate against latency at the SLO's percentile, for the finalists."""
    curves = summary.finalists()
    if not curves:
        return ""
    slo = summary.slo or {}
    limit_ms = float(slo.get("latency_s") or 0.0) * 1e3
    with style():
        figure = figure_of(3.3 + 0.2 * len(curves))
        axes = figure.add_subplot()
        for (configuration, probes), colour in zip(curves, SERIES):
            shown = [p for p in probes if p.slo_latency_s > 0 and math.isfinite(p.slo_latency_s)]
            valid = [p for p in shown if p.verdict is not Verdict.INVALID]
            text = configuration_text(configuration)
            label = f"{text} (recommended)" if configuration == summary.configuration else text
            axes.plot(*_points(valid), color=colour, linewidth=1.6, label=label)
            for verdict in Verdict:
                axes.plot(*_points([p for p in shown if p.verdict is verdict]), **_mark(verdict, colour))
        axes.set_yscale("log")
        _plain_log(axes)
        if limit_ms:
            axes.axhline(limit_ms, color=MISSED, linewidth=1.2, linestyle=(0, (5, 3)))
            where: Any = ("axes fraction", "data")
            axes.annotate(
                f"SLO\n{number(limit_ms)} ms",
                (1, limit_ms),
                (4, 0),
                color=MISSED,
                va="center",
                xycoords=where,
                textcoords="offset points",
            )
        for verdict in Verdict:
            label = f"{verdict.value} (driver)" if verdict is Verdict.INVALID else verdict.value
            axes.plot([], [], label=label, **_mark(verdict, INK))
        axes.set_xlabel("offered rate in requests per second")
        of = "of TTFT " if slo.get("streaming") else ""
        axes.set_ylabel(f"p{float(slo.get('percentile') or 99):g} {of}in ms (log)")
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles[-3:], labels[-3:], loc="outside upper right", ncols=3)
        figure.legend(handles[:-3], labels[:-3], loc="outside lower left", ncols=1)
        return svg(figure, "plot-latency", "latency against offered rate")


def _points(probes: list[Probe]) -> tuple[list[float], list[float]]:
    return [p.rate_rps for p in probes], [p.slo_latency_s * 1e3 for p in probes]


def _mark(verdict: Verdict, colour: str) -> dict[str, Any]:
    """A full dot for MET, a cross for MISSED, an empty circle for INVALID."""
    hollow, missed = verdict is Verdict.INVALID, verdict is Verdict.MISSED
    edge, face = (colour, PAPER) if hollow else (PAPER, colour)
    size = 8.5 if missed else 6.5
    return {"linestyle": "", "marker": "X" if missed else "o", "markersize": size, "mec": edge, "mfc": face, "mew": 1.0}


def cost(summary: Summary) -> str:
    """Cost against peak RPS of one copy, with the configurations that nothing beats in both."""
    points = []
    for trial in summary.measured:
        dollars, peak = summary.cost_per_hour(trial), trial.measurement.metrics.get("peak_rps")
        if dollars and peak:
            points.append((dollars, peak, trial))
    if len(points) < 2:
        return ""
    front: list[tuple[float, float]] = []
    for dollars, peak, _ in sorted(points, key=lambda p: (p[0], -p[1])):
        if not front or peak > front[-1][1]:
            front.append((dollars, peak))
    with style():
        figure = figure_of(3.0)
        axes = figure.add_subplot()
        axes.step([p[0] for p in front], [p[1] for p in front], where="post", color=ACCENT, linewidth=1.6, zorder=1.5)
        for dollars, peak, trial in points:
            on_front = (dollars, peak) in front
            axes.plot(dollars, peak, "o", color=ACCENT if on_front else MUTED, markersize=6)
            if summary.is_recommended(trial):
                axes.plot(dollars, peak, "o", mfc="none", mec=ACCENT, mew=1.6, markersize=12)
        for dollars, peak in front:
            label(axes, number(peak), (dollars, peak), (-8, 4), "right")
        axes.set_xlim(left=0, right=max(p[0] for p in points) * 1.08)
        axes.set_ylim(bottom=0, top=max(p[1] for p in points) * 1.15)
        axes.set_xlabel("dollars an hour for one copy")
        axes.set_ylabel("peak RPS")
        return svg(figure, "plot-cost", "cost against peak RPS")


def timings(summary: Summary) -> str:
    """Where the time went, as one stacked bar."""
    stages = summary.timings_s()
    if not stages:
        return ""
    with style():
        figure = figure_of(0.85)
        axes = figure.add_subplot()
        start, total = 0.0, sum(stages.values())
        for i, (stage, seconds) in enumerate(stages.items()):
            colour = LINE if stage == "other" else STAGES[i % len(STAGES)]
            axes.barh(0, seconds, left=start, color=colour, edgecolor=PAPER, linewidth=1.2, height=0.9)
            start += seconds
        axes.set_xlim(0, total)
        axes.set_yticks([])
        axes.grid(False)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(f"seconds, {duration(total)} in all")
        return svg(figure, "plot-timings", "time by stage")


def label(axes: "Axes", text: str, at: tuple[float, float], shift: tuple[float, float], side: str) -> None:
    """Text at a point, so many points beside it."""
    axes.annotate(text, at, shift, ha=side, fontsize=8, textcoords="offset points")


def objective_label(summary: Summary) -> str:
    """What an axis of the objective is called."""
    name, unit = summary.objective_name, summary.unit
    known = {"rps": "peak RPS", "rps_per_dollar": "peak RPS per $/h", "cheapest": "$ an hour (lower is better)"}
    if name in known:
        return known[name]
    return f"{name} ({unit})" if unit else name


def _whole_numbers(axes: "Axes") -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=16))
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, 0.5), max(high, 1.5))


def _plain_log(axes: "Axes") -> None:
    """Labels 20, 50, 100 instead of powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())
