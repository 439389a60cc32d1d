"""The driver and the estimates against servers whose peak can be computed: `python -m benchmarks.known_truth`.

M/D/1 and M/M/1 by plain probes (by simulation, and 1 / s - ln(100) / SLO), a batching server by the twin
and by plain probes (the batcher's rule, simulated). Each is computed twice: for the server alone, and with what the way
there and back adds to a request, through Ray and on this machine, as requests without company show it.
"""

import argparse
import sys
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from benchmarks.bench import keep, serving, spread
from benchmarks.servers import BATCH_S, ITEM_S, MEAN_S
from morphling_ray.serving.twin import NO_STRAYS, simulate
from morphling_ray.space import Configuration

FloatArray = npt.NDArray[np.float64]
SLO_S = 0.1
ARRIVALS = 500_000
ALONE, LOOKS = 100, 10  # requests without company, at most; and how often
ONE: Configuration = {"cpu_cores": 1}
BATCHES: Configuration = {**ONE, "max_batch_size": 8, "batch_wait_timeout_ms": 10}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs and prints; returns 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.known_truth", description=__doc__)
    parser.add_argument("--repeats", type=int, default=8)
    arguments = parser.parse_args(argv)
    batches_s = [0.0, *(BATCH_S + ITEM_S * size for size in range(1, 9))]
    computed: dict[str, Callable[[FloatArray], float]] = {
        "md1": lambda way_s: peak([0.0, MEAN_S], (1, 0.0), way_s),
        "mm1": exponential_peak,
        "batching": lambda way_s: peak(batches_s, (8, 0.01), way_s),
    }
    rows, way_s = [], np.zeros(1)
    for app, compute in computed.items():
        space = None if app == "batching" else {"cpu_cores": [1]}
        with serving(app=f"benchmarks.servers:{app}", space=space) as (_, evaluator, say):
            configuration = BATCHES if app == "batching" else ONE
            evaluator.measure(configuration, exact=True)  # deployed and warm
            if app == "md1":  # the one whose every request takes as long
                alone_s = np.concatenate([evaluator.stand.crew.alone(ALONE) for _ in range(LOOKS)])
                way_s = np.maximum(alone_s - MEAN_S, 0.0)
                middle, tail = 1e3 * np.quantile(way_s, (0.5, 0.99))
                say(f"the way there and back: {middle:.1f} ms, p99 {tail:.1f} ms")
            truth, through_ray = compute(np.zeros(1)), compute(way_s)
            for path in ("probes", "twin") if app == "batching" else ("probes",):
                found = [
                    evaluator.again(configuration, by_probes=path == "probes", seed=seed).metrics["peak_rps"]
                    for seed in range(arguments.repeats)
                ]
                rows.append(
                    {
                        "app": app,
                        "path": path,
                        "computed_rps": truth,
                        "computed_with_way_rps": through_ray,
                        "found_rps": found,
                    }
                )
        for row in rows[-1 - (app == "batching") :]:
            ratio = np.array(row["found_rps"]) / truth
            middle = float(np.median(ratio))
            print(
                f"{app:>8} by {row['path']:>6}: computed {truth:.1f} RPS, measured / computed {middle:.3f} "
                f"({ratio.min():.3f} to {ratio.max():.3f}, coefficient of variation {spread(ratio):.1%}); "
                f"with the way {through_ray:.1f} RPS, measured / computed {middle * truth / through_ray:.3f}"
            )
    keep("known_truth", rows, argv or sys.argv[1:])
    return 0


def peak(seconds: Sequence[float], setting: tuple[int, float], way_s: FloatArray) -> float:
    """The computed peak of a batching server: its rule on half a million Poisson arrivals, at rates around the peak.

    Args:
        seconds: Of batches of 0 to `max_batch_size` requests.
        setting: `max_batch_size`, and the wait in seconds.
        way_s: What each request takes besides: a sample, shape `(n,)`.
    """
    rng = np.random.default_rng(0)
    unit = np.cumsum(rng.exponential(size=ARRIVALS))
    capacity = max(size / s for size, s in enumerate(seconds) if size)
    rates = capacity * np.linspace(0.7, 0.98, 15)
    latency = simulate(unit / rates[:, None], np.array(seconds), [setting] * len(rates), NO_STRAYS, seed=0)
    late = np.maximum((latency + rng.choice(way_s, ARRIVALS) > SLO_S).mean(1), 1e-6)
    return _crossing(rates, late)


def exponential_peak(way_s: FloatArray) -> float:
    """The computed peak of M/M/1, whose latencies are exponential with a mean of 1 / (1 / s - rate); see `peak`."""
    rates = np.geomspace(0.2, 0.99, 200) / MEAN_S
    late = np.exp(-np.maximum(SLO_S - way_s, 0.0) * (1 / MEAN_S - rates)[:, None]).mean(1)
    return _crossing(rates, late)


def _crossing(rates: FloatArray, late: FloatArray) -> float:
    """The rate at which one request in a hundred is late."""
    return float(np.exp(np.interp(np.log(0.01), np.log(late), np.log(rates))))


if __name__ == "__main__":
    sys.exit(main())
