"""A warm start for a Gaussian process that knows nothing of earlier tasks: it is handed the portfolio's first entries.

What a learned prior must beat: it has the same earlier tasks, used in the simplest way that works.
"""

from collections.abc import Sequence

from morphling_ray.measurement import Measurement
from morphling_ray.objective import Objective
from morphling_ray.search.morphling import MorphlingSampler
from morphling_ray.search.portfolio import PortfolioSampler, TaskShares, learn
from morphling_ray.search.sampler import Recommendation
from morphling_ray.space import Configuration, SearchSpace

__all__ = ["PortfolioGpSampler", "learn"]

_FROM_PORTFOLIO = 4


class PortfolioGpSampler:
    """The first four proposals are the portfolio's, all others those of the method `gp`. A `Sampler`.

    Without earlier tasks all of them are those of `gp`. It recommends what `gp` recommends.

    Args:
        space: The candidates.
        objective: What to maximise.
        seed: Of both.
        learned: What `portfolio.learn` returned, or None.
    """

    def __init__(
        self, space: SearchSpace, objective: Objective, *, seed: int, learned: Sequence[TaskShares] | None = None
    ) -> None:
        self._portfolio = PortfolioSampler(space, objective, seed=seed, learned=learned)
        self._gp = MorphlingSampler(space, objective, seed=seed, learned=None)
        self._from_portfolio = _FROM_PORTFOLIO if learned else 0

    def suggest(self) -> Configuration | None:
        """See `Sampler`."""
        first, other = (self._portfolio, self._gp) if self._from_portfolio else (self._gp, self._portfolio)
        self._from_portfolio = max(self._from_portfolio - 1, 0)
        configuration = first.suggest()
        if configuration is not None:
            other.reserve(configuration)
        return configuration

    def reserve(self, configuration: Configuration) -> None:
        """See `Sampler`."""
        self._portfolio.reserve(configuration)
        self._gp.reserve(configuration)

    def observe(self, configuration: Configuration, measurement: Measurement) -> None:
        """See `Sampler`."""
        self._portfolio.observe(configuration, measurement)
        self._gp.observe(configuration, measurement)

    def foresee(self, configuration: Configuration, measurement: Measurement) -> None:
        """See `Sampler`."""
        self._gp.foresee(configuration, measurement)

    def recommend(self, among: Sequence[Configuration] | None = None) -> Recommendation | None:
        """See `Sampler`."""
        return self._gp.recommend(among)

    def finalists(self, count: int) -> list[Configuration]:
        """See `Sampler`."""
        return self._gp.finalists(count)
