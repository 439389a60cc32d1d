"""`morphling_ray.tune`: what `python -m morphling_ray.tune` does, in the caller's own process.

A script, a service or a notebook goes on afterwards, so everything that a search changes of its process is put back:
signal handlers, standard streams, environment variables, and a connection to Ray that the caller had already.
"""

import argparse
import json
import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morphling_ray.errors import InputError, MorphlingError
from morphling_ray.experiment import Experiment, check_known, resolve
from morphling_ray.importable import name_of
from morphling_ray.load.requests import with_files_of
from morphling_ray.result import Result

if TYPE_CHECKING:
    from morphling_ray.console import Console
    from morphling_ray.run import Run

REQUEST = "request.json"  # in the run directory: what requests send, where that was given as a value
_searching = threading.Lock()
_searcher: int | None = None  # the thread that holds it


def tune(
    app: object = None,
    space: Mapping[str, Iterable[Any]] | None = None,
    *,
    slo_p99_ms: float | None = None,
    request: object = None,
    objective: str | None = None,
    max_trials: int | None = None,
    constraints: Iterable[str] | None = None,
    run_dir: str | os.PathLike[str] | None = None,
    resume: str | os.PathLike[str] | None = None,
    experiment: str | os.PathLike[str] | None = None,
    quiet: bool = False,
    **settings: Any,
) -> Result:
    """Finds the configuration of a Ray Serve application that serves best under a latency SLO.

    Each setting is the flag of that name of `python -m morphling_ray.tune`, with its default; None is not given.
    Ctrl-C (of a notebook: Interrupt) ends the search: what was found so far is returned, and is `interrupted`. Where
    nothing is feasible the result has no `configuration`, but a `reason`.

    Without `address` a Ray of its own is started on this machine and ended. Where this process is connected to Ray
    already, that cluster is used and stays connected; of what is on it, only what the search deployed is taken down.

    Args:
        app: A bound application (or a function that builds one) that is a global variable of a module or of the script
            that runs, which is imported again in the replicas; or a text as on the command line: `module:app`, a Serve
            config. None: the bundled demo.
        space: Values of each knob. None: what suits the application.
        slo_p99_ms: The SLO: 99 % of requests answered within so many milliseconds.
        request: What requests send: a text as on the command line (a file, `module:function`), a function that makes
            payloads, or the JSON value itself, if that is no text.
        objective: `rps`, `rps_per_dollar` or `cheapest`.
        max_trials: At most.
        constraints: Comparisons that each configuration must meet.
        run_dir: Where results go. None: `runs/DATE-TIME`.
        resume: Run directory of an interrupted search, which goes on.
        experiment: An experiment file; what is given here beats it.
        quiet: Say nothing.
        **settings: Any other setting, by its name in an experiment file.

    Raises:
        InputError: Something that was asked for cannot work; the message is one line that says what to change.
    """
    started = time.monotonic()
    check_known(settings, "tune has no setting")
    settings |= {"slo_p99_ms": slo_p99_ms, "objective": objective, "max_trials": max_trials, "run_dir": run_dir}
    settings = {name: os.fspath(v) if isinstance(v, os.PathLike) else v for name, v in settings.items()}
    settings["space"] = None if space is None else _lists(space)
    settings["constraints"] = constraints if constraints is None or isinstance(constraints, str) else list(constraints)
    with _in_words_of_python(), _only_search(), _as_it_was():
        settings["app"] = _text(app, "app")
        with _request(request) as (text, value):
            run = _prepared({**settings, "request": text}, resume, experiment, started)
        if value is not None:
            _keep_request(run, value)
        return _searched(run, quiet=quiet)


def carry_out(run: "Run", console: "Console", how: str) -> tuple[dict[str, Any], bool]:
    """Runs a search to its end, or until Ctrl-C, and writes down what it found.

    Args:
        run: Prepared.
        console: Where progress goes.
        how: See `Run.progress`.

    Returns:
        What the last line on stdout says, and whether the search was interrupted.

    Raises:
        MorphlingError: The cluster cannot do what the experiment asks for.
    """
    interrupted = False
    try:
        with run.progress(console.stderr, how):
            try:
                run.search()
            except KeyboardInterrupt:
                interrupted = True
                if threading.current_thread() is threading.main_thread():
                    # A second Ctrl-C must not spoil the end, which takes a few seconds at most.
                    signal.signal(signal.SIGINT, signal.SIG_IGN)
            finally:
                run.release(in_a_hurry=interrupted)
    except MorphlingError:
        run.discard_if_empty()
        raise
    return run.conclude(interrupted=interrupted), interrupted


def _prepared(
    settings: Mapping[str, Any],
    resume: str | os.PathLike[str] | None,
    experiment: str | os.PathLike[str] | None,
    started: float,
) -> "Run":
    from morphling_ray.run import Run

    folder = None if resume is None else os.fspath(resume)
    file = None if experiment is None else os.fspath(experiment)
    resolved = resolve(argparse.Namespace(experiment=file, resume=folder, **settings))
    run = Run.prepare(resolved, argv=[], started=started, resume=folder)
    where = str(run.directory.path)
    run.command = ["--resume", where] if resume is not None else ["--experiment", f"{where}/experiment.yaml"]
    return run


def _searched(run: "Run", *, quiet: bool) -> Result:
    from morphling_ray.console import quiet as quiet_console

    with quiet_console(run.directory.log_path) as console:
        carry_out(run, console, "quiet" if quiet else "live")
        for line in run.closing_lines() if not quiet else ():
            print(line, file=console.stderr)
    return Result.read(run.directory.path)


@contextmanager
def _in_words_of_python() -> Iterator[None]:
    """Has messages call settings by the names of arguments, not of flags."""
    try:
        yield
    except InputError as error:
        known = {"resume", "experiment", *Experiment.__dataclass_fields__}

        def argument(flag: re.Match[str]) -> str:
            name = flag[1].replace("-", "_")
            return name if name in known else flag[0]

        raise type(error)(re.sub(r"--([a-z0-9-]+)", argument, str(error))) from error


@contextmanager
def _only_search() -> Iterator[None]:
    """Refuses a search within a search, as a script without a guard would begin them, one in each replica."""
    global _searcher
    unguarded = (
        "tune was called while the application's module was imported, as every replica does: put the call under "
        "`if __name__ == '__main__':`"
    )
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized() and ray._private.worker.global_worker.mode == ray.WORKER_MODE:
        raise InputError(unguarded)
    if not _searching.acquire(blocking=False):
        other = "another thread of this process is searching: it has one connection to Ray"
        raise InputError(unguarded if _searcher == threading.get_ident() else other)
    _searcher = threading.get_ident()
    try:
        yield
    finally:
        _searcher = None
        _searching.release()


@contextmanager
def _as_it_was() -> Iterator[None]:
    """Puts back signal handlers, which only the main thread may set, and environment variables.

    RAY_AUTH_TOKEN stays: Ray keeps the first one that a process has, and takes no other cluster's afterwards.
    """
    from morphling_ray.cluster import QUIET

    variables = {name: os.environ.get(name) for name in QUIET}
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for name, value in variables.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                if handler is not None:  # else it was not set from Python
                    signal.signal(number, handler)


def _text(thing: object, argument: str) -> str | None:
    if thing is None or isinstance(thing, str):
        return thing
    return os.fspath(thing) if isinstance(thing, os.PathLike) else name_of(thing, argument)


def _lists(space: object) -> object:
    """A space whose values may be tuples, ranges or arrays, as an experiment file has it."""
    if not isinstance(space, Mapping):
        return space  # which is refused, with what it should be
    many = {name: list(v) if isinstance(v, Iterable) and not isinstance(v, str) else v for name, v in space.items()}
    return {
        name: [each.item() if hasattr(each, "item") else each for each in v] if isinstance(v, list) else v
        for name, v in many.items()
    }


@contextmanager
def _request(given: object) -> Iterator[tuple[str | None, str | None]]:
    """What `--request` would say; and of a JSON value its text, which lies in a temporary file meanwhile."""
    if given is None or isinstance(given, (str, os.PathLike)) or callable(given):
        yield _text(given, "request"), None
        return
    try:
        text = json.dumps(with_files_of(given, Path.cwd()), allow_nan=False, indent=2) + "\n"
    except (TypeError, ValueError) as error:
        raise InputError(f"request must be a text, a function or a JSON value: {error}") from error
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / REQUEST
        file.write_text(text, encoding="utf-8")
        yield str(file), text


def _keep_request(run: "Run", text: str) -> None:
    """Has the run directory hold the request, by a path that stays right wherever the folder goes."""
    run.directory.write_text(REQUEST, text)
    run.experiment = replace(run.experiment, request=REQUEST)
    run.directory.write_experiment(run.experiment.to_dict())
