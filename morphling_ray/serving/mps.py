"""CUDA MPS: what makes a share of a card's multiprocessors bind.

Without it, processes take turns on a card, and a share means nothing. Each card has an MPS control daemon of its own,
with its own folder of pipes, so that neither other users' daemons nor a fault on another card has anything to do with
it. The first replica that needs it starts it; `end_all` ends those of this user (NVIDIA's documentation of MPS,
"Tools and interface reference").
"""

import fcntl
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CONTROL = "nvidia-cuda-mps-control"
TIMEOUT_S = 20.0
USERS = "users"  # folder with a file for each process that the daemon was started for
PATIENCE_S = 10.0  # until processes that are ending have let go


class MpsError(RuntimeError):
    """MPS is not there, or does not start; one line that says why."""


def root() -> Path:
    """Where the daemons' folders lie: one for each user of this machine."""
    return Path(tempfile.gettempdir()) / f"morphling_ray-mps-{os.getuid()}"


def available() -> bool:
    """Whether this machine has MPS."""
    return shutil.which(CONTROL) is not None


def start(uuid: str) -> dict[str, str]:
    """Starts the daemon of a card for this process, if it does not run.

    Returns:
        Environment variables under which a process uses it.

    Raises:
        MpsError: It does not start.
    """
    if not available():
        raise MpsError(f"{CONTROL} is not installed on this machine")
    with _locked():
        if not _running(uuid):
            folder = _folder(uuid)
            (folder / "log").mkdir(parents=True, exist_ok=True)
            (folder / USERS).mkdir(exist_ok=True)
            said = _daemon(uuid)
            if not _running(uuid):
                raise MpsError(f"{CONTROL} does not start: {' '.join(said.split())[:200] or 'it says nothing'}")
        (_folder(uuid) / USERS / str(os.getpid())).touch()
    return {"CUDA_MPS_PIPE_DIRECTORY": str(_folder(uuid)), "CUDA_VISIBLE_DEVICES": uuid}


def servers(uuid: str) -> list[int]:
    """Processes through which the clients of a card's daemon compute."""
    return [int(server) for server in _ask(uuid, "get_server_list")]


def clients(uuid: str) -> list[int]:
    """Processes that are attached to the daemon of a card."""
    return [int(client) for server in servers(uuid) for client in _ask(uuid, f"get_client_list {server}")]


def end_all(patience_s: float = 0.0) -> list[str]:
    """Ends all daemons of this user whose processes have ended.

    Args:
        patience_s: How long to wait for processes that are just ending.

    Returns:
        UUIDs of their cards.
    """
    ended: list[str] = []
    if not root().is_dir():
        return ended
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline and any(map(_users, root().iterdir())):
        time.sleep(0.1)
    with _locked():
        for folder in root().iterdir():
            uuid = folder.name
            if not folder.is_dir() or _users(folder):
                continue
            if _running(uuid):
                _ask(uuid, "quit")
                ended.append(uuid)
            shutil.rmtree(folder, ignore_errors=True)
    return ended


def _users(folder: Path) -> list[int]:
    """Processes that the daemon of a folder was started for, and that live; they may attach to it yet."""
    return [int(file.name) for file in folder.glob(f"{USERS}/*") if _alive(int(file.name))]


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _folder(uuid: str) -> Path:
    return root() / uuid


def _running(uuid: str) -> bool:
    try:
        return _alive(int((_folder(uuid) / f"{CONTROL}.pid").read_text()))
    except (OSError, ValueError):
        return False


def _daemon(uuid: str) -> str:
    """Starts it; what it said. Into a file: it keeps its output open for as long as it runs, so a pipe has no end."""
    said = _folder(uuid) / "log" / "start"
    with open(said, "w") as file:
        # A session of its own: a daemon is not to end with the replica that started it.
        arguments = [CONTROL, "-d"]
        environment = _environment(uuid) | {"CUDA_VISIBLE_DEVICES": uuid}
        try:
            subprocess.run(
                arguments, env=environment, stdout=file, stderr=file, timeout=TIMEOUT_S, start_new_session=True
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"{type(error).__name__}: {error}"
    return said.read_text()


def _ask(uuid: str, command: str) -> list[str]:
    """Tells the daemon a command; the words of its answer that are numbers (it says in words what it does not have)."""
    if not _running(uuid):
        return []
    try:
        answered = subprocess.run(
            [CONTROL], input=f"{command}\n", env=_environment(uuid), capture_output=True, text=True, timeout=TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [word for word in answered.stdout.split() if word.isdigit()]


def _environment(uuid: str) -> dict[str, str]:
    others = {k: v for k, v in os.environ.items() if not k.startswith("CUDA_MPS")}
    return others | {
        "CUDA_MPS_PIPE_DIRECTORY": str(_folder(uuid)),
        "CUDA_MPS_LOG_DIRECTORY": str(_folder(uuid) / "log"),
    }


@contextmanager
def _locked() -> Iterator[None]:
    """One process at a time: replicas of one card start together."""
    root().mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(root() / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
