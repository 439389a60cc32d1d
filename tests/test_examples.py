"""Every example is tuned by the command that its README names, and what comes out answers."""

import json
import shlex
from pathlib import Path

import cli
import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

EXAMPLES = Path(__file__).parents[1] / "examples"
COMMANDS = {
    line.split("](")[0].split("[")[1]: shlex.split(line.split("`")[-2])
    for line in (EXAMPLES / "README.md").read_text().splitlines()
    if "python -m morphling_ray.tune" in line
}

pytestmark = [pytest.mark.serve, pytest.mark.timeout(180)]


def test_every_example_has_a_command() -> None:
    """Fails if an example is added that nobody runs."""
    assert set(COMMANDS) == {path.name for path in EXAMPLES.glob("*.py")}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.timed
def test_an_example_is_tuned(tmp_path: Path, name: str) -> None:
    """Fails if an application as people have it needs more than its one command."""
    for path in EXAMPLES.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    arguments = COMMANDS[name][3:]
    finished = cli.tune(tmp_path, *arguments, "--max-trials", "2", "--run-dir", "out", timeout_s=150)
    assert finished.status == 0, finished.stderr
    assert finished.result["peak_rps"] > 5
    trials = cli.lines(tmp_path / "out" / "trials.jsonl")
    assert not any(t["infeasible_because"] for t in trials), trials
    config = yaml.safe_load((tmp_path / "out" / "serve_config.yaml").read_text())
    ServeDeploySchema.model_validate(config)
    outcome = json.loads((tmp_path / "out" / "recommendation.json").read_text())
    assert outcome["baseline"]["peak_rps"] > 0  # what runs today was measured
    if name == "vision.py":
        assert trials[0]["details"]["batches_formed"] == "blocking"
    if name == "chat.py":
        (found,) = [t for t in trials if t["configuration"] == finished.result["configuration"]][-1:]
        judged = [p for p in found["probes"] if p["kind"] == "open"]
        assert all(0 < p["tpot_s"] < p["ttft_s"] and p["mean_s"] > 5 * p["tpot_s"] for p in judged), judged
        assert "TPOT" in outcome["summary"]
    if name == "spam.py":
        text = (tmp_path / "out" / "serve_config.yaml").read_text()
        assert "# How we run it today." in text
        assert "# it hardly computes" in text
        assert (tmp_path / "out" / "serve_config.diff").read_text()[:3] in ("", "---")
