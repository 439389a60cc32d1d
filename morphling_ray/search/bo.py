"""The paper's baseline: Bayesian optimisation of the objective itself, "similar to CherryPick", with scikit-learn.

    value(x) ~ Normal(mean(x), sd(x)^2)     Gaussian process on the penalised objective, standardised
    next     = argmax mean(x) + weight sd(x)     over the candidates that are untried (upper confidence bound)

CherryPick (Alipourfard et al., NSDI 2017) uses a Matern 5/2 kernel; what else the paper does not say is decided here:
one length scale for each column of the encoded configuration, an amplitude and a noise, all by the largest marginal
likelihood; and a weight of 2. The paper begins with fixed corners of the space.
"""

import warnings
from collections.abc import Sequence

import numpy as np

from morphling_ray.meta.encoding import Encoding
from morphling_ray.objective import Objective
from morphling_ray.search.grid import GridSampler
from morphling_ray.search.levels import FloatArray
from morphling_ray.space import SearchSpace

_RESTARTS = 2  # of the search for hyper-parameters, beside the one from the start values


class BoSampler(GridSampler):
    """Gaussian process and upper confidence bound. A `Sampler`.

    Args:
        space: The candidates.
        objective: What to maximise.
        seed: Of the restarts in the search for hyper-parameters.
        learned: Unused: it takes nothing from earlier tasks.
        corners: Begin with 8 corners, as the paper does: each ordinal knob at its lowest or highest value, categorical
            ones at their first. With up to three ordinal knobs these are all corners there are; beyond, a fractional
            factorial design. Otherwise begin with as many points of an even sweep as there are knobs, and one.
        weight: How many standard deviations are added to the mean.
    """

    def __init__(
        self,
        space: SearchSpace,
        objective: Objective,
        *,
        seed: int,
        learned: None = None,
        corners: bool = True,
        weight: float = 2.0,
    ) -> None:
        super().__init__(space, objective, seed=seed)
        self._seed = seed
        self._weight = weight
        self._encoding = Encoding.of_space(space.knobs)
        self._z = self._encoding.encode(self._history.points)  # (n, columns)
        self._design = self._levels.corners(self._table) if corners else []
        self._begin = len(space.knobs) + 1

    def _choose(self, free: Sequence[int]) -> int:
        untried = set(free)
        corner = next((i for i in self._design if i in untried), None)
        if corner is not None:
            return corner
        value = self._penalised()
        if len(value) < self._begin or not max(value.values()) > 0:
            return super()._choose(free)  # a model of nothing but failures knows nothing
        mean, sd = self._posterior()
        bound = mean + self._weight * sd
        return int(free[int(bound[free].argmax())])

    def predict(self) -> FloatArray:
        """Expected penalised objective of every configuration, shape `(n,)`; something must have been measured."""
        return self._posterior()[0]

    def _posterior(self) -> tuple[FloatArray, FloatArray]:
        """Mean and standard deviation of the penalised objective of every point, shape `(n,)` each."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.gaussian_process import GaussianProcessRegressor, kernels

        if len(self._z) < len(self._history.points):
            self._z = self._encoding.encode(self._history.points)
        value = self._penalised()
        known = np.array(list(value))
        scales = np.full(self._z.shape[1], 0.5)
        kernel = kernels.ConstantKernel(1.0, (0.1, 100.0)) * kernels.Matern(scales, (0.05, 20.0), nu=2.5)
        model = GaussianProcessRegressor(
            kernel + kernels.WhiteKernel(0.01, (1e-4, 1.0)),
            normalize_y=True,
            n_restarts_optimizer=_RESTARTS,
            random_state=self._seed + len(value),
        )
        with warnings.catch_warnings():  # a hyper-parameter at its bound is what few points often have to say
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(self._z[known], np.array(list(value.values())))
        mean, sd = model.predict(self._z, return_std=True)
        return np.asarray(mean), np.asarray(sd)
