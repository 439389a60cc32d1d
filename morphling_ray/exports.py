"""A search's tables as files, for whatever reads CSV or Parquet."""

from pathlib import Path
from typing import TYPE_CHECKING

from morphling_ray.errors import InputError
from morphling_ray.store import plain

if TYPE_CHECKING:
    import pandas as pd

    from morphling_ray.result import Result


def to_csv(result: "Result", path: Path) -> list[Path]:
    """Writes the trials to `FILE.csv`; or into a folder, made if need be, trials.csv and probes.csv.

    Returns:
        The files.

    Raises:
        InputError: It cannot be written there.
    """
    return _write(result, path, ".csv")


def to_parquet(result: "Result", path: Path) -> list[Path]:
    """Writes the trials to `FILE.parquet`; or into a folder, made if need be, trials.parquet and probes.parquet.

    A knob whose values are of several kinds, such as numbers and a text, is a column of texts: Parquet has one kind.

    Returns:
        The files.

    Raises:
        InputError: It cannot be written there.
    """
    return _write(result, path, ".parquet")


def _write(result: "Result", path: Path, suffix: str) -> list[Path]:
    tables = {path: result.trials}
    if path.suffix != suffix:
        tables = {path / f"trials{suffix}": result.trials, path / f"probes{suffix}": result.probes}
    try:
        if path.suffix != suffix:
            path.mkdir(parents=True, exist_ok=True)
        for file, table in tables.items():
            if suffix == ".csv":
                table.to_csv(file, index=False)
            else:
                _of_one_kind(table).to_parquet(file, index=False)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error
    return list(tables)


def _of_one_kind(table: "pd.DataFrame") -> "pd.DataFrame":
    """Columns of several kinds as texts."""
    out = table.copy()
    for name in table.columns:
        values = [v for v in table[name] if v is not None]
        if table[name].dtype == object and len({type(plain(v)) for v in values}) > 1:
            out[name] = [None if v is None else str(v) for v in table[name]]
    return out
