"""The table of a folder of recorded surfaces, read as texts: a knob's value then keeps the type that its YAML gives."""

import csv
from pathlib import Path

import numpy as np
import numpy.typing as npt

from morphling_ray.errors import SurfaceError
from morphling_ray.space import Knob, Value

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

_FLAGS = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}


class Table:
    """The cells of a CSV or Parquet file, by column.

    Args:
        path: The file; `.parquet` and `.pq` are Parquet, everything else is CSV with a header.

    Raises:
        SurfaceError: It cannot be read, has no rows, a column twice or a row of another length.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.columns = _read_parquet(path) if path.suffix in (".parquet", ".pq") else _read_csv(path)
        except OSError as error:
            # strerror is None for "not a Parquet file", which pyarrow raises as an OSError too
            raise SurfaceError(f"{path}: cannot be read ({error.strerror or _one_line(error)})") from error
        except (UnicodeDecodeError, csv.Error, ValueError) as error:
            raise SurfaceError(f"{path}: cannot be read ({_one_line(error)})") from error
        if not any(self.columns.values()):
            raise SurfaceError(f"{path}: has no rows")

    def texts(self, column: str) -> list[str]:
        """The cells of a column.

        Raises:
            SurfaceError: There is no such column.
        """
        if column not in self.columns:
            raise SurfaceError(f"{self.path}: has no column {column!r}; it has {', '.join(self.columns)}")
        return self.columns[column]

    def names(self, column: str) -> list[str]:
        """The cells of a column in which none may be empty.

        Raises:
            SurfaceError: There is no such column, or one is empty.
        """
        texts = self.texts(column)
        if "" in texts:
            raise SurfaceError(f"{self.path}: column {column} is empty in row {texts.index('') + 1}")
        return texts

    def codes(self, knob: Knob) -> npt.NDArray[np.intp]:
        """The position of each cell among the values of the knob of that name, shape `(rows,)`.

        Raises:
            SurfaceError: A cell that is none of the values.
        """
        texts = self.texts(knob.name)
        if len({str(value) for value in knob.values}) < len(knob.values):
            raise SurfaceError(f"{self.path}: a table cannot tell the values of {knob.name} apart: {list(knob.values)}")
        positions: dict[str, int] = {}
        for text in sorted(set(texts)):
            position = _position(knob.values, text)
            if position is None:
                rule = f"holds {text!r}, which the values of that knob do not list: {list(knob.values)}"
                raise SurfaceError(f"{self.path}: column {knob.name} {rule}")
            positions[text] = position
        return np.array([positions[text] for text in texts], dtype=np.intp)

    def numbers(self, column: str) -> FloatArray:
        """A numeric column, shape `(rows,)`; an empty cell is NaN.

        Raises:
            SurfaceError: A cell that is no number.
        """
        texts = self.texts(column)
        try:
            return np.array([float(text or "nan") for text in texts])
        except ValueError:
            row = next(i for i, text in enumerate(texts) if text and _number(text) is None)
            where = f"column {column} holds {texts[row]!r} in row {row + 1}"
            raise SurfaceError(f"{self.path}: {where}, which is no number") from None

    def flags(self, column: str) -> BoolArray:
        """A column of 0 and 1, shape `(rows,)`.

        Raises:
            SurfaceError: A cell that is neither.
        """
        texts = [text.strip().lower() for text in self.texts(column)]
        if bad := sorted(set(texts) - set(_FLAGS)):
            raise SurfaceError(f"{self.path}: column {column} must hold 0 or 1, got {bad[0]!r}")
        return np.array([_FLAGS[text] for text in texts], dtype=bool)

    def other_numbers(self, used: set[str]) -> dict[str, FloatArray]:
        """The numeric columns that are not in `used`; remarks are left out, since no expression can use them."""
        out = {}
        for column, texts in self.columns.items():
            if column not in used and all(text == "" or _number(text) is not None for text in texts):
                out[column] = self.numbers(column)
        return out


def _position(values: tuple[Value, ...], text: str) -> int | None:
    """Where `text` stands among `values`: as written, else as an equal number (5.0 for 5) or truth (true, True)."""
    number = _number(text)
    for position, value in enumerate(values):
        if str(value) == text:
            return position
    for position, value in enumerate(values):
        if isinstance(value, bool):
            same = str(value).lower() == text.lower()
        else:
            same = not isinstance(value, str) and value == number
        if same:
            return position
    return None


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _read_csv(path: Path) -> dict[str, list[str]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        header, *rows = [row for row in csv.reader(file, strict=True) if row] or [[]]
    _check_header(header)
    for number, row in enumerate(rows, start=1):
        if len(row) != len(header):
            raise ValueError(f"row {number} has {len(row)} cells, the header has {len(header)}")
    return dict(zip(header, map(list, zip(*rows)), strict=True)) if rows else {name: [] for name in header}


def _read_parquet(path: Path) -> dict[str, list[str]]:
    import pandas as pd  # only here: it takes half a second to import

    frame = pd.read_parquet(path)
    header = [str(name) for name in frame.columns]
    _check_header(header)
    columns = [frame.iloc[:, i] for i in range(len(header))]
    return {
        name: ["" if missing else str(value) for value, missing in zip(column.tolist(), column.isna(), strict=True)]
        for name, column in zip(header, columns, strict=True)
    }


def _check_header(header: list[str]) -> None:
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise ValueError(f"column {', '.join(twice)} twice")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160]
