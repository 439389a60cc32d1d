"""Recorded surfaces that the simulator is held against, each with the numbers that no data sheet gives."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from experiments.gpu_surfaces import service_times
from experiments.simulator.cards import A100, CARDS, H100, MIG_MEMORY, Processor
from experiments.simulator.physics import Physics, batch_seconds
from experiments.simulator.profile import FloatArray, Profile, profile
from experiments.zoo import models
from experiments.zoo.catalogue import MODELS
from experiments.zoo.counting import example
from morphling_ray.record import read_raw
from morphling_ray.surface import Surface, load_surfaces

Numbers = Mapping[str, float]


@dataclass(frozen=True)
class Task:
    """One recorded model.

    Attributes:
        name: Of the surface.
        family: It is held out with.
        counted: One input, as it was served.
        columns: Knob values of each configuration, shape `(n,)` each.
        found: Inputs a second, shape `(n,)`.
    """

    name: str
    family: str
    counted: Profile
    columns: Mapping[str, FloatArray]
    found: FloatArray


@dataclass(frozen=True)
class Recording:
    """Recorded models, and the law that is to foretell them.

    Attributes:
        about: In a few words.
        tasks: The models.
        start: The law's numbers, by name, where a fit begins.
        law: Inputs a second of each configuration of a task, given the numbers.
        limits: Of a number; else 30 times less to 30 times more than its start.
    """

    about: str
    tasks: list[Task]
    start: Numbers
    law: Callable[[Numbers, Task], FloatArray]
    limits: Mapping[str, tuple[float, float]]


def cpu(folder: Path) -> Recording:
    """The closed-loop capacity of the zoo on cores of a CPU, as `experiments.record_surfaces` recorded it."""
    start = {
        "macs_per_s": 3e10,  # of one core, float32
        "bytes_per_s": 1e10,
        "bfloat16": 1.5,  # times as fast
        "cores": 0.8,  # n cores are n to this power as fast
        "launch_s": 1e-5,
        "request_s": 1e-3,
    }
    tasks = [_cpu_task(surface) for surface in load_surfaces(folder).surfaces.values()]
    return Recording("the zoo on a CPU", tasks, start, _on_cpu, {"cores": (0.1, 1.1), "bfloat16": (0.5, 16.0)})


def v100(folder: Path) -> Recording:
    """Vision models on a V100 under MPS thread percentages (RaPP, folder `rapp-dev`): one batch after another."""
    start = {"efficiency": 0.6, "fill_s": 3e-5, "launch_s": 1e-4, "memory_share": 1.0}
    tasks = []
    for surface in load_surfaces(folder).surfaces.values():
        name = surface.task.replace("resnet", "resnet_").replace("densenet", "densenet_")
        if name in MODELS:
            keep = surface.feasible & (_column(surface, "quota_pct") == 100)
            columns = {"share": _column(surface, "sm_pct")[keep] / 100, "size": _column(surface, "batch_size")[keep]}
            tasks.append(_gpu_task(surface, name, columns, keep))
    limits = {"memory_share": (0.0, 1.0), "efficiency": (0.05, 1.0)}
    return Recording("vision models on shares of a V100", tasks, start, _on_v100, limits)


def a100(folder: Path) -> Recording:
    """Models on MIG instances of an A100 (ParvaGPU, folder `parvagpu`), one process each."""
    names = {"bert": "bert_base", "densenet121": "densenet_121", "inceptionv3": "inception_v3"}
    names |= {"mobilenetv2": "mobilenet_v2", "vgg16": "vgg_16", "vgg19": "vgg_19"}
    names |= {f"resnet{depth}": f"resnet_{depth}" for depth in (50, 101, 152)}
    tasks = []
    for task, surface in load_surfaces(folder).surfaces.items():
        if task in names:
            keep = surface.feasible & (_column(surface, "num_procs") == 1)
            columns = {"slices": _column(surface, "mig_gpcs")[keep], "size": _column(surface, "batch_size")[keep]}
            tasks.append(_gpu_task(surface, names[task], columns, keep))
    start = {"efficiency": 0.6, "fill_s": 3e-5, "launch_s": 3e-5}  # convolutions ran in TF32, above float32's peak
    return Recording("models on instances of an A100", tasks, start, _on_a100, {})


def h100(folder: Path) -> Recording:
    """The zoo on shares of an H100, inputs of the published size, one batch after another (gpu_surfaces.py)."""
    start = {
        "efficiency": 0.6,
        "tf32": 2.0,  # times as fast, for models that convolve
        "fill_s": 3e-5,
        "launch_s": 3e-5,
        "memory_share": 0.5,
        "value_s": 1e-8,  # of an image on a core, for each of its numbers
    }
    limits = {"memory_share": (0.0, 1.0), "efficiency": (0.05, 1.0), "tf32": (0.5, 16.0)}
    tasks = [_h100_task(path.stem, read_raw(path)) for path in sorted((folder / "raw").glob("*.jsonl"))]
    return Recording("the zoo on shares of an H100", tasks, start, _on_h100, limits)


def _h100_task(name: str, lines: list[dict[str, Any]]) -> Task:
    """Sizes that were measured, with all the cores that there were."""
    model, rows = MODELS[name], []
    for line in lines:
        times = service_times(line["by_cores"][max(line["by_cores"], key=int)])
        rows += [(line["share"], size, size / s) for size, s in zip(times.sizes, times.seconds)]
    share, size, found = (np.array(column, float) for column in zip(*rows))
    with torch.device("meta"), torch.no_grad():
        counted = profile(model.build().eval(), example(model))
    values = 0.0 if model.kind == "text" else float(np.prod(model.input_shape))
    columns = {"share": share, "size": size, "values": np.full_like(share, values)}
    return Task(name, model.family, counted, columns, found)


def _cpu_task(surface: Surface) -> Task:
    known = surface.task in models.MODELS
    served = models.MODELS[surface.task] if known else getattr(models, surface.task)
    one = served.decode(served.request())[None].to("meta")
    with torch.device("meta"), torch.no_grad():
        counted = profile(served.build().eval(), one)
    keep = surface.feasible
    columns = {"cores": _column(surface, "cpu_cores")[keep], "size": _column(surface, "max_batch_size")[keep]}
    half = np.array([c["precision"] == "bfloat16" for c in surface.space.configurations], float)[keep]
    return Task(surface.task, surface.family, counted, {**columns, "half": half}, surface.metrics["capacity_rps"][keep])


def _gpu_task(surface: Surface, name: str, columns: Mapping[str, FloatArray], keep: npt.NDArray[np.bool_]) -> Task:
    model = MODELS[name]
    if model.family == "efficientnet":  # fed images of 224, whatever the published size
        model = replace(model, size=224)
    with torch.device("meta"), torch.no_grad():
        counted = profile(model.build().eval(), example(model))
    return Task(surface.task, model.family, counted, columns, surface.metrics["rps"][keep])


def _on_cpu(numbers: Numbers, task: Task) -> FloatArray:
    """Full batches; starting an operator takes time of the core that computes it."""
    physics = Physics(1.0, 0.0, numbers["launch_s"])

    def seconds(cell: tuple[float, ...], sizes: FloatArray) -> FloatArray:
        cores, half = cell
        speed = cores ** numbers["cores"] * numbers["bfloat16"] ** half
        core = Processor(numbers["macs_per_s"] * speed, numbers["bytes_per_s"] * 2**half, asynchronous=False)
        return batch_seconds(task.counted, core, physics, sizes) + sizes * numbers["request_s"]

    return _rates(task, ("cores", "half"), seconds)


def _on_v100(numbers: Numbers, task: Task) -> FloatArray:
    """A share of the threads has as much of the arithmetic, and to the power `memory_share` of the memory."""

    def seconds(cell: tuple[float, ...], sizes: FloatArray) -> FloatArray:
        (share,) = cell
        return _on_part(numbers, task, CARDS["V100"], share, share ** numbers["memory_share"], sizes)

    return _rates(task, ("share",), seconds)


def _on_h100(numbers: Numbers, task: Task) -> FloatArray:
    """As on a V100; a core unpacks images, and convolutions run in TF32, as torch has them do unless told otherwise."""

    def seconds(cell: tuple[float, ...], sizes: FloatArray) -> FloatArray:
        share, values = cell
        faster = numbers["tf32"] if values and task.family != "vit" else 1.0
        memory = share ** numbers["memory_share"]
        return _on_part(numbers, task, H100, share * faster, memory, sizes) + sizes * values * numbers["value_s"]

    return _rates(task, ("share", "values"), seconds)


def _on_a100(numbers: Numbers, task: Task) -> FloatArray:
    """An instance has so many of the seven compute slices, and its own slices of the memory."""

    def seconds(cell: tuple[float, ...], sizes: FloatArray) -> FloatArray:
        slices = int(cell[0])
        return _on_part(numbers, task, A100, slices / 7, MIG_MEMORY[slices], sizes)

    return _rates(task, ("slices",), seconds)


def _on_part(
    numbers: Numbers, task: Task, card: Processor, arithmetic: float, memory: float, sizes: FloatArray
) -> FloatArray:
    """Seconds of batches on a part of a card."""
    part = replace(card, macs_per_s=card.macs_per_s * arithmetic, bytes_per_s=card.bytes_per_s * memory)
    physics = Physics(numbers["efficiency"], numbers["fill_s"], numbers["launch_s"])
    return batch_seconds(task.counted, part, physics, sizes)


def _rates(
    task: Task, by: tuple[str, ...], seconds: Callable[[tuple[float, ...], FloatArray], FloatArray]
) -> FloatArray:
    """Inputs a second, computed for all batch sizes of equal other knobs at once."""
    out = np.empty_like(task.found)
    rows = list(zip(*(task.columns[name] for name in by)))
    for cell in {*rows}:
        of = np.array([row == cell for row in rows])
        sizes = task.columns["size"][of]
        out[of] = sizes / seconds(cell, sizes)
    return out


def _column(surface: Surface, knob: str) -> FloatArray:
    return np.array([float(c[knob]) for c in surface.space.configurations])
