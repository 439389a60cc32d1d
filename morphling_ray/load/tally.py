"""What happens to the requests of one window, noted as it happens; `record` tells what is known at any time."""

import asyncio
import time
from dataclasses import dataclass, field

import numpy as np

from morphling_ray.load.client import cause, turned_away
from morphling_ray.load.window import Record
from morphling_ray.measurement import Verdict
from morphling_ray.objective import Slo


@dataclass
class Stream:
    """The answer of one request as far as it has come."""

    first: float
    at_once: int  # tokens of its first piece
    last: float
    tokens: int

    @property
    def tpot_s(self) -> float:
        """Time for each token after the first piece."""
        return (self.last - self.first) / max(1, self.tokens - self.at_once)


@dataclass
class Tally:
    """Records of one window, filled while it runs; times are those of `time.perf_counter`.

    Requests that are due before `start` only bring the server to where it is when many streams are going on.
    """

    start: float
    slo: Slo
    cpu: float = field(default_factory=time.process_time)
    due: list[float] = field(default_factory=list)
    latency_s: list[float] = field(default_factory=list)  # NaN while in flight
    lag_s: list[float] = field(default_factory=list)
    in_flight: dict[int, asyncio.Task[None]] = field(default_factory=dict)  # by row, in the order of sending
    streams: dict[int, Stream] = field(default_factory=dict)  # by row
    finished_at: list[float] = field(default_factory=list)
    early: int = 0  # requests that are due before the start
    late: int = 0
    errors: int = 0
    first_error: str = ""
    away: list[int] = field(default_factory=list)  # rows of those that were turned away, which are errors as well

    def begin(self, due: float) -> int:
        """Makes the row of a request that is sent now."""
        self.due.append(due)
        self.latency_s.append(np.nan)
        self.early += due < self.start
        return len(self.due) - 1

    def piece(self, row: int, tokens: int) -> None:
        """Records that a piece of an answer has come."""
        now = time.perf_counter()
        if (stream := self.streams.get(row)) is None:
            self.streams[row] = Stream(now, tokens, now, tokens)
        else:
            stream.last, stream.tokens = now, stream.tokens + tokens

    def end(self, row: int, error: BaseException | None = None) -> None:
        """Records an answer, or that there is none."""
        now = time.perf_counter()
        self.in_flight.pop(row, None)  # here and not when the task is done: nobody must be counted twice
        if error is None and self.slo.streaming and row not in self.streams:
            error = ValueError("the answer is an empty stream")
        if error is None:
            self.finished_at.append(now)
            self.latency_s[row] = self._so_far(row, now)
        else:
            self.errors += 1
            self.latency_s[row] = np.inf
            if away := turned_away(error):
                self.away.append(row)
            if not self.first_error or (not away and self.errors == len(self.away) + 1):
                self.first_error = describe(error)  # of a real failure, if there is one
            if not self.slo.failed_are_late:
                self._leave_out(row)
        self.late += self.due[row] >= self.start and self.latency_s[row] > self.slo.latency_s

    def forgive(self) -> None:
        """Leaves out who was turned away, as if those had been due before the start."""
        for row in self.away:
            self.late -= self.due[row] >= self.start
            self._leave_out(row)
        self.errors -= len(self.away)
        self.away.clear()
        self.first_error = self.first_error if self.errors else ""

    def _leave_out(self, row: int) -> None:
        self.early += self.due[row] >= self.start
        self.due[row] = -np.inf

    def _so_far(self, row: int, now: float) -> float:
        stream = self.streams.get(row)
        return now - self.due[row] if stream is None else self.slo.streamed(stream.first - self.due[row], stream.tpot_s)

    def known(self) -> tuple[int, int]:
        """Requests that have a fate, and those of them that are late or failed; who is overdue is late already."""
        now, waiting, overdue = time.perf_counter(), 0, 0
        for row in self.in_flight:
            if self.due[row] < self.start:
                continue
            waiting += 1
            stream = self.streams.get(row)
            overdue += (now if stream is None else stream.first) - self.due[row] > self.slo.latency_s
        return len(self.due) - self.early - waiting + overdue, self.late + overdue

    def record(self, *, planned: int, settled: Verdict | None, achieved_rps: float | None = None) -> Record:
        """What is known now. Who is in flight has waited so long; who is in time so far has no fate and is left out."""
        now, cpu = time.perf_counter(), time.process_time()
        due, latency_s = np.array(self.due, float), np.array(self.latency_s, float)
        waiting = np.isnan(latency_s)
        latency_s[waiting] = [self._so_far(int(row), now) for row in np.flatnonzero(waiting)]
        fate = (~waiting | (latency_s > self.slo.latency_s)) & (due >= self.start)
        elapsed_s = now - self.start
        streams = [(self.due[row], s) for row, s in self.streams.items() if self.due[row] >= self.start]
        return Record(
            due_s=due[fate] - self.start,
            latency_s=latency_s[fate],
            lag_s=np.array(self.lag_s, float),
            planned=planned,
            errors=self.errors,
            given_up=int(waiting.sum()),
            first_error=self.first_error,
            achieved_rps=len(self.finished_at) / elapsed_s if achieved_rps is None else achieved_rps,
            elapsed_s=elapsed_s,
            driver_cpu=(cpu - self.cpu) / elapsed_s,
            settled=settled,
            ttft_s=np.array([s.first - due for due, s in streams]),
            tpot_s=np.array([s.tpot_s for _, s in streams]),
            took_s=np.array([s.last - due for due, s in streams]),
        )


def describe(error: BaseException) -> str:
    """The error in one line; for one that a replica raised, its cause."""
    root = cause(error)
    text = " ".join(str(root).split()) or type(root).__name__
    return f"{type(root).__name__}: {text}"[:300]
