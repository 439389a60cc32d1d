"""The paper's two search spaces, simulated for every model of the zoo."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from experiments.simulator.cards import CARDS
from experiments.simulator.physics import Physics, Pipeline, peak_inputs_per_s
from experiments.simulator.profile import FloatArray, Profile, profile
from experiments.zoo.catalogue import PAPER, Model
from experiments.zoo.counting import example
from morphling_ray.space import Configuration, Knob, SearchSpace, Value
from morphling_ray.surface import Surface, SurfaceSet

Values = Mapping[str, Sequence[Value]]

SLO_S = 1.0
"""The paper's latency SLO (section 6.1.1)."""
GPU_PRICES = {"T4": 0.4, "M60": 0.4, "V100": 2.6}
"""Dollars an hour for a whole card; with 0.02 for a core and 0.2 for the rest these are the paper's (Table 2)."""

EC2 = {
    "cpu_cores": (1, 2, 3, 4, 5),
    "gpu_memory": (0.05, 0.10, 0.15, 0.20, 0.30, 0.40),
    "batch_size": (1, 2, 4, 8, 16, 32, 64, 128),
    "gpu_type": tuple(GPU_PRICES),
}
"""720 configurations: the paper's space on EC2."""
PRODUCTION = {
    "cpu_cores": (1, 2, 3, 4, 5),
    "gpu_memory": (0.05, 0.10, 0.20, 0.30, 0.40),
    "gpu_share": (0.2, 0.4, 0.6, 0.8),
}
"""100 configurations of a T4: as many as the paper's production space has, which does not tell its values."""
PRODUCTION_BATCH = 4
HEAVY = (1.0, 3.0, 10.0)
"""How much more a request costs the cores than in the space on EC2, from service to service."""

PHYSICS = Physics(efficiency=1.0, fill_s=1.3e-4, launch_s=1e-5)
"""The first two are fitted to recordings of a V100 (`python -m experiments.simulator.validate --v100 DIR`). There
PyTorch took 6.4e-5 to start an operator, and 2.6e-5 beside an A100; TensorFlow Serving, without Python, takes less: a
guess, which decides little."""
DECODE_S_PER_VALUE, ENCODE_S, REQUEST_S = 1.2e-8, 5e-5, 3e-4
"""Of the usual size, and guessed. Beside an H100, `validate` finds 5.7e-9 for the first, in PyTorch."""
SERVICES = tuple(PAPER)[:30]
"""Models that stand for the 30 services of the paper's production cluster, which nobody has published."""
SHORT = 5
"""Tokens of "This is a test!", which the client that the authors published sends to models of language."""
TAKES_SHORT = ("elmo", "nnlm", "use", "word2vec")
"""Families that compute as many tokens as they are sent; the others' servers fill up to the published 128."""


def as_served(model: Model) -> Model:
    """With the size of what it is sent: the published one, or a short sentence."""
    return replace(model, size=SHORT) if model.family in TAKES_SHORT else model


def profile_of(model: Model) -> Profile:
    """One input, counted."""
    model = as_served(model)
    with torch.device("meta"), torch.no_grad():
        network = model.build().eval()
        return profile(network, example(model))


def pipeline_of(model: Model, times: float = 1.0) -> Pipeline:
    """Decoding grows with what is decoded; `times` is how heavy it is beside the usual."""
    values = math.prod(as_served(model).input_shape)
    return Pipeline(times * (values * DECODE_S_PER_VALUE + ENCODE_S), REQUEST_S, 4.0 * values)


def ec2_surface(name: str, model: Model, counted: Profile) -> Surface:
    """All 720 configurations of one model; the metric `peak_rps` counts inputs."""
    space = _space(EC2)
    kinds = np.array([str(c["gpu_type"]) for c in space.configurations])
    peak = np.zeros(len(space))
    for kind, card in CARDS.items():
        of = kinds == kind
        cores, memory, sizes = (_column(space, knob)[of] for knob in ("cpu_cores", "gpu_memory", "batch_size"))
        peak[of] = peak_inputs_per_s(counted, pipeline_of(model), card, PHYSICS, cores, memory, sizes, SLO_S)
    return _surface(name, model.family, space, peak)


def production_surface(name: str, model: Model, counted: Profile, heavy: float) -> Surface:
    """All 100 configurations of one service: a time share of the card is as much slower."""
    space = _space(PRODUCTION)
    cores, memory, shares = (_column(space, knob) for knob in PRODUCTION)
    peak = np.zeros(len(space))
    whole = CARDS["T4"]
    for share in PRODUCTION["gpu_share"]:
        of = shares == share
        card = replace(whole, macs_per_s=whole.macs_per_s * share, bytes_per_s=whole.bytes_per_s * share)
        sizes = np.full(of.sum(), float(PRODUCTION_BATCH))
        pipeline = pipeline_of(model, heavy)
        peak[of] = peak_inputs_per_s(counted, pipeline, card, PHYSICS, cores[of], memory[of], sizes, SLO_S)
    return _surface(name, model.family, space, peak)


def ec2(models: Mapping[str, Model]) -> SurfaceSet:
    """The paper's space on EC2 with its three objectives (section 6.1)."""
    surfaces = {name: ec2_surface(name, model, profile_of(model)) for name, model in models.items()}
    price = " + ".join(f"{dollars} * (gpu_type == '{kind}')" for kind, dollars in GPU_PRICES.items())
    cost = f"0.2 + gpu_memory * ({price})"
    return _set(
        "ec2-simulated",
        EC2,
        surfaces,
        f"{cost} + 0.02 * cpu_cores",
        {
            "objective1": {"maximize": "peak_rps / cost"},
            "objective2": {"maximize": f"peak_rps / ({cost})"},
            "objective3": {"maximize": "peak_rps"},
        },
    )


def production(models: Mapping[str, Model]) -> SurfaceSet:
    """The paper's production space (section 6.2): services whose pre- and post-processing is heavy, more or less."""
    surfaces = {}
    for k, (name, model) in enumerate(models.items()):
        heavy = HEAVY[k % len(HEAVY)]
        surfaces[name] = production_surface(name, model, profile_of(model), heavy)
    cost = "0.2 + 0.2 * gpu_memory + 0.2 * gpu_share + 0.02 * cpu_cores"
    return _set("production-simulated", PRODUCTION, surfaces, cost, {"objective1": {"maximize": "peak_rps / cost"}})


def _set(
    name: str,
    knobs: Values,
    surfaces: dict[str, Surface],
    cost: str,
    objectives: dict[str, dict[str, str]],
) -> SurfaceSet:
    return SurfaceSet(
        name=name,
        about="Simulated, not measured: computed from counted operators, data sheets, fitted and guessed overheads, "
        "and queues (experiments/simulator/physics.py).",
        source="python -m experiments.simulator",
        licence="Apache-2.0",
        knobs=tuple(_knobs(knobs)),
        better={"peak_rps": "higher"},
        missing="absent",
        cost=cost,
        objectives=objectives,
        surfaces=surfaces,
    )


def _knobs(values: Values) -> list[Knob]:
    return [Knob.infer(name, list(chosen)) for name, chosen in values.items()]


def _space(values: Values) -> SearchSpace:
    cells: list[Configuration] = [dict(zip(values, cell)) for cell in itertools.product(*values.values())]
    return SearchSpace(_knobs(values), configurations=cells)


def _column(space: SearchSpace, knob: str) -> FloatArray:
    return np.array([float(c[knob]) for c in space.configurations])


def _surface(name: str, family: str, space: SearchSpace, peak: FloatArray) -> Surface:
    works = peak > 0
    return Surface(name, family, space, {"peak_rps": np.where(works, peak, np.nan)}, works)
