"""Finds a good serving configuration: `python -m morphling_ray.tune`.

experiment ─► space ─► Ray Tune with our searcher ─► trials ─► lane (evaluator) ─► store ─► recommendation

Progress goes to stderr; the last line on stdout is one JSON object. Exit status: 0 found, 2 bad input, 3 nothing
feasible, 130 interrupted (everything measured is kept).
"""

import argparse
import json
import signal
import sys
import time
import types
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from morphling_ray.errors import MorphlingError
from morphling_ray.experiment import Experiment, Parser, add_flags, resolve

if TYPE_CHECKING:
    from morphling_ray.result import Result
    from morphling_ray.run import Run

FOUND, BAD_INPUT, NOTHING_FEASIBLE, INTERRUPTED = 0, 2, 3, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of the main job; returns the exit status."""
    parser = Parser(
        prog="python -m morphling_ray.tune",
        description="Finds the configuration of a Ray Serve application that serves best under a latency SLO.",
    )
    add_flags(parser)
    parser.add_argument("--resume", metavar="DIR", help="go on with an interrupted run, keeping every finished trial")
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, say the plan and what it takes, start nothing"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    arguments = parser.parse_args(argv)
    started = time.monotonic()
    try:
        return _tune(arguments, list(sys.argv[1:] if argv is None else argv), started)
    except MorphlingError as error:
        sys.stderr.write(f"morphling_ray: {' '.join(str(error).split())}\n")
        return BAD_INPUT
    except KeyboardInterrupt:  # before there was anything to keep
        sys.stderr.write("morphling_ray: interrupted\n")
        return INTERRUPTED


def _tune(arguments: argparse.Namespace, argv: list[str], started: float) -> int:
    from morphling_ray.run import Run

    experiment = resolve(arguments)
    if arguments.dry_run:
        return _dry_run(experiment, quiet=arguments.quiet)
    run = Run.prepare(experiment, argv=argv, started=started, resume=arguments.resume)
    return _execute(run, quiet=arguments.quiet)


def _dry_run(experiment: Experiment, *, quiet: bool) -> int:
    from morphling_ray.preview import dry_run

    plan, lines = dry_run(experiment)
    for line in lines if not quiet else ():
        sys.stderr.write(line + "\n")
    sys.stdout.write(json.dumps(plan) + "\n")
    return FOUND


def _execute(run: "Run", *, quiet: bool) -> int:
    from morphling_ray.api import carry_out
    from morphling_ray.console import quiet as quiet_console

    with quiet_console(run.directory.log_path) as console:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # whoever ends us politely gets what was measured
        result, interrupted = carry_out(run, console, quiet=quiet)
        for line in run.closing_lines():
            print(line, file=console.stderr)
        print(json.dumps(result), file=console.stdout)
    if interrupted:
        return INTERRUPTED
    return FOUND if result["configuration"] is not None else NOTHING_FEASIBLE


class _Callable(types.ModuleType):
    """This module, which is `morphling_ray.tune` as soon as somebody has imported it, is the function of that name."""

    def __call__(self, *args: Any, **settings: Any) -> "Result":
        """See `morphling_ray.api.tune`."""
        from morphling_ray.api import tune

        return tune(*args, **settings)


sys.modules[__name__].__class__ = _Callable

if __name__ == "__main__":
    sys.exit(main())
