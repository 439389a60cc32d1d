"""Writes the paper's two spaces for the zoo's models, simulated: `python -m experiments.simulator --out DIR`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.simulator.spaces import SERVICES, ec2, production
from experiments.zoo.catalogue import PAPER
from morphling_ray.surface import SurfaceSet, save_surfaces


def main(argv: Sequence[str] | None = None) -> int:
    """Writes two folders of surfaces and says what they hold; returns 0."""
    parser = argparse.ArgumentParser(prog="python -m experiments.simulator", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--only", nargs="+", choices=PAPER, metavar="MODEL", help="of the paper's models (default: all)"
    )
    arguments = parser.parse_args(argv)
    models = {name: PAPER[name] for name in arguments.only or PAPER}
    services = {name: model for name, model in models.items() if name in SERVICES}
    for made in (ec2(models), *([production(services)] if services else [])):
        folder = arguments.out / made.name
        folder.mkdir(parents=True, exist_ok=True)
        save_surfaces(folder, made)
        print(f"{folder}: {_about(made)}")
    return 0


def _about(made: SurfaceSet) -> str:
    sizes = {len(surface.space) for surface in made.surfaces.values()}
    works = sum(surface.feasible.mean() for surface in made.surfaces.values()) / len(made.surfaces)
    return f"{len(made.surfaces)} tasks of {sizes.pop()} configurations, {works:.0%} of which work"


if __name__ == "__main__":
    sys.exit(main())
