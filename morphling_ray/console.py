"""Keeps other people's output out of the user's terminal or notebook: Ray's, Serve's and Tune's goes to a file."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO


@dataclass(frozen=True)
class Console:
    """The terminal, or the cell of a notebook, as it was: for progress, and for the last line."""

    stdout: TextIO
    stderr: TextIO


@contextmanager
def quiet(log: Path) -> Iterator[Console]:
    """Sends everything that is written to file descriptors 1 and 2 to `log`, and yields the real ones.

    At the level of file descriptors, because Ray's C++ core and its child processes write there too. Where Python's own
    streams write elsewhere, as in a notebook, those are what is yielded, and what others print goes to `log` as well.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    # Line-buffered copies; Python's own sys.stdout and sys.stderr stay on 1 and 2 and so go to the file.
    copies = [os.fdopen(os.dup(fd), "w", buffering=1, encoding="utf-8", errors="replace") for fd in saved]
    console = Console(
        sys.stdout if _is_elsewhere(sys.stdout, 1) else copies[0],
        sys.stderr if _is_elsewhere(sys.stderr, 2) else copies[1],
    )
    try:
        os.dup2(target, 1)
        os.dup2(target, 2)
        with ExitStack() as stack:
            # sys.__stderr__ writes to descriptor 2, wherever that goes: who still holds it later, as a logger of Ray's
            # does, then writes to the terminal again instead of to a closed file.
            if console.stdout is sys.stdout and sys.__stdout__ is not None:
                stack.enter_context(redirect_stdout(sys.__stdout__))
                stack.enter_context(_loggers_to(sys.__stdout__, console.stdout))
            if console.stderr is sys.stderr and sys.__stderr__ is not None:
                stack.enter_context(redirect_stderr(sys.__stderr__))
                stack.enter_context(_loggers_to(sys.__stderr__, console.stderr))
            yield console
            sys.stdout.flush()
            sys.stderr.flush()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for fd, original in zip(saved, (1, 2), strict=True):
            os.dup2(fd, original)
            os.close(fd)
        os.close(target)
        for copy in copies:
            copy.close()


@contextmanager
def _loggers_to(stream: TextIO, instead_of: TextIO) -> Iterator[None]:
    """Has loggers write to a stream that hold another one since they were made, as Ray's do once it is imported."""
    loggers = [logging.getLogger(), *logging.Logger.manager.loggerDict.values()]
    handlers = [h for logger in loggers if isinstance(logger, logging.Logger) for h in logger.handlers]
    moved = [h for h in handlers if isinstance(h, logging.StreamHandler) and h.stream is instead_of]
    for handler in moved:
        handler.setStream(stream)
    try:
        yield
    finally:
        for handler in moved:
            handler.setStream(instead_of)


def _is_elsewhere(stream: TextIO, fd: int) -> bool:
    """Whether one of Python's streams does not write to its file descriptor."""
    try:
        return stream.fileno() != fd
    except (OSError, ValueError, AttributeError):  # a notebook's stream, or one that only collects text
        return True
