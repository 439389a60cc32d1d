"""The comparison in pairs, on windows that a generator makes up: how often it is wrong, and how often it finds."""

import math

import numpy as np
import pytest

from morphling_ray.evaluate.duel import LEAST_PAIRS, MOST_PAIRS, PAIR_SD
from morphling_ray.load.pairs import PairedPeaks, in_turn, unpaired


def compare(true_ratio: float, sd: float, seed: int, *, ratio: float = 1.0) -> PairedPeaks:
    """Two peaks whose windows vary together by a fifth, and within a pair by `sd`."""
    rng = np.random.default_rng(seed)
    drift: list[float] = []

    def peak_of(side: int, number: int) -> float:
        while len(drift) <= number:
            drift.append(0.2 * rng.standard_normal())
        own = sd / math.sqrt(2.0) * rng.standard_normal()
        return 100.0 * math.exp(drift[number] + own) * (true_ratio if side == 0 else 1.0)

    found = in_turn(peak_of, usual_sd=PAIR_SD, ratio=ratio, least=LEAST_PAIRS, most=MOST_PAIRS)
    assert found is not None
    return found


@pytest.mark.parametrize(("sd", "share"), [(PAIR_SD / 2, 0.05), (PAIR_SD, 0.05), (1.5 * PAIR_SD, 0.15)])
def test_equals_are_seldom_told_apart(sd: float, share: float) -> None:
    """Fails if looking after every pair makes more than one comparison of equals in 20 a false one.

    In an hour that is half as noisy again as the usual one it is one in 7.
    """
    found = [compare(1.0, sd, seed) for seed in range(2000)]
    assert np.mean([not f.tie for f in found]) <= share + 0.01  # and the spread of a share over 2000
    assert abs(np.mean([f.log_ratio for f in found])) < 0.005


@pytest.mark.parametrize(("true_ratio", "pairs"), [(1.1, 6), (1.2, 3)])
def test_a_difference_is_found(true_ratio: float, pairs: int) -> None:
    """Fails if a tenth is overlooked in one comparison of 20, or a fifth takes long."""
    found = [compare(true_ratio, PAIR_SD, seed) for seed in range(500)]
    assert np.mean([not f.tie and f.p_better > 0.5 for f in found]) >= 0.95
    assert np.quantile([len(f.logs) for f in found], 0.9) <= pairs


def test_what_counts_is_the_ratio_at_which_both_are_equally_good() -> None:
    """Fails if one that has 10 % more but costs 30 % more is called the better one."""
    found = [compare(1.1, PAIR_SD, seed, ratio=1.3) for seed in range(100)]
    assert np.mean([not f.tie and f.p_better < 0.5 for f in found]) >= 0.95


def test_every_other_pair_begins_with_the_other_one() -> None:
    """Fails if what comes second is always the same one, so that whatever the first leaves behind falls on it."""
    asked: list[tuple[int, int]] = []

    def peak_of(side: int, number: int) -> float:
        asked.append((side, number))
        return 100.0 + side

    found = in_turn(peak_of, usual_sd=PAIR_SD, most=3)
    assert asked == [(0, 0), (1, 0), (1, 1), (0, 1), (0, 2), (1, 2)]
    assert found is not None
    assert found.log_ratio == pytest.approx(math.log(100 / 101))
    assert found.tie


def test_a_window_that_cannot_be_read_ends_it() -> None:
    """Fails if a failed window is taken for a peak."""
    assert in_turn(lambda side, number: 0.0 if number == 1 else 100.0, usual_sd=0.08) is None


def test_peaks_that_were_measured_apart_need_a_larger_difference() -> None:
    """Fails if one that has no peak wins, or noise is taken for a difference."""
    assert unpaired(110.0, 100.0, sd=0.09).tie
    assert unpaired(200.0, 100.0, sd=0.09).p_better > 0.99
    lost = unpaired(0.0, 100.0, sd=0.09)
    assert not lost.tie
    assert lost.p_better < 0.01
