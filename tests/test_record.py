"""Recording: resumable, raw data kept, and a set that can be replayed."""

import json
from pathlib import Path
from typing import Any

import pytest

from morphling_ray.measurement import Measurement
from morphling_ray.record import levels, measure_missing, read_raw, rounds_of, write_surfaces
from morphling_ray.space import Configuration
from morphling_ray.surface import load_surfaces

META: dict[str, Any] = {
    **{"family": "made-up", "slo_p99_ms": 100.0, "command": ["--app", "a:b"]},
    "descriptors": {"parameters": 25e6},
}
GRID: list[Configuration] = [{"cpu_cores": c, "max_batch_size": b} for c in (1, 2) for b in (1, 8)]


class Server:
    """Peak 100 RPS a core; a batch of 8 on one core does not work."""

    def __init__(self) -> None:
        self.asked: list[Configuration] = []

    def measure(self, configuration: Configuration) -> Measurement:
        self.asked.append(configuration)
        if configuration == {"cpu_cores": 1, "max_batch_size": 8}:
            return Measurement(configuration=configuration, infeasible_because="SLO missed at any rate")
        peak = 100.0 * float(configuration["cpu_cores"]) + len(self.asked)  # repeats differ
        return Measurement(configuration=configuration, metrics={"peak_rps": peak, "capacity_rps": 2 * peak})


def test_a_recording_goes_on_where_it_stopped_and_becomes_a_surface(tmp_path: Path) -> None:
    """Fails if a configuration is measured twice after a restart, if half a line breaks it, or if repeats are lost."""
    raw = tmp_path / "raw" / "task.jsonl"
    raw.parent.mkdir()
    server, told = Server(), []
    rounds = [(c, r) for r in range(2) for c in GRID]

    def tell(done: int, measurement: Measurement, seconds: float) -> None:
        told.append(done)

    measure_missing(raw, rounds[:5], server.measure, tell, META)
    with raw.open("a") as file:
        file.write('{"configuration": {"cpu_co')  # killed in the middle of a line
    assert len(read_raw(raw)) == 5
    measure_missing(raw, rounds, server.measure, tell, META)
    assert len(server.asked) == 8
    assert told == list(range(1, 9))
    assert len(read_raw(raw)) == 8

    write_surfaces(tmp_path)
    surfaces = load_surfaces(tmp_path)
    surface = surfaces.task("task")
    assert surface.family == "made-up"
    assert surface.constants == {"parameters": 25e6}
    assert len(surface.space) == 4
    assert surface.feasible.sum() == 3
    objective = surfaces.objective("rps_per_dollar", "task")
    index = surface.space.index({"cpu_cores": 1, "max_batch_size": 1})
    first, again = 100.0 + 1, 100.0 + 5
    assert surface.metrics["peak_rps"][index] == pytest.approx((first * again) ** 0.5)
    value = objective(surface.columns, surface.metrics)
    assert value[index] == pytest.approx((first * again) ** 0.5 / 0.22)


def test_a_sample_and_who_is_measured_again_are_drawn_once() -> None:
    """Fails if a recording that goes on draws others, or if those that are measured again were never measured."""
    space: list[Configuration] = [{"cpu_cores": c, "max_batch_size": b} for c in (1, 2) for b in range(1, 21)]
    drawn = rounds_of(space, 10, 2, 3, seed=1)
    assert drawn == rounds_of(space, 10, 2, 3, seed=1)
    assert drawn != rounds_of(space, 10, 2, 3, seed=2)
    rounds = [[c for c, number in drawn if number == n] for n in range(3)]
    assert [len(r) for r in rounds] == [10, 10, 3]
    assert rounds[0] == rounds[1]
    assert all(c in rounds[0] for c in rounds[2])
    cores = [c["cpu_cores"] for c in rounds[0]]
    assert cores == sorted(cores)  # a replica restarts once
    assert [c for c, _ in rounds_of(space, None, 1, 0, seed=0)] == space


def test_tasks_with_bounds_and_machines_of_their_own_are_told(tmp_path: Path) -> None:
    """Fails if the first task speaks for all of them."""
    for task, slo, cpu in (("a", 50.0, "one make"), ("b", 1000.0, "another")):
        raw = tmp_path / "raw" / f"{task}.jsonl"
        raw.parent.mkdir(exist_ok=True)
        measure_missing(raw, [(GRID[0], 0)], Server().measure, lambda *_: None, {**META, "slo_p99_ms": slo})
        raw.write_text(json.dumps({**read_raw(raw)[0], "cpu": cpu}) + "\n")
    write_surfaces(tmp_path)
    about = load_surfaces(tmp_path).about
    assert "p99 <= 50 to 1000 ms" in about
    assert "(another or one make)" in about


def test_a_slow_round_does_not_make_its_configurations_look_slow() -> None:
    """Fails if repeats are averaged as they are: b is twice a, and was measured once more when all was half as fast."""
    peaks = {"a": {0: 100.0, 1: 100.0}, "b": {0: 200.0, 1: 200.0, 2: 100.0}, "c": {0: 150.0, 2: 75.0}}
    cells = [[{"repeat": r, "metrics": {"peak_rps": y}} for r, y in rounds.items()] for rounds in peaks.values()]
    found = levels([*cells, [{"repeat": 0, "metrics": {}}]], "peak_rps")
    assert found[1] / found[0] == pytest.approx(2.0)
    assert found[2] / found[0] == pytest.approx(1.5)
    assert found[3] != found[3]  # never measured: NaN


def test_a_broken_line_in_the_middle_is_an_error(tmp_path: Path) -> None:
    """Fails if data is dropped in silence."""
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\n{"b\n' + json.dumps({"c": 2}) + "\n")
    with pytest.raises(Exception, match="line 2: not JSON"):
        read_raw(path)
