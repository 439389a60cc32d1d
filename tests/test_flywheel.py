"""What earlier searches are worth: the benchmark on made-up models, each a family of its own."""

import json
from pathlib import Path

import numpy as np
import pytest
from synthetic import KNOBS, SPACE, Task

from experiments import flywheel
from experiments.comparison.datasets import Dataset
from morphling_ray.surface import Surface, SurfaceSet, save_surfaces


def recorded(folder: Path, families: list[str]) -> Path:
    surfaces = {}
    for i, family in enumerate(families):
        taught = Task(i).training()
        surfaces[taught.task] = Surface(taught.task, family, SPACE, taught.metrics, taught.feasible)
    everything = SurfaceSet(
        name="made-up",
        about="",
        source="",
        licence="",
        knobs=KNOBS,
        better={"rps": "higher", "latency_ms": "lower"},
        missing="infeasible",
        cost="0.5 + cores",
        objectives={"value": {"maximize": "rps / cost", "subject_to": ["latency_ms <= 100"]}},
        surfaces=surfaces,
    )
    folder.mkdir()
    save_surfaces(folder, everything)
    return folder


@pytest.mark.timeout(120)
def test_earlier_searches_shorten_the_next_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fails if what earlier searches found does not reach the next one, or makes it no shorter."""
    folder, out = recorded(tmp_path / "made-up", [f"family-{i}" for i in range(7)]), tmp_path / "flywheel.jsonl"
    argv = ["--surfaces", str(folder), "--objective", "value", "--seeds", "1", "--processes", "1", "--out", str(out)]
    assert flywheel.main(argv) == 0
    lines = [json.loads(text) for text in out.read_text().splitlines()]
    assert [line["known"] for line in lines] == [0, 1, 2, 5], "six others are known at the most"
    assert all(len(line["samples"]) == 7 for line in lines)
    assert np.mean(lines[-1]["samples"]) < np.mean(lines[0]["samples"])
    assert "| 5 |" in capsys.readouterr().out


def test_a_finished_search_is_what_it_measured(tmp_path: Path) -> None:
    dataset = Dataset.open(recorded(tmp_path / "made-up", ["a", "b"]))
    found = flywheel.finished(dataset, "value", "task-1", 0)
    assert found is not None
    assert (found.task, found.family, len(found.configurations)) == ("task-1", "b", flywheel.TRIALS)
    assert set(found.metrics) == {"rps", "latency_ms"}
    assert found.metrics["rps"][found.feasible].min() > 0


def test_one_family_has_nothing_to_learn_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = recorded(tmp_path / "made-up", ["a", "a"])
    assert flywheel.main(["--surfaces", str(folder), "--objective", "value"]) == 2
    assert "one family only" in capsys.readouterr().err
