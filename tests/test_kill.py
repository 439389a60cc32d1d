"""A search that is killed at any moment goes on as if it had not been: nothing is lost, doubled or corrupt."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cli
import pytest

from morphling_ray.experiment import Experiment
from morphling_ray.measurement import Trial
from morphling_ray.run import check, new_session
from morphling_ray.store import RunDirectory

KILLS, TRIALS = 200, 10


def search(folder: Path, experiment: Experiment) -> None:
    """A search over recorded surfaces, as the main job drives it, without Ray: begins or goes on, to its end."""
    target = check(experiment)
    plan = target.plan(None)  # type: ignore[arg-type]  # replay asks nothing of a cluster
    directory = RunDirectory.open(folder)
    session = new_session(experiment, target, plan, elapsed_s=0.0)
    for trial in directory.trials():
        session.replay(trial.number, trial.stage, trial.measurement)
    evaluator = plan.make_evaluator(**plan.arguments)
    while (ask := session.next()) is not None:
        measurement = evaluator.measure(ask.configuration, needed=ask.needed, confirm=ask.stage == "confirm")
        objective = session.tell(ask.number, measurement)
        trial = Trial(
            number=ask.number,
            stage=ask.stage,
            measurement=measurement,
            objective=objective,
            started_s=0.0,
            seconds=0.0,
        )
        directory.append_trial(trial)
    outcome = session.recommendation()
    assert outcome is not None
    directory.write_recommendation({"configuration": outcome.configuration, "objective": outcome.objective})


def forked(work: Callable[[], None], kill_after_s: float | None) -> bool:
    """Does the work in a copy of this process, which may be killed; whether it was done."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:  # noqa: BLE001  said, and told by the status
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
            os._exit(1)
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return False
    assert os.WEXITSTATUS(status) == 0
    return True


@pytest.mark.timeout(180)
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning", "ignore:os.fork:RuntimeWarning")
def test_killed_at_random_moments(tmp_path: Path, surfaces: Path) -> None:
    """Fails if a kill -9 costs a finished trial, doubles one, or changes what is tried or recommended."""
    rng, kills, number = random.Random(0), 0, 0
    while kills < KILLS:
        task, number = ("small", "large")[number % 2], number + 1
        experiment = Experiment(
            replay=str(surfaces), task=task, objective_name="value", searcher="gp", seed=number, max_trials=TRIALS
        )
        whole, broken = (tmp_path / f"{name}-{number}" for name in ("whole", "broken"))
        for folder in (whole, broken):
            RunDirectory.create(folder).write_experiment(experiment.to_dict())
        began = time.monotonic()
        assert forked(lambda: search(whole, experiment), None)  # noqa: B023  called at once
        took, kept = time.monotonic() - began, 0
        while not forked(lambda: search(broken, experiment), rng.uniform(0.0, took)):  # noqa: B023
            kills += 1
            numbers = [trial.number for trial in RunDirectory.open(broken).trials()]
            assert numbers == list(range(1, len(numbers) + 1))
            assert len(numbers) >= kept, "a finished trial is gone"
            kept = len(numbers)
        assert {path.name: path.read_bytes() for path in broken.iterdir()} == {
            path.name: path.read_bytes() for path in whole.iterdir()
        }


@pytest.mark.serve
@pytest.mark.timeout(240)
def test_the_main_job_is_killed_and_goes_on(tmp_path: Path, surfaces: Path) -> None:
    """Fails if `--resume` after a kill -9 of the whole command does not end where the command would have."""
    what = ["--replay", str(surfaces), "--task", "large", "--objective-name", "value", "--max-trials", "8"]
    whole = cli.tune(tmp_path, *what, "--run-dir", "whole")
    process = cli.start(tmp_path, "morphling_ray.tune", *what, "--run-dir", "broken")
    file, deadline = tmp_path / "broken" / "trials.jsonl", time.monotonic() + 90
    while not (file.exists() and len(file.read_bytes().splitlines()) >= 3):
        assert process.poll() is None, "it has ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    kept = cli.lines(file)
    again = cli.tune(tmp_path, "--resume", "broken")
    assert again.status == 0, again.stderr
    assert [t["configuration"] for t in cli.lines(file)[: len(kept)]] == [t["configuration"] for t in kept]
    one, other = (cli.lines(tmp_path / name / "trials.jsonl") for name in ("whole", "broken"))
    assert [(t["number"], t["configuration"], t["metrics"]) for t in one] == [
        (t["number"], t["configuration"], t["metrics"]) for t in other
    ]
    assert again.result["configuration"] == whole.result["configuration"]
    assert again.result["objective"] == whole.result["objective"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of two megabytes; skipped where none may be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no disk may be mounted here")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.mark.serve
@pytest.mark.timeout(240)
def test_a_disk_that_fills(tmp_path: Path, surfaces: Path, small_disk: Path) -> None:
    """Fails if a full disk ends in a traceback, spoils what was written, or cannot be gone on from."""
    what = ["--replay", str(surfaces), "--task", "large", "--objective-name", "value", "--max-trials", "8"]
    process = cli.start(tmp_path, "morphling_ray.tune", *what, "--run-dir", str(small_disk / "run"))
    file, filler, deadline = small_disk / "run" / "trials.jsonl", small_disk / "filler", time.monotonic() + 90
    while not (file.exists() and len(file.read_bytes().splitlines()) >= 2):
        assert process.poll() is None, "it has ended before the disk was full"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as rest:
        while True:
            rest.write(b"x" * 4096)
    _, said = process.communicate(timeout=90)
    assert process.returncode in (0, 2), said
    if process.returncode == 2:
        assert "No space left on device" in said.splitlines()[-1]
    assert "Traceback" not in said
    kept = RunDirectory.open(small_disk / "run").trials()
    assert [trial.number for trial in kept] == list(range(1, len(kept) + 1))
    filler.unlink()
    again = cli.tune(tmp_path, "--resume", str(small_disk / "run"))
    assert again.status == 0, again.stderr
    whole = RunDirectory.open(small_disk / "run").trials()
    assert [trial.configuration for trial in whole[: len(kept)]] == [trial.configuration for trial in kept]
    assert len(whole) == 8
