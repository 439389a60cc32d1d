"""The search for the peak, on probes that answer from a formula."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from morphling_ray.load.peak import MedianBound, PeakSearch, find_peak, pooled_peak
from morphling_ray.measurement import Probe, Verdict


def server(answer: Callable[[float], Verdict], p50_s: float = 0.05) -> tuple[Callable[[float], Probe], list[float]]:
    """A probe function, and the list of the rates it was asked for."""
    asked: list[float] = []

    def probe(rate_rps: float) -> Probe:
        asked.append(rate_rps)
        return Probe(
            kind="open",
            rate_rps=rate_rps,
            window_s=1.0,
            achieved_rps=rate_rps,
            verdict=answer(rate_rps),
            requests=100,
            errors=0,
            late=0,
            p50_s=p50_s,
            p90_s=0.09,
            p99_s=0.1,
            slo_latency_s=0.1,
            driver_lag_s=0.0,
            driver_cpu=0.1,
        )

    return probe, asked


def meets(peak: float) -> Callable[[float], Verdict]:
    """MET up to `peak`."""
    return lambda rate: Verdict.MET if rate <= peak else Verdict.MISSED


@pytest.mark.parametrize("peak", [3.3, 7.0, 20.0, 57.0, 74.9, 75.1, 88.0, 97.0, 104.0])
@pytest.mark.parametrize("start", [20.0, 75.0, 108.0])
def test_finds_the_peak_to_within_the_tolerance(peak: float, start: float) -> None:
    """Fails for any error in stepping, bisecting or ending."""
    probe, asked = server(meets(peak))
    found = find_peak(probe, capacity_rps=100.0, start_rps=start, max_probes=20, floor_ratio=1 / 64)
    assert found.peak_rps <= peak < found.upper_rps
    assert found.upper_rps <= found.peak_rps * 1.1001
    assert [p.rate_rps for p in found.probes] == asked
    assert not found.rejected


def test_a_good_start_needs_few_probes() -> None:
    """Fails if the start is ignored."""
    probe, asked = server(meets(80.0))
    find_peak(probe, capacity_rps=100.0, start_rps=78.0, step=0.06, rel_tol=0.06)
    assert len(asked) <= 3


def test_nothing_is_met() -> None:
    """Fails if the search goes down for ever, or invents a peak."""
    probe, asked = server(meets(0.0))
    found = find_peak(probe, capacity_rps=100.0, start_rps=75.0)
    assert found.peak_rps == 0.0
    assert len(asked) <= 8


def test_what_cannot_beat_the_incumbent_is_rejected_at_once() -> None:
    """Fails if a loser gets a whole search, or if its bound is wrong."""
    probe, asked = server(meets(60.0))
    found = find_peak(probe, capacity_rps=100.0, start_rps=75.0, needed_rps=70.0)
    assert (found.rejected, found.upper_rps, asked) == (True, 70.0, [70.0])
    probe, asked = server(meets(60.0))
    found = find_peak(probe, capacity_rps=50.0, start_rps=40.0, needed_rps=70.0)
    assert found.rejected
    assert asked == []  # not even a probe: its capacity is too small
    assert found.upper_rps == pytest.approx(54.0)


def test_what_beats_the_incumbent_is_searched_in_full() -> None:
    """Fails if the search stops at the needed rate."""
    probe, asked = server(meets(90.0))
    found = find_peak(probe, capacity_rps=100.0, start_rps=75.0, needed_rps=70.0)
    assert asked[0] == 70.0
    assert not found.rejected
    assert 84.0 <= found.peak_rps <= 90.0


def test_an_invalid_probe_is_repeated_and_never_taken_for_a_miss_in_silence() -> None:
    """Fails if INVALID counts as MISSED without a second look, or if the result does not say so."""
    verdicts = iter([Verdict.INVALID, Verdict.MET, Verdict.MISSED, Verdict.MISSED, Verdict.MISSED])
    probe, asked = server(lambda rate: next(verdicts))
    found = find_peak(probe, capacity_rps=100.0, start_rps=80.0)
    assert asked[:2] == [80.0, 80.0]
    assert found.peak_rps == 80.0
    assert not found.driver_limited
    always, _ = server(lambda rate: Verdict.INVALID if rate > 50 else Verdict.MET)
    assert find_peak(always, capacity_rps=100.0, start_rps=45.0).driver_limited


def test_a_narrow_miss_gets_a_second_look_and_a_clear_one_does_not() -> None:
    """Fails if one pause of the machine decides, or if a growing backlog is measured twice."""
    once = iter([Verdict.MISSED, Verdict.MET, Verdict.MISSED, Verdict.MISSED, Verdict.MISSED, Verdict.MISSED])
    probe, asked = server(lambda rate: next(once), p50_s=0.02)  # quick, but for a few
    found = find_peak(probe, capacity_rps=100.0, start_rps=80.0, needed_rps=80.0)
    assert asked[:2] == [80.0, 80.0]
    assert (found.peak_rps, found.rejected) == (80.0, False)
    probe, asked = server(meets(60.0), p50_s=0.08)  # most are slow
    assert find_peak(probe, capacity_rps=100.0, start_rps=80.0, needed_rps=80.0).rejected
    assert asked == [80.0]


def test_the_result_is_a_record() -> None:
    """Fails if probes are lost."""
    probe, asked = server(meets(80.0))
    assert isinstance(found := find_peak(probe, capacity_rps=100.0, start_rps=75.0), PeakSearch)
    assert len(found.probes) == len(asked) >= 2


ALONE_S = 0.01 * math.log(100)  # 99 % of requests without company take less, at 10 ms of exponential service


def queue(
    service_s: float, *, stray: float = 0.0, slo_s: float = 0.1
) -> tuple[Callable[[float, bool], Probe], list[float]]:
    """Probes of an M/M/1 queue: at rate r the time in it is exponential with mean 1 / (1 / service_s - r)."""
    plain, asked = server(lambda rate: Verdict.MET if tail(rate) <= slo_s else Verdict.MISSED)
    signs = iter([1, -1] * 50)

    def tail(rate: float) -> float:
        return math.log(100) / (1 / service_s - rate) if rate < 1 / service_s else 10.0

    def probe(rate_rps: float, whole: bool) -> Probe:
        return replace(plain(rate_rps), tail_s=tail(rate_rps) * math.exp(next(signs) * stray))

    return probe, asked


@pytest.mark.parametrize("start", [20.0, 60.0, 95.0])
def test_the_peak_is_read_off_windows_beside_it(start: float) -> None:
    """Fails for any error in the formula: 10 ms of service keep 100 ms in 99 % up to 100 - ln(100) / 0.1 = 53.9 RPS."""
    probe, asked = queue(0.01)
    found = pooled_peak(probe, capacity_rps=100.0, alone_s=ALONE_S, slo_s=0.1, start_rps=start)
    assert found is not None
    assert found.peak_rps == pytest.approx(53.95, rel=0.01)
    assert len(asked) == 3
    assert asked[1] == pytest.approx(53.95, rel=0.01)
    assert found.peak_rps < found.upper_rps < 1.1 * found.peak_rps


def test_no_window_is_as_slow_as_to_be_all_but_empty() -> None:
    """Fails if a window is too short to be read, or if what can only be far below is looked for with long windows."""
    probe, asked = queue(0.01, slo_s=0.06)
    found = pooled_peak(probe, capacity_rps=100.0, alone_s=ALONE_S, slo_s=0.06, start_rps=20.0, least_rps=40.0)
    assert found is not None
    assert asked == [40.0] * 3  # the peak is at 23 RPS
    assert found.peak_rps == pytest.approx(23.25, rel=0.05)
    probe, asked = queue(0.01, slo_s=0.06)
    found = pooled_peak(probe, capacity_rps=100.0, alone_s=ALONE_S, slo_s=0.06, start_rps=75.0, least_rps=60.0)
    assert found is not None
    assert (found.peak_rps, found.upper_rps, asked) == (0.0, 60.0, [75.0, 60.0])
    probe, asked = queue(0.01, slo_s=0.0461)  # a peak of 0.1 RPS, but quick: no window is long
    pooled_peak(probe, capacity_rps=100.0, alone_s=ALONE_S, slo_s=0.0461, start_rps=75.0, least_rps=0.7)
    assert asked == [75.0, 20.0, 20.0]


def spoilt(strays: Sequence[float]) -> tuple[Callable[[float, bool], Probe], list[float]]:
    """Probes of the same queue, whose first latencies are so many times as long: the machine stood still."""
    factors, asked = itertools.chain(strays, itertools.repeat(1.0)), list[float]()

    def probe(rate_rps: float, whole: bool) -> Probe:
        tail_s = next(factors) * math.log(100) / (100 - rate_rps)
        plain, _ = server(lambda rate: Verdict.MET if tail_s <= 0.1 else Verdict.MISSED)
        asked.append(rate_rps)
        return replace(plain(rate_rps), tail_s=tail_s)

    return probe, asked


@pytest.mark.parametrize(("strays", "windows"), [([], 3), ([1.0, 60.0], 3), ([60.0], 4), ([1.0, 60.0, 30.0], 5)])
def test_windows_that_a_pause_has_spoilt_do_not_count(strays: list[float], windows: int) -> None:
    """Fails if a mean is taken of what a queue and what a machine that stood still foretells, or all pay for that."""
    probe, asked = spoilt(strays)
    found = pooled_peak(probe, capacity_rps=100.0, alone_s=ALONE_S, slo_s=0.1, start_rps=50.0)
    assert found is not None
    assert found.peak_rps == pytest.approx(53.95, rel=0.03)
    assert found.sd < 0.15
    assert len(asked) == windows


def test_a_rate_that_was_met_is_not_far_above_the_peak() -> None:
    """Fails if windows that were spoilt, all but one, outweigh that one; or if it is taken for sure then."""
    probe, asked = spoilt([1.0, 60.0, 30.0, 60.0, 30.0, 60.0])
    found = pooled_peak(probe, capacity_rps=100.0, alone_s=ALONE_S, slo_s=0.1, start_rps=50.0)
    assert found is not None
    assert found.peak_rps == pytest.approx(0.85 * 50.0)
    assert found.sd > 0.2
    assert len(asked) == 6


@pytest.mark.parametrize("start", [0.5, 0.68, 0.75, 0.9])
@pytest.mark.parametrize(
    ("leap", "capacity", "late"),
    [
        (200.0, 228.0, (0.15, 0.7)),  # ten at once for 40 ms
        (200.0, 228.0, (0.231, 1.035)),
        (700.0, 884.0, (0.095, 1.922)),  # forty at once
        (800.0, 884.0, (0.3, 1.9)),
    ],
)
def test_latencies_that_leap_are_not_read_off_above_the_leap(
    leap: float, capacity: float, late: tuple[float, float], start: float
) -> None:
    """Fails if what is met with ease below foretells a peak at rates at which most requests are late."""

    def probe(rate_rps: float, whole: bool) -> Probe:
        median_s, tail_s = (0.042, 0.046) if rate_rps < leap else late
        plain, _ = server(lambda rate: Verdict.MET if tail_s <= 0.1 else Verdict.MISSED)
        return replace(plain(rate_rps), p50_s=median_s, tail_s=tail_s)

    found = pooled_peak(probe, capacity_rps=capacity, alone_s=0.044, slo_s=0.1, start_rps=start * capacity)
    assert found is None or 0.8 * leap < found.peak_rps < 1.06 * leap


def test_a_bound_of_the_median_counts_as_well() -> None:
    """Fails if only the tail is read: half of the requests within 12.5 ms takes a rate below 100 - ln(2) / 0.0125."""
    plain, _ = queue(0.01)

    def probe(rate_rps: float, whole: bool) -> Probe:
        return replace(plain(rate_rps, whole), p50_s=math.log(2) / max(1e-3, 100 - rate_rps))

    bounds = [(0.0125, 100 - math.log(2) / 0.0125), (0.09, 53.95)]  # the second one is looser than the tail's
    for bound_s, expected in bounds:
        median = MedianBound(alone_s=0.01 * math.log(2), slo_s=bound_s)
        found = pooled_peak(probe, capacity_rps=100.0, alone_s=ALONE_S, slo_s=0.1, start_rps=50.0, median=median)
        assert found is not None
        assert found.peak_rps == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(("needed", "whole"), [(None, [True] * 3), (40.0, [False, True, True])])
def test_only_the_window_that_may_reject_ends_early(needed: float | None, whole: list[bool]) -> None:
    """Fails if windows that are read end as soon as they are lost, which those with bursts at their beginning are."""
    plain, _ = queue(0.01)
    seen: list[bool] = []

    def probe(rate_rps: float, to_its_end: bool) -> Probe:
        seen.append(to_its_end)
        return plain(rate_rps, to_its_end)

    pooled_peak(probe, capacity_rps=100.0, alone_s=ALONE_S, slo_s=0.1, start_rps=50.0, needed_rps=needed)
    assert seen == whole


def test_windows_that_disagree_make_it_less_sure() -> None:
    """Fails if the spread of the windows does not show in the interval."""
    sure, unsure = (
        pooled_peak(queue(0.01, stray=s)[0], capacity_rps=100.0, alone_s=ALONE_S, slo_s=0.1, start_rps=50.0, windows=4)
        for s in (0.0, 0.6)
    )
    assert sure is not None
    assert unsure is not None
    assert unsure.sd > 2 * sure.sd


def test_a_pooled_peak_that_cannot_beat_the_incumbent_is_rejected_after_one_window() -> None:
    """Fails if a loser gets all windows, or a winner only one."""
    probe, asked = queue(0.01)
    found = pooled_peak(probe, capacity_rps=100.0, alone_s=ALONE_S, slo_s=0.1, start_rps=50.0, needed_rps=90.0)
    assert found is not None
    assert (found.rejected, found.peak_rps, found.upper_rps, asked) == (True, 0.0, 90.0, [90.0])
    found = pooled_peak(probe, capacity_rps=100.0, alone_s=ALONE_S, slo_s=0.1, start_rps=50.0, needed_rps=40.0)
    assert found is not None
    assert not found.rejected
    assert found.peak_rps == pytest.approx(53.95, rel=0.01)
    found = pooled_peak(probe, capacity_rps=50.0, alone_s=ALONE_S, slo_s=0.1, start_rps=50.0, needed_rps=90.0)
    assert found is not None
    assert found.probes == ()


def test_a_closed_loop_that_was_held_back_is_not_the_limit() -> None:
    """Fails if a server that its own driver kept waiting is taken for a slow one, or is rejected without a window."""
    probe, asked = queue(0.01, slo_s=1.0)  # the peak is at 95 RPS
    assert pooled_peak(probe, capacity_rps=60.0, alone_s=ALONE_S, slo_s=1.0, start_rps=45.0) is None
    assert asked[-1] == pytest.approx(0.97 * 60.0)
    plain, _ = server(meets(95.0))
    found = find_peak(plain, capacity_rps=60.0, start_rps=58.0, most_rps=120.0)
    assert found.peak_rps == pytest.approx(95.0, rel=0.1)
    for needed, most, windows in ((90.0, 120.0, [90.0]), (98.0, 120.0, [98.0]), (130.0, 120.0, []), (70.0, None, [])):
        probe, asked = queue(0.01, slo_s=1.0)
        search = pooled_peak(
            probe,
            capacity_rps=60.0,
            alone_s=ALONE_S,
            slo_s=1.0,
            start_rps=45.0,
            needed_rps=needed,
            most_rps=most,
        )
        assert asked == windows
        assert (search is None) if needed == 90.0 else (search is not None and search.rejected)


@pytest.mark.parametrize("how", [{"errors": 3}, {"tail_s": 0.0}, {"verdict": Verdict.INVALID}])
def test_windows_that_cannot_be_read_are_left_to_the_search_by_verdicts(how: dict[str, object]) -> None:
    """Fails if failed requests, too few of them or a late driver are taken for a queue."""
    plain, _ = queue(0.01)

    def probe(rate_rps: float, whole: bool) -> Probe:
        return replace(plain(rate_rps, whole), **how)  # type: ignore[arg-type]

    assert pooled_peak(probe, capacity_rps=100.0, alone_s=ALONE_S, slo_s=0.1, start_rps=50.0) is None


def test_a_request_that_is_late_without_company_has_no_peak_to_be_read_off() -> None:
    """Fails if the formula is used where it has no solution."""
    probe, _ = queue(0.01)
    assert pooled_peak(probe, capacity_rps=100.0, alone_s=0.2, slo_s=0.1, start_rps=50.0) is None
