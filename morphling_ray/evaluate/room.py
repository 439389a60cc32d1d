"""What trials take of nodes, so that none waits for what another one holds.

A trial claims what its replicas ask for and a core for its load drivers. Of cards it claims whole ones, since two
candidates never share one. What two trials on a node do to each other beyond that (caches, memory, the bus) no
bookkeeping shows: it is measured before they share it, see lanes.py.
"""

import json
from collections.abc import Iterable, Mapping, Sequence

from morphling_ray.serving.serve_config import fit, total

DRIVER_CORES = 1.0
Room = Mapping[str, float]
"""Ray resources of a node."""
Replicas = Sequence[Mapping[str, float]]
"""Ray resources of each replica of a configuration, see `serve_config.replica_resources`."""


def claim(replicas: Replicas, room: Room, *, alone: bool = False) -> dict[str, float] | None:
    """Cores and cards of a node that a trial takes; None where they are more than the node has.

    Args:
        replicas: Of its configuration.
        room: The node.
        alone: It takes all of them.
    """
    if not fit(replicas, [room]):
        return None
    there = {name: room.get(name, 0.0) for name in ("CPU", "GPU")}
    if alone:
        return there
    cores = total(replicas)["CPU"] + DRIVER_CORES
    return {"CPU": min(cores, there["CPU"]), "GPU": min(cards(replicas, there["GPU"]), there["GPU"])}


def cards(replicas: Replicas, there: float) -> float:
    """Whole cards that replicas take: Ray fills one card with what fits on one, and spreads what does not over all."""
    parts = sum(gpus for each in replicas if 0 < (gpus := each.get("GPU", 0.0)) < 1)
    whole = sum(gpus for each in replicas if (gpus := each.get("GPU", 0.0)) >= 1)
    if parts > 1:
        return there
    return whole + (parts > 0)


def remaining(room: Room, claims: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """What of a node's cores and cards is not claimed."""
    taken = list(claims)
    return {name: room.get(name, 0.0) - sum(c[name] for c in taken) for name in ("CPU", "GPU")}


def within(wanted: Mapping[str, float], free: Mapping[str, float]) -> bool:
    """Whether a claim is within what is free."""
    return all(amount <= free[name] for name, amount in wanted.items())


def seats(room: Room, *, kinds: Sequence[Replicas], per_node: int | None) -> int:
    """How many trials a node takes at once; 0 where it holds none of the configurations.

    Args:
        room: The node.
        kinds: What each of the configurations asks for.
        per_node: As many as the user allows; None: one, or one for each card (or as many as a trial takes) where all
            configurations use cards.
    """
    claims = [found for each in kinds if (found := claim(each, room)) is not None]
    if not claims:
        return 0
    least = {name: min(c[name] for c in claims) for name in ("CPU", "GPU")}
    possible = min((int(room.get(name, 0.0) // amount) for name, amount in least.items() if amount > 0), default=1)
    most_cards = max(c["GPU"] for c in claims)
    by_cards = int(room.get("GPU", 0.0) // most_cards) if least["GPU"] > 0 else 1
    return max(1, min(possible, by_cards if per_node is None else per_node))


def on_one_node(kinds: Sequence[Replicas], nodes: Sequence[Room]) -> bool:
    """Whether each of the configurations fits on one of the nodes."""
    return all(any(fit(each, [room]) for room in nodes) for each in kinds)


def different(replicas: Iterable[Replicas]) -> list[Replicas]:
    """Without repetition."""
    return list({json.dumps(each, sort_keys=True): each for each in map(list, replicas)}.values())
