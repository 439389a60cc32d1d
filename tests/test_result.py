"""The result of a search: its figures, tables, view for notebooks, and the files and trackers that it is handed to."""

import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from test_report import (
    CHEAPEST,
    EVIL,
    FOUND,
    NOTHING_FOUND,
    REPLAY,
    TRIALS,
    Page,
    infeasible,
    measured,
    rejected,
    replayed,
    write,
)

from morphling_ray.errors import InputError, StoreError
from morphling_ray.export import main
from morphling_ray.measurement import Trial
from morphling_ray.result import Result
from morphling_ray.space import Configuration, Value

CONFIG = "applications:\n- runtime_env:\n    env_vars: {HUB_TOKEN: do-not-tell, COLOUR: blue}\n"


def with_batch(trial: Trial, value: Value) -> Trial:
    configuration: Configuration = {"cpu_cores": 2, "max_batch_size": value}
    return replace(trial, measurement=replace(trial.measurement, configuration=configuration))


def test_the_figures_are_those_of_the_run(tmp_path: Path) -> None:
    """Fails if a figure is left out, or is another one than recommendation.json has."""
    result = Result.read(write(tmp_path / "run", TRIALS, FOUND, CONFIG))
    assert result.configuration == {"cpu_cores": 2, "max_batch_size": 8}
    assert (result.peak_rps, result.peak_rps_interval) == (208.0, (200.0, 215.0))
    assert (result.objective, result.objective_name, result.unit) == (1733.0, "rps_per_dollar", "RPS per $/h")
    assert (result.cost_per_hour, result.gain_over_baseline, result.reason) == (0.12, 1.8, "")
    assert not result.interrupted
    assert result.serve_config == CONFIG
    assert result.recommendation == FOUND
    assert result.report == tmp_path / "run" / "report.html"
    assert repr(result).splitlines()[:3] == [
        "208 RPS at p99 \u2264 100 ms for $0.12/h, 1.8\u00d7 the RPS per dollar of the present configuration",
        "cpu_cores=2 max_batch_size=8",
        "5 trials, 96 s",
    ]


def test_each_trial_and_each_probe_has_a_row(tmp_path: Path) -> None:
    """Fails if an outcome, a bound or a reason is lost, or what was not measured is a number."""
    result = Result.read(write(tmp_path / "run", TRIALS, FOUND))
    trials, probes = result.trials, result.probes
    assert list(trials["trial"]) == [1, 2, 3, 4, 5]
    assert list(trials["max_batch_size"]) == [1, 64, 4, 8, 8]
    assert list(trials["outcome"]) == ["measured", "infeasible", "rejected", "measured", "measured"]
    assert list(trials["recommended"]) == [False, False, False, True, True]
    assert trials["reason"][1] == EVIL
    assert trials["bound"][2] == "< 118 RPS"
    assert trials["p99_s"][3] == 0.09
    assert math.isnan(trials["objective"][2])
    assert math.isnan(trials["peak_rps"][1])
    assert len(probes) == sum(len(t.measurement.probes) for t in TRIALS)
    assert list(probes[probes["trial"] == 3]["verdict"]) == ["MISSED"]


def test_a_knob_that_is_called_like_a_column_keeps_its_values(tmp_path: Path) -> None:
    """Fails if a column is overwritten by another one of its name."""
    trial = measured(1, 8, 50.0)
    knobs: Configuration = {"seconds": 7, "peak_rps": "auto"}
    trial = replace(trial, measurement=replace(trial.measurement, configuration=knobs))
    row = Result.read(write(tmp_path / "run", [trial], FOUND)).trials.iloc[0]
    assert (row["knob.seconds"], row["seconds"]) == (7, 11.0)
    assert (row["peak_rps"], row["metric.peak_rps"]) == ("auto", 50.0)


def test_an_interrupted_run_says_so(tmp_path: Path) -> None:
    """Fails if a search that was cut short, by Ctrl-C or by a kill, reads like a finished one."""
    for name, found in (("killed", None), ("stopped", {**FOUND, "stopped_because": "interrupted"})):
        result = Result.read(write(tmp_path / name, TRIALS[:4], found))
        assert result.interrupted
        assert result.configuration == {"cpu_cores": 2, "max_batch_size": 8}
        assert "interrupted" in repr(result)
        assert "Best so far: cpu_cores=2 , max_batch_size=8" in Page(result._repr_html_()).text
    at_once = Result.read(write(tmp_path / "at once", [], None))
    assert at_once.configuration is None
    assert "outcome" in at_once.trials
    assert len(at_once.trials) == len(at_once.probes) == 0
    assert "interrupted" in Page(at_once._repr_html_()).text


def test_nothing_feasible_is_a_result_with_a_reason(tmp_path: Path) -> None:
    """Fails if it is an exception, or the reason is not told."""
    result = Result.read(write(tmp_path / "run", [rejected(1), infeasible(2)], NOTHING_FOUND))
    assert result.configuration is None
    assert result.peak_rps is None
    assert result.peak_rps_interval is None
    assert result.reason == "no configuration met the SLO"
    assert "no configuration met the SLO" in repr(result)
    assert "Nothing is recommended" in Page(result._repr_html_()).text


def test_what_is_no_run_directory_is_refused(tmp_path: Path) -> None:
    """Fails if an empty result is made up."""
    with pytest.raises(InputError, match="does not exist"):
        Result.read(tmp_path / "nothing")
    with pytest.raises(StoreError, match="not a run directory"):
        Result.read(tmp_path)


def test_a_notebook_shows_the_headline_the_figures_and_the_best(tmp_path: Path) -> None:
    """Fails if text is taken for markup, a secret is shown, dollars may become formulas, or it loads anything."""
    html = Result.read(write(tmp_path / "run", TRIALS, FOUND, CONFIG))._repr_html_()
    page = Page(html)
    assert "208 RPS at p99 \u2264 100 ms for $0.12/h" in page.text
    assert "Serve with cpu_cores=2 , max_batch_size=8 ." in page.text
    assert "gain 1.80\u00d7 over the present configuration" in page.text
    rows = re.findall(r"<tr.*?</tr>", html)
    assert len(rows) == 3  # the head, and one for each configuration that was measured: the newest look at it
    assert Page(rows[1]).text == "5 1,733 208 90 ms $0.12/h 2 8"
    assert Page(rows[2]).text == "1 1,000 50 90 ms $0.05/h 2 1"
    assert page.references == []
    assert page.scripts == 0
    assert "do-not-tell" not in html
    assert "mathjax_ignore" in html
    evil = Result.read(write(tmp_path / "evil", [with_batch(TRIALS[3], EVIL)], None))._repr_html_()
    assert "<script" not in evil
    assert EVIL in Page(evil).text


def test_a_notebook_shows_a_replay_and_the_cheapest(tmp_path: Path) -> None:
    """Fails if columns of a served application are shown where nothing was served, or a cost as a bare number."""
    replay = Page(Result.read(write(tmp_path / "replay", replayed(), REPLAY))._repr_html_()).text
    assert "# slo_$5_$6 gpu $x_1 1 130 t4 2" in replay
    cheapest = Page(Result.read(write(tmp_path / "cheapest", TRIALS, CHEAPEST))._repr_html_()).text
    assert "# $/h peak RPS p99 cost cpu_cores" in cheapest


def test_files_hold_the_tables(tmp_path: Path) -> None:
    """Fails if a file holds something else than the tables, or a folder lacks the probes."""
    result = Result.read(write(tmp_path / "run", TRIALS, FOUND))
    assert result.to_csv(tmp_path / "one.csv") == [tmp_path / "one.csv"]
    folder = tmp_path / "new" / "tables"
    assert result.to_csv(folder) == [folder / "trials.csv", folder / "probes.csv"]
    assert result.to_parquet(folder) == [folder / "trials.parquet", folder / "probes.parquet"]
    for name, table in (("trials", result.trials), ("probes", result.probes)):
        numbers = {str(column): [""] for column in table.select_dtypes("number")}
        read = pd.read_csv(folder / f"{name}.csv", keep_default_na=False, na_values=numbers)
        pd.testing.assert_frame_equal(read, table, check_dtype=False)
        pd.testing.assert_frame_equal(pd.read_parquet(folder / f"{name}.parquet"), table, check_dtype=False)
    assert (tmp_path / "one.csv").read_text() == (folder / "trials.csv").read_text()
    with pytest.raises(InputError, match="cannot be written"):
        result.to_csv(tmp_path / "no folder" / "one.csv")


def test_a_knob_of_several_kinds_fits_into_parquet(tmp_path: Path) -> None:
    """Fails if numbers and texts in one column end in a traceback."""
    trials = [with_batch(TRIALS[0], 1), with_batch(TRIALS[3], "auto"), with_batch(TRIALS[4], 0.5)]
    result = Result.read(write(tmp_path / "run", trials, None))
    result.to_parquet(tmp_path / "one.parquet")
    assert list(pd.read_parquet(tmp_path / "one.parquet")["max_batch_size"]) == ["1", "auto", "0.5"]


@pytest.mark.filterwarnings("ignore")  # of Optuna and SQLAlchemy
def test_optuna_reads_the_study(tmp_path: Path) -> None:
    """Fails if a state, a value, a distribution, a time or an attribute is another one than the run's."""
    optuna = pytest.importorskip("optuna")
    run = write(tmp_path / "run", TRIALS, {**FOUND, "environment": {"date": "2025-01-31T12:00:00+00:00"}})
    with (run / "experiment.yaml").open("a") as file:
        file.write("space: {cpu_cores: [1, 2], max_batch_size: [1, 4, 8, 64]}\n")
    url, result = f"sqlite:///{tmp_path}/studies.db", Result.read(run)
    assert result.to_optuna(url) == "run"
    study = optuna.load_study(study_name="run", storage=url)
    assert study.direction == optuna.study.StudyDirection.MAXIMIZE
    assert [t.state.name for t in study.trials] == ["COMPLETE", "FAIL", "PRUNED", "COMPLETE", "COMPLETE"]
    assert study.best_trial.params == {"cpu_cores": 2, "max_batch_size": 8}
    assert study.best_value == pytest.approx(212 / 0.12)
    assert study.trials[0].distributions["max_batch_size"].choices == (1, 4, 8, 64)
    known = study.trials[3].user_attrs
    assert (known["peak_rps"], known["p99_s"], known["cost_per_hour"]) == (212.0, 0.09, pytest.approx(0.12))
    assert study.trials[1].user_attrs["reason"] == EVIL
    assert study.trials[2].user_attrs["bound"] == "< 118 RPS"
    assert (study.trials[0].duration.total_seconds(), study.trials[4].duration.total_seconds()) == (11.0, 11.0)
    assert (study.trials[4].datetime_start - study.trials[0].datetime_start).total_seconds() == 40.0
    assert study.ask(study.trials[0].distributions).params["max_batch_size"] in (1, 4, 8, 64)  # it can go on
    with pytest.raises(InputError, match="has a study 'run' already"):
        result.to_optuna(url)
    cheapest = Result.read(write(tmp_path / "cheapest", TRIALS, CHEAPEST))
    cheapest.to_optuna(url, "least")
    assert optuna.load_study(study_name="least", storage=url).direction == optuna.study.StudyDirection.MINIMIZE
    with pytest.raises(InputError, match="Optuna's storage refuses"):
        result.to_optuna("sqlite:////nowhere/at/all.db")


@pytest.mark.filterwarnings("ignore")  # of MLflow and SQLAlchemy
@pytest.mark.timeout(180)
def test_mlflow_reads_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if a parameter, a step or an artifact is missing, if a secret is in one, or a knob's name is refused."""
    tracking = pytest.importorskip("mlflow.tracking")
    monkeypatch.chdir(tmp_path)  # MLflow puts artifacts into mlruns here
    url = f"sqlite:///{tmp_path}/mlflow.db"
    identity = Result.read(write(tmp_path / "run", TRIALS, FOUND, CONFIG)).to_mlflow(url, "tuning")
    client = tracking.MlflowClient(url)
    run = client.get_run(identity)
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    assert client.get_experiment(run.info.experiment_id).name == "tuning"
    assert run.data.params["recommended.max_batch_size"] == "8"
    assert run.data.params["slo_p99_ms"] == "100"
    assert run.data.metrics["recommended.peak_rps"] == 208.0
    history = client.get_metric_history(identity, "peak_rps")
    assert [(m.step, m.value) for m in history] == [(1, 50.0), (4, 212.0), (5, 208.0)]
    assert "208 RPS" in run.data.tags["outcome"]
    assert {a.path for a in client.list_artifacts(identity)} == {"report.html", "serve_config.yaml"}
    files = [p for p in (tmp_path / "mlruns").rglob("*") if p.is_file()]
    assert sorted(p.name for p in files) == ["report.html", "serve_config.yaml"]
    assert not any("do-not-tell" in p.read_text() for p in files)
    assert "do-not-tell" not in (tmp_path / "mlflow.db").read_bytes().decode(errors="replace")
    killed = Result.read(write(tmp_path / "killed", replayed(), None)).to_mlflow(url, "tuning")
    assert client.get_run(killed).info.status == "KILLED"
    assert client.get_run(killed).data.params["space._x_1"] == "[2]"


@pytest.mark.parametrize("package", ["optuna", "mlflow"])
def test_a_package_that_is_missing_is_named(package: str, tmp_path: Path) -> None:
    """Fails if it ends in a traceback, or does not say what to install."""
    write(tmp_path / "run", TRIALS, FOUND)
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        f"from morphling_ray.export import main; sys.exit(main(['run', '--{package}', 'sqlite:///x.db']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert done.stderr == f"morphling_ray: {package} is not installed: pip install 'morphling-ray[exports]'\n"


def test_the_command_writes_and_says_what(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fails if a flag is forgotten, or a mistake is not one line and status 2."""
    run = write(tmp_path / "run", TRIALS, FOUND)
    csv, parquet = tmp_path / "t.csv", tmp_path / "t.parquet"
    assert main([str(run), "--csv", str(csv), "--parquet", str(parquet)]) == 0
    assert capsys.readouterr().out == f"{csv}\n{parquet}\n"
    assert csv.is_file()
    assert parquet.is_file()
    for arguments, said in (([str(run)], "nothing to export to"), (["nothing", "--csv", "x.csv"], "does not exist")):
        assert main(arguments) == 2
        captured = capsys.readouterr()
        assert said in captured.err
        assert captured.err.count("\n") == 1
        assert captured.out == ""
    assert json.loads((run / "recommendation.json").read_text()) == FOUND  # nothing of the run was changed
