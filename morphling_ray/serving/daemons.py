"""Ray's own processes, kept off the cores of the replicas that are measured.

Only on a cluster that we started ourselves: other people's processes are theirs. Two stay where they are: the raylet,
since whatever it starts inherits its cores, replicas among them; and the proxy for HTTP and gRPC, since requests have
to go through it, so that it must not be confined to the load driver's core.
"""

import os
from collections.abc import Iterable

import psutil
from ray._private.worker import global_worker

from morphling_ray.serving.limits import pin_process

ACTORS = ("ray::ServeController", "ray::Lane")


def keep_on(cores: Iterable[int]) -> list[str]:
    """Pins Ray's processes on this machine to cores that no replica has.

    Args:
        cores: These.

    Returns:
        Their names; empty where the cluster's processes cannot be found.
    """
    cores = list(cores)
    moved = []
    for process in _own_processes():
        try:
            pin_process(process.pid, cores)
            moved.append(_name(process))
        except (psutil.Error, OSError):  # it has just ended, or is somebody else's
            continue
    return moved


def _own_processes() -> list[psutil.Process]:
    """The process that started Ray, the daemons it started, and Serve's and our own actors."""
    session = os.path.basename(global_worker.node.get_session_dir_path())
    raylet = next((p for p in psutil.process_iter() if _is_raylet(p, session)), None)
    main = raylet.parent() if raylet is not None else None
    if raylet is None or main is None:
        return []
    daemons = [p for p in main.children() if p.pid != raylet.pid and session in " ".join(_command(p))]
    agents = [p for p in raylet.children() if session in " ".join(_command(p))]
    actors = [p for p in raylet.children() if " ".join(_command(p)).startswith(ACTORS)]
    return [main, *daemons, *agents, *actors]


def _is_raylet(process: psutil.Process, session: str) -> bool:
    command = _command(process)
    return bool(command) and os.path.basename(command[0]) == "raylet" and session in " ".join(command)


def _command(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def _name(process: psutil.Process) -> str:
    command = _command(process)
    script = next((os.path.basename(word) for word in command if word.endswith(".py")), "")
    return script or (os.path.basename(command[0]) if command else process.name())
