"""Algorithm 2 of the Morphling paper (SoCC 2021): search with a meta-model that adapts by gradient descent.

theta'  = theta_i - alpha * grad L(f_theta_i)     on what was measured (line 3, Eq. 3)
Acq(x)  = f(x) + delta * |f_theta_i(x) - f_theta'(x)|     (Eq. 6)
next    = argmax Acq over the candidates that are untried; best = the best that was measured

`maml` starts from Algorithm 1's parameters, `ernest` (the paper's Ernest) from random ones, and `finetune` (its
Fine-Tuning) from parameters trained on all earlier tasks at once. The paper does not say how these two descend. As few
steps as MAML is made for would starve them, so they fit what was measured with Adam, from the start again each time.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from morphling_ray.meta import maml
from morphling_ray.meta.maml import Learned, MamlSettings, initial, inputs
from morphling_ray.meta.network import fit, network, one_thread, predict
from morphling_ray.meta.tasks import TrainingTask
from morphling_ray.objective import Objective
from morphling_ray.search.grid import GridSampler
from morphling_ray.search.levels import FloatArray
from morphling_ray.space import SearchSpace

MAML = MamlSettings()
ERNEST = replace(MAML, online_optimiser="adam", online_rate=0.01, online_steps=100, restart=True, corners=True)
FINETUNE = replace(MAML, inner_steps=0, online_optimiser="adam", online_rate=0.01, online_steps=30, restart=True)


def learn(tasks: Sequence[TrainingTask], objective: Objective, seed: int) -> Learned | None:
    """What `maml` takes from earlier tasks."""
    return maml.learn(tasks, objective, seed, MAML)


def pretrain(tasks: Sequence[TrainingTask], objective: Objective, seed: int) -> Learned | None:
    """What `finetune` takes from earlier tasks."""
    return maml.learn(tasks, objective, seed, FINETUNE)


class MamlSampler(GridSampler):
    """Adapts a network after every measurement. A `Sampler`.

    The objective is predicted as a share of the best that was measured, as in training it was of the best there is. A
    knob or category that the earlier tasks did not have is an input of its own with random weights; without earlier
    tasks all are.

    Args:
        space: The candidates.
        objective: What to maximise.
        seed: Of random weights, and of the part of a very large space.
        learned: What `learn` or `pretrain` returned, or None.
        settings: By default those that it was learned with.
    """

    _default = MAML

    def __init__(
        self,
        space: SearchSpace,
        objective: Objective,
        *,
        seed: int,
        learned: Learned | None = None,
        settings: MamlSettings | None = None,
    ) -> None:
        super().__init__(space, objective, seed=seed)
        self._settings = settings or (learned.settings if learned is not None else self._default)
        rng = np.random.default_rng([seed, 1])
        self._encoding, self._start = initial(learned, space.knobs, self._settings, rng)
        self._before = self._after = self._start  # theta_i and theta'
        self._x = torch.zeros(0)
        self._known: dict[int, int] = {}  # how many measurements of each point theta' has seen
        self._design = self._levels.corners(self._table) if self._settings.corners else []

    def predict(self) -> FloatArray:
        """Objective of every configuration as a share of the best measured, given all measurements, shape `(n,)`."""
        with one_thread():
            self._adapt()
            net = network(len(self._encoding.groups), self._settings.activation)
            return np.asarray(predict(net, self._after, self._inputs()).numpy(), np.float64)

    def _choose(self, free: Sequence[int]) -> int:
        untried = set(free)
        corner = next((i for i in self._design if i in untried), None)
        if corner is not None:
            return corner
        if len(free) == 1:
            return free[0]
        with one_thread():
            self._adapt()
            return int(free[int(self._acquisition()[free].argmax())])

    def _adapt(self) -> None:
        """One update of theta' (lines 3 and 8), if anything was measured since the last."""
        known = {point: len(values) for point, values in self._values.items()}
        points = [point for point in known if known[point] != self._known.get(point)]
        if not points:
            return
        self._known = known
        value, settings = self._penalised(), self._settings
        if settings.online_data == "all":
            points = list(known)
        scale = max(value.values()) or 1.0  # nothing works: all are 0
        y = torch.tensor([value[point] / scale for point in points])
        self._before, self._after = (
            self._after,
            fit(
                network(len(self._encoding.groups), settings.activation),
                self._start if settings.restart else self._after,
                self._inputs()[points],
                y,
                optimiser=settings.online_optimiser,
                rate=settings.alpha if settings.online_rate is None else settings.online_rate,
                steps=settings.inner_steps if settings.online_steps is None else settings.online_steps,
            ),
        )

    def _acquisition(self) -> FloatArray:
        """Acq of every point (Eq. 6), shape `(n,)`."""
        net = network(len(self._encoding.groups), self._settings.activation)
        before, after = (predict(net, theta, self._inputs()) for theta in (self._before, self._after))
        f = before if self._settings.mean == "before" else after
        return np.asarray((f + self._settings.delta * (before - after).abs()).numpy(), np.float64)

    def _inputs(self) -> torch.Tensor:
        """All points as the network takes them, shape `(n, d)`."""
        if len(self._x) < len(self._history.points):
            x = inputs(self._encoding, self._history.points, self._settings.input_scale)
            self._x = torch.tensor(x, dtype=torch.float32)
        return self._x


class ErnestSampler(MamlSampler):
    """The same from random parameters, whatever is known of earlier tasks. A `Sampler`."""

    _default = ERNEST

    def __init__(self, space: SearchSpace, objective: Objective, *, seed: int, learned: None = None) -> None:
        super().__init__(space, objective, seed=seed)


class FinetuneSampler(MamlSampler):
    """The same from parameters that were trained on all earlier tasks at once. A `Sampler`."""

    _default = FINETUNE
