"""How much of what repeats differ by is the machine's: `python -m benchmarks.slowdown [--repeats 40]`.

One configuration of the demo is measured again and again by plain probes. What its replica's batches took meanwhile,
against what batches of the same sizes take over all, says how slow the machine was, and a line through both logarithms
how much of the spread of the peaks that explains.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from benchmarks.bench import keep, serving, spread
from benchmarks.peak import CONFIGURATION
from morphling_ray.serving.batcher import Batch
from morphling_ray.serving.control import ReplicaBatcher


def main(argv: Sequence[str] | None = None) -> int:
    """Runs and prints; returns 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.slowdown", description=__doc__)
    parser.add_argument("--repeats", type=int, default=40)
    arguments = parser.parse_args(argv)
    peaks: list[float] = []
    batches: list[list[Batch]] = []
    with serving() as (_, evaluator, say):
        evaluator.measure(CONFIGURATION, exact=True)  # deployed and warm
        batcher = ReplicaBatcher(evaluator.stand.replicas[0].actor_name)
        for repeat in range(arguments.repeats):
            before = batcher.state()
            assert before is not None, "the demo has a batcher"
            peaks.append(evaluator.again(CONFIGURATION, by_probes=True, seed=repeat).metrics["peak_rps"])
            batches.append(batcher.since(before.computed))
            say(f"{repeat:2d}: {peaks[-1]:6.1f} RPS")
    slow = slowness(batches)
    slope, _ = np.polyfit(np.log(slow), np.log(peaks), 1)
    left = np.log(peaks) - slope * np.log(slow)
    print(
        f"{len(peaks)} repeats: peaks vary by {spread(peaks):.1%}, what batches take by {spread(slow):.1%}; "
        f"correlation {np.corrcoef(np.log(slow), np.log(peaks))[0, 1]:.2f}"
    )
    print(
        f"1 % slower batches go with a peak that is {-slope:.1f} % lower; {left.std(ddof=1):.1%} are left without that"
    )
    keep("slowdown", [{"peaks": peaks, "slowness": list(slow)}], argv or sys.argv[1:])
    return 0


def slowness(repeats: Sequence[Sequence[Batch]]) -> list[float]:
    """Seconds of all batches of each repeat, over what so many of their sizes take over all repeats."""
    taken = defaultdict(list)
    for batch in (b for batches in repeats for b in batches):
        taken[batch.size].append(batch.done - batch.taken)
    usual = {size: float(np.median(seconds)) for size, seconds in taken.items()}
    return [sum(b.done - b.taken for b in batches) / sum(usual[b.size] for b in batches) for batches in repeats]


if __name__ == "__main__":
    sys.exit(main())
