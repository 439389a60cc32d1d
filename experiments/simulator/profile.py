"""What a model computes and moves, operator by operator, counted on torch's meta device."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import flop_registry

FloatArray = npt.NDArray[np.float64]
_GATHERS = ("embedding", "_embedding_bag", "index_select")  # they read only some rows


@dataclass(frozen=True)
class Profile:
    """One input's way through a model; a batch of b moves its weights once and all else b times.

    Attributes:
        macs: Multiply-accumulates of each operator, shape `(k,)`.
        moved_bytes: Read and written by each beside weights, float32, shape `(k,)`.
        weight_bytes: Of the weights that each reads, shape `(k,)`.
        parameters_bytes: Of all parameters and buffers.
        working_bytes: Most that inputs and outputs of one operator hold: what a batch needs per input.
    """

    macs: FloatArray
    moved_bytes: FloatArray
    weight_bytes: FloatArray
    parameters_bytes: float
    working_bytes: float


class _Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the operators that compute; views and shapes cost nothing."""

    def __init__(self, weights: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.weights = {id(w): w for w in weights}  # and views of them, which must live as long as their id is known
        self.rows: list[tuple[float, float, float]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        made = [t for t in tree_flatten(out)[0] if isinstance(t, Tensor)]
        given = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
        if func.is_view:
            if any(id(t) in self.weights for t in given):
                self.weights |= {id(t): t for t in made}
            return out
        if not made or not given:
            return out
        packet = func.overloadpacket
        flops = flop_registry[packet](*args, **kwargs, out_val=out) if packet in flop_registry else 0
        moved = sum(_bytes(t) for t in made)
        read = 0.0
        for tensor in given:
            if id(tensor) not in self.weights:
                moved += _bytes(tensor)
            elif packet.__name__ in _GATHERS:
                moved += _bytes(made[0])
            else:
                read += _bytes(tensor)
        self.rows.append((flops / 2, moved, read))
        return out


def _bytes(tensor: Tensor) -> float:
    return float(tensor.numel() * tensor.element_size())


def profile(network: nn.Module, example: Tensor) -> Profile:
    """Counts one input.

    Args:
        network: On the meta device, in its evaluation mode.
        example: One input there, with the batch dimension of 1.
    """
    weights = [*network.parameters(), *network.buffers()]
    with torch.no_grad(), _Operators(weights) as operators:  # in inference mode, layers would come undivided
        network(example)
    macs, moved, read = np.array(operators.rows, float).T
    return Profile(macs, moved, read, sum(_bytes(w) for w in weights), float(moved.max()))
