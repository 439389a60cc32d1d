import json
import re
from pathlib import Path

import numpy as np
import pytest
from synthetic import KNOBS, OBJECTIVE, SPACE, Task

from morphling_ray.measurement import Measurement, Trial
from morphling_ray.meta.prior import Prior
from morphling_ray.search import make_sampler
from morphling_ray.space import Configuration
from morphling_ray.store import RunDirectory
from morphling_ray.surface import Surface, SurfaceSet, save_surfaces
from morphling_ray.train import main


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five recorded tasks, in two families."""
    surfaces = {}
    for i in range(5):
        taught = Task(i).training()
        family = f"family-{i % 2}"
        surfaces[taught.task] = Surface(taught.task, family, SPACE, taught.metrics, taught.feasible)
    everything = SurfaceSet(
        name="made-up",
        about="",
        source="",
        licence="",
        knobs=KNOBS,
        better={"rps": "higher", "latency_ms": "lower"},
        missing="infeasible",
        cost=None,
        objectives={},
        surfaces=surfaces,
    )
    save_surfaces(tmp_path / "surfaces", everything)
    return tmp_path / "surfaces"


def run_directory(path: Path, task: Task) -> Path:
    """A finished search: three values, a failure and a rejected trial."""
    directory = RunDirectory.create(path)
    directory.write_experiment({"app": "shop:app"})
    small: list[Configuration] = [{"batch": 1, "cores": n, "build": "fast"} for n in (1, 2, 4)]
    measured = [task.measure(c) for c in small]
    there: Configuration = {"batch": 32, "cores": 1, "build": "fast"}
    measured.append(Measurement(configuration=there, infeasible_because="out of memory"))
    there = {"batch": 8, "cores": 1, "build": "fast"}
    metrics = {"rps": 1e-3, "latency_ms": 9.0}
    measured.append(
        Measurement(configuration=there, metrics=metrics, bounds={"rps": (1e-3, 80.0), "latency_ms": (9.0, 10.0)})
    )
    for number, measurement in enumerate(measured, start=1):
        trial = Trial(
            number=number, stage="search", measurement=measurement, objective=None, started_s=0.0, seconds=1.0
        )
        directory.append_trial(trial)
    return path


def test_trains_from_surfaces_and_runs(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fails if a held-out family leaks, a run directory is not learned from, or a rejected trial counts as a value."""
    run, out = run_directory(tmp_path / "run", Task(9)), tmp_path / "prior.npz"
    argv = [
        "--surfaces",
        str(folder),
        "--run-dir",
        str(run),
        "--out",
        str(out),
        "--hold-out",
        "family-1",
        "--seed",
        "3",
    ]
    assert main(argv) == 0
    learned = Prior.load(out)
    assert learned.tasks == ("task-0", "task-2", "task-4", "shop:app (run)")
    assert learned.about["sets"] == ["surfaces", "run"]
    assert learned.about["held_out"] == ["family-1"]
    rejected = learned.surfaces([{"batch": 8, "cores": 1, "build": "fast"}], ["rps"])[-1, 0, 0]
    assert np.exp(rejected) > 10.0
    printed = capsys.readouterr().out
    assert "learned from 4 tasks of 2 families" in printed
    assert "without a prior" in printed
    configuration = make_sampler("morphling", SPACE, OBJECTIVE, seed=0, prior=out).suggest()
    assert configuration in SPACE if configuration else False
    json.dumps(dict(learned.about))


def test_a_folder_of_runs_is_learned_from_and_the_same_data_give_the_same_file(tmp_path: Path) -> None:
    """Fails if a run in the folder is left out, something else there is taken for one, or the file holds a date."""
    runs = tmp_path / "runs"
    for number in (1, 2):
        run_directory(runs / f"{number}", Task(number))
    (runs / "notes").mkdir()
    outs = [tmp_path / f"{name}.npz" for name in "ab"]
    for out in outs:
        assert main(["--from", str(runs), "--out", str(out)]) == 0
    learned = Prior.load(outs[0])
    assert learned.tasks == ("shop:app (1)", "shop:app (2)")
    assert outs[0].read_bytes() == outs[1].read_bytes()
    assert "date" not in learned.about


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "nothing to learn from"),
        (["--surfaces", "nowhere"], "nowhere"),
        (["--run-dir", "nowhere"], "nowhere"),
        (["--from", "{folder}"], "is not a run directory"),
        (["--surfaces", "{folder}", "--hold-out", "typo"], "typo"),
        (["--surfaces", "{folder}", "--hold-out", "family-0", "--hold-out", "family-1"], "nothing to learn from"),
        (["--surfaces", "{folder}", "--seed", "-1"], "--seed"),
    ],
)
def test_wrong_input_is_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    """Fails if a mistake of the user ends in a traceback, or leaves a file behind."""
    out = tmp_path / "prior.npz"
    assert main([*(a.format(folder=folder) for a in argv), "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not out.exists()


def test_a_folder_that_does_not_exist(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fails if the mistake is only found after minutes of training."""
    assert main(["--surfaces", str(folder), "--out", str(tmp_path / "none" / "prior.npz")]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_the_bundled_prior_is_what_the_makefile_makes_of_the_committed_surfaces(tmp_path: Path) -> None:
    """Fails if surfaces or the method changed and nobody trained again; other processors differ in the last digits."""
    command = re.search(r"morphling_ray\.train (.*) --out (\S+)", Path("Makefile").read_text())
    assert command is not None
    assert main([*command[1].split(), "--out", str(tmp_path / "again.npz")]) == 0
    again, bundled = Prior.load(tmp_path / "again.npz"), Prior.load(Path(command[2]))
    assert {"cpu_cores", "max_batch_size", "gpu_memory", "gpu_share"} <= {code.name for code in bundled.encoding.codes}
    assert again.tasks == bundled.tasks
    assert not any("demo" in name for name in bundled.tasks)
    assert again.about == bundled.about
    for name in ("centres", "taught", "smooth_lengths", "correlation", "outcomes", "offset_sd"):
        assert getattr(again, name) == pytest.approx(getattr(bundled, name), abs=1e-3), name
    for task in bundled.earlier[::5]:
        one, other = (prior.surfaces(task.configurations, prior.metrics) for prior in (again, bundled))
        assert one == pytest.approx(other, abs=1e-4), task.task
    assert again.bottlenecks is not None
    assert bundled.bottlenecks is not None
    for name, values in vars(again.bottlenecks).items():
        assert values == pytest.approx(getattr(bundled.bottlenecks, name), abs=1e-3), name
    assert Path(command[2]).stat().st_size < 2e6
