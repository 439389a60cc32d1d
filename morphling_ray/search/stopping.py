"""When a search may end before its trials are used up.

The probability that the best so far is near the best there is goes up and down with every measurement, and the first
time that it passes a threshold is more often a lucky measurement than the probability says. It must therefore stay
there: what a search says after several measurements in a row is right as often as it claims (`experiments/compare.py`
prints how often).
"""

from collections.abc import Sequence

PATIENCE = 4  # measurements in a row


class StoppingRule:
    """Counts measurements after which the search was sure.

    Args:
        probability: How sure it must be that the best so far is within 5 % of the best in the space; None: never stop.
    """

    def __init__(self, probability: float | None) -> None:
        self.probability = probability
        self._sure = 0

    def told(self, p_near_best: float | None) -> None:
        """Takes in what is believed after one more measurement."""
        enough = self.probability is not None and p_near_best is not None and p_near_best >= self.probability
        self._sure = self._sure + 1 if enough else 0

    @property
    def met(self) -> bool:
        """Whether the search may end."""
        return self._sure >= PATIENCE


def stops_after(p_near_best: Sequence[float | None], probability: float) -> int | None:
    """After how many measurements a search ends, from what was believed after each; None if it goes on to the end."""
    rule = StoppingRule(probability)
    for count, p in enumerate(p_near_best, start=1):
        rule.told(p)
        if rule.met:
            return count
    return None
