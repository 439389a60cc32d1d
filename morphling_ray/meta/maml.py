"""Algorithm 1 of the Morphling paper (SoCC 2021): initial parameters from earlier tasks by MAML, second order.

T tasks, K datapoints of each, d inputs.
x        encoded configurations, scaled; y the objective as a share of the task's best, 0 where a configuration fails
theta    the meta-parameters; theta_i those adapted to task i (Eq. 3)
support  the datapoints that a task adapts to; query those that its loss is then taken on (Eq. 2)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from morphling_ray.errors import InputError
from morphling_ray.meta.encoding import Encoding
from morphling_ray.meta.network import (
    Activation,
    Adam,
    Optimiser,
    Theta,
    descend,
    loss,
    network,
    one_thread,
    random_theta,
)
from morphling_ray.meta.tasks import TrainingTask
from morphling_ray.objective import Objective
from morphling_ray.space import Configuration, Knob

FloatArray = npt.NDArray[np.float64]
Points = tuple[Tensor, Tensor]  # x and y


@dataclass(frozen=True, kw_only=True)
class MamlSettings:
    """What the paper leaves open. It gives the network, the loss, Eq. 3, Eq. 6 and the two algorithms, and no number.

    The defaults are what `python -m experiments.choose_maml` chose by holding out families of the set `rapp-dev`; each
    value that was tried is in `experiments/results/maml_choice.jsonl`.

    Attributes:
        activation: Of the hidden layers, on which the paper is silent.
        input_scale: Width of the range of every input, with 0 in its middle; how the paper encodes a configuration is
            not said either.
        alpha: Inner learning rate. No source has its value.
        inner_steps: Steps of Eq. 3 in training. As printed it is one; 0 is ordinary training on all tasks at once.
        beta: Outer learning rate of the first episode; it falls to 0 as half a cosine. No source has its value.
        outer: How the outer gradient is followed. As printed that is `sgd`, which gets less far in as many episodes.
        episodes: E. The paper says thousands in under ten minutes; these take seconds.
        shots: K, the datapoints of each task and episode. The paper says about 5 % of the space, for it some 36.
        query: Whether the outer loss is taken on fresh points or on the support itself; the paper mentions no others.
        delta: Weight of the change of a prediction in Eq. 6. No source has its value.
        mean: Whether f in Eq. 6 is the prediction `before` the latest update, as printed, or `after` it. As printed it
            does not know the latest measurement.
        online_rate: Learning rate of the search; None for alpha, as printed.
        online_steps: Steps of each update; None for the inner steps. As printed one.
        online_optimiser: What takes these steps. As printed `sgd`.
        online_data: Whether an update sees all measurements or those since the last one; both readings are possible.
        restart: Whether an update starts from theta again; as printed it goes on from the last one.
        corners: Whether the search begins with the 8 corners of the space, as on the paper's EC2 instances.

    Raises:
        InputError: A rate or a count that makes no sense.
    """

    activation: Activation = "tanh"
    input_scale: float = 4.0
    alpha: float = 0.1
    inner_steps: int = 1
    beta: float = 5e-3
    outer: Optimiser = "adam"
    episodes: int = 300
    shots: int = 36
    query: Literal["same", "fresh"] = "same"
    delta: float = 1.0
    mean: Literal["before", "after"] = "after"
    online_rate: float | None = None
    online_steps: int | None = 30
    online_optimiser: Optimiser = "sgd"
    online_data: Literal["newest", "all"] = "all"
    restart: bool = False
    corners: bool = False

    def __post_init__(self) -> None:
        for name in ("input_scale", "alpha", "beta", "online_rate"):
            value = getattr(self, name)
            if value is not None and not 0 < value < np.inf:
                raise InputError(f"{name} must be positive, got {value:g}")
        for name, least in (("inner_steps", 0), ("episodes", 0), ("shots", 1), ("online_steps", 0), ("delta", 0)):
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise InputError(f"{name} must be at least {least}, got {value}")


@dataclass(frozen=True, eq=False)
class Learned:
    """What a search takes from earlier tasks; picklable.

    Attributes:
        encoding: How the knobs of the earlier tasks become inputs, before they are scaled.
        theta: The meta-parameters of a network with as many inputs.
        settings: What they were trained with.
    """

    encoding: Encoding
    theta: Theta
    settings: MamlSettings


class TaskTable:
    """The datapoints of all tasks, padded with zeros to as many as the longest has; equal if all numbers are.

    Args:
        points: x of shape `(n_i, d)` and y of shape `(n_i,)` for each task.

    Attributes:
        x: Shape `(T, n, d)`.
        y: Shape `(T, n)`.
        rows: How many are real, shape `(T,)`.
    """

    def __init__(self, points: Sequence[tuple[FloatArray, FloatArray]]) -> None:
        self.rows = np.array([len(y) for _, y in points])
        self.x = torch.zeros(len(points), int(self.rows.max()), points[0][0].shape[1])
        self.y = torch.zeros(self.x.shape[:2])
        for t, (x, y) in enumerate(points):
            self.x[t, : len(y)], self.y[t, : len(y)] = torch.from_numpy(x), torch.from_numpy(y)
        digest = sha256(repr((self.rows.tolist(), self.x.shape)).encode())
        for array in (self.x, self.y):
            digest.update(array.numpy().tobytes())
        self._digest = digest.digest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TaskTable) and self._digest == other._digest

    def __hash__(self) -> int:
        return hash(self._digest)

    def draw(self, count: int, rng: np.random.Generator) -> Points:
        """As many datapoints of each task, with replacement, shapes `(T, count, d)` and `(T, count)`."""
        rows = torch.from_numpy(rng.integers(0, self.rows[:, None], (len(self.rows), count)))
        task = torch.arange(len(self.rows))[:, None]
        return self.x[task, rows], self.y[task, rows]


def inputs(encoding: Encoding, configurations: Sequence[Configuration], scale: float) -> FloatArray:
    """Configurations as the network takes them, shape `(n, d)`."""
    return (encoding.encode(configurations) - 0.5) * scale


def learn(tasks: Sequence[TrainingTask], objective: Objective, seed: int, settings: MamlSettings) -> Learned | None:
    """Meta-parameters from earlier tasks.

    Args:
        tasks: Those that the objective cannot be computed for, or where nothing works, say nothing.
        objective: Of the search.
        seed: Of the initial parameters and of the datapoints that are drawn.
        settings: What the paper leaves open.

    Returns:
        None where nothing is left to learn from.
    """
    known: list[tuple[TrainingTask, FloatArray]] = []
    for task in tasks:
        try:
            values = task.values(objective)
        except (InputError, KeyError):  # it needs a knob that the task did not have, or a price that is not known
            continue
        if values is not None and len(values) and values.max() > 0:
            known.append((task, values / values.max()))
    encoding = Encoding.of(_knobs([task for task, _ in known]), [c for task, _ in known for c in task.configurations])
    if not encoding.codes:
        return None
    table = TaskTable([(inputs(encoding, task.configurations, settings.input_scale), y) for task, y in known])
    with one_thread():
        return Learned(encoding, meta_train(table, settings, seed), settings)


def initial(
    learned: Learned | None, knobs: Sequence[Knob], settings: MamlSettings, rng: np.random.Generator
) -> tuple[Encoding, Theta]:
    """What a search of a space begins with.

    Args:
        learned: From earlier tasks, or None.
        knobs: Of the space.
        settings: The activation.
        rng: Of random parameters.

    Returns:
        The encoding of the earlier tasks, with further columns for knobs and categories that they did not have. And the
        learned parameters, with random weights for these columns; without earlier tasks all are random.
    """
    known = learned.encoding if learned is not None else Encoding(())
    encoding = Encoding([*known.codes, *known.unseen(knobs).codes] or Encoding.of_space(knobs).codes)
    theta = random_theta(network(len(encoding.groups), settings.activation), rng)
    if learned is not None:
        first, *others = theta
        theta[first][:, : len(known.groups)] = learned.theta[first]
        theta |= {name: learned.theta[name] for name in others}
    return encoding, theta


def _knobs(tasks: Sequence[TrainingTask]) -> list[Knob]:
    """All knobs of the tasks, each once."""
    knobs: dict[str, Knob] = {}
    for task in tasks:
        for knob in task.knobs:
            knobs.setdefault(knob.name, knob)
    return list(knobs.values())


def meta_loss(theta: Theta, net: nn.Module, support: Points, query: Points, settings: MamlSettings) -> Tensor:
    """Sum over i of L_i(f_theta_i), a scalar: the loss of each task after it has adapted (line 7 of Algorithm 1).

    Args:
        theta: The meta-parameters.
        net: See `network`.
        support: Shapes `(T, K, d)` and `(T, K)`.
        query: The same; K may differ.
        settings: alpha and the inner steps.
    """

    def of_one_task(x: Tensor, y: Tensor, query_x: Tensor, query_y: Tensor) -> Tensor:
        adapted = descend(net, theta, x, y, rate=settings.alpha, steps=settings.inner_steps)
        return loss(net, adapted, query_x, query_y)

    losses: Tensor = vmap(of_one_task)(*support, *query)
    return losses.sum()


@lru_cache(maxsize=32)
def meta_train(table: TaskTable, settings: MamlSettings, seed: int) -> Theta:
    """Algorithm 1: in every episode all tasks adapt, and theta follows the gradient through their adaptation.

    The same call gives what the first one computed.
    """
    rng = np.random.default_rng(seed)
    net = network(table.x.shape[2], settings.activation)
    theta: dict[str, Tensor] = random_theta(net, rng)
    adam = Adam(theta)
    for episode in range(settings.episodes):
        support = table.draw(settings.shots, rng)
        query = table.draw(settings.shots, rng) if settings.query == "fresh" else support
        slope: Theta = grad(meta_loss)(theta, net, support, query, settings)
        rate = settings.beta * (0.5 + 0.5 * np.cos(np.pi * episode / settings.episodes))
        if settings.outer == "adam":
            theta = adam.step(theta, slope, rate)
        else:
            theta = {name: value - rate * slope[name] for name, value in theta.items()}
    return theta
