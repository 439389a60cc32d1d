"""Keeps other people's output out of the user's terminal: Ray's, Serve's and Tune's goes to a file."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO


@dataclass(frozen=True)
class Console:
    """The terminal as it was: for progress, and for the last line."""

    stdout: TextIO
    stderr: TextIO


@contextmanager
def quiet(log: Path) -> Iterator[Console]:
    """Sends everything that is written to file descriptors 1 and 2 to `log`, and yields the real ones.

    At the level of file descriptors, because Ray's C++ core and its child processes write there too.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    # Line-buffered copies; Python's own sys.stdout and sys.stderr stay on 1 and 2 and so go to the file.
    console = Console(*(os.fdopen(os.dup(fd), "w", buffering=1, encoding="utf-8", errors="replace") for fd in saved))
    try:
        os.dup2(target, 1)
        os.dup2(target, 2)
        yield console
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        console.stdout.flush()
        console.stderr.flush()
        for fd, original in zip(saved, (1, 2), strict=True):
            os.dup2(fd, original)
            os.close(fd)
        os.close(target)
        console.stdout.close()
        console.stderr.close()
