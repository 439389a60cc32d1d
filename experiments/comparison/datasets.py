"""Recorded surfaces as a comparison uses them: loaded once per process, recognised again, and cut into folds."""

import hashlib
import json
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from morphling_ray.errors import InputError
from morphling_ray.surface import SurfaceSet, load_surfaces


@dataclass(frozen=True)
class Dataset:
    """A folder of recorded surfaces.

    Attributes:
        path: The folder; never written to a results file.
        name: The set's own name.
        data: Fingerprint of everything that a result can depend on.
    """

    path: Path
    name: str
    data: str

    @classmethod
    def open(cls, path: Path) -> "Dataset":
        """Reads a folder.

        Raises:
            SurfaceError: It is incomplete or contradicts itself.
        """
        surfaces = load(path)
        return cls(path, surfaces.name, _fingerprint(surfaces))

    @property
    def surfaces(self) -> SurfaceSet:
        """What was recorded."""
        return load(self.path)


@lru_cache(maxsize=16)
def load(path: Path) -> SurfaceSet:
    """A folder's surfaces, read once per process."""
    return load_surfaces(path)


def open_all(paths: list[Path]) -> list[Dataset]:
    """Reads several folders.

    Raises:
        InputError: Two of them have the same name: their runs could not be told apart.
        SurfaceError: One is incomplete or contradicts itself.
    """
    datasets: dict[str, Dataset] = {}
    for path in paths:
        dataset = Dataset.open(path)
        if dataset.name in datasets:
            raise InputError(f"--surfaces {path}: {datasets[dataset.name].path} is also named {dataset.name!r}")
        datasets[dataset.name] = dataset
    return list(datasets.values())


def folds(surfaces: SurfaceSet, hold_out: str) -> dict[str, list[str]]:
    """Tasks that are held out together, by the name of the family, or of the task itself."""
    out: dict[str, list[str]] = {}
    for task, surface in surfaces.surfaces.items():
        out.setdefault(surface.family if hold_out == "family" else task, []).append(task)
    return out


def seed_of(*parts: object) -> int:
    """A seed that is the same in every process; what differs in one part is independent."""
    return zlib.crc32("\0".join(map(str, parts)).encode())


def _fingerprint(surfaces: SurfaceSet) -> str:
    """The data, not the file: the order of rows or a remark in the YAML changes no result."""
    digest = hashlib.sha256()
    knobs = [[k.name, list(k.values), k.kind, k.scale] for k in surfaces.knobs]
    about = [surfaces.name, knobs, surfaces.missing, surfaces.cost, surfaces.objectives]
    digest.update(json.dumps(about, sort_keys=True, default=str).encode())
    for task in sorted(surfaces.surfaces):
        surface = surfaces.surfaces[task]
        digest.update(json.dumps([task, surface.family, dict(surface.constants)], sort_keys=True).encode())
        if surfaces.missing == "absent":  # else every task has the grid of the knobs
            digest.update(json.dumps(surface.space.configurations).encode())
        digest.update(surface.feasible.tobytes())
        for values in (surface.metrics, surface.extra):
            for name in sorted(values):
                digest.update(name.encode() + values[name].tobytes())
    return digest.hexdigest()[:16]
