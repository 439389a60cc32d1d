"""The batching twin: what a replica that computes batches does under any load, from the times that batches take.

    sweep (batcher.py) ─► ServiceTimes ─► simulate: the batcher's rule on Poisson arrivals ─► peak of each setting

One deployment so tells about all of its batch settings. The rule is simulated exactly; how long batches take is drawn
from what was observed, in the order in which it was observed, so that slow seconds of the machine stay together. What
the twin leaves out (the way through Ray, several replicas that share requests unevenly) a real probe calibrates.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from morphling_ray.serving.batcher import Batch

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BatchSetting = tuple[int, float]
"""`max_batch_size` and `batch_wait_timeout_s`."""
Rule = Literal["work-conserving", "timer", "blocking"]
"""How batches are formed: by our batcher (batcher.py), or by `@serve.batch` in either way (serve_batch.py)."""

SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
"""Sizes that a sweep measures. The cost is not monotone in the size: 3 may cost more than 4."""

_REWEIGHTED, _USUAL = 10, 0.02  # rounds of the fit, and a relative error that is none
_PAUSE = 1.25  # times as long as usual: something stood still

_RATIOS = np.geomspace(0.1, 1.06, 16)  # rates over the capacity, of the first look
_NEAR = np.linspace(0.88, 1.14, 9)  # and of the second, over the peak that the first one found
_FIRST, _SECOND = 800, (2, 6000)  # requests of the first look; schedules and requests of the second


def sweep_sizes(largest: int) -> tuple[int, ...]:
    """Sizes to measure for batches of up to `largest`."""
    return (*tuple(size for size in SIZES if size < largest), largest)


def ladder(largest: int) -> list[int]:
    """One round of a sweep: all sizes upwards and down again, so that each follows a smaller and a larger one."""
    up = list(sweep_sizes(largest))
    return up + up[::-1]


@dataclass(frozen=True)
class Strays:
    """How successive batches strayed from their usual time, in the order in which they were computed.

    Attributes:
        jitter: Factors, shape `(R,)`.
        pauses_s: Seconds on top, shape `(R,)`: 0 for most; how long a pause is does not depend on the batch.
    """

    jitter: FloatArray
    pauses_s: FloatArray

    def __len__(self) -> int:
        return len(self.jitter)

    def then(self, later: "Strays") -> "Strays":
        """Both, one after the other."""
        return Strays(np.append(self.jitter, later.jitter), np.append(self.pauses_s, later.pauses_s))


NO_STRAYS = Strays(np.ones(1), np.zeros(1))


@dataclass(frozen=True)
class ServiceTimes:
    """How long batches take on one deployment, from one batch to the next while requests are waiting.

    Attributes:
        sizes: Sizes that were measured, ascending, shape `(k,)`.
        seconds: Usual time of each, shape `(k,)`.
        strays: How single batches stray from that.
    """

    sizes: IntArray
    seconds: FloatArray
    strays: Strays

    @classmethod
    def measured(cls, *logs: Sequence[Batch]) -> "ServiceTimes":
        """From batches that were computed one after the other, as a sweep leaves them; one log a replica.

        While a batch is computed, the answers of the one before are sent and as many new requests received, on the same
        cores. So the time of batch i is `t[size_i] + c * (size_{i-1} - size_i)`, with `t` what it takes among others of
        its size; both are fitted with weights that leave the batches out which something disturbed.

        Raises:
            ValueError: No log has three batches.
        """
        rows = [_time(*three) for log in logs for three in zip(log, log[1:], log[2:])]
        if not rows:
            raise ValueError("no log has three batches")
        before, size, time = (np.array(column) for column in zip(*rows))
        sizes, row = np.unique(size, return_inverse=True)
        design = np.zeros((len(size), len(sizes) + 1))
        design[np.arange(len(size)), row] = 1.0
        design[:, -1] = before - size
        seconds = np.array([np.median(time[size == s]) for s in sizes])
        weight = 1.0 / seconds[row]  # relative errors count
        for _ in range(_REWEIGHTED):
            fitted = np.linalg.lstsq(design * weight[:, None], time * weight, rcond=None)[0]
            off = np.abs(time - design @ fitted) / seconds[row]
            weight = 1.0 / seconds[row] / np.sqrt(np.maximum(off, _USUAL))  # least absolute errors, smoothed
        per_request = float(np.clip(fitted[-1], 0.0, (seconds / sizes).min()))  # less than all of a request's time
        own = time - per_request * design[:, -1]
        seconds = np.array([np.median(own[size == s]) for s in sizes])
        ratio = np.maximum(0.1, own / seconds[row])
        # How often the machine pauses cannot be told from so few batches: `strays_of` long logs can.
        middle = np.median(ratio)
        usual = 3 * 1.4826 * np.median(np.abs(ratio - middle))
        jitter = np.clip(ratio, middle - usual, middle + usual)
        return cls(sizes, seconds, Strays(jitter, np.zeros(len(jitter))))

    def strays_of(self, batches: Sequence[Batch]) -> Strays:
        """How these batches strayed, from what is usual among themselves: the machine's speed is not counted."""
        size = np.array([b.size for b in batches], int)
        time = np.array([b.done - b.taken for b in batches])
        expected = self.of(int(size.max(initial=1)))[size]
        if not len(size):
            return Strays(np.empty(0), np.empty(0))
        expected = expected * np.median(time / expected)
        paused = time > _PAUSE * expected
        return Strays(np.where(paused, 1.0, time / expected), np.where(paused, time - expected, 0.0))

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


def _time(before: Batch, batch: Batch, after: Batch) -> tuple[int, int, float]:
    """Sizes of two successive batches, and the time of the second: to the next one, where that was waiting."""
    end = after.taken if batch.waiting >= after.size else batch.done
    return before.size, batch.size, end - batch.taken


def simulate(
    arrivals: FloatArray,
    seconds: FloatArray,
    settings: Sequence[BatchSetting],
    strays: Strays,
    seed: int,
    rule: Rule = "work-conserving",
) -> FloatArray:
    """The batcher's rule, in L lanes at once.

    Args:
        arrivals: Ascending arrival times of each lane, shape `(L, N)`.
        seconds: Times of batches of 0 to B requests, shape `(B + 1,)` or one row a lane, `(L, B + 1)`.
        settings: Setting of each lane, L of them, none with larger batches than B.
        strays: Of successive batches; each lane starts somewhere else in them.
        seed: Of these places.
        rule: By which batches are formed.

    Returns:
        From arrival to the end of the request's batch, shape `(L, N)`.
    """
    lanes, count = arrivals.shape
    most = np.array([b for b, _ in settings])
    wait = np.array([w for _, w in settings])
    table = np.broadcast_to(seconds, (lanes, seconds.shape[-1]))
    ahead = np.arange(int(most.max()))
    padded = np.concatenate([arrivals, np.full((lanes, len(ahead) + 1), np.inf)], axis=1)
    place: IntArray = np.random.default_rng(seed).integers(len(strays), size=(lanes,))
    out = np.empty_like(padded)
    first: IntArray = np.zeros(lanes, int)
    free: FloatArray = np.zeros(lanes)  # when the latest batch is done
    formed: FloatArray = np.zeros(lanes)  # when it was formed
    row: IntArray = np.arange(lanes)
    while len(row):
        queue = padded[row[:, None], first[row, None] + ahead]  # (l, B): arrivals of those that may join
        queue[ahead >= most[row, None]] = np.inf
        full = padded[row, first[row] + most[row] - 1]
        ready, seen = _formed(rule, queue[:, 0], full, wait[row], free[row], formed[row])
        start = np.maximum(ready, free[row])
        joined = queue <= seen[:, None]
        size: IntArray = joined.sum(1)
        at = place[row] % len(strays)
        done: FloatArray = start + table[row, size] * strays.jitter[at] + strays.pauses_s[at]
        lane, column = np.nonzero(joined)
        out[row[lane], first[row[lane]] + column] = done[lane]
        free[row], formed[row] = done, ready
        first[row], place[row] = first[row] + size, place[row] + 1
        row = row[first[row] < count]
    return np.asarray(out[:, :count] - arrivals)


def _formed(
    rule: Rule, first: FloatArray, full: FloatArray, wait: FloatArray, free: FloatArray, before: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """When the next batch of each lane is formed, and until when a request had to come for that.

    The rules of batcher.py and serve_batch.py.

    Args:
        rule: Which of them.
        first: Arrival of the first request that waits.
        full: Arrival of the one that fills the batch.
        wait: `batch_wait_timeout_s`.
        free: When the batch before is done.
        before: When that was formed.
    """
    if rule == "work-conserving":
        ready = np.maximum(free, np.minimum(full, first + wait))
        return ready, ready
    received = np.maximum(first, free) if rule == "blocking" else first
    begun = np.where(first <= before, before, received)
    ready = np.maximum(begun, np.minimum(full, begun + wait))
    if rule == "timer":
        return ready, ready
    # Either before the loop stands still or after; a wait that has run out meanwhile ends before anything is received.
    ran_out = (first <= before) & (begun + wait <= free)
    ready = np.where(ready <= before, ready, np.maximum(ready, free))
    return ready, np.where(ran_out, np.minimum(ready, before), ready)


def predicted_peaks(
    times: ServiceTimes,
    settings: Sequence[BatchSetting],
    *,
    slo_s: float,
    percentile: float,
    overhead_s: float = 0.0,
    replicas: int = 1,
    seed: int = 0,
    schedules: FloatArray | None = None,
    rule: Rule = "work-conserving",
) -> FloatArray:
    """The highest Poisson rate at which each setting meets the SLO, shape `(S,)`; 0 where none of them does.

    Args:
        times: Of batches, of one replica.
        settings: S batch settings.
        slo_s: Bound of the latency.
        percentile: Of latencies that must keep it.
        overhead_s: What a request takes besides waiting for its batch and being computed.
        replicas: That share the requests evenly.
        seed: Of the schedules, and of where in the strays each begins.
        schedules: Arrivals at a mean rate of one a second, ascending, shape `(K, N)`, N being thousands: near its
            capacity a replica takes that long to be as busy as it gets. Drawn if None.
        rule: By which batches are formed.
    """
    if schedules is None:
        schedules = np.cumsum(np.random.default_rng(seed).exponential(size=_SECOND), axis=1)
        schedules = schedules * (_SECOND[1] / schedules[:, -1:])  # each has its mean rate exactly
    unit = schedules
    largest = max(b for b, _ in settings)
    seconds = times.of(largest)
    capacity = np.array([capacity_rps(times, setting, rule) for setting in settings])
    allowed = 1.0 - percentile / 100.0

    def late(rates: FloatArray, unit: FloatArray) -> FloatArray:
        """Late share at rates `(S, R)`, pooled over schedules that all of them share."""
        s, r = rates.shape
        arrivals = (unit[None, None] / rates[:, :, None, None]).reshape(-1, unit.shape[1])
        each = [setting for setting in settings for _ in range(r * len(unit))]
        latency = simulate(arrivals, seconds, each, times.strays, seed, rule)
        return np.asarray((latency > slo_s - overhead_s).reshape(s, r, -1).mean(2))

    rates = capacity[:, None] * _RATIOS
    rough = _highest_passing(rates, late(rates, unit[:, :_FIRST]), allowed)
    rates = np.where(rough > 0, rough, capacity * _RATIOS[0])[:, None] * _NEAR
    found = _highest_passing(rates, late(rates, unit), allowed)
    return np.asarray(np.where(found > 0, found, np.where(rough > 0, rates[:, 0], 0.0)) * replicas)


def capacity_rps(times: ServiceTimes, setting: BatchSetting, rule: Rule = "work-conserving") -> float:
    """What one replica serves when requests are always waiting; on a timer, what keeps up with the batches it forms."""
    most, wait_s = setting
    sizes = np.arange(1, most + 1)
    rates = sizes / times.of(most)[1:]
    if rule != "timer":
        return float(rates.max())
    # At a rate r a batch is formed of the first request and of those that arrive during the wait, 1 + r * wait_s.
    tried = np.geomspace(rates.min() / 2, rates.max(), 200)
    size = np.clip(1.0 + tried * wait_s, 1.0, most)
    keeps_up = tried <= np.interp(size, sizes, rates)
    return float(tried[keeps_up].max())


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
