"""Hyper-parameters by exact marginal likelihood, summed over tasks and maximised with a few steps of Adam (torch).

T   tasks in the batch;  r  rows of each;  M  metrics;  N = M r  entries of a task, metric by metric
z       encoded rows, shape (T, r, d)
y       entries, shape (T, N), 0 where missing
mask    1 where there is an entry, else 0, shape (T, N)

Every parameter has a log-normal prior around a sensible value, so that two tasks give an answer as well as forty do.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

FloatArray = npt.NDArray[np.float64]
Parameters = dict[str, torch.Tensor]

_LEARNING_RATE = 0.1
_PRIOR_SD = 1.0  # of the log of each parameter


@dataclass(frozen=True)
class Batch:
    """Rows of several tasks, padded to one length.

    Attributes:
        z: Shape `(T, r, d)`.
        y: Shape `(T, M r)`; what is left after the mean.
        mask: Shape `(T, M r)`.
        fixed: Covariance that is not learned, up to the factor `spread`^2, shape `(T, M r, M r)`.
        correlation: Between metrics, shape `(M, M)`.
        groups: Knob of each column of z, shape `(d,)`.
    """

    z: FloatArray
    y: FloatArray
    mask: FloatArray
    fixed: FloatArray
    correlation: FloatArray
    groups: npt.NDArray[np.int64]


def maximise(batch: Batch, start: Mapping[str, FloatArray], steps: int) -> tuple[dict[str, FloatArray], float]:
    """Maximum a posteriori parameters, and the log likelihood that they give per entry.

    Args:
        batch: What to explain.
        start: By name `spread` (), `slope`, `offset`, `residual`, `white` (M,) and `length` (knobs,), all positive: the
            centres of the priors and the first guess. A `spread` or `slope` of 0 is left out of the model.
        steps: Of Adam.
    """
    centre = {name: torch.log(torch.as_tensor(value)) for name, value in start.items() if np.all(value > 0)}
    parameters = {name: value.clone().requires_grad_(True) for name, value in centre.items()}
    tensors = {name: torch.as_tensor(getattr(batch, name)) for name in ("z", "y", "mask", "fixed", "correlation")}
    groups = torch.as_tensor(batch.groups)
    optimiser = torch.optim.Adam(parameters.values(), lr=_LEARNING_RATE)

    def loss() -> tuple[torch.Tensor, torch.Tensor]:
        likelihood = _log_likelihood(parameters, tensors, groups).sum()
        penalty = sum(((parameters[k] - centre[k]) ** 2).sum() for k in parameters) / (2.0 * _PRIOR_SD**2)
        return likelihood, penalty - likelihood

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the matrices are small: more threads cost more than they bring
    try:
        for _ in range(steps):
            optimiser.zero_grad()
            _backward(loss)
            optimiser.step()
        with torch.no_grad():
            per_entry = float(loss()[0] / tensors["mask"].sum())
    finally:
        torch.set_num_threads(threads)
    learned = {name: value.detach().exp().numpy() for name, value in parameters.items()}
    return {name: np.asarray(learned.get(name, np.zeros_like(start[name]))) for name in start}, per_entry


def _backward(loss: Callable[[], tuple[torch.Tensor, torch.Tensor]]) -> None:
    loss()[1].backward()  # type: ignore[no-untyped-call]


def _log_likelihood(p: Parameters, data: Mapping[str, torch.Tensor], groups: torch.Tensor) -> torch.Tensor:
    """Log density of each task's entries, shape `(T,)`."""
    z, y, mask = data["z"], data["y"], data["mask"]
    scaled = z / torch.exp(p["length"])[groups]  # (T, r, d)
    gap = torch.cdist(scaled, scaled, compute_mode="donot_use_mm_for_euclid_dist")  # exact 0 on the diagonal
    r5 = math.sqrt(5.0) * gap
    near = (1.0 + r5 + r5 * r5 / 3.0) * torch.exp(-r5)  # (T, r, r)
    same = torch.eye(z.shape[1], dtype=z.dtype).expand_as(near)
    own = _kron(p["residual"], near) + _kron(p["offset"], torch.ones_like(near)) + _kron(p["white"], same)
    if "slope" in p:
        own = own + _kron(p["slope"], z @ z.transpose(1, 2))
    rho = data["correlation"].repeat_interleave(z.shape[1], 0).repeat_interleave(z.shape[1], 1)  # (N, N)
    k = own * rho
    if "spread" in p:
        k = k + torch.exp(2.0 * p["spread"]) * data["fixed"]
    both = mask[:, :, None] * mask[:, None, :]
    k = k * both + torch.diag_embed(1.0 - mask) + 1e-8 * torch.eye(k.shape[-1], dtype=k.dtype)
    factor = torch.linalg.cholesky(k)
    white = torch.linalg.solve_triangular(factor, (y * mask)[:, :, None], upper=False)[..., 0]
    logdet = torch.log(torch.diagonal(factor, dim1=1, dim2=2)).sum(1)
    density: torch.Tensor = -0.5 * (white**2).sum(1) - logdet - 0.5 * math.log(2.0 * math.pi) * mask.sum(1)
    return density


def _kron(log_sd: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """`sd sd^T` (M, M) times each `rows` (T, r, r), as blocks of a `(T, M r, M r)` matrix."""
    sd = torch.exp(log_sd)
    blocks = torch.einsum("m,k,tij->tmikj", sd, sd, rows)
    t, m, r = blocks.shape[:3]
    return blocks.reshape(t, m * r, m * r)
