"""BoTorch as in its tutorials: an exact Gaussian process and log expected improvement, over the untried candidates.

model    SingleTaskGP with its default priors on configurations scaled to [0, 1] (log-scaled knobs in logs) and on
         standardised values of the penalised objective; MixedSingleTaskGP where a knob is categorical
next     the largest LogExpectedImprovement over the best value so far, by evaluating every untried candidate; while
         others are being measured, its batch version with these as pending points
start    scrambled Sobol points, 5 of them, each at the nearest untried candidate
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from morphling_ray.meta.encoding import knob_code
from morphling_ray.objective import Objective
from morphling_ray.search.levels import FloatArray, Levels
from morphling_ray.search.measured import MeasuredSampler
from morphling_ray.space import SearchSpace

_START = 5
_CHUNK = 2048  # candidates that are evaluated at once
_MC_SAMPLES = 128


class BotorchSampler(MeasuredSampler):
    """Gaussian process and log expected improvement. A `Sampler`.

    Args:
        space: The candidates.
        objective: What to maximise.
        seed: Of the start, and of what the library draws.
        learned: Unused: it takes nothing from earlier tasks.
    """

    def __init__(self, space: SearchSpace, objective: Objective, *, seed: int, learned: None = None) -> None:
        super().__init__(space, objective, np.random.default_rng(seed))
        self._seed = seed
        self._levels = Levels(space.knobs)
        self._started = 0

    def _choose(self, free: Sequence[int]) -> int:
        value = self._penalised()
        if len(value) < _START or len(set(value.values())) == 1:  # equal values cannot be standardised
            return self._start(free)
        x = self._inputs()
        known = list(value)
        pending = [p for p in dict.fromkeys(self._history.pending) if p not in value]
        with _seeded(self._seed + len(known)):
            model = self._fit(x[known], np.array(list(value.values())))
            gain = self._gain(model, max(value.values()), x[free], x[pending])
        return int(free[int(gain.argmax())])

    def _start(self, free: Sequence[int]) -> int:
        import torch
        from botorch.utils.sampling import draw_sobol_samples

        self._started += 1
        cube = torch.tensor([[0.0], [1.0]], dtype=torch.float64).expand(2, len(self._levels.sizes))
        point = draw_sobol_samples(cube, n=self._started, q=1, seed=self._seed)[-1, 0].numpy()
        levels = self._levels.of(self._history.points)
        return self._levels.nearest(levels, np.floor(point * self._levels.sizes), free)

    def _inputs(self) -> FloatArray:
        """Configurations as the model takes them, shape `(n, d)`: scaled numbers, and positions of categories."""
        points, knobs = self._history.points, self._history.space.knobs
        out = self._levels.of(points)
        for j, knob in enumerate(knobs):
            if knob.kind == "ordinal":
                out[:, j] = knob_code(knob, knob.values).encode([c[knob.name] for c in points])[:, 0]
        return out

    def _fit(self, x: FloatArray, values: FloatArray) -> Any:
        """The model of what was measured, shapes `(k, d)` and `(k,)`."""
        import torch
        from botorch.fit import fit_gpytorch_mll
        from botorch.models import MixedSingleTaskGP, SingleTaskGP
        from botorch.models.transforms import Standardize
        from gpytorch.mlls import ExactMarginalLogLikelihood

        inputs, outputs = torch.from_numpy(x), torch.from_numpy(values)[:, None]
        categorical = [int(j) for j in np.flatnonzero(self._levels.categorical)]
        if categorical:
            model = MixedSingleTaskGP(inputs, outputs, cat_dims=categorical, outcome_transform=Standardize(m=1))
        else:
            model = SingleTaskGP(inputs, outputs, outcome_transform=Standardize(m=1))
        fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
        return model

    def _gain(self, model: Any, best: float, candidates: FloatArray, pending: FloatArray) -> FloatArray:
        """Log expected improvement of candidates, shape `(n,)`."""
        import torch
        from botorch.acquisition import LogExpectedImprovement, qLogExpectedImprovement
        from botorch.sampling import SobolQMCNormalSampler

        if len(pending):
            sampler = SobolQMCNormalSampler(torch.Size([_MC_SAMPLES]), seed=self._seed)
            waiting = torch.from_numpy(pending)
            acquisition = qLogExpectedImprovement(model, best_f=best, sampler=sampler, X_pending=waiting)
        else:
            acquisition = LogExpectedImprovement(model, best_f=best)
        parts = [candidates[i : i + _CHUNK] for i in range(0, len(candidates), _CHUNK)]
        with torch.no_grad():
            return np.concatenate([acquisition(torch.from_numpy(part)[:, None]).numpy() for part in parts])


def _seeded(seed: int) -> Any:
    from botorch.utils.sampling import manual_seed

    return manual_seed(seed)
