"""How good and how quick the main job is on the demo: `python -m experiments.demo_benchmark [--seeds 5]`.

Runs `python -m morphling_ray.tune` as a user does, once per seed and searcher, interleaved, and judges what it
recommends by the recorded truth (experiments/surfaces/demo: every configuration measured in several rounds). Prints
seconds from command to recommendation, trials, and the share of the best objective; medians and worst cases.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from morphling_ray.surface import load_surfaces

TRUTH = Path(__file__).parent / "surfaces" / "demo"
RESULTS = Path(__file__).parent / "results" / "demo.jsonl"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs and prints; returns 0."""
    parser = argparse.ArgumentParser(prog="python -m experiments.demo_benchmark", description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--searchers", nargs="+", default=["morphling", "random"])
    arguments = parser.parse_args(argv)
    surfaces = load_surfaces(TRUTH)
    surface = surfaces.task("demo")
    truth = surfaces.objective("rps_per_dollar", "demo")(surface.columns, surface.metrics)
    truth = np.where(surface.feasible, truth, 0.0)
    best = float(truth.max())
    print(f"truth: best of {len(truth)} is {best:.4g} RPS per $/h with {surface.space[int(truth.argmax())]}")
    print(f"{int((truth >= 0.9 * best).sum())} of them are within 10 % of it")
    runs: list[dict[str, Any]] = []
    for seed in range(arguments.seeds):
        for searcher in arguments.searchers:
            with tempfile.TemporaryDirectory() as folder:
                run = one_run(Path(folder) / "run", searcher, seed)
            run["quality"] = float(truth[surface.space.index(run.pop("configuration"))]) / best
            runs.append(run)
            told = "{searcher:>10} seed {seed}: {seconds:6.1f} s, {trials:2d} trials, {quality:.3f} of the best"
            print(told.format(**run), flush=True)
    print()
    for searcher in arguments.searchers:
        mine = [r for r in runs if r["searcher"] == searcher]
        seconds, quality = [r["seconds"] for r in mine], [r["quality"] for r in mine]
        measuring = statistics.median(r["measuring_share"] for r in mine)
        print(
            f"{searcher:>10}: {statistics.median(seconds):.0f} s median, {max(seconds):.0f} s at most; "
            f"{statistics.median(r['trials'] for r in mine):.0f} trials; quality {statistics.median(quality):.3f} "
            f"median, {min(quality):.3f} worst; {measuring:.0%} of the time spent measuring"
        )
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text("".join(json.dumps(run) + "\n" for run in runs))
    return 0


def one_run(folder: Path, searcher: str, seed: int) -> dict[str, Any]:
    """One run of the main job, timed from outside."""
    command = [sys.executable, "-m", "morphling_ray.tune", "--run-dir", str(folder), "--searcher", searcher]
    started = time.monotonic()
    done = subprocess.run([*command, "--seed", str(seed)], capture_output=True, text=True, check=True)
    seconds = time.monotonic() - started
    result = json.loads(done.stdout.strip().splitlines()[-1])
    timings = json.loads((folder / "recommendation.json").read_text())["timings_s"]
    measuring = sum(timings.get(stage, 0.0) for stage in ("warming up", "table", "probing"))
    return {
        "searcher": searcher,
        "seed": seed,
        "seconds": round(seconds, 1),
        "trials": result["trials"],
        "configuration": result["configuration"],
        "objective": result["objective"],
        "measuring_share": round(measuring / seconds, 3),
        "timings_s": timings,
    }


if __name__ == "__main__":
    sys.exit(main())
