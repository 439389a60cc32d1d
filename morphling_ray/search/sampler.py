"""What proposes configurations: one small protocol that every search method fulfils.

A sampler is pure bookkeeping and arithmetic: no clock, no Ray, no files. Equal seed and equal observations give equal
proposals, in every process; it can be pickled in the middle of a search.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from morphling_ray.measurement import Measurement
from morphling_ray.space import Configuration


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """What to deploy, as far as is known.

    Attributes:
        configuration: A configuration that was measured and works.
        objective: Its expected objective (what was measured, where the sampler has no model).
        sd: Standard deviation of that, or None without a model.
        p_near_best: Probability that it is within 5 % of the best in the space, or None without a model.
        p_better: Probability that it is better than the next best that was measured; None without a model or another.
        tied: Others that were measured and that nobody could tell from it: each is the better one at odds of at least
            one to three, and expected to be within 5 % of it.
    """

    configuration: Configuration
    objective: float
    sd: float | None = None
    p_near_best: float | None = None
    p_better: float | None = None
    tied: "tuple[Recommendation, ...]" = ()


def take_in(sampler: "Sampler", measurement: Measurement) -> None:
    """Tells a sampler what a trial measured, and what that says of other configurations."""
    sampler.observe(measurement.configuration, measurement)
    for sibling in measurement.siblings:
        # What was asked for is settled even where a better sibling was measured in its stead.
        settled = sibling.configuration == measurement.asked
        (sampler.observe if settled else sampler.foresee)(sibling.configuration, sibling)


class Sampler(Protocol):
    """Proposes configurations, is told what they measured, and recommends one."""

    def suggest(self) -> Configuration | None:
        """The configuration to measure next, never one that was suggested before; None when the space is exhausted.

        It counts as pending until it is observed.
        """
        ...

    def reserve(self, configuration: Configuration) -> None:
        """Says that a configuration is being measured which was not suggested (the user's present one)."""
        ...

    def observe(self, configuration: Configuration, measurement: Measurement) -> None:
        """Tells what was measured. The same configuration may be observed again: another noisy look at the same point.

        Infeasible measurements, missing, NaN or bounded metrics are all data. The configuration need not be of the
        space, but must have its knobs.
        """
        ...

    def foresee(self, configuration: Configuration, measurement: Measurement) -> None:
        """Tells what the measurement of another configuration says of this one, which may still be suggested.

        It holds bounds, not metrics, or a reason that it would fail.
        """
        ...

    def recommend(self, among: Sequence[Configuration] | None = None) -> Recommendation | None:
        """The best of what was measured and works, by expected objective; None before there is any.

        Args:
            among: Only one of these, where any of them works.
        """
        ...

    def finalists(self, count: int) -> list[Configuration]:
        """Up to `count` measured configurations worth measuring again, the best first, without clearly worse ones."""
        ...
