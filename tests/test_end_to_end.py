"""The main job as a user runs it, on a real local Ray cluster, and what it leaves."""

import json
import os
import signal
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import cli
import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

pytestmark = [pytest.mark.serve, pytest.mark.timeout(300)]


def post(port: int, path: str, payload: Any) -> Any:
    """Answer to a JSON request; None while nobody answers."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", json.dumps(payload).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=5) as response:
            return json.loads(response.read())
    except OSError:
        return None


@pytest.mark.timed
def test_the_demo_is_tuned_and_its_serve_config_serves(tmp_path: Path) -> None:
    """The main job without arguments but for a few trials; then `serve run` brings up what it recommends.

    From an environment whose path has a space. Fails if any file of the run directory is missing or wrong, if a process
    or a file is left behind, if the config does not serve, or if Ray's workers cannot be started under such a path.
    """
    before = cli.ray_processes()
    bin_folder = cli.spaced_environment(tmp_path)
    finished = cli.tune(tmp_path, "--max-trials", "5", "--run-dir", "out", python=bin_folder / "python")
    assert finished.status == 0, finished.stderr
    result, out = finished.result, tmp_path / "out"
    assert set(result) >= {"run_dir", "configuration", "peak_rps", "objective", "trials", "seconds"}
    assert result["run_dir"] == str(out)
    assert result["peak_rps"] > 10

    assert cli.ray_processes() <= before
    names = {p.name for p in out.iterdir()}
    assert names == {
        *("experiment.yaml", "trials.jsonl", "recommendation.json", "serve_config.yaml", "report.html", "ray.log")
    }
    assert list((tmp_path / "home").iterdir()) == []
    trials = cli.lines(out / "trials.jsonl")
    assert len(trials) in (4, 5)  # one or two finalists are confirmed
    assert [t["number"] for t in trials] == list(range(1, result["trials"] + 1))
    assert trials[0]["configuration"] == {  # the present configuration comes first
        **{"cpu_cores": 1, "max_batch_size": 1, "batch_wait_timeout_ms": 0, "precision": "float32"}
    }
    for trial in trials:
        assert any(p["kind"] == "open" for p in trial["probes"])
        assert all(p["verdict"] in ("MET", "MISSED", "INVALID") for p in trial["probes"])
    assert {t["stage"] for t in trials[-1:]} == {"confirm"}
    experiment = yaml.safe_load((out / "experiment.yaml").read_text())
    assert set(experiment["space"]) == set(result["configuration"])
    recommendation = json.loads((out / "recommendation.json").read_text())
    assert recommendation["gain_over_baseline"] > 0
    assert "<html" in (out / "report.html").read_text()

    config = yaml.safe_load((out / "serve_config.yaml").read_text())
    ServeDeploySchema.model_validate(config)
    options = config["applications"][0]["deployments"][0]
    assert options["ray_actor_options"]["num_cpus"] == result["configuration"]["cpu_cores"]
    serve_run_answers(bin_folder, out, config)


def serve_run_answers(bin_folder: Path, folder: Path, config: dict[str, Any]) -> None:
    """`serve run serve_config.yaml` in the run directory, and an HTTP request to it."""
    from morphling_ray.serving.images import image_request

    before = cli.ray_processes()
    log = folder.parent / "serve.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [str(bin_folder / "python"), str(bin_folder / "serve"), "run", "serve_config.yaml"],
            cwd=folder,
            # Without an address Ray takes the last `ray start` of this machine, dead or alive.
            env={**cli.environment(folder.parent / "home"), "RAY_ADDRESS": "local"},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    port, answer = config["http_options"]["port"], []
    try:

        def answers() -> bool:
            assert process.poll() is None, log.read_text()
            answer.append(post(port, "/", image_request()))
            return answer[-1] is not None

        cli.wait_for(answers, 90, lambda: f"an answer:\n{log.read_text()[-4000:]}")
        assert set(answer[-1]) == {"class", "probability"}
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        cli.wait_for(lambda: cli.ray_processes() <= before, 30, "Ray's processes to end")


@pytest.mark.timed
def test_an_application_of_ones_own(tmp_path: Path) -> None:
    """`@serve.batch`, a request file, an experiment file. Fails if knobs do not reach the replica, or do not bind."""
    (tmp_path / "request.json").write_text("21")
    (tmp_path / "experiment.yaml").write_text(
        "app: batched:app\nrequest: request.json\nslo_p99_ms: 60\nobjective: rps\nsearcher: random\nmax_trials: 3\n"
        "space:\n  cpu_cores: [1]\n  max_batch_size: [1, 16]\n"
    )
    finished = cli.tune(tmp_path, "--experiment", "experiment.yaml", "--run-dir", "out")
    assert finished.status == 0, finished.stderr
    trials = {t["configuration"]["max_batch_size"]: t for t in cli.lines(tmp_path / "out" / "trials.jsonl")}
    assert set(trials) == {1, 16}  # two configurations are all there are: the third trial is not made
    assert finished.result["configuration"]["max_batch_size"] == 16
    capacity = {size: t["probes"][0]["achieved_rps"] for size, t in trials.items()}
    assert capacity[16] > 1.3 * capacity[1]  # batching reached the replica
    for trial in trials.values():
        assert [len(r["cores"]) for r in trial["details"]["replicas"]] == [1]


def test_an_http_application_with_two_deployments(tmp_path: Path) -> None:
    """FastAPI behind the proxy, a knob named by its place. Fails if HTTP requests or full knob names do not work."""
    (tmp_path / "request.json").write_text(
        json.dumps({"method": "POST", "path": "/score", "json": {"text": "four"}, "headers": {"X-Test": "1"}})
    )
    (tmp_path / "experiment.yaml").write_text(
        "app: web:build\nrequest: request.json\nobjective: rps\nmax_trials: 1\n"
        "space:\n  deployments.Model.max_ongoing_requests: [50]\n"
    )
    finished = cli.tune(tmp_path, "--experiment", "experiment.yaml", "--run-dir", "out")
    assert finished.status == 0, finished.stderr
    assert finished.result["peak_rps"] > 5
    config = yaml.safe_load((tmp_path / "out" / "serve_config.yaml").read_text())
    by_name = {d["name"]: d for d in config["applications"][0]["deployments"]}
    assert by_name["Model"]["max_ongoing_requests"] == 50


def test_a_grpc_application(tmp_path: Path) -> None:
    """Calls through Serve's gRPC proxy. Fails if they do not reach it, or the config would bring it up without gRPC."""
    servicer = "ray.serve.generated.serve_pb2_grpc:add_UserDefinedServiceServicer_to_server"
    (tmp_path / "experiment.yaml").write_text(
        f"app: speaking_grpc:app\nrequest: speaking_grpc:call\ngrpc_servicer: {servicer}\nobjective: rps\n"
        "max_trials: 1\nspace:\n  cpu_cores: [1]\n"
    )
    finished = cli.tune(tmp_path, "--experiment", "experiment.yaml", "--run-dir", "out")
    assert finished.status == 0, finished.stderr
    assert finished.result["peak_rps"] > 20
    config = yaml.safe_load((tmp_path / "out" / "serve_config.yaml").read_text())
    ServeDeploySchema.model_validate(config)
    assert config["grpc_options"]["grpc_servicer_functions"] == [servicer.replace(":", ".")]


@pytest.mark.timed
def test_a_closed_loop_and_loadgen(tmp_path: Path) -> None:
    """A server of 9 ms a request under two other kinds of load. Fails if either is far from what can be computed.

    One request at a time, 60 ms: six in flight wait 54 ms, at all of the capacity; Poisson arrivals reach 75 RPS.
    """
    (tmp_path / "requests.jsonl").write_text("1\n2\n")
    servers = Path(__file__).parents[1] / "benchmarks" / "servers.py"
    arguments = ["--app", f"{servers}:md1", "--request", "requests.jsonl", "--slo-p99-ms", "60"]
    (tmp_path / "experiment.yaml").write_text("space: {cpu_cores: [1]}\n")
    arguments += ["--max-trials", "1", "--objective", "rps", "--experiment", "experiment.yaml"]
    closed = cli.tune(tmp_path, *arguments, "--closed-loop", "--run-dir", "closed")
    assert closed.status == 0, closed.stderr
    assert 0.75 < closed.result["peak_rps"] / 111 < 1.1  # a machine that stalls has less of both
    checked = cli.tune(tmp_path, *arguments, "--loadgen", "--run-dir", "checked")
    assert checked.status == 0, checked.stderr
    found = json.loads((tmp_path / "checked" / "recommendation.json").read_text())["loadgen"]
    assert len(found["runs"]) == 6
    assert 0.55 < found["peak_rps"] / 75 < 1.3  # LoadGen's own repeats differ by 13 %
    assert "MLPerf LoadGen" in (tmp_path / "checked" / "report.html").read_text()


@pytest.mark.parametrize(
    ("app", "reason"),
    [
        ("broken:never_starts", "out of memory on load: MemoryError: cannot allocate 4.0 GiB"),
        ("broken:too_slow", "SLO missed at any rate"),
    ],
)
def test_nothing_feasible_ends_with_status_3_and_the_reason(tmp_path: Path, app: str, reason: str) -> None:
    """Fails if a failing candidate ends the search with a traceback, or is waited for."""
    finished = cli.tune(tmp_path, "--app", app, "--max-trials", "1", "--run-dir", "out", timeout_s=90)
    assert finished.status == 3, finished.stderr
    assert finished.result["configuration"] is None
    trial = cli.lines(tmp_path / "out" / "trials.jsonl")[0]
    assert trial["infeasible_because"].startswith(reason), trial["infeasible_because"]
    assert reason.split(":")[0] in finished.stderr
    if app == "broken:too_slow":
        nearest = json.loads((tmp_path / "out" / "recommendation.json").read_text())["nearest"]
        assert nearest["bound"] == "p99"
        assert nearest["found"] > nearest["allowed"] == 0.1
        assert "Nearest" in finished.stderr
    assert not (tmp_path / "out" / "serve_config.yaml").exists()
    assert "Traceback" not in finished.stderr


@pytest.mark.timed
def test_ctrl_c_ends_within_seconds_and_keeps_what_was_measured(tmp_path: Path) -> None:
    """Fails if finished trials are lost, the best is not printed, it takes long (quiet: 3 s), or processes are left."""
    before = cli.ray_processes()
    process = cli.start(tmp_path, "morphling_ray.tune", "--run-dir", "out", "--searcher", "random")
    trials = tmp_path / "out" / "trials.jsonl"
    try:
        cli.wait_for(lambda: trials.exists() and trials.read_text().count("\n") >= 1, 120, "a finished trial")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=8)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130, err
    result = json.loads(out.strip().splitlines()[-1])
    assert result["trials"] == len(cli.lines(trials)) >= 1
    assert result["configuration"] is not None
    assert "Best found" in err
    assert (tmp_path / "out" / "report.html").exists()
    cli.wait_for(lambda: cli.ray_processes() <= before, 10, "Ray's processes to end")

    resumed = cli.tune(tmp_path, "--resume", "out", "--max-trials", str(result["trials"] + 1))
    assert resumed.status == 0, resumed.stderr
    assert resumed.result["trials"] == result["trials"] + 1


def test_a_gpu_that_is_not_there_is_said_before_anything_is_deployed(tmp_path: Path) -> None:
    """Fails if the search waits for a GPU for ever, or leaves a run directory with nothing in it."""
    (tmp_path / "experiment.yaml").write_text("space: {num_gpus: [1], max_batch_size: [1, 2]}\n")
    finished = cli.tune(tmp_path, "--experiment", "experiment.yaml", "--run-dir", "out", timeout_s=60)
    assert finished.status == 2
    assert "asks for 1 GPU, but the cluster has 0" in finished.stderr
    assert not (tmp_path / "out").exists()


def test_replay_runs_the_same_search_without_serving(tmp_path: Path, surfaces: Path) -> None:
    """Fails if replay serves something, does not go through Tune, or differs from run to run."""
    arguments = ["--replay", str(surfaces), "--task", "large", "--objective-name", "value", "--max-trials", "8"]
    first = cli.tune(tmp_path, *arguments, "--run-dir", "one", timeout_s=60)
    second = cli.tune(tmp_path, *arguments, "--run-dir", "two", "--concurrency", "1", timeout_s=60)
    assert first.status == second.status == 0, first.stderr
    proposals = [[t["configuration"] for t in cli.lines(tmp_path / d / "trials.jsonl")] for d in ("one", "two")]
    assert proposals[0] == proposals[1]
    assert len(proposals[0]) == 8
    assert "Number of trials" in (tmp_path / "one" / "ray.log").read_text()
    assert not (tmp_path / "one" / "serve_config.yaml").exists()
