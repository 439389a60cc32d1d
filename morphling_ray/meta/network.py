"""The network of the Morphling paper (SoCC 2021), its loss and its adaptation, as pure functions of named parameters.

x      encoded configurations, shape (n, d)
y      what to predict for each, shape (n,)
theta  parameters by name; an axis of tasks, where there is one, is put before all of these by `torch.func.vmap`
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad

Theta = Mapping[str, Tensor]
Activation = Literal["relu", "tanh", "silu"]
Optimiser = Literal["sgd", "adam"]

WIDTH = 128  # two hidden layers of this many units (section 4 of the paper)
_ACTIVATIONS: Mapping[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "silu": nn.SiLU}
_TRIES = 10  # at half the rate each
_ADAM = (0.9, 0.999, 1e-8)  # decay of the mean, decay of the square, and what keeps the quotient finite


@contextmanager
def one_thread() -> Iterator[None]:
    """Computes on one thread: the matrices are too small to share out, so that a second thread is only waited for."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@cache
def network(inputs: int, activation: Activation) -> nn.Module:
    """The layers, without numbers of their own: those are given to every call."""
    act = _ACTIVATIONS[activation]
    with torch.device("meta"):  # draws nothing, so that the global generator stays as it was
        sizes = ((inputs, WIDTH), (WIDTH, WIDTH), (WIDTH, 1))
        first, second, last = (nn.Linear(*size) for size in sizes)
        return nn.Sequential(first, act(), second, act(), last, nn.Flatten(-2))


def random_theta(net: nn.Module, rng: np.random.Generator) -> dict[str, Tensor]:
    """Random parameters: uniform within one over the root of a layer's inputs, which is how `nn.Linear` draws them."""
    theta: dict[str, Tensor] = {}
    bound = 1.0
    for name, parameter in net.named_parameters():  # each layer's weight, then its bias
        if parameter.ndim == 2:
            bound = parameter.shape[1] ** -0.5
        theta[name] = torch.from_numpy(rng.uniform(-bound, bound, tuple(parameter.shape)).astype(np.float32))
    return theta


def predict(net: nn.Module, theta: Theta, x: Tensor) -> Tensor:
    """f_theta(x), shape `(n,)`."""
    out: Tensor = functional_call(net, dict(theta), (x,))
    return out


def loss(net: nn.Module, theta: Theta, x: Tensor, y: Tensor) -> Tensor:
    """The mean squared error of f_theta (Eq. 2), a scalar."""
    return ((predict(net, theta, x) - y) ** 2).mean()


def descend(net: nn.Module, theta: Theta, x: Tensor, y: Tensor, *, rate: float, steps: int) -> dict[str, Tensor]:
    """Adapts to a task by gradient descent: theta - rate * grad L(f_theta) (Eq. 3), `steps` times over.

    It can itself be differentiated by theta, second derivatives included, as Algorithm 1 does.
    """
    current = dict(theta)
    for _ in range(steps):
        slope = grad(loss, argnums=1)(net, current, x, y)
        current = {name: value - rate * slope[name] for name, value in current.items()}
    return current


class Adam:
    """The optimiser of Kingma and Ba (2015, https://arxiv.org/abs/1412.6980).

    Args:
        theta: Parameters of the shapes that it will be given.
    """

    def __init__(self, theta: Theta) -> None:
        self._mean = {name: torch.zeros_like(value) for name, value in theta.items()}
        self._square = {name: torch.zeros_like(value) for name, value in theta.items()}
        self._steps = 0

    def step(self, theta: Theta, slope: Theta, rate: float) -> dict[str, Tensor]:
        """The parameters after one more step against `slope`."""
        first, second, tiny = _ADAM
        self._steps += 1
        size = rate * (1 - second**self._steps) ** 0.5 / (1 - first**self._steps)
        out = {}
        for name, value in theta.items():
            self._mean[name].lerp_(slope[name], 1 - first)
            self._square[name].lerp_(slope[name] ** 2, 1 - second)
            out[name] = value - size * self._mean[name] / (self._square[name].sqrt() + tiny)
        return out


def fit(
    net: nn.Module, theta: Theta, x: Tensor, y: Tensor, *, optimiser: Optimiser, rate: float, steps: int
) -> dict[str, Tensor]:
    """The parameters after `steps` full-batch steps from theta.

    A rate that suits one task may let the descent diverge on another: where the loss ends above where it began, or
    nowhere, it is tried again at half the rate; after some tries theta itself is returned.
    """
    before = float(loss(net, theta, x, y))
    for _ in range(_TRIES):
        if optimiser == "sgd":
            current = descend(net, theta, x, y, rate=rate, steps=steps)
        else:
            adam, current = Adam(theta), dict(theta)
            for _ in range(steps):
                current = adam.step(current, grad(loss, argnums=1)(net, current, x, y), rate)
        if float(loss(net, current, x, y)) <= before:  # False where it is no number
            return current
        rate /= 2
    return dict(theta)
