"""NVML of cards that do not exist: the part of pynvml that is used, over a folder that `FAKE_GPU` names.

`cards.json` lists the cards. A process that holds memory has a file `UUID/PID` with its bytes and the percent of
multiprocessors it uses, until it ends; 0 for a client of MPS, whose utilisation is told as that of the server, as on an
H100 with driver 580. A card with `gpm` counts its multiprocessors' use: one percent of them for each second.
"""

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

MPS_SERVER = 4242  # which the fake control daemon names
NVML_GPM_METRICS_GET_VERSION, NVML_GPM_METRIC_SM_UTIL = 1, 2


class NVMLError(Exception):
    """As NVML's own."""


def _root() -> Path:
    return Path(os.environ["FAKE_GPU"])


def _cards() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((_root() / "cards.json").read_text())
    return found


def _processes(uuid: str) -> list[tuple[int, int, int]]:
    found = []
    for file in (_root() / uuid).glob("*"):
        if os.path.exists(f"/proc/{file.name}"):
            held, percent = file.read_text().split()
            found.append((int(file.name), int(held), int(percent)))
    return found


def nvmlInit() -> None:
    if "FAKE_GPU" not in os.environ:
        raise NVMLError("Driver Not Loaded")


def nvmlShutdown() -> None:
    pass


def nvmlDeviceGetCount() -> int:
    return len(_cards())


def nvmlDeviceGetHandleByIndex(index: int) -> dict[str, Any]:
    card = _cards()[index]
    return card


def nvmlDeviceGetHandleByUUID(uuid: str) -> dict[str, Any]:
    parts = [part for card in _cards() for part in (card, *card.get("instances", []))]
    for part in parts:
        if part["uuid"] == uuid:
            found: dict[str, Any] = part
            return found
    raise NVMLError("Not Found")


def nvmlDeviceGetUUID(handle: dict[str, Any]) -> str:
    return str(handle["uuid"])


def nvmlDeviceGetName(handle: dict[str, Any]) -> str:
    return str(handle["name"])


def nvmlDeviceGetMemoryInfo(handle: dict[str, Any]) -> SimpleNamespace:
    used = sum(held for _, held, _ in _processes(handle["uuid"]))
    return SimpleNamespace(total=handle["memory"], used=used, free=handle["memory"] - used)


def nvmlDeviceGetComputeRunningProcesses(handle: dict[str, Any]) -> list[SimpleNamespace]:
    return [SimpleNamespace(pid=pid, usedGpuMemory=held) for pid, held, _ in _processes(handle["uuid"])]


def nvmlDeviceGetProcessUtilization(handle: dict[str, Any], since_us: int) -> list[SimpleNamespace]:
    every = _processes(handle["uuid"])
    if not every:
        raise NVMLError("Not Found")
    told = {pid if percent else MPS_SERVER: percent or 90 for pid, _, percent in every}
    return [SimpleNamespace(pid=pid, smUtil=percent) for pid, percent in told.items()]


def nvmlGpmQueryDeviceSupport(handle: dict[str, Any]) -> SimpleNamespace:
    return SimpleNamespace(isSupportedDevice=int(handle.get("gpm", False)))


def nvmlGpmSampleAlloc() -> SimpleNamespace:
    return SimpleNamespace(at=None)


def nvmlGpmSampleGet(handle: dict[str, Any], sample: SimpleNamespace) -> SimpleNamespace:
    sample.at = time.monotonic()
    return sample


def nvmlGpmSampleFree(sample: SimpleNamespace) -> None:
    sample.at = None


def c_nvmlGpmMetricsGet_t() -> SimpleNamespace:
    return SimpleNamespace(metrics=[SimpleNamespace(value=0.0, nvmlReturn=0) for _ in range(3)])


def nvmlGpmMetricsGet(asked: SimpleNamespace) -> SimpleNamespace:
    assert asked.version == NVML_GPM_METRICS_GET_VERSION
    assert (asked.numMetrics, asked.metrics[0].metricId) == (1, NVML_GPM_METRIC_SM_UTIL)
    asked.metrics[0].value = asked.sample2.at - asked.sample1.at
    return asked


def nvmlDeviceGetMigMode(handle: dict[str, Any]) -> list[int]:
    if "instances" not in handle:
        raise NVMLError("Not Supported")
    return [1, 1]


def nvmlDeviceGetMaxMigDeviceCount(handle: dict[str, Any]) -> int:
    return 7


def nvmlDeviceGetMigDeviceHandleByIndex(handle: dict[str, Any], index: int) -> dict[str, Any]:
    if index >= len(handle["instances"]):
        raise NVMLError("Not Found")
    found: dict[str, Any] = handle["instances"][index]
    return found
