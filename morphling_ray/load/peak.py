"""The search for the peak: a pure function of probes, so it is tested without a server and without time."""

from collections.abc import Callable
from dataclasses import dataclass

from morphling_ray.measurement import Probe, Verdict

ProbeAt = Callable[[float], Probe]
CAPACITY_ERROR = 0.08  # a capacity from a window of one second is off by that much at times
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
    """

    peak_rps: float
    upper_rps: float
    rejected: bool
    driver_limited: bool
    probes: tuple[Probe, ...]


def find_peak(
    probe: ProbeAt,
    *,
    capacity_rps: float,
    start_rps: float,
    step: float = 0.15,
    needed_rps: float | None = None,
    rel_tol: float = 0.1,
    max_probes: int = 10,
    floor_ratio: float = 1 / 32,
) -> PeakSearch:
    """Largest rate that meets the SLO, to within `rel_tol`, for a server that saturates at `capacity_rps`.

    From the start, steps that double lead up while the SLO is met, or down while it is missed; once both were seen, the
    rates between are bisected on a log scale. Lateness need not be monotone in the rate (batches wait for company), so
    the highest passing rate counts. A narrow miss gets a second look with other arrivals: one pause of a machine that
    others share can spoil a window of a second. Where a rate is needed to beat another configuration, it is tried
    first: a miss there ends the search.

    Args:
        probe: Measures one window at a rate.
        capacity_rps: Throughput under a closed loop: no open-loop rate above it can be sustained.
        start_rps: Where to start, for example a usual share of the capacity.
        step: First step, relative.
        needed_rps: The peak that would be of interest.
        rel_tol: Ends when the lowest miss is at most this much above the highest pass.
        max_probes: Ends after this many probes.
        floor_ratio: Gives up (peak 0) when this share of the capacity still misses.
    """
    probes: list[Probe] = []
    low, high = 0.0, capacity_rps * (1 + CAPACITY_ERROR)
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
        if high <= low * (1 + rel_tol) or high < capacity_rps * floor_ratio:
            break
        if low == 0.0:
            rate, step = high / (1 + step), 2 * step
        elif missed or low * (1 + step) >= high:
            rate = (low * high) ** 0.5
        else:
            rate, step = low * (1 + step), 2 * step
    return found()


def _narrow(probe: Probe) -> bool:
    """A miss by a few requests, while most were answered as quickly as ever."""
    return probe.verdict is Verdict.MISSED and probe.errors == 0 and probe.p50_s < NARROW * probe.slo_latency_s
