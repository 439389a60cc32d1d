"""What one load driver can offer: `python -m benchmarks.driver`. An application that answers at once, by the handle.

First a closed loop; then open loops at rising rates, until the driver is late itself and the window INVALID.
"""

import sys
from collections.abc import Sequence

import numpy as np

from benchmarks.bench import keep, serving
from morphling_ray.measurement import Verdict

IN_FLIGHT = 64
WINDOW_S = 3.0
RATES = (250, 500, 750, 1000, 1500, 2000, 2500, 3000, 4000)
REPEATS = 5


def main(argv: Sequence[str] | None = None) -> int:
    """Runs and prints; returns 0."""
    rows = []
    with serving(app="benchmarks.servers:noop", space={"cpu_cores": [1]}) as (_, evaluator, say):
        evaluator.measure({"cpu_cores": 1}, confirm=True)
        crew = evaluator.stand.crew
        closed = [crew.saturate(in_flight=IN_FLIGHT, window_s=WINDOW_S) for _ in range(REPEATS)]
        rps, cpu = (np.array([getattr(p, name) for p in closed]) for name in ("achieved_rps", "driver_cpu"))
        say(
            f"closed loop, {IN_FLIGHT} in flight: {np.median(rps):.0f} RPS in the median ({rps.min():.0f} to "
            f"{rps.max():.0f}), {np.median(cpu / rps * 1000):.2f} of a core per 1,000 RPS"
        )
        rows.append({"closed_rps": rps.tolist(), "driver_cpu": cpu.tolist()})
        for rate in RATES:
            open_ = [crew.probe(rate_rps=rate, window_s=WINDOW_S, seed=seed) for seed in range(REPEATS)]
            verdicts = [p.verdict for p in open_]
            usual = open_[int(np.argsort([p.p99_s for p in open_])[REPEATS // 2])]
            say(
                f"open loop at {rate} RPS: {verdicts.count(Verdict.MET)} of {REPEATS} MET, p99 "
                f"{usual.p99_s * 1e3:.1f} ms, sent up to {usual.driver_lag_s * 1e3:.1f} ms late, "
                f"{usual.driver_cpu:.2f} of a core"
            )
            rows.append({"rate_rps": rate, "met": verdicts.count(Verdict.MET), "driver_cpu": usual.driver_cpu})
            if Verdict.MET not in verdicts:
                break
    keep("driver", rows, argv or sys.argv[1:])
    return 0


if __name__ == "__main__":
    sys.exit(main())
