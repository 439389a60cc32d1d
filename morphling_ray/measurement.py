"""What is known after something was measured: probe, measurement, trial. Plain data, written to and read from JSON."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

from morphling_ray.space import Configuration


class Verdict(str, Enum):
    """What a probe showed. INVALID: the load driver, not the server, was the limit; never to be taken for a miss."""

    MET = "MET"
    MISSED = "MISSED"
    INVALID = "INVALID"


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One window of load at one rate.

    Latencies are in seconds, from the instant at which a request was scheduled. `kind` is `open` (Poisson arrivals at
    `rate_rps`) or `saturate` (closed loop; `achieved_rps` is then the capacity and no verdict can be read from it).
    """

    kind: str
    rate_rps: float
    window_s: float
    requests: int
    achieved_rps: float
    errors: int
    late: int
    p50_s: float
    p90_s: float
    p99_s: float
    slo_latency_s: float  # at the SLO's own percentile
    driver_lag_s: float  # 99th percentile of how late requests were sent
    driver_cpu: float  # share of one core that the driver used
    verdict: Verdict
    reason: str = ""
    tail_s: float = 0.0  # the SLO's percentile as the upper half of the latencies foretells it; 0: too few


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """The outcome of one trial.

    Attributes:
        configuration: What was measured.
        metrics: Point estimates, all positive, by name; online `peak_rps` (and `capacity_rps`). Empty if infeasible.
        bounds: For a metric that was not pinned down, the interval it lies in, `(low, high)`; `high` may be None
            (a rejected trial: it was only shown that the peak lies below what was needed).
        noise_sd: By metric, about what standard deviation its logarithm would have over repeats, where that is known.
        infeasible_because: Reason that it has no metrics, or an empty string. Data, never an exception.
        probes: Every window that was measured, in order.
        timings_s: Where the time went, by stage.
        estimated: The peak is not the highest rate that was seen to meet the SLO but a model's reading of the probes.
        asked: What was to be measured, where another one was that costs nothing more to try and serves better.
        siblings: What it tells of other configurations, which were not measured themselves: bounds, not metrics.
        notes: Facts about how it was measured that a reader of the report should know.
        details: Anything else worth keeping (log tail, process ids, cores).
    """

    configuration: Configuration
    metrics: Mapping[str, float] = field(default_factory=dict)
    bounds: Mapping[str, tuple[float, float | None]] = field(default_factory=dict)
    noise_sd: Mapping[str, float] = field(default_factory=dict)
    infeasible_because: str = ""
    probes: tuple[Probe, ...] = ()
    timings_s: Mapping[str, float] = field(default_factory=dict)
    estimated: bool = False
    asked: Configuration | None = None
    siblings: "tuple[Measurement, ...]" = ()
    notes: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def feasible(self) -> bool:
        """Whether it has metrics."""
        return not self.infeasible_because

    def to_dict(self) -> dict[str, Any]:
        """A form that `json.dumps` takes and `from_dict` reads back."""
        out = asdict(self)
        for probe in out["probes"]:
            probe["verdict"] = probe["verdict"].value
        told = ("configuration", "bounds", "noise_sd", "infeasible_because")
        out["siblings"] = [{name: getattr(sibling, name) for name in told} for sibling in self.siblings]
        return out

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Measurement":
        """The measurement that `to_dict` wrote. Unknown keys are left out, so that newer files can be read."""
        known = {name: data[name] for name in cls.__dataclass_fields__ if name in data}
        known["probes"] = tuple(_probe(probe) for probe in data.get("probes", ()))
        known["bounds"] = {name: (low, high) for name, (low, high) in dict(data.get("bounds", {})).items()}
        known["siblings"] = tuple(cls.from_dict(sibling) for sibling in data.get("siblings", ()))
        known["notes"] = tuple(data.get("notes", ()))
        return cls(**known)


def _probe(data: Mapping[str, Any]) -> Probe:
    known = {name: value for name, value in data.items() if name in Probe.__dataclass_fields__}
    return Probe(**{**known, "verdict": Verdict(data["verdict"])})


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One measurement in its place in the search.

    `stage` is `search`, or `confirm` when a finalist was measured again. `objective` is None where the measurement is
    infeasible or breaks a bound.
    """

    number: int
    stage: str
    measurement: Measurement
    objective: float | None
    started_s: float  # since the start of the run
    seconds: float

    @property
    def configuration(self) -> Configuration:
        """What was measured."""
        return self.measurement.configuration

    def to_dict(self) -> dict[str, Any]:
        """A form that `json.dumps` takes and `from_dict` reads back."""
        return {
            "number": self.number,
            "stage": self.stage,
            "objective": self.objective,
            "started_s": round(self.started_s, 3),
            "seconds": round(self.seconds, 3),
            **self.measurement.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Trial":
        """The trial that `to_dict` wrote."""
        return cls(
            number=data["number"],
            stage=data["stage"],
            measurement=Measurement.from_dict(data),
            objective=data["objective"],
            started_s=data["started_s"],
            seconds=data["seconds"],
        )
