"""The files that make clusters: Ray's own code takes them, and what they promise is in them."""

import json
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.serve.schema import ServeDeploySchema

from morphling_ray.autoscaler import node_types, to_come
from morphling_ray.cluster import Cluster
from morphling_ray.errors import InputError
from morphling_ray.experiment import Parser, add_flags
from morphling_ray.objective import Prices
from morphling_ray.serving import limits
from morphling_ray.serving.application import inspect_app

AWS, FOLDER = Path("cluster.yaml"), Path("cluster")
ON_PREMISE, KUBERAY, SERVICE = FOLDER / "on_premise.yaml", FOLDER / "kuberay.yaml", FOLDER / "rayservice.yaml"
GPUS = {"T4", "L4", "A10G", "H100"}


def load(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text())
    return found


@pytest.mark.parametrize("path", [AWS, ON_PREMISE])
def test_ray_takes_the_cluster_files(path: Path) -> None:
    """Fails if `ray up` would refuse one."""
    config = prepare_config(load(path))
    validate_config(config)
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        assert any("RAY_AUTH_MODE=token" in command for command in commands)
    assert "--dashboard-host=127.0.0.1" in " ".join(config["head_start_ray_commands"])
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert "0.0.0.0" not in path.read_text()


def test_every_gpu_type_comes_as_spot_first() -> None:
    """Fails if a type is missing, has no price, or is bought on demand while spot is to be had."""
    types = load(AWS)["available_node_types"]
    by_gpu: dict[str, list[dict[str, Any]]] = {}
    for node in types.values():
        for name in node["resources"]:
            if name.startswith("accelerator_type:"):
                by_gpu.setdefault(name.partition(":")[2], []).append(node)
    assert set(by_gpu) == GPUS
    assert set(Prices.load("aws").gpu) >= GPUS
    for nodes in by_gpu.values():
        spot, on_demand = sorted(nodes, key=lambda node: -node.get("priority", 0))
        assert spot["node_config"].pop("InstanceMarketOptions") == {"MarketType": "spot"}
        assert spot["priority"] > on_demand.get("priority", 0)
        assert spot["node_config"] == on_demand["node_config"]
        assert spot["resources"] == on_demand["resources"]
    assert types["head"]["resources"] == {"CPU": 0}
    profiles = {name: node["node_config"]["IamInstanceProfile"]["Name"] for name, node in types.items()}
    assert profiles.pop("head") == "morphling-ray-head"
    assert set(profiles.values()) == {"morphling-ray-worker"}


def test_v100s_are_a_matter_of_taking_out_the_comment_signs() -> None:
    """Fails if what is commented out is not what works: AWS has them in few regions, and Ray refuses the others."""
    before, rest = AWS.read_text().split("  # Where yours still has them:\n")
    commented, after = rest.split("\n\n", 1)
    config = prepare_config(yaml.safe_load(before + commented.replace("  # ", "  ") + "\n\n" + after))
    validate_config(config)
    kinds = {name for node in config["available_node_types"].values() for name in node["resources"]}
    assert "accelerator_type:V100" in kinds


def test_the_account_is_prepared_with_few_rights(tmp_path: Path) -> None:
    """Fails if anybody may log in, if the head may do more than it has to, or if a second call fails."""
    (tmp_path / "aws").write_text(
        "#!/bin/sh\nfor argument; do printf '%s\\0' \"$argument\"; done >> calls; printf '\\n' >> calls\n"
        'case "$*" in\n'
        "*describe-vpcs*) echo vpc-1 ;;\n"
        "*describe-security-groups*) [ -e made ] && echo sg-1 || echo None ;;\n"
        "*create-security-group*) touch made; echo sg-1 ;;\n"
        "*describe-security-group-rules*) echo sgr-1 ;;\n"
        "*get-caller-identity*) echo 123456789012 ;;\n"
        "*iam\\ get-*) [ -e iam ] ;;\n"
        "*put-role-policy*) touch iam ;;\n"
        "esac\n"
    )
    (tmp_path / "aws").chmod(0o755)
    command = [str(FOLDER.resolve() / "aws_prepare.sh"), "eu-west-1", "198.51.100.7/32"]
    variables = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}

    def calls() -> list[list[str]]:
        (tmp_path / "calls").unlink(missing_ok=True)
        done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=True)
        assert done.stdout.startswith("ready: morphling-ray in eu-west-1 lets 198.51.100.7/32")
        return [call.rstrip("\0").split("\0") for call in (tmp_path / "calls").read_text().split("\0\n")[:-1]]

    first, second = calls(), calls()
    assert all(call[:3] == ["--region", "eu-west-1", "--output"] for call in first)
    opened = [call for call in first if "authorize-security-group-ingress" in call]
    assert [call[call.index("--protocol") + 1 :] for call in opened] == [
        ["all", "--source-group", "sg-1"],
        ["tcp", "--port", "22", "--cidr", "198.51.100.7/32"],
    ]
    assert not any("0.0.0.0/0" in part for call in first for part in call)
    (policy,) = [json.loads(call[-1]) for call in first if "put-role-policy" in call]
    for statement in policy["Statement"]:
        (action, *_) = statement["Action"]
        assert action == "ec2:Describe*" or "Condition" in statement or statement["Resource"] != "*"
        assert "*" not in action.removesuffix("Describe*")
    made = {call[call.index("--role-name") + 1] for call in first if "create-role" in call}
    assert made == {"morphling-ray-head", "morphling-ray-worker"}
    assert not any("create-role" in call or "create-security-group" in call for call in second)
    assert any("revoke-security-group-ingress" in call for call in second), "the old address may still log in"
    assert load(AWS)["provider"]["security_group"]["GroupName"] == "morphling-ray"


def test_kuberay_takes_the_job() -> None:
    """Fails if Ray cannot read the workers' resources, or if the job would be started with flags that do not exist."""
    _, job = yaml.safe_load_all(KUBERAY.read_text())
    cluster = {"metadata": job["metadata"], "spec": job["spec"]["rayClusterSpec"]}
    types = _derive_autoscaling_config_from_ray_cr(cluster)["available_node_types"]
    assert types["headgroup"]["resources"]["CPU"] == 0
    assert types["t4"]["resources"]["GPU"] == 1
    assert types["t4"]["resources"]["accelerator_type:T4"] == 1
    shell = shlex.split(job["spec"]["entrypoint"])[-1]
    for words in re.findall(r"morphling_ray\.tune ([^;]*);", shell):
        parser = Parser()
        add_flags(parser)
        parser.add_argument("--resume")
        assert parser.parse_args(shlex.split(words)).address == "auto"
    assert "--resume /runs/search" in shell
    assert job["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}


def test_kuberay_takes_the_service() -> None:
    """Fails if Serve refuses the config, or if it is of an application that there is not."""
    service = load(SERVICE)["spec"]
    config = ServeDeploySchema.model_validate(yaml.safe_load(service["serveConfigV2"]))
    (application,) = config.applications
    (deployment,) = application.deployments
    facts = inspect_app(application.import_path)
    assert deployment.name in facts.deployments
    variables = deployment.ray_actor_options.runtime_env["env_vars"]
    assert limits.cpu_environment(1).items() <= variables.items() | {
        ("MKL_NUM_THREADS", "1"),
        ("OPENBLAS_NUM_THREADS", "1"),
    }
    _derive_autoscaling_config_from_ray_cr(
        {"metadata": {"name": "x", "namespace": "y"}, "spec": service["rayClusterConfig"]}
    )


def test_what_an_autoscaler_may_add() -> None:
    """Fails if the head counts as a worker, or a node that is there is counted twice."""
    types = node_types(AWS)
    assert ({"CPU": 8.0, "GPU": 1.0, "accelerator_type:T4": 1.0}, 4) in types
    assert all(resources["CPU"] > 0 for resources, _ in types)
    kube = node_types(KUBERAY)
    assert [(most, resources.get("GPU")) for resources, most in kube] == [(4, None), (4, 1.0)]
    up = [{"CPU": 8.0, "memory": 1e9, "GPU": 1.0, "accelerator_type:T4": 1.0}, {"CPU": 0.0}]
    two = [({"CPU": 8.0, "GPU": 1.0, "accelerator_type:T4": 1.0}, 2), ({"CPU": 8.0, "memory": 5.0}, 1)]
    assert to_come(two, up) == (two[0][0], two[1][0])
    cluster = Cluster(local=False, nodes=({"CPU": 0.0},), to_come=to_come(types, [{"CPU": 0.0}]))
    assert cluster.largest_cpus == 16
    assert set(cluster.gpu_types) == GPUS
    cluster.check({"GPU": 1.0, "accelerator_type:H100": 0.001})


@pytest.mark.parametrize("text", ["a: 1", "- 1", "a: [", "available_node_types: 3", "spec: {workerGroupSpecs: [1]}"])
def test_a_file_without_node_types(text: str, tmp_path: Path) -> None:
    """Fails if it ends in a traceback, or if a cluster is thought to grow that does not."""
    (tmp_path / "file.yaml").write_text(text)
    with pytest.raises(InputError, match="node types"):
        node_types(tmp_path / "file.yaml")
    with pytest.raises(InputError, match="cannot be read"):
        node_types(tmp_path / "none.yaml")
