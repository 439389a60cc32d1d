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
    `rate_rps`), `closed` (closed loop; `rate_rps` is what was answered) or `saturate` (the same for the capacity,
    without a verdict).
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
    mean_s: float = 0.0  # that requests took until they were answered in full; 0 where none was
    # Of streamed answers, at the SLO's percentile: time to the first token, and for each token after it. The latencies
    # above then say how far requests were from their bounds (`Slo.streamed`).
    ttft_s: float = 0.0
    tpot_s: float = 0.0

    @property
    def judged(self) -> bool:
        """Whether its verdict counts."""
        return self.kind != "saturate"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How a configuration did against a rival that was measured in turn with it.

    Attributes:
        rival: The other configuration.
        ratio: Its peak over the rival's.
        sd: Standard deviation of the logarithm of that.
        rounds: In which they were loaded in turn; 0: they were measured one after the other.
        p_better: Probability that it is the better one, by the objective.
        tie: Nothing more than chance could be made out.
        won: It is the better one, or the cheaper one of a tie, or the one of a tie that seems better.
    """

    rival: Configuration
    ratio: float
    sd: float
    rounds: int
    p_better: float
    tie: bool
    won: bool

    def mirrored(self, mine: Configuration) -> "Comparison":
        """The same as the rival sees it."""
        return Comparison(
            rival=mine,
            ratio=1.0 / self.ratio,
            sd=self.sd,
            rounds=self.rounds,
            p_better=1.0 - self.p_better,
            tie=self.tie,
            won=not self.won,
        )


_VOIDED = " was voided: "


def voided(attempt: int, why: str) -> str:
    """The note of a measurement of which an attempt does not count."""
    return f"attempt {attempt}{_VOIDED}{why}"


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
        comparison: With a rival that was measured in turn with it.
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
    comparison: Comparison | None = None
    notes: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def feasible(self) -> bool:
        """Whether it has metrics."""
        return not self.infeasible_because

    @property
    def voided(self) -> int:
        """How often it was begun anew, since something that measures or is measured was lost."""
        return sum(_VOIDED in note for note in self.notes)

    @property
    def met(self) -> tuple[Probe, ...]:
        """Probes that met the SLO, but for those much shorter than others: their p99 is a single request."""
        met = [p for p in self.probes if p.judged and p.verdict is Verdict.MET]
        longest = max((p.window_s for p in met), default=0.0)
        return tuple(p for p in met if 2 * p.window_s >= longest)

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
        if known.get("comparison") is not None:
            known["comparison"] = Comparison(**known["comparison"])
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
