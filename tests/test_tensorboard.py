"""Event files for TensorBoard, read back as TensorBoard reads them."""

import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from morphling_ray.measurement import Measurement, Trial
from morphling_ray.report import main
from morphling_ray.store import RunDirectory

# The library loads torch, whose own warnings are none of ours.
pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning"), pytest.mark.timeout(120)]
SECRET = "***1"


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run of three trials, of which the second is infeasible."""
    directory = RunDirectory.create(tmp_path / "run")
    directory.write_experiment({"app": "a:b", "objective": "rps_per_dollar", "max_trials": 3})
    for number, peak in ((1, 50.0), (2, None), (3, 80.0)):
        measurement = Measurement(
            configuration={"batch": 2**number, "wait_ms": 0.5, "fast": True, "API_TOKEN": SECRET},
            metrics={"peak_rps": peak} if peak else {},
            infeasible_because="" if peak else "out of memory on load",
            details={"cost_per_hour": 0.25},
        )
        objective = peak and peak / 0.25
        directory.append_trial(
            Trial(number=number, stage="search", measurement=measurement, objective=objective, started_s=0, seconds=9.5)
        )
    return tmp_path / "run"


def events(folder: Path) -> Iterator["object"]:
    """All events of the one file of a folder: records of a length, its checksum, the event and its checksum."""
    from tensorboardX.proto.event_pb2 import Event

    (file,) = folder.glob("events.out.tfevents.*")
    data = file.read_bytes()
    at = 0
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        yield Event.FromString(data[at + 12 : at + 12 + length])
        at += 16 + length


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """Value of each scalar by step."""
    found: dict[str, dict[int, float]] = {}
    for event in events(folder):
        for value in event.summary.value:  # type: ignore[attr-defined]
            if value.WhichOneof("value") == "simple_value":
                found.setdefault(value.tag, {})[event.step] = value.simple_value  # type: ignore[attr-defined]
    return found


def test_what_tensorboard_reads(run_dir: Path) -> None:
    """Fails if a trial is missing, at another step, has another value, or the infeasible one has an objective."""
    assert main([str(run_dir), "--tensorboard"]) == 0
    found = scalars(run_dir / "tensorboard")
    assert found["trial/objective"] == {1: 200.0, 3: 320.0}
    assert found["trial/peak_rps"] == {1: 50.0, 3: 80.0}
    assert found["trial/cost_per_hour"] == {1: 0.25, 2: 0.25, 3: 0.25}
    assert found["search/best_objective"] == {1: 200.0, 2: 200.0, 3: 320.0}
    assert found["search/trial_seconds"] == {1: 9.5, 2: 9.5, 3: 9.5}


def test_configurations_are_hyper_parameters(run_dir: Path) -> None:
    """Fails if a knob's value or kind is lost, or an infeasible trial appears among those that have an objective."""
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

    assert main([str(run_dir), "--tensorboard"]) == 0
    folders = sorted(p.name for p in (run_dir / "tensorboard").iterdir() if p.is_dir())
    assert folders == ["trial-1", "trial-3"]
    knobs = {}
    for event in events(run_dir / "tensorboard" / "trial-3"):
        for value in event.summary.value:  # type: ignore[attr-defined]
            if value.tag == "_hparams_/session_start_info":
                data = HParamsPluginData.FromString(value.metadata.plugin_data.content)
                knobs = {k: getattr(v, v.WhichOneof("kind")) for k, v in data.session_start_info.hparams.items()}
    assert knobs == {"batch": 8.0, "wait_ms": 0.5, "fast": True, "API_TOKEN": SECRET}
    assert scalars(run_dir / "tensorboard" / "trial-3")["trial/objective"] == {3: 320.0}


def test_it_is_written_anew_and_only_when_asked_for(run_dir: Path) -> None:
    """Fails if every report makes event files, or a second call adds to those of the first one."""
    assert main([str(run_dir)]) == 0
    assert not (run_dir / "tensorboard").exists()
    for _ in range(2):
        assert main([str(run_dir), "--tensorboard"]) == 0
    assert scalars(run_dir / "tensorboard")["trial/peak_rps"] == {1: 50.0, 3: 80.0}


def test_the_report_alone_loads_none_of_it() -> None:
    """Fails if a report, or the end of a search, waits for torch because of TensorBoard."""
    code = "import sys, morphling_ray.report; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert not {"torch", "tensorboardX"} & set(done.stdout.split())
