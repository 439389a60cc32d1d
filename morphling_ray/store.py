"""The run directory: everything that a run measured, written as it happens and never rewritten.

    experiment.yaml      what was asked for, resolved; its first key, `morphling_ray`, marks the folder as ours
    trials.jsonl         one line per finished trial, with every probe; on the disk before the next trial begins
    recommendation.json  the outcome, written once at the end
    secrets.json         what secret values of knobs are, where there are such; for its owner's eyes only
    ray.log, serve_config.yaml, report.html

A run that was killed leaves at worst half a line at the end of trials.jsonl. Readers skip it, and the next append
cuts it off, so that a resumed run continues where the last whole trial ended.
"""

import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import fields
from enum import Enum
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from morphling_ray import __version__
from morphling_ray.errors import InputError, StoreError
from morphling_ray.measurement import Probe, Trial

MARKER = "morphling_ray"
TAIL_BYTES = 2**16  # read at once, from the end
_OTHER = "give another --run-dir"
_MEASURED_FIELDS = frozenset(f.name for f in fields(Probe) if f.type in (float, "float"))


class RunDirectory:
    """The files of one run. Made by `create` or `open`, which check that the folder is free, or ours.

    Args:
        path: The folder; it exists.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    @classmethod
    def create(cls, path: Path | None = None) -> "RunDirectory":
        """A new, empty run directory.

        Args:
            path: Where; without it `runs/` and the date and time, under the current folder.

        Raises:
            InputError: The folder holds something already, or cannot be made or written to.
        """
        if path is None:
            return cls(_new_folder(Path("runs"), time.strftime("%Y%m%d-%H%M%S")))
        try:
            path.mkdir(parents=True, exist_ok=True)
            occupied = any(path.iterdir())
            if not occupied:
                _write_atomically(path / "experiment.yaml", "")
                (path / "experiment.yaml").unlink()
        except OSError as error:
            raise InputError(f"run directory {path} cannot be written to: {_why(error)}; {_OTHER}") from error
        if occupied and _is_ours(path):
            raise InputError(f"run directory {path} holds an earlier run; --resume {path} continues it, or {_OTHER}")
        if occupied:
            raise InputError(f"run directory {path} exists and is not ours (no experiment.yaml of a run); {_OTHER}")
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> "RunDirectory":
        """The directory of an earlier run.

        Raises:
            InputError: There is no such folder.
            StoreError: It is not a run directory.
        """
        if not path.is_dir():
            raise InputError(f"run directory {path} does not exist" if not path.exists() else f"{path} is not a folder")
        if not _is_ours(path):
            raise StoreError(f"{path} is not a run directory: it has no experiment.yaml with the key {MARKER}")
        for half in path.glob(".*.tmp"):
            if not Path("/proc", half.name.split(".")[-2]).exists():  # of a process that was killed while it wrote
                half.unlink(missing_ok=True)
        return cls(path)

    @classmethod
    def all_in(cls, path: Path) -> "list[RunDirectory]":
        """The run directory at a path, or those in the folder there, by name.

        Raises:
            InputError: There is no such folder.
            StoreError: It is neither a run directory nor holds any.
        """
        if path.is_dir() and not _is_ours(path):
            found = [cls(folder) for folder in sorted(path.iterdir()) if folder.is_dir() and _is_ours(folder)]
            if found:
                return found
        return [cls.open(path)]

    @property
    def path(self) -> Path:
        """The folder."""
        return self._path

    @property
    def log_path(self) -> Path:
        """Where the output of Ray goes."""
        return self._path / "ray.log"

    def write_experiment(self, experiment: Mapping[str, Any]) -> None:
        """Writes what was asked for; from here on the folder counts as a run directory."""
        data = {MARKER: __version__, **plain(experiment)}
        self.write_text("experiment.yaml", to_yaml(data))

    def experiment(self) -> dict[str, Any]:
        """What was asked for, as `write_experiment` got it and with the marker.

        Raises:
            StoreError: The file cannot be read.
        """
        return _read_experiment(self._path)

    def write_secrets(self, secrets: Mapping[str, Mapping[str, str]]) -> None:
        """Keeps what stands for the secret values of knobs, and the values, in a file that only its owner reads."""
        if secrets:
            self.write_text("secrets.json", json.dumps(secrets, indent=2) + "\n", private=True)

    def secrets(self) -> dict[str, dict[str, str]]:
        """What `write_secrets` got; empty where there is no such file.

        Raises:
            StoreError: It cannot be read.
        """
        file = self._path / "secrets.json"
        if not file.exists():
            return {}
        try:
            data = json.loads(file.read_text())
            return {str(k): {str(name): str(value) for name, value in v.items()} for k, v in data.items()}
        except (OSError, ValueError, AttributeError) as error:
            raise StoreError(f"{file} cannot be read: {' '.join(str(error).split())}") from error

    def append_trial(self, trial: Trial) -> None:
        """Adds one finished trial; when this returns, it is on the disk.

        Raises:
            StoreError: It cannot be written. What was written before stays readable.
        """
        line = json.dumps(plain(trial.to_dict()), allow_nan=False, separators=(",", ":")) + "\n"
        target = self._path / "trials.jsonl"
        try:
            target.touch()
            with target.open("r+b") as file:
                keep, missing = _end_of_last_trial(file)
                file.truncate(keep)
                file.seek(keep)
                file.write(missing + line.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise StoreError(f"trial {trial.number} cannot be written to {target}: {_why(error)}") from error

    def trials(self) -> list[Trial]:
        """All trials so far, in the order in which they ended. Half a last line, as a kill leaves it, is skipped.

        Raises:
            StoreError: The file cannot be read, or another line is not a trial.
        """
        target = self._path / "trials.jsonl"
        try:
            *whole, rest = target.read_bytes().split(b"\n")
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StoreError(f"{target} cannot be read: {_why(error)}") from error
        out: list[Trial] = []
        for number, line in enumerate(whole, start=1):
            try:
                out.append(_trial(line))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise StoreError(f"{target}, line {number}: not a trial ({type(error).__name__}: {error})") from error
        try:
            return [*out, _trial(rest)] if rest else out  # killed after the last brace, before the end of line
        except (ValueError, KeyError, TypeError, AttributeError):
            return out

    def write_recommendation(self, recommendation: Mapping[str, Any]) -> None:
        """Writes the outcome."""
        self.write_text("recommendation.json", json.dumps(plain(recommendation), allow_nan=False, indent=2) + "\n")

    def recommendation(self) -> dict[str, Any] | None:
        """The outcome, or None where the run did not get that far.

        Raises:
            StoreError: The file cannot be read.
        """
        target = self._path / "recommendation.json"
        try:
            data = json.loads(target.read_text())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise StoreError(f"{target} cannot be read: {_why(error)}") from error
        if not isinstance(data, dict):
            raise StoreError(f"{target} cannot be read: expected an object, got {type(data).__name__}")
        return data

    def write_text(self, name: str, text: str, *, private: bool = False) -> None:
        """Writes a whole file: readers see the old text or the new one, never a part.

        Args:
            name: Of the file.
            text: What is in it.
            private: Nobody but its owner may read it.

        Raises:
            StoreError: It cannot be written.
        """
        if Path(name).name != name:
            raise ValueError(f"`name` must be a file name without a folder, got {name!r}")
        try:
            _write_atomically(self._path / name, text, 0o600 if private else None)
        except OSError as error:
            raise StoreError(f"{self._path / name} cannot be written: {_why(error)}") from error


def plain(value: Any) -> Any:
    """`value` as JSON and YAML can hold it: NaN and infinity become null, numpy scalars numbers, the unknown text."""
    if isinstance(value, Enum):
        return plain(value.value)
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((plain(item) for item in value), key=str)
    if hasattr(value, "tolist"):  # numpy, without importing it
        return plain(value.tolist())
    return str(value)


def to_yaml(data: Mapping[str, Any]) -> str:
    """YAML with each list on one line, which is how a space reads best."""
    return yaml.dump(plain(data), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


class _Dumper(yaml.SafeDumper):
    """As YAML's own, but lists are written `[1, 2, 4]`."""


_Dumper.add_representer(list, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, True))


def _trial(line: bytes) -> Trial:
    """The trial in a line; what could not be measured is NaN again."""
    data = json.loads(line)
    for probe in data.get("probes", ()):
        probe.update({name: math.nan for name, value in probe.items() if value is None and name in _MEASURED_FIELDS})
    data["metrics"] = {name: math.nan if value is None else value for name, value in data.get("metrics", {}).items()}
    return Trial.from_dict(data)


def _end_of_last_trial(file: BinaryIO) -> tuple[int, bytes]:
    """How much of trials.jsonl to keep before the next line, and the end of line that a kill may have cost it."""
    size = start = file.seek(0, os.SEEK_END)
    end = b""
    while start > 0 and b"\n" not in end:  # only the end is read, however much there is
        file.seek(start := max(0, start - TAIL_BYTES))
        end = file.read(size - start)
    rest = end[end.rfind(b"\n") + 1 :]
    try:
        if rest:
            _trial(rest)
            return size, b"\n"
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    return size - len(rest), b""


def _new_folder(parent: Path, name: str) -> Path:
    """Makes `parent/name`, or with -2, -3, ... behind it, whichever nobody else has."""
    attempt = 1
    while True:
        path = parent / (name if attempt == 1 else f"{name}-{attempt}")
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            if not parent.is_dir():
                raise InputError(f"run directory {path} cannot be made: {parent} is not a folder; {_OTHER}") from None
            attempt += 1
        except OSError as error:
            raise InputError(f"run directory {path} cannot be made: {_why(error)}; {_OTHER}") from error


def _write_atomically(target: Path, text: str, mode: int | None = None) -> None:
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _read_experiment(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load((path / "experiment.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise StoreError(f"{path / 'experiment.yaml'} cannot be read: {_why(error)}") from error
    if not isinstance(data, dict) or MARKER not in data:
        raise StoreError(f"{path / 'experiment.yaml'} is not the experiment of a run: it has no key {MARKER}")
    return data


def _is_ours(path: Path) -> bool:
    try:
        return bool(_read_experiment(path))
    except StoreError:
        return False


def _why(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(f"{type(error).__name__}: {text}".split())[:200]
