"""The batching twin: what a replica with our batcher does under any load, computed from the times of its batches.

    sweep (batcher.py) ─► ServiceTimes ─► simulate: the batcher's rule on Poisson arrivals ─► peak of each setting

One deployment so tells about all of its batch settings. The rule is simulated exactly; how long batches take is drawn
from what was observed, in the order in which it was observed, so that slow seconds of the machine stay together. What
the twin leaves out (the way through Ray, several replicas that share requests unevenly) a real probe calibrates.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from morphling_ray.serving.batcher import Batch

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BatchSetting = tuple[int, float]
"""`max_batch_size` and `batch_wait_timeout_s`."""

SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
"""Sizes that a sweep measures. The cost is not monotone in the size: 3 may cost more than 4."""

_RATIOS = np.geomspace(0.1, 1.06, 16)  # rates over the capacity, of the first look
_NEAR = np.linspace(0.88, 1.14, 9)  # and of the second, over the peak that the first one found
_FIRST, _SECOND = (2, 800), (6, 1500)  # schedules, and requests in each


def sweep_sizes(largest: int) -> tuple[int, ...]:
    """Sizes to measure for batches of up to `largest`."""
    return (*tuple(size for size in SIZES if size < largest), largest)


@dataclass(frozen=True)
class ServiceTimes:
    """How long batches take on one deployment, from one batch to the next while requests are waiting.

    Attributes:
        sizes: Sizes that were measured, ascending, shape `(k,)`.
        seconds: Median time of each, shape `(k,)`.
        residuals: Time of every batch over the median of its size, in the order in which they were computed.
    """

    sizes: IntArray
    seconds: FloatArray
    residuals: FloatArray

    @classmethod
    def measured(cls, batches: Sequence[Batch]) -> "ServiceTimes":
        """From batches that were computed one after the other, as a sweep leaves them.

        Raises:
            ValueError: There are not two of them between which the worker was not idle.
        """
        pairs = [(a.size, b.taken - a.taken) for a, b in itertools.pairwise(batches) if a.waiting >= b.size]
        if not pairs:
            raise ValueError("no batch was followed by another without a pause")
        size, cycle = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])
        sizes = np.unique(size)
        seconds = np.array([np.median(cycle[size == s]) for s in sizes])
        return cls(sizes, seconds, cycle / seconds[np.searchsorted(sizes, size)])

    def of(self, largest: int) -> FloatArray:
        """Seconds of batches of 0 to `largest` requests, shape `(largest + 1,)`; sizes between are interpolated."""
        wanted = np.arange(largest + 1)
        out = np.interp(wanted, self.sizes, self.seconds)
        beyond = wanted > self.sizes[-1]
        out[beyond] = self.seconds[-1] * wanted[beyond] / self.sizes[-1]
        return np.asarray(out)

    def scaled(self, factor: float) -> "ServiceTimes":
        """All times multiplied."""
        return replace(self, seconds=self.seconds * factor)

    @property
    def relative_error(self) -> float:
        """Standard error of a typical entry, relative."""
        return float(np.std(np.log(self.residuals)) / np.sqrt(max(1.0, len(self.residuals) / len(self.sizes))))


def simulate(
    arrivals: FloatArray, seconds: FloatArray, settings: Sequence[BatchSetting], residuals: FloatArray, seed: int
) -> FloatArray:
    """The batcher's rule, in L lanes at once.

    Args:
        arrivals: Ascending arrival times of each lane, shape `(L, N)`.
        seconds: Times of batches of 0 to B requests, shape `(B + 1,)` or one row a lane, `(L, B + 1)`.
        settings: Setting of each lane, L of them, none with larger batches than B.
        residuals: Factors on the time of successive batches, shape `(R,)`; each lane starts somewhere else in them.
        seed: Of these places.

    Returns:
        From arrival to the end of the request's batch, shape `(L, N)`.
    """
    lanes, count = arrivals.shape
    most = np.array([b for b, _ in settings])
    wait = np.array([w for _, w in settings])
    table = np.broadcast_to(seconds, (lanes, seconds.shape[-1]))
    ahead = np.arange(int(most.max()))
    padded = np.concatenate([arrivals, np.full((lanes, len(ahead) + 1), np.inf)], axis=1)
    place: IntArray = np.random.default_rng(seed).integers(len(residuals), size=(lanes,))
    out = np.empty_like(padded)
    first: IntArray = np.zeros(lanes, int)
    free: FloatArray = np.zeros(lanes)
    row: IntArray = np.arange(lanes)
    while len(row):
        queue = padded[row[:, None], first[row, None] + ahead]  # (l, B): arrivals of those that may join
        queue[ahead >= most[row, None]] = np.inf
        full = padded[row, first[row] + most[row] - 1]
        start = np.maximum(free[row], np.minimum(full, queue[:, 0] + wait[row]))
        joined = queue <= start[:, None]
        size: IntArray = joined.sum(1)
        done: FloatArray = start + table[row, size] * residuals[place[row] % len(residuals)]
        lane, column = np.nonzero(joined)
        out[row[lane], first[row[lane]] + column] = done[lane]
        free[row], first[row], place[row] = done, first[row] + size, place[row] + 1
        row = row[first[row] < count]
    return np.asarray(out[:, :count] - arrivals)


def predicted_peaks(
    times: ServiceTimes,
    settings: Sequence[BatchSetting],
    *,
    slo_s: float,
    percentile: float,
    overhead_s: float = 0.0,
    replicas: int = 1,
    seed: int = 0,
) -> FloatArray:
    """The highest Poisson rate at which each setting meets the SLO, shape `(S,)`; 0 where none of them does.

    Args:
        times: Of batches, of one replica.
        settings: S batch settings.
        slo_s: Bound of the latency.
        percentile: Of latencies that must keep it.
        overhead_s: What a request takes besides waiting for its batch and being computed.
        replicas: That share the requests evenly.
        seed: Of the schedules.
    """
    largest = max(b for b, _ in settings)
    seconds = times.of(largest)
    capacity = np.array([b / seconds[b] for b, _ in settings])
    allowed = 1.0 - percentile / 100.0

    def late(rates: FloatArray, schedules: int, requests: int, seed: int) -> FloatArray:
        """Late share at rates `(S, K)`, pooled over schedules that all of them share."""
        gaps = np.random.default_rng(seed).exponential(size=(schedules, requests))
        unit = np.cumsum(gaps, axis=1) * (requests / gaps.sum(1, keepdims=True))  # each has its mean rate exactly
        s, k = rates.shape
        arrivals = (unit[None, None] / rates[:, :, None, None]).reshape(-1, requests)
        each = [setting for setting in settings for _ in range(k * schedules)]
        latency = simulate(arrivals, seconds, each, times.residuals, seed)
        return np.asarray((latency > slo_s - overhead_s).reshape(s, k, -1).mean(2))

    rates = capacity[:, None] * _RATIOS
    rough = _highest_passing(rates, late(rates, *_FIRST, seed), allowed)
    rates = np.where(rough > 0, rough, capacity * _RATIOS[0])[:, None] * _NEAR
    found = _highest_passing(rates, late(rates, *_SECOND, seed + 1), allowed)
    return np.asarray(np.where(found > 0, found, np.where(rough > 0, rates[:, 0], 0.0)) * replicas)


def _highest_passing(rates: FloatArray, late: FloatArray, allowed: float) -> FloatArray:
    """For each row, where the late share last crosses what is allowed, by interpolation of logarithms; 0: nowhere.

    The share need not be monotone in the rate: at a low rate a batch waits long for company.
    """
    out = np.zeros(len(rates))
    for i, (rate, share) in enumerate(zip(rates, late)):
        passing = np.flatnonzero(share <= allowed)
        if not len(passing):
            continue
        last = int(passing[-1])
        out[i] = rate[last]
        if last + 1 < len(rate):
            low, high = np.log(np.maximum(share[last : last + 2], allowed / 10))
            part = (np.log(allowed) - low) / (high - low) if high > low else 0.0
            out[i] *= (rate[last + 1] / rate[last]) ** min(1.0, max(0.0, part))
    return out
