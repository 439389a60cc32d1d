"""How many requests a second a model server answers within its latency SLO, from what its parts can do.

A request brings b inputs, as the paper's client sends them. A core decodes them, the card computes them, a core encodes
the answers; several requests are under way at once where memory has room for them.

    work(b) = sum over operators of  max(b macs / (e P) + fill, (weights + b moved) / (e B))
    t_card(b) = max(work(b), operators x launch)          the host starts operators while the card still computes
    fill                                         however little it computes, an operator has to spread over the card
    room = (share of memory - parameters) / (b x working bytes)        below 1: the setting does not run at all

The roofline is Williams et al. 2009. Waiting follows from queues with Poisson arrivals and constant service, in front
of the cores (Allen and Cunneen's approximation of several servers, with Sakasegawa's exponent) and the card.
"""

from dataclasses import dataclass

import numpy as np

from experiments.simulator.cards import Processor
from experiments.simulator.profile import FloatArray, Profile

_HALVINGS = 40


@dataclass(frozen=True)
class Physics:
    """What no data sheet has.

    Attributes:
        efficiency: Of the peaks that large operators reach.
        fill_s: Of an operator that computes, however little that is.
        launch_s: Of starting an operator.
    """

    efficiency: float
    fill_s: float
    launch_s: float


@dataclass(frozen=True)
class Pipeline:
    """What a request costs beside the model.

    Attributes:
        input_s: Core seconds to decode one input and encode its answer.
        request_s: Core seconds of each request, whatever it holds.
        input_bytes: Of one decoded input.
    """

    input_s: float
    request_s: float
    input_bytes: float


def batch_seconds(profile: Profile, processor: Processor, physics: Physics, sizes: FloatArray) -> FloatArray:
    """Seconds of a batch of each of the sizes, shape `(k,)` -> `(k,)`."""
    b = sizes[:, None]
    macs = b * profile.macs
    compute = macs / (physics.efficiency * processor.macs_per_s) + np.where(macs > 0, physics.fill_s, 0.0)
    memory = (profile.weight_bytes + b * profile.moved_bytes) / (physics.efficiency * processor.bytes_per_s)
    work = np.maximum(compute, memory).sum(1)
    launch = len(profile.macs) * physics.launch_s
    return np.asarray(np.maximum(work, launch) if processor.asynchronous else work + launch)


def peak_inputs_per_s(
    profile: Profile,
    pipeline: Pipeline,
    processor: Processor,
    physics: Physics,
    cores: FloatArray,
    memory: FloatArray,
    sizes: FloatArray,
    slo_s: float,
) -> FloatArray:
    """Inputs a second at which requests take `slo_s` in the mean, as the paper's client judges them.

    Args:
        profile: Of the model.
        pipeline: Around it.
        processor: A card.
        physics: What it reaches.
        cores: Of the CPU, shape `(n,)`.
        memory: Shares of the card's memory, shape `(n,)`.
        sizes: Inputs of a request, shape `(n,)`.
        slo_s: Latency.

    Returns:
        Shape `(n,)`; 0 where memory is too small, or one request alone takes too long.
    """
    compute = batch_seconds(profile, processor, physics, sizes)
    copy = sizes * pipeline.input_bytes / processor.link_bytes_per_s
    room = (memory * processor.memory_bytes - profile.parameters_bytes) / (sizes * profile.working_bytes)
    card = np.where(room >= 2, np.maximum(compute, copy), compute + copy)  # the next one is copied meanwhile
    core = sizes * pipeline.input_s + pipeline.request_s
    alone = core + compute + copy
    low, high = np.zeros_like(card), 1 / np.maximum(card, core / cores)
    for _ in range(_HALVINGS):
        rate = (low + high) / 2
        mean = alone + _wait(rate, card, np.ones_like(cores)) + _wait(rate, core, cores)
        low, high = np.where(mean <= slo_s, rate, low), np.where(mean <= slo_s, high, rate)
    return np.where((room >= 1) & (alone <= slo_s), low * sizes, 0.0)


def _wait(rate: FloatArray, service_s: FloatArray, servers: FloatArray) -> FloatArray:
    """Mean seconds in the queue: half of what it is with exponential service (M/D/c beside M/M/c)."""
    busy = np.minimum(rate * service_s / servers, 1 - 1e-9)
    return np.asarray(service_s / 2 * busy ** (np.sqrt(2 * (servers + 1)) - 1) / (servers * (1 - busy)))
