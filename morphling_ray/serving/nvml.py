"""What NVML says of this machine's NVIDIA cards: which there are, and what processes use of them."""

from collections.abc import Collection, Iterator
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
        busy: Part of the time in which its kernels ran, on however few multiprocessors, of the samples that NVML keeps
            (a few seconds); None where there are none.
    """

    memory_bytes: int | None
    busy: float | None


_counters: dict[str, Any] = {}  # of cards, when this process last asked


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


def use(uuid: str, pid: int, since_us: int = 0, servers: Collection[int] = ()) -> Use:
    """What a process uses of a card.

    Args:
        uuid: The card.
        pid: The process.
        since_us: Microseconds since 1970; older samples of the utilisation are left out.
        servers: Of MPS, where the process is a client: NVML tells the utilisation of all clients as their server's
            (seen on an H100, driver 580).
    """
    memory_bytes = holders(uuid).get(pid) or None
    with _nvml() as nvml:
        if nvml is None:
            return Use(memory_bytes, None)
        try:
            samples = nvml.nvmlDeviceGetProcessUtilization(nvml.nvmlDeviceGetHandleByUUID(uuid), since_us)
        except nvml.NVMLError:  # nothing was sampled, or a MIG device, which has no such counter
            samples = []
        mine = [float(s.smUtil) for s in samples if s.pid in (pid, *servers) and s.smUtil <= PERCENT]
    return Use(memory_bytes, sum(mine) / len(mine) / PERCENT if mine else None)


def multiprocessors_used(uuid: str) -> float | None:
    """Share of a card's multiprocessors that computed, whoever used them, in the mean since this process last asked.

    Returns:
        None the first time, and where there are no such counters: they came with Hopper, and MIG devices have others.
    """
    with _nvml() as nvml:
        if nvml is None:
            return None
        try:
            card = nvml.nvmlDeviceGetHandleByUUID(uuid)
            if not nvml.nvmlGpmQueryDeviceSupport(card).isSupportedDevice:
                return None
            now = nvml.nvmlGpmSampleGet(card, nvml.nvmlGpmSampleAlloc())
            before, _counters[uuid] = _counters.get(uuid), now
            if before is None:
                nvml.nvmlInit()  # once more than it is shut down: the counters are kept
                return None
            asked = nvml.c_nvmlGpmMetricsGet_t()
            asked.version, asked.numMetrics = nvml.NVML_GPM_METRICS_GET_VERSION, 1
            asked.sample1, asked.sample2 = before, now
            asked.metrics[0].metricId = nvml.NVML_GPM_METRIC_SM_UTIL
            nvml.nvmlGpmMetricsGet(asked)
            nvml.nvmlGpmSampleFree(before)
        except (AttributeError, nvml.NVMLError):  # an older driver, or an older pynvml
            return None
        (metric, *_) = asked.metrics
        return float(metric.value) / PERCENT if metric.nvmlReturn == 0 else None


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
