"""Records surfaces on an NVIDIA card, with or without Ray: `python -m experiments.gpu_surfaces --out DIR`.

    one process a share ─► each model: batches that fit into the memory; then for each number of cores the times of
    batches of all sizes, and a closed loop ─► raw/MODEL.jsonl ─► surfaces.csv: the twin's peak of every batch setting

A process has its share of the card's multiprocessors (MPS), its cores and its threads by the very limits of a replica
(gpu_limits.py, limits.py). How much memory it may use does not change how long a batch takes, only whether there can
be one: so each size is tried under each limit of torch's allocator once, on the whole card. A peak here is a forecast
from measured times (twin.py), not the result of a search; the surfaces say so. `--only write` computes them again from
what was measured, for another SLO if need be. Models of the catalogue are fed inputs of their published size.

The whole card comes first, then the smallest share, then those between. Whatever is measured is kept at once, and the
same command goes on where it stopped. With Ray on the machine, `python -m morphling_ray.record` searches for each peak
instead, over the same knobs.
"""

import argparse
import asyncio
import gc
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from experiments.zoo.catalogue import MODELS as CATALOGUE
from experiments.zoo.models import FAMILIES, FULL, MODELS
from morphling_ray.environment import environment
from morphling_ray.measurement import Measurement
from morphling_ray.objective import Prices
from morphling_ray.record import read_raw
from morphling_ray.serving import failures, gpu_limits, nvml
from morphling_ray.serving.batcher import Batch, Batcher, Forward
from morphling_ray.serving.limits import THREAD_VARIABLES, pin_process, take_cores
from morphling_ray.serving.twin import ServiceTimes, capacity_rps, ladder, predicted_peaks, sweep_sizes
from morphling_ray.space import Configuration, Knob, SearchSpace
from morphling_ray.surface import Surface, SurfaceSet, save_surfaces

MEMORY, CORES, BATCHES = (0.02, 0.04, 0.08, 0.16, 1.0), (1, 4), (1, 2, 4, 8, 16, 32, 64, 128)
SHARES = (1.0, 0.1, 0.5, 0.25)  # in this order
SLO_S, PERCENTILE = 0.1, 99.0
SWEEP_S, LOOP_S, LOOP_BATCHES = 0.8, 0.5, 12  # batches of all sizes, and the closed loop, of so many batches at least
TOO_LONG_S = 90.0
ENDLESS = 10_000  # requests that wait while a sweep computes
Found = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Records; returns 0, or 1 where there is no card."""
    parser = argparse.ArgumentParser(prog="python -m experiments.gpu_surfaces", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--models", nargs="+", choices=[*MODELS, *CATALOGUE], default=in_order(), metavar="MODEL")
    parser.add_argument("--seconds", type=float, default=540.0, help="start nothing after that")
    parser.add_argument("--card", default="0", help="index or UUID")
    parser.add_argument("--mps", choices=("auto", "off"), default="auto", help="off: the whole card only")
    parser.add_argument("--slo-ms", type=float, default=SLO_S * 1e3, help="of the 99th percentile")
    parser.add_argument("--only", choices=("record", "write"), help="measure only, or compute the surfaces only")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.worker:
        for said in _work(**json.loads(arguments.worker)):
            print(json.dumps(said), flush=True)
        return 0
    (arguments.out / "raw").mkdir(parents=True, exist_ok=True)
    if arguments.only != "write":
        if not (found := nvml.visible(arguments.card)):
            print("there is no NVIDIA card on this machine", file=sys.stderr)
            return 1
        _record(arguments, found[0].name if isinstance(found[0], nvml.Card) else found[0].profile)
    if arguments.only == "record":
        return 0
    lines = {path.stem: read_raw(path) for path in sorted((arguments.out / "raw").glob("*.jsonl"))}
    if any(line["by_cores"] for of in lines.values() for line in of):
        save_surfaces(arguments.out, surfaces(arguments.out.resolve().name, lines, arguments.slo_ms / 1e3))
    return 0


def in_order() -> list[str]:
    """The models of the catalogue, one of each family first."""
    families: dict[str, list[str]] = {}
    for name, model in CATALOGUE.items():
        families.setdefault(model.family, []).append(name)
    return [name for row in itertools.zip_longest(*families.values()) for name in row if name is not None]


def _record(arguments: argparse.Namespace, card: str) -> None:
    """Measures what the raw files do not hold, a line for each model and share."""
    around = {k: v for k, v in environment([]).items() if k not in ("command", "date", "ray", "version")}
    around |= {"card": card, "date": date.today().isoformat()}
    shares = SHARES if arguments.mps == "auto" else SHARES[:1]
    end = time.monotonic() + arguments.seconds
    for left, share in zip(range(len(shares), 0, -1), shares):  # each share has its part of the time that is left
        missing = [name for name in arguments.models if share not in _recorded(arguments.out, name)]
        until = time.monotonic() + max(0.0, end - time.monotonic()) / left
        for said in processes(missing, share, arguments.card, arguments.mps, until):
            with (arguments.out / "raw" / f"{said['model']}.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps({**said, **around}) + "\n")
            print(f"{said['model']} share={share:g}  {_told(said)}", flush=True)
    if any(share not in _recorded(arguments.out, name) for share in shares for name in arguments.models):
        print("the time is over; the same command goes on from here")


def _recorded(folder: Path, model: str) -> set[float]:
    path = folder / "raw" / f"{model}.jsonl"
    return {line["share"] for line in read_raw(path)} if path.exists() else set()


def _told(said: Found) -> str:
    if said["failed"]:
        return str(said["failed"])
    return ", ".join(f"{cores} cores {of['closed_loop_rps']:.4g} RPS" for cores, of in said["by_cores"].items())


def processes(models: Sequence[str], share: float, card: str, mps: str, until: float) -> Iterator[Found]:
    """What a process under a share says of each model; the model with which one ends is told as failed."""
    left = list(models)
    limits = gpu_limits.gpu_environment(share=share, mps_mode=mps)
    threads = dict.fromkeys(THREAD_VARIABLES, str(max(CORES)))
    variables = {**os.environ, **threads, **limits, "CUDA_VISIBLE_DEVICES": card}
    command = [sys.executable, "-m", "experiments.gpu_surfaces", "--out", "-", "--worker"]
    while left and (seconds := until - time.monotonic()) > 0:
        settings = [json.dumps({"models": left, "share": share, "seconds": seconds})]
        with (
            tempfile.TemporaryFile("w+") as log,
            subprocess.Popen(
                command + settings, env=variables, stdout=subprocess.PIPE, stderr=log, text=True
            ) as worker,
        ):
            watchdog = threading.Timer(seconds + TOO_LONG_S, worker.kill)
            watchdog.start()
            assert worker.stdout is not None
            for text in worker.stdout:
                if text.startswith("{"):
                    said: Found = json.loads(text)
                    left.remove(said["model"])
                    yield said
            watchdog.cancel()
            if worker.wait() == 0:
                return
            log.seek(0)
            why = failures.on_load(log.read())
        yield {"model": left.pop(0), "share": share, "by_cores": {}, "failed": why}


def _work(models: Sequence[str], share: float, seconds: float) -> Iterator[Found]:
    """In the process under a share: one model after the other, as long as there is time."""
    deadline = time.monotonic() + seconds
    cores = [n for n in CORES if n <= len(os.sched_getaffinity(0))] or [1]
    take_cores(max(cores))
    gpu_limits.bind()
    (part,) = nvml.visible(os.environ["CUDA_VISIBLE_DEVICES"])
    mine = sorted(os.sched_getaffinity(0))
    import torch

    from morphling_ray.serving.torch_model import TorchModel, device

    for name in models:
        if time.monotonic() > deadline:
            return
        began_us = time.time_ns() // 1000
        attribute = f"{name}_model" if name in MODELS else name + FULL
        server = TorchModel(f"experiments.zoo.models:{attribute}")
        payload = server.served.request()
        for _ in range(3):
            server.forward([payload])  # kernels are loaded and chosen
        said: Found = {"model": name, "share": share, "device": device(), "by_cores": {}, "failed": ""}
        largest = max(BATCHES)
        if share == 1.0:
            said["fits"] = {str(m): _largest_that_fits(server.forward, payload, m, part) for m in MEMORY}
            largest = said["fits"]["1.0"]
        for count in cores:
            pin_process(os.getpid(), mine[:count])
            torch.set_num_threads(count)
            said["by_cores"][str(count)] = _times(server.forward, payload, largest)
        said["gpu"] = gpu_limits.report(began_us)
        yield said
        del server
        _let_go()


def _let_go() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _largest_that_fits(forward: Forward, payload: Any, memory: float, part: nvml.Card | nvml.Instance) -> int:
    """The largest batch that torch can compute with a share of the memory; 0 where it cannot compute any."""
    import torch

    limited, share = torch.cuda.is_available(), gpu_limits.torch_share(memory, part)
    try:
        if limited:
            torch.cuda.set_per_process_memory_fraction(share)
            _let_go()
            if torch.cuda.memory_reserved() > share * part.memory_bytes:  # the weights alone
                return 0
        for size in reversed(BATCHES):
            _let_go()
            try:
                forward([payload] * size)
                return size
            except RuntimeError as error:
                if not failures.ran_out(f"{type(error).__name__} {error}"):
                    raise
        return 0
    finally:
        if limited:
            torch.cuda.set_per_process_memory_fraction(1.0)


def _times(forward: Forward, payload: Any, largest: int) -> Found:
    """Batches of all sizes up and down, and a closed loop; no larger ones than the first that alone misses the SLO."""
    for size in sweep_sizes(largest):
        forward([payload] * size)  # kernels for that size are loaded and chosen
        began = time.perf_counter()
        forward([payload] * size)
        if (took := time.perf_counter() - began) > SLO_S:
            largest = size
            break
    sizes: list[int] = []
    seconds: list[float] = []
    began = time.perf_counter()
    while not sizes or time.perf_counter() < began + SWEEP_S:
        for size in ladder(largest):
            taken = time.perf_counter()
            forward([payload] * size)
            sizes.append(size)
            seconds.append(round(time.perf_counter() - taken, 7))
    looped = asyncio.run(_closed_loop(forward, payload, largest, max(LOOP_S, LOOP_BATCHES * took)))
    return {"sizes": sizes, "seconds": seconds, "closed_loop_rps": looped}


async def _closed_loop(forward: Forward, payload: Any, largest: int, seconds: float) -> float:
    """Requests a second through the batcher, with two of the largest batches in flight."""
    batcher = Batcher(forward, max_batch_size=largest)
    end, answered = time.perf_counter() + seconds, 0

    async def ask() -> None:
        nonlocal answered
        while time.perf_counter() < end:
            await batcher(payload)
            answered += 1

    began = time.perf_counter()
    await asyncio.gather(*(ask() for _ in range(2 * largest)))
    return answered / (time.perf_counter() - began)


def surfaces(name: str, recorded: dict[str, list[Found]], slo_s: float) -> SurfaceSet:
    """The surfaces of what was recorded, by model: the twin's peaks under an SLO."""
    knobs = [Knob.infer("gpu_memory", list(MEMORY)), Knob.infer("gpu_share", sorted(SHARES))]
    knobs += [Knob.infer("cpu_cores", list(CORES)), Knob.infer("max_batch_size", list(BATCHES))]
    made = {}
    for task, lines in recorded.items():
        cells = [cell for line in lines for cell in _cells(line, lines, slo_s)]
        if not any(cell.metrics for cell in cells):
            continue
        space = SearchSpace(knobs, configurations=[cell.configuration for cell in cells])
        feasible = np.array([bool(cell.metrics) for cell in cells])
        columns = {m: np.array([c.metrics.get(m, np.nan) for c in cells]) for m in ("peak_rps", "capacity_rps")}
        family = FAMILIES[task] if task in MODELS else CATALOGUE[task].family
        made[task] = Surface(task, family, space, columns, feasible)
    first = next(line for lines in recorded.values() for line in lines)
    dates = sorted({line["date"] for lines in recorded.values() for line in lines})
    prices = Prices.load("aws")
    price = next((dollars for kind, dollars in prices.gpu.items() if kind in first["card"].replace(" ", "-")), 1.0)
    return SurfaceSet(
        name=name,
        about=(
            f"Forecasts, not searches: the Poisson rate at which p{PERCENTILE:g} is {slo_s * 1e3:g} ms by a simulation "
            f"of measured batch times, scaled by a closed loop through the batcher in the same process, on parts of an "
            f"{first['card']} (CUDA MPS, torch's allocator) and {first['cpu']}; torch {first['torch']}, float32, "
            f"inputs of the published size; recorded {dates[0]} to {dates[-1]}"
        ),
        source="python -m experiments.gpu_surfaces --out " + name,
        licence="Apache-2.0",
        knobs=tuple(knobs),
        better={"peak_rps": "higher", "capacity_rps": "higher"},
        missing="absent",
        cost=f"{prices.cpu_core} * cpu_cores + {price} * (gpu_memory * (gpu_memory >= gpu_share)"
        " + gpu_share * (gpu_share > gpu_memory))",
        objectives={"rps": {"maximize": "peak_rps"}, "rps_per_dollar": {"maximize": "peak_rps / cost"}},
        surfaces=made,
    )


def _cells(line: Found, lines: Sequence[Found], slo_s: float) -> Iterator[Measurement]:
    """What is known of every memory, number of cores and batch size of one share.

    Batches that are larger than the largest measured one are left out, unless that one takes more than half of the SLO:
    a request may wait for the batch before its own, so larger ones are not formed where the SLO is kept.
    """
    fits = {float(m): int(size) for of in lines for m, size in of.get("fits", {}).items()}
    for cores, found in line["by_cores"].items():
        times = service_times(found)
        known = BATCHES[-1] if times.seconds[-1] > slo_s / 2 else int(times.sizes[-1])
        sizes = [size for size in BATCHES if size <= known]
        # One closed loop is short, and what the way through the batcher costs does not depend on the share.
        ratio = np.median([_overhead(of["by_cores"][cores]) for of in lines if cores in of["by_cores"]])
        peaks = predicted_peaks(times, [(size, 0.0) for size in sizes], slo_s=slo_s, percentile=PERCENTILE)
        for memory, (size, peak) in itertools.product(fits, zip(sizes, ratio * peaks)):
            cell: Configuration = {"gpu_memory": memory, "gpu_share": line["share"], "cpu_cores": int(cores)}
            cell["max_batch_size"] = size
            if size > fits[memory]:
                yield Measurement(configuration=cell, infeasible_because=failures.of_requests("OutOfMemory", size))
            elif peak <= 0:
                yield Measurement(configuration=cell, infeasible_because="no rate meets the SLO")
            else:
                capacity = float(ratio * capacity_rps(times, (size, 0.0)))
                metrics = {"peak_rps": float(peak), "capacity_rps": capacity}
                yield Measurement(configuration=cell, metrics=metrics, estimated=True)


def _overhead(found: Found) -> float:
    """Rate of the closed loop over that of the batches alone."""
    times = service_times(found)
    return float(found["closed_loop_rps"] / capacity_rps(times, (int(times.sizes[-1]), 0.0)))


def service_times(found: Found) -> ServiceTimes:
    """From one sweep, as it was recorded."""
    ends = np.cumsum(found["seconds"])
    starts = ends - found["seconds"]
    return ServiceTimes.measured([Batch(*row, ENDLESS) for row in zip(found["sizes"], starts, ends)])


if __name__ == "__main__":
    sys.exit(main())
