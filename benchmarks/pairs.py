"""How often a comparison in turn is wrong, and how often it finds a difference: `python -m benchmarks.pairs`.

Settings of one model behind a brake (benchmarks/slowed.py), switched live: equal ones, and ones whose batches take 7.5
and 15 % longer, which costs more than that of the peak: the mean ratio that was found says how much.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.bench import keep, percentiles, serving
from benchmarks.slowed import space
from morphling_ray.space import Configuration

APPS = {
    "demo": ("benchmarks.slowed:demo", "morphling_ray.serving.images:image_request"),
    "text_encoder": ("benchmarks.slowed:text_encoder", "experiments.zoo.models:token_request"),
}
# How much longer a batch takes, and seconds to find that in: about 10 and 20 % of the peak.
CASES = {"equal": (0.0, 7.0), "small": (0.075, 7.0), "large": (0.15, 3.0)}
COMMON: Configuration = {"cpu_cores": 1, "max_batch_size": 8, "batch_wait_timeout_ms": 5, "precision": "float32"}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs and prints; returns 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pairs", description=__doc__)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--app", choices=APPS, default="demo")
    arguments = parser.parse_args(argv)
    app, request = APPS[arguments.app]
    settings: dict[str, Configuration] = {case: {**COMMON, "slower": slower} for case, (slower, _) in CASES.items()}
    base = settings["equal"]
    rows: list[dict[str, Any]] = []
    with serving(app=app, request=request, space=space) as (_, evaluator, say):
        evaluator.measure(base, exact=True)  # deployed and warm
        for repeat in range(arguments.repeats):
            for case, (_slower, limit_s) in CASES.items():
                sides = (base, settings[case]) if repeat % 2 == 0 else (settings[case], base)
                duel = evaluator.duel(*sides)
                found = duel.compare(within_s=limit_s)
                if found is None:
                    say(f"{case}: a window could not be read")
                    continue
                sign = 1 if repeat % 2 == 0 else -1
                verdict = "tie" if found.tie else "first" if (found.p_better > 0.5) == (sign > 0) else "second"
                row = {"case": case, "log_ratio": sign * found.log_ratio, "rounds": found.rounds, "verdict": verdict}
                rows.append({**row, "seconds": duel.seconds})
            if repeat % 10 == 9:
                say(f"{repeat + 1} of {arguments.repeats} done")
    for case in CASES:
        mine = [r for r in rows if r["case"] == case]
        verdicts = [r["verdict"] for r in mine]
        logs = np.array([r["log_ratio"] for r in mine])
        print(
            f"{case}: first better {verdicts.count('first')}, second better {verdicts.count('second')}, tie "
            f"{verdicts.count('tie')} of {len(mine)}, {percentiles([r['seconds'] for r in mine])} s; ratio of peaks "
            f"{np.exp(logs.mean()):.3f} in the mean (varies by {logs.std(ddof=1):.1%})"
        )
    keep(f"pairs_{arguments.app}", rows, argv or sys.argv[1:])
    return 0


if __name__ == "__main__":
    sys.exit(main())
