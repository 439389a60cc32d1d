"""Hands a search to what others look at results with: `python -m morphling_ray.export RUN_DIR --optuna sqlite:///o.db`.

A run that was interrupted, or that still runs, is handed over as far as it got.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from morphling_ray.errors import InputError, MorphlingError
from morphling_ray.experiment import Parser
from morphling_ray.result import Result


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; prints what was written, a line each. Returns the exit status: 0, or 2 for bad input."""
    parser = Parser(prog="python -m morphling_ray.export", description="Write a run for other tools.")
    parser.add_argument("run_dir", metavar="RUN_DIR", type=Path, help="run directory, such as runs/20250131-120000")
    parser.add_argument(
        "--csv", metavar="FILE.csv|DIR", type=Path, help="the trials; in a folder trials.csv and probes.csv"
    )
    parser.add_argument("--parquet", metavar="FILE.parquet|DIR", type=Path, help="the same as Parquet")
    parser.add_argument("--optuna", metavar="URL", help="a study in this storage: sqlite:///studies.db")
    parser.add_argument("--study", metavar="NAME", help="name of the study (default: that of the run directory)")
    parser.add_argument("--mlflow", metavar="URI", help="a run in this tracking server or database")
    parser.add_argument("--mlflow-experiment", metavar="NAME", default="morphling_ray", help="(default: morphling_ray)")
    arguments = parser.parse_args(argv)
    try:
        for line in _export(arguments):
            sys.stdout.write(line + "\n")
    except MorphlingError as error:
        sys.stderr.write(f"morphling_ray: {' '.join(str(error).split())}\n")
        return 2
    return 0


def _export(arguments: argparse.Namespace) -> list[str]:
    if all(getattr(arguments, to) is None for to in ("csv", "parquet", "optuna", "mlflow")):
        raise InputError("nothing to export to: give --csv, --parquet, --optuna or --mlflow")
    result = Result.read(arguments.run_dir)
    out: list[str] = []
    if arguments.csv is not None:
        out += map(str, result.to_csv(arguments.csv))
    if arguments.parquet is not None:
        out += map(str, result.to_parquet(arguments.parquet))
    if arguments.optuna is not None:
        out.append(f"Optuna study {result.to_optuna(arguments.optuna, arguments.study)}")
    if arguments.mlflow is not None:
        out.append(f"MLflow run {result.to_mlflow(arguments.mlflow, arguments.mlflow_experiment)}")
    return out


if __name__ == "__main__":
    sys.exit(main())
