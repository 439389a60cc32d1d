"""The comparison's commands, as they are run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import compare, compare_report

ROOT = Path(__file__).parents[1]


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def test_from_surfaces_to_figures(surfaces: Path, tmp_path: Path) -> None:
    """Fails if the command needs the root as its folder, its JSON breaks the contract, or runs are repeated."""
    command = [sys.executable, str(ROOT / "experiments" / "compare.py"), "--surfaces", str(surfaces)]
    command += ["--objective", "value", "--searchers", "random,gp", "--budget", "5", "--seeds", "2"]
    command += ["--processes", "2", "--against", "random", "--json", "out.json"]
    first = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr
    assert "8 of 8 runs" in first.stderr
    rows = [line.split("|")[1].strip() for line in first.stdout.splitlines() if line.startswith("| ")]
    assert rows == ["searcher", "--------", "random", "gp", "searcher", "--------", "gp", "searcher", "--------", "gp"]
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["meta"]["complete"]
    assert str(tmp_path) not in json.dumps(written)  # a results file tells nothing about the machine
    assert len(written["runs"]) == 8
    for run in written["runs"]:
        assert {"dataset", "objective", "searcher", "task", "family", "seed", "suggest_ms", "train_s"} <= set(run)
        assert len(run["quality"]) == len(run["quality_clear"]) == len(run["probes"]) == 5

    module = [sys.executable, "-m", "experiments.compare", *command[2:-1], str(tmp_path / "out.json")]
    again = subprocess.run(module, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert "8 runs are in out.json already" in again.stderr
    assert again.stdout == first.stdout

    assert compare_report.main([str(tmp_path / "out.json"), "--out", str(tmp_path / "figures"), "--against", "gp"]) == 0
    drawn = {path.name: path.read_bytes()[:8] for path in (tmp_path / "figures").iterdir()}
    kinds = [f"made-up-value-{kind}" for kind in ("paired", "quality", "samples")]
    assert set(drawn) == {"table.md", *(kind + end for kind in kinds for end in (".png", ".svg"))}
    assert all(drawn[kind + ".png"] == b"\x89PNG\r\n\x1a\n" for kind in kinds)
    assert "Paired against gp" in (tmp_path / "figures" / "table.md").read_text()


def in_this_process(surfaces: Path, out: Path, *more: str) -> list[str]:
    given = ["--surfaces", str(surfaces), "--objective", "value", "--searchers", "random", "--seeds", "1"]
    return [*given, "--budget", "3", "--processes", "1", "--json", str(out), *more]


def test_free_knobs_and_a_worse_prior(
    surfaces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fails if an option does not arrive: rows would then claim what was not done."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    options = ["--free-knobs", "batch", "--shuffle-prior", "--train-tasks", "1", "--drop-values", "batch=1,2"]
    options += ["--drop-knob", "cores", "--hold-out", "task", "--tasks", "s*", "--against", "random"]
    assert compare.main(in_this_process(surfaces, tmp_path / "out.json", *options)) == 0
    assert "random (every batch at once)" in capsys.readouterr().out
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["meta"]["settings"] == {
        "budget": 3,
        "noise": 0.03,
        "hold_out": "task",
        "free_knobs": ["batch"],
        "learn_from": None,
        "shuffle_prior": True,
        "train_tasks": 1,
        "drop_values": {"batch": ["1", "2"]},
        "drop_knob": "cores",
    }
    assert written["meta"]["told_of_free_knobs"] == []
    (run,) = written["runs"]
    assert run["task"] == "small"
    assert run["quality"][2] > 0.9  # three deployments are all there are


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--objective", "nope", "--tasks", "z"], "no task that matches 'z'"),
        (["--searchers", "random,nope"], "unknown searcher 'nope'"),
        (["--searchers", ","], "--searchers is empty"),
        (["--surfaces", "missing"], "cannot be read"),
        (["--budget", "0"], "--budget must be at least 1"),
        (["--noise", "3"], "--noise must lie in"),
        (["--seeds", "0"], "--seeds must be at least 1"),
        (["--subset", "0"], "--subset must be at least 1"),
        (["--processes", "0"], "--processes must be at least 1"),
        (["--train-tasks", "0"], "--train-tasks must be at least 1"),
        (["--drop-values", "batch"], "write KNOB=VALUE"),
        (["--drop-values", "batch=3"], "batch has no such value; it has 1, 2, 4, 8, 16"),
        (["--free-knobs", "nope"], "no such knob; it has cores, batch"),
        (["--against", "gp"], "'gp' is not among --searchers random"),
        (["--redo", "gp"], "'gp' is not among --searchers random"),
        (["--json", "none/out.json"], "the folder none does not exist"),
        (["--json", "."], "is a folder"),
        (["--json", "broken.json"], "is not the results file of a comparison"),
    ],
)
def test_input_that_cannot_work(
    more: list[str],
    message: str,
    surfaces: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Fails if wrong input is searched with, ends in a traceback, or is told in more than a line."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.json").write_text('{"runs": 3}')
    assert compare.main(in_this_process(surfaces, tmp_path / "out.json", *more)) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert message in said.err
    assert said.err.startswith("compare: ")
    assert said.err.count("\n") == 1
    assert not (tmp_path / "out.json").exists()


def test_a_searcher_that_is_not_installed(
    surfaces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fails if a missing package is found out by each of a thousand searches."""
    from dataclasses import replace

    from morphling_ray.search import SEARCHERS

    absent = replace(SEARCHERS["random"], needs=("no_such_package",))
    monkeypatch.setitem(SEARCHERS, "absent", absent)
    assert compare.main(in_this_process(surfaces, tmp_path / "out.json", "--searchers", "absent")) == 2
    assert "needs no_such_package" in capsys.readouterr().err


def test_a_failure_is_told_and_tried_again(
    surfaces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fails if a broken searcher ends in status 0, leaves no trace in the file, or is never tried again."""
    from morphling_ray.search.random import RandomSampler

    arguments = in_this_process(surfaces, tmp_path / "out.json")
    with monkeypatch.context() as broken:
        broken.setattr(RandomSampler, "suggest", lambda self: 1 / 0)
        assert compare.main(arguments) == 1
    assert "failed: random on made-up, value, small, seed 0: ZeroDivisionError" in capsys.readouterr().err
    meta = json.loads((tmp_path / "out.json").read_text())["meta"]
    assert not meta["complete"]
    assert len(meta["failures"]) == 2
    assert compare.main(arguments) == 0
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["meta"]["complete"]
    assert len(written["runs"]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.json"], "none.json: cannot be read"),
        (["broken.json"], "is not the results file"),
        (["empty.json"], "no finished run"),
    ],
)
def test_a_report_of_nothing(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Fails if a wrong file ends in a traceback, or in an empty report."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "empty.json").write_text('{"meta": {}, "runs": []}')
    assert compare_report.main([*arguments, "--out", "figures"]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "figures").exists()
