"""Parameters and multiply-accumulates of the catalogue's models, counted on torch's meta device.

It holds shapes and no numbers: nothing is computed, and nothing big is kept.
"""

import torch
from torch.utils.flop_counter import FlopCounterMode

from experiments.zoo.catalogue import Model


def count(model: Model) -> tuple[float, float]:
    """Parameters in millions, and multiply-accumulates of one input of the published size in 10^9."""
    with torch.device("meta"), torch.inference_mode():
        network = model.build().eval()
        counter = FlopCounterMode(display=False)
        with counter:
            network(example(model))
    parameters = sum(p.numel() for p in network.parameters())
    return parameters / 1e6, counter.get_total_flops() / 2e9


def example(model: Model) -> torch.Tensor:
    """One input of the published size without numbers, with the batch dimension of 1."""
    dtype = torch.long if model.kind == "text" else torch.float32
    return torch.zeros((1, *model.input_shape), dtype=dtype, device="meta")
