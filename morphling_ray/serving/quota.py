"""A fraction of a CPU core that binds: a bandwidth limit of the kernel's control groups, version 2 or 1.

A process that asks for 1.5 cores is pinned to two (limits.py) and moved into a control group of its own that may use
1.5 of them. That takes the right to make one; where there is none the process keeps its whole cores, and is said to.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

# The kernel's usual period of 100 ms stops a process for up to that long, which no p99 survives.
PERIOD_US = 10_000
ROOT = Path("/sys/fs/cgroup")
_NAME = "morphling_ray-"


def limit(pid: int, cores: float, root: Path = ROOT) -> bool:
    """Moves a process, with all its threads, into a group that may use `cores`; False where that is not allowed."""
    sweep(root)
    for parent, version in _parents(root):
        group = parent / f"{_NAME}{pid}"
        try:
            if version == 2 and "cpu" not in (parent / "cgroup.subtree_control").read_text().split():
                (parent / "cgroup.subtree_control").write_text("+cpu")
            group.mkdir(exist_ok=True)
            _write(group, cores, version)
            (group / "cgroup.procs").write_text(str(pid))
        except OSError:
            _remove(group)
            continue
        return True
    return False


def quota_of(pid: int, root: Path = ROOT) -> float | None:
    """Cores that a process may use by a group of ours; None where it is in none."""
    for parent, version in _parents(root):
        group = parent / f"{_NAME}{pid}"
        try:
            if str(pid) not in (group / "cgroup.procs").read_text().split():
                continue
            if version == 2:
                quota, period = (group / "cpu.max").read_text().split()
            else:
                quota, period = ((group / f"cpu.cfs_{n}_us").read_text() for n in ("quota", "period"))
            return int(quota) / int(period)
        except (OSError, ValueError):
            continue
    return None


def sweep(root: Path = ROOT) -> None:
    """Removes groups of ours whose process has ended; a group that has one cannot be removed."""
    for parent, _ in _parents(root):
        for group in parent.glob(f"{_NAME}*"):
            _remove(group)


def _parents(root: Path) -> Iterator[tuple[Path, int]]:
    """Where a group may be made: this process's own group, then those above it, with the version of each."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        names = controllers.split(",")
        if not controllers:
            mounts, version = [root, root / "unified"], 2
        elif "cpu" in names:
            mounts, version = [root / controllers, root / "cpu"], 1
        else:
            continue
        for mount in mounts:
            for part in (own := mount / path.strip("/"), *own.parents):
                if not part.is_relative_to(mount):
                    break
                controlled = version == 1 or "cpu" in _words(part / "cgroup.controllers")
                if controlled and (part / "cgroup.procs").is_file():
                    yield part, version


def _write(group: Path, cores: float, version: int) -> None:
    quota = round(cores * PERIOD_US)
    if version == 2:
        (group / "cpu.max").write_text(f"{quota} {PERIOD_US}")
    else:
        (group / "cpu.cfs_period_us").write_text(str(PERIOD_US))
        (group / "cpu.cfs_quota_us").write_text(str(quota))


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:
        return []


def _remove(group: Path) -> None:
    with contextlib.suppress(OSError):
        os.rmdir(group)
