"""Why a configuration cannot serve, in the field's usual words first: what a search groups by and a person reads."""

import re
from collections.abc import Collection
from pathlib import Path

OUT_OF_MEMORY = ("OutOfMemory", "out of memory", "MemoryError", "ALLOC_FAILED", "running low on memory")
CRASHED = ("ActorDied", "ActorUnavailable", "RaySystemError", "WorkerCrashed", "died unexpectedly", "is dead")
LOG_CHARACTERS = 4000
_CONTROLLERS_LOG = 400_000  # characters of its end, in which a failed health check is looked for
_RECORD = re.compile(r"^(?=(?:DEBUG|INFO|WARNING|ERROR) \d{4}-)", re.MULTILINE)
_NO_ANSWER = re.compile(r"Didn't receive health check response for replica .* after ([\d.]+)s")


def on_load(log: str) -> str:
    """Of a replica that did not start, from what Serve says of it: the last line of a traceback says what happened."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line.split(":")[0] or "Exception" in line.split(":")[0]]
    text = (errors or lines or ["unknown"])[-1][:300]
    return f"out of memory on load: {text}" if ran_out(log) else f"failed to start: {text}"


def of_requests(error: str, batch: int) -> str:
    """Of requests that fail, from what the first one raised.

    Args:
        error: In one line.
        batch: The largest batch that they are computed in.
    """
    if ran_out(error):
        return f"out of memory at batch size {batch}: {error}" if batch > 1 else f"out of memory: {error}"
    return f"crash under load: {error}" if any(mark in error for mark in CRASHED) else f"requests failed: {error}"


def under_load(error: str, batch: int) -> str:
    """Of replicas that Serve had to replace while they were measured.

    Args:
        error: What a request saw of it; may be empty.
        batch: See `of_requests`.
    """
    if ran_out(error):
        return of_requests(error, batch)
    return "crash under load: a replica was replaced during the measurement, twice" + (f": {error}" if error else "")


def ran_out(text: str) -> bool:
    """Whether an error speaks of memory."""
    return any(mark in text for mark in OUT_OF_MEMORY)


def last_words(folder: Path, pid: int) -> str:
    """The end of what a worker process wrote to stderr, in Ray's log folder of this machine; empty if there is none."""
    files = sorted(folder.glob(f"worker-*-{pid}.err"))
    if not files:
        return ""
    text = files[-1].read_text(errors="replace")
    return text[-LOG_CHARACTERS:].strip()


def failed_check(folder: Path, replicas: Collection[str]) -> str:
    """Why Serve stopped replicas that still ran, in one line: its controller alone says so, and in its log alone.

    Args:
        folder: Ray's log folder of this machine.
        replicas: Their ids.

    Returns:
        Empty where no health check of theirs failed, or the controller runs elsewhere.
    """
    text = "".join(
        file.read_text(errors="replace")[-_CONTROLLERS_LOG:]
        for file in sorted(folder.glob("serve/controller_[0-9]*.log"))
    )
    for record in reversed(_RECORD.split(text)):
        first, *rest = record.strip().splitlines() or [""]
        if "ealth check" not in first or not any(f"'{replica}'" in first for replica in replicas):
            continue
        if silent := _NO_ANSWER.search(first):
            return f"no answer to a health check within {float(silent[1]):g} s"
        if rest:
            return f"its health check failed: {rest[-1].strip()[:300]}"
    return ""
