"""Records surfaces on an NVIDIA card, with or without Ray: `python -m experiments.gpu_surfaces --out DIR`.

For each model of the zoo and each part of the card (memory, share of the multiprocessors) and number of cores, one
process is started under those very limits (gpu_limits.py, limits.py). It measures how long batches of all sizes take,
computes the peak of every batch setting from that (twin.py), and scales them by what a closed loop through the batcher
shows. So a peak here is a forecast from measured times, not the result of a search; the surfaces say so.

The parts that tell most come first: the corners of the space, then what is farthest from all that is known. Whatever is
measured is kept at once, and the same command goes on where it stopped. With Ray on the machine,
`python -m morphling_ray.record` searches for each peak instead, over the same knobs.
"""

import argparse
import asyncio
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from experiments.zoo.models import FAMILIES, MODELS
from morphling_ray.measurement import Measurement
from morphling_ray.record import measure_missing, read_raw, write_surfaces
from morphling_ray.serving import failures, gpu_limits, nvml
from morphling_ray.serving.batcher import Batch, Batcher
from morphling_ray.serving.limits import THREAD_VARIABLES, take_cores
from morphling_ray.serving.twin import ServiceTimes, capacity_rps, ladder, predicted_peaks
from morphling_ray.space import Configuration

MEMORY, SHARE, BATCHES = (0.05, 0.1, 0.2, 0.5, 1.0), (0.1, 0.25, 0.5, 1.0), (1, 2, 4, 8, 16, 32, 64, 128)
PARTS = ("gpu_memory", "gpu_share", "cpu_cores")
SLO_S, PERCENTILE = 0.1, 99.0
SWEEP_S, LOOP_S = 2.5, 1.0  # batches of all sizes, and the closed loop
TOO_LONG_S = 120.0


def main(argv: Sequence[str] | None = None) -> int:
    """Records; returns 0, or 1 where there is no card."""
    parser = argparse.ArgumentParser(prog="python -m experiments.gpu_surfaces", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--seconds", type=float, default=540.0, help="start nothing after that")
    parser.add_argument("--card", default="0", help="index or UUID")
    parser.add_argument("--mps", choices=("auto", "off"), default="auto", help="off: only whole shares")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.worker:
        print(json.dumps(_work(**json.loads(arguments.worker))))
        return 0
    if not (found := nvml.visible(arguments.card)):
        print("there is no NVIDIA card on this machine", file=sys.stderr)
        return 1
    shares = SHARE if arguments.mps == "auto" else (1.0,)
    cores = [n for n in (1, 2, 4, 8) if n <= len(os.sched_getaffinity(0))]
    parts = in_order([list(MEMORY), list(shares), [float(n) for n in cores]])
    (arguments.out / "raw").mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + arguments.seconds
    for part, name in itertools.product(parts, arguments.models):
        chosen = dict(zip(PARTS, (part[0], part[1], int(part[2]))))
        raw = arguments.out / "raw" / f"{name}.jsonl"
        known = {json.dumps(line["configuration"]) for line in read_raw(raw)} if raw.exists() else set()
        cells: list[Configuration] = [{**chosen, "max_batch_size": size} for size in BATCHES]
        if all(json.dumps(cell) in known for cell in cells):
            continue
        if time.monotonic() > deadline:
            print("the time is over; the same command goes on from here")
            break
        measured = {str(m.configuration): m for m in deployment(name, chosen, arguments.card, arguments.mps)}
        meta = {"family": FAMILIES[name], "slo_p99_ms": SLO_S * 1e3, "descriptors": {}, "card": str(found[0])}
        measure_missing(raw, [(c, 0) for c in cells], partial(_looked_up, measured), partial(_tell, name), meta)
    if any((arguments.out / "raw").iterdir()):
        about = (
            f"Forecasts, not searches: the Poisson rate at which p{PERCENTILE:g} is {SLO_S * 1e3:g} ms by a simulation "
            "of measured batch times, scaled by a closed loop through the batcher in the same process, under the very "
            f"limits of each configuration, on {found[0].name if isinstance(found[0], nvml.Card) else found[0].profile}"
        )
        source = "python -m experiments.gpu_surfaces " + " ".join(sys.argv[1:] if argv is None else argv)
        write_surfaces(arguments.out, about=about, source=source)
    return 0


def _looked_up(measured: dict[str, Measurement], configuration: Configuration) -> Measurement:
    return measured[str(configuration)]


def in_order(levels: Sequence[Sequence[float]]) -> list[tuple[float, ...]]:
    """All combinations, the largest first, then always the one that is farthest from those before it."""
    points = list(itertools.product(*levels))
    place = np.array(list(itertools.product(*[np.linspace(0.0, 1.0, len(values)) for values in levels])))
    chosen = [len(points) - 1]
    while len(chosen) < len(points):
        away = np.linalg.norm(place[:, None] - place[None, chosen], axis=2).min(1)
        away[chosen] = -1.0
        chosen.append(int(away.argmax()))
    return [points[i] for i in chosen]


def deployment(model: str, parts: dict[str, Any], card: str, mps: str) -> list[Measurement]:
    """One process under the limits; what it tells of each batch setting."""
    limits = gpu_limits.gpu_environment(memory=parts["gpu_memory"], share=parts["gpu_share"], mps_mode=mps)
    threads = dict.fromkeys(THREAD_VARIABLES, str(parts["cpu_cores"]))
    command = [sys.executable, "-m", "experiments.gpu_surfaces", "--out", "-", "--worker"]
    settings = json.dumps({"model": model, "cores": parts["cpu_cores"]})
    variables = {**os.environ, **threads, **limits, "CUDA_VISIBLE_DEVICES": card}
    try:
        ended = subprocess.run(
            [*command, settings], env=variables, capture_output=True, text=True, timeout=TOO_LONG_S, check=False
        )
        said: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1]) if ended.returncode == 0 else {}
        log = ended.stderr
    except subprocess.TimeoutExpired:
        said, log = {}, f"Timeout: not done after {TOO_LONG_S:g} s"
    out = []
    for size in BATCHES:
        cell: Configuration = {**parts, "max_batch_size": size}
        if metrics := said.get("metrics", {}).get(str(size)):
            out.append(Measurement(configuration=cell, metrics=metrics, estimated=True, details=said["details"]))
        else:
            why = said.get("failed") or failures.on_load(log)
            out.append(Measurement(configuration=cell, infeasible_because=why, details=said.get("details", {})))
    return out


def _work(model: str, cores: int) -> dict[str, Any]:
    """In the process under the limits: batches of all sizes, a closed loop, and what was used of the card."""
    began_us = time.time_ns() // 1000
    take_cores(cores)
    gpu_limits.bind()
    from morphling_ray.serving.torch_model import TorchModel, device

    server = TorchModel(f"experiments.zoo.models:{model}_model")
    payload, failed = MODELS[model].request(), ""
    log: list[Batch] = []
    for size in (1, 1, 1):
        server.forward([payload] * size)  # kernels are chosen
    end, largest = time.perf_counter() + SWEEP_S, max(BATCHES)
    while not log or (time.perf_counter() < end and largest):
        for size in ladder(largest):
            taken = time.perf_counter()
            try:
                server.forward([payload] * size)
            except RuntimeError as error:
                if not failures.ran_out(f"{type(error).__name__} {error}"):
                    raise
                failed = failures.of_requests(f"{type(error).__name__}: {' '.join(str(error).split())}"[:200], size)
                largest = max((b for b in BATCHES if b < size), default=0)
                log = [batch for batch in log if batch.size <= largest]
                break
            log.append(Batch(size, taken, time.perf_counter(), 10_000))
    if not largest:
        return {"failed": failed, "details": {"gpu": gpu_limits.report(began_us)}}
    times = ServiceTimes.measured(log)
    settings = [(size, 0.0) for size in BATCHES if size <= largest]
    looped = asyncio.run(_closed_loop(server, payload, largest))
    ratio = looped / capacity_rps(times, (largest, 0.0))
    peaks = ratio * predicted_peaks(times, settings, slo_s=SLO_S, percentile=PERCENTILE)
    metrics = {
        str(size): {"peak_rps": float(peak), "capacity_rps": ratio * capacity_rps(times, (size, 0.0))}
        for (size, _), peak in zip(settings, peaks)
        if peak > 0
    }
    details = {
        "device": device(),
        "gpu": gpu_limits.report(began_us),
        "closed_loop_rps": looped,
        "batch_seconds": dict(zip(map(int, times.sizes), map(float, times.seconds))),
    }
    return {"metrics": metrics, "failed": failed or "no rate meets the SLO", "details": details}


async def _closed_loop(server: Any, payload: Any, largest: int) -> float:
    """Requests a second through the batcher, with two of the largest batches in flight."""
    batcher = Batcher(server.forward, max_batch_size=largest)
    end, answered = time.perf_counter() + LOOP_S, 0

    async def ask() -> None:
        nonlocal answered
        while time.perf_counter() < end:
            await batcher(payload)
            answered += 1

    began = time.perf_counter()
    await asyncio.gather(*(ask() for _ in range(2 * largest)))
    return answered / (time.perf_counter() - began)


def _tell(name: str, done: int, measurement: Measurement, seconds: float) -> None:
    peak = measurement.metrics.get("peak_rps")
    knobs = " ".join(f"{k}={v}" for k, v in measurement.configuration.items())
    print(f"{name} {knobs}  {f'{peak:.4g} RPS' if peak else measurement.infeasible_because}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
