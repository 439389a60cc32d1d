"""The `morphling-ray` command: one verb, which gets the rest of the command line."""

import importlib
import sys
from collections.abc import Sequence

VERBS = {
    "tune": "search the best configuration of an application, or replay a search on recorded surfaces",
    "record": "measure a whole or sampled surface of an application",
    "train": "learn a prior from recorded surfaces and run directories",
    "report": "write the report of a run directory",
    "export": "hand a run to others: CSV, Parquet, Optuna, MLflow",
}

EXIT_BAD_INPUT = 2


def usage() -> str:
    """What `--help` prints."""
    verbs = "\n".join(f"  {verb:8}{what}" for verb, what in VERBS.items())
    return f"usage: morphling-ray VERB ...\n\n{verbs}\n\nmorphling-ray VERB --help tells the flags of a verb."


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb; its module is imported only then.

    Args:
        argv: The words after the program's name; those of this process if None.

    Returns:
        The exit status: that of the verb, or 2 if there is no such verb.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] in (["--help"], ["-h"]):
        print(usage())  # noqa: T201
        return 0
    if words[:1] == ["--version"]:
        from morphling_ray import __version__

        print(__version__)  # noqa: T201
        return 0
    if not words or words[0] not in VERBS:
        got = f"there is no verb {words[0]!r}" if words else "a verb is missing"
        print(f"morphling-ray: {got}; choose {', '.join(VERBS)}", file=sys.stderr)  # noqa: T201
        return EXIT_BAD_INPUT
    verb = importlib.import_module(f"morphling_ray.{words[0]}")
    return int(verb.main(words[1:]))


if __name__ == "__main__":
    sys.exit(main())
