"""Which of two configurations has the higher peak: short looks at both in turn, until it shows.

Whatever the machine does for a second or longer, it does to both sides of a round, so that differences within rounds
tell more than two separate peaks do. A round has closed loops, for the capacities C, and may have a window of Poisson
arrivals each, at a share u of its capacity, for the burstiness b: the SLO's percentile of latency is about

    alone + b / C * u / (1 - u)        (see `peak.read_off`)

and the peak is where that is the SLO's bound. Sides that form batches alike have about the same b, so that their peaks
differ by what their capacities and lone requests do. They have no windows: a pause of the machine in one of two short
ones differs by more than their b may, and how large b is follows well enough from the peaks that are expected. Of
others nothing is assumed, and the windows speak (a linear Gaussian model, in logs).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

# Standard errors from which on a difference is one: with the last round, and the power by which they fall with the
# share of rounds that were made (the boundaries of Wang and Tsiatis, Biometrics 43, 1987). It is looked at after every
# round, and yet one comparison of equals in 20 at most makes a difference of them.
BOUND, POWER = 2.3, -0.3
ONE_LOOK = 1.96  # the same where there is one look
# Of differences within a pair, as usual on a machine that others share, and how many pairs that counts for.
CAPACITY_SD, EXCESS_SD, USUAL = 0.045, 0.15, 6
UNUSUAL = 1.5  # standard deviations from which on a pair counts no more: the machine stood still in one of the two
ALIKE_SD = 0.05  # of the difference of `log b` of those who batch alike
LAW_SD = 0.03  # what the law may be off by, of the ratio of peaks, where both sides do not follow it alike


@dataclass(frozen=True)
class Round:
    """What one round showed of both sides.

    Attributes:
        capacity_rps: Throughputs of closed loops of both, in turn, shape `(c, 2)`.
        excess_s: Of each side's window, how much the percentile of latency was above that of lone requests; None
            between those who batch alike.
    """

    capacity_rps: tuple[tuple[float, float], ...]
    excess_s: tuple[float, float] | None


@dataclass(frozen=True)
class PairedPeaks:
    """What a comparison showed.

    Attributes:
        log_ratio: Logarithm of the first one's peak over the second one's.
        sd: Its standard deviation.
        rounds: How many there were; 0 where the peaks were measured apart.
        p_better: Probability that the first one is the better one.
        tie: The rounds were used up before a difference showed.
    """

    log_ratio: float
    sd: float
    rounds: int
    p_better: float
    tie: bool

    def first_wins(self, cheaper: bool) -> bool:
        """Whether the first one is to be taken: it is the better one, or the cheaper one of a tie."""
        return (self.tie and cheaper) or self.p_better >= 0.5


def in_turn(
    make_round: Callable[[int], Round | None],
    *,
    rates_rps: tuple[float, float],
    alone_s: tuple[float, float],
    slo_s: float,
    alike: bool,
    alone_sd_s: tuple[float, float] = (0.0, 0.0),
    ratio: float = 1.0,
    most: int = 8,
    going_on: Callable[[int], bool] = lambda rounds: True,
) -> PairedPeaks | None:
    """Compares two peaks round by round.

    Args:
        make_round: Makes the round of that number, from 0; None where a window cannot be read.
        rates_rps: Of each side's windows; between those who batch alike the peaks that are expected.
        alone_s: The percentile of latency without company.
        slo_s: Bound of the latency.
        alike: Both form batches by the same settings.
        alone_sd_s: Standard errors of `alone_s`.
        ratio: The first one's peak over the second one's at which both are equally good.
        most: Rounds at most.
        going_on: Asked after each round, with their number, whether there is time for another one.

    Returns:
        None where a window cannot be read, or a lone request is too late already.
    """
    rounds: list[Round] = []
    while True:
        made = make_round(len(rounds))
        if made is None or slo_s <= max(alone_s):
            return None
        rounds.append(made)
        mean, sd = log_ratio(
            rounds, rates_rps=rates_rps, alone_s=alone_s, slo_s=slo_s, alike=alike, alone_sd_s=alone_sd_s
        )
        lead = (mean - math.log(ratio)) / sd
        settled = abs(lead) >= BOUND * (len(rounds) / most) ** POWER
        if not going_on(len(rounds)) or settled or len(rounds) >= most:
            return PairedPeaks(mean, sd, len(rounds), NormalDist().cdf(lead), not settled)


def log_ratio(
    rounds: Sequence[Round],
    *,
    rates_rps: tuple[float, float],
    alone_s: tuple[float, float],
    slo_s: float,
    alike: bool,
    alone_sd_s: tuple[float, float] = (0.0, 0.0),
) -> tuple[float, float]:
    """Mean and standard deviation of the logarithm of the first one's peak over the second one's; see `in_turn`."""
    capacity = np.log(np.concatenate([np.array(r.capacity_rps) for r in rounds]))  # (rounds * c, 2)
    c, c_sd = _level(capacity, CAPACITY_SD)
    room = slo_s - np.array(alone_s)
    used = np.minimum(np.array(rates_rps) / np.exp(c), 0.98)
    # What is unknown is log C and log b of both; its covariance.
    if alike:
        b = np.full(2, (np.log(room * (1.0 - used) / used) + c).mean())
        covariance = np.diag(np.square([c_sd, c_sd, ALIKE_SD / math.sqrt(2.0), ALIKE_SD / math.sqrt(2.0)]))
    else:
        excess, e_sd = _level(np.log(np.array([r.excess_s for r in rounds])), EXCESS_SD)
        b = excess + c - np.log(used / (1.0 - used))
        # An excess tells of b, and of C as well: excess = log b - log C + log(u / (1 - u)), whose slope in log C is
        # -1 - 1 / (1 - u).
        slope = -1.0 - 1.0 / (1.0 - used)
        rows = [[1, 0, 0, 0], [0, 1, 0, 0], [slope[0], 0, 1, 0], [0, slope[1], 0, 1]]
        seen = np.array(rows) / np.array([[c_sd], [c_sd], [e_sd], [e_sd]])
        covariance = np.linalg.inv(seen.T @ seen)
    stretch = room * np.exp(c - b)
    share = stretch / (1.0 + stretch)  # the peak over the capacity
    gradient = np.concatenate([2.0 - share, share - 1.0]) * np.array([1.0, -1.0, 1.0, -1.0])
    peaks = c + np.log(share)
    law_sd = 0.0 if alike else LAW_SD
    room_sd = (1.0 - share) * np.array(alone_sd_s) / room  # of the log of each peak, by what the SLO leaves to wait
    variance = gradient @ covariance @ gradient + law_sd**2 + (room_sd**2).sum()
    return float(peaks[0] - peaks[1]), float(np.sqrt(variance))


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
    return PairedPeaks(difference, sd, 0, NormalDist().cdf(lead), abs(lead) < ONE_LOOK)


def _level(logs: FloatArray, usual: float) -> tuple[FloatArray, float]:
    """Levels of both sides of pairs, shape `(n, 2)`, and the standard error of each, which is as seen and as usual.

    Their difference is Huber's M-estimate (Annals of Mathematical Statistics 35, 1964).
    """
    pairs, clip = logs[:, 0] - logs[:, 1], UNUSUAL * usual
    difference = float(np.median(pairs))
    for _ in range(20):
        difference += float(np.clip(pairs - difference, -clip, clip).mean())
    squares = float((np.clip(pairs - difference, -clip, clip) ** 2).sum())
    sd = math.sqrt((USUAL * usual**2 + squares) / (USUAL + len(pairs) - 1))
    return logs.mean() + difference * np.array([0.5, -0.5]), sd / math.sqrt(2 * len(pairs))
