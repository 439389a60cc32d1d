"""The benchmark of many nodes: its clock is simulated, and what it drives is real."""

from pathlib import Path

import pytest

from experiments import scaling
from morphling_ray.measurement import Measurement, Trial
from morphling_ray.store import RunDirectory


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
