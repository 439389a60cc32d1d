"""What a run found, read back from its directory, also where it was interrupted and left no recommendation."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from morphling_ray.errors import InputError
from morphling_ray.measurement import Probe, Trial
from morphling_ray.objective import Prices
from morphling_ray.space import Configuration
from morphling_ray.store import RunDirectory
from morphling_ray.wording import Outcome, configuration_text, outcome, ranked

UNITS = {"rps": "RPS", "rps_per_dollar": "RPS per $/h", "cheapest": "$/h"}
FINALISTS_SHOWN = 4


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A finished or interrupted run.

    Attributes:
        run_dir: Its folder.
        experiment: What was asked for.
        recommendation: The outcome; derived from the trials where the run left none of its own.
        trials: Every trial, in the order in which they ended.
        interrupted: Whether it was cut short, by Ctrl-C or by a kill, so that its finalists were not compared.
        serve_config: The Serve config that it wrote, or None.
        prices: What resources cost, where the run knew that.
    """

    run_dir: Path
    experiment: Mapping[str, Any]
    recommendation: Mapping[str, Any]
    trials: tuple[Trial, ...]
    interrupted: bool
    serve_config: str | None
    prices: Prices | None

    @classmethod
    def read(cls, run_dir: Path) -> "Summary":
        """Reads a run directory; see `RunDirectory.open` for what it raises."""
        directory = RunDirectory.open(run_dir)
        experiment, trials = directory.experiment(), tuple(directory.trials())
        recommendation = directory.recommendation()
        config = run_dir / "serve_config.yaml"
        return cls(
            run_dir=run_dir,
            experiment=experiment,
            recommendation=_derived(experiment, trials) if recommendation is None else recommendation,
            trials=trials,
            interrupted=recommendation is None or recommendation.get("stopped_because") == "interrupted",
            serve_config=config.read_text(encoding="utf-8", errors="replace") if config.is_file() else None,
            prices=_prices(experiment, recommendation or {}),
        )

    @property
    def objective_name(self) -> str:
        """Name of the objective."""
        return _objective_name(self.experiment, self.recommendation)

    @property
    def unit(self) -> str:
        """Unit of the objective as a person reads it; may be empty in a replay."""
        return str(self.recommendation.get("unit") or UNITS.get(self.objective_name, ""))

    @property
    def lower_is_better(self) -> bool:
        """Whether a person wants the objective small."""
        return self.objective_name == "cheapest"

    @property
    def configuration(self) -> Configuration | None:
        """What is recommended."""
        return self.recommendation.get("configuration") or None

    @property
    def slo(self) -> Mapping[str, Any] | None:
        """`latency_s`, `percentile` and `max_error_rate`."""
        return self.recommendation.get("slo") or None

    @property
    def knobs(self) -> list[str]:
        """The names of all knobs, in the order of the configurations."""
        return list(dict.fromkeys(name for trial in self.trials for name in trial.configuration))

    @property
    def measured(self) -> list[Trial]:
        """The trials that have an objective."""
        return [t for t in self.trials if outcome(t) is Outcome.MEASURED]

    @property
    def best(self) -> list[Trial]:
        """The newest measurement of each configuration: first the recommended one, then by the objective."""
        return sorted(ranked(self.trials), key=lambda t: not self.is_recommended(t))

    def value(self, trial: Trial) -> float | None:
        """The objective of a trial as a person reads it."""
        return _reported(self.objective_name, trial.objective) if outcome(trial) is Outcome.MEASURED else None

    @property
    def insight(self) -> Mapping[str, Any]:
        """What the search's model said in the end; empty where a run was killed before that."""
        return self.recommendation.get("insight") or {}

    def expected(self, trial: Trial) -> tuple[float | None, float, float | None] | None:
        """Low, middle and high of what a trial was expected to find; None where nothing was, or that it fails."""
        low, middle, high = (self.insight.get("expected") or {}).get(str(trial.number)) or (None, None, None)
        return None if middle is None else (low, middle, high)

    def is_recommended(self, trial: Trial) -> bool:
        """Whether a trial measured what is recommended."""
        return self.configuration is not None and dict(trial.configuration) == dict(self.configuration)

    def cost_per_hour(self, trial: Trial) -> float | None:
        """Dollars an hour of one copy of what a trial measured."""
        given = trial.measurement.details.get("cost_per_hour")
        if isinstance(given, (int, float)):
            return float(given)
        peak = trial.measurement.metrics.get("peak_rps")
        if self.objective_name == "rps_per_dollar" and peak and trial.objective:
            return peak / trial.objective
        try:
            return float(self.prices.cost_per_hour(trial.configuration)) if self.prices else None
        except InputError:
            return None

    def finalists(self) -> list[tuple[Configuration, list[Probe]]]:
        """The recommended configuration and the next best, each with all its open-loop probes, by rate."""
        order = sorted(self.measured, key=lambda t: (not self.is_recommended(t), t.stage != "confirm", -_raw(t)))
        probes: dict[str, tuple[Configuration, list[Probe]]] = {}
        for trial in order:
            probes.setdefault(configuration_text(trial.configuration), (trial.configuration, []))
        for trial in self.trials:
            if (known := probes.get(configuration_text(trial.configuration))) is not None:
                known[1].extend(p for p in trial.measurement.probes if p.judged)
        shown = [(c, sorted(p, key=lambda probe: probe.rate_rps)) for c, p in probes.values() if p]
        return shown[:FINALISTS_SHOWN]

    def timings_s(self) -> dict[str, float]:
        """Seconds of the run by stage, what no stage accounts for last."""
        given = self.recommendation.get("timings_s") or {}
        if not given:
            given = {}
            for trial in self.trials:
                for stage, seconds in trial.measurement.timings_s.items():
                    given[stage] = given.get(stage, 0.0) + (seconds or 0.0)
        out = {str(stage): float(seconds) for stage, seconds in given.items() if seconds and seconds > 0}
        rest = float(self.recommendation.get("seconds") or 0.0) - sum(out.values())
        return {**out, "other": rest} if out and rest > 0.05 else out

    def nearest(self) -> tuple[Trial, Probe] | None:
        """Where nothing is feasible: the trial that came closest to the SLO, and the probe in which it did."""
        probes = [(t, p) for t in self.trials for p in t.measurement.probes if p.judged and p.slo_latency_s > 0]
        return min(probes, key=lambda pair: pair[1].slo_latency_s, default=None)


def _won(trial: Trial) -> bool:
    """Whether a trial lost no comparison."""
    return trial.measurement.comparison is None or trial.measurement.comparison.won


def _raw(trial: Trial) -> float:
    return trial.objective or 0.0


def _reported(objective_name: str, value: float | None) -> float | None:
    return 1.0 / value if objective_name == "cheapest" and value else value


def _objective_name(experiment: Mapping[str, Any], recommendation: Mapping[str, Any]) -> str:
    for name in (recommendation.get("objective_name"), experiment.get("objective"), experiment.get("objective_name")):
        if name:
            return str(name)
    return "rps"


def _prices(experiment: Mapping[str, Any], recommendation: Mapping[str, Any]) -> Prices | None:
    """The prices of the run, if it used any. A price file that is gone since is no reason to have no report."""
    priced = _objective_name(experiment, recommendation) in ("rps_per_dollar", "cheapest")
    if not (priced or experiment.get("prices") or recommendation.get("cost_per_hour") is not None):
        return None
    try:
        return Prices.load(experiment.get("prices"))
    except InputError:
        return None


def _derived(experiment: Mapping[str, Any], trials: tuple[Trial, ...]) -> dict[str, Any]:
    """What can be said of a run that was interrupted: the best configuration so far, finalists before others."""
    measured = [t for t in trials if outcome(t) is Outcome.MEASURED]
    name = _objective_name(experiment, {})
    best = max(measured, key=lambda t: (t.stage == "confirm", _won(t), _raw(t)), default=None)
    ttft_ms, tpot_ms = experiment.get("slo_p99_ttft_ms"), experiment.get("slo_p99_tpot_ms")
    slo_ms = ttft_ms or experiment.get("slo_p99_ms")
    median_ms = experiment.get("slo_p50_ms")
    slo = {
        "percentile": 99.0,
        "max_error_rate": experiment.get("max_error_rate"),
        "median_s": None if median_ms is None else float(median_ms) / 1e3,
        "streaming": ttft_ms is not None,
        "tpot_s": None if tpot_ms is None else float(tpot_ms) / 1e3,
    }
    return {
        "configuration": dict(best.configuration) if best else None,
        "peak_rps": best.measurement.metrics.get("peak_rps") if best else None,
        "objective": _reported(name, best.objective) if best else None,
        "objective_name": name,
        "target_rps": experiment.get("target_rps"),
        "trials": len(trials),
        "infeasible_trials": sum(outcome(t) is Outcome.INFEASIBLE for t in trials),
        "seconds": max((t.started_s + t.seconds for t in trials), default=0.0),
        "searcher": experiment.get("searcher"),
        "seed": experiment.get("seed"),
        "prior": experiment.get("prior"),
        "slo": {"latency_s": float(slo_ms) / 1e3, **slo} if slo_ms else None,
        "stopped_because": "the run was interrupted",
        "reason": "" if best else ("no trial met the SLO so far" if trials else "no trial has ended so far"),
        "notes": ["The run was interrupted: this is the best of what was measured, without a final comparison."],
    }
