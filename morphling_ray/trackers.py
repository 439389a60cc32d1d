"""A search as others keep experiments: a study of Optuna (optuna-dashboard opens it), a run of MLflow.

Nothing secret goes there: knobs have names for secret values already, and the Serve config is masked as in the report.
"""

import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morphling_ray.errors import InputError
from morphling_ray.masking import masked
from morphling_ray.measurement import Trial
from morphling_ray.report import render
from morphling_ray.sections import found
from morphling_ray.store import plain
from morphling_ray.wording import Outcome, at_peak, configuration_text, one_line, outcome

if TYPE_CHECKING:
    from morphling_ray.result import Result

_SETTINGS = ("app", "request", "replay", "task", "searcher", "seed", "max_trials", "objective", "objective_name",
             "target_rps", "slo_p99_ms", "slo_p50_ms", "slo_p99_ttft_ms", "slo_p99_tpot_ms", "max_error_rate",
             "prices", "constraints")  # fmt: skip


def to_optuna(result: "Result", storage: str, study_name: str | None = None) -> str:
    """Makes a study of a search: its trials with their parameters, values and times.

    A parameter is the list of its knob's values, so that a study can go on where the search ended. A trial that was
    measured is COMPLETE, one that was only shown to be worse than the best PRUNED, one that is infeasible or breaks a
    bound FAIL; the user attributes have peak, p99, cost and reason.

    Args:
        result: The search.
        storage: As Optuna takes it: `sqlite:///studies.db`.
        study_name: None: that of the run directory.

    Returns:
        The study's name.

    Raises:
        InputError: Optuna is not installed, the storage does not answer, or the study exists.
    """
    with _needed("optuna"):
        import optuna
        from sqlalchemy.exc import SQLAlchemyError

    name = study_name or result.run_dir.resolve().name
    summary = result.summary
    values = _values(result)
    choices = {knob: optuna.distributions.CategoricalDistribution(given) for knob, given in values.items()}
    states = {Outcome.MEASURED: "COMPLETE", Outcome.REJECTED: "PRUNED"}
    began = _began(result)
    try:
        study = optuna.create_study(
            storage=storage, study_name=name, direction="minimize" if summary.lower_is_better else "maximize"
        )
        for key, value in _about(result).items():
            study.set_user_attr(key, value)
        for trial in summary.trials:
            parameters = dict(trial.configuration)
            frozen = optuna.trial.create_trial(
                state=optuna.trial.TrialState[states.get(outcome(trial), "FAIL")],
                value=summary.value(trial),
                params=parameters,
                distributions={knob: choices[knob] for knob in parameters},
                user_attrs=_attributes(result, trial),
            )
            frozen.datetime_start = began + timedelta(seconds=trial.started_s)
            frozen.datetime_complete = frozen.datetime_start + timedelta(seconds=trial.seconds)
            study.add_trial(frozen)
    except optuna.exceptions.DuplicatedStudyError as error:
        raise InputError(f"the storage has a study {name!r} already; give another name") from error
    except (optuna.exceptions.OptunaError, SQLAlchemyError, OSError, ImportError, ValueError) as error:
        raise InputError(f"Optuna's storage refuses: {one_line(str(error))[:200]}") from error
    return name


def to_mlflow(result: "Result", tracking_uri: str, experiment: str = "morphling_ray") -> str:
    """Makes a run of a search: settings and recommendation as parameters, metrics of each trial as steps.

    Metrics `peak_rps`, `objective`, `p99_s`, `cost_per_hour` and so on have a step for each trial;
    `recommended.peak_rps` and so on are the outcome. The artifacts are report.html and serve_config.yaml, the latter
    with `***` for secrets.

    Args:
        result: The search.
        tracking_uri: Of a tracking server, or a database: `sqlite:///mlflow.db`. MLflow refuses plain folders by now.
        experiment: Made if need be.

    Returns:
        The run's id.

    Raises:
        InputError: MLflow is not installed, or the server or database refuses.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # the user sends this search there, and nothing elsewhere
    with _needed("mlflow"):
        from mlflow.entities import Metric, Param, RunTag
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

    began = _began(result)
    metrics = [
        Metric(_name(key), value, _milliseconds(began, trial.started_s + trial.seconds), trial.number)
        for trial in result.summary.trials
        for key, value in _metrics(result, trial).items()
    ]
    end = _milliseconds(began, float(result.recommendation.get("seconds") or 0.0))
    for key in ("peak_rps", "objective", "cost_per_hour", "p99_s", "gain_over_baseline", "copies"):
        if (value := result.recommendation.get(key)) is not None:
            metrics.append(Metric(f"recommended.{key}", float(value), end, 0))
    parameters = [Param(_name(key), str(value)[:6000]) for key, value in _parameters(result).items()]
    try:
        client = MlflowClient(tracking_uri)
        known = client.get_experiment_by_name(experiment)
        run = client.create_run(
            known.experiment_id if known is not None else client.create_experiment(experiment),
            start_time=_milliseconds(began, 0.0),
            run_name=result.run_dir.resolve().name,
        )
        tags = [RunTag(key, str(value)) for key, value in _about(result).items()]
        tags.append(RunTag("mlflow.note.content", str(result)))
        client.log_batch(run.info.run_id, params=parameters, tags=tags)
        for start in range(0, len(metrics), 1000):  # more are refused
            client.log_batch(run.info.run_id, metrics=metrics[start : start + 1000])
        with tempfile.TemporaryDirectory() as folder:
            for file, text in _artifacts(result).items():
                (Path(folder) / file).write_text(text, encoding="utf-8")
                client.log_artifact(run.info.run_id, str(Path(folder) / file))
        client.set_terminated(run.info.run_id, "KILLED" if result.interrupted else "FINISHED", end)
    except (MlflowException, OSError) as error:
        raise InputError(f"MLflow refuses: {one_line(str(error))[:300]}") from error
    return str(run.info.run_id)


@contextmanager
def _needed(package: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise InputError(f"{package} is not installed: pip install 'morphling-ray[exports]'") from error


def _values(result: "Result") -> dict[str, list[Any]]:
    """All values of each knob: those of the space, and others that were measured, as the present ones."""
    space = result.summary.experiment.get("space")
    values = {str(k): list(v) for k, v in space.items()} if isinstance(space, Mapping) else {}
    for trial in result.summary.trials:
        for knob, value in trial.configuration.items():
            if value not in values.setdefault(knob, []):
                values[knob].append(value)
    return values


def _about(result: "Result") -> dict[str, Any]:
    """Of the whole search."""
    r = result.recommendation
    text = found(result.summary) if result.configuration is not None else ""
    about = {
        "outcome": text or f"nothing is recommended: {one_line(result.reason)}",
        "configuration": configuration_text(result.configuration or {}),
        "objective": result.objective_name,
        "stopped_because": r.get("stopped_because"),
        "run_dir": result.run_dir.resolve().name,
    }
    return {key: value for key, value in about.items() if value not in (None, "")}


def _attributes(result: "Result", trial: Trial) -> dict[str, Any]:
    """Of a trial: what is known beside its parameters and its value."""
    row = result.trials.loc[result.trials["trial"] == trial.number].iloc[-1]
    keys = ("stage", "outcome", "peak_rps", "p99_s", "cost_per_hour", "bound", "reason", "seconds")
    return {k: v for k in keys if k in row and (v := plain(row[k])) not in (None, "")}


def _metrics(result: "Result", trial: Trial) -> dict[str, float]:
    summary, probe = result.summary, at_peak(trial.measurement)
    values = {
        **trial.measurement.metrics,
        "objective": summary.value(trial),
        "p99_s": probe.p99_s if probe is not None else None,
        "cost_per_hour": summary.cost_per_hour(trial),
        "seconds": trial.seconds,
    }
    return {key: float(v) for key, v in values.items() if v is not None and v == v}


def _parameters(result: "Result") -> dict[str, Any]:
    given = result.summary.experiment
    settings = {key: given[key] for key in _SETTINGS if given.get(key) not in (None, [])}
    space = {f"space.{knob}": json.dumps(plain(values)) for knob, values in _values(result).items()}
    return {**settings, **space, **{f"recommended.{k}": v for k, v in (result.configuration or {}).items()}}


def _name(key: str) -> str:
    """As MLflow takes it."""
    return re.sub(r"[^\w\-. :/]", "_", key)


def _artifacts(result: "Result") -> dict[str, str]:
    config = {"serve_config.yaml": masked(result.serve_config)} if result.serve_config else {}
    return {"report.html": render(result.run_dir), **config}


def _began(result: "Result") -> datetime:
    """When the search began, by the clock of this machine."""
    seconds = float(result.recommendation.get("seconds") or 0.0)
    date = (result.recommendation.get("environment") or {}).get("date")  # written at the end
    if date is not None:
        return datetime.fromisoformat(date).astimezone().replace(tzinfo=None) - timedelta(seconds=seconds)
    file = result.run_dir / "trials.jsonl"
    last = file if file.is_file() else result.run_dir / "experiment.yaml"
    return datetime.fromtimestamp(last.stat().st_mtime) - timedelta(seconds=seconds)


def _milliseconds(began: datetime, seconds: float) -> int:
    return int((began + timedelta(seconds=seconds)).timestamp() * 1e3)
