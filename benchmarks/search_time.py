"""Where the time of a whole search goes, and what short trials save: `python -m benchmarks.search_time [--seeds 2]`.

The default search on the demo, beside the same search with a full peak search for each configuration: whole windows of
four seconds, bisected by their verdicts, nothing foreseen and nothing rejected early. What both recommend is compared
in turn in the end.
"""

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.bench import keep, serving
from morphling_ray.evaluate import Progress
from morphling_ray.evaluate.attempt import Attempt, Stopwatch
from morphling_ray.evaluate.online import OnlineEvaluator
from morphling_ray.load.peak import find_peak
from morphling_ray.measurement import Measurement
from morphling_ray.run import CONFIRMATIONS
from morphling_ray.search import make_sampler
from morphling_ray.search.session import SearchSession
from morphling_ray.space import Configuration
from morphling_ray.target import Plan

WINDOW_S = 4.0
MEASURING = ("warming up", "table", "probing")


class FullSearches:
    """An evaluator that finds each peak from scratch, on the stand of another one."""

    def __init__(self, evaluator: OnlineEvaluator) -> None:
        self._evaluator = evaluator
        self._seed = 0

    def measure(
        self,
        configuration: Configuration,
        *,
        needed: Mapping[str, float] | None = None,
        confirm: bool = False,
        exact: bool = True,
        progress: Progress | None = None,
    ) -> Measurement:
        """See `Evaluator`."""
        attempt, stand = Attempt(configuration, Stopwatch(progress or (lambda text: None))), self._evaluator.stand
        warm = stand.ready(attempt)
        if isinstance(warm, str):
            return attempt.measurement(infeasible_because=warm)

        def probe(rate_rps: float) -> Any:
            self._seed += 1
            attempt.probes.append(stand.crew.probe(rate_rps=rate_rps, window_s=WINDOW_S, seed=self._seed))
            stand.crew.drain()
            return attempt.probes[-1]

        with attempt.watch.stage("probing"):
            capacity = stand.crew.saturate(in_flight=stand.fill(attempt), window_s=1.0)
            found = find_peak(
                probe, capacity_rps=capacity.achieved_rps, start_rps=0.75 * capacity.achieved_rps, rel_tol=0.06
            )
        if not found.peak_rps:
            return attempt.measurement(infeasible_because="SLO missed at any rate")
        return attempt.measurement(metrics={"peak_rps": found.peak_rps}, noise_sd={"peak_rps": 0.09})

    def compare(
        self,
        configuration: Configuration,
        rival: Configuration,
        *,
        ratio: float = 1.0,
        cheaper: bool = False,
        progress: Progress | None = None,
    ) -> tuple[Measurement, Measurement]:
        """One after the other: see `Evaluator`."""
        return self.measure(configuration, progress=progress), self.measure(rival, progress=progress)

    def close(self) -> None:
        """The stand is another's."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs and prints; returns 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search_time", description=__doc__)
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args(argv)
    rows = []
    for seed in range(arguments.seeds):
        with serving(seed=seed) as (plan, evaluator, say):
            short = search(plan, evaluator, seed)
            full = search(plan, FullSearches(evaluator), seed)
            ratio = 1.0
            if short["configuration"] != full["configuration"]:
                mine, other = evaluator.compare(short["configuration"], full["configuration"])
                peaks = mine.metrics["peak_rps"], other.metrics["peak_rps"]
                value = [plan.objective(m.configuration, {"peak_rps": p}) for m, p in zip((mine, other), peaks)]
                ratio = float(value[0] / value[1])
            say(f"seed {seed}: {short['seconds']:.0f} s, of which measuring {share(short):.0%}: {breakdown(short)}")
            say(f"        a full peak search each: {full['seconds']:.0f} s: {breakdown(full)}")
            say(f"        {full['seconds'] / short['seconds']:.1f} times as long; the objective is {ratio:.3f} of its")
            rows.append({"seed": seed, "short": short, "full": full, "quality_ratio": ratio})
    keep("search_time", rows, argv or sys.argv[1:])
    return 0


def search(plan: Plan, evaluator: Any, seed: int) -> dict[str, Any]:
    """A whole search, as a run makes it but without Tune; what it recommends and where the time went."""
    began = time.monotonic()
    sampler = make_sampler("morphling", plan.space, plan.objective, seed=seed, prior=None)
    session = SearchSession(
        plan.space,
        plan.objective,
        sampler,
        max_trials=12,
        time_budget_s=None,
        clock=time.monotonic,
        confirm=CONFIRMATIONS,
        initial=plan.initial,
    )
    spent: defaultdict[str, float] = defaultdict(float)
    while (ask := session.next()) is not None:
        if ask.rival is not None:
            both = evaluator.compare(ask.configuration, ask.rival.configuration, ratio=ask.ratio, cheaper=ask.cheaper)
            told = list(zip((ask.number, ask.rival.number), both))
        else:
            confirm = ask.stage == "confirm"
            told = [
                (
                    ask.number,
                    evaluator.measure(ask.configuration, needed=ask.needed, confirm=confirm, exact=ask.exact),
                )
            ]
        for number, measurement in told:
            for stage, each in measurement.timings_s.items():
                spent[stage] += each
            session.tell(number, measurement)
    seconds = time.monotonic() - began
    found = session.recommendation()
    assert found is not None
    spent["deciding"] = seconds - sum(spent.values())
    return {"configuration": found.configuration, "seconds": seconds, "spent": dict(spent)}


def share(found: dict[str, Any]) -> float:
    """Share of the time that went into measuring."""
    return float(sum(found["spent"].get(stage, 0.0) for stage in MEASURING) / found["seconds"])


def breakdown(found: dict[str, Any]) -> str:
    """The stages with their seconds."""
    return ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in found["spent"].items())


if __name__ == "__main__":
    sys.exit(main())
