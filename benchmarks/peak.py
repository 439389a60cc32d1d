"""How repeatable and how true a peak is that took seconds: `python -m benchmarks.peak [--repeats 10]`.

The demo application in one configuration, measured again and again by both paths in turn (the batching twin with its
table made anew each time, and plain probes), with windows of a long reference between them.
"""

import argparse
import sys
import time
from collections.abc import Sequence

import numpy as np

from benchmarks.bench import Reference, keep, percentiles, serving, spread

CONFIGURATION = {"cpu_cores": 1, "max_batch_size": 8, "batch_wait_timeout_ms": 5, "precision": "float32"}
WINDOWS = 5  # of the reference, after each repeat


def main(argv: Sequence[str] | None = None) -> int:
    """Runs and prints; returns 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peak", description=__doc__)
    parser.add_argument("--repeats", type=int, default=10)
    arguments = parser.parse_args(argv)
    rows = []
    with serving() as (_, evaluator, say):
        reference = None
        evaluator.measure(CONFIGURATION, exact=True)  # deployed and warm
        for repeat in range(arguments.repeats):
            for path in ("twin", "probes"):
                began = time.monotonic()
                measurement = evaluator.again(CONFIGURATION, by_probes=path == "probes", seed=repeat)
                peak = float(measurement.metrics["peak_rps"])
                row = {"path": path, "repeat": repeat, "peak_rps": peak, "seconds": time.monotonic() - began}
                rows.append({**row, "probes": len(measurement.probes), "foreseen": measurement.estimated})
                say("{path:>6} {repeat:2d}: {peak_rps:6.1f} RPS in {seconds:4.1f} s".format(**row))
            reference = reference or Reference(rows[0]["peak_rps"], seed=1)
            for _ in range(WINDOWS):
                reference.window(evaluator.crew)
    truth = reference.peak_rps()
    shares = ", ".join(f"{r:.0f}: {s:.2%}" for r, s in zip(reference.rates, reference.late / reference.requests))
    print(f"reference, {reference.seconds:.0f} s of fresh schedules: {truth:.1f} RPS (late at {shares})")
    for path in ("twin", "probes"):
        mine = [r for r in rows if r["path"] == path]
        peaks = [r["peak_rps"] for r in mine]
        print(
            f"{path:>6}: coefficient of variation {spread(peaks):.1%} over {len(peaks)}, bias "
            f"{np.exp(np.mean(np.log(peaks))) / truth - 1:+.1%}, {percentiles([r['seconds'] for r in mine])} s"
        )
    keep("peak", [*rows, {"reference_rps": truth, "seconds": reference.seconds}], argv or sys.argv[1:])
    return 0


if __name__ == "__main__":
    sys.exit(main())
