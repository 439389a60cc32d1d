"""Parts of a GPU that bind, on cards that do not exist (tests/fake_gpu): a test fails when a limit is off."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import cli
import pytest
import yaml
from cards import FAKE, GIB

from morphling_ray.cluster import quoted_python
from morphling_ray.errors import InputError
from morphling_ray.objective import Prices
from morphling_ray.serving import gpu_limits, mps, nvml
from morphling_ray.serving.application import ApplicationFacts, inspect_app
from morphling_ray.serving.costs import ApplicationCosts
from morphling_ray.serving.gpu_limits import gpu_environment
from morphling_ray.serving.knobs import check_knobs, instance_share, parts_of_gpus, present_configuration
from morphling_ray.serving.limits import HOOK, HOOK_VARIABLE
from morphling_ray.serving.serve_config import application_config, replica_resources, total
from morphling_ray.space import Configuration, Knob

APPS = Path(__file__).parent / "apps"


def start(code: str, *, card: str = "0", **limits: Any) -> "subprocess.Popen[str]":
    """A process to which Ray has given a card, with the limits of a replica in force before its own code."""
    code = "from morphling_ray.serving import gpu_limits\ngpu_limits.bind()\n" + textwrap.dedent(code)
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": card, **gpu_environment(**limits)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(code: str, **how: Any) -> tuple[str, str]:
    """What such a process says, and the last line of its errors."""
    out, err = start(code, **how).communicate(timeout=60)
    return out.strip(), (err.strip().splitlines() or [""])[-1]


HOLD = """
    import fake_cuda, json, sys
    fake_cuda.allocate(2 * 2**30)
    print(json.dumps(gpu_limits.report()), flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def on_gpu(machine: Path) -> ApplicationFacts:
    """The application for a GPU."""
    return inspect_app(f"{APPS / 'on_gpu.py'}:app")


def test_what_there_is(machine: Path) -> None:
    """Fails if cards, MIG devices, or what CUDA_VISIBLE_DEVICES names, are mixed up."""
    first, second = nvml.cards()
    assert (first.uuid, first.name, first.memory_bytes, first.instances) == ("GPU-aaaa", "Tesla T4", 16 * GIB, ())
    assert [i.profile for i in second.instances] == ["1g.5gb", "1g.5gb", "2g.10gb"]
    assert nvml.visible("1") == [second]
    assert nvml.visible("GPU-aa, MIG-2") == [first, second.instances[2]]
    assert nvml.visible("") == nvml.visible("7") == []


def test_a_machine_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if no driver is an error where nobody asked for a GPU."""
    monkeypatch.delenv("FAKE_GPU", raising=False)
    assert nvml.cards() == []
    assert nvml.holders("GPU-aaaa") == {}
    assert gpu_limits.report() == {}


def test_memory_binds(machine: Path) -> None:
    """Fails when the limit is off: five GiB then fit into a quarter of sixteen."""
    five = "import fake_cuda\nfake_cuda.allocate(5 * 2**30)\nprint('fits')"
    assert run(five, memory=1.0)[0] == "fits"
    assert run(five, memory=0.5)[0] == "fits"
    assert run(five, memory=0.25)[1].endswith("CUDA out of memory. Tried to allocate 5120 MiB")


def test_a_share_binds(machine: Path) -> None:
    """Fails when the share is off: work then takes as long as on a whole card."""
    work = """
        import fake_cuda, time
        began = time.perf_counter()
        fake_cuda.compute(0.1)
        print(time.perf_counter() - began)
    """
    whole, quarter = (float(run(work, share=share)[0]) for share in (1.0, 0.25))
    assert whole < 0.2
    assert quarter > 0.38


@pytest.mark.parametrize("torch_first", [True, False])
def test_torch_is_limited_when_it_starts_cuda(machine: Path, torch_first: bool) -> None:
    """Fails if torch's allocator is not limited to the share less a CUDA context, or a context is made for it."""
    code = """
        import torch
        asked = []
        torch.cuda.set_per_process_memory_fraction = asked.append
        print(torch.cuda.is_initialized(), asked)
        torch.cuda._queued_calls[-1][0]()  # what torch calls when CUDA starts
        print(asked)
    """
    if torch_first:
        code = "import torch\nfrom morphling_ray.serving import gpu_limits\ngpu_limits.bind()\n" + textwrap.dedent(code)
        variables = {**os.environ, "CUDA_VISIBLE_DEVICES": "0", **gpu_environment(memory=0.25, mps_mode="off")}
        ended = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, timeout=60)
        out = ended.stdout.strip()
    else:
        out, _ = run(code, memory=0.25, mps_mode="off")
    assert out.splitlines() == ["False []", "[0.21875]"]


def test_a_share_without_mps_is_refused(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if a replica serves with more than its share, without a word."""
    assert "which is switched off" in run("print('on')", share=0.5, mps_mode="off")[1]
    assert run("print('on')", memory=0.5, mps_mode="off") == ("on", "")  # torch's own limit needs no MPS
    monkeypatch.setenv("FAKE_MPS_BROKEN", "1")
    assert "does not start: Cannot find MPS control daemon" in run("print('on')", share=0.5)[1]
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert "is not installed on this machine" in run("print('on')", share=0.5)[1]
    assert run("print('on')", memory=0.5) == ("on", "")


def test_the_multiprocessors_that_were_used(machine: Path) -> None:
    """Fails if what NVML tells of a process, of a server of MPS or of the card's counters does not reach the report."""
    cards = json.loads((machine / "cards.json").read_text())
    (machine / "cards.json").write_text(json.dumps([{**cards[0], "gpm": True}]))
    since = "import time\ngpu_limits.report()\ntime.sleep(1.5)\n"
    for limits, busy in (({"memory": 0.5, "mps_mode": "off"}, 1.0), ({"share": 0.5}, 0.9)):
        process = start(since + textwrap.dedent(HOLD), **limits)
        assert process.stdout is not None
        used = json.loads(process.stdout.readline())
        process.communicate()
        assert used["busy"] == busy
        assert 0.01 < used["sm_used"] < 0.5


def test_each_card_has_its_daemon_and_both_end(machine: Path) -> None:
    """Fails if a daemon is ended under its clients, is left over, or serves another card's processes."""
    processes = [start(HOLD, card=card, share=0.5, memory=0.5) for card in ("0", "0", "GPU-bbbb")]
    said = [json.loads(process.stdout.readline()) for process in processes if process.stdout is not None]
    assert [use["mps"] for use in said] == [True] * 3
    assert [use["memory_used"] for use in said] == [0.125, 0.125, 0.05]
    assert not any("sm_used" in use for use in said)  # these cards do not count it
    pids = sorted(p.pid for p in processes)
    assert sorted(mps.clients("GPU-aaaa") + mps.clients("GPU-bbbb")) == pids
    daemons = [int(file.read_text()) for file in mps.root().glob(f"*/{mps.CONTROL}.pid")]
    assert len(daemons) == 2
    assert [(mps.root() / uuid / "device").read_text().strip() for uuid in ("GPU-aaaa", "GPU-bbbb")] == [
        "GPU-aaaa",
        "GPU-bbbb",
    ]
    assert mps.end_all() == []
    for process in processes:
        process.communicate()
    assert sorted(mps.end_all()) == ["GPU-aaaa", "GPU-bbbb"]
    time.sleep(0.1)
    assert not any(_alive(daemon) for daemon in daemons)
    assert mps.end_all() == []


def _alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def test_memory_that_is_promised_is_waited_for(machine: Path) -> None:
    """Fails if a replica starts on memory that another process holds, or waits for ever, or does not wait at all."""
    holder = start(HOLD, memory=0.5)
    assert holder.stdout is not None
    holder.stdout.readline()
    wait = "gpu_limits.WAIT_FOR_MEMORY_S = {}\n"
    impatient = "from morphling_ray.serving import gpu_limits\n" + wait.format(0.3) + "gpu_limits.bind()"
    variables = {**os.environ, "CUDA_VISIBLE_DEVICES": "0", **gpu_environment(memory=1.0)}
    ended = subprocess.run([sys.executable, "-c", impatient], env=variables, capture_output=True, text=True, timeout=60)
    assert (
        f"1 of the GPU is promised, but only 0.88 of it is free; processes that hold it: {holder.pid}" in ended.stderr
    )
    waiting = start("print('on')", memory=1.0)
    time.sleep(0.5)
    assert waiting.poll() is None
    holder.communicate()
    assert waiting.communicate(timeout=20)[0].strip() == "on"


def test_a_mig_device_is_given_out_once(machine: Path) -> None:
    """Fails if two replicas get the same one, or one that was not asked for."""
    code = "import os, sys\nprint(os.environ['CUDA_VISIBLE_DEVICES'], flush=True)\nsys.stdin.read()"
    first, second = (start(code, card="1", instance="1g.5gb") for _ in range(2))
    assert first.stdout is not None
    assert second.stdout is not None
    got = {first.stdout.readline().strip(), second.stdout.readline().strip()}
    assert got == {"MIG-0", "MIG-1"}
    assert "no MIG device 1g.5gb is free on this machine, which has 1g.5gb, 2g.10gb" in run("", instance="1g.5gb")[1]
    first.communicate()
    assert run("import os; print(os.environ['CUDA_VISIBLE_DEVICES'])", instance="1g.5gb")[0] in got
    second.communicate()


def test_the_limits_follow_when_ray_has_said_which_card(machine: Path) -> None:
    """Fails if they are in force for another card, or if what cannot be done ends the process instead of being said."""
    code = """
        import os
        from ray._private import utils
        from morphling_ray.serving import gpu_limits, limits
        utils.set_visible_accelerator_ids = lambda: os.environ.update(CUDA_VISIBLE_DEVICES="1") or {}
        limits.apply()
        utils.set_visible_accelerator_ids()
        print(gpu_limits.report())
    """

    def report(**asked: Any) -> dict[str, Any]:
        ended = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)],
            env={**os.environ, **gpu_environment(**asked)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        found: dict[str, Any] = eval(ended.stdout)
        return found

    held = report(memory=0.25)
    assert (held["card"], held["memory_asked"], held["mps"]) == ("NVIDIA A100-SXM4-40GB", 0.25, False)
    assert "problem" not in held
    assert "has not used the GPU" in report(share=0.5)["problem"]
    assert report(share=0.5, mps_mode="off")["problem"] == "a share of a GPU takes CUDA MPS, which is switched off"


def test_a_configuration_becomes_limits(on_gpu: ApplicationFacts) -> None:
    """Fails if Ray gives out another part of the card than is enforced and paid for."""
    configuration: Configuration = {"gpu_memory": 0.25, "gpu_share": 0.5, "gpu_type": "T4", "num_replicas": 2}
    (entry,) = application_config(on_gpu, configuration)["deployments"]
    options = entry["ray_actor_options"]
    assert (options["num_gpus"], options["accelerator_type"]) == (0.5, "T4")
    asked = {"MORPHLING_GPU_MEMORY": "0.25", "MORPHLING_GPU_SHARE": "0.5", "MORPHLING_MPS": "auto", **HOOK}
    assert {k: v for k, v in options["runtime_env"]["env_vars"].items() if k in asked} == asked
    assert total(replica_resources(on_gpu, configuration))["GPU"] == 1.0
    (entry,) = application_config(on_gpu, {**configuration, "num_gpus": 1})["deployments"]
    assert entry["ray_actor_options"]["num_gpus"] == 1
    (entry,) = application_config(on_gpu, {"gpu_memory": 1.0})["deployments"]
    assert entry["ray_actor_options"]["num_gpus"] == 1
    (entry,) = application_config(on_gpu, {"gpu_instance": "2g.10gb"})["deployments"]
    assert entry["ray_actor_options"]["num_gpus"] == 0.285
    assert entry["ray_actor_options"]["runtime_env"]["env_vars"][HOOK_VARIABLE] == HOOK[HOOK_VARIABLE]
    assert parts_of_gpus(on_gpu, configuration)
    assert not parts_of_gpus(on_gpu, {"gpu_type": "T4", "num_gpus": 1})


def test_seven_mig_devices_fit_on_a_card() -> None:
    """Fails if the shares of a card's MIG devices add up to more than the card."""
    assert instance_share("1g.5gb") == 0.142
    assert 7 * (instance_share("1g.10gb") or 1) <= 1
    assert instance_share("7g.80gb") == 1.0
    assert instance_share("half") is instance_share(0.5) is None


@pytest.mark.parametrize(
    ("knob", "values", "said"),
    [
        ("gpu_memory", [0.5, 1.5], "takes shares of a GPU, above 0 and up to 1, got 1.5"),
        ("gpu_share", [0], "takes shares of a GPU, above 0 and up to 1, got 0"),
        ("gpu_instance", ["small"], "takes MIG profiles, as in 1g.10gb, got 'small'"),
        ("cpu_cores", [0], "takes numbers of cores above 0, got 0"),
    ],
)
def test_values_that_no_gpu_has(on_gpu: ApplicationFacts, knob: str, values: list[Any], said: str) -> None:
    """Fails if they are found out after something was deployed."""
    with pytest.raises(InputError, match=said):
        check_knobs((Knob.infer(knob, values),), on_gpu)


def test_a_share_is_refused_where_mps_may_not_be_used(on_gpu: ApplicationFacts) -> None:
    """Fails if every trial of such a search is deployed to no end."""
    with pytest.raises(InputError, match="takes CUDA MPS, which --mps off forbids"):
        check_knobs((Knob.infer("gpu_share", [0.5, 1.0]),), replace(on_gpu, mps="off"))
    check_knobs((Knob.infer("gpu_memory", [0.5, 1.0]),), replace(on_gpu, mps="off"))


def test_the_present_configuration_has_the_whole_card(on_gpu: ApplicationFacts) -> None:
    """Fails if an application that declares a GPU is not compared with, or one that declares none is."""
    knobs = (Knob.infer("gpu_memory", [0.25, 1.0]), Knob.infer("gpu_share", [0.5, 1.0]))
    assert present_configuration(knobs, on_gpu) is None
    deployment = replace(on_gpu.deployments["Classifier"], ray_actor_options={"num_gpus": 1})
    declared = replace(on_gpu, deployments={"Classifier": deployment})
    assert present_configuration(knobs, declared) == {"gpu_memory": 1.0, "gpu_share": 1.0}


def test_what_parts_of_a_gpu_cost(on_gpu: ApplicationFacts) -> None:
    """Fails if a replica pays for less of a card than nobody else can use, or for a card without a type nothing."""
    prices = Prices(base=0.0, cpu_core=0.0, gpu={"T4": 1.0, "A100": 4.0})

    def cost(configuration: Configuration, gpu_type: str | None = "T4") -> float:
        knobs = tuple(Knob.infer(name, [value]) for name, value in configuration.items())
        return float(ApplicationCosts(prices, on_gpu, knobs, gpu_type).cost_per_hour(configuration))

    assert cost({"gpu_memory": 0.25}) == 0.25
    assert cost({"gpu_memory": 0.25, "gpu_share": 0.5, "num_replicas": 2}) == 1.0
    assert cost({"gpu_memory": 0.25, "gpu_type": "A100"}) == 1.0
    assert cost({"gpu_instance": "2g.10gb"}) == 0.285
    assert cost({"num_gpus": 1}) == 1.0
    assert cost({"max_batch_size": 1}) == 0.0
    assert cost({"num_gpus": 1}, None) == 0.0


def test_of_what_costs_the_same_some_takes_less(on_gpu: ApplicationFacts) -> None:
    """Fails if memory that a share of the multiprocessors pays for anyway counts as nothing, or replicas do."""
    knobs = tuple(Knob.infer(name, [1]) for name in ("gpu_memory", "gpu_share", "num_replicas"))
    costs = ApplicationCosts(Prices.load(), on_gpu, knobs, "T4")
    little = {"gpu_memory": 0.25, "gpu_share": 0.5, "num_replicas": 2}
    much = {**little, "gpu_memory": 0.5}
    assert costs.cost_per_hour(little) == costs.cost_per_hour(much)
    assert costs.takes(much) - costs.takes(little) == pytest.approx(2 * 0.25)


def test_prices_that_come_along() -> None:
    """Fails if the cloud's prices cannot be read, or a machine costs other than its parts."""
    aws = Prices.load("aws")
    assert aws.gpu["T4"] + 4 * aws.cpu_core == pytest.approx(0.526, abs=0.001)
    assert 8 * aws.gpu["H100"] + 192 * aws.cpu_core == pytest.approx(55.04, abs=0.02)
    assert Prices.load("paper") == Prices.load()


@pytest.mark.serve
@pytest.mark.timeout(300)
@pytest.mark.skipif(
    quoted_python() is not None, reason="a cluster of Ray's own starts no worker by a path with a space"
)
def test_a_search_over_parts_of_a_gpu(machine: Path, tmp_path: Path) -> None:
    """Fails if a limit is off, an out-of-memory error is not told by its kind, or a daemon is left over."""
    for file in FAKE.glob("*.py"):
        shutil.copy(file, tmp_path)
    (tmp_path / "experiment.yaml").write_text(
        "app: on_gpu:app\nrequest: request.json\nobjective: rps_per_dollar\nmax_trials: 8\nsearcher: grid\n"
        "slo_p99_ms: 200\nspace:\n  gpu_memory: [0.125, 0.25, 0.5]\n  gpu_share: [0.25, 1.0]\n"
        "  max_batch_size: [4]\n"
    )
    (tmp_path / "request.json").write_text("1")
    options = ("--num-cpus=3", "--num-gpus=1", '--resources={"accelerator_type:T4": 1}')
    with cli.cluster(tmp_path / "home", *options) as address:
        finished = cli.tune(
            tmp_path, "--experiment", "experiment.yaml", "--address", address, "--run-dir", "out", timeout_s=240
        )
        assert finished.status == 0, finished.said(tmp_path / "out")
        assert not list(mps.root().glob(f"*/{mps.CONTROL}.pid"))
    trials = [t for t in cli.lines(tmp_path / "out" / "trials.jsonl") if t["stage"] == "search"]
    for trial in trials:
        chosen, why = trial["configuration"], trial.get("infeasible_because", "")
        gib = 16 * chosen["gpu_memory"]
        if gib < 3:
            assert why.startswith("out of memory on load: "), trial
        elif gib < 3 + chosen["max_batch_size"]:
            assert why.startswith("out of memory at batch size 4: "), trial
        else:
            assert not why
            (used,) = trial["details"]["gpus"]
            assert (used["memory_asked"], used["mps"]) == (chosen["gpu_memory"], True)
            assert used["memory_used"] <= chosen["gpu_memory"]
            assert used["share_asked"] == chosen["gpu_share"]
    measured = [(t["configuration"]["gpu_share"], t["metrics"]["peak_rps"]) for t in trials if t.get("metrics")]
    quarter, whole = (max(peak for of, peak in measured if of == share) for share in (0.25, 1.0))
    assert whole > 2 * quarter
    result = finished.result
    assert result["configuration"]["gpu_memory"] >= 0.25
    config = yaml.safe_load((tmp_path / "out" / "serve_config.yaml").read_text())
    options_ = config["applications"][0]["deployments"][0]["ray_actor_options"]
    assert options_["num_gpus"] == max(result["configuration"][k] for k in ("gpu_memory", "gpu_share"))
    assert "memory asked" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.serve
@pytest.mark.timeout(120)
@pytest.mark.skipif(
    quoted_python() is not None, reason="a cluster of Ray's own starts no worker by a path with a space"
)
def test_a_replica_that_is_not_under_its_limits_is_not_measured(
    machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails if a share that nothing enforces is measured, on its own or after another configuration on that replica."""
    monkeypatch.setenv("FAKE_MPS_BROKEN", "1")
    for file in FAKE.glob("*.py"):
        shutil.copy(file, tmp_path)
    (tmp_path / "request.json").write_text("1")
    (tmp_path / "experiment.yaml").write_text(
        "app: on_gpu:app\nrequest: request.json\nobjective: rps\nmax_trials: 2\nsearcher: grid\n"
        "space: {gpu_share: [0.5], max_batch_size: [1, 4]}\n"
    )
    with cli.cluster(tmp_path / "home", "--num-cpus=3", "--num-gpus=1") as address:
        finished = cli.tune(tmp_path, "--experiment", "experiment.yaml", "--address", address, "--run-dir", "out")
    assert finished.status == 3, finished.stderr
    reasons = [t["infeasible_because"] for t in cli.lines(tmp_path / "out" / "trials.jsonl")]
    said = "the GPU limits are not in force: nvidia-cuda-mps-control does not start: Cannot find MPS control daemon"
    assert len(reasons) == 2
    assert all(reason.startswith(said) for reason in reasons), reasons
