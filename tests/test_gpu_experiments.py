"""The check of GPU limits and the recorder of surfaces, which need a card to run in earnest."""

import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import cli
import pytest
from cards import FAKE

from experiments import gpu_check, gpu_surfaces
from experiments.zoo.catalogue import MODELS as CATALOGUE
from morphling_ray.surface import load_surfaces


def test_the_programs_of_the_check_can_be_read() -> None:
    """Fails if one of them is no Python: nobody would see it before there is a card."""
    programs = [gpu_check.fill(60), gpu_check.PAST_TORCH.format(percent=60), gpu_check.MULTIPLY.format(seconds=3)]
    programs.append(gpu_check.fill(30, then="sys.stdin.read()\n    print(json.dumps(gpu_limits.report()))"))
    for program in programs:
        compile(gpu_check.BIND + textwrap.dedent(program), "program", "exec")


def test_the_check_sees_a_limit_that_is_off(machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if a card on which nothing is enforced passes."""
    error = "OutOfMemoryError: CUDA out of memory"

    def card(enforced: bool) -> Callable[..., dict[str, Any]]:
        def run(program: str, card: str, **limits: Any) -> dict[str, Any]:
            memory, share = limits.get("memory"), limits.get("share")
            if "products_per_s" in program:
                return {"products_per_s": 100.0 * (float(share or 1.0) if enforced else 1.0), "mps": True}
            percent = int(100 * memory) - 1 if enforced and memory else 60
            return {"percent": percent, "error": error if percent < 60 else ""}

        return run

    def ok(enforced: bool) -> dict[str, bool]:
        monkeypatch.setattr(gpu_check, "run", card(enforced))
        checks = ["memory_binds", "memory_binds_for_any_framework", "share_binds", "daemons_end"]
        gpu_check.main(["--only", *checks, "--out", str(tmp_path)])
        (file,) = tmp_path.glob("gpu_check_*.json")
        return {check["check"]: check["ok"] for check in json.loads(file.read_text())["checks"]}

    assert set(ok(True).values()) == {True}
    assert [name for name, passed in ok(False).items() if passed] == ["daemons_end"]


def test_the_check_needs_a_card(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if it passes where there is nothing to check."""
    monkeypatch.delenv("FAKE_GPU", raising=False)
    assert gpu_check.main([]) == 2
    assert gpu_surfaces.main(["--out", "nowhere"]) == 1
    assert "there is no NVIDIA card" in capsys.readouterr().err


def test_one_model_of_each_family_comes_first() -> None:
    """Fails if a recording that is cut short knows one family only."""
    order = gpu_surfaces.in_order()
    families = [CATALOGUE[name].family for name in order]
    assert len({*families[: len({*families})]}) == len({*families})
    assert sorted(order) == sorted(CATALOGUE)


def test_surfaces_are_recorded_without_ray(machine: Path, tmp_path: Path) -> None:
    """Fails if a surface cannot be read back, a share is not in force, or what was recorded is recorded again."""
    command = [sys.executable, "-m", "experiments.gpu_surfaces", "--out", str(tmp_path), "--models", "ranker"]
    without_ray = "raise ImportError('there is no Ray on this machine')"
    (machine / "ray.py").write_text(without_ray)
    variables = {**os.environ, "PYTHONPATH": f"{machine}:{os.environ['PYTHONPATH']}"}
    ended = subprocess.run([*command, "--seconds", "8"], env=variables, capture_output=True, text=True, timeout=90)
    assert ended.returncode == 0, ended.stderr
    lines = cli.lines(tmp_path / "raw" / "ranker.jsonl")
    assert [line["share"] for line in lines] == list(gpu_surfaces.SHARES)[: len(lines)]
    assert [line["failed"] for line in lines] == [""] * len(lines)
    assert lines[0]["gpu"]["share_asked"] == 1.0
    assert lines[0]["card"] == "Tesla T4"
    surface = load_surfaces(tmp_path).task("ranker")
    cores = len(lines[0]["by_cores"])
    assert len(surface.space) == len(lines) * cores * len(gpu_surfaces.MEMORY) * len(gpu_surfaces.BATCHES)
    assert surface.metrics["peak_rps"].max() > 50
    again = subprocess.run([*command, "--seconds", "0"], env=variables, capture_output=True, text=True, timeout=90)
    assert (len(lines) == 4) != again.stdout.splitlines()[-1].startswith("the time is over")
    assert len(cli.lines(tmp_path / "raw" / "ranker.jsonl")) == len(lines)


def test_a_model_that_ends_its_process_is_told_and_the_others_are_recorded(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails if a recording ends with the first model that a card cannot compute."""
    monkeypatch.setattr(sys, "executable", str(FAKE / "bin" / "worker"))
    told = list(gpu_surfaces.processes(["good", "bad", "fine"], 1.0, "0", "auto", time.monotonic() + 20))
    assert [(said["model"], said["failed"]) for said in told] == [
        ("good", ""),
        ("bad", "out of memory on load: torch.OutOfMemoryError: CUDA out of memory"),
        ("fine", ""),
    ]


def test_what_fits_and_what_is_in_time() -> None:
    """Fails if a batch that does not fit, or one that misses the SLO by itself, is said to work."""
    found = {"sizes": [1, 2, 4, 8] * 5, "seconds": [0.01, 0.02, 0.04, 0.08] * 5, "closed_loop_rps": 100.0}
    whole = {"model": "ranker", "share": 1.0, "by_cores": {"1": found}, "fits": {"0.02": 2, "1.0": 128}, "failed": ""}
    slow = {"sizes": [1] * 20, "seconds": [0.2] * 20, "closed_loop_rps": 5.0}
    tenth = {"model": "ranker", "share": 0.1, "by_cores": {"1": slow}, "failed": ""}
    around = {"card": "NVIDIA H100", "cpu": "x", "torch": "2", "date": "2026-11-26"}
    recorded = {"ranker": [{**line, **around} for line in (whole, tenth)]}
    surface = gpu_surfaces.surfaces("cards", recorded, 0.1).task("ranker")
    works = [c for c, ok in zip(surface.space.configurations, surface.feasible) if ok]
    assert {c["gpu_share"] for c in works} == {1.0}
    assert [c["max_batch_size"] for c in works if c["gpu_memory"] == 0.02] == [1, 2]
    assert [c["max_batch_size"] for c in works if c["gpu_memory"] == 1.0][:3] == [1, 2, 4]
    cost = gpu_surfaces.surfaces("cards", recorded, 0.1).objective("rps_per_dollar", "ranker")
    assert cost(surface.columns, surface.metrics).max() > 0


def test_the_fake_is_no_part_of_the_package() -> None:
    """Fails if what is tested here is what a user would run."""
    import pynvml

    assert isinstance(pynvml, ModuleType)
    assert not str(pynvml.__file__).startswith(str(FAKE))
