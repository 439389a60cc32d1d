"""What `--dry-run` says: the plan, what the cluster can hold, about what it takes, and what would be tried first."""

import os
import statistics
from typing import Any

from morphling_ray.cluster import Cluster, connect, disconnect
from morphling_ray.experiment import Experiment
from morphling_ray.run import check, new_session
from morphling_ray.space import Configuration
from morphling_ray.target import Plan, Target
from morphling_ray.wording import configuration_text, counted

PROPOSALS = 3
# Seconds of a trial on replicas that are up, and of one that has to start them and load a model (benchmarks/peak.py and
# steps.py, on 2 cores); what a user's own model takes to load is not known before it was.
MEASURE_S, RESTART_S = 6.0, 8.0
START_S = 12.0  # of Ray and Serve


def dry_run(experiment: Experiment) -> tuple[dict[str, Any], list[str]]:
    """The plan as data, and as lines for a person. Nothing is deployed, and nothing left behind.

    A given cluster is asked what it has; without one, the plan is for a local Ray on this machine.

    Raises:
        MorphlingError: Something cannot work.
    """
    target = check(experiment)
    plan = target.plan(_cluster(experiment.address, experiment.node_types))
    session = new_session(experiment, target, plan, elapsed_s=0.0)
    proposals: list[Configuration] = []
    while len(proposals) < min(PROPOSALS, experiment.max_trials) and (ask := session.next()) is not None:
        proposals.append(ask.configuration)
    trials = min(experiment.max_trials, len(plan.space) + sum(c not in plan.space for c in plan.initial))
    seconds = _seconds(trials, experiment.time_budget) if target.needs_serve else None
    dollars = _dollars(target, plan, seconds)
    data = {
        **experiment.to_dict(),
        **plan.space.to_dict(),
        "configurations": len(plan.space),
        "present": plan.initial[0] if plan.initial else None,
        "proposals": proposals,
        "expected_trials": trials,
        "expected_seconds": seconds,
        "expected_dollars": dollars,
        "notes": list(plan.notes),
    }
    return data, _lines(data)


def _cluster(address: str | None, types_file: str | None) -> Cluster:
    if address is None:
        return Cluster(local=True, nodes=({"CPU": float(len(os.sched_getaffinity(0)))},))
    try:
        return connect(address, types_file)
    finally:
        disconnect()


def _seconds(trials: int, budget: float | None) -> list[float]:
    """From all trials on replicas that are up to a restart for each."""
    low, high = START_S + RESTART_S + trials * MEASURE_S, START_S + trials * (MEASURE_S + RESTART_S)
    return [low, high] if budget is None else [min(low, budget), min(high, budget + MEASURE_S + RESTART_S)]


def _dollars(target: Target, plan: Plan, seconds: list[float] | None) -> list[float] | None:
    """What configurations cost, taken as the mean over the space, while they are measured."""
    prices = [target.cost_per_hour(c) for c in plan.space.configurations]
    known = [price for price in prices if price is not None]
    if seconds is None or not known:
        return None
    return [round(statistics.fmean(known) * s / 3600, 4) for s in seconds]


def _lines(plan: dict[str, Any]) -> list[str]:
    knobs = [f"  {name}: {', '.join(map(str, values))}" for name, values in plan["space"].items()]
    lines = [f"{counted(plan['configurations'], 'configuration')} to choose from:", *knobs]
    lines += [f"  where {rule}" for rule in plan["constraints"]]
    lines += [f"Note: {note}" for note in plan["notes"]]
    present = plan["present"]
    lines.append(f"The present one is measured first: {configuration_text(present)}" if present else "")
    first = [p for p in plan["proposals"] if p != present]
    lines += [f"Then {plan['searcher']} would try: {configuration_text(p)}" for p in first[:1]]
    lines += [f"  and, if that told nothing: {configuration_text(p)}" for p in first[1:]]
    if plan["expected_seconds"] is not None:
        low, high = (s / 60 for s in plan["expected_seconds"])
        text = f"{counted(plan['expected_trials'], 'trial')}: about {low:.1f} to {high:.1f} minutes (slow models: more)"
        if plan["expected_dollars"] is not None:
            text += f"; ${plan['expected_dollars'][0]:.2g} to ${plan['expected_dollars'][1]:.2g} by the price file"
        lines.append(text)
    return [line for line in lines if line]
