"""What NVML says of this machine's NVIDIA cards: which there are, and what processes use of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

PERCENT = 100.0


@dataclass(frozen=True)
class Instance:
    """A MIG device: a part of a card that behaves like a card of its own. `profile` is NVIDIA's, as in `1g.10gb`."""

    uuid: str
    profile: str
    memory_bytes: int


@dataclass(frozen=True)
class Card:
    """A card, by NVML's index, which is the order on the PCI bus."""

    index: int
    uuid: str
    name: str
    memory_bytes: int
    instances: tuple[Instance, ...] = ()


@dataclass(frozen=True)
class Use:
    """What one process uses of a card.

    Attributes:
        memory_bytes: Held now; None where NVML does not tell (in a container whose process numbers are its own).
        sm_percent: Mean utilisation of the card's multiprocessors, in percent, of the samples that NVML keeps (a few
            seconds) since a given time; None where there are none, as of clients of MPS (seen on an H100).
    """

    memory_bytes: int | None
    sm_percent: float | None


def cards() -> list[Card]:
    """All cards; none where there is no driver, or no pynvml."""
    with _nvml() as nvml:
        if nvml is None:
            return []
        return [_card(nvml, index) for index in range(nvml.nvmlDeviceGetCount())]


def visible(devices: str) -> list[Card | Instance]:
    """What `CUDA_VISIBLE_DEVICES` names, by index or (the beginning of a) UUID; unknown names are left out."""
    found: list[Card | Instance] = []
    everything = cards()
    for name in filter(None, (part.strip() for part in devices.split(","))):
        if name.isdigit():
            found += [card for card in everything if card.index == int(name)]
        else:
            parts: list[Card | Instance] = [*everything, *(i for card in everything for i in card.instances)]
            found += [part for part in parts if part.uuid.startswith(name)][:1]
    return found


def free_bytes(uuid: str) -> int:
    """Memory of a card or a MIG device that nobody holds."""
    with _nvml() as nvml:
        return 0 if nvml is None else int(nvml.nvmlDeviceGetMemoryInfo(nvml.nvmlDeviceGetHandleByUUID(uuid)).free)


def holders(uuid: str) -> dict[int, int]:
    """Processes that compute on a card, and the bytes that each holds (0: not told)."""
    with _nvml() as nvml:
        if nvml is None:
            return {}
        handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
        return {int(p.pid): int(p.usedGpuMemory or 0) for p in nvml.nvmlDeviceGetComputeRunningProcesses(handle)}


def use(uuid: str, pid: int, since_us: int = 0) -> Use:
    """What a process uses of a card.

    Args:
        uuid: The card.
        pid: The process.
        since_us: Microseconds since 1970; older samples of the utilisation are left out.
    """
    memory_bytes = holders(uuid).get(pid) or None
    with _nvml() as nvml:
        if nvml is None:
            return Use(memory_bytes, None)
        try:
            samples = nvml.nvmlDeviceGetProcessUtilization(nvml.nvmlDeviceGetHandleByUUID(uuid), since_us)
        except nvml.NVMLError:  # nothing was sampled, or a MIG device, which has no such counter
            samples = []
        mine = [float(s.smUtil) for s in samples if s.pid == pid and s.smUtil <= PERCENT]
    return Use(memory_bytes, sum(mine) / len(mine) if mine else None)


def _card(nvml: Any, index: int) -> Card:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    return Card(
        index=index,
        uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
        name=_text(nvml.nvmlDeviceGetName(handle)),
        memory_bytes=int(nvml.nvmlDeviceGetMemoryInfo(handle).total),
        instances=tuple(_instances(nvml, handle)),
    )


def _instances(nvml: Any, card: Any) -> Iterator[Instance]:
    try:
        count = nvml.nvmlDeviceGetMaxMigDeviceCount(card) if nvml.nvmlDeviceGetMigMode(card)[0] else 0
    except nvml.NVMLError:  # a card that knows no MIG
        return
    for index in range(count):
        try:
            handle = nvml.nvmlDeviceGetMigDeviceHandleByIndex(card, index)
        except nvml.NVMLError:  # the place is not taken
            continue
        name = _text(nvml.nvmlDeviceGetName(handle))
        memory_bytes = int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
        yield Instance(_text(nvml.nvmlDeviceGetUUID(handle)), name.rpartition("MIG ")[2], memory_bytes)


def _text(value: "str | bytes") -> str:
    return value.decode() if isinstance(value, bytes) else value


@contextmanager
def _nvml() -> "Iterator[Any | None]":
    """pynvml, ready; None where it or the driver is missing."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # noqa: BLE001  no module, no library, no driver, no permission: there is no card to speak of
        yield None
        return
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()
