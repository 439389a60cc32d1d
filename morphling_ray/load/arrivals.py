"""When requests are sent."""

import numpy as np
import numpy.typing as npt


def poisson_arrivals(rate_rps: float, window_s: float, seed: int) -> npt.NDArray[np.float64]:
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
