"""Trials on a cluster whose nodes come when they are needed, by Ray's own autoscaler and nodes on this machine."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import cli
import pytest
import ray

from morphling_ray.cluster import quoted_python

pytestmark = [
    pytest.mark.serve,
    pytest.mark.timeout(240),
    pytest.mark.skipif(
        quoted_python() is not None, reason="a cluster of Ray's own starts no worker by a path with a space in it"
    ),
]
EXPERIMENT = """
app: batched:app
request: request.json
objective: rps
max_trials: 2
space: {max_batch_size: [1, 16]}
node_types: cluster.yaml
"""


def autoscaled(most: int, port: int) -> dict[str, Any]:
    """A cluster file of a head without cores, at a port of this machine, and workers with two."""
    empty = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands")
    start = ("head_start_ray_commands", "worker_start_ray_commands", "rsync_exclude", "rsync_filter")
    return {
        "cluster_name": "here",
        "max_workers": most,
        "upscaling_speed": 10.0,
        "idle_timeout_minutes": 5,
        "provider": {
            "type": "fake_multinode",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "gcs_address": f"{ray.util.get_node_ip_address()}:{port}",
        },
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {"resources": {"CPU": 2}, "node_config": {}, "max_workers": most},
        },
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        **{name: [] for name in empty + start},
    }


def tune(folder: Path, most: int, experiment: str) -> cli.Finished:
    """A search on such a cluster, which says that it may add one worker."""
    port = cli.free_port()
    (folder / "real.yaml").write_text(json.dumps(autoscaled(most, port)))
    (folder / "cluster.yaml").write_text(json.dumps(autoscaled(max(1, most), port)))
    (folder / "experiment.yaml").write_text(experiment)
    (folder / "request.json").write_text("21")
    variables = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    variables["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    options = ("--num-cpus=0", f"--autoscaling-config={folder / 'real.yaml'}")
    with cli.cluster(folder / "home", *options, variables=variables, port=port) as address:
        return cli.tune(folder, "--experiment", "experiment.yaml", "--address", address, "--run-dir", "out")


def test_a_trial_waits_for_a_node(tmp_path: Path) -> None:
    """Fails if a node that is still to come counts as none, or if waiting for it counts as a slow start."""
    finished = tune(tmp_path, 1, EXPERIMENT + "startup_timeout: 25\n")
    assert finished.status == 0, finished.said(tmp_path / "out")
    assert finished.result["trials"] == 2
    assert finished.result["peak_rps"] > 10


def test_two_trials_at_once_are_two_nodes(tmp_path: Path) -> None:
    """Fails if nobody asks the autoscaler for the second node, or if both trials are put on one."""
    more = EXPERIMENT.replace("max_trials: 2", "max_trials: 8").replace(
        "{max_batch", "{max_ongoing_requests: [8, 16, 32, 64], max_batch"
    )
    finished = tune(tmp_path, 2, more + "concurrency: 2\nsearcher: grid\n")
    assert finished.status == 0, finished.said(tmp_path / "out")
    trials = cli.lines(tmp_path / "out" / "trials.jsonl")
    reasons = [trial["infeasible_because"] for trial in trials if trial["infeasible_because"]]
    # Both "nodes" share this machine's cores: one measurement can slow another one below any rate, but not more.
    assert not [reason for reason in reasons if not reason.startswith("SLO missed")]
    replicas = [replica for trial in trials for replica in trial["details"].get("replicas", ())]
    assert len({replica["node"] for replica in replicas}) == 2


def test_a_node_that_does_not_come_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    """Fails if a search hangs where the autoscaler has nothing, or does not say so."""
    finished = tune(tmp_path, 0, EXPERIMENT + "node_timeout: 4\n")
    assert finished.status == 3, finished.stderr
    reasons = [trial["infeasible_because"] for trial in cli.lines(tmp_path / "out" / "trials.jsonl")]
    assert reasons == ["no node: the autoscaler had none after 4 s"] * 2
