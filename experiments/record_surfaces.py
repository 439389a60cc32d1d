"""Records the surfaces that come with the project: `python -m experiments.record_surfaces [--only NAME ...]`.

The zoo's go to experiments/surfaces/zoo (what the bundled prior is trained on), the demo's to experiments/surfaces/demo
(every configuration in two rounds, the best in four more: the truth that a search of the demo is judged by; no prior
sees it). Takes about an
hour on 2 cores, and wants a quiet machine; an interrupted recording goes on where it stopped.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.zoo.models import FAMILIES, MODELS
from morphling_ray.experiment import DEMO
from morphling_ray.record import main as record

SURFACES = Path("experiments/surfaces")  # the command is recorded, and belongs in the root of the project
ZOO_SAMPLE = 36  # of 72 configurations, a different half for each model
DEMO_FINALISTS = 12  # measured four more times, longer: the best must be the best, not the luckiest


def main(argv: Sequence[str] | None = None) -> int:
    """Records everything, or what `--only` names; returns the first exit status that is not 0."""
    parser = argparse.ArgumentParser(prog="python -m experiments.record_surfaces", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=[*FAMILIES, "demo"], default=[*FAMILIES, "demo"])
    parser.add_argument("--demo-rounds", type=int, default=2, help="how often the demo's surface is measured")
    arguments = parser.parse_args(argv)
    for seed, (name, family) in enumerate(FAMILIES.items()):
        if name in arguments.only:
            request = f"experiments.zoo.models:{MODELS[name].request.__name__}"
            what = ["--app", f"experiments.zoo.apps:{name}", "--request", request, "--out", str(SURFACES / "zoo")]
            status = record([*what, "--family", family, "--sample", str(ZOO_SAMPLE), "--seed", str(seed)])
            if status:
                return status
    if "demo" in arguments.only:
        what = ["--app", DEMO, "--out", str(SURFACES / "demo"), "--record-task", "demo", "--family", "demo"]
        return record([*what, "--repeats", str(arguments.demo_rounds), "--finalists", str(DEMO_FINALISTS)])
    return 0


if __name__ == "__main__":
    sys.exit(main())
