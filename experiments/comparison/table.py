"""Markdown tables from finished runs."""

import math
from collections.abc import Sequence

from experiments.comparison.groups import Group
from experiments.comparison.pairs import RESAMPLES, Estimate, Paired, paired
from experiments.comparison.statistics import NEAR, QUALITY_AT, STOP_AT, Calibration, Reach, Summary, calibration

LEGEND = (
    "Samples until what is recommended comes within 5 or 10 % of the best, as median / the number by which nine in "
    "ten runs are there. *clear*: of the best that keeps every bound with the noise to spare; *raw*: of the very best. "
    "*q@n*: mean share of the very best after n samples. *probes*: median probes until within 5 % clear, if a trial "
    "that is worse than the incumbent is rejected after one. *ms*: median thought per sample (to suggest, observe and "
    "recommend). *train*: to learn from earlier tasks."
)


def report(groups: Sequence[Group], against: str | None = None) -> str:
    """Everything about some groups.

    Args:
        groups: What was run.
        against: Label of the searcher that all others are paired with; None for no such tables.
    """
    parts = [LEGEND]
    for group in groups:
        about = f"{group.extent}; {group.conditions}."
        if group.left_out:
            about += f" Left out, since no configuration keeps the bounds: {', '.join(sorted(group.left_out))}."
        if group.is_part:
            about += f" Searched: {', '.join(group.tasks)}."
        parts.append(f"### {group.title}\n\n{about}")
        parts.append(summary_table([Summary.of(runs) for runs in group.searchers.values()]))
        if against in group.searchers and len(group.searchers) > 1:
            rival = group.searchers[against]
            pairs = [paired(runs, rival) for label, runs in group.searchers.items() if label != against]
            parts.append(paired_table([pair for pair in pairs if pair is not None]))
        sure = [c for runs in group.searchers.values() if (c := calibration(runs)) is not None]
        if sure:
            parts.append(calibration_table(sure))
    return "\n\n".join(parts) + "\n"


def summary_table(summaries: Sequence[Summary]) -> str:
    """One row per searcher."""
    shown = [n for n in QUALITY_AT if all(n in s.quality_at for s in summaries)]
    head = ["searcher", "runs", "5 % clear", "5 % raw", "10 % clear", *(f"q@{n}" for n in shown)]
    rows = [
        [
            summary.label,
            str(summary.runs),
            *(_reach(reach) for reach in (summary.clear5, summary.raw5, summary.clear10)),
            *(f"{summary.quality_at[n]:.3f}" for n in shown),
            "not half" if math.isinf(summary.probes) else f"{summary.probes:.0f}",
            _short(summary.suggest_ms),
            "–" if summary.train_s is None else f"{_short(summary.train_s)} s",
        ]
        for summary in summaries
    ]
    return _markdown([*head, "probes", "ms", "train"], rows)


def paired_table(pairs: Sequence[Paired]) -> str:
    """One row per searcher, against the same other."""
    shown = [n for n in QUALITY_AT if n in pairs[0].quality]
    against = pairs[0].against
    text = (
        f"Paired against {against}, same tasks, seeds and noise, with 95 % intervals ({RESAMPLES} bootstrap resamples "
        f"of tasks). *saved*: samples fewer than {against} to within 5 % clear (never counts as budget + 1); *times*: "
        f"how many times as many {against} needs, as geometric mean and as ratio of medians; *tasks*: better / worse."
    )
    head = ["searcher", *(f"Δq@{n}" for n in shown), "saved", "times", "times (medians)", "tasks"]
    rows = [
        [
            pair.label,
            *(_estimate(pair.quality[n], "+.3f") for n in shown),
            _estimate(pair.samples, "+.1f"),
            _estimate(pair.ratio, ".2f"),
            _estimate(pair.median_ratio, ".2f"),
            f"{pair.better} / {pair.worse} of {pair.tasks}",
        ]
        for pair in pairs
    ]
    return f"{text}\n\n{_markdown(head, rows)}"


def calibration_table(found: Sequence[Calibration]) -> str:
    """One row per searcher that says how sure it is."""
    text = f"Stopping when the searcher is {100 * STOP_AT:.0f} % sure to be within 5 % of the best:"
    head = ["searcher", "runs", "stop", "at sample", f"then at {NEAR:g} clear or better", "never stop"]
    rows = [
        [
            c.label,
            str(c.runs),
            f"{100 * c.stopped:.0f} %",
            "–" if math.isnan(c.samples) else f"{c.samples:g}",
            "–" if math.isnan(c.right) else f"{100 * c.right:.0f} %",
            f"{100 * (1 - c.stopped):.0f} %",
        ]
        for c in found
    ]
    return f"{text}\n\n{_markdown(head, rows)}"


def count_text(count: float, budget: int) -> str:
    """Samples; more than the budget is `>30`."""
    return f">{budget}" if count > budget else f"{count:g}"


def _reach(reach: Reach) -> str:
    return f"{count_text(reach.median, reach.budget)} / {count_text(reach.p90, reach.budget)}"


def _estimate(estimate: Estimate, form: str) -> str:
    value, low, high = (f"{v:{form}}".replace("-", "−") for v in (estimate.value, estimate.low, estimate.high))
    return f"{value} [{low}, {high}]"


def _short(value: float) -> str:
    """About two digits, never as a power of ten."""
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that is aligned in the source too; the first column is text, the others numbers."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = []
    for row in (head, *rows):
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))]
        lines.append(f"| {' | '.join(cells)} |")
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([lines[0], f"| {' | '.join(rule)} |", *lines[1:]])
