"""Limits that bind: CPU cores here, parts of a GPU in gpu_limits.py.

Ray's `num_cpus` is bookkeeping: a replica with `num_cpus=1` uses every core of its node. Here a replica gets cores of
its own: a Ray worker set-up hook, switched on by environment variables in the replica's `runtime_env`, takes that many
free cores of the node and pins every thread of the process to them before the application's code is imported. Any
Serve application is limited in this way without a change, under `serve run` as well as under a search.

A fraction of a core takes a whole one, of which the kernel gives out that fraction (quota.py).

A core is taken by binding an abstract Unix socket that is named after it: the kernel hands it out once per machine
(more exactly, per network namespace) and takes it back when the process ends, however it ends. No file is left behind.
"""

import math
import os
import socket
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from morphling_ray.serving import gpu_limits, quota

CORES_VARIABLE = "MORPHLING_CPU_CORES"
# Ray runs the function that this variable names when a worker process starts (ray._private.ray_constants,
# WORKER_PROCESS_SETUP_HOOK_ENV_VAR). The `worker_process_setup_hook` field of a runtime_env sets it too, but Ray reads
# that field only for a whole job.
HOOK_VARIABLE = "__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR"
HOOK = {HOOK_VARIABLE: f"{__name__}.apply"}
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
WAIT_FOR_CORES_S = 5.0
CORE_NAME = "morphling_ray/core/"  # of the socket that stands for a core

_held: list[socket.socket] = []  # open for as long as the process lives: closing one gives its core back


def cpu_environment(cores: float) -> dict[str, str]:
    """Environment variables that limit a Ray worker process to `cores` cores and as many compute threads."""
    return {CORES_VARIABLE: f"{cores:g}", **HOOK, **dict.fromkeys(THREAD_VARIABLES, str(math.ceil(cores)))}


def apply() -> None:
    """Puts this process's environment in force: cores of its own, parts of a GPU. Ray calls it in a new worker."""
    if CORES_VARIABLE in os.environ:
        take_cores(float(os.environ[CORES_VARIABLE]))
    if any(name in os.environ for name in gpu_limits.VARIABLES):
        gpu_limits.arm()


def take_cores(cores: float) -> None:
    """Pins this process to cores of its own; a fraction of one is a whole one, of which it gets that fraction.

    Raises:
        RuntimeError: This machine does not have so many.
    """
    wanted = math.ceil(cores)
    allowed = sorted(os.sched_getaffinity(0), reverse=True)  # high cores first: the first ones get most interrupts
    if wanted > len(allowed):
        raise RuntimeError(f"{CORES_VARIABLE}={wanted}, but this process may use only {len(allowed)} cores")
    mine = _take(wanted, allowed)
    if len(mine) < wanted:  # over-committed: keep the promised number, and say that it is shared
        shared = [core for core in allowed if core not in mine][: wanted - len(mine)]
        sys.stderr.write(f"morphling_ray: cores {shared} are shared with another replica\n")
        mine += shared
    pin_process(os.getpid(), mine)
    if cores < wanted and not quota.limit(os.getpid(), cores):
        sys.stderr.write(f"morphling_ray: no right to make a control group: {wanted} cores instead of {cores:g}\n")


def _take(wanted: int, allowed: Iterable[int]) -> list[int]:
    """Takes up to `wanted` cores that no other process holds; waits a little for one that is just ending."""
    deadline = time.monotonic() + WAIT_FOR_CORES_S
    mine: list[int] = []
    while True:
        for core in allowed:
            if len(mine) < wanted and core not in mine and take_core(core):
                mine.append(core)
        if len(mine) == wanted or time.monotonic() > deadline:
            return mine
        time.sleep(0.05)


def take_core(core: int) -> bool:
    """Takes a core for as long as this process lives; False where another process holds it."""
    holder = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        holder.bind(f"\0{CORE_NAME}{core}")
    except OSError:
        holder.close()
        return False
    _held.append(holder)
    return True


def taken_cores() -> set[int]:
    """Cores of this machine that processes hold, see `take_core`."""
    names = (line.split()[-1] for line in Path("/proc/net/unix").read_text().splitlines() if CORE_NAME in line)
    return {int(name.rpartition("/")[2]) for name in names if name.startswith(f"@{CORE_NAME}")}


def pin_process(pid: int, cores: Iterable[int]) -> None:
    """Pins every present thread of a process to `cores`; threads that it starts later inherit that.

    Twice, because a thread may start another between the listing and its own turn.
    """
    cores = set(cores)
    for _ in range(2):
        for thread in _threads(pid):
            try:
                os.sched_setaffinity(thread, cores)
            except ProcessLookupError:  # the thread has ended meanwhile
                continue


def cores_of(pid: int) -> list[int]:
    """Cores that any thread of the process may run on; empty if there is no such process on this machine."""
    cores: set[int] = set()
    for thread in _threads(pid):
        try:
            cores |= os.sched_getaffinity(thread)
        except ProcessLookupError:
            continue
    return sorted(cores)


def _threads(pid: int) -> list[int]:
    try:
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    except (FileNotFoundError, ProcessLookupError):
        return []
