"""Records the surfaces that come with the project: `python -m experiments.record_surfaces [--only NAME ...]`.

The zoo's go to experiments/surfaces/zoo (of the bundled prior), the demo's to experiments/surfaces/demo
(every configuration in two rounds, the best in four more: the truth that a search of the demo is judged by; no prior
sees it). Takes some hours on 2 cores, and wants a quiet machine; an interrupted recording goes on where it stopped.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from experiments.zoo.models import FAMILIES
from morphling_ray.experiment import DEMO
from morphling_ray.record import main as record

SURFACES = Path("experiments/surfaces")  # the command is recorded, and belongs in the root of the project
SMALL_SAMPLE, SMALL_SLO_MS = 36, 100  # of 72 configurations, a different half for each model
DEMO_FINALISTS = 12  # measured four more times, longer: the best must be the best, not the luckiest
SAMPLE, AGAIN = 24, 4  # of a model of the catalogue; so many are measured twice, to see how far repeats differ
SLO_MS = {
    "nnlm_50": 50,
    "resnet_50": 500,
    "bert_base": 1000,
    "mobilenet_v2": 500,
    "use_dan": 50,
    "small_bert_small": 200,
    "densenet_121": 500,
    "electra_small": 200,
    "vgg_16": 1000,
    "word2vec_250": 50,
    "albert_base": 1000,
    "efficientnet_b0": 500,
    "inception_v3": 500,
    "use_transformer": 200,
    "nasnet_mobile": 1000,
    "elmo": 2000,
    "small_bert_tiny": 50,
    "resnet_50_v2": 500,
    "use_multilingual_cnn": 50,
    "mobilenet_v1": 500,
    "convnext_tiny": 500,
    "t5_small": 200,
    "distilbert": 500,
    "efficientnet_b4": 2000,
    "small_bert_medium": 500,
    "nnlm_128": 50,
    "electra_base": 1000,
    "inception_resnet_v2": 1000,
    "resnet_101": 1000,
    "small_bert_mini": 50,
}
"""Bounds on p99: about ten times what one request takes alone on one core, rounded up. First come all families."""


def main(argv: Sequence[str] | None = None) -> int:
    """Records everything, or what `--only` names; returns the first exit status that is not 0."""
    names = [*FAMILIES, *SLO_MS, "demo"]
    parser = argparse.ArgumentParser(prog="python -m experiments.record_surfaces", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--demo-rounds", type=int, default=2, help="how often the demo's surface is measured")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no further model after that")
    arguments = parser.parse_args(argv)
    deadline = time.monotonic() + 60 * arguments.minutes
    for seed, name in enumerate(names):
        if name not in arguments.only:
            continue
        if time.monotonic() > deadline:
            print("the time is over; the same command goes on from here")
            break
        if name == "demo":
            what = ["--app", DEMO, "--out", str(SURFACES / "demo"), "--record-task", "demo", "--family", "demo"]
            status = record([*what, "--repeats", str(arguments.demo_rounds), "--finalists", str(DEMO_FINALISTS)])
        else:
            status = record(_command(name, seed))
        if status:
            return status
    return 0


def _command(name: str, seed: int) -> list[str]:
    what = ["--app", f"experiments.zoo.apps:{name}", "--request", f"experiments.zoo.requests:{name}"]
    what += ["--record-task", name, "--out", str(SURFACES / "zoo"), "--seed", str(seed)]
    if name in FAMILIES:
        return [*what, "--family", FAMILIES[name], "--slo-p99-ms", str(SMALL_SLO_MS), "--sample", str(SMALL_SAMPLE)]
    from experiments.zoo.catalogue import MODELS  # imports `transformers`

    again = ["--sample", str(SAMPLE), "--again", str(AGAIN)]
    return [*what, "--family", MODELS[name].family, "--slo-p99-ms", str(SLO_MS[name]), *again]


if __name__ == "__main__":
    sys.exit(main())
