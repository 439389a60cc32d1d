"""Live progress of a run on stderr.

On a terminal: one line for each finished trial, and below them, redrawn four times a second and gone at the end, what
is running, how the best rose, and the best trials so far. Elsewhere (a file, a pipe, a CI log): plain lines, few of
them, without control characters; JSON lines for programs are json_progress.py's. It shares the machine with the
measurement, so what does not change is not laid out again.
"""

import math
import os
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TextIO

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from morphling_ray.measurement import Trial
from morphling_ray.space import Configuration, Value
from morphling_ray.wording import (
    NOTHING,
    Outcome,
    at_peak,
    configuration_text,
    cost_usd,
    duration,
    number,
    one_line,
    outcome,
    quantity,
    ranked,
    result_text,
)

BEST_SHOWN = 5
REFRESH_HZ = 4.0
_SPACE_ABOVE = (1, 0, 0, 0)
_CURVE = 24  # trials in it
_STYLES = {Outcome.MEASURED: "", Outcome.REJECTED: "dim", Outcome.OVER_LIMIT: "yellow", Outcome.INFEASIBLE: "yellow"}
_ANNOUNCED = ("deploying", "probing")  # the stages that plain output mentions


@dataclass
class _Running:
    configuration: Configuration
    stage: str
    started_at: float
    text: str = ""
    announced: set[str] = field(default_factory=set)


class Progress:
    """Shows a run as it goes. Every method may be called from any thread; none of them ever ends the run.

    Args:
        stream: Where to write; a terminal gets the live view.
        max_trials: How many trials the search makes at most.
        time_budget_s: How long it may take, None for as long as it needs.
        objective_name: Name of the objective; `rps` is not shown twice.
        unit: Unit of what `reported` returns.
        reported: The objective's value as a person reads it.
        clock: Seconds, of which only differences matter.
        quiet: Show nothing.
        verbose: Plain lines, one for each step of each trial, also on a terminal.
    """

    def __init__(
        self,
        stream: TextIO,
        *,
        max_trials: int,
        time_budget_s: float | None,
        objective_name: str,
        unit: str,
        reported: Callable[[float], float],
        clock: Callable[[], float],
        quiet: bool = False,
        verbose: bool = False,
    ) -> None:
        self._stream, self._quiet, self._verbose, self._clock = stream, quiet, verbose, clock
        self._max_trials, self._time_budget_s = max_trials, time_budget_s
        self._objective_name, self._unit, self._reported = objective_name, unit, reported
        self._lock = threading.RLock()
        self._running: dict[int, _Running] = {}
        self._finished: list[Trial] = []
        self._best: list[Trial] = []
        self._message = ""
        self._started_at = clock()
        self._closed = False
        self._live: Live | None = None
        if not quiet and not verbose and stream.isatty() and os.environ.get("TERM") != "dumb":
            console = Console(file=stream, highlight=False, soft_wrap=False)
            self._unicode = console.encoding.startswith("utf")
            self._table = _LaidOutOnce()
            self._live = Live(
                console=console,
                get_renderable=self._view,
                refresh_per_second=REFRESH_HZ,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=stream is sys.stderr,
            )

    def message(self, text: str) -> None:
        """A step of the run that belongs to no trial, such as "starting Ray"."""
        with self._lock:
            self._message = one_line(text)
        self._show(None if self._live else one_line(text))

    def trial_started(self, number: int, configuration: Mapping[str, Value], stage: str) -> None:
        """A trial begins. `stage` is the stage of the search: `search` or `confirm`."""
        with self._lock:
            self._message = ""
            self._running[number] = _Running(dict(configuration), stage, self._clock())
        self._show(None)

    def stage(self, number: int, text: str) -> None:
        """What a running trial does now, such as "probing at 212 RPS". Unknown trials are ignored."""
        text, line = one_line(text), None
        with self._lock:
            running = self._running.get(number)
            if running is None:
                return
            running.text, before = text, running.text
            word = text.split(" ")[0]
            if self._verbose and running.announced and text != before:
                line = (
                    f"{self._name(number, running.stage)}: {text} after {duration(self._clock() - running.started_at)}"
                )
            elif word in _ANNOUNCED and word not in running.announced:
                running.announced.add(word)
                with_what = f" {configuration_text(running.configuration)}" if len(running.announced) == 1 else ""
                line = f"{self._name(number, running.stage)}: {text}{with_what}"
        self._show(None if self._live else line)

    def trial_finished(self, trial: Trial) -> None:
        """A trial ended, whatever its outcome."""
        with self._lock:
            self._running.pop(trial.number, None)
            self._finished.append(trial)
            self._best = ranked(self._finished)
            result = result_text(trial, self._reported, self._unit)
            line = f"{self._name(trial.number, trial.stage)}: {result} in {duration(trial.seconds)}"
            if self._live:
                line = f"{line}  {configuration_text(trial.configuration)}"
                self._table.content = self._best_table() if self._best else None
            else:
                best = f"; best so far {self._value(self._best[0])}" if self._best else ""
                line = f"{line}; {configuration_text(trial.configuration)}{best}"
        self._show(line, _STYLES[outcome(trial)])

    def close(self) -> None:
        """Ends the live view; the table of the best trials stays. May be called twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        if self._live is None:
            return
        try:
            self._live.stop()
            if self._best:
                self._live.console.print(Padding(self._best_table(), _SPACE_ABOVE))
        except (OSError, ValueError):
            self._quiet = True

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _show(self, line: str | None, style: str = "") -> None:
        """Writes a line that stays. Never called with our lock held: the live view takes its own, then ours."""
        if self._quiet or self._closed:
            return
        try:
            if self._live is not None:
                if not self._live.is_started:
                    self._live.start()
                if line is not None:
                    self._live.console.print(Text(line, style), no_wrap=True, overflow="ellipsis", crop=True)
            elif line is not None:
                encoding = self._stream.encoding or "utf-8"
                with self._lock:
                    self._stream.write(line.encode(encoding, "backslashreplace").decode(encoding) + "\n")
                    self._stream.flush()
        except (OSError, ValueError):  # a closed terminal must not end the measurement
            self._quiet = True

    def _name(self, number: int, stage: str) -> str:
        return f"trial {number}/{self._max_trials}" if stage == "search" else f"trial {number} ({stage})"

    def _value(self, trial: Trial) -> str:
        return quantity(self._reported(trial.objective or 0.0), self._unit)

    def _left_s(self, now: float) -> float | None:
        """Seconds until the end: as long as the trials took so far, but not beyond the time budget."""
        bounds = []
        if self._time_budget_s is not None:
            bounds.append(self._started_at + self._time_budget_s - now)
        searched = [t for t in self._finished if t.stage == "search"]
        if searched:
            mean_s = sum(t.seconds for t in searched) / len(searched)
            spent_s = sum(min(now - r.started_at, mean_s) for r in self._running.values())
            work_s = mean_s * max(self._max_trials - len(searched), 0) - spent_s
            bounds.append(work_s / max(len(self._running), 1))
        return max(min(bounds), 0.0) if bounds else None

    def _dollars(self) -> str:
        """What the replicas of the trials cost, and will have cost in the end; empty where no prices are known."""
        costs = [cost_usd(t) for t in self._finished]
        known = [cost for cost in costs if cost is not None]
        if not known:
            return ""
        searched = sum(t.stage == "search" for t in self._finished)
        expected = sum(known) + sum(known) / len(known) * max(self._max_trials - searched, 0)
        return f"${number(sum(known), 2)} of about ${number(expected, 2)}"

    def _curve(self) -> str:
        """How the best so far rose, a character for each of the latest trials: `▁▁▄▄█ 257 RPS per $/h`."""
        best, curve = 0.0, []
        for trial in sorted(self._finished, key=lambda t: t.number):
            if trial.stage == "search":
                best = max(best, (trial.objective or 0.0) if outcome(trial) is Outcome.MEASURED else 0.0)
                curve.append(best)
        if len(curve) < 2 or not best:
            return ""
        steps = "▁▂▃▄▅▆▇█" if self._unicode else "_.-~=+*#"
        drawn = "".join(steps[min(int(value / best * len(steps)), len(steps) - 1)] for value in curve[-_CURVE:])
        return f"{drawn} best so far {self._value(self._best[0])}"

    def _view(self) -> RenderableType:
        """The live part: a bar with the times, a line for each running trial, the best trials."""
        with self._lock:
            now = self._clock()
            done = sum(t.stage == "search" for t in self._finished)
            left_s = self._left_s(now)
            parts = [f"{done}/{self._max_trials} trials", f"{duration(now - self._started_at)} elapsed"]
            if left_s is not None and left_s >= 1:
                parts.append(f"{'about' if done else 'at most'} {duration(math.ceil(left_s))} left")
            head = Table.grid(padding=(0, 2))
            bar = ProgressBar(total=max(self._max_trials, 1), completed=done, width=18)
            head.add_row(bar, Text(", ".join(parts)))
            frames = "⠋⠙⠸⠴⠦⠇" if self._unicode else "-\\|/"
            spinner = frames[int(now * REFRESH_HZ) % len(frames)]
            lines: list[RenderableType] = [head]
            if curve := self._curve():
                lines.append(Text(", ".join(filter(None, (curve, self._dollars()))), no_wrap=True, overflow="ellipsis"))
            if self._message:
                lines.append(Text(f"{spinner} {self._message}", style="cyan", no_wrap=True, overflow="ellipsis"))
            for n, running in sorted(self._running.items()):
                text = Text(no_wrap=True, overflow="ellipsis")
                text.append(f"{spinner} {self._name(n, running.stage)}: {running.text or 'starting'}", style="cyan")
                text.append(f"  {duration(now - running.started_at)}  ")
                text.append(configuration_text(running.configuration), style="dim")
                lines.append(text)
            return Group(*lines, self._table) if self._best else Group(*lines)

    def _best_table(self) -> Table:
        first = min((t for t in self._finished if outcome(t) is Outcome.MEASURED), key=lambda t: t.number)
        peaks = any("peak_rps" in t.measurement.metrics for t in self._best)
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", expand=False)
        table.add_column("#", justify="right", no_wrap=True)
        if self._objective_name != "rps":
            table.add_column(self._unit or one_line(self._objective_name), justify="right", no_wrap=True)
        if peaks:
            table.add_column("peak RPS", justify="right", no_wrap=True)
            table.add_column("p99", justify="right", no_wrap=True)
        costs = {t.number: t.measurement.details.get("cost_per_hour") for t in self._best}
        priced = any(costs.values()) and self._unit != "$/h"
        if priced:
            table.add_column("$/h", justify="right", no_wrap=True)
        table.add_column("gain", justify="right", no_wrap=True)
        table.add_column("configuration", ratio=1)
        for rank, trial in enumerate(self._best[:BEST_SHOWN]):
            probe = at_peak(trial.measurement)
            gain = (trial.objective or 0.0) / (first.objective or 1.0)
            cells = [str(trial.number)]
            if self._objective_name != "rps":
                cells.append(self._value(trial).removesuffix(f" {self._unit}"))
            if peaks:
                cells.append(number(trial.measurement.metrics.get("peak_rps")))
                cells.append(f"{number(probe.p99_s * 1e3)} ms" if probe else NOTHING)
            if priced:
                cells.append(number(costs[trial.number]))
            cells.append(f"{gain:.2f}x" if trial is not first else "first")
            table.add_row(*cells, configuration_text(trial.configuration), style="bold green" if rank == 0 else "")
        return table


class _LaidOutOnce:
    """A renderable that is laid out again only when its content or the width changes."""

    def __init__(self) -> None:
        self._content: RenderableType | None = None
        self._laid_out: tuple[int, list[list[Segment]]] | None = None

    @property
    def content(self) -> RenderableType | None:
        """What to show."""
        return self._content

    @content.setter
    def content(self, content: RenderableType | None) -> None:
        self._content, self._laid_out = content, None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self._content is None:
            return
        if self._laid_out is None or self._laid_out[0] != options.max_width:
            padded = Padding(self._content, _SPACE_ABOVE, expand=False)
            self._laid_out = options.max_width, console.render_lines(padded, options.update(height=None), pad=False)
        for line in self._laid_out[1]:
            yield from line
            yield Segment.line()
