"""What cannot work gets one clear line and status 2, and leaves nothing."""

import json
from pathlib import Path

import pytest

from morphling_ray.tune import main

APPS = Path(__file__).parent / "apps"
BROKEN = str(APPS / "broken.py")
BATCHED = str(APPS / "batched.py")


@pytest.mark.parametrize(
    ("arguments", "file", "said"),
    [
        (["--searcher", "magic"], "", "unknown searcher 'magic'; choose morphling"),
        (["--slo-p99-ms", "0"], "", "latency must be above 0 ms, got 0 ms"),
        (["--slo-p50-ms", "200"], "", "median must be above 0 ms and at most the bound of p99, got 200 ms"),
        (["--slo-p99-tpot-ms", "20"], "", "goes with one for the first token; got 20 ms"),
        (["--slo-p99-ttft-ms", "200", "--closed-loop"], "", "do not go with --closed-loop"),
        ([], "mps: maybe", "unknown mps 'maybe'"),
        (["--prices", "azure"], "", "price file"),
        (["--slo-p50-ms", "20", "--loadgen"], "", "leave --slo-p50-ms out"),
        (["--max-error-rate", "1"], "", "error rate must lie in [0, 1), got 1"),
        (["--max-trials", "0"], "", "max_trials must be at least 1, got 0"),
        (["--time-budget", "-1"], "", "time_budget must be above 0"),
        (["--stop-probability", "90"], "", "stop_probability must lie between 0 and 1, got 90"),
        (["--objective", "cheapest"], "", "needs a rate to sustain: --target-rps"),
        (["--app", "no_such_module:app"], "", "does not import: ModuleNotFoundError: No module named 'no_such_module'"),
        (["--app", "json:nothing"], "", "module json has no 'nothing'"),
        (["--app", "json"], "", "write module:attribute"),
        (["--app", "missing/file.py:app"], "", "there is no file missing/file.py"),
        (["--app", f"{BROKEN}:number"], "", "is not a Serve application but int"),
        (["--app", f"{BROKEN}:unbound"], "", "is a deployment, not an application: bind it"),
        (["--app", f"{BROKEN}:builds_nothing"], "", "does not build: TypeError"),
        (["--request", "not_json.json"], "", "not_json.json is not JSON"),
        (["--request", "nowhere.json"], "", "nowhere.json: No such file"),
        (["--request", "json:nothing"], "", "AttributeError"),
        (["--prices", "nowhere.yaml"], "", "price file"),
        (["--prior", "nowhere.npz"], "", "nowhere.npz does not exist"),
        (["--prior", "not_json.json"], "", "is not a prior"),
        (["--run-dir", "occupied"], "", "exists and is not ours"),
        (["--resume", "occupied"], "", "there is no run to go on with"),
        (["--replay", "nowhere", "--task", "t", "--objective-name", "o"], "", "surfaces.yaml"),
        (["--replay", "nowhere"], "", "needs --task NAME and --objective-name NAME"),
        (["--task", "t"], "", "go with --replay"),
        (["--loadgen", "--replay", "x", "--task", "t", "--objective-name", "o"], "", "leave --replay out"),
        (["--grpc-servicer", "module:function"], "", "gRPC takes both"),
        ([], "closed_loop: 3", "closed_loop must be true or false, got 3"),
        (["--experiment", "nowhere.yaml"], "", "nowhere.yaml: No such file"),
        ([], "space: {no_such_knob: [1, 2]}", "unknown knob 'no_such_knob': the application takes cpu_cores"),
        ([], "space: {}", "space must map knob names"),
        ([], "space: {max_batch_size: []}", "knob 'max_batch_size' has no values"),
        ([], "space: {max_batch_size: [1, 1]}", "lists a value twice"),
        ([], "space: {max_batch_size: 8}", "expected a list of values"),
        ([], "space: {cpu_cores: [0]}", "takes numbers of cores above 0, got 0"),
        ([], "space: {cpu_cores: [1]}\nconstraints: ['cpu_cores > 3']", "no configuration satisfies cpu_cores > 3"),
        ([], "space: {cpu_cores: [1]}\nconstraints: ['cores > 3']", "names cores; the knobs are cpu_cores"),
        ([], "space: {cpu_cores: [1]}\nconstraints: ['__import__(\"os\")']", "only numbers, names"),
        ([], "space: {gpu_type: [T4, B7000], max_batch_size: [1]}", "no price for GPU type B7000"),
        ([], "descriptors: {parameters: many}", "descriptors must map names to numbers above 0"),
        ([], "max_trails: 3", "unknown key 'max_trails'; did you mean 'max_trials'?"),
        ([], "max_trials: many", "max_trials must be a whole number, got 'many'"),
        ([], "slo_p99_ms: true", "slo_p99_ms must be a number, got True"),
        ([], "objective: fastest", "unknown objective 'fastest'"),
        ([], "- a\n- b", "expected `setting: value` lines"),
        ([], "a: [1", "is not YAML"),
        ([], f"app: {BATCHED}:app\nspace: {{precision: [a, b]}}", "unknown knob 'precision'"),
    ],
)
def test_one_clear_line(
    arguments: list[str],
    file: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Fails if the check is missing (the run would then start Ray, which the tests forbid), or says something else."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "not_json.json").write_text("{")
    (tmp_path / "occupied").mkdir()
    (tmp_path / "occupied" / "thesis.txt").write_text("important")
    if file:
        (tmp_path / "experiment.yaml").write_text(file)
        arguments = [*arguments, "--experiment", "experiment.yaml"]
    present = {p.name for p in tmp_path.iterdir()}
    assert main(arguments) == 2
    out, err = capfd.readouterr()
    assert said in err
    assert len(err.strip().splitlines()) == 1
    assert "Traceback" not in err
    assert out == ""
    assert {p.name for p in tmp_path.iterdir()} == present


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--max-trials", "many"], "argument --max-trials: invalid int value: 'many'"),
        (["--objective", "fastest"], "invalid choice: 'fastest'"),
        (["--max-trails", "3"], "unrecognized arguments: --max-trails 3"),
    ],
)
def test_a_flag_that_is_wrong_gets_one_line_too(
    arguments: list[str], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Fails if argparse's whole usage is printed."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    _, err = capfd.readouterr()
    assert said in err
    assert len(err.strip().splitlines()) == 1


def test_a_dry_run_says_the_plan_and_starts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Fails if a dry run starts Ray (forbidden here), or leaves a run directory."""
    monkeypatch.chdir(tmp_path)
    assert main(["--dry-run"]) == 0
    out, err = capfd.readouterr()
    plan = json.loads(out)
    assert plan["configurations"] == len(plan["space"]["cpu_cores"]) * 36
    assert plan["present"] == plan["proposals"][0]
    assert len({str(p) for p in plan["proposals"]}) == 3
    assert 0 < plan["expected_seconds"][0] <= plan["expected_seconds"][1]
    assert 0 < plan["expected_dollars"][0] < 1
    assert f"{plan['configurations']} configurations" in err
    assert "Then morphling would try:" in err
    assert "12 trials: about" in err
    assert list(tmp_path.iterdir()) == []
