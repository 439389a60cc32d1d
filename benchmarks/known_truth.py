"""The driver and the estimates against servers whose peak can be computed: `python -m benchmarks.known_truth`.

M/D/1 and M/M/1 by plain probes (by simulation, and 1 / s - ln(100) / SLO), a batching server by the twin and by plain
probes (the batcher's rule, simulated). Long windows in between (`bench.Reference`) show what Ray and the machine make
of the computed peak, and so how much of a difference is the estimate's.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.bench import Reference, keep, serving, spread
from benchmarks.servers import BATCH_S, ITEM_S, MEAN_S
from morphling_ray.serving.twin import NO_STRAYS, simulate
from morphling_ray.space import Configuration

SLO_S = 0.1
ARRIVALS = 500_000
WINDOWS = 5  # of the reference, for each estimate
ONE: Configuration = {"cpu_cores": 1}
BATCHES: Configuration = {**ONE, "max_batch_size": 8, "batch_wait_timeout_ms": 10}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs and prints; returns 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.known_truth", description=__doc__)
    parser.add_argument("--repeats", type=int, default=8)
    arguments = parser.parse_args(argv)
    batches_s = [0.0, *(BATCH_S + ITEM_S * size for size in range(1, 9))]
    computed = {
        "md1": peak([0.0, MEAN_S], (1, 0.0)),
        "mm1": 1 / MEAN_S - np.log(100) / SLO_S,
        "batching": peak(batches_s, (8, 0.01)),
    }
    rows: list[dict[str, Any]] = []
    for app, truth in computed.items():
        space = None if app == "batching" else {"cpu_cores": [1]}
        with serving(app=f"benchmarks.servers:{app}", space=space) as (_, evaluator, _say):
            configuration = BATCHES if app == "batching" else ONE
            evaluator.measure(configuration, exact=True)  # deployed and warm
            reference = Reference(truth, seed=1)
            found: dict[str, list[float]] = {
                path: [] for path in (("probes", "twin") if app == "batching" else ("probes",))
            }
            for seed in range(arguments.repeats):
                for path, peaks in found.items():
                    by_probes = path == "probes"
                    peaks.append(evaluator.again(configuration, by_probes=by_probes, seed=seed).metrics["peak_rps"])
                for _ in range(WINDOWS):
                    reference.window(evaluator.stand.crew)
        for path, peaks in found.items():
            row = {"app": app, "path": path, "computed_rps": float(truth), "found_rps": peaks}
            rows.append({**row, "reference_rps": reference.peak_rps()})
            ratio = np.array(peaks) / truth
            print(
                f"{app:>8} by {path:>6}: computed {truth:.1f} RPS, measured / computed {np.median(ratio):.3f} "
                f"({ratio.min():.3f} to {ratio.max():.3f}, coefficient of variation {spread(ratio):.1%}); "
                f"long windows / computed {reference.peak_rps() / truth:.3f}, of {reference.seconds:.0f} s",
                flush=True,
            )
    keep("known_truth", rows, argv or sys.argv[1:])
    return 0


def peak(seconds: Sequence[float], setting: tuple[int, float]) -> float:
    """The computed peak of a batching server: its rule on half a million Poisson arrivals, at rates around the peak.

    Args:
        seconds: Of batches of 0 to `max_batch_size` requests.
        setting: `max_batch_size`, and the wait in seconds.
    """
    unit = np.cumsum(np.random.default_rng(0).exponential(size=ARRIVALS))
    capacity = max(size / s for size, s in enumerate(seconds) if size)
    rates = capacity * np.linspace(0.7, 0.98, 15)
    latency = simulate(unit / rates[:, None], np.array(seconds), [setting] * len(rates), NO_STRAYS, seed=0)
    late = np.maximum((latency > SLO_S).mean(1), 1e-6)
    return float(np.exp(np.interp(np.log(0.01), np.log(late), np.log(rates))))


if __name__ == "__main__":
    sys.exit(main())
