"""The benchmark of many nodes: its clock is simulated, and what it drives is real."""

from pathlib import Path

import numpy as np
import pytest

from experiments import scaling
from morphling_ray.cluster import quoted_python
from morphling_ray.evaluate.replay import ReplayEvaluator
from morphling_ray.measurement import Measurement, Trial
from morphling_ray.objective import ExpressionObjective
from morphling_ray.search import SEARCHERS
from morphling_ray.search.session import SearchSession
from morphling_ray.space import Configuration, Knob, SearchSpace
from morphling_ray.store import RunDirectory
from morphling_ray.surface import Surface


def test_more_nodes_take_less_time(
    surfaces: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails if nodes do not work at the same time, or if a search never ends."""
    monkeypatch.setattr(scaling, "PENDING", (0, 3))
    monkeypatch.setattr(scaling, "STORED", 20)
    command = ["--surfaces", str(surfaces), "--objective", "value", "--searcher", "grid", "--nodes", "1", "5"]
    assert scaling.main([*command, "--trials", "15", "--seeds", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    one, five = (line.split() for line in lines[2:4])
    assert (one[0], five[0]) == ("1", "5")
    assert float(one[-1]) == 1.0
    assert float(five[-1]) > 2.0, "speed-up"
    assert lines[-1].startswith("20 trials stored")


@pytest.mark.serve
@pytest.mark.timeout(120)
@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")
@pytest.mark.skipif(quoted_python() is not None, reason="a cluster of Ray's own starts no worker by such a path")
def test_rays_own_nodes(surfaces: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if Tune and lanes do not use both nodes, or if a trial does not end."""
    monkeypatch.setattr(scaling, "SHORT_S", 1.0)
    command = ["--surfaces", str(surfaces), "--objective", "value", "--searcher", "grid", "--ray-nodes", "2"]
    assert scaling.main([*command, "--trials", "7"]) == 0
    nodes, per_minute, _ = capsys.readouterr().out.splitlines()[-1].split()
    assert nodes == "2"
    assert 65 < float(per_minute) < 240  # one node has 60 at the most, if its trials are not the short ones


def test_types_of_gpus_are_waited_for() -> None:
    """Fails if a trial runs on a node of another type: all but one of these want the same."""
    knobs = [Knob.infer("gpu_type", ["A", "B"]), Knob.infer("size", list(range(1, 17)))]
    held: list[Configuration] = [{"gpu_type": "A" if size > 1 else "B", "size": size} for size in range(1, 17)]
    space = SearchSpace(knobs, [], held)
    rps = np.array([float(c["size"]) for c in space.configurations])
    surface = Surface(task="a", family="a", space=space, metrics={"rps": rps}, feasible=np.ones(16, bool))
    goal = ExpressionObjective("rps", "rps", [], metrics=("rps",))
    seconds = {}
    for nodes in (2, 4):
        session = SearchSession(
            space,
            goal,
            SEARCHERS["grid"].make(space, goal, seed=0, learned=None),
            max_trials=16,
            time_budget_s=None,
            clock=lambda: 0.0,
            confirm=0,
            give_up_after=0,
        )
        found = scaling.simulate(session, ReplayEvaluator(surface, goal, seed=0), goal, nodes, 0)
        seconds[nodes] = found.seconds / found.trials
    assert seconds[2] > 0.8 * scaling.TRIAL_S
    assert seconds[4] < 0.7 * seconds[2]


@pytest.mark.parametrize("cut", [0, 1, 40, 10**6])
def test_the_store_reads_the_end_only(cut: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if a long last line, or half a one, is not found from the end of the file."""
    monkeypatch.setattr("morphling_ray.store.TAIL_BYTES", 64)
    directory = RunDirectory(tmp_path)

    def trial(number: int) -> Trial:
        measurement = Measurement(configuration={"size": 1}, metrics={"peak_rps": 1.0}, notes=("x" * 500,))
        return Trial(number=number, stage="search", measurement=measurement, objective=1.0, started_s=0.0, seconds=1.0)

    for number in (1, 2, 3):
        directory.append_trial(trial(number))
    file = tmp_path / "trials.jsonl"
    content = file.read_bytes()
    file.write_bytes(content[: max(0, len(content) - cut)])
    kept = {0: 3, 1: 3, 40: 2, 10**6: 0}[cut]
    directory.append_trial(trial(4))
    assert [t.number for t in directory.trials()] == [*range(1, kept + 1), 4]
