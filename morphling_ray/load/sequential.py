"""When a window of load has shown enough: two sequential probability ratio tests on the share of late requests.

Both are Wald's (Annals of Mathematical Statistics 16, 1945): the logarithm of the likelihood ratio of two shares is
summed over requests until it leaves a bound. Late requests come in bursts, because those behind a late one are late as
well, so that a request tells less than an independent draw: the sum is divided by `BURST`. With `a` the share that the
SLO allows (1 % for p99):

* MISSED is settled between the shares `a / 3` and `8 a`. One who keeps the first is called MISSED in at most `ALPHA` of
  all windows.
* MET is settled between `a / 5` and `3 a`. One who has the second is called MET in at most `BETA` of all windows.

What lies between is not settled, and the window's own percentile decides when it ends. The tests hold both rates on
late requests that come five at a time; those without company do not wait for each other, and come one or two at a time.
"""

import math
from collections.abc import Sequence

from morphling_ray.measurement import Verdict
from morphling_ray.objective import Slo

ALPHA, BETA = 0.01, 0.05
BURST, BURST_ALONE = 5.0, 2.0
_MISSED, _MET = (1 / 3, 8.0), (1 / 5, 3.0)  # the two shares of each test, over the share that is allowed


class Sequential:
    """The two tests for one SLO.

    Args:
        slo: What may be late.
        burst: How many requests tell as much as one independent draw.
    """

    def __init__(self, slo: Slo, burst: float = BURST) -> None:
        allowed = 1.0 - slo.percentile / 100.0
        self._missed = _weights(allowed, _MISSED, burst)
        self._met = _weights(allowed, _MET, burst)

    def settled(self, known: int, late: int) -> Verdict | None:
        """The verdict, once it is settled.

        Args:
            known: Requests that were answered, have failed, or are late already.
            late: Those of them that are late or failed.
        """
        if _sum(self._missed, known, late) >= math.log(1 / ALPHA):
            return Verdict.MISSED
        if _sum(self._met, known, late) <= math.log(BETA):
            return Verdict.MET
        return None


def late_alone(latency_s: Sequence[float], slo: Slo) -> bool:
    """Whether requests without company show, by being late, that the SLO is missed at any low rate too."""
    late = sum(s > slo.latency_s for s in latency_s)
    return Sequential(slo, BURST_ALONE).settled(len(latency_s), late) is Verdict.MISSED


def _weights(allowed: float, factors: tuple[float, float], burst: float) -> tuple[float, float]:
    """What a late request and one in time add to the logarithm of the likelihood ratio of two shares."""
    low, high = allowed * factors[0], min(allowed * factors[1], 0.9)
    return math.log(high / low) / burst, math.log((1 - high) / (1 - low)) / burst


def _sum(weights: tuple[float, float], known: int, late: int) -> float:
    return late * weights[0] + (known - late) * weights[1]
