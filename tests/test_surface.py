from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from morphling_ray.errors import SurfaceError
from morphling_ray.space import Knob, SearchSpace
from morphling_ray.surface import Surface, SurfaceSet, load_surfaces, save_surfaces

YAML = """
name: toy
about: two tasks on a small grid
source: made up
licence: CC0
table: table.csv
knobs:
  gpu: {kind: categorical, values: ["5", T4]}
  batch: {kind: ordinal, scale: log, values: [1, 8]}
metrics:
  rps: {column: throughput, better: higher}
  ms: {column: ms, better: lower}
feasible: ok
missing: infeasible
cost: price + batch / 8
objectives:
  slo: {maximize: rps / cost, subject_to: ["ms <= 2 * base_ms"]}
  rps: {maximize: rps}
"""
TABLE = """task,family,gpu,batch,throughput,ms,ok,base_ms,price,remark
a,A,T4,8,80,20,1,10,3,"fast, mostly"
a,A,5,1.0,10,10,1,10,1,
a,A,5,8,99,,0,10,1,out of memory
b,B,T4,1,7,5,1,4,3,
"""


def write(folder: Path, rows: str = TABLE, **changes: Any) -> Path:
    """A folder of surfaces; a change of None takes the key out."""
    description = {**yaml.safe_load(YAML), **changes}
    description = {key: value for key, value in description.items() if value is not None}
    folder.mkdir(exist_ok=True)
    (folder / "surfaces.yaml").write_text(yaml.safe_dump(description, sort_keys=False))
    (folder / "table.csv").write_text(rows)
    return folder


def test_grid_with_failures(tmp_path: Path) -> None:
    """Fails if rows are not put where their configuration stands, or a missing or failed row counts as feasible."""
    a = load_surfaces(write(tmp_path)).task("a")
    assert a.family == "A"
    assert a.space.configurations == [{"gpu": g, "batch": b} for g in ("5", "T4") for b in (1, 8)]
    np.testing.assert_array_equal(a.feasible, [True, False, False, True])
    np.testing.assert_array_equal(a.metrics["rps"], [10, np.nan, np.nan, 80])
    np.testing.assert_array_equal(a.metrics["ms"], [10, np.nan, np.nan, 20])


def test_sparse_candidates_are_the_rows_in_grid_order(tmp_path: Path) -> None:
    """Fails if the grid is filled up, or if the order of the file decides the order of the candidates."""
    a = load_surfaces(write(tmp_path, missing="absent")).task("a")
    assert [tuple(c.values()) for c in a.space.configurations] == [("5", 1), ("5", 8), ("T4", 8)]
    np.testing.assert_array_equal(a.feasible, [True, False, True])
    np.testing.assert_array_equal(a.metrics["rps"], [10, np.nan, 80])


def test_values_keep_the_type_of_the_yaml(tmp_path: Path) -> None:
    """Fails if the table decides: the text "5" would become a number and the 1.0 of the table a float."""
    first = load_surfaces(write(tmp_path)).task("a").space[0]
    assert first == {"gpu": "5", "batch": 1}
    assert [type(v) for v in first.values()] == [str, int]


def test_truth_values(tmp_path: Path) -> None:
    """Fails if `true` in a table is not the True of the YAML."""
    knobs = {"cache": {"kind": "categorical", "values": [False, True]}}
    table = "task,family,cache,throughput,ms\na,A,true,3,1\na,A,False,2,1\n"
    loaded = load_surfaces(write(tmp_path, table, knobs=knobs, feasible=None, cost=None, objectives={}))
    np.testing.assert_array_equal(loaded.task("a").metrics["rps"], [2, 3])


def test_other_columns_are_constants_or_extra(tmp_path: Path) -> None:
    """Fails if a column that varies is taken for a constant, or remarks for numbers."""
    loaded = load_surfaces(write(tmp_path))
    a, b = loaded.task("a"), loaded.task("b")
    assert a.constants == {"base_ms": 10.0}
    np.testing.assert_array_equal(a.extra["price"], [1, 1, np.nan, 3])
    assert b.constants == {"base_ms": 4.0, "price": 3.0}
    assert set(a.columns) == {"gpu", "batch", "base_ms", "price"}
    np.testing.assert_array_equal(b.columns["price"], [3, 3, 3, 3])


def test_objective_by_hand(tmp_path: Path) -> None:
    """Fails if cost or the constants of the task are left out: 10 / (1 + 1/8), 80 / (3 + 8/8), and 5 <= 2 * 4."""
    loaded = load_surfaces(write(tmp_path))
    a, b = loaded.task("a"), loaded.task("b")
    np.testing.assert_allclose(loaded.objective("slo", "a")(a.columns, a.metrics), [10 / 1.125, 0, 0, 20])
    np.testing.assert_allclose(loaded.objective("slo", "b")(b.columns, b.metrics), [0, 0, 7 / 3.125, 0])
    assert loaded.objective("rps", "a").metrics == ("rps",)


def test_unknown_names_are_answered_with_known_ones(tmp_path: Path) -> None:
    """Fails if a KeyError escapes or the message does not help."""
    loaded = load_surfaces(write(tmp_path, TABLE.replace("a,A,", "resnet50,A,")))
    with pytest.raises(SurfaceError, match="did you mean resnet50"):
        loaded.task("resnet5")
    with pytest.raises(SurfaceError, match="2 tasks begin with resnet50, b"):
        loaded.task("zzz")
    with pytest.raises(SurfaceError, match="no objective 'fast'; there is slo, rps"):
        loaded.objective("fast", "b")
    with pytest.raises(SurfaceError, match="no task"):
        loaded.objective("rps", "zzz")


def assert_equal(one: SurfaceSet, other: SurfaceSet) -> None:
    for name in ("name", "about", "source", "licence", "knobs", "better", "missing", "cost", "objectives"):
        assert getattr(one, name) == getattr(other, name), name
    assert list(one.surfaces) == list(other.surfaces)
    for a, b in zip(one.surfaces.values(), other.surfaces.values(), strict=True):
        assert (a.task, a.family, a.constants) == (b.task, b.family, b.constants)
        assert a.space.configurations == b.space.configurations
        np.testing.assert_array_equal(a.feasible, b.feasible)
        for columns, others in ((a.metrics, b.metrics), (a.extra, b.extra)):
            assert list(columns) == list(others)
            for name in columns:
                np.testing.assert_array_equal(columns[name], others[name])


@pytest.mark.parametrize("missing", ["infeasible", "absent"])
def test_round_trip(tmp_path: Path, missing: str) -> None:
    """Fails if anything is not written, is rounded, or is read back as another type."""
    loaded = load_surfaces(write(tmp_path / "one", TABLE.replace(",80,", ",80.123456789012345,"), missing=missing))
    save_surfaces(tmp_path / "made" / "two", loaded)
    assert_equal(load_surfaces(tmp_path / "made" / "two"), loaded)


def test_round_trip_of_a_knob_that_is_called_task(tmp_path: Path) -> None:
    """Fails if the table gets two columns of one name."""
    space = SearchSpace([Knob("task", ("x", "y"), kind="categorical")])
    surface = Surface("t", "f", space, {"rps": np.array([1.0, 2.0])}, np.ones(2, bool))
    made = SurfaceSet("n", "", "", "", space.knobs, {"rps": "higher"}, "infeasible", None, {}, {"t": surface})
    save_surfaces(tmp_path, made)
    assert_equal(load_surfaces(tmp_path), made)


def test_parquet_is_the_same_as_csv(tmp_path: Path) -> None:
    """Fails if typed columns (int, float with gaps, text) are matched otherwise than those of a CSV."""
    pd = pytest.importorskip("pandas")
    folder = write(tmp_path)
    wanted = load_surfaces(folder)
    pd.read_csv(folder / "table.csv", dtype={"gpu": str}).to_parquet(folder / "table.parquet")
    (folder / "table.csv").unlink()
    description = (folder / "surfaces.yaml").read_text()
    (folder / "surfaces.yaml").write_text(description.replace("table.csv", "table.parquet"))
    assert_equal(load_surfaces(folder), wanted)
    pd.DataFrame({"task": ["a", None], "family": "A"}).to_parquet(folder / "table.parquet")
    with pytest.raises(SurfaceError, match="column task is empty in row 2"):
        load_surfaces(folder)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("T4,8,80", "T4,9,80", r"table\.csv: column batch holds '9'"),
        ("T4,8,80", "t4,8,80", r"column gpu holds 't4'"),
        ("T4,8,80", "T4,,80", r"column batch holds ''"),
        ("5,1.0,10", "T4,8,10", r"task 'a' has a second row for \{'gpu': 'T4', 'batch': 8\}"),
        ("8,80,20", "8,0,20", r"rps must be positive where feasible, got 0\.0"),
        ("8,80,20", "8,-1,20", r"rps must be positive"),
        ("8,80,20", "8,inf,20", r"rps must be positive"),
        ("8,80,20", "8,,20", r"rps must be positive where feasible, got nan"),
        ("8,80,20", "8,many,20", r"column throughput holds 'many' in row 1"),
        ("7,5,1,4", "7,5,0,4", r"task 'b' has no feasible row"),
        ("7,5,1,4", "7,5,2,4", r"column ok must hold 0 or 1, got '2'"),
        ("7,5,1,4", "7,5,1,", r"column base_ms lacks a value for a feasible row of task 'b'"),
        ("7,5,1,4", "7,5,1,x", r"objective slo names base_ms"),
        ("b,B", ",B", r"column task is empty in row 4"),
        ("a,A,T4", "a,X,T4", r"task 'a' has two families: A, X"),
        ("7,5,1,4,3,", "7,5,1,4,3", r"row 4 has 9 cells, the header has 10"),
        ("remark", "price", r"column price twice"),
        ("throughput", "thruput", r"has no column 'throughput'; it has task, family"),
        ("family", "kind", r"has no column 'family'"),
        ("gpu,batch", "gpu,size", r"has no column 'batch'"),
        (TABLE, "", r"has no rows"),
        (TABLE, TABLE.splitlines()[0], r"has no rows"),
    ],
)
def test_bad_table(tmp_path: Path, old: str, new: str, message: str) -> None:
    """Fails if a check of the table is taken out; every message is one line and names the file."""
    assert old in TABLE
    with pytest.raises(SurfaceError, match=message) as error:
        load_surfaces(write(tmp_path, TABLE.replace(old, new, 1)))
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("missing", "maybe", "missing is infeasible or absent, got 'maybe'"),
        ("table", None, "table must name"),
        ("table", "other.csv", r"other\.csv: cannot be read \(No such file"),
        ("knobs", None, "knobs must map names"),
        ("knobs", ["gpu"], "knobs must map names"),
        ("knobs", {"gpu": {"kind": "categorical"}}, "knob 'gpu' needs kind and values"),
        ("knobs", {"gpu": {"values": ["T4"]}}, "'gpu' is ordinal, so its values must be numbers"),
        ("knobs", {"gpu": {"kind": "categorical", "values": [None]}}, "a value is a number or a text"),
        ("knobs", {"gpu": {"kind": "categorical", "values": ["5", 5, "T4"]}}, "cannot tell the values of gpu apart"),
        ("knobs", {"rps": {"values": [1]}}, "rps stands for two things"),
        ("metrics", None, "metrics must map names"),
        ("metrics", {"rps": {"column": "throughput"}}, "metric 'rps' needs better"),
        ("objectives", {"o": {"maximize": "p99 / rps"}}, "objective o names p99; known are base_ms, batch"),
        ("objectives", {"o": {"maximize": "rps", "subject_to": ["p99 <= 1"]}}, "objective o names p99"),
        ("objectives", {"o": {"maximize": "rps", "subject_to": ["ms + 1"]}}, "is not a bound"),
        ("objectives", {"o": {"maximize": "rps", "subject_to": "ms <= 1"}}, "needs maximize"),
        ("objectives", {"o": {"maximize": "__import__('os')"}}, "only numbers, names"),
        ("objectives", {"o": {"maximize": "rps * gpu"}}, "computes with, or orders, a text"),
        ("objectives", {"o": {"maximize": "-ms"}}, "objective o is negative in task 'a'; maximize 1 / x"),
        ("objectives", {"o": {}}, "objective o needs maximize"),
        ("cost", "remark + 1", "cost names remark"),
        ("cost", "cost + 1", "cost names cost"),
    ],
)
def test_bad_description(tmp_path: Path, key: str, value: Any, message: str) -> None:
    """Fails if a check of the YAML is taken out; every message is one line and names the file."""
    with pytest.raises(SurfaceError, match=message) as error:
        load_surfaces(write(tmp_path, **{key: value}))
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("text", ["a: [", "- 1", "", "\x00"])
def test_unreadable_description(tmp_path: Path, text: str) -> None:
    """Fails if an error of the YAML parser escapes."""
    (tmp_path / "surfaces.yaml").write_text(text)
    with pytest.raises(SurfaceError, match=r"surfaces\.yaml"):
        load_surfaces(tmp_path)


def test_no_folder_no_text_no_parquet(tmp_path: Path) -> None:
    """Fails if an OSError or UnicodeDecodeError escapes."""
    with pytest.raises(SurfaceError, match="No such file"):
        load_surfaces(tmp_path / "nowhere")
    (write(tmp_path) / "table.csv").write_bytes(b"task,\xff\xfe")
    with pytest.raises(SurfaceError, match=r"table\.csv: cannot be read"):
        load_surfaces(tmp_path)
    (write(tmp_path, table="table.parquet") / "table.parquet").write_bytes(b"no parquet")
    with pytest.raises(SurfaceError, match=r"table\.parquet: cannot be read"):
        load_surfaces(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(SurfaceError, match="cannot be written"):
        save_surfaces(tmp_path / "file", load_surfaces(write(tmp_path)))


def surface() -> Surface:
    return Surface(
        task="t",
        family="f",
        space=SearchSpace([Knob("n", (1, 2))]),
        metrics={"rps": np.array([1.0, np.nan])},
        feasible=np.array([True, False]),
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metrics": {"rps": np.array([1.0])}}, r"rps must have shape \(2,\), got \(1,\)"),
        ({"extra": {"w": np.ones((2, 1))}}, r"w must have shape \(2,\)"),
        ({"metrics": {}}, "has no metrics"),
        ({"metrics": {"rps": np.array([1.0, 2.0])}}, "NaN where infeasible"),
        ({"metrics": {"rps": np.array([0.0, np.nan])}}, r"rps must be positive where feasible, got 0\.0 at \{'n': 1\}"),
        ({"feasible": np.array([1, 0])}, "feasible must be bool"),
        ({"feasible": np.array([True])}, r"feasible must be bool of shape \(2,\)"),
    ],
)
def test_illegal_surface_cannot_be_built(change: dict[str, Any], message: str) -> None:
    """Fails if a check of `Surface` is taken out; `replace` is checked too."""
    with pytest.raises(SurfaceError, match=message):
        replace(surface(), **change)


def test_replace_has_columns_of_its_own() -> None:
    """Fails if the cached columns are those of the surface it was made from."""
    one = surface()
    assert "w" not in one.columns
    np.testing.assert_array_equal(replace(one, constants={"w": 2.0}).columns["w"], [2, 2])
