"""What one window of load showed: latencies and a verdict, from the records of its requests. No clock, no network."""

import math
from collections.abc import Sequence

import numpy as np

from morphling_ray.measurement import Probe, Verdict
from morphling_ray.objective import Slo

MAX_LAG_SHARE = 0.25  # of the SLO's latency: a driver that sends later than this has itself spoilt the window


def allowed_late(requests: int, slo: Slo) -> int:
    """How many of `requests` may be late or failed so that the percentile still meets the SLO.

    The p-th percentile of n latencies is the ceil(p n / 100)-th smallest (nearest rank); those above it may be late.
    """
    return requests - math.ceil(slo.percentile / 100 * requests - 1e-9)


def judge(
    *,
    kind: str,
    rate_rps: float,
    window_s: float,
    latencies_s: Sequence[float],
    errors: int,
    planned: int,
    achieved_rps: float,
    lags_s: Sequence[float],
    driver_cpu: float,
    slo: Slo,
    ended_early: bool,
    reason: str = "",
) -> Probe:
    """Turns a window's records into a `Probe` with a verdict.

    Args:
        kind: `open` or `saturate`.
        rate_rps: Offered rate.
        window_s: Length of the window.
        latencies_s: From the scheduled instant, of every request that was due: how long it took, infinite where it
            failed, and for one that was given up how long it had been waiting (above the SLO).
        errors: Requests that failed.
        planned: Requests of the whole schedule.
        achieved_rps: Completions a second.
        lags_s: How late each request was sent.
        driver_cpu: Share of a core that the driver used.
        slo: The bounds.
        ended_early: More requests were late than the whole window may have.
        reason: What the window showed beyond its figures (the first error, for instance).
    """
    latency = np.asarray(latencies_s, float)
    late = int((latency > slo.latency_s).sum())
    p50, p90, p99, at_slo = _percentiles(latency, (50.0, 90.0, 99.0, slo.percentile))
    lag_s = _percentiles(np.asarray(lags_s, float), (99.0,))[0]
    error_rate = errors / max(1, len(latency))
    if ended_early or late > allowed_late(planned, slo) or error_rate > slo.max_error_rate:
        verdict = Verdict.MISSED
        if lag_s > MAX_LAG_SHARE * slo.latency_s and errors == 0:
            verdict = Verdict.INVALID
            reason = reason or f"the load driver sent up to {lag_s * 1e3:.0f} ms late"
    else:
        verdict = Verdict.MET  # however late the driver was: latency counts from the scheduled instant
    return Probe(
        kind=kind,
        rate_rps=round(rate_rps, 3),
        window_s=round(window_s, 3),
        requests=len(latency),
        achieved_rps=round(achieved_rps, 3),
        errors=errors,
        late=late,
        p50_s=p50,
        p90_s=p90,
        p99_s=p99,
        slo_latency_s=at_slo,
        driver_lag_s=lag_s,
        driver_cpu=round(driver_cpu, 3),
        verdict=verdict,
        reason=reason,
    )


def _percentiles(values: np.ndarray, percentiles: Sequence[float]) -> list[float]:
    """Nearest-rank percentiles, rounded to microseconds; 0 of nothing."""
    if not len(values):
        return [0.0 for _ in percentiles]
    ordered = np.sort(values)
    ranks = [max(1, math.ceil(p / 100 * len(ordered) - 1e-9)) for p in percentiles]
    return [round(float(ordered[rank - 1]), 6) for rank in ranks]
