"""Surfaces as the work of several bottlenecks, the same for all tasks; tasks differ in how much they need of each.

A request takes its time at each of K resources, and what it takes there is a product: what the task needs, times an
effect for each knob's value. A rate is one over their sum, or over the largest where they work at the same time:

    log y_t(x) = +- log(sum_k exp(p u_tk(x))) / p,      u_tk(x) = need_tk + sum_i effect_ki(x_i)

with + for a latency and - for a rate, p = 1 for a sum and p = 4 for about the largest. So turning points lie elsewhere
for each task although the effects are common, which neither a mean of earlier surfaces nor a mixture of two can say.
Whether a configuration works is told alike: it does as long as the largest of several such products stays below 1.

z       encoded configurations, shape (n, d);  h  hat functions of z, shape (n, P)
effects of the bottlenecks, shape (K, P);  needs  of tasks, shape (T, K); both in logs
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from morphling_ray.meta.gaussian import Observations

if TYPE_CHECKING:
    import torch

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]

BOTTLENECKS = 4
ENOUGH = 3  # tasks from which needs can be told from effects
_POWERS = (-1.0, -4.0, 1.0, 4.0)  # -p for a rate
_STARTS = 4  # of the fit, for each power
_KEPT = 4  # of all of them, after the first of two rounds
_ROUNDS = (100, 400)  # steps of Adam; the second begins quickly again, and so leaves poor optima
_RATE = 0.15
_ROWS = 100  # of each task, at most
_EFFECTS_SD = 2.0  # of the prior of effects, in logs
_WALL_POWER = 4.0
_UNSURE = 0.002  # that even the lowest wall stops a configuration
_NOISE_SD = 0.1  # what the fit may miss a value by, in logs
_NEAR, _FAR = 0.05, 0.7  # how far it strays from there, as a share of how tasks differ


class Hats:
    """Piecewise linear functions of each column, which go on straight beyond the last knots.

    Args:
        centres: Encoded configurations that were learned from, shape `(U, d)`; their values are the knots.
    """

    def __init__(self, centres: FloatArray) -> None:
        self._knots = [np.unique(column) for column in centres.T]
        self.count = sum(map(len, self._knots))
        """P."""

    def __call__(self, z: FloatArray) -> FloatArray:
        """h, shape `(n, P)`."""
        parts = []
        for column, knots in zip(z.T, self._knots):
            out = np.zeros((len(z), len(knots)))
            if len(knots) == 1:
                out[:] = 1.0
            else:
                left = np.clip(np.searchsorted(knots, column, side="right") - 1, 0, len(knots) - 2)
                share = (column - knots[left]) / (knots[left + 1] - knots[left])
                rows = np.arange(len(z))
                out[rows, left], out[rows, left + 1] = 1.0 - share, share
            parts.append(out)
        return np.hstack([np.empty((len(z), 0)), *parts])


@dataclass(frozen=True, eq=False)
class Bottlenecks:
    """What was learned, for M metrics.

    Attributes:
        effects: Shape `(M, K, P)`.
        needs: Of the earlier tasks, shape `(M, T, K)`; the mean of the others where a task lacks the metric.
        power: p, negative for a rate, shape `(M,)`.
        misfit: Root mean square of what is missed, in logs, shape `(M,)`.
        wall_effects: Of what must stay below 1, such as time over what is allowed, or memory over what there is; shape
            `(K, P)`, or `(0, P)` where nothing ever failed.
        wall_needs: Of the earlier tasks, shape `(T, K)`.
    """

    effects: FloatArray
    needs: FloatArray
    power: FloatArray
    misfit: FloatArray
    wall_effects: FloatArray
    wall_needs: FloatArray

    def of_tasks(self, which: Sequence[int]) -> "Bottlenecks":
        """The same with the needs of some of the tasks only."""
        return replace(self, needs=self.needs[:, list(which)], wall_needs=self.wall_needs[list(which)])

    def check(self, metrics: int, tasks: int, hats: int) -> None:
        """Raises ValueError unless all arrays fit together."""
        k = self.needs.shape[-1]
        shapes: dict[str, tuple[int, ...]] = {"effects": (metrics, k, hats), "needs": (metrics, tasks, k)}
        shapes |= {"power": (metrics,), "misfit": (metrics,)}
        walls = self.wall_needs.shape[-1]
        shapes |= {"wall_effects": (walls, hats), "wall_needs": (tasks, walls)}
        for name, shape in shapes.items():
            values = getattr(self, name)
            if values.shape != shape or not np.isfinite(values).all():
                raise ValueError(f"{name} of the bottlenecks must be finite and of shape {shape}, got {values.shape}")
        if not (k and (self.power != 0).all() and (self.misfit >= 0).all()):
            raise ValueError("there must be a bottleneck, with a power and a misfit")

    def drawn(self, weights: FloatArray, hats: FloatArray, which: Sequence[int]) -> "Drawn":
        """Tasks that there might be, always the same ones.

        Args:
            weights: Of the earlier tasks in each draw, shape `(J, T)`; it strays from their mean as tasks differ.
            hats: h of n candidates, shape `(n, P)`.
            which: Metrics.
        """
        rng = np.random.default_rng(0)
        stray = np.exp(rng.uniform(np.log(_NEAR), np.log(_FAR), (len(weights), 1)))

        def strayed(needs: FloatArray) -> FloatArray:  # (T, K) to (J, K)
            means = weights @ needs
            return np.asarray(means + stray * needs.std(0) * rng.standard_normal(means.shape))

        p, some = np.abs(self.power)[:, None], list(which)
        needs = np.stack([strayed(needs) for needs in self.needs], 1)
        times = np.einsum("np,mkp->mnk", hats, self.effects)
        return Drawn(
            needs=_exp(p * needs)[:, some],
            times=_exp(p[..., None] * times)[some],
            power=self.power[some],
            wall_needs=_exp(_WALL_POWER * strayed(self.wall_needs)),
            wall_times=_exp(_WALL_POWER * hats @ self.wall_effects.T),
        )


@dataclass(frozen=True, eq=False)
class Drawn:
    """Surfaces of tasks that there might be, computed where they are asked for. See `ensemble.Templates`.

    Needs and effects are to the power p and no logs, so that all times together are a product of matrices.

    Attributes:
        needs: Of each task and metric, shape `(J, M, K)`.
        times: Effects of n candidates, shape `(M, n, K)`.
        power: Of each metric, negative for a rate, shape `(M,)`.
        wall_needs: Of each task, shape `(J, K)`.
        wall_times: Effects on what must stay below 1, of n candidates, shape `(n, K)`.
    """

    needs: FloatArray
    times: FloatArray
    power: FloatArray
    wall_needs: FloatArray
    wall_times: FloatArray

    @property
    def count(self) -> int:
        """J."""
        return len(self.needs)

    def at(self, which: IntArray, points: IntArray) -> FloatArray:
        """Log-metrics of some tasks at k points, shape `(len(which), k M)`, metrics varying fastest."""
        out = np.empty((len(which), len(points), len(self.power)))
        for m, power in enumerate(self.power):
            out[:, :, m] = np.log(self.needs[which, m] @ self.times[m, points].T) / power
        return out.reshape(len(which), -1)

    def observed(self, obs: Observations) -> FloatArray:
        """Log-metrics of all tasks where something was observed, shape `(J, N)`."""
        out = np.empty((self.count, len(obs)))
        for m, power in enumerate(self.power):
            mine = obs.metric == m
            out[:, mine] = np.log(self.needs[:, m] @ self.times[m, obs.point[mine]].T) / power
        return out

    def works(self, which: IntArray | None, points: IntArray) -> FloatArray:
        """Probability that k points work under some tasks, or under all, shape `(len(which), k)`."""
        needs = self.wall_needs if which is None else self.wall_needs[which]
        height = (needs @ self.wall_times[points].T) ** (1 / _WALL_POWER)  # below 1 where it works
        return np.asarray(np.clip(1.0 / (1.0 + height), _UNSURE, 1.0 - _UNSURE))


def _exp(logs: FloatArray) -> FloatArray:
    """Neither 0 nor infinite, and products of two of them neither."""
    return np.asarray(np.exp(np.clip(logs, -300.0, 300.0)))


def fit(
    z: Sequence[FloatArray],
    logs: Sequence[FloatArray],
    works: Sequence[BoolArray],
    centres: FloatArray,
    rng: np.random.Generator,
) -> Bottlenecks:
    """Finds effects and needs, each metric by itself, with the power that fits best.

    Args:
        z: By task, encoded configurations, shape `(n_t, d)`.
        logs: By task, log-metrics, shape `(M, n_t)`; NaN where missing.
        works: By task, which configurations work, shape `(n_t,)`.
        centres: See `Hats`.
        rng: Draws rows and where the fit begins.
    """
    hats = Hats(centres)
    found = [_fit_metric(_drawn_rows(z, [y[m] for y in logs], hats, rng), rng) for m in range(len(logs[0]))]
    failing = [None if w.all() else w for w in works]
    walls = np.zeros((0, hats.count)), np.zeros((len(z), 0))
    if any(w is not None and w.any() for w in failing):
        walls = _fit_walls(_drawn_rows(z, [np.where(w, -1.0, 1.0) for w in works], hats, rng), rng)
    return Bottlenecks(
        effects=np.array([f[0] for f in found]),
        needs=np.array([f[1] for f in found]),
        power=np.array([f[2] for f in found]),
        misfit=np.array([f[3] for f in found]),
        wall_effects=walls[0],
        wall_needs=walls[1],
    )


@dataclass(frozen=True, eq=False)
class _Rows:
    """Up to R rows of every task: hat functions (T, R, P), values (T, R), weights (T, R) that add to 1; 0: no row."""

    hats: FloatArray
    values: FloatArray
    weight: FloatArray

    @property
    def taught(self) -> BoolArray:
        """Which tasks have rows, shape `(T,)`."""
        return np.asarray(self.weight.any(1))


def _drawn_rows(z: Sequence[FloatArray], values: Sequence[FloatArray], hats: Hats, rng: np.random.Generator) -> _Rows:
    rows = [rng.permutation(np.flatnonzero(np.isfinite(y)))[:_ROWS] for y in values]
    shape = len(z), max(map(len, rows))
    out = _Rows(np.zeros((*shape, hats.count)), np.zeros(shape), np.zeros(shape))
    taught = sum(len(r) > 0 for r in rows)
    for t, r in enumerate(rows):
        if len(r):
            out.hats[t, : len(r)], out.values[t, : len(r)] = hats(z[t][r]), values[t][r]
            out.weight[t, : len(r)] = 1.0 / len(r) / taught
    return out


def _fit_metric(rows: _Rows, rng: np.random.Generator) -> tuple[FloatArray, FloatArray, float, float]:
    """Effects, needs, power and misfit of one metric."""
    import torch

    power = np.repeat(_POWERS, _STARTS)  # (B,)
    level = rows.values.sum(1) / np.maximum(np.count_nonzero(rows.weight, 1), 1)
    y, weight = torch.as_tensor(rows.values), torch.as_tensor(rows.weight)

    def surprise(told: "torch.Tensor") -> "torch.Tensor":
        return (weight * (told - y) ** 2).sum((1, 2)) / (2 * _NOISE_SD**2)

    found = _best(rows, power, np.sign(power)[:, None] * level, surprise, rng)
    return found.effects[0], found.needs[0], float(found.power[0]), float(_NOISE_SD * np.sqrt(2 * found.surprise[0]))


def _fit_walls(rows: _Rows, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
    """Effects and needs of what must stay below 0 for a configuration to work."""
    import torch

    side, weight = torch.as_tensor(rows.values), torch.as_tensor(rows.weight)

    def surprise(told: "torch.Tensor") -> "torch.Tensor":
        return (weight * torch.nn.functional.softplus(-side * told)).sum((1, 2))

    power, level = np.full(_STARTS, _WALL_POWER), np.full((_STARTS, len(rows.values)), -1.0)
    found = _best(rows, power, level, surprise, rng)
    return found.effects[0], found.needs[0]


@dataclass(frozen=True, eq=False)
class _Fits:
    """B fits: p with its sign (B,), effects (B, K, P), needs (B, T, K), and what they are off by (B,)."""

    power: FloatArray
    effects: FloatArray
    needs: FloatArray
    surprise: FloatArray

    def best(self, count: int) -> "_Fits":
        """Those that are least off, the best one first."""
        order = self.surprise.argsort(kind="stable")[:count]
        return _Fits(self.power[order], self.effects[order], self.needs[order], self.surprise[order])


Surprise: TypeAlias = "Callable[[torch.Tensor], torch.Tensor]"
"""What is minimised, a mean over rows, of the signed log of all times together, `(B, T, R)` to `(B,)`."""


def _best(rows: _Rows, power: FloatArray, level: FloatArray, surprise: Surprise, rng: np.random.Generator) -> _Fits:
    """The best fit from B starts, in a few rounds of fewer each (Loshchilov & Hutter 2017, "SGDR", for the restarts).

    Args:
        rows: What is fitted.
        power: p of each start, shape `(B,)`; negative where it is a rate.
        level: Where needs begin, shape `(B, T)`.
        surprise: See there.
        rng: Draws the starts.
    """
    starts, tasks = level.shape
    fits = _Fits(
        power=power,
        needs=level[:, :, None] + 0.5 * rng.standard_normal((starts, tasks, BOTTLENECKS)),
        effects=0.5 * rng.standard_normal((starts, BOTTLENECKS, rows.hats.shape[2])),
        surprise=np.zeros(starts),
    )
    for steps in _ROUNDS:
        fits = _descend(rows, fits, steps, surprise).best(_KEPT)
    fits.needs[:, ~rows.taught] = fits.needs[:, rows.taught].mean(1, keepdims=True)
    return fits


def _descend(rows: _Rows, fits: _Fits, steps: int, surprise: Surprise) -> _Fits:
    """All fits at once, after some more steps."""
    import torch

    (tasks, most), starts, k = rows.values.shape, len(fits.power), BOTTLENECKS
    h = torch.as_tensor(rows.hats.reshape(tasks * most, -1).T.copy())  # (P, T R)
    sign, p = (torch.as_tensor(f(fits.power))[:, None, None] for f in (np.sign, np.abs))
    needs, effects = (torch.tensor(a, requires_grad=True) for a in (fits.needs, fits.effects))
    optimiser = torch.optim.Adam([needs, effects], lr=_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as for smoothness: the matrices are small
    try:
        for step in range(steps + 1):
            # As in `Drawn`, to the power p and no logs: all times together are then a product of matrices.
            times = torch.exp(torch.clamp((p * effects).reshape(starts * k, -1) @ h, -300.0, 300.0))
            times = times.reshape(starts, k, tasks, most).transpose(1, 2)  # (B, T, K, R)
            amounts = torch.exp(torch.clamp(p * needs, -300.0, 300.0))
            loss = surprise(sign * torch.log(torch.matmul(amounts[:, :, None], times)[:, :, 0]) / p)
            if step == steps:
                break
            ridge = (effects**2).sum((1, 2)) / (2 * _EFFECTS_SD**2) / float(np.count_nonzero(rows.weight))
            optimiser.zero_grad()
            (loss + ridge).sum().backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
    finally:
        torch.set_num_threads(threads)
    return _Fits(fits.power, effects.detach().numpy(), needs.detach().numpy(), loss.detach().numpy())
