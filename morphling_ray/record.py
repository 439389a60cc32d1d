"""Records a surface: measures every configuration of an application's space, or a sample of them.

    python -m morphling_ray.record --app module:app --out surfaces/mine --task my-model [--sample 40]

Each configuration gets a full search for its peak, nothing is rejected early. The raw measurements, with every probe,
go to `OUT/raw/TASK.jsonl` as they come, so that an interrupted recording goes on where it stopped; `surfaces.yaml` and
`surfaces.csv` are made from all raw files in the folder, and are what `--replay` and `morphling_ray.train` read.
"""

import argparse
import json
import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from morphling_ray.errors import InputError, MorphlingError, StoreError
from morphling_ray.experiment import Parser, add_flags, resolve
from morphling_ray.measurement import Measurement
from morphling_ray.objective import Objective
from morphling_ray.space import Configuration

METRICS = ("peak_rps", "capacity_rps")
FINAL_ROUNDS = 4


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status (0, 2 bad input, 130 interrupted)."""
    parser = Parser(
        prog="python -m morphling_ray.record", description="Measures the surface of a Ray Serve application."
    )
    add_flags(parser)
    parser.add_argument(
        "--out", metavar="DIR", required=True, help="folder of the surfaces; may hold other tasks already"
    )
    parser.add_argument("--record-task", metavar="NAME", help="name of the task (default: the application's attribute)")
    parser.add_argument("--family", metavar="NAME", default="", help="kind of model (default: the task's name)")
    parser.add_argument("--sample", metavar="N", type=int, help="measure only N configurations, drawn with --seed")
    parser.add_argument(
        "--repeats", metavar="N", type=int, default=1, help="measure each N times, in N rounds (default: 1)"
    )
    parser.add_argument(
        "--again", metavar="N", type=int, default=0, help="measure N of them once more, to see how far repeats differ"
    )
    parser.add_argument(
        "--finalists", metavar="N", type=int, default=0, help="then measure the best N again, longer, in 4 more rounds"
    )
    arguments = parser.parse_args(argv)
    try:
        _record(arguments, list(sys.argv[1:] if argv is None else argv))
    except MorphlingError as error:
        sys.stderr.write(f"morphling_ray: {' '.join(str(error).split())}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command goes on from here\n")
        return 130
    return 0


def _record(arguments: argparse.Namespace, argv: list[str]) -> None:
    from morphling_ray.cluster import connect, disconnect
    from morphling_ray.console import quiet
    from morphling_ray.evaluate.online import OnlineEvaluator
    from morphling_ray.serving.deployment import leave_serve
    from morphling_ray.target import ServeTarget

    experiment = resolve(arguments)
    if arguments.repeats < 1 or arguments.again < 0 or (arguments.sample is not None and arguments.sample < 1):
        raise InputError("--sample and --repeats must be at least 1, --again at least 0")
    target = ServeTarget(experiment)
    task = arguments.record_task or experiment.app.rpartition(":")[2]
    raw = Path(arguments.out) / "raw" / f"{task}.jsonl"
    raw.parent.mkdir(parents=True, exist_ok=True)
    with quiet(raw.parent / "ray.log") as console:
        cluster = connect(experiment.address, experiment.node_types)
        try:
            target.plan(cluster)
            ours = target.start_serve()
            plan = target.plan(cluster)
            rounds = rounds_of(
                plan.space.configurations, arguments.sample, arguments.repeats, arguments.again, experiment.seed
            )
            evaluator = OnlineEvaluator(**{**plan.arguments, "space": None})  # each by itself
            say = _teller(console.stderr, f"{task}: ", len(rounds))
            meta = {"family": arguments.family or task, "slo_p99_ms": experiment.slo_p99_ms, "command": argv}
            meta["descriptors"] = experiment.descriptors
            measure_missing(raw, rounds, evaluator.measure, say, meta)
            best = _fewest_restarts(best_of(raw, plan.objective)[: arguments.finalists])
            finals: list[tuple[Configuration, int | str]] = [
                (c, f"final-{r}") for r in range(FINAL_ROUNDS) for c in best
            ]
            say = _teller(console.stderr, f"{task} (finalists): ", len(finals))
            measure_missing(raw, finals, lambda c: evaluator.measure(c, confirm=True), say, meta)
            evaluator.close()
            leave_serve(shut_down=ours, wait=False)
        finally:
            disconnect()
        write_surfaces(Path(arguments.out))
    (raw.parent / "ray.log").unlink(missing_ok=True)


def rounds_of(
    configurations: Sequence[Configuration], sample: int | None, repeats: int, again: int, seed: int
) -> list[tuple[Configuration, int | str]]:
    """What is measured, in order, each with the number of its round.

    Args:
        configurations: Of the space.
        sample: So many of them are drawn; None: all.
        repeats: How often each is measured.
        again: So many of those that were drawn have one more round.
        seed: Of both draws.
    """
    rng = random.Random(seed)
    chosen = list(configurations)
    if sample is not None and sample < len(chosen):
        chosen = rng.sample(chosen, sample)
    rounds = [chosen] * repeats + [rng.sample(chosen, min(again, len(chosen)))]
    return [(c, number) for number, round_ in enumerate(rounds) for c in _fewest_restarts(round_)]


def best_of(raw: Path, objective: Objective) -> list[Configuration]:
    """The configurations of a raw file by the objective of their median peak, best first; finalists stay finalists."""
    peaks: dict[str, list[float]] = {}
    for line in read_raw(raw):
        if line["metrics"] and not str(line["repeat"]).startswith("final"):
            peaks.setdefault(json.dumps(line["configuration"]), []).append(line["metrics"]["peak_rps"])
    value = {c: float(objective(json.loads(c), {"peak_rps": statistics.median(p)})) for c, p in peaks.items()}
    return [json.loads(c) for c in sorted(value, key=lambda c: -value[c])]


def _fewest_restarts(configurations: Iterable[Configuration]) -> list[Configuration]:
    """Ordered so that replicas restart seldom: resources change last, live settings first."""
    restarting = ("cpu_cores", "num_replicas", "num_gpus", "gpu_type")
    return sorted(configurations, key=lambda c: [str(c.get(name, "")) for name in restarting])


def _teller(stream: Any, prefix: str, total: int) -> Callable[[int, Measurement, float], None]:
    """Says how far it is, and about how long it still takes."""
    spent: list[float] = []

    def tell(done: int, measurement: Measurement, seconds: float) -> None:
        spent.append(seconds)
        left = statistics.fmean(spent[-20:]) * (total - done) / 60
        peak = measurement.metrics.get("peak_rps")
        result = f"{peak:.4g} RPS" if peak else measurement.infeasible_because
        knobs = " ".join(f"{k}={v}" for k, v in measurement.configuration.items())
        print(
            f"{prefix}{done}/{total}  {knobs}  {result}  ({seconds:.1f} s; {left:.0f} min left)",
            file=stream,
            flush=True,
        )

    return tell


def measure_missing(
    raw: Path,
    rounds: Sequence[tuple[Configuration, int | str]],
    measure: Callable[[Configuration], Measurement],
    tell: Callable[[int, Measurement, float], None],
    meta: dict[str, Any],
) -> None:
    """Measures what the raw file does not hold yet, a line for each.

    Args:
        raw: JSON lines; made if need be.
        rounds: Configurations with the number or name of the repeat.
        measure: Measures one.
        tell: Told of each: how many are done, the measurement, its seconds.
        meta: Written into every line.
    """
    from morphling_ray.environment import environment

    have = {_key(line["configuration"], line["repeat"]) for line in read_raw(raw)} if raw.exists() else set()
    around = {k: v for k, v in environment([]).items() if k not in ("command", "date")}
    done = len([1 for c, r in rounds if _key(c, r) in have])
    if raw.exists():  # half a last line would spoil the next one
        lines = raw.read_text(encoding="utf-8").splitlines(keepends=True)
        raw.write_text("".join(lines[: len(read_raw(raw))]), encoding="utf-8")
    with raw.open("a", encoding="utf-8") as file:
        for configuration, repeat in rounds:
            if _key(configuration, repeat) in have:
                continue
            started = time.monotonic()
            measurement = measure(configuration)
            done += 1
            line = {**measurement.to_dict(), "repeat": repeat, "date": time.strftime("%Y-%m-%d"), **meta, **around}
            file.write(json.dumps(line, default=str).replace("Infinity", "null") + "\n")
            file.flush()
            tell(done, measurement, time.monotonic() - started)


def _key(configuration: Configuration, repeat: int | str) -> str:
    return json.dumps([configuration, repeat], sort_keys=True)


def read_raw(path: Path) -> list[dict[str, Any]]:
    """The lines of a raw file; half a last line, as a kill leaves it, is left out.

    Raises:
        StoreError: Another line is not JSON.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    out: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            out.append(json.loads(line))
        except ValueError as error:
            if number < len(lines):
                raise StoreError(f"{path}, line {number}: not JSON") from error
    return out


def write_surfaces(folder: Path, *, about: str | None = None, source: str | None = None) -> None:
    """Makes `surfaces.yaml` and `surfaces.csv` from the raw files; feasible is what was so in half of its repeats.

    Args:
        folder: Of the surfaces.
        about: What they are; None: what this module records.
        source: The command that recorded them; None: this module's.
    """
    from morphling_ray.objective import Prices
    from morphling_ray.space import Knob, SearchSpace
    from morphling_ray.surface import Surface, SurfaceSet, save_surfaces

    tasks = {path.stem: read_raw(path) for path in sorted((folder / "raw").glob("*.jsonl"))}
    tasks = {task: lines for task, lines in tasks.items() if any(line["metrics"] for line in lines)}
    if not tasks:
        raise StoreError(f"{folder}: nothing was recorded that works")
    every = [line for lines in tasks.values() for line in lines]
    names = list(dict.fromkeys(name for line in every for name in line["configuration"]))
    knobs = [Knob.infer(n, sorted({line["configuration"][n] for line in every}, key=_sortable)) for n in names]
    surfaces: dict[str, Surface] = {}
    for task, lines in tasks.items():
        cells: dict[str, list[dict[str, Any]]] = {}
        for line in lines:
            cells.setdefault(_key(line["configuration"], 0), []).append(line)
        space = SearchSpace(knobs, configurations=[c[0]["configuration"] for c in cells.values()])
        feasible = np.array([2 * sum(bool(line["metrics"]) for line in c) >= len(c) for c in cells.values()])
        metrics = {m: np.where(feasible, levels(list(cells.values()), m), np.nan) for m in METRICS}
        constants = {str(k): float(v) for k, v in lines[0].get("descriptors", {}).items()}
        surfaces[task] = Surface(task, lines[0]["family"], space, metrics, feasible, constants)
    first, bounds = every[0], sorted({line["slo_p99_ms"] for line in every})
    slo = f"{bounds[0]:g} ms" if len(bounds) == 1 else f"{bounds[0]:g} to {bounds[-1]:g} ms (each task's own, see raw/)"
    prices = Prices.load()
    dates = sorted({line["date"] for line in every})
    save_surfaces(
        folder,
        SurfaceSet(
            name=folder.resolve().name,
            about=about
            or (
                f"Peak open-loop Poisson rate with p99 <= {slo}, and closed-loop capacity, of "
                f"Ray Serve applications on {_all(every, 'cpus')} cores ({_all(every, 'cpu')}), "
                f"Ray {_all(every, 'ray')}, torch {_all(every, 'torch')}; recorded {dates[0]} to {dates[-1]}. "
                f"Where all cores are the replica's, the load driver shares them.{_spread(tasks)}"
            ),
            source=source or "python -m morphling_ray.record " + " ".join(first["command"]),
            licence="Apache-2.0",
            knobs=tuple(knobs),
            better={"peak_rps": "higher", "capacity_rps": "higher"},
            missing="absent",
            cost=f"{prices.base} + {prices.cpu_core} * cpu_cores" if "cpu_cores" in names else None,
            objectives={
                "rps": {"maximize": "peak_rps"},
                **({"rps_per_dollar": {"maximize": "peak_rps / cost"}} if "cpu_cores" in names else {}),
            },
            surfaces=surfaces,
        ),
    )


def _all(lines: Sequence[dict[str, Any]], key: str) -> str:
    """What the lines say of where they were recorded, each once: a set may come from several machines."""
    return " or ".join(sorted({str(line[key]) for line in lines}))


def levels(cells: Sequence[Sequence[dict[str, Any]]], metric: str) -> npt.NDArray[np.float64]:
    """The level of each configuration, with the speed of the machine in each round taken off.

    A shared machine is slower in some rounds than in others, and not every configuration is in every round. So
    log y = level of the configuration + speed of the round is fitted by least squares; the speeds average to 0.

    Args:
        cells: The lines of each configuration, one a repeat.
        metric: Which.

    Returns:
        Shape `(len(cells),)`; NaN where a configuration has no value.
    """
    rounds = sorted({str(line["repeat"]) for lines in cells for line in lines if line["metrics"]})
    rows = [
        (i, rounds.index(str(line["repeat"])), math.log(line["metrics"][metric]))
        for i, lines in enumerate(cells)
        for line in lines
        if line["metrics"]
    ]
    design = np.zeros((len(rows) + 1, len(cells) + len(rounds)))
    target = np.zeros(len(rows) + 1)
    for k, (i, r, value) in enumerate(rows):
        design[k, i] = design[k, len(cells) + r] = 1.0
        target[k] = value
    design[-1, len(cells) :] = 1.0  # the speeds average to 0
    found = np.exp(np.linalg.lstsq(design, target, rcond=None)[0][: len(cells)])
    found[[i for i in range(len(cells)) if not any(i == row[0] for row in rows)]] = np.nan
    return np.asarray(found, np.float64)


def _spread(tasks: dict[str, list[dict[str, Any]]]) -> str:
    """In words, how far repeats of one configuration lie apart (the noise of a single measurement)."""
    squares: dict[bool, list[float]] = {False: [], True: []}
    for lines in tasks.values():
        repeats: dict[tuple[str, bool], list[float]] = {}
        for line in lines:
            if line["metrics"]:
                key = _key(line["configuration"], 0), str(line["repeat"]).startswith("final")
                repeats.setdefault(key, []).append(math.log(line["metrics"]["peak_rps"]))
        for (_, final), logs in repeats.items():
            if len(logs) > 1:
                squares[final].append(statistics.variance(logs))
    said = [
        f" Repeated {kind} of one configuration differ with a standard deviation of {statistics.fmean(s) ** 0.5:.0%} "
        f"({len(s)} configurations)."
        for kind, s in (("measurements", squares[False]), ("long measurements", squares[True]))
        if s
    ]
    return "".join(said)


def _sortable(value: Any) -> tuple[str, Any]:
    return ("text", value) if isinstance(value, str) else ("number", float(value))


if __name__ == "__main__":
    sys.exit(main())
