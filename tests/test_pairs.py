"""The comparison in turn, on rounds that a generator makes up: how often it is wrong, and how often it finds."""

import math
from typing import Any

import numpy as np
import pytest

from morphling_ray.load.pairs import (
    CAPACITY_SD,
    EXCESS_SD,
    PairedPeaks,
    Round,
    in_turn,
    log_ratio,
    unpaired,
)
from morphling_ray.load.window import lone_tail

SLO_S = 0.1
CAPACITY, SHARE, ALONE_S = 200.0, 0.75, 0.015


class Servers:
    """Two servers that follow the law, the second one slower by a factor, on a machine with noise and a drift.

    Args:
        slower: By that share.
        burstier: The second one's burstiness over the first one's.
        noise: In the usual sizes.
        seed: Of the noise.
    """

    def __init__(self, slower: float, seed: int, *, burstier: float = 1.0, noise: float = 1.0) -> None:
        self._rng, self._noise = np.random.default_rng(seed), noise
        self.capacity = CAPACITY / np.array([1.0, 1.0 + slower])
        self.alone_s = ALONE_S * np.array([1.0, 1.0 + slower])
        first = (SLO_S - ALONE_S) * CAPACITY * (1 - SHARE) / SHARE
        self._burstiness = first * np.array([1.0, burstier])
        stretch = (SLO_S - self.alone_s) * self.capacity / self._burstiness
        self.peaks = self.capacity * stretch / (1 + stretch)
        self.rates = self.capacity * SHARE * np.exp(0.03 * self._rng.standard_normal(2))

    def round(self, alike: bool) -> Round:
        """One round."""
        drift = 0.1 * self._rng.standard_normal()
        normal = self._noise / math.sqrt(2.0) * self._rng.standard_normal((3, 2))
        loops = self.capacity * np.exp(drift + CAPACITY_SD * normal[:2])
        used = self.rates / self.capacity
        excess = self._burstiness / self.capacity * used / (1 - used) * np.exp(0.8 * EXCESS_SD * normal[2])
        window = float(excess[0]), float(excess[1])
        return Round(tuple((float(a), float(b)) for a, b in loops), None if alike else window)

    def compared(self, *, alike: bool = True, ratio: float = 1.0) -> PairedPeaks:
        """The comparison of both."""
        rates, alone = self.rates.tolist(), self.alone_s.tolist()
        found = in_turn(
            lambda number: self.round(alike),
            rates_rps=(rates[0], rates[1]),
            alone_s=(alone[0], alone[1]),
            slo_s=SLO_S,
            alike=alike,
            ratio=ratio,
        )
        assert found is not None
        return found

    @property
    def log_ratio(self) -> float:
        """The truth."""
        return math.log(self.peaks[0] / self.peaks[1])


@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize(("noise", "share"), [(0.6, 0.05), (1.0, 0.05), (1.5, 0.1)])
def test_equals_are_seldom_told_apart(noise: float, share: float, alike: bool) -> None:
    """Fails if looking after every round makes more than one comparison of equals in 20 a false one.

    In an hour that is half as noisy again it is one in 10.
    """
    found = [Servers(0.0, seed, noise=noise).compared(alike=alike) for seed in range(600)]
    assert np.mean([not f.tie for f in found]) <= share
    assert abs(np.mean([f.log_ratio for f in found])) < 0.005


@pytest.mark.parametrize(("slower", "rounds", "alike"), [(0.08, 4, True), (0.16, 2, True), (0.12, 4, False)])
def test_a_difference_is_found(slower: float, rounds: int, alike: bool) -> None:
    """A tenth and a fifth of the peak. Fails if one in 20 is overlooked, or if it takes longer than need be."""
    servers = [Servers(slower, seed) for seed in range(400)]
    assert servers[0].log_ratio == pytest.approx(1.25 * math.log(1 + slower), abs=0.02)
    found = [s.compared(alike=alike) for s in servers]
    assert np.mean([not f.tie and f.p_better > 0.5 for f in found]) >= 0.95
    assert np.quantile([f.rounds for f in found], 0.9) <= rounds


@pytest.mark.parametrize(("alike", "burstier"), [(True, 1.0), (False, 1.0), (False, 1.5)])
def test_what_it_says_of_itself_holds(alike: bool, burstier: float) -> None:
    """Fails if the ratio is biased, or lies outside of two standard deviations in more than one case of 10."""
    servers = [Servers(0.1, seed, burstier=burstier) for seed in range(400)]
    found = [s.compared(alike=alike) for s in servers]
    off = np.array([f.log_ratio - s.log_ratio for f, s in zip(found, servers)])
    assert abs(off.mean()) < 0.015
    assert np.mean(np.abs(off) > 2 * np.array([f.sd for f in found])) <= 0.1


def test_those_who_batch_alike_are_told_apart_by_their_capacities() -> None:
    """Fails if what is believed of their burstiness is not used, or outweighs what many rounds show."""

    def spread(count: int, alike: bool) -> float:
        rates, alone = (0.75 * CAPACITY, 0.68 * CAPACITY), (ALONE_S, ALONE_S)
        rounds = [Servers(0.1, seed).round(alike) for seed in range(2)] * count
        return log_ratio(rounds, rates_rps=rates, alone_s=alone, slo_s=SLO_S, alike=alike)[1]

    assert spread(1, True) < spread(1, False)
    assert spread(20, True) < 0.5 * spread(1, True)


def test_what_counts_is_the_ratio_at_which_both_are_equally_good() -> None:
    """Fails if one that has 10 % more but costs 30 % more is called the better one."""
    found = [Servers(0.08, seed).compared(ratio=1.3) for seed in range(100)]
    assert np.mean([not f.tie and f.p_better < 0.5 for f in found]) >= 0.95


@pytest.mark.parametrize(
    "how",
    [
        {"make_round": lambda number: None},
        {"alone_s": (0.01, 0.2)},
    ],
)
def test_what_cannot_be_read_ends_it(how: dict[str, Any]) -> None:
    """Fails if a failed window, or a lone request that is too late already, is taken for a peak."""
    usual = {
        "make_round": lambda number: Servers(0.0, 0).round(True),
        "rates_rps": (150.0, 150.0),
        "alone_s": (0.01, 0.01),
    }
    everything: dict[str, Any] = {**usual, **how}
    assert in_turn(**everything, slo_s=SLO_S, alike=True) is None


def test_a_pause_in_one_loop_hides_no_difference() -> None:
    """Fails if a machine that stands still for a moment makes a difference, or hides one, or goes on counting."""
    quiet = [Round(((200.0, 184.0), (201.0, 185.0)), None) for _ in range(3)]
    paused = [*quiet, Round(((200.0, 130.0), (201.0, 185.0)), None)]

    def found(rounds: list[Round]) -> tuple[float, float]:
        return log_ratio(rounds, rates_rps=(150.0, 138.0), alone_s=(ALONE_S, ALONE_S), slo_s=SLO_S, alike=True)

    (mean, sd), (with_pause, sd_with_pause) = found(quiet), found(paused)
    assert with_pause == pytest.approx(mean, abs=0.5 * sd)
    assert sd_with_pause < sd


def test_what_lone_requests_take_is_not_known_for_sure() -> None:
    """Fails if two whose lone requests differ by chance are told apart by that, where the SLO leaves little to wait."""
    rng, told = np.random.default_rng(0), []
    for seed in range(300):
        made, slo_s = Servers(0.0, seed), 0.05
        alone, sd = np.transpose([lone_tail((0.012 + rng.exponential(0.004, 16)).tolist(), 99.0) for _ in range(2)])
        found = in_turn(
            lambda number, made=made: made.round(True),  # type: ignore[misc]
            rates_rps=(150.0, 150.0),
            alone_s=(float(alone[0]), float(alone[1])),
            alone_sd_s=(float(sd[0]), float(sd[1])),
            slo_s=slo_s,
            alike=True,
        )
        told.append(found is not None and not found.tie)
    assert np.mean(told) <= 0.07


def test_it_ends_when_the_time_is_over() -> None:
    """Fails if a comparison that shows nothing goes on beyond its time, or is not said to be a tie."""
    made = Servers(0.0, 0)
    found = in_turn(
        lambda number: made.round(True),
        rates_rps=(150.0, 150.0),
        alone_s=(ALONE_S, ALONE_S),
        slo_s=SLO_S,
        alike=True,
        going_on=lambda rounds: rounds < 2,
    )
    assert found is not None
    assert (found.rounds, found.tie) == (2, True)


def test_the_cheaper_one_of_a_tie_is_taken_and_the_likelier_one_of_equals() -> None:
    """Fails if a tie is decided by the order, or a clear winner by its cost."""

    def found(p_better: float, tie: bool) -> PairedPeaks:
        return PairedPeaks(0.0, 0.1, 3, p_better, tie)

    assert found(0.2, True).first_wins(cheaper=True)
    assert not found(0.2, True).first_wins(cheaper=False)
    assert found(0.8, True).first_wins(cheaper=False)
    assert not found(0.01, False).first_wins(cheaper=True)


def test_peaks_that_were_measured_apart_need_a_larger_difference() -> None:
    """Fails if one that has no peak wins, or noise is taken for a difference."""
    assert unpaired(110.0, 100.0, sd=0.09).tie
    assert unpaired(200.0, 100.0, sd=0.09).p_better > 0.99
    lost = unpaired(0.0, 100.0, sd=0.09)
    assert not lost.tie
    assert lost.p_better < 0.01
