"""Counts the parameters and multiply-accumulates of every model of the zoo: `python -m experiments.zoo`.

Exit status 1 if a count is further from the published one than `TOLERANCE`.
"""

import argparse
import sys
from collections.abc import Sequence

from experiments.zoo.catalogue import MODELS
from experiments.zoo.counting import count

TOLERANCE = 0.06  # publications round, and differ in what they count: classifiers, embeddings of places, poolers


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


def off(counted: float, published: float) -> bool:
    """Whether a count differs from what was published."""
    return abs(counted / published - 1) > TOLERANCE


if __name__ == "__main__":
    sys.exit(main())
