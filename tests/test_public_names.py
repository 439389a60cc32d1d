import importlib
import sys
import types

import pytest

import morphling_ray
from morphling_ray.__main__ import VERBS, main


def test_every_public_name_is_there_and_none_is_forgotten() -> None:
    """Fails if `__all__`, the table of lazy names and what modules define fall apart."""
    for name in morphling_ray.__all__:
        value = getattr(morphling_ray, name)
        if name != "__version__":
            home = importlib.import_module(f"morphling_ray.{morphling_ray._MODULE_OF[name]}")
            if name == "tune" and isinstance(value, types.ModuleType):  # a test has imported it, see test_api.py
                assert callable(value)
                continue
            assert getattr(home, name) is value
            assert value.__module__ == home.__name__
    assert set(morphling_ray._MODULE_OF) | {"__version__"} == set(morphling_ray.__all__)
    assert set(morphling_ray.__all__) <= set(dir(morphling_ray))


def test_unknown_name() -> None:
    """Fails if a KeyError escapes from the module: `hasattr` and `from ... import` rely on AttributeError."""
    assert not hasattr(morphling_ray, "Knobs")


@pytest.mark.parametrize("verb", ["tune", "record", "train", "report", "export"])
def test_a_verb_gets_the_rest_of_the_line_and_its_status_is_returned(
    verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails if the verb itself is passed on, or the exit status is lost."""
    got: list[list[str]] = []
    module = types.ModuleType(f"morphling_ray.{verb}")

    def verb_main(argv: list[str]) -> int:
        got.append(argv)
        return 3

    module.main = verb_main  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, f"morphling_ray.{verb}", module)
    assert main([verb, "--seed", "1"]) == 3
    assert got == [["--seed", "1"]]


@pytest.mark.parametrize("words", [[], ["tun"], ["--replay"], ["os"]])
def test_no_such_verb(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Fails if any module can be named as a verb, or the message does not list them."""
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "choose tune, record, train, report, export" in err
    assert err.count("\n") == 1


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    """Fails if a verb is missing from the help."""
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {verb}" in out for verb in VERBS)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == morphling_ray.__version__
