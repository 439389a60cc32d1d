"""The driver and the estimates against servers whose peak can be computed: `python -m benchmarks.known_truth`.

M/D/1 and M/M/1 by plain probes (theory: Lindley's recursion, and 1 / s - ln(100) / SLO), a batching server by the twin
and by plain probes (the batcher's rule, simulated).
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.bench import keep, serving, spread
from benchmarks.servers import BATCH_S, ITEM_S, MEAN_S
from morphling_ray.serving.twin import NO_STRAYS, ServiceTimes, predicted_peaks
from morphling_ray.space import Configuration

SLO_S = 0.1
ONE: Configuration = {"cpu_cores": 1}
BATCHES: Configuration = {**ONE, "max_batch_size": 8, "batch_wait_timeout_ms": 10}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs and prints; returns 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.known_truth", description=__doc__)
    parser.add_argument("--repeats", type=int, default=8)
    arguments = parser.parse_args(argv)
    sizes = np.arange(1, 17)
    seconds = np.array([BATCH_S + ITEM_S * size for size in sizes])
    computed = {
        "md1": peak(np.array([1]), np.array([MEAN_S]), (1, 0.0)),
        "mm1": 1 / MEAN_S - np.log(100) / SLO_S,
        "batching": peak(sizes, seconds, (8, 0.01)),
    }
    rows = []
    for app, truth in computed.items():
        space = None if app == "batching" else {"cpu_cores": [1]}
        with serving(app=f"benchmarks.servers:{app}", space=space) as (_, evaluator, _say):
            configuration = BATCHES if app == "batching" else ONE
            evaluator.measure(configuration, exact=True)  # deployed and warm
            for path in ("probes", "twin") if app == "batching" else ("probes",):
                found = [
                    evaluator.again(configuration, by_probes=path == "probes", seed=seed).metrics["peak_rps"]
                    for seed in range(arguments.repeats)
                ]
                rows.append({"app": app, "path": path, "computed_rps": float(truth), "found_rps": found})
        for row in rows[-1 - (app == "batching") :]:
            ratio = np.array(row["found_rps"]) / truth
            print(
                f"{app:>8} by {row['path']:>6}: computed {truth:.1f} RPS, measured / computed {np.median(ratio):.3f} "
                f"in the median ({ratio.min():.3f} to {ratio.max():.3f}), coefficient of variation {spread(ratio):.1%}"
            )
    keep("known_truth", rows, argv or sys.argv[1:])
    return 0


def peak(sizes: Any, seconds: Any, setting: tuple[int, float]) -> float:
    """The computed peak of a batching server; the mean over seeds of the schedules."""
    times = ServiceTimes(sizes, seconds, NO_STRAYS)
    each = [predicted_peaks(times, [setting], slo_s=SLO_S, percentile=99.0, seed=seed)[0] for seed in range(8)]
    return float(np.mean(each))


if __name__ == "__main__":
    sys.exit(main())
