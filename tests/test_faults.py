"""What breaks under a search: each test breaks it, for real, and the search goes on."""

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cli
import psutil
import pytest

pytestmark = [pytest.mark.serve, pytest.mark.timeout(300)]
EXPERIMENT = """
app: batched:app
request: request.json
objective: rps
searcher: grid
max_trials: 4
space: {max_batch_size: [1, 2, 8], max_ongoing_requests: [32, 64]}
"""
DAY_S = 86400
KILLS = int(os.environ.get("MORPHLING_KILLS", "2"))  # of one real search; README's figure is of 10


# Ray waits a minute for a head node that is gone.
IMPATIENT = {"RAY_gcs_rpc_server_reconnect_timeout_s": "5"}


def prepared(folder: Path) -> list[str]:
    """An experiment in a folder, and the arguments of its search."""
    (folder / "experiment.yaml").write_text(EXPERIMENT)
    (folder / "request.json").write_text("21")
    return ["--experiment", "experiment.yaml", "--run-dir", "out"]


def until(process: "subprocess.Popen[str]", there: Callable[[], Any], timeout_s: float = 90.0) -> Any:
    """What a function returns as soon as that is something."""
    deadline = time.monotonic() + timeout_s
    while not (found := there()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def trials(folder: Path) -> list[dict[str, Any]]:
    """Of its run, that are on the disk; half a line is none."""
    file = folder / "out" / "trials.jsonl"
    lines = file.read_bytes().split(b"\n") if file.exists() else [b""]
    return [json.loads(line) for line in lines[:-1]]


def of_ray(process: "subprocess.Popen[str]", name: str) -> list[psutil.Process]:
    """Ray's processes of that name that a command has started."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if " ".join(child.cmdline()).startswith(name):
                found.append(child)
        except psutil.Error:  # it has just ended
            continue
    return found


def finished(process: "subprocess.Popen[str]", timeout_s: float = 200.0) -> tuple[dict[str, Any], str]:
    """What a search found, and what it said."""
    out, said = process.communicate(timeout=timeout_s)
    assert process.returncode == 0, said
    result: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
    return result, said


def test_serves_controller_is_restarted(tmp_path: Path) -> None:
    """Fails if a search ends, or a trial is lost, with it; Ray brings it back, and it finds its replicas."""
    process = cli.start(tmp_path, "morphling_ray.tune", *prepared(tmp_path))
    until(process, lambda: len(trials(tmp_path)) >= 1)
    (controller,) = of_ray(process, "ray::ServeController")
    controller.kill()
    result, _ = finished(process)
    assert not [t["infeasible_because"] for t in trials(tmp_path) if t["infeasible_because"]]
    assert result["trials"] == len(trials(tmp_path)) >= 4
    assert result["peak_rps"] > 0


@pytest.mark.timeout(200 + 40 * KILLS)
def test_killed_again_and_again(tmp_path: Path) -> None:
    """Fails if a real search that is killed at any moment loses a finished trial, doubles one, or does not go on."""
    arguments, kept, rng = prepared(tmp_path), list[Any](), random.Random(0)
    more = EXPERIMENT.replace("max_trials: 4", f"max_trials: {KILLS + 3}").replace("[1, 2, 8]", "[1, 2, 4, 8, 16]")
    (tmp_path / "experiment.yaml").write_text(more.replace("[32, 64]", "[32, 48, 64]"))
    for _ in range(KILLS):
        before = cli.ray_processes()
        process = cli.start(tmp_path, "morphling_ray.tune", *arguments)
        began = time.monotonic()
        until(process, lambda: len(trials(tmp_path)) > len(kept))  # noqa: B023  called at once
        time.sleep(rng.uniform(0.0, 5.0))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        print(f"killed after {time.monotonic() - began:.1f} s, with {len(trials(tmp_path))} trials")
        now = [(t["number"], t["configuration"], t["metrics"]) for t in trials(tmp_path)]
        assert now[: len(kept)] == kept, "a finished trial is gone, or another one"
        assert [number for number, *_ in now] == list(range(1, len(now) + 1))
        kept, arguments = now, ["--resume", "out"]
        for left in cli.ray_processes() - before:  # they end by themselves, but the cores are wanted now
            os.kill(left, signal.SIGKILL)
    again = cli.tune(tmp_path, "--resume", "out", timeout_s=200)
    assert again.status == 0, again.stderr
    now = [(t["number"], t["configuration"], t["metrics"]) for t in trials(tmp_path)]
    assert now[: len(kept)] == kept
    assert [number for number, *_ in now] == list(range(1, len(now) + 1))
    assert again.result["trials"] == len(now)
    search = [t["configuration"] for t in trials(tmp_path) if t["stage"] == "search" and t["metrics"]]
    assert len({str(c) for c in search}) == len(search), "what had been measured was measured again"


def test_a_lost_head_node_costs_nothing_that_was_finished(tmp_path: Path) -> None:
    """Fails if a search does not end by itself without a cluster, or does not go on with another one."""
    with cli.cluster(tmp_path / "head", "--num-cpus=2") as address:
        arguments = [*prepared(tmp_path), "--address", address]
        process = cli.start(tmp_path, "morphling_ray.tune", *arguments, variables=IMPATIENT)
        until(process, lambda: len(trials(tmp_path)) >= 1)
    lost = time.monotonic()
    _, said = process.communicate(timeout=150)
    assert "head node does not answer; --resume " in said
    print(f"ended {time.monotonic() - lost:.0f} s after the head was lost, status {process.returncode}")
    assert process.returncode != 0
    kept = trials(tmp_path)
    assert len(kept) >= 1, said
    with cli.cluster(tmp_path / "other", "--num-cpus=2") as address:
        again = cli.tune(tmp_path, "--resume", "out", "--address", address)
    assert again.status == 0, again.stderr
    now = trials(tmp_path)
    assert now[: len(kept)] == kept
    assert [t["number"] for t in now] == list(range(1, len(now) + 1))


CLOCK = """
import time

real, real_ns, monotonic = time.time, time.time_ns, time.monotonic
read = [0.0, 0]  # when, and what


def ahead():
    if monotonic() > read[0] + 0.05:
        with open({file!r}) as file:
            read[:] = monotonic(), int(file.read())
    return read[1]


time.time = lambda: real() + ahead()
time.time_ns = lambda: real_ns() + ahead() * 10**9
"""


def test_a_clock_that_jumps(tmp_path: Path) -> None:
    """A day back and two ahead, in every Python process. Fails if anything but a date is told by the clock.

    Not in Ray's own daemons, which are no Python: a library that fakes their clocks crashes them.
    """
    offset = tmp_path / "offset"
    offset.write_text("0")
    (tmp_path / "sitecustomize.py").write_text(CLOCK.format(file=str(offset)))
    faked = {"PYTHONPATH": str(tmp_path)}
    arguments = [*prepared(tmp_path), "--time-budget", "600"]
    process = cli.start(tmp_path, "morphling_ray.tune", *arguments, variables=faked)
    for number, jump_s in ((1, -DAY_S), (2, DAY_S)):
        until(process, lambda: len(trials(tmp_path)) >= number)  # noqa: B023  called at once
        new = offset.with_name("new")
        new.write_text(str(jump_s))
        new.replace(offset)
    finished(process)
    found = trials(tmp_path)
    assert not [t["infeasible_because"] for t in found if t["infeasible_because"]]
    assert not [note for t in found for note in t["notes"] if "voided" in note]
    assert len(found) >= 4
    assert all(0 < t["seconds"] < 120 for t in found)
    assert all(0 < t["started_s"] < 240 for t in found)
    log = (tmp_path / "out" / "ray.log").read_text()
    for jump_s in (-DAY_S, DAY_S):
        then = time.strftime("%Y-%m-%d", time.localtime(time.time() + jump_s))
        assert f"INFO {then}" in log, "the clock did not jump"
