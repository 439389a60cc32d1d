"""When requests are sent."""

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

CANDIDATES = 24  # schedules that a representative one is chosen from
_LOADS = (0.7, 0.85)
_QUANTILES = (0.5, 0.9, 0.95, 0.99)
# Time in an M/D/1 queue at these loads, in service times, at these quantiles: its stationary distribution, by Lindley's
# recursion over 4 million arrivals (tests/test_load.py computes it again).
_STATIONARY = np.array([[1.73, 4.08, 5.11, 7.49], [2.85, 7.92, 10.1, 15.2]])


def poisson_arrivals(rate_rps: float, window_s: float, seed: int) -> FloatArray:
    """Arrival times of a Poisson process, given its count, as sorted uniforms: drawn in full before the window starts.

    Args:
        rate_rps: Mean arrivals a second, positive.
        window_s: Length of the window in seconds, positive.
        seed: Equal seeds give equal schedules.

    Returns:
        Seconds since the start of the window, shape `(n,)`, ascending; `n` is Poisson(rate_rps * window_s), at least 1.

    Raises:
        ValueError: A rate or a window that is not positive.
    """
    if not (rate_rps > 0 and window_s > 0):
        raise ValueError(f"rate and window must be positive, got {rate_rps} RPS for {window_s} s")
    generator = np.random.default_rng(seed)
    count = max(1, generator.poisson(rate_rps * window_s))
    return np.sort(generator.uniform(0.0, window_s, size=count))


def representative_arrivals(rate_rps: float, window_s: float, seed: int) -> FloatArray:
    """The one of several Poisson schedules that does to a queue what Poisson arrivals do to it in the long run.

    A window of a second or two is short: which bursts it happens to have moves its latencies by a sixth, and most
    windows have fewer than their share, since rare long bursts make up for it. The schedule is therefore chosen by what
    it does to the simplest queue (M/D/1), whose long run is known; its count is the mean one.

    Args:
        rate_rps: Mean arrivals a second, positive.
        window_s: Length of the window in seconds, positive.
        seed: Equal seeds give equal schedules.

    Returns:
        See `poisson_arrivals`.

    Raises:
        ValueError: A rate or a window that is not positive.
    """
    if not (rate_rps > 0 and window_s > 0):
        raise ValueError(f"rate and window must be positive, got {rate_rps} RPS for {window_s} s")
    count = max(1, round(rate_rps * window_s))
    unit = np.sort(np.random.default_rng(seed).uniform(0.0, count, size=(CANDIDATES, count)), axis=1)
    off = np.zeros(CANDIDATES)
    for load, stationary in zip(_LOADS, _STATIONARY, strict=True):
        found = np.quantile(times_in_queue(unit / load), _QUANTILES, axis=1)
        off += (np.log(found / stationary[:, None]) ** 2).sum(0)
    return np.asarray(unit[int(off.argmin())] / rate_rps)


def times_in_queue(arrivals: FloatArray) -> FloatArray:
    """Time from arrival to the end of a service of length 1, one at a time; arrivals and result have shape `(L, n)`.

    Lindley's recursion, solved: request i ends at `i + 1 + max over j <= i of (arrival_j - j)`.
    """
    place = np.arange(arrivals.shape[1])
    return np.asarray(place + 1.0 + np.maximum.accumulate(arrivals - place, axis=1) - arrivals)
