"""What a cluster can hold, and the output of others kept in a file."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from morphling_ray.cluster import Cluster
from morphling_ray.console import quiet
from morphling_ray.errors import InputError

TWO_NODES = Cluster(local=False, nodes=({"CPU": 4.0}, {"CPU": 8.0, "GPU": 1.0, "accelerator_type:T4": 1.0}))


def test_what_fits() -> None:
    """Fails if nodes are not added up, or the largest node is the first."""
    assert TWO_NODES.largest_cpus == 8
    assert TWO_NODES.can_hold({"CPU": 12.0, "GPU": 1.0})
    assert not TWO_NODES.can_hold({"CPU": 13.0})
    TWO_NODES.check({"GPU": 1.0, "accelerator_type:T4": 0.001})


@pytest.mark.parametrize(
    ("needed", "said"),
    [
        ({"GPU": 2.0}, "asks for 2 GPU, but the cluster has 1"),
        ({"GPU": 1.0, "accelerator_type:V100": 0.001}, "asks for GPU type V100, but the cluster has T4"),
        ({"CPU": 1.0, "fast_disk": 1.0}, "asks for the Ray resource 'fast_disk', which no node of the cluster has"),
    ],
)
def test_what_no_node_has_is_said(needed: dict[str, float], said: str) -> None:
    """Fails if a GPU, a type or a resource that no node has is let through: Ray would wait for it for ever."""
    with pytest.raises(InputError, match=said):
        TWO_NODES.check(needed)


def test_output_of_others_goes_to_the_file(tmp_path: Path) -> None:
    """Fails if only Python's own streams are redirected, or if the real ones are not restored."""
    code = f"""
import os, sys
from pathlib import Path
from morphling_ray.console import quiet
with quiet(Path({str(tmp_path / "log")!r})) as console:
    print("from python")
    os.system("echo from a child; echo and its errors >&2")
    print("progress", file=console.stderr)
    print("result", file=console.stdout)
print("after")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "result\nafter\n"
    assert done.stderr == "progress\n"
    assert sorted((tmp_path / "log").read_text().split("\n")[:3]) == ["and its errors", "from a child", "from python"]


def test_the_streams_are_restored_after_an_error(tmp_path: Path) -> None:
    """Fails if an exception leaves the terminal dead."""
    before = os.fstat(2).st_ino
    with pytest.raises(ZeroDivisionError), quiet(tmp_path / "log"):
        _ = 1 // 0
    assert os.fstat(2).st_ino == before


TWO_CLUSTERS = """
from morphling_ray.cluster import connect, disconnect
from morphling_ray.serving.deployment import leave_serve, start_serve

for _ in range(2):
    connect(None)
    try:
        assert start_serve() == (True, None)
        leave_serve(shut_down=False, wait=True)
    finally:
        disconnect()
"""


@pytest.mark.serve
@pytest.mark.timeout(120)
def test_two_clusters_one_after_the_other() -> None:
    """Fails if what Serve remembers of a cluster that has ended is taken for the next one's."""
    done = subprocess.run([sys.executable, "-c", TWO_CLUSTERS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
