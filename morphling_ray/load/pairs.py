"""Which of two configurations has the higher peak: windows of both in turn, until it shows.

Whatever the machine does for a second or longer, it does to both windows of a pair, so that the differences within
pairs tell more than two separate peaks do. No server, no clock: pure functions of what windows foretell.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

# Standard errors from which on a difference is one: with the last pair, and the power by which they fall with the share
# of pairs that were made (the boundary of Wang and Tsiatis, Biometrics 43, 1987, for 0.35). It is looked at after every
# pair, and yet one comparison of equals in 20 at most makes a difference of them.
BOUND, POWER = 2.5, -0.15
USUAL_PAIRS = 8  # pairs that `usual_sd` counts for, beside those that were seen


@dataclass(frozen=True)
class PairedPeaks:
    """What pairs of windows showed.

    Attributes:
        logs: Logarithms of the peaks that each pair foretells, shape `(pairs, 2)`.
        log_ratio: Of the first one's peak over the second one's, the mean.
        sd: Of that.
        p_better: Probability that the first one is the better one.
        tie: The pairs were used up before a difference showed.
    """

    logs: tuple[tuple[float, float], ...]
    log_ratio: float
    sd: float
    p_better: float
    tie: bool


def in_turn(
    peak_of: Callable[[int, int], float],
    *,
    usual_sd: float,
    ratio: float = 1.0,
    least: int = 2,
    most: int = 8,
    going_on: Callable[[int], bool] = lambda pairs: True,
) -> PairedPeaks | None:
    """Compares two peaks by pairs of windows, each pair in the other order than the one before.

    Args:
        peak_of: Given the side (0 or 1) and the number of the pair, the peak that a window foretells; 0 if it cannot.
        usual_sd: Of the difference of logarithms within a pair, as far as is known beforehand.
        ratio: The first one's peak over the second one's at which both are equally good.
        least: Pairs, before anything is decided.
        most: Pairs at most.
        going_on: Asked after each pair, with their number, whether there is time for another one.

    Returns:
        None where a window cannot be read.
    """
    logs: list[tuple[float, float]] = []
    while True:
        number = len(logs)
        found = {side: peak_of(side, number) for side in ((0, 1) if number % 2 == 0 else (1, 0))}
        if not all(found.values()):
            return None
        logs.append((math.log(found[0]), math.log(found[1])))
        mean, sd = _mean(logs, usual_sd)
        lead = (mean - math.log(ratio)) / sd
        settled = len(logs) >= least and abs(lead) >= BOUND * (len(logs) / most) ** POWER
        if settled or len(logs) >= most or not going_on(len(logs)):
            return PairedPeaks(tuple(logs), mean, sd, NormalDist().cdf(lead), not settled)


def unpaired(first_rps: float, second_rps: float, *, sd: float, ratio: float = 1.0) -> PairedPeaks:
    """The same from two peaks that were measured apart.

    Args:
        first_rps: One peak; 0: it has none.
        second_rps: The other, likewise; one of them has a peak.
        sd: Of the logarithm of each.
        ratio: See `in_turn`.
    """
    logs = [math.log(max(peak, 1e-9)) for peak in (first_rps, second_rps)]
    difference, sd = logs[0] - logs[1], math.sqrt(2.0) * sd
    lead = (difference - math.log(ratio)) / sd
    return PairedPeaks((), difference, sd, NormalDist().cdf(lead), abs(lead) < BOUND)


def _mean(logs: Sequence[tuple[float, float]], usual_sd: float) -> tuple[float, float]:
    """Mean difference, and its standard deviation."""
    differences = np.array([a - b for a, b in logs])
    squares = float(((differences - differences.mean()) ** 2).sum())
    variance = (USUAL_PAIRS * usual_sd**2 + squares) / (USUAL_PAIRS + len(differences) - 1)
    return float(differences.mean()), math.sqrt(variance / len(differences))
