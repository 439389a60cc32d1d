"""The demo's peak by our confirmation and by MLPerf LoadGen, in turn: `python -m benchmarks.loadgen [--repeats 5]`.

Same deployment, same SLO. LoadGen draws its own arrivals, counts the latencies and says the percentile.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from benchmarks.bench import keep, serving, spread
from benchmarks.peak import CONFIGURATION


def main(argv: Sequence[str] | None = None) -> int:
    """Runs and prints; returns 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loadgen", description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args(argv)
    ours, theirs, rows = [], [], []
    with serving() as (_, evaluator, say):
        evaluator.measure(CONFIGURATION, exact=True)  # deployed and warm
        for repeat in range(arguments.repeats):
            ours.append(evaluator.measure(CONFIGURATION, confirm=True).metrics["peak_rps"])
            found = evaluator.cross_check(CONFIGURATION, seed=repeat)
            theirs.append(found.peak_rps)
            rows.append({"ours_rps": ours[-1], "loadgen": asdict(found)})
            say(f"{repeat}: ours {ours[-1]:.1f} RPS, LoadGen {theirs[-1]:.1f} RPS")
    ratio = np.array(ours) / np.array(theirs)
    print(
        f"ours / LoadGen: {np.median(ratio):.3f} in the median ({ratio.min():.3f} to {ratio.max():.3f}), medians "
        f"{np.median(ours):.1f} and {np.median(theirs):.1f} RPS; coefficients of variation {spread(ours):.1%} and "
        f"{spread(theirs):.1%}"
    )
    keep("loadgen", rows, argv or sys.argv[1:])
    return 0


if __name__ == "__main__":
    sys.exit(main())
