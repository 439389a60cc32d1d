"""Tables and figures of finished comparisons, from their JSON alone.

    python -m experiments.compare_report out.json [more.json] --out DIR [--against gp]

Several files may hold other searchers, data, tasks or priors: what was run under equal conditions stands in one table,
on the tasks that all its rows have run.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__" and not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])


def main(argv: Sequence[str] | None = None) -> int:
    """Writes table.md and the figures; returns 0, or 2 for input that cannot work."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.compare_report", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.json", help="what experiments/compare.py wrote")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="made if need be")
    parser.add_argument("--against", metavar="NAME", help="the row of the table that all others are paired with")
    arguments = parser.parse_args(argv)
    from morphling_ray.errors import MorphlingError

    try:
        for path in _report(arguments.files, arguments.out, arguments.against):
            print(path)
    except MorphlingError as error:
        print(f"compare_report: {error}", file=sys.stderr)
        return 2
    return 0


def _report(files: Sequence[Path], out: Path, against: str | None) -> list[Path]:
    from experiments.comparison.figures import draw_all
    from experiments.comparison.groups import groups_of
    from experiments.comparison.results import Results
    from experiments.comparison.table import report
    from morphling_ray.errors import InputError

    groups = groups_of([Results.read(file) for file in files])
    if not groups:
        raise InputError(f"{', '.join(map(str, files))}: no finished run")
    labels = list(dict.fromkeys(label for group in groups for label in group.searchers))
    if against is not None and against not in labels:
        raise InputError(f"--against {against!r}: there is {', '.join(labels)}")
    try:
        out.mkdir(parents=True, exist_ok=True)
        table = out / "table.md"
        table.write_text(report(groups, against), encoding="utf-8")
        return [table, *draw_all(groups, out, against)]
    except OSError as error:
        raise InputError(f"--out {out}: cannot be written ({error.strerror})") from error


if __name__ == "__main__":
    sys.exit(main())
