"""How smooth surfaces are: exact marginal likelihood, summed over tasks, maximised with a few steps of Adam (torch).

Each task's log-metric is a Gaussian process of its own around its mean: a slope for each knob, a smooth Matern-5/2 part
and a white part. What the parameters are is common to all tasks.

T   tasks;  r  rows of each, padded;  M  metrics

Every parameter has a log-normal prior around a sensible value, so that two tasks give an answer as well as forty do.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

FloatArray = npt.NDArray[np.float64]
Parameters = dict[str, torch.Tensor]

_STEPS = 60
_LEARNING_RATE = 0.1
_PRIOR_SD = 1.0  # of the log of each parameter
_LEVEL_SD = 0.5  # of what the mean of a task's rows leaves of its level


@dataclass(frozen=True, eq=False)
class Smoothness:
    """Standard deviations in logs, shape `(M,)`, and length scales by knob, in its ranges.

    Attributes:
        slope: Of a knob's trend over its range.
        smooth: Of the smooth part.
        white: Of the white part.
        length: Of the smooth part, shape `(knobs,)`.
    """

    slope: FloatArray
    smooth: FloatArray
    white: FloatArray
    length: FloatArray


def smoothness(z: FloatArray, y: FloatArray, mask: FloatArray, groups: npt.NDArray[np.int64], knobs: int) -> Smoothness:
    """Maximum a posteriori parameters.

    Args:
        z: Encoded rows, shape `(T, r, d)`.
        y: Log-metrics, shape `(T, M, r)`; 0 where missing.
        mask: 1 where there is an entry, else 0, shape `(T, M, r)`.
        groups: Knob of each column of z, shape `(d,)`.
        knobs: How many there are.
    """
    metrics = y.shape[1]
    level = y.sum(2, keepdims=True) / np.maximum(mask.sum(2, keepdims=True), 1.0)
    rows, values, known = (torch.as_tensor(a) for a in (z, (y - level) * mask, mask))
    centre = {"slope": [0.5] * metrics, "smooth": [0.5] * metrics, "white": [0.05] * metrics, "length": [0.7] * knobs}
    start = {name: torch.log(torch.tensor(values, dtype=torch.float64)) for name, values in centre.items()}
    parameters = {name: value.clone().requires_grad_(True) for name, value in start.items()}
    optimiser = torch.optim.Adam(parameters.values(), lr=_LEARNING_RATE)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the matrices are small: more threads cost more than they bring
    try:
        for _ in range(_STEPS):
            optimiser.zero_grad()
            penalty = sum(((parameters[k] - start[k]) ** 2).sum() for k in parameters) / (2.0 * _PRIOR_SD**2)
            loss = penalty - log_likelihood(parameters, rows, values, known, torch.as_tensor(groups)).sum()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    finally:
        torch.set_num_threads(threads)
    return Smoothness(**{name: value.detach().exp().numpy() for name, value in parameters.items()})


def log_likelihood(
    p: Parameters, z: torch.Tensor, y: torch.Tensor, mask: torch.Tensor, groups: torch.Tensor
) -> torch.Tensor:
    """Log density of each task's metrics, shape `(T, M)`. Parameters in logs, the rest as for `smoothness`."""
    scaled = z / torch.exp(p["length"])[groups]  # (T, r, d)
    gap = torch.cdist(scaled, scaled, compute_mode="donot_use_mm_for_euclid_dist")  # exact 0 on the diagonal
    r5 = math.sqrt(5.0) * gap
    near = (1.0 + r5 + r5 * r5 / 3.0) * torch.exp(-r5)  # (T, r, r)
    slope, smooth, white = (torch.exp(2.0 * p[name])[:, None, None] for name in ("slope", "smooth", "white"))
    same = torch.eye(z.shape[1], dtype=z.dtype)
    trend = (z @ z.transpose(1, 2))[:, None]
    k = slope * trend + smooth * near[:, None] + white * same + _LEVEL_SD**2  # (T, M, r, r)
    k = k * mask[..., :, None] * mask[..., None, :] + torch.diag_embed(1.0 - mask) + 1e-8 * same
    factor = torch.linalg.cholesky(k)
    whitened = torch.linalg.solve_triangular(factor, (y * mask)[..., None], upper=False)[..., 0]
    logdet = torch.log(torch.diagonal(factor, dim1=-2, dim2=-1)).sum(-1)
    density: torch.Tensor = -0.5 * (whitened**2).sum(-1) - logdet - 0.5 * math.log(2.0 * math.pi) * mask.sum(-1)
    return density
