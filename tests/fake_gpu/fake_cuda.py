"""A driver for cards that do not exist: memory that runs out, and work that is as slow as the share of the card.

It keeps to what the real one keeps to: `CUDA_VISIBLE_DEVICES`, and with CUDA MPS the limits of its clients.
"""

import os
import time
from pathlib import Path

import pynvml


class OutOfMemoryError(RuntimeError):
    """As torch's own."""


def _card() -> str:
    name = os.environ["CUDA_VISIBLE_DEVICES"]
    return name if not name.isdigit() else str(pynvml._cards()[int(name)]["uuid"])


def _client() -> bool:
    """Attaches to MPS, if there is a daemon for this process."""
    pipe = os.environ.get("CUDA_MPS_PIPE_DIRECTORY")
    if pipe is None or not (Path(pipe) / "nvidia-cuda-mps-control.pid").exists():
        return False
    (Path(pipe) / "clients").mkdir(exist_ok=True)
    (Path(pipe) / "clients" / str(os.getpid())).touch()
    return True


def allocate(size: int) -> None:
    """Holds so many bytes of the card, for as long as the process lives."""
    card = pynvml.nvmlDeviceGetHandleByUUID(_card())
    limit = os.environ.get("CUDA_MPS_PINNED_DEVICE_MEM_LIMIT", "")
    allowed = int(limit.removeprefix("0=").removesuffix("M")) << 20 if limit and _client() else card["memory"]
    free = pynvml.nvmlDeviceGetMemoryInfo(card).free
    if size > min(allowed, free):
        raise OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size >> 20} MiB")
    folder = Path(os.environ["FAKE_GPU"]) / card["uuid"]
    folder.mkdir(exist_ok=True)
    (folder / str(os.getpid())).write_text(f"{size} {0 if _client() else 100}")


def share() -> float:
    """Percent of the multiprocessors."""
    limit = os.environ.get("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE")
    return float(limit) if limit and _client() else 100.0


def compute(seconds: float) -> None:
    """Work that takes so long on a whole card."""
    _client()
    time.sleep(seconds * 100 / share())
