"""A replica's batcher, read and steered from outside, while the replica serves; and what it uses of a GPU.

    lane ─► ReplicaBatcher ─► Serve's replica actor (`__ray_call__`) ─► the process's one batcher, in its event loop

The application needs no code for this: a `Batcher` registers itself where it is made, and the queue of a function with
`@serve.batch` is found in the process.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import ray
from ray.serve._private.constants import SERVE_NAMESPACE

from morphling_ray.serving import batcher, gpu_limits, serve_batch
from morphling_ray.serving.batcher import Batch
from morphling_ray.serving.twin import Rule

TIMEOUT_S = 5.0
GPU_TIMEOUT_S = 30.0  # MPS takes its time


class BatcherState(NamedTuple):
    """What a batcher is set to, how it forms batches as far as that showed, and how many it has computed."""

    max_batch_size: int
    batch_wait_timeout_s: float
    computed: int
    rule: Rule


class ReplicaBatcher:
    """The batcher of one replica.

    Args:
        actor_name: Name of the replica's actor, as Serve's own details give it.

    Raises:
        ValueError: There is no such actor.
    """

    def __init__(self, actor_name: str) -> None:
        self._actor = ray.get_actor(actor_name, namespace=SERVE_NAMESPACE)

    @classmethod
    def find(cls, actor_name: str) -> "ReplicaBatcher | None":
        """The replica's batcher; None where it has none that is known, or more than one, or cannot be asked."""
        try:
            found = cls(actor_name)
            return found if found.state() is not None else None
        except Exception:  # noqa: BLE001  a dead replica, or one that lacks this package: there is no batcher to steer
            return None

    def state(self) -> BatcherState | None:
        """What it is set to."""
        state: BatcherState | None = self._call(_state)
        return state

    def sweep(self, sizes: Sequence[int]) -> None:
        """See `Batcher.sweep`."""
        self._call(_sweep, list(sizes))

    def drop(self) -> None:
        """See `Batcher.drop`."""
        self._call(_drop)

    def since(self, computed: int) -> list[Batch]:
        """See `Batcher.since`."""
        return [Batch(*b) for b in self._call(_since, computed)]

    def _call(self, function: Callable[..., Any], *args: Any) -> Any:
        return ray.get(self._actor.__ray_call__.remote(function, *args), timeout=TIMEOUT_S)


def gpu_use(actor_name: str, since_us: int) -> dict[str, Any]:
    """What a replica was promised of a GPU, and uses; see `gpu_limits.report`. Empty where it cannot be asked."""
    try:
        actor = ray.get_actor(actor_name, namespace=SERVE_NAMESPACE)
        found: dict[str, Any] = ray.get(actor.__ray_call__.remote(_gpu_use, since_us), timeout=GPU_TIMEOUT_S)
    except Exception:  # noqa: BLE001  a dead replica, or one that lacks this package
        return {}
    return found


# What runs in the replica. The first argument is Serve's actor, which is not needed: a process has one replica.


def _only() -> "batcher.Batcher | serve_batch.WatchedQueue | None":
    return batcher.only() or serve_batch.only()


def _state(_: Any) -> BatcherState | None:
    only = _only()
    if only is None:
        return None
    return BatcherState(only.max_batch_size, only.batch_wait_timeout_s, only.computed, only.rule)


def _sweep(_: Any, sizes: Sequence[int]) -> None:
    if (only := _only()) is not None:
        only.soon(lambda: only.sweep(sizes))


def _drop(_: Any) -> None:
    if (only := _only()) is not None:
        only.soon(only.drop)


def _since(_: Any, computed: int) -> list[Batch]:
    only = _only()
    return [] if only is None else only.since(computed)


def _gpu_use(_: Any, since_us: int) -> dict[str, Any]:
    return gpu_limits.report(since_us)
