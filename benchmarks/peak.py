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
from morphling_ray.space import Configuration

CONFIGURATION: Configuration = {
    "cpu_cores": 1,
    "max_batch_size": 8,
    "batch_wait_timeout_ms": 5,
    "precision": "float32",
}
PATHS = ("twin", "probes")
WINDOWS = 5  # of the reference, after each repeat


def main(argv: Sequence[str] | None = None) -> int:
    """Runs and prints; returns 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peak", description=__doc__)
    parser.add_argument("--repeats", type=int, default=10)
    arguments = parser.parse_args(argv)
    peaks: dict[str, list[float]] = {path: [] for path in PATHS}
    seconds: dict[str, list[float]] = {path: [] for path in PATHS}
    with serving() as (_, evaluator, say):
        first = evaluator.measure(CONFIGURATION, exact=True)  # deployed and warm
        reference = Reference(first.metrics["peak_rps"], seed=1)
        for repeat in range(arguments.repeats):
            for path in PATHS:
                began = time.monotonic()
                measurement = evaluator.again(CONFIGURATION, by_probes=path == "probes", seed=repeat)
                seconds[path].append(time.monotonic() - began)
                peaks[path].append(measurement.metrics["peak_rps"])
                say(f"{path:>6} {repeat:2d}: {peaks[path][-1]:6.1f} RPS in {seconds[path][-1]:4.1f} s")
            for _ in range(WINDOWS):
                reference.window(evaluator.stand.crew)
    truth, shares = reference.peak_rps(), reference.late / reference.requests
    late = ", ".join(f"{rate:.0f}: {share:.2%}" for rate, share in zip(reference.rates, shares, strict=True))
    print(f"reference, {reference.seconds:.0f} s of fresh schedules: {truth:.1f} RPS (late at {late})")
    for path in PATHS:
        bias = np.exp(np.mean(np.log(peaks[path]))) / truth - 1
        print(
            f"{path:>6}: coefficient of variation {spread(peaks[path]):.1%} over {len(peaks[path])}, bias {bias:+.1%}, "
            f"{percentiles(seconds[path])} s"
        )
    keep("peak", [{"peaks": peaks, "seconds": seconds, "reference_rps": truth, "late": late}], argv or sys.argv[1:])
    return 0


if __name__ == "__main__":
    sys.exit(main())
