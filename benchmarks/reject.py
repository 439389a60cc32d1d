"""How soon a rate that is too high is rejected, and how often one that is not: `python -m benchmarks.reject`.

Windows of the search at 1.2 times the demo's peak, and at 0.9 and 0.8 times with a second look where the first is a
miss, in turn; the peak comes from a long reference between them.
"""

import argparse
import sys
from collections.abc import Sequence

import numpy as np

from benchmarks.bench import Reference, keep, serving
from benchmarks.peak import CONFIGURATION
from morphling_ray.evaluate.plain import GROWS, SETTLE_AFTER_S
from morphling_ray.measurement import Verdict

WINDOW_S = 2.0
SHARES = (1.2, 0.9, 0.8)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs and prints; returns 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reject", description=__doc__)
    parser.add_argument("--repeats", type=int, default=30)
    arguments = parser.parse_args(argv)
    seconds: dict[float, list[float]] = {share: [] for share in SHARES}
    rejected: dict[float, list[bool]] = {share: [] for share in SHARES}
    with serving() as (_, evaluator, say):
        first = evaluator.measure(CONFIGURATION, exact=True)
        reference = Reference(first.metrics["peak_rps"], seed=1)
        for _ in range(2 * reference.levels):
            reference.window(evaluator.stand.crew)
        peak, crew = reference.peak_rps(), evaluator.stand.crew
        for repeat in range(arguments.repeats):
            for share in SHARES:
                looks = []
                for look in range(1 if share > 1 else 2):
                    seed = 1000 * repeat + 10 * look + int(10 * share)
                    settle, rate = SETTLE_AFTER_S, share * peak
                    probe = crew.probe(
                        rate_rps=rate,
                        window_s=WINDOW_S,
                        seed=seed,
                        settle_after_s=settle,
                        representative=True,
                        windows=GROWS,
                    )
                    looks.append(probe.verdict is Verdict.MISSED)
                    if crew.record is not None:
                        seconds[share].append(crew.record.elapsed_s)
                        if crew.record.given_up:
                            crew.drain()
                    if not looks[-1]:
                        break
                rejected[share].append(all(looks))
        say(f"peak {peak:.1f} RPS by a reference of {reference.seconds:.0f} s")
    for share in SHARES:
        print(
            f"{share:.1f} x the peak: rejected {np.mean(rejected[share]):.1%} of {len(rejected[share])}, "
            f"{np.median(seconds[share]):.2f} s a window in the median (p90 {np.quantile(seconds[share], 0.9):.2f})"
        )
    rows = [{"share": share, "seconds": seconds[share], "rejected": rejected[share]} for share in SHARES]
    keep("reject", rows, argv or sys.argv[1:])
    return 0


if __name__ == "__main__":
    sys.exit(main())
