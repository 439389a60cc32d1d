"""The results file: one JSON object, written atomically, so that an interrupted comparison goes on where it stopped."""

import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from morphling_ray.errors import InputError

Key = tuple[str, str, str, str, int]
"""Data set, objective, searcher, task, seed."""

_SHARE_OF_TIME = 0.05  # that writing a large file again and again may take


@dataclass(frozen=True, kw_only=True)
class Run:
    """One search: a searcher on a task, with one seed. See `protocol.Search` for the curves.

    Attributes:
        dataset: Name of the data set.
        objective: Name of the objective.
        searcher: Name of the searcher.
        variant: What sets the run apart from an ordinary one (a shuffled prior, say), or an empty string.
        task: Name of the task.
        family: Its family.
        seed: Number of the repetition.
        train_s: Seconds to learn from earlier tasks.
        train_tasks: How many there were.
        code: Fingerprint of the code that searched.
    """

    dataset: str
    objective: str
    searcher: str
    variant: str
    task: str
    family: str
    seed: int
    quality: Sequence[float]
    quality_clear: Sequence[float]
    probes: Sequence[int]
    suggest_ms: Sequence[float]
    recommend_ms: Sequence[float]
    train_s: float
    train_tasks: int
    proposed: Sequence[int]
    recommended: Sequence[int | None]
    p_near_best: Sequence[float | None]
    code: str

    @property
    def key(self) -> Key:
        """What tells the runs of one file apart."""
        return self.dataset, self.objective, self.searcher, self.task, self.seed

    @property
    def label(self) -> str:
        """The searcher, and what sets the run apart."""
        return f"{self.searcher} ({self.variant})" if self.variant else self.searcher

    def to_dict(self) -> dict[str, Any]:
        """A form for JSON, rounded to what means something."""
        out = asdict(self)
        for name, digits in (("quality", 6), ("quality_clear", 6), ("suggest_ms", 3), ("recommend_ms", 3)):
            out[name] = [round(value, digits) for value in out[name]]
        out["p_near_best"] = [None if p is None else round(p, 4) for p in self.p_near_best]
        out["train_s"] = round(self.train_s, 4)
        return out

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Run":
        """The run that `to_dict` wrote. Keys that the contract does not promise may be absent, others are ignored."""
        rest = {"variant": "", "recommend_ms": [], "train_tasks": 0, "proposed": [], "recommended": [], "code": ""}
        known = {**rest, "p_near_best": [None] * len(data["quality"]), **data}
        return cls(**{f.name: known[f.name] for f in fields(cls)})


@dataclass
class Results:
    """A results file.

    Attributes:
        path: Where it is.
        meta: Settings, data, what was left out, what failed.
        runs: By what tells them apart.
    """

    path: Path
    meta: dict[str, Any]
    runs: dict[Key, Run]
    _written_at: float = float("-inf")
    _write_took_s: float = 0.0

    @classmethod
    def read(cls, path: Path) -> "Results":
        """Reads a results file.

        Raises:
            InputError: It cannot be read, or is none.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            runs = [Run.from_dict(run) for run in data["runs"]]
            meta = dict(data["meta"])
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from error
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: is not the results file of a comparison ({type(error).__name__})") from error
        return cls(path, meta, {run.key: run for run in runs})

    @classmethod
    def open(cls, path: Path, meta: dict[str, Any], *, restart: bool, redo: Sequence[str] = ()) -> "Results":
        """A file to go on with, or a new one.

        Args:
            path: Where it is, or will be.
            meta: Of what is to be run now; must have `settings`, `datasets` and `searchers`.
            restart: Whether what is there is thrown away.
            redo: Searchers whose runs are thrown away.

        Raises:
            InputError: The file was made with other settings or data, or its folder does not exist.
        """
        if not path.parent.is_dir():
            raise InputError(f"--json {path}: the folder {path.parent} does not exist")
        if path.is_dir():
            raise InputError(f"--json {path} is a folder")
        if restart or not path.exists():
            return cls(path, meta, {})
        old = cls.read(path)
        way_out = f"choose another --json than {path}, or give --restart"
        if difference := _difference(old.meta.get("settings", {}), meta["settings"]):
            raise InputError(f"finished runs were made with {difference}; {way_out}")
        for name, now in meta["datasets"].items():
            before = old.meta.get("datasets", {}).get(name, now)
            if before["data"] != now["data"]:
                raise InputError(f"finished runs were made with other data in {name}; {way_out}")
        kept = {key: run for key, run in old.runs.items() if run.searcher not in redo}
        datasets = {**old.meta.get("datasets", {}), **meta["datasets"]}
        left_out = {**old.meta.get("left_out", {}), **meta.get("left_out", {})}
        searchers = list(dict.fromkeys([*meta["searchers"], *old.meta.get("searchers", [])]))
        merged = {"datasets": datasets, "left_out": left_out, "searchers": searchers}
        return cls(path, {**old.meta, **meta, **merged}, kept)

    def add(self, runs: Iterable[Run]) -> None:
        """Takes in finished runs, and writes the file unless that was done just now."""
        for run in runs:
            self.runs[run.key] = run
        if time.monotonic() - self._written_at >= self._write_took_s / _SHARE_OF_TIME:
            self.write()

    def write(self) -> None:
        """Writes the file: a new one beside it, then a rename, so that a reader never sees half of it."""
        began = time.monotonic()
        # Sorted, one run a line: the order in which processes finish says nothing, and two files can be compared.
        runs = [self.runs[key].to_dict() for key in sorted(self.runs)]
        lines = ",\n".join(json.dumps(run, separators=(",", ":")) for run in runs)
        meta = ",\n".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in self.meta.items())
        text = f'{{"meta": {{\n{meta}\n}},\n"runs": [\n{lines}\n]}}\n'
        beside = self.path.with_name(f"{self.path.name}.{os.getpid()}.tmp")
        try:
            with beside.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(self.path)
        except OSError as error:
            raise InputError(f"--json {self.path}: cannot be written ({error.strerror})") from error
        finally:
            beside.unlink(missing_ok=True)
        self._written_at = time.monotonic()
        self._write_took_s = self._written_at - began


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The first setting that differs, as `noise 0.05, not 0.03`; empty if none does."""
    for name in (*now, *(name for name in before if name not in now)):
        if before.get(name) != now.get(name):
            return f"{name} {_text(before.get(name))}, not {_text(now.get(name))}"
    return ""


def _text(value: object) -> str:
    return json.dumps(value)
