"""Progress of a run as JSON lines, for programs: an object on each line of stderr, with `event` and `seconds`.

    {"event": "message", "seconds": 0.1, "text": "starting Ray"}
    {"event": "trial_started", "seconds": 6.2, "number": 1, "stage": "search", "configuration": {...}}
    {"event": "stage", "seconds": 7.9, "number": 1, "text": "probing at 212 RPS"}
    {"event": "trial_finished", "seconds": 15.0, "trial": {...}, "outcome": "measured"}

A trial is what its line in trials.jsonl says, without its probes.
"""

import json
import threading
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from morphling_ray.measurement import Trial
from morphling_ray.space import Value
from morphling_ray.store import plain
from morphling_ray.wording import cost_usd, one_line, outcome


class JsonProgress:
    """Says a run as it goes. Every method may be called from any thread; none of them ever ends the run.

    Args:
        stream: Where to write.
        clock: Seconds, of which only differences matter.
    """

    def __init__(self, stream: TextIO, *, clock: Callable[[], float]) -> None:
        self._stream, self._clock = stream, clock
        self._started_at = clock()
        self._lock = threading.Lock()
        self._said: dict[int, str] = {}

    def message(self, text: str) -> None:
        """A step of the run that belongs to no trial."""
        self._write("message", text=one_line(text))

    def trial_started(self, number: int, configuration: Mapping[str, Value], stage: str) -> None:
        """A trial begins."""
        self._write("trial_started", number=number, stage=stage, configuration=configuration)

    def stage(self, number: int, text: str) -> None:
        """What a running trial does now; the same twice is said once."""
        if self._said.get(number) != text:
            self._said[number] = text
            self._write("stage", number=number, text=one_line(text))

    def trial_finished(self, trial: Trial) -> None:
        """A trial ended."""
        self._said.pop(trial.number, None)
        told = {k: v for k, v in trial.to_dict().items() if k not in ("probes", "siblings")}
        self._write("trial_finished", trial=told, outcome=outcome(trial), cost_usd=cost_usd(trial))

    def close(self) -> None:
        """There is nothing to end."""

    def __enter__(self) -> "JsonProgress":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _write(self, event: str, **more: Any) -> None:
        seconds = round(self._clock() - self._started_at, 3)
        line = json.dumps(plain({"event": event, "seconds": seconds, **more}), allow_nan=False)
        try:
            with self._lock:
                self._stream.write(line + "\n")
                self._stream.flush()
        except (OSError, ValueError):  # a closed pipe must not end the measurement
            pass
