"""From trials to the recommendation: the figures that recommendation.json holds and the terminal says."""

import os
import shlex
import shutil
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from threadpoolctl import threadpool_limits

from morphling_ray.environment import environment
from morphling_ray.experiment import Experiment
from morphling_ray.measurement import Measurement, Probe, Trial, Verdict
from morphling_ray.objective import ServingObjective, Slo
from morphling_ray.search import SEARCHERS, bundled_prior, stored_prior
from morphling_ray.search.insight import insight
from morphling_ray.search.session import CONFIRM, SEARCH, SearchSession
from morphling_ray.space import Configuration
from morphling_ray.wording import configuration_text, counted, differing, percent

DIFFERENCE_SHOWN = 40  # lines
# More than two looks at one configuration differ by chance: where several finalists did alike, and where there is one.
SHIFTED, ALONE_SHIFTED = 1.15, 1.3
HEADROOM = 0.8  # share of the peak that an autoscaled replica is to run at

if TYPE_CHECKING:
    from morphling_ray.target import Plan, Target


def recommendation(
    experiment: Experiment,
    plan: "Plan | None",
    session: SearchSession | None,
    trials: Sequence[Trial],
    *,
    target: "Target",
    run_dir: str,
    seconds: float,
    starting_s: float,
    interrupted: bool,
    command: Sequence[str],
    loadgen: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Everything that is said about the outcome; `configuration` is None where nothing feasible was found."""
    chosen = session.recommendation() if session is not None else None
    slo = experiment.slo()
    out: dict[str, Any] = {
        "run_dir": run_dir,
        "summary": "",
        "configuration": None,
        "peak_rps": None,
        "peak_rps_interval": None,
        "objective": None,
        "objective_name": experiment.objective_name or experiment.objective,
        "unit": plan.unit if plan is not None else "",
        "cost_per_hour": None,
        "copies": None,
        "ongoing_requests": None,
        "target_rps": experiment.target_rps,
        "p99_s": None,
        "trials": len(trials),
        "infeasible_trials": sum(not t.measurement.feasible for t in trials),
        "voided_attempts": sum(t.measurement.voided for t in trials),
        "seconds": round(seconds, 1),
        "searcher": experiment.searcher,
        "prior": _prior(experiment),
        "seed": experiment.seed,
        "slo": None if experiment.replay else asdict(slo),
        "baseline": None,
        "gain_over_baseline": None,
        "probability_within_5_percent": None,
        "probability_better_than_next": None,
        "tied_with": 0,
        "compared_with": None,
        "loadgen": loadgen,
        "stopped_because": "interrupted" if interrupted else (session.stopped_because if session is not None else ""),
        "reason": "",
        "nearest": None,
        "notes": [*(plan.notes if plan is not None else ()), *(session.notes if session is not None else ())],
        "environment": environment(command),
        "timings_s": _timings(trials, starting_s, seconds),
        "insight": _insight(experiment, plan, trials) if plan is not None and trials else None,
    }
    if chosen is None or plan is None:
        out["reason"] = _why_nothing(trials, interrupted=interrupted)
        out["nearest"] = _nearest(trials, slo) if plan is None or isinstance(plan.objective, ServingObjective) else None
        return out
    own = [t for t in trials if t.configuration == chosen.configuration and t.objective is not None]
    best = _most_trusted(own)
    value = chosen.objective
    out["configuration"] = chosen.configuration
    out["objective"] = plan.objective.reported(value)
    out["probability_within_5_percent"] = chosen.p_near_best
    out["probability_better_than_next"] = chosen.p_better
    out["tied_with"] = chosen.tied
    out["compared_with"] = chosen.beaten
    out["notes"] += list(best.measurement.notes)
    if best.measurement.estimated:
        out["notes"].append(
            "The peak is an estimate: a forecast from the times of batches, corrected by a real window."
        )
    if isinstance(plan.objective, ServingObjective):
        peak = best.measurement.metrics["peak_rps"]
        value = best.objective or 0.0
        out["peak_rps"] = peak
        out["peak_rps_interval"] = _interval(best.measurement)
        out["objective"] = plan.objective.reported(value)
        out["cost_per_hour"] = target.cost_per_hour(chosen.configuration)
        out["copies"] = int(plan.objective.copies(peak))
        out["ongoing_requests"] = _ongoing(best.measurement, HEADROOM * peak)
        at_peak = _probe_at(best.measurement, peak)
        out["p99_s"] = at_peak.p99_s if at_peak is not None else None
    if loadgen is not None and out["peak_rps"]:
        out["notes"].append(
            f"MLPerf LoadGen {loadgen['version']} (Server scenario) finds {loadgen['peak_rps']:.4g} RPS, "
            f"{loadgen['peak_rps'] / out['peak_rps']:.2f} of the peak that is reported"
        )
    base = _baseline(trials, plan.initial)
    if base is not None and base.objective is not None:
        out["baseline"] = {
            "configuration": base.configuration,
            "peak_rps": base.measurement.metrics.get("peak_rps"),
            "objective": plan.objective.reported(base.objective),
        }
        # One configuration that was measured twice differs by chance.
        out["gain_over_baseline"] = 1.0 if base.configuration == chosen.configuration else value / base.objective
    if (shift := _shift(trials)) is not None:
        off = " The present configuration was measured at the start, so the gain over it may be off by as much."
        out["notes"].append(
            f"The finalists reached {shift:.2f} times the peaks of the search when they were confirmed: its windows "
            f"were too short, its forecasts off, or the machine's speed changed.{off if out['baseline'] else ''}"
        )
    out["summary"] = _summary(out, slo)
    return out


def _insight(experiment: Experiment, plan: "Plan", trials: Sequence[Trial]) -> dict[str, Any]:
    """What the model says of the search in the end, in the unit that a person reads; what does not work is None."""
    learned = stored_prior(experiment.searcher, Path(experiment.prior) if experiment.prior else None)
    with threadpool_limits(limits=1):
        seen = [(t.number, t.measurement) for t in trials]
        found = insight(plan.space, plan.objective, seen, prior=learned, seed=experiment.seed)

    def reported(value: float | None) -> float | None:
        return float(f"{plan.objective.reported(value):.5g}") if value else None

    expected = [(e.number, [reported(v) for v in (e.low, e.middle, e.high)]) for e in found.expected]
    plane = found.plane
    return {
        "expected": {str(number): values for number, values in expected},
        "effects": {
            name: [
                {"value": e.value, "low": round(e.low, 4), "middle": round(e.middle, 4), "high": round(e.high, 4)}
                for e in effects
            ]
            for name, effects in found.effects
        },
        "plane": None
        if plane is None
        else {
            "rows": plane.rows,
            "columns": plane.columns,
            "values": [[reported(v) for v in row] for row in plane.values],
        },
    }


def _prior(experiment: Experiment) -> str | None:
    """Where the searcher's prior came from; None where it takes none."""
    method = SEARCHERS.get(experiment.searcher)
    if method is None or method.learn is None or experiment.prior is not None:
        return experiment.prior
    return "bundled with the package" if bundled_prior() is not None else None


def _most_trusted(trials: Sequence[Trial]) -> Trial:
    """The longest look at the chosen configuration: its confirmation, if it had one (of two, the median)."""
    confirmed = [t for t in trials if t.stage == CONFIRM] or list(trials)
    middle = statistics.median_low([t.objective or 0.0 for t in confirmed])
    return next(t for t in confirmed if (t.objective or 0.0) == middle)


def _interval(measurement: Measurement) -> list[float] | None:
    """One standard deviation to each side; or from the highest rate that met the SLO to the lowest that missed."""
    if (given := measurement.details.get("peak_rps_interval")) is not None:
        return list(given)
    peak = measurement.metrics["peak_rps"]
    missed = [p.rate_rps for p in measurement.probes if p.judged and p.verdict is not Verdict.MET and p.rate_rps > peak]
    return [peak, min(missed)] if missed else None


def _probe_at(measurement: Measurement, rate_rps: float) -> Probe | None:
    return min(measurement.met, key=lambda p: abs(p.rate_rps - rate_rps), default=None)


def _ongoing(measurement: Measurement, rate_rps: float) -> float | None:
    """Requests in flight at a rate, by Little's law from the probe nearest to it; None where none met the SLO.

    Latency hardly falls with the rate, so that a probe at a higher rate tells of a lower one.
    """
    probe = _probe_at(measurement, rate_rps)
    if probe is None or not probe.mean_s:
        return None
    return round(max(1.0, min(rate_rps, probe.rate_rps) * probe.mean_s), 1)


def _shift(trials: Sequence[Trial]) -> float | None:
    """Confirmed peaks over those of the search, where all finalists changed alike and by much; else None."""
    looks: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for trial in trials:
        if peak := trial.measurement.metrics.get("peak_rps"):
            looks[str(trial.configuration)][trial.stage].append(peak)
    both = [stages for stages in looks.values() if stages[SEARCH] and stages[CONFIRM]]
    ratios = [statistics.median(stages[CONFIRM]) / statistics.median(stages[SEARCH]) for stages in both]
    most = SHIFTED if len(ratios) > 1 else ALONE_SHIFTED
    alike = bool(ratios) and (max(ratios) < 1 / most or min(ratios) > most)
    return statistics.geometric_mean(ratios) if alike else None


def _baseline(trials: Sequence[Trial], initial: Sequence[Configuration]) -> Trial | None:
    return next((t for t in trials if t.configuration in initial), None)


def _timings(trials: Sequence[Trial], starting_s: float, seconds: float) -> dict[str, float]:
    out: defaultdict[str, float] = defaultdict(float, {"starting Ray": starting_s})
    for trial in trials:
        for stage, spent in trial.measurement.timings_s.items():
            out[stage] += spent
    measured = sum(out.values())
    out["deciding and the rest"] = max(0.0, seconds - measured)
    return {stage: round(spent, 2) for stage, spent in out.items()}


def _why_nothing(trials: Sequence[Trial], *, interrupted: bool) -> str:
    if not trials:
        return "interrupted before a trial had ended" if interrupted else "no trial was made"
    reasons = Counter(t.measurement.infeasible_because or "rejected" for t in trials)
    reason, count = reasons.most_common(1)[0]
    return f"no configuration meets the SLO; {count} of {len(trials)} trials: {reason}"


def _nearest(trials: Sequence[Trial], slo: Slo) -> dict[str, Any] | None:
    """The configuration that came nearest to the SLO, and the bound that it breaks by the largest factor.

    None where it was never the SLO that stood in the way: a replica that crashed may have been quick enough until then.
    """
    found = []
    for trial in (t for t in trials if "SLO" in t.measurement.infeasible_because):
        for probe in (p for p in trial.measurement.probes if p.judged and p.requests and p.slo_latency_s > 0):
            name = f"p{slo.percentile:g}"
            bounds = [(name, probe.slo_latency_s, slo.latency_s)]
            if slo.streaming:
                bounds = [(f"{name} of TTFT", probe.ttft_s, slo.latency_s)]
            if slo.tpot_s is not None:
                bounds.append((f"{name} of TPOT", probe.tpot_s, slo.tpot_s))
            bounds.append(("error rate", probe.errors / probe.requests, slo.max_error_rate))
            if slo.median_s is not None:
                bounds.append(("p50", probe.p50_s, slo.median_s))
            bound, value, allowed = max(bounds, key=lambda b: b[1] / max(b[2], 1e-9))
            told = {"bound": bound, "found": value, "allowed": allowed, "rate_rps": probe.rate_rps}
            found.append((value / max(allowed, 1e-9), {"configuration": trial.configuration, **told}))
    return min(found, key=lambda each: each[0])[1] if found else None


def _nearest_text(nearest: dict[str, Any]) -> str:
    def amount(value: float) -> str:
        return f"{100 * value:.3g} %" if nearest["bound"] == "error rate" else f"{1e3 * value:.4g} ms"

    return (
        f"{configuration_text(nearest['configuration'])} has {nearest['bound']} {amount(nearest['found'])} at "
        f"{nearest['rate_rps']:.3g} RPS, where {amount(nearest['allowed'])} are allowed"
    )


def _summary(result: dict[str, Any], slo: Slo) -> str:
    knobs = ", ".join(f"{name}={value}" for name, value in result["configuration"].items())
    if result["peak_rps"] is None:
        return f"{knobs}: {result['objective_name']} {result['objective']:.4g}"
    text = f"{knobs}: {result['peak_rps']:.4g} RPS at {slo} for ${result['cost_per_hour']:.3g} an hour"
    if result["copies"] and result["copies"] > 1:
        text += f", {result['copies']} copies for {result['target_rps']:g} RPS"
    if result["baseline"] is not None and result["baseline"]["configuration"] == result["configuration"]:
        text += ", which is the present configuration"
    elif result["gain_over_baseline"] is not None:
        text += f", {result['gain_over_baseline']:.2f}x the present configuration"
    rival = differing(result["configuration"], result["compared_with"] or {}) or "the next"
    if result["tied_with"]:
        others = rival if result["compared_with"] else counted(result["tied_with"], "other")
        return f"{text}; a tie with {others}"
    if result["probability_better_than_next"] is not None:
        text += f"; better than {rival} with a probability of {percent(result['probability_better_than_next'])}"
    return text


def closing_lines(result: dict[str, Any], report: Path, config: Path | None, difference: str = "") -> list[str]:
    """What the terminal says last.

    Args:
        result: The outcome.
        report: Where the report is.
        config: Where the Serve config is.
        difference: To the user's own Serve config.
    """
    spent = f"{result.get('trials', 0)} trials, {result.get('seconds', 0):.0f} s"
    if result.get("configuration") is None:
        nearest = [f"Nearest: {_nearest_text(result['nearest'])}"] if result.get("nearest") else []
        return [f"Nothing to recommend ({spent}): {result.get('reason', '')}", *nearest, f"Report:  {report}"]
    lines = [f"Best found ({spent}): {result['summary']}"]
    if config is not None:
        lines.append(f"Deploy:  {_serve()} run {shlex.quote(str(config))}")
        lines += difference.splitlines()[:DIFFERENCE_SHOWN]
    return [*lines, f"Report:  {report}"]


def _serve() -> str:
    """Ray's `serve` as a shell here takes it: by its name, or by its path where the environment is not activated."""
    beside_us = Path(sys.executable).with_name("serve")
    if shutil.which("serve") == str(beside_us) or not beside_us.exists():
        return "serve"
    return shlex.quote(os.path.relpath(beside_us))
