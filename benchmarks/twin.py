"""How well one deployment's table foretells all of its batch settings: `python -m benchmarks.twin [--apps ...]`.

For three models behind our batcher, and one behind `@serve.batch` (in the event loop, and in a thread): one trial
(table, forecast, a real window), then 24 batch settings by plain probes in two interleaved rounds: the reference.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.bench import keep, serving

APPS = {
    "demo": ("morphling_ray.serving.demo:app", None),
    "mobile_cnn": ("experiments.zoo.apps:mobile_cnn", "experiments.zoo.models:large_image_request"),
    "text_encoder": ("experiments.zoo.apps:text_encoder", "experiments.zoo.models:token_request"),
    "decorated": ("benchmarks.decorated:text_encoder", "experiments.zoo.models:token_request"),
    "decorated_in_a_thread": ("benchmarks.decorated:text_encoder_in_a_thread", "experiments.zoo.models:token_request"),
}
SPACE = {
    "cpu_cores": [1],
    "max_batch_size": [1, 2, 4, 8, 16, 32],
    "batch_wait_timeout_ms": [0, 5, 10, 20],
}
ROUNDS = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Runs and prints; returns 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.twin", description=__doc__)
    parser.add_argument("--apps", nargs="+", choices=APPS, default=list(APPS))
    arguments = parser.parse_args(argv)
    rows = [one_model(name) for name in arguments.apps]
    keep("twin", rows, argv or sys.argv[1:])
    return 0


def one_model(name: str) -> dict[str, Any]:
    """Measures one model; returns what is kept of it."""
    app, request = APPS[name]
    with serving(app=app, request=request, space=SPACE) as (plan, evaluator, say):
        settings = list(plan.space.configurations)
        evaluator.measure(settings[0], confirm=True)  # deployed and warm
        began = time.monotonic()
        trial = evaluator.measure(settings[0])
        seconds = time.monotonic() - began
        foreseen = {str(s.configuration): middle(s.bounds["peak_rps"]) for s in trial.siblings}
        foreseen[str(trial.configuration)] = trial.metrics["peak_rps"]
        found: dict[str, list[float]] = {}
        rng = np.random.default_rng(0)
        for round_ in range(ROUNDS):
            for i in rng.permutation(len(settings)):
                peak = evaluator.again(settings[i], by_probes=True, seed=round_).metrics["peak_rps"]
                found.setdefault(str(settings[i]), []).append(peak)
            say(f"{name}: round {round_ + 1} of {ROUNDS} done")
    first, last = (np.array([found[str(s)][k] for s in settings]) for k in (0, -1))
    twin = np.array([foreseen[str(s)] for s in settings])
    real = np.array([np.exp(np.mean(np.log(found[str(s)]))) for s in settings])
    print(f"{name}: {trial.details['foreseen_rps']} RPS foreseen, {trial.metrics['peak_rps']:.1f} after a real window")
    print(
        f"{name}: {len(settings)} settings, Spearman {rank_correlation(twin, real):.3f}, best setting at "
        f"{real[twin.argmax()] / real.max():.3f} of the real best, median error {error(twin, real):.1%}, "
        f"p90 {np.quantile(np.abs(np.log(twin / real)), 0.9):.1%}, {seconds:.1f} s a deployment; "
        f"rounds differ by {np.median(np.abs(np.log(first / last))):.1%} in the median, Spearman between them "
        f"{rank_correlation(first, last):.3f}"
    )
    return {"app": name, "foreseen": foreseen, "found": found, "seconds": seconds, "timings_s": dict(trial.timings_s)}


def middle(bounds: tuple[float, float | None]) -> float:
    """What was foreseen: the middle of its interval, in logs."""
    low, high = bounds
    return float(np.sqrt(low * (high or low)))


def rank_correlation(a: Any, b: Any) -> float:
    """Spearman's."""
    return float(np.corrcoef(a.argsort().argsort(), b.argsort().argsort())[0, 1])


def error(a: Any, b: Any) -> float:
    """The median of absolute log-ratios."""
    return float(np.median(np.abs(np.log(a / b))))


if __name__ == "__main__":
    sys.exit(main())
