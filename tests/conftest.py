"""What every test gets: no Ray unless it says so, and property tests that are the same in every run."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from cards import machine  # noqa: F401  a fixture
from hypothesis import settings

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy: on a busy machine its threads wait for each other

# Derandomized, so that a red test is red again; no deadline, so that a busy machine does not make one red.
settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
settings.load_profile("repeatable")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Lets a test that compares what was measured fail twice before it counts, and the summary name it.

    On a shared machine a neighbour may have taken the cores meanwhile; a search, too, then measures again. Not for any
    other test: what is lost or wrong once is so.
    """
    if not config.pluginmanager.hasplugin("rerunfailures"):  # left out by -p no:rerunfailures
        return
    config.option.rerun_show_tracebacks = True
    for item in items:
        if "timed" in item.keywords:
            item.add_marker(pytest.mark.flaky(reruns=2, reruns_delay=3))


@pytest.fixture(autouse=True)
def no_cluster(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fails a test that starts Ray without the marker `serve`. Ray takes seconds to import, so it is not done here."""
    if "serve" in request.keywords:
        yield
        return

    def refuse(*args: object, **kwargs: object) -> NoReturn:
        pytest.fail("unit tests must not start Ray; mark the test `serve`")

    if "ray" in sys.modules:
        monkeypatch.setattr(sys.modules["ray"], "init", refuse)
    yield
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():  # imported only during the test, so not caught above
        ray.shutdown()
        refuse()


@pytest.fixture
def surfaces(tmp_path: Path) -> Path:
    """A small recorded set: tasks `small` and `large`, whose objective `value` is best in the middle of the grid."""
    folder = tmp_path / "surfaces"
    folder.mkdir()
    (folder / "surfaces.yaml").write_text(
        "name: made-up\ntable: surfaces.csv\nmissing: infeasible\ncost: 1 + cores\n"
        "knobs:\n  cores: {kind: ordinal, scale: linear, values: [1, 2, 4]}\n"
        "  batch: {kind: ordinal, scale: log, values: [1, 2, 4, 8, 16]}\n"
        "metrics:\n  rps: {column: rps, better: higher}\n  latency_ms: {column: latency_ms, better: lower}\n"
        "objectives:\n  value: {maximize: rps / cost, subject_to: [latency_ms <= 60]}\n"
    )
    rows = ["task,family,cores,batch,rps,latency_ms"]
    for task, work_ms in (("small", 2.0), ("large", 9.0)):
        for cores in (1, 2, 4):
            for batch in (1, 2, 4, 8, 16):
                latency_ms = 3.0 + work_ms * batch**0.8 / cores**0.7
                rows.append(f"{task},{task},{cores},{batch},{1000 * batch / latency_ms:.4f},{latency_ms:.4f}")
    (folder / "surfaces.csv").write_text("\n".join(rows) + "\n")
    return folder
