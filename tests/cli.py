"""Runs the commands as a user does: in a process of their own, in an empty folder."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

APPS = Path(__file__).parent / "apps"
RAY_PROCESSES = ("raylet", "gcs_server", "ray::")


@dataclass(frozen=True)
class Finished:
    """What a command left."""

    status: int
    stdout: str
    stderr: str

    @property
    def result(self) -> dict[str, Any]:
        """The last line on stdout."""
        found: dict[str, Any] = json.loads(self.stdout.strip().splitlines()[-1])
        return found

    def said(self, run_dir: Path) -> str:
        """What it said of itself, and the end of what Ray said if it came that far."""
        log = run_dir / "ray.log"
        return self.stderr + (log.read_text()[-2000:] if log.exists() else "")


def environment(home: Path) -> dict[str, str]:
    """Like a fresh user's: a home of its own, in which nothing may be left."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "PYTHON", "OPENBLAS"))}
    return {**kept, "HOME": str(home)}


def spaced_environment(folder: Path) -> Path:
    """This interpreter's environment under a path with a space, as after a clone into such a folder; its `bin`."""
    link = folder / "a venv"
    link.symlink_to(sys.prefix)
    return link / "bin"


def start(
    folder: Path,
    module: str,
    *arguments: str,
    python: str | Path = sys.executable,
    variables: dict[str, str] | None = None,
) -> "subprocess.Popen[str]":
    """Starts `python -m MODULE ARGUMENTS` in a folder that holds the test applications."""
    for app in APPS.glob("*.py"):
        shutil.copy(app, folder)
    (folder / "home").mkdir(exist_ok=True)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell that runs the tests in the background has them ignore Ctrl-C, which a child would inherit.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return subprocess.Popen(
        [str(python), "-m", module, *arguments],
        cwd=folder,
        env={**environment(folder / "home"), **(variables or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(
    folder: Path, module: str, *arguments: str, timeout_s: float = 180.0, python: str | Path = sys.executable
) -> Finished:
    """Runs a command to its end; what it started is killed if it takes too long."""
    process = start(folder, module, *arguments, python=python)
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        raise AssertionError(f"not finished after {timeout_s} s:\n{out}\n{err}") from None
    return Finished(process.returncode, out, err)


def tune(folder: Path, *arguments: str, timeout_s: float = 180.0, python: str | Path = sys.executable) -> Finished:
    """Runs the main job."""
    return run(folder, "morphling_ray.tune", *arguments, timeout_s=timeout_s, python=python)


def free_port() -> int:
    """Of TCP, on which nobody listens now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@contextmanager
def cluster(
    home: Path, *options: str, variables: dict[str, str] | None = None, port: int | None = None
) -> Iterator[str]:
    """A Ray cluster of one node, as somebody else has started it; its address."""
    port = port or free_port()
    home.mkdir(exist_ok=True)
    before = ray_processes()
    always = ["--head", f"--port={port}", "--include-dashboard=false", "--disable-usage-stats"]
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name("ray")), "start", "--block", *always, *options],
        env={**environment(home), **(variables or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if "Ray runtime started" in line:
                break
        yield f"127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # nothing of it is kept, and a polite end takes half a minute
        process.communicate()
        for left in ray_processes() - before:
            with suppress(ProcessLookupError):
                os.kill(left, signal.SIGKILL)
        _forget(f":{port}")


def _forget(address_ending: str) -> None:
    """Takes back what `ray start` noted: a later `ray.init()` on this machine would wait for the dead cluster."""
    from ray._common.utils import get_ray_address_file

    note = Path(get_ray_address_file(None))
    if note.is_file() and note.read_text().strip().endswith(address_ending):
        note.unlink()


def ray_processes() -> set[int]:
    """Process ids of Ray's processes on this machine."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if state != "Z" and any(name in command for name in RAY_PROCESSES) and "pytest" not in command:
                found.add(int(entry.name))
    return found


def wait_for(condition: Callable[[], bool], timeout_s: float, what: str | Callable[[], str]) -> None:
    """Waits until `condition()` is true; `what` says for what, in the failure's message."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s} s for {what if isinstance(what, str) else what()}"
        time.sleep(0.1)


def lines(path: Path) -> Sequence[dict[str, Any]]:
    """The JSON lines of a file."""
    return [json.loads(line) for line in path.read_text().splitlines()]
