import json
from dataclasses import asdict
from pathlib import Path

import pytest

from experiments import choose_maml
from experiments.comparison.planning import Unit
from experiments.comparison.settings import Settings
from morphling_ray.meta.maml import MamlSettings


def command(surfaces: Path, out: Path, *more: str) -> list[str]:
    return ["--surfaces", str(surfaces), "--objective", "value", "--out", str(out), "--budget", "4", *more]


def test_a_better_value_is_kept_and_every_one_is_recorded(
    surfaces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fails if a worse value is kept, a setting forgets the ones before it, or a line lacks what it was scored on."""

    def scripted(settings: Settings, candidate: MamlSettings, unit: Unit) -> list[list[float]]:
        near = 1.0 - 0.1 * abs(candidate.delta - 0.3) - 0.5 * (candidate.mean == "before")
        return [[near] * settings.budget for _ in unit.tasks]

    monkeypatch.setattr(choose_maml, "qualities_of", scripted)
    out = tmp_path / "out.jsonl"
    begin = ["--only", "delta,mean,corners", "--begin", '{"delta": 9.0, "mean": "after", "corners": false}']
    assert choose_maml.main(command(surfaces, out, *begin)) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["varied"] for line in lines][:2] == ["begin", "delta=0.0"]
    assert lines[0]["score"] == pytest.approx(0.13)
    assert lines[-1]["settings"]["delta"] == 0.3
    assert {line["settings"]["mean"] for line in lines if not line["varied"].startswith("mean")} == {"after"}
    assert lines[0]["held_out"] == ["made-up/large", "made-up/small"]
    assert str(tmp_path) not in out.read_text()
    best = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert best["delta"] == 0.3
    assert best["mean"] == "after"


def test_the_held_out_family_is_searched_with_what_the_others_taught(surfaces: Path, tmp_path: Path) -> None:
    """Fails if a setting of training or of the search does not reach what it is a setting of."""
    out = tmp_path / "out.jsonl"
    begin = ["--only", "corners", "--families", "1", "--begin", '{"episodes": 2, "corners": false}']
    assert choose_maml.main(command(surfaces, out, *begin)) == 0
    first, corners = (json.loads(line) for line in out.read_text().splitlines())
    assert first["tasks"] == 1
    assert first["score"] != corners["score"]


def test_an_unknown_setting(surfaces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fails if it is not refused in one line that helps."""
    assert choose_maml.main(command(surfaces, tmp_path / "out.jsonl", "--only", "gamma")) == 2
    assert "--only gamma: choose of online_steps" in capsys.readouterr().err


def test_the_defaults_are_what_was_chosen() -> None:
    """Fails if a default is changed by hand, or the recorded choice is another one's."""
    file = Path(choose_maml.__file__).parent / "results" / "maml_choice.jsonl"
    tried = [json.loads(line) for line in file.read_text().splitlines()]
    assert max(tried, key=lambda line: line["score"])["settings"] == asdict(MamlSettings())
