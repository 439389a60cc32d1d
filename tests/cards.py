"""A machine with cards that do not exist (fake_gpu/), for the tests of what needs some."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from morphling_ray.serving import mps

FAKE = Path(__file__).parent / "fake_gpu"
GIB = 2**30
CARDS = [
    {"uuid": "GPU-aaaa", "name": "Tesla T4", "memory": 16 * GIB},
    {
        "uuid": "GPU-bbbb",
        "name": "NVIDIA A100-SXM4-40GB",
        "memory": 40 * GIB,
        "instances": [
            {"uuid": f"MIG-{i}", "name": f"NVIDIA A100-SXM4-40GB MIG {profile}", "memory": gib * GIB}
            for i, (profile, gib) in enumerate((("1g.5gb", 5), ("1g.5gb", 5), ("2g.10gb", 10)))
        ],
    },
]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:  # pytest's own folder is elsewhere
    """A machine with two cards and CUDA MPS; its folder. Daemons that are left are ended."""
    # Ray's sockets lie below it, whose paths may not be long.
    folder = Path(tempfile.mkdtemp(prefix="gpu-", dir="/tmp"))
    (folder / "cards.json").write_text(json.dumps(CARDS))
    monkeypatch.setenv("FAKE_GPU", str(folder))
    monkeypatch.setenv("PATH", f"{FAKE / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", f"{FAKE}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.syspath_prepend(str(FAKE))
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
    yield folder
    for pid in folder.glob(f"*/*/{mps.CONTROL}.pid"):
        subprocess.run(["kill", pid.read_text().strip()], check=False)
    sys.modules.pop("pynvml", None)
    shutil.rmtree(folder, ignore_errors=True)
