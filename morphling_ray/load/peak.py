"""The search for the peak: pure functions of probes, so they are tested without a server and without time.

`pooled_peak` reads the peak off all latencies of a few windows around it; `find_peak` goes by verdicts alone, and does
the work where latencies do not behave as a queue's do. `closed_peak` is for load that is requests in flight.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from morphling_ray.measurement import Probe, Verdict

ProbeAt = Callable[[float], Probe]
FloatArray = npt.NDArray[np.float64]
CAPACITY_ERROR = 0.08  # a capacity from a window of one second is off by that much at times
# A closed loop may be held back by whoever keeps it going: its driver, a proxy, or requests that wait for answers.
HELD_BACK = 2.0  # times as much is looked for where windows show that it was
AT_CAPACITY = 0.95  # of the capacity: a window at such a rate that meets the SLO shows that
LEAST_EXCESS = 1e-3  # of the SLO's latency, above that of lone requests
LOWEST_SHARE, HIGHEST_SHARE = 0.2, 0.97  # of the capacity: between these a window tells where the peak is
OUT_OF_SIGHT = 0.5  # of the lowest rate that can be read: a peak that is foretold below is not looked for
FAR_ABOVE = 1.15  # times a rate that was met: a peak foretold there says that it was met with ease
MET_SHARE = 0.85  # of a rate that a window has met: the peak is at least that
ONE_WINDOW_SD = 0.1
UNSURE, TIMES_AS_MANY = 0.15, 2  # a standard deviation above that takes more windows, up to so many times as many
MOST_PROBES = 10
# A window whose rate was off by that share counts half, and so does one that is at odds with the others by that, since
# a machine that stood still speaks from it; rounds until the mean stands.
_NEAR, _AT_ODDS, _ROUNDS = 0.1, 0.2, 8
NARROW = 0.4  # median latency over the tail's, below which a miss looks like a hiccup and not like a growing backlog


@dataclass(frozen=True, kw_only=True)
class PeakSearch:
    """What a search for the peak found.

    Attributes:
        peak_rps: Highest rate that met the SLO (0 if none did).
        upper_rps: Lowest rate that is known, or taken, to miss it; the peak lies below.
        rejected: The search stopped early: the peak cannot reach what was needed.
        driver_limited: The load driver, not the server, set the upper end.
        probes: Every probe that was made.
        sd: About what standard deviation the logarithm of the peak has; 0: not known.
    """

    peak_rps: float
    upper_rps: float
    rejected: bool
    driver_limited: bool
    probes: tuple[Probe, ...]
    sd: float = 0.0


@dataclass(frozen=True)
class MedianBound:
    """A bound of the median beside that of the tail: of requests without company, and what it may be, in seconds."""

    alone_s: float
    slo_s: float


def read_off(
    probe: Probe, *, capacity_rps: float, alone_s: float, slo_s: float, median: MedianBound | None = None
) -> float:
    """The peak as one window foretells it, in RPS.

    At a share u of its capacity a queue's latency is about `alone + k u / (1 - u)`, at any percentile (exact for M/M/1,
    Kingman's formula in heavy traffic for others). The window says what k is, and k where the SLO's bound is reached.

    Args:
        probe: Of the window; its `tail_s` is used.
        capacity_rps: Throughput under a closed loop.
        alone_s: Latency of a request without company.
        slo_s: Bound of the latency.
        median: That must hold as well, if one must.

    Returns:
        0 where a request without company is too late already.
    """
    found = _reached(probe.tail_s, probe.rate_rps, capacity_rps, alone_s, slo_s)
    if median is None:
        return found
    return min(found, _reached(probe.p50_s, probe.rate_rps, capacity_rps, median.alone_s, median.slo_s))


def _reached(latency_s: float, rate_rps: float, capacity_rps: float, alone_s: float, slo_s: float) -> float:
    used = min(rate_rps / capacity_rps, HIGHEST_SHARE)
    k = max(latency_s - alone_s, LEAST_EXCESS * slo_s) * (1 - used) / used
    ratio = (slo_s - alone_s) / k
    return capacity_rps * ratio / (1 + ratio) if ratio > 0 else 0.0


def pooled_peak(
    probe: Callable[[float, bool], Probe],
    *,
    capacity_rps: float,
    alone_s: float,
    slo_s: float,
    start_rps: float,
    needed_rps: float | None = None,
    windows: int = 3,
    median: MedianBound | None = None,
    least_rps: float = 0.0,
    most_rps: float | None = None,
) -> PeakSearch | None:
    """The peak as a few windows around it foretell it together.

    Args:
        probe: Measures one window at a rate; to its end where the second argument says so: those that end as soon as
            they are lost are the ones with bursts at their beginning.
        capacity_rps: Throughput under a closed loop.
        alone_s: Latency of a request without company.
        slo_s: Bound of the latency.
        start_rps: Rate of the first window.
        needed_rps: The peak that would be of interest: tried first, and the search ends where it is out of reach.
        windows: How many; more where they are at odds.
        median: See `read_off`.
        least_rps: Below this a window has too few requests to be read. Where a peak far below is foretold, a miss there
            ends the search, with a peak of 0.
        most_rps: What it serves at most, however the closed loop was held back; None: about its capacity.

    Returns:
        None where the windows cannot be read: failed requests, too few of them, nothing that resembles a queue, or one
        that serves more than its capacity.
    """
    most_rps = max(most_rps or 0.0, capacity_rps * (1 + CAPACITY_ERROR))
    if needed_rps is not None and most_rps <= needed_rps:
        return PeakSearch(peak_rps=0.0, upper_rps=most_rps, rejected=True, driver_limited=False, probes=())
    probes: list[Probe] = []
    rates: list[float] = []
    logs: list[float] = []
    met: list[tuple[float, float]] = []  # rates that were, and what each foretold
    rate, unsure = start_rps if needed_rps is None else needed_rps, True
    lowest = max(LOWEST_SHARE * capacity_rps, least_rps)
    while len(logs) < windows or (unsure and len(logs) < TIMES_AS_MANY * windows):
        beyond = needed_rps is not None and needed_rps > capacity_rps and not probes
        rate = rate if beyond else min(max(rate, lowest), HIGHEST_SHARE * capacity_rps)
        whole = needed_rps is None or bool(probes)
        result = probe(rate, whole)
        probes.append(result)
        if result.verdict is Verdict.INVALID or (beyond and _narrow(result)):
            result = probe(rate, whole)
            probes.append(result)
        if beyond and result.verdict is Verdict.MISSED:
            return PeakSearch(peak_rps=0.0, upper_rps=rate, rejected=True, driver_limited=False, probes=tuple(probes))
        if result.verdict is Verdict.MET and result.rate_rps >= AT_CAPACITY * capacity_rps:
            return None
        found = read_off(result, capacity_rps=capacity_rps, alone_s=alone_s, slo_s=slo_s, median=median)
        if result.verdict is Verdict.INVALID or result.errors or not result.tail_s or not found:
            return None
        if lowest == least_rps and found < OUT_OF_SIGHT * lowest:
            probes.append(probe(least_rps, False))
            if probes[-1].verdict is not Verdict.MISSED:
                return None
            return PeakSearch(
                peak_rps=0.0, upper_rps=least_rps, rejected=False, driver_limited=False, probes=tuple(probes)
            )
        met += [(result.rate_rps, found)] * (result.verdict is Verdict.MET)
        rates.append(math.log(result.rate_rps))
        logs.append(math.log(found))
        pooled, sd = _pooled(np.array(rates), np.array(logs))
        rate = math.exp(pooled)
        agree = np.abs(np.array(logs) - pooled) < 2 * _AT_ODDS
        unsure = sd > UNSURE or not (agree.all() or (np.abs(np.array(rates) - pooled)[agree] < _NEAR).any())
        if needed_rps is not None and result.verdict is not Verdict.MET and rate * math.exp(2 * sd) < needed_rps:
            return PeakSearch(
                peak_rps=0.0, upper_rps=needed_rps, rejected=True, driver_limited=False, probes=tuple(probes), sd=sd
            )
        met_rps, foretold_rps = max(met, default=(0.0, 0.0))
        if len(logs) >= windows:
            missed = [p for p in probes if p.verdict is Verdict.MISSED and p.rate_rps < rate]
            if any(p.rate_rps < rate * math.exp(-3 * sd) or p.p50_s > slo_s for p in missed):
                return None  # it misses where it should be quick, or most requests are late where hardly any should be
            if rate < met_rps and foretold_rps > FAR_ABOVE * met_rps:
                return None  # a rate above was met with ease: the peak is where latencies leap, which no law foretells
    # A window that a pause has spoilt may foretell next to nothing; what another one has met is not far above the peak.
    rate = max(rate, MET_SHARE * met_rps)
    return PeakSearch(
        peak_rps=rate,
        upper_rps=rate * math.exp(sd),
        rejected=False,
        driver_limited=False,
        probes=tuple(probes),
        sd=sd,
    )


def _pooled(rates: FloatArray, logs: FloatArray) -> tuple[float, float]:
    """Mean of what windows foretold, and its standard deviation; all in logs, shapes `(n,)`.

    The law that a window is read by is rough, so the nearer its rate was to the peak the more it counts, and the nearer
    it is to what others foretell; and what one window foretells is not surer than the law.
    """
    mean = float(np.median(logs))
    for _ in range(_ROUNDS):
        agrees = 1.0 / (1.0 + ((logs - mean) / _AT_ODDS) ** 2)
        weight = agrees / (1.0 + ((rates - mean) / _NEAR) ** 2)
        mean = float(weight @ logs / weight.sum())
    variance = float(agrees @ (logs - mean) ** 2 / agrees.sum()) * len(logs) / max(1, len(logs) - 1)
    one_sd = max(ONE_WINDOW_SD, math.sqrt(variance) if len(logs) > 2 else 0.0)
    return mean, one_sd * float(np.sqrt((weight**2).sum()) / weight.sum())


def find_peak(
    probe: ProbeAt,
    *,
    capacity_rps: float,
    start_rps: float,
    step: float = 0.15,
    needed_rps: float | None = None,
    rel_tol: float = 0.1,
    max_probes: int = MOST_PROBES,
    floor_ratio: float = 1 / 32,
    most_rps: float | None = None,
) -> PeakSearch:
    """Largest rate that meets the SLO, to within `rel_tol`, for a server that saturates at `capacity_rps`.

    From the start, steps that double lead up while the SLO is met, or down while it is missed; once both were seen, the
    rates between are bisected on a log scale. Lateness need not be monotone in the rate (batches wait for company), so
    the highest passing rate counts. A narrow miss gets a second look with other arrivals: one pause of a machine that
    others share can spoil a window of a second. Where a rate is needed to beat another configuration, it is tried
    first: a miss there ends the search.

    Args:
        probe: Measures one window at a rate.
        capacity_rps: Throughput under a closed loop.
        start_rps: Where to start, for example a usual share of the capacity.
        step: First step, relative.
        needed_rps: The peak that would be of interest.
        rel_tol: Ends when the lowest miss is at most this much above the highest pass.
        max_probes: Ends after this many probes.
        floor_ratio: The lowest rate that is tried, as a share of the capacity; gives up (peak 0) when it misses.
        most_rps: No rate above can be sustained; None: about the capacity.
    """
    probes: list[Probe] = []
    low, floor = 0.0, capacity_rps * floor_ratio
    high = max(most_rps or 0.0, capacity_rps * (1 + CAPACITY_ERROR))
    missed = driver_limited = False

    def found(*, rejected: bool = False) -> PeakSearch:
        return PeakSearch(
            peak_rps=low, upper_rps=high, rejected=rejected, driver_limited=driver_limited, probes=tuple(probes)
        )

    if needed_rps is not None and high <= needed_rps:
        return found(rejected=True)
    rate = min(needed_rps or start_rps, high)
    while len(probes) < max_probes:
        result = probe(rate)
        probes.append(result)
        if result.verdict is Verdict.INVALID or _narrow(result):
            result = probe(rate)
            probes.append(result)
        if result.verdict is Verdict.MET:
            low = max(low, rate)
        else:
            driver_limited = result.verdict is Verdict.INVALID
            missed, high = True, min(high, rate)
            if needed_rps is not None and high <= needed_rps:
                return found(rejected=True)
        if high <= max(low, floor) * (1 + rel_tol):
            break
        if low == 0.0:
            rate, step = max(high / (1 + step), floor), 2 * step
        elif missed or low * (1 + step) >= high:
            rate = (low * high) ** 0.5
        else:
            rate, step = low * (1 + step), 2 * step
    return found()


def closed_peak(
    probe: Callable[[int], Probe], *, start: int, capacity_rps: float, needed_rps: float | None = None
) -> PeakSearch:
    """The throughput of as many requests in flight as meet the SLO: doubled or halved, then bisected.

    Args:
        probe: Measures one window with so many in flight.
        start: How many at first.
        capacity_rps: Throughput with many in flight.
        needed_rps: The peak that would be of interest.
    """
    upper = capacity_rps * (1 + CAPACITY_ERROR)
    if needed_rps is not None and upper <= needed_rps:
        return PeakSearch(peak_rps=0.0, upper_rps=upper, rejected=True, driver_limited=False, probes=())
    probes: list[Probe] = []
    met: dict[int, float] = {}
    missed: dict[int, float] = {}
    count = start
    while len(probes) < MOST_PROBES:
        result = probe(count)
        probes.append(result)
        (met if result.verdict is Verdict.MET else missed)[count] = result.achieved_rps
        low, high = max(met, default=0), min(missed, default=0)
        if not high:
            count = 2 * low
        elif high - low <= max(1, low // 16):
            break
        else:
            count = (low + high) // 2
    low, high = max(met, default=0), min(missed, default=0)
    peak = met.get(low, 0.0)
    upper = max(peak, missed.get(high, upper))
    return PeakSearch(peak_rps=peak, upper_rps=upper, rejected=False, driver_limited=False, probes=tuple(probes))


def _narrow(probe: Probe) -> bool:
    """A miss by a few requests, while most were answered as quickly as ever."""
    return probe.verdict is Verdict.MISSED and probe.errors == 0 and probe.p50_s < NARROW * probe.slo_latency_s
