import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from morphling_ray.errors import SpaceError
from morphling_ray.space import Knob, SearchSpace

CORES = Knob("cpu_cores", (1, 2, 4))
BATCH = Knob("batch", (1, 8), scale="log")
GPU = Knob("gpu_type", ("T4", "V100"), kind="categorical")


def test_grid_is_in_the_order_of_the_knobs_last_fastest() -> None:
    """Fails if the product is taken in another order: indices of recorded runs would then mean other candidates."""
    space = SearchSpace([CORES, BATCH])
    assert [tuple(c.values()) for c in space.configurations] == [(1, 1), (1, 8), (2, 1), (2, 8), (4, 1), (4, 8)]
    assert len(space) == 6


@given(st.integers(0, 11))
def test_index_is_the_inverse_of_getitem(i: int) -> None:
    """Fails if `_key` leaves out a knob or follows the order of the dict instead of that of the knobs."""
    space = SearchSpace([CORES, BATCH, GPU])
    backwards = dict(reversed(space[i].items()))
    assert space.index(backwards) == i
    assert backwards in space


def test_a_configuration_handed_out_is_a_copy() -> None:
    """Fails if `__getitem__` returns the stored dict."""
    space = SearchSpace([CORES])
    space[0]["cpu_cores"] = 99
    assert space[0] == {"cpu_cores": 1}


def test_true_and_one_are_two_values() -> None:
    """Fails if a key of the index does not hold the type of a truth value: True == 1 in Python."""
    space = SearchSpace([Knob("cache", (True, 1, False, 0), kind="categorical")])
    assert [space.index(c) for c in space.configurations] == [0, 1, 2, 3]


@pytest.mark.parametrize("other", [{"cpu_cores": 3}, {"batch": 1}, {"cpu_cores": [1]}])
def test_what_is_not_in_the_space_is_refused(other: dict[str, int]) -> None:
    """Fails if a missing knob, or a value that cannot be hashed, escapes as KeyError or TypeError."""
    space = SearchSpace([CORES])
    assert other not in space
    with pytest.raises(SpaceError, match="is not in the space"):
        space.index(other)


def test_constraints_remove_what_breaks_them() -> None:
    """Fails if `all` becomes `any`, or if a bound excludes its own limit."""
    space = SearchSpace([CORES, BATCH], ["cpu_cores * batch <= 8", "cpu_cores >= 2"])
    assert [tuple(c.values()) for c in space.configurations] == [(2, 1), (4, 1)]


def test_constraint_on_a_categorical_value() -> None:
    """Fails if texts are not allowed in a comparison."""
    space = SearchSpace([GPU, CORES], ["gpu_type == 'T4'"])
    assert {c["gpu_type"] for c in space.configurations} == {"T4"}


@pytest.mark.parametrize(
    ("knobs", "constraints", "message"),
    [
        ([], [], "no knobs"),
        ([CORES, CORES], [], "named twice"),
        ([CORES], ["cpu_cores + 1"], "not a comparison"),
        ([CORES], ["cores <= 1"], "names cores; the knobs are cpu_cores"),
        ([CORES], ["cpu_cores > 4"], "no configuration satisfies cpu_cores > 4"),
        ([Knob(f"k{i}", tuple(range(10))) for i in range(7)], [], "10,000,000 configurations"),
    ],
)
def test_illegal_spaces(knobs: list[Knob], constraints: list[str], message: str) -> None:
    """Fails if a check of the constructor is taken out."""
    with pytest.raises(SpaceError, match=message):
        SearchSpace(knobs, constraints)


def test_sparse_space_keeps_the_order_given() -> None:
    """Fails if the full grid is built although configurations are given."""
    rows: list[dict[str, int | float | str | bool]] = [{"cpu_cores": 4, "batch": 1}, {"cpu_cores": 1, "batch": 8}]
    space = SearchSpace([CORES, BATCH], configurations=rows)
    assert space.configurations == rows
    np.testing.assert_array_equal(space.columns["cpu_cores"], [4, 1])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"values": ()}, "has no values"),
        ({"values": (1, 1)}, "lists a value twice"),
        ({"values": (1, "a")}, "must be numbers"),
        ({"values": (1, True)}, "must be numbers"),
        ({"values": (1.0, float("nan"))}, "not finite"),
        ({"values": (-1, 1), "scale": "log"}, "negative"),
        ({"values": (1, 2), "kind": "nominal"}, "kind is ordinal or categorical"),
        ({"values": (1, 2), "scale": "cubic"}, "scale is linear or log"),
    ],
)
def test_illegal_knobs(kwargs: dict[str, object], message: str) -> None:
    """Fails if a check of `Knob` is taken out."""
    with pytest.raises(SpaceError, match=message):
        Knob("k", **kwargs)  # type: ignore[arg-type]


@given(st.lists(st.integers(-1000, 1000), min_size=1, unique=True))
def test_ordinal_values_ascend_whatever_the_order_given(values: list[int]) -> None:
    """Fails if values are kept as given, or sorted as texts."""
    assert list(Knob("k", tuple(values)).values) == sorted(values)


@pytest.mark.parametrize(
    ("values", "kind", "scale"),
    [
        ([1, 2, 3, 4], "ordinal", "linear"),
        ([1, 2, 4, 8], "ordinal", "log"),
        ([0, 1, 10], "ordinal", "log"),
        ([-8, 1, 8], "ordinal", "linear"),
        ([5], "ordinal", "linear"),
        ([True, False], "categorical", "linear"),
        ([1, "auto"], "categorical", "linear"),
    ],
)
def test_infer(values: list[int | str], kind: str, scale: str) -> None:
    """Fails if the threshold of 8 moves, or if truth values or texts count as numbers."""
    knob = Knob.infer("k", values)
    assert (knob.kind, knob.scale) == (kind, scale)


@pytest.mark.parametrize("values", ["1,2", {"a": 1}, [None], [[1]]])
def test_infer_refuses_what_is_no_list_of_values(values: object) -> None:
    """Fails if a text is taken for a list of letters."""
    with pytest.raises(SpaceError, match="'k'"):
        Knob.infer("k", values)  # type: ignore[arg-type]
