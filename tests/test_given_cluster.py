"""A search on a cluster that is somebody else's, where another application runs."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cli
import pytest

from morphling_ray.cluster import quoted_python

pytestmark = [
    pytest.mark.serve,
    pytest.mark.timeout(240),
    pytest.mark.skipif(
        quoted_python() is not None, reason="a cluster of Ray's own starts no worker by a path with a space in it"
    ),
]

DEPLOY_ANOTHER = """
import ray
from ray import serve
ray.init(address={address!r}, log_to_driver=False)
@serve.deployment(ray_actor_options={{"num_cpus": 0}})
class Other:
    def __call__(self):
        return "still here"
serve.run(Other.bind(), name="other", route_prefix="/other")
serve.run(Other.bind(), name="morphling-of-mine", route_prefix="/mine")
"""
ASK_IT = """
import json, ray
from ray import serve
ray.init(address={address!r}, log_to_driver=False)
names = list(serve.status().applications)
actors = [a["name"] for a in ray.util.list_named_actors(all_namespaces=True)]
print(json.dumps([names, serve.get_app_handle("other").remote().result(), actors]))
"""


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """A cluster of one node, ended afterwards."""
    with cli.cluster(tmp_path / "home", "--num-cpus=3") as address:
        yield address


def python(folder: Path, code: str) -> str:
    """Runs a script as another user of the cluster."""
    environment = {**cli.environment(folder / "home"), "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_given_cluster_is_left_as_it_was(tmp_path: Path, address: str) -> None:
    """Fails if the other application is deleted, or if our application, lane or driver stays behind."""
    python(tmp_path, DEPLOY_ANOTHER.format(address=address))
    (tmp_path / "request.json").write_text("21")
    (tmp_path / "experiment.yaml").write_text(
        "app: batched:app\nrequest: request.json\nobjective: rps\nmax_trials: 2\nspace: {max_batch_size: [1, 16]}\n"
    )
    finished = cli.tune(tmp_path, "--experiment", "experiment.yaml", "--address", address, "--run-dir", "out")
    assert finished.status == 0, finished.said(tmp_path / "out")
    assert finished.result["trials"] == 2
    names, answer, actors = json.loads(python(tmp_path, ASK_IT.format(address=address)).strip().splitlines()[-1])
    assert sorted(names) == ["morphling-of-mine", "other"]
    assert answer == "still here"
    assert not [name for name in actors if "lane" in name or "driver" in name]


@pytest.mark.serve
@pytest.mark.timeout(120)
def test_a_cluster_that_asks_for_a_token(tmp_path: Path) -> None:
    """Fails if a user whose Ray has a token is told that there is no cluster and no more, or if it is not used."""
    token = tmp_path / "home" / ".ray" / "auth_token"
    token.parent.mkdir(parents=True)
    token.write_text("ab" * 32)  # where Ray keeps the one that it made for an earlier cluster
    with cli.cluster(tmp_path / "home") as address:
        refused = cli.tune(tmp_path, "--address", address, "--dry-run")
        assert refused.status == 2
        assert refused.stderr.rstrip().endswith("if it is one that asks for Ray's token, set RAY_AUTH_MODE=token")
        variables = {"RAY_AUTH_MODE": "token"}
        process = cli.start(tmp_path, "morphling_ray.tune", "--address", address, "--dry-run", variables=variables)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said


def test_no_cluster_at_the_address(tmp_path: Path) -> None:
    """Fails if a wrong address ends in a traceback, or a run directory is left."""
    finished = cli.tune(tmp_path, "--address", "127.0.0.1:1", "--run-dir", "out")
    assert finished.status == 2
    assert "no Ray cluster at '127.0.0.1:1'" in finished.stderr
    assert "Traceback" not in finished.stderr
    assert not (tmp_path / "out").exists()
