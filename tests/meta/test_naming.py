"""That a prior recognises a knob that a space calls by its place, or gives in another unit."""

import pytest

from morphling_ray.meta.naming import known_as, translated
from morphling_ray.space import Configuration, Knob

KNOWN = ("cpu_cores", "max_batch_size", "batch_wait_timeout_ms", "precision")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["cpu_cores", "other"], {}),
        (["deployments.M.cpu_cores"], {"deployments.M.cpu_cores": ("cpu_cores", 1.0)}),
        (["deployments.A.cpu_cores", "deployments.B.cpu_cores"], {}),  # which of them is it?
        (["cpu_cores", "deployments.B.cpu_cores"], {}),
        (["batch_wait_timeout_s"], {"batch_wait_timeout_s": ("batch_wait_timeout_ms", 1000.0)}),
        (["batch_wait_timeout_s", "batch_wait_timeout_ms"], {}),
        (
            ["deployments.M.user_config.batch_wait_timeout_s"],
            {"deployments.M.user_config.batch_wait_timeout_s": ("batch_wait_timeout_ms", 1000.0)},
        ),
        (["args.cpu_cores_s"], {}),
    ],
)
def test_what_a_knob_is_known_as(names: list[str], expected: dict[str, tuple[str, float]]) -> None:
    """Fails if a knob goes unrecognised, or one of several is taken for the one that is known."""
    assert known_as([Knob(name, (1, 2)) for name in names], KNOWN) == expected


def test_values_in_the_unit_that_is_known() -> None:
    """Fails if 5 ms of one space are not the 5 ms of the other, to the last bit."""
    wait, other = Knob("batch_wait_timeout_s", (0, 0.0029, 0.005, 0.02)), Knob("x", ("a", "b"), kind="categorical")
    configurations: list[Configuration] = [{"batch_wait_timeout_s": w, "x": "a"} for w in (0.005, 0.07, "unheard of")]
    knobs, told = translated([wait, other], configurations, KNOWN)
    assert knobs == [Knob("batch_wait_timeout_ms", (0, 2.9, 5.0, 20.0)), other]
    assert told == [{"batch_wait_timeout_ms": w, "x": "a"} for w in (5.0, 70.0, "unheard of")]


def test_small_values_stay_apart() -> None:
    """Fails if two values become one in the other unit: no such knob can be, and the search would end."""
    (knob,), _ = translated([Knob("batch_wait_timeout_ms", (1e-7, 2e-7))], [], ["batch_wait_timeout_s"])
    assert knob.values == (1e-10, 2e-10)


def test_words_are_no_amounts() -> None:
    """Fails if a categorical knob is multiplied."""
    assert known_as([Knob("batch_wait_timeout_s", ("auto", "none"), kind="categorical")], KNOWN) == {}
