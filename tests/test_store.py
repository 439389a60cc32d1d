"""The run directory: what is written stays, what is not ours is left alone."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import yaml

from morphling_ray.errors import InputError, StoreError
from morphling_ray.measurement import Measurement, Probe, Trial, Verdict
from morphling_ray.store import RunDirectory, plain


def a_probe(p99_s: float = 0.08) -> Probe:
    return Probe(
        kind="open", rate_rps=100.0, window_s=3.0, requests=300, achieved_rps=99.0, errors=0, late=1, p50_s=0.02,
        p90_s=0.05, p99_s=p99_s, slo_latency_s=p99_s, driver_lag_s=0.001, driver_cpu=0.2, verdict=Verdict.MET,
    )  # fmt: skip


def a_trial(number: int = 1, peak_rps: float = 100.0, p99_s: float = 0.08) -> Trial:
    measurement = Measurement(
        configuration={"cpu_cores": 2, "fast": True},
        metrics={"peak_rps": peak_rps},
        bounds={"capacity_rps": (10.0, None)},
        probes=(a_probe(p99_s),),
        timings_s={"probing": 3.0},
        notes=("a note",),
        details={"path": Path("a"), "pids": np.arange(2)},
    )
    return Trial(number=number, stage="search", measurement=measurement, objective=100.0, started_s=1.0, seconds=3.5)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory.create(tmp_path / "run")
    directory.write_experiment({"app": "demo:app", "seed": 0})
    return directory


def test_trials_are_read_back_as_they_were(run: RunDirectory) -> None:
    first, second = a_trial(1), a_trial(2, peak_rps=120.5)
    run.append_trial(first)
    run.append_trial(second)
    back = run.trials()
    assert [t.number for t in back] == [1, 2]
    assert back[1].measurement.metrics == {"peak_rps": 120.5}
    assert back[0].measurement.probes == first.measurement.probes
    assert back[0].measurement.bounds == {"capacity_rps": (10.0, None)}
    assert back[0].configuration == {"cpu_cores": 2, "fast": True}
    assert back[0].measurement.details["pids"] == [0, 1]


def test_a_trial_is_on_the_disk_when_append_returns(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_size))
    run.append_trial(a_trial())
    assert synced == [(run.path / "trials.jsonl").stat().st_size]


@pytest.mark.parametrize("cut", [1, 40])
def test_half_a_last_line_is_skipped_and_then_replaced(run: RunDirectory, cut: int) -> None:
    for number in (1, 2):
        run.append_trial(a_trial(number))
    file = run.path / "trials.jsonl"
    file.write_bytes(file.read_bytes()[:-cut])
    kept = [1, 2] if cut == 1 else [1]  # without its end of line only, the last trial is whole
    assert [t.number for t in run.trials()] == kept
    run.append_trial(a_trial(3))
    assert [t.number for t in run.trials()] == [*kept, 3]
    assert all(json.loads(line) for line in file.read_text().splitlines())


@pytest.mark.parametrize("line", ['{"number": 1', "[]", "{}", "null", "\xff"])
def test_any_other_bad_line_is_named(run: RunDirectory, line: str) -> None:
    run.append_trial(a_trial())
    file = run.path / "trials.jsonl"
    file.write_bytes(file.read_bytes() + line.encode("latin-1") + b"\n")
    with pytest.raises(StoreError, match=r"trials\.jsonl, line 2: not a trial"):
        run.trials()


def test_no_trials_yet(run: RunDirectory) -> None:
    assert run.trials() == []
    assert run.recommendation() is None


def test_what_is_not_finite_is_null_in_the_file_and_nan_again_when_read(run: RunDirectory) -> None:
    run.append_trial(a_trial(peak_rps=math.inf, p99_s=math.nan))
    run.write_recommendation({"peak_rps": math.nan, "peak_rps_interval": [1.0, -math.inf]})

    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is not JSON")

    for name in ("trials.jsonl", "recommendation.json"):
        json.loads((run.path / name).read_text(), parse_constant=refuse)
    (trial,) = run.trials()
    assert math.isnan(trial.measurement.probes[0].p99_s)
    assert math.isnan(trial.measurement.metrics["peak_rps"])
    assert run.recommendation() == {"peak_rps": None, "peak_rps_interval": [1.0, None]}


def test_plain_takes_numpy_enums_sets_and_the_unknown() -> None:
    data = {
        1: np.float64(0.5),
        "b": np.bool_(True),
        "v": Verdict.MET,
        "s": {"b", "a"},
        "o": Path("x"),
        "n": np.int32(3),
    }
    assert plain(data) == {"1": 0.5, "b": True, "v": "MET", "s": ["a", "b"], "o": "x", "n": 3}
    assert type(plain(np.float64(0.5))) is float
    assert type(plain(Verdict.MET)) is str


def test_the_experiment_has_the_marker_first(run: RunDirectory) -> None:
    data = yaml.safe_load((run.path / "experiment.yaml").read_text())
    assert next(iter(data)) == "morphling_ray"
    assert run.experiment()["app"] == "demo:app"


def test_default_folders_do_not_collide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda _: "20250131-120000")
    names = [RunDirectory.create().path.name for _ in range(3)]
    assert names == ["20250131-120000", "20250131-120000-2", "20250131-120000-3"]


def test_folders_that_cannot_be_used(run: RunDirectory, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(InputError, match="exists and is not ours"):
        RunDirectory.create(tmp_path / "mine")
    with pytest.raises(InputError, match=r"--resume .*run"):
        RunDirectory.create(run.path)
    with pytest.raises(InputError, match="cannot be written to"):
        RunDirectory.create(tmp_path / "mine" / "thesis.txt")
    (tmp_path / "empty").mkdir()
    assert list(RunDirectory.create(tmp_path / "empty").path.iterdir()) == []


def test_a_folder_without_leave_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(InputError, match="PermissionError: Permission denied; give another --run-dir"):
        RunDirectory.create(tmp_path / "run")


def test_open_takes_only_runs(run: RunDirectory, tmp_path: Path) -> None:
    assert RunDirectory.open(run.path).experiment()["seed"] == 0
    assert run.log_path == run.path / "ray.log"
    with pytest.raises(InputError, match="does not exist"):
        RunDirectory.open(tmp_path / "nothing")
    (tmp_path / "experiment.yaml").write_text("app: other")
    with pytest.raises(StoreError, match="not a run directory"):
        RunDirectory.open(tmp_path)


def test_a_failed_write_leaves_the_old_file_and_no_other(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    run.write_text("report.html", "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"report\.html cannot be written: OSError: No space left"):
        run.write_text("report.html", "new")
    assert (run.path / "report.html").read_text() == "old"
    assert sorted(p.name for p in run.path.iterdir()) == ["experiment.yaml", "report.html"]
    with pytest.raises(StoreError, match="trial 1 cannot be written"):
        run.append_trial(a_trial())


def test_names_stay_in_the_folder(run: RunDirectory) -> None:
    with pytest.raises(ValueError, match="without a folder"):
        run.write_text("../x", "")
