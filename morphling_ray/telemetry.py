"""What monitoring sees of a run: metrics of Ray's own kind, which its agent on every node hands to Prometheus.

    what the lanes do ─► Telemetry.refresh       ─┐
    a trial that ended ─► Telemetry.trial_finished ─┴─► ray.util.metrics ─► the node's agent ─► Prometheus ─► Grafana

All of it comes from the process of the search, four times a second at the most, and nothing from requests. Ray reports
a gauge only while it is set again: that of a trial that has ended is gone within half a minute, and so is that of a
search that was killed. No label has a setting's value in it.
"""

import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from morphling_ray.measurement import Probe, Trial
from morphling_ray.wording import outcome, ranked

COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"
OF_RUN = ("run", "application")
TRIAL_SECONDS = (2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0)  # bounds of the histogram's buckets
# What a lane says it is doing begins with one of these words; the stage is then called as in a trial's `timings_s`.
STAGES = {
    **{"deploying": "deploying", "warming": "warming_up", "timing": "table", "forecast": "forecast"},
    **{"probing": "probing", "measuring": "probing", "sending": "probing", "replaying": "replay"},
}
STARTING, OTHER = "starting", "other"
_LENGTH = 64  # of a label's value


@dataclass(frozen=True)
class Metric:
    """One metric. `labels` are those beside `run` and `application`."""

    name: str
    kind: str
    unit: str
    help: str
    labels: tuple[str, ...] = ()

    @property
    def series(self) -> tuple[str, ...]:
        """What it is called in Prometheus: Ray and Prometheus add to the name."""
        endings = {COUNTER: ("_total",), GAUGE: ("",), HISTOGRAM: ("_bucket", "_sum", "_count")}[self.kind]
        return tuple(f"ray_{self.name}{ending}" for ending in endings)


METRICS = (
    Metric("morphling_trials", COUNTER, "trials", "Trials that have ended, by what became of them", ("outcome",)),
    Metric("morphling_voided_attempts", COUNTER, "attempts", "Attempts at a trial that were lost and begun anew"),
    Metric("morphling_probes", COUNTER, "windows", "Probes of trials that have ended, by verdict", ("verdict",)),
    Metric("morphling_stage_seconds", COUNTER, "seconds", "Where the time of ended trials went, by stage", ("stage",)),
    Metric("morphling_trial_seconds", HISTOGRAM, "seconds", "How long trials took"),
    Metric("morphling_running", GAUGE, "1", "1: the stage that a trial is in, 0: one that it left", ("trial", "stage")),
    Metric("morphling_probe_offered_rps", GAUGE, "RPS", "Rate of a running trial's latest probe", ("trial",)),
    Metric("morphling_probe_achieved_rps", GAUGE, "RPS", "Answers a second in it", ("trial",)),
    Metric("morphling_probe_p50_seconds", GAUGE, "seconds", "Median of the latencies in it", ("trial",)),
    Metric("morphling_probe_p99_seconds", GAUGE, "seconds", "99th percentile of the latencies in it", ("trial",)),
    Metric("morphling_incumbent_objective", GAUGE, "of the objective", "Objective of the best trial so far"),
    Metric("morphling_incumbent_peak_rps", GAUGE, "RPS", "Peak of the best trial so far"),
    Metric("morphling_incumbent_cost_per_hour", GAUGE, "dollars", "Cost per hour of the best trial so far"),
    Metric("morphling_samples", GAUGE, "trials", "Trials so far, with those of the run that is resumed"),
    Metric("morphling_max_trials", GAUGE, "trials", "Trials that the search makes at most"),
)


class Telemetry:
    """Reports a run. Every method may be called from any thread; none of them ever ends the run. Ray is connected.

    Args:
        run: Name of the run directory.
        application: What is tuned: an import path, a file or a task.
        max_trials: How many trials the search makes at most.
        reported: The objective's value as a person reads it.
        kept: Trials of the run that is resumed; counters do not count them again.
    """

    def __init__(
        self,
        *,
        run: str,
        application: str,
        max_trials: int,
        reported: Callable[[float], float],
        kept: Sequence[Trial] = (),
    ) -> None:
        self._of_run = {"run": label(run), "application": label(application)}
        self._max_trials, self._reported = max_trials, reported
        self._lock = threading.Lock()
        self._ended = list(kept)
        self._stages: set[tuple[str, str]] = set()  # that trials were in when it was looked last
        self._metrics: dict[str, Any] = {}
        with suppress(Exception):
            self._metrics = _made()

    def refresh(self, running: Iterable[int], doing: Mapping[int, tuple[str, Probe | None]]) -> None:
        """Sets all gauges anew; what is not set any more is no longer reported.

        Args:
            running: Numbers of the trials that go on.
            doing: Of those that a lane has begun, what it says that it is doing, and its latest probe.
        """
        with suppress(Exception), self._lock:
            going_on = {str(number): doing.get(number, (STARTING, None)) for number in list(running)}
            stages = {(trial, stage_of(text)) for trial, (text, _) in going_on.items()}
            for trial, stage in self._stages | stages:
                self._set("morphling_running", float((trial, stage) in stages), trial=trial, stage=stage)
            self._stages = stages
            for trial, (_, probe) in going_on.items():
                if probe is not None:
                    self._set("morphling_probe_offered_rps", probe.rate_rps, trial=trial)
                    self._set("morphling_probe_achieved_rps", probe.achieved_rps, trial=trial)
                    self._set("morphling_probe_p50_seconds", probe.p50_s, trial=trial)
                    self._set("morphling_probe_p99_seconds", probe.p99_s, trial=trial)
            self._set("morphling_samples", len(self._ended))
            self._set("morphling_max_trials", self._max_trials)
            if best := ranked(self._ended)[:1]:
                self._set("morphling_incumbent_objective", self._reported(best[0].objective or 0.0))
                self._set("morphling_incumbent_peak_rps", best[0].measurement.metrics.get("peak_rps"))
                self._set("morphling_incumbent_cost_per_hour", best[0].measurement.details.get("cost_per_hour"))

    def trial_finished(self, trial: Trial) -> None:
        """Counts a trial, whatever its outcome."""
        with suppress(Exception), self._lock:
            self._ended.append(trial)
            self._count("morphling_trials", 1, outcome=outcome(trial).name.lower())
            self._count("morphling_voided_attempts", trial.measurement.voided)
            for probe in trial.measurement.probes:
                self._count("morphling_probes", int(probe.judged), verdict=probe.verdict.value)
            for stage, seconds in trial.measurement.timings_s.items():
                self._count("morphling_stage_seconds", seconds, stage=label(stage))
            self._metrics["morphling_trial_seconds"].observe(trial.seconds, self._of_run)

    def _set(self, name: str, value: float | None, **labels: str) -> None:
        if value is not None:
            self._metrics[name].set(value, {**self._of_run, **labels})

    def _count(self, name: str, by: float, **labels: str) -> None:
        if by > 0:  # Ray refuses 0
            self._metrics[name].inc(by, {**self._of_run, **labels})


def stage_of(text: str) -> str:
    """The stage that a lane is in, by what it says: a rate or a rival's name would make a label of its own."""
    word = text.split(" ")[0]
    return STARTING if word == STARTING else STAGES.get(word, OTHER)


def label(text: str) -> str:
    """A label's value from a name or a path: its last part, without what Prometheus or a person stumbles over."""
    name = re.sub(r"[^\w.:-]+", "_", text.rstrip("/").rpartition("/")[2])
    return name[-_LENGTH:] or "_"


def table() -> str:
    """All metrics as a table in Markdown, for the documentation."""
    rows = [
        f"| `{metric.name}` | {metric.kind} | {metric.unit} | {', '.join(metric.labels)} | {metric.help} |"
        for metric in METRICS
    ]
    return "\n".join(["| metric | kind | unit | labels | what it is |", "|---|---|---|---|---|", *rows])


def _made() -> dict[str, Any]:
    """Ray's own object for each metric."""
    from ray.util.metrics import Counter, Gauge, Histogram

    made: dict[str, Any] = {}
    for metric in METRICS:
        about = {"description": f"{metric.help} ({metric.unit})", "tag_keys": (*OF_RUN, *metric.labels)}
        if metric.kind == HISTOGRAM:
            made[metric.name] = Histogram(metric.name, boundaries=list(TRIAL_SECONDS), **about)
        else:
            made[metric.name] = (Counter if metric.kind == COUNTER else Gauge)(metric.name, **about)
    return made
