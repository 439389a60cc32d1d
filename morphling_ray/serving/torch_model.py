"""A torch model with the two ends of its pipeline, as a replica computes it; needs no Ray."""

import copy
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def device() -> str:
    """The GPU that Ray has given this process, else the CPU; a card that was not asked for is somebody else's."""
    return "cuda" if os.environ.get("CUDA_VISIBLE_DEVICES") and torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class ServedModel:
    """A model with the two ends of its pipeline.

    Attributes:
        build: Makes the network; called once, after the random seed is set.
        decode: One request's payload (JSON) to one input tensor, without the batch dimension.
        encode: One output row to the JSON that is answered.
        request: A payload to send.
    """

    build: Callable[[], torch.nn.Module]
    decode: Callable[[Any], torch.Tensor]
    encode: Callable[[torch.Tensor], Any]
    request: Callable[[], Any]


class TorchModel:
    """The network of a `ServedModel` in both precisions, on this process's device.

    Args:
        name: The `ServedModel` as `module:attribute`.
    """

    def __init__(self, name: str) -> None:
        module, _, attribute = name.partition(":")
        self.served: ServedModel = getattr(import_module(module), attribute)
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "0")) or torch.get_num_threads())
        torch.manual_seed(0)
        network = self.served.build().eval().requires_grad_(False)
        self._device = device()
        # Both precisions are kept, so that the knob is changed without a restart.
        self._networks = {name: copy.deepcopy(network).to(self._device, dtype) for name, dtype in PRECISIONS.items()}

    def forward(self, payloads: Sequence[Any], precision: str = "float32") -> list[Any]:
        """Answers to a batch of payloads, in order."""
        batch = torch.stack([self.served.decode(payload) for payload in payloads]).to(self._device)
        if batch.is_floating_point():
            batch = batch.to(PRECISIONS[precision])
        with torch.inference_mode():
            output = self._networks[precision](batch).float().cpu()
        return [self.served.encode(row) for row in output]
