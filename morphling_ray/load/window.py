"""What one window of load showed: the records of its requests, and the verdict. No clock, no network."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from morphling_ray.measurement import Probe, Verdict
from morphling_ray.objective import Slo

FloatArray = npt.NDArray[np.float64]
NOTHING: FloatArray = np.empty(0)

MAX_LAG_SHARE = 0.25  # of the SLO's latency: a driver that sends later than this has itself spoilt the window


@dataclass(frozen=True, kw_only=True)
class Record:
    """What happened to the requests of one window, in the order in which they were due.

    Attributes:
        due_s: When each was due, since the start of the window, shape `(n,)`.
        latency_s: From then to its answer; infinite where it failed, or left out if that is no lateness to the SLO; for
            one that was given up, how long it had waited by then (longer than the SLO allows).
        lag_s: How late the driver woke up, to send each and to check the window; empty in a closed loop.
        planned: Requests that the whole window would have had.
        errors: How many failed.
        given_up: How many were in flight when the window ended.
        first_error: What the first one that failed said.
        achieved_rps: Answers a second.
        elapsed_s: How long the window took.
        driver_cpu: Share of one core that the driver used.
        settled: MISSED or MET, where that was settled before the window was over.
        ttft_s: Of streamed answers, the time to the first token, shape `(m,)`.
        tpot_s: And for each token after it, shape `(m,)`.
        took_s: And until the last one, shape `(m,)`.
    """

    due_s: FloatArray
    latency_s: FloatArray
    lag_s: FloatArray
    planned: int
    errors: int
    given_up: int
    first_error: str
    achieved_rps: float
    elapsed_s: float
    driver_cpu: float
    settled: Verdict | None
    ttft_s: FloatArray = field(default_factory=lambda: NOTHING)
    tpot_s: FloatArray = field(default_factory=lambda: NOTHING)
    took_s: FloatArray = field(default_factory=lambda: NOTHING)


def together(records: Sequence[Record]) -> Record:
    """One record of what several drivers saw in the same window; the busiest of them counts as the driver."""
    due = np.concatenate([r.due_s for r in records])
    order = np.argsort(due, kind="stable")
    settled = {r.settled for r in records}
    met = Verdict.MET if settled == {Verdict.MET} else None
    return Record(
        due_s=due[order],
        latency_s=np.concatenate([r.latency_s for r in records])[order],
        lag_s=np.concatenate([r.lag_s for r in records]),
        planned=sum(r.planned for r in records),
        errors=sum(r.errors for r in records),
        given_up=sum(r.given_up for r in records),
        first_error=next((r.first_error for r in records if r.first_error), ""),
        achieved_rps=sum(r.achieved_rps for r in records),
        elapsed_s=max(r.elapsed_s for r in records),
        driver_cpu=max(r.driver_cpu for r in records),
        settled=Verdict.MISSED if Verdict.MISSED in settled else met,
        ttft_s=np.concatenate([r.ttft_s for r in records]),
        tpot_s=np.concatenate([r.tpot_s for r in records]),
        took_s=np.concatenate([r.took_s for r in records]),
    )


def allowed_late(requests: int, slo: Slo) -> int:
    """How many of `requests` may be late or failed so that the percentile still meets the SLO.

    The p-th percentile of n latencies is the ceil(p n / 100)-th smallest (nearest rank); those above it may be late.
    """
    return requests - math.ceil(slo.percentile / 100 * requests - 1e-9)


def judge(record: Record, *, kind: str, rate_rps: float, window_s: float, slo: Slo) -> Probe:
    """Turns a window's records into a `Probe` with a verdict.

    Args:
        record: Of the window.
        kind: `open` or `saturate`.
        rate_rps: Offered rate.
        window_s: Length of the window.
        slo: The bounds.
    """
    latency = record.latency_s
    took_s = record.took_s if slo.streaming else latency[np.isfinite(latency)]
    late = int((latency > slo.latency_s).sum())
    p50, p90, p99, at_slo = _percentiles(latency, (50.0, 90.0, 99.0, slo.percentile))
    lag_s = _percentiles(record.lag_s, (99.0,))[0]
    reason = record.first_error
    offered = len(latency) + (0 if slo.failed_are_late else record.errors)
    failing = record.errors / max(1, offered) > slo.max_error_rate
    requests = len(latency) if record.settled else record.planned
    slow = slo.median_s is not None and p50 > slo.median_s
    if failing or slow or record.settled is Verdict.MISSED or late > allowed_late(requests, slo):
        verdict = Verdict.MISSED
        if lag_s > MAX_LAG_SHARE * slo.latency_s and record.errors == 0:
            verdict = Verdict.INVALID
            reason = reason or f"the load driver sent up to {lag_s * 1e3:.0f} ms late"
    else:
        verdict = Verdict.MET  # however late the driver was: latency counts from the scheduled instant
    return Probe(
        kind=kind,
        rate_rps=round(rate_rps, 3),
        window_s=round(window_s, 3),
        requests=offered,
        achieved_rps=round(record.achieved_rps, 3),
        errors=record.errors,
        late=late,
        p50_s=p50,
        p90_s=p90,
        p99_s=p99,
        slo_latency_s=at_slo,
        driver_lag_s=lag_s,
        driver_cpu=round(record.driver_cpu, 3),
        verdict=verdict,
        reason=reason,
        tail_s=tail_s(latency, slo.percentile),
        mean_s=round(float(took_s.mean()), 6) if len(took_s) else 0.0,
        ttft_s=_percentiles(record.ttft_s, (slo.percentile,))[0],
        tpot_s=_percentiles(record.tpot_s, (slo.percentile,))[0],
    )


def tail_s(latency_s: FloatArray, percentile: float) -> float:
    """A high percentile, from a straight line through the upper half of the latencies over -log(1 - share).

    Times in a queue have an exponential tail, which that line is; so half of a window speaks, and not just its few
    latest requests. The last 1.5 % are left out: in a short window a single pause of the machine makes them.

    Args:
        latency_s: In any order, shape `(n,)`; infinite where a request failed.
        percentile: Wanted.

    Returns:
        Seconds; 0 for fewer than 20 latencies, or where more than a few have no end.
    """
    ordered = np.sort(latency_s)
    share = (np.arange(len(ordered)) + 0.5) / max(1, len(ordered))
    used = (share >= 0.5) & (share <= 0.985)
    if len(ordered) < 20 or not np.isfinite(ordered[used]).all():
        return 0.0
    slope, start = np.polyfit(-np.log1p(-share[used]), ordered[used], 1)
    return round(float(start - slope * math.log1p(-percentile / 100)), 6)


def lone_tail_s(latency_s: Sequence[float], percentile: float) -> float:
    """The first of `lone_tail`."""
    return lone_tail(latency_s, percentile)[0]


def lone_tail(latency_s: Sequence[float], percentile: float) -> tuple[float, float]:
    """A high percentile of requests without company, from a few of them, and its standard error, in seconds.

    Above their median they are taken for exponential, which is right for service times that vary as such, and leads to
    about the median where they hardly vary. The largest is left out, since a pause of the machine may have made it.

    Args:
        latency_s: In any order, at least one, in seconds.
        percentile: Wanted.
    """
    ordered = np.sort(np.asarray(latency_s, float))
    median = float(np.median(ordered))
    upper = ordered[len(ordered) // 2 :]
    if len(upper) < 4:
        return median, float(np.ptp(ordered)) / 2
    n = len(upper)
    without_largest = (n - (1.0 / np.arange(1, n + 1)).sum()) / (n - 1)  # mean of n exponentials, but for the largest
    scale = max(0.0, float(upper[:-1].mean()) - median) / without_largest
    beyond = scale * (-math.log1p(-percentile / 100) - math.log(2.0))
    return float(median + beyond), float(beyond / math.sqrt(n - 1))


def _percentiles(values: FloatArray, percentiles: Sequence[float]) -> list[float]:
    """Nearest-rank percentiles, rounded to microseconds; 0 of nothing."""
    if not len(values):
        return [0.0 for _ in percentiles]
    ordered = np.sort(values)
    ranks = [max(1, math.ceil(p / 100 * len(ordered) - 1e-9)) for p in percentiles]
    return [round(float(ordered[rank - 1]), 6) for rank in ranks]
