"""Tells on stderr how far a comparison is and how long it will still take."""

import time
from collections.abc import Callable, Sequence
from typing import TextIO

from experiments.comparison.planning import Unit
from experiments.comparison.work import Outcome

_EVERY_S = 20.0  # between lines where there is no terminal


class Progress:
    """Counts finished runs; the estimate knows that some searchers take a thousand times as long as others.

    Args:
        units: Everything that is to be run.
        processes: How many run at once.
        stream: Where it is told; a terminal gets one line that changes, anything else a line now and then.
        clock: Seconds.
    """

    def __init__(
        self, units: Sequence[Unit], processes: int, stream: TextIO, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._processes, self._stream, self._clock = processes, stream, clock
        self._terminal = stream.isatty()
        self._began = clock()
        self._told_at = float("-inf")
        self._left: dict[str, int] = {}  # runs, by searcher
        self._done: dict[str, int] = {}
        self._seconds: dict[str, float] = {}  # spent on the runs done, by searcher
        for unit in units:
            self._left[unit.searcher] = self._left.get(unit.searcher, 0) + len(unit.tasks)
        self._total = sum(self._left.values())

    def tell(self, outcome: Outcome) -> None:
        """Takes in a finished unit."""
        name, runs = outcome.unit.searcher, len(outcome.unit.tasks)
        self._left[name] -= runs
        self._done[name] = self._done.get(name, 0) + runs
        self._seconds[name] = self._seconds.get(name, 0.0) + outcome.seconds
        if outcome.error:
            self.say(f"failed: {outcome.unit}: {outcome.error}")
        over = not any(self._left.values())
        now = self._clock()
        if not (self._terminal or over or now - self._told_at >= _EVERY_S):
            return
        self._told_at = now
        done = sum(self._done.values())
        text = f"{done} of {self._total} runs, {clock_text(now - self._began)}"
        if not over:
            text += f", about {clock_text(self.left_s())} left; {outcome.unit}"
        if self._terminal:
            self._stream.write(f"\r\x1b[K{text[:118]}" + ("\n" if over else ""))
            self._stream.flush()
        else:
            self.say(text)

    def say(self, text: str) -> None:
        """Writes a line that stays."""
        self._stream.write(("\r\x1b[K" if self._terminal else "") + text + "\n")
        self._stream.flush()

    def left_s(self) -> float:
        """Estimate of the seconds left; a searcher of which nothing is known yet is taken for an average one."""
        overall = sum(self._seconds.values()) / max(sum(self._done.values()), 1)
        each = {name: self._seconds[name] / self._done[name] for name in self._done}
        return sum(runs * each.get(name, overall) for name, runs in self._left.items()) / self._processes


def clock_text(seconds: float) -> str:
    """Seconds as `m:ss` or `h:mm:ss`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
