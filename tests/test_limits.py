"""Cores that bind: a test fails when a limit is off."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from morphling_ray.serving import quota
from morphling_ray.serving.limits import cores_of, cpu_environment

TWO_CORES = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")


@contextmanager
def replica(code: str, cores: float = 1) -> Iterator["subprocess.Popen[str]"]:
    """A Python process with the variables that a replica would get; killed in the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, **cpu_environment(cores)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def first_line(process: "subprocess.Popen[str]") -> str:
    """What the process says first."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


HOLD = """
    import os, time
    from morphling_ray.serving import limits
    limits.apply()
    print(sorted(os.sched_getaffinity(0)), flush=True)
    time.sleep(30)
"""


@TWO_CORES
@pytest.mark.timed
def test_one_core_means_one_core() -> None:
    """Fails when `apply` does not pin: two busy children then use two cores."""
    busy = """
        import multiprocessing, os, time
        from morphling_ray.serving import limits
        limits.apply()
        def spin():
            end = time.perf_counter() + 0.8
            while time.perf_counter() < end:
                sum(range(1000))
        context = multiprocessing.get_context("fork")
        start = time.perf_counter()
        workers = [context.Process(target=spin) for _ in range(2)]
        for worker in workers: worker.start()
        for worker in workers: worker.join()
        used = os.times()
        print((used.children_user + used.children_system) / (time.perf_counter() - start))
    """
    with replica(busy) as process:
        out, err = process.communicate(timeout=20)
    assert float(out) < 1.15, err


@pytest.mark.timed
def test_half_a_core_means_half_a_core() -> None:
    """Fails when the limit is off: a busy process then has all of the core."""
    if not quota.limit(os.getpid(), len(os.sched_getaffinity(0))):
        pytest.skip("no right to make a control group here")
    busy = """
        import time
        from morphling_ray.serving import limits
        limits.apply()
        start, used = time.perf_counter(), time.process_time()
        while time.perf_counter() < start + 1.0:
            sum(range(1000))
        print((time.process_time() - used) / (time.perf_counter() - start))
    """
    with replica(busy, cores=0.5) as process:
        out, err = process.communicate(timeout=20)
        assert quota.quota_of(process.pid) is None  # it has ended
    assert float(out) == pytest.approx(0.5, abs=0.1), err
    with replica(HOLD, cores=0.5) as process:
        assert first_line(process).count(",") == 0
        assert quota.quota_of(process.pid) == 0.5


def test_a_group_of_version_two(tmp_path: Path) -> None:
    """Fails if the files of the kernel's control groups, version 2, are not written as it takes them."""
    (tmp_path / "cgroup.controllers").write_text("cpu memory")
    (tmp_path / "cgroup.subtree_control").write_text("memory")
    (tmp_path / "cgroup.procs").write_text("")
    pid = os.getpid()
    assert quota.limit(pid, 1.5, tmp_path)
    group = tmp_path / f"morphling_ray-{pid}"
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+cpu"
    assert (group / "cpu.max").read_text() == "15000 10000"
    assert (group / "cgroup.procs").read_text() == str(pid)
    assert quota.quota_of(pid, tmp_path) == 1.5
    assert not quota.limit(pid, 1.5, tmp_path / "nothing")


def test_where_no_group_may_be_made_it_is_said(tmp_path: Path) -> None:
    """Fails if a process that has a whole core instead of half of one is silent about it."""
    code = """
        from pathlib import Path
        from morphling_ray.serving import limits, quota
        quota.limit.__defaults__ = (Path("/nowhere"),)
        limits.apply()
    """
    with replica(code, cores=0.5) as process:
        _, err = process.communicate(timeout=20)
    assert "no right to make a control group: 1 cores instead of 0.5" in err


def test_threads_that_exist_already_are_pinned_too() -> None:
    """Fails if only the calling thread is pinned."""
    code = """
        import os, threading, time
        threading.Thread(target=time.sleep, args=(5,), daemon=True).start()
        from morphling_ray.serving import limits
        limits.apply()
        print(sorted({len(os.sched_getaffinity(int(t))) for t in os.listdir("/proc/self/task")}), flush=True)
        time.sleep(5)
    """
    with replica(code) as process:
        assert first_line(process) == "[1]"


@TWO_CORES
def test_two_processes_get_different_cores_and_an_ended_one_gives_its_own_back() -> None:
    """Fails if cores are not held, or are held for ever."""
    with replica(HOLD) as first:
        mine = first_line(first)
        with replica(HOLD) as second:
            assert first_line(second) != mine
            first.kill()
            first.wait()
            with replica(HOLD) as third:
                assert first_line(third) == mine


def test_more_cores_than_there_are_is_an_error() -> None:
    """Fails if the promise is broken in silence."""
    with replica("from morphling_ray.serving import limits; limits.apply()", cores=10_000) as process:
        _, err = process.communicate(timeout=20)
    assert process.returncode != 0
    assert "may use only" in err


def test_the_cores_of_a_process_are_read_from_outside() -> None:
    """Fails if another process's threads are not looked at."""
    with replica(HOLD) as process:
        line = first_line(process)
        assert str(cores_of(process.pid)) == line
    assert cores_of(process.pid) == []
