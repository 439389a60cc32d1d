"""Shares of a GPU that bind.

Ray's `num_gpus` is bookkeeping: a replica with `num_gpus=0.2` may take the whole card. Here a replica gets what its
knobs promise, switched on by environment variables in its `runtime_env`, whatever the application does:

    gpu_memory    torch's allocator raises its out-of-memory error above that share of the card; where MPS is on, the
                  driver refuses more to any framework (CUDA_MPS_PINNED_DEVICE_MEM_LIMIT)
    gpu_share     CUDA MPS lets the process use that share of the multiprocessors (mps.py)
    gpu_instance  the process sees a free MIG device of that profile, and nothing else

All of it has to be there before the process first touches the card, and after Ray has said which card that is. So it
happens where Ray sets `CUDA_VISIBLE_DEVICES`, just before the actor is made.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import os
import socket
import sys
import time
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from morphling_ray.serving import mps, nvml

MEMORY_VARIABLE = "MORPHLING_GPU_MEMORY"
SHARE_VARIABLE = "MORPHLING_GPU_SHARE"
INSTANCE_VARIABLE = "MORPHLING_GPU_INSTANCE"
MPS_VARIABLE = "MORPHLING_MPS"
VARIABLES = (MEMORY_VARIABLE, SHARE_VARIABLE, INSTANCE_VARIABLE)
# A CUDA context with its kernels, which a framework's allocator does not see; on an H100 about 500 MiB.
CONTEXT_BYTES = 512 * 2**20
WAIT_FOR_MEMORY_S = 10.0
ALL = 0.95  # share of a card that is taken for the whole: the driver keeps some memory to itself

_in_force: dict[str, Any] = {}  # what was put in force in this process, or `problem`: why it could not be
_held: list[socket.socket] = []


def gpu_environment(
    *, memory: float | None = None, share: float | None = None, instance: str | None = None, mps_mode: str = "auto"
) -> dict[str, str]:
    """Environment variables that limit a Ray worker process to parts of a GPU; see the module."""
    given = {MEMORY_VARIABLE: memory, SHARE_VARIABLE: share, INSTANCE_VARIABLE: instance}
    limits = {name: str(value) for name, value in given.items() if value is not None}
    return {**limits, MPS_VARIABLE: mps_mode} if limits else {}


def arm() -> None:
    """Has `bind` follow as soon as Ray has said which cards are this process's own."""
    from ray._private import utils

    ray_sets = utils.set_visible_accelerator_ids

    def set_visible_accelerator_ids() -> Any:
        before = ray_sets()
        utils.set_visible_accelerator_ids = ray_sets
        try:
            bind()
        except Exception as error:  # noqa: BLE001  Ray would end the process without a word
            _in_force["problem"] = " ".join(str(error).split()) or type(error).__name__
            sys.stderr.write(f"morphling_ray: the GPU limits are not in force: {_in_force['problem']}\n")
        return before

    utils.set_visible_accelerator_ids = set_visible_accelerator_ids


def bind() -> None:
    """Puts what the environment asks for in force on the card that this process sees.

    Raises:
        RuntimeError: It cannot be done; one line says why.
    """
    memory, share = (_number(name) for name in (MEMORY_VARIABLE, SHARE_VARIABLE))
    instance, mode = os.environ.get(INSTANCE_VARIABLE), os.environ.get(MPS_VARIABLE, "auto")
    parts = nvml.visible(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    if len(parts) != 1:
        raise RuntimeError(f"a part of a GPU is a part of one: this process has {len(parts)} of them")
    (part,) = parts
    if instance is not None:
        part = _take_instance(instance)
        os.environ["CUDA_VISIBLE_DEVICES"] = part.uuid
    _in_force.update(memory=memory, share=share, mps=False)
    if memory is not None:
        _wait_for_memory(part, memory)
        _limit_torch(torch_share(memory, part))
    partly = share is not None and share < 1.0
    if mode == "on" or (mode == "auto" and (partly or ((memory or 1.0) < 1.0 and mps.available()))):
        os.environ |= mps.start(part.uuid)
        if partly:
            os.environ["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] = f"{100 * (share or 1.0):g}"
        if memory is not None and memory < 1.0:
            os.environ["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"] = f"0={int(memory * part.memory_bytes) >> 20}M"
        _in_force["mps"] = True
    elif partly:
        raise RuntimeError("a share of a GPU takes CUDA MPS, which is switched off")


def torch_share(memory: float, part: nvml.Card | nvml.Instance) -> float:
    """Share of a part's memory for torch's allocator where that much is the process's: the context is not torch's."""
    return max(memory - CONTEXT_BYTES / part.memory_bytes, 0.01) if memory < 1.0 else 1.0


def report(since_us: int = 0) -> dict[str, Any]:
    """What this process was promised of a GPU, and what it uses; empty where it has none.

    Args:
        since_us: See `nvml.use`.

    Returns:
        `card`, `memory_asked` and `memory_used` (shares of it), `share_asked` and `sm_used` (shares of its
        multiprocessors; the latter of the whole card since the last report), `busy` (part of the time in which kernels
        ran: of this process, or of all clients of MPS), `mps` (whether this process is a client of our daemon) and
        `problem` (why the limits are not in force), as far as they are known.
    """
    parts = nvml.visible(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    wanted = any(name in os.environ for name in VARIABLES)
    problem = _in_force.get("problem") or ("" if _in_force or not wanted else "Ray did not say which GPU it is")
    if not parts:
        return {"problem": problem} if problem else {}
    part, pid = parts[0], os.getpid()
    used = nvml.use(part.uuid, pid, since_us, mps.servers(part.uuid) if _in_force.get("mps") else ())
    sm_used = nvml.multiprocessors_used(part.uuid)
    memory_bytes = used.memory_bytes or _reserved_by_torch()
    attached = pid in mps.clients(part.uuid) if _in_force.get("mps") else None
    if attached is False and (_in_force.get("share") or 1.0) < 1.0:
        problem = problem or "the process is not attached to CUDA MPS: it has not used the GPU, or not by way of it"
    found = {
        "card": part.name if isinstance(part, nvml.Card) else part.profile,
        "memory_asked": _in_force.get("memory"),
        "memory_used": round(memory_bytes / part.memory_bytes, 3) if memory_bytes else None,
        "share_asked": _in_force.get("share"),
        "sm_used": None if sm_used is None else round(sm_used, 3),
        "busy": None if used.busy is None else round(used.busy, 3),
        "mps": attached,
        "problem": problem,
    }
    return {name: value for name, value in found.items() if value not in (None, "")}


def _reserved_by_torch() -> int:
    torch = sys.modules.get("torch")
    return int(torch.cuda.max_memory_reserved()) if torch is not None and torch.cuda.is_initialized() else 0


def _number(variable: str) -> float | None:
    text = os.environ.get(variable)
    return None if text is None else float(text)


def _take_instance(profile: str) -> nvml.Instance:
    """A MIG device of a profile that no other process of ours has; the kernel gives it back when this process ends.

    Raises:
        RuntimeError: There is none.
    """
    instances = [i for card in nvml.cards() for i in card.instances]
    for instance in instances:
        holder = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        if instance.profile == profile:
            try:
                holder.bind(f"\0morphling_ray/gpu/{instance.uuid}")
                _held.append(holder)
                return instance
            except OSError:
                pass
        holder.close()
    there = ", ".join(sorted({i.profile for i in instances})) or "none"
    raise RuntimeError(f"no MIG device {profile} is free on this machine, which has {there}")


def _wait_for_memory(part: nvml.Card | nvml.Instance, share: float) -> None:
    """Waits until the memory that is promised is free: a replica that is just ending holds some of it.

    Raises:
        RuntimeError: Somebody else keeps it.
    """
    promised, deadline = min(share, ALL) * part.memory_bytes, time.monotonic() + WAIT_FOR_MEMORY_S
    while (free := nvml.free_bytes(part.uuid)) < promised:
        if time.monotonic() > deadline:
            others = ", ".join(map(str, nvml.holders(part.uuid))) or "unknown"
            raise RuntimeError(
                f"out of memory: {share:g} of the GPU is promised, but only {free / part.memory_bytes:.2f} of it is "
                f"free; processes that hold it: {others}"
            )
        time.sleep(0.1)


def _limit_torch(share: float) -> None:
    """Limits torch's allocator as soon as torch turns to the GPU; a process without torch never notices."""
    if (torch := sys.modules.get("torch")) is not None:
        _when_torch_starts(torch, share)
    else:
        sys.meta_path.insert(0, _AfterTorch(share))


def _when_torch_starts(torch: ModuleType, share: float) -> None:
    # `_lazy_call` runs a function when CUDA is first used, or now if it is. The documented way would make a context in
    # a process that may never want one.
    torch.cuda._lazy_call(lambda: torch.cuda.set_per_process_memory_fraction(share))


class _AfterTorch(importlib.abc.MetaPathFinder):
    """Finds torch as everybody else would, and has it limited once it is imported."""

    def __init__(self, share: float) -> None:
        self._share = share

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """See `importlib.abc.MetaPathFinder`."""
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return None
        execute, share = spec.loader.exec_module, self._share

        def exec_module(module: ModuleType) -> None:
            execute(module)
            _when_torch_starts(module, share)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
