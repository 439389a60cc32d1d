"""Counts the parameters and multiply-accumulates of every model of the zoo: `python -m experiments.zoo`.

Networks are built on torch's meta device, which holds shapes and no numbers: nothing is computed, and nothing big is
kept. Exit status 1 if a count is further from the published one than `TOLERANCE`.
"""

import argparse
import sys
from collections.abc import Sequence

import torch
from torch.utils.flop_counter import FlopCounterMode

from experiments.zoo.catalogue import MODELS, Model

TOLERANCE = 0.06  # publications round, and differ in what they count: classifiers, embeddings of places, poolers
MEL_BANDS = 80


def main(argv: Sequence[str] | None = None) -> int:
    """Prints one line a model; returns 0, or 1 if one differs."""
    parser = argparse.ArgumentParser(prog="python -m experiments.zoo", description=__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(MODELS)}; all by default")
    names = parser.parse_args(argv).models or list(MODELS)
    if unknown := [name for name in names if name not in MODELS]:
        parser.error(f"no model is called {', '.join(unknown)}")
    print(f"{'model':<30}{'family':<14}{'parameters':>12}{'published':>11}{'GMACs':>9}{'published':>11}  at   source")
    different = []
    for name in names:
        model = MODELS[name]
        parameters, macs = count(model)
        print(
            f"{name:<30}{model.family:<14}{parameters:>10.2f} M{model.parameters:>9g} M"
            f"{macs:>9.3f}{'-' if model.macs is None else format(model.macs, 'g'):>11}  {model.size:<5}{model.source}"
        )
        if off(parameters, model.parameters) or (model.macs and off(macs, model.macs)):
            different.append(name)
    if different:
        print(f"further than {TOLERANCE:.0%} from what was published: {', '.join(different)}", file=sys.stderr)
    return int(bool(different))


def count(model: Model) -> tuple[float, float]:
    """Parameters in millions, and multiply-accumulates of one input of the published size in 10^9."""
    with torch.device("meta"), torch.inference_mode():
        network = model.build().eval()
        counter = FlopCounterMode(display=False)
        with counter:
            network(example(model, model.size))
    parameters = sum(p.numel() for p in network.parameters())
    return parameters / 1e6, counter.get_total_flops() / 2e9


def example(model: Model, size: int) -> torch.Tensor:
    """One input without numbers: (1, 3, size, size), (1, size) token ids, or (1, 80, size) bands of sound."""
    if model.kind == "text":
        return torch.zeros(1, size, dtype=torch.long, device="meta")
    shape = (1, 3, size, size) if model.kind == "image" else (1, MEL_BANDS, size)
    return torch.zeros(shape, device="meta")


def off(counted: float, published: float) -> bool:
    """Whether a count differs from what was published."""
    return abs(counted / published - 1) > TOLERANCE


if __name__ == "__main__":
    sys.exit(main())
