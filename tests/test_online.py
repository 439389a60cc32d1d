"""The online evaluator on a live Ray: servers that sleep, so that what it should find can be computed."""

import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from morphling_ray.evaluate.batching import USUAL
from morphling_ray.serving.failures import under_load
from morphling_ray.serving.twin import NO_STRAYS, Rule, ServiceTimes, predicted_peaks

pytestmark = [
    pytest.mark.serve,
    pytest.mark.timed,
    pytest.mark.timeout(180),
    # Ray starts its processes by fork and exec, here beside the threads that JAX has left from other tests.
    pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning"),
]

SLO_MS = 60.0
LOWEST, HIGHEST = 0.5, 1.2  # of a peak that can be computed: it is lower on a machine that stalls, and rightly so
APPS = Path(__file__).parent / "apps"


@pytest.fixture(scope="module")
def ray_serve() -> Iterator[None]:
    from morphling_ray.cluster import connect, disconnect
    from morphling_ray.serving.deployment import start_serve

    connect(None)
    try:
        start_serve()
        yield
    finally:
        disconnect()


@contextmanager
def serving(app: str, space: dict[str, list[Any]] | None, **settings: Any) -> Iterator[tuple[Any, Any]]:
    """The plan of an application, and an evaluator for it."""
    from morphling_ray.cluster import Cluster
    from morphling_ray.evaluate.online import OnlineEvaluator
    from morphling_ray.experiment import Experiment
    from morphling_ray.target import ServeTarget

    target = ServeTarget(Experiment(app=app, space=space, **{"slo_p99_ms": SLO_MS, **settings}))
    plan = target.plan(Cluster(local=True, nodes=({"CPU": 2.0},)))
    evaluator = OnlineEvaluator(**plan.arguments)
    yield plan, evaluator
    evaluator.close()


@pytest.fixture
def served(ray_serve: None, request: pytest.FixtureRequest) -> Iterator[tuple[Any, Any]]:
    """An application of benchmarks/servers.py."""
    app, space = request.param
    with serving(f"benchmarks.servers:{app}", space) as both:
        yield both


def truth(settings: list[tuple[int, float]], rule: Rule = "work-conserving") -> Any:
    """Peaks of `batching` and `decorated`: 6 ms a batch and 2 ms a request."""
    from benchmarks.servers import BATCH_S, ITEM_S

    sizes = np.arange(1, 17)
    seconds = np.array([BATCH_S + ITEM_S * size for size in sizes])
    times = ServiceTimes(sizes, seconds, NO_STRAYS)
    return predicted_peaks(times, settings, slo_s=SLO_MS / 1e3, percentile=99.0, rule=rule)


@pytest.mark.parametrize("served", [("batching", None)], indirect=True)
def test_one_deployment_tells_about_all_its_batch_settings(served: tuple[Any, Any]) -> None:
    """Fails if the twin is not used, is wrong by more than 20 %, or if a live setting restarts the replica."""
    from morphling_ray.serving.control import ReplicaBatcher

    _, evaluator = served
    asked = {"cpu_cores": 1, "max_batch_size": 1, "batch_wait_timeout_ms": 10}
    began = evaluator.measure(asked, exact=True)
    assert began.feasible, began.infeasible_because
    assert began.asked is None
    assert began.configuration == asked
    assert began.estimated
    others = {(s.configuration["max_batch_size"], s.configuration["batch_wait_timeout_ms"]) for s in began.siblings}
    assert others == {(b, w) for b in (1, 2, 4, 8, 16) for w in (0, 10)} - {(1, 10)}

    found = evaluator.measure(asked)
    assert found.asked == asked
    assert found.configuration["max_batch_size"] >= 8
    assert found.details["replicas"] == began.details["replicas"]  # the same process: it was changed live
    assert "table" not in found.timings_s  # that of the deployment is known
    (replica,) = evaluator.stand.replicas
    batcher = ReplicaBatcher(replica.actor_name)
    state = batcher.state()
    assert state is not None
    assert state.max_batch_size == found.configuration["max_batch_size"]
    assert state.batch_wait_timeout_s == found.configuration["batch_wait_timeout_ms"] / 1e3

    every = {**{str(s.configuration): s for s in found.siblings}, str(found.configuration): found}
    configurations = [m.configuration for m in every.values()]
    expected = truth([(c["max_batch_size"], c["batch_wait_timeout_ms"] / 1e3) for c in configurations])
    foreseen = [m.metrics.get("peak_rps") or float(np.sqrt(np.prod(m.bounds["peak_rps"]))) for m in every.values()]
    ratio = np.log(foreseen / expected)
    assert abs(np.median(ratio) - USUAL) < 0.2  # forecasts begin lower than the rule says, by what is usual for models
    assert np.corrcoef(np.log(foreseen), np.log(expected))[0, 1] > 0.95

    lost = evaluator.measure(asked, needed={"peak_rps": 3 * found.metrics["peak_rps"]})
    assert lost.bounds["peak_rps"][1] < 2 * found.metrics["peak_rps"]
    assert not lost.metrics
    assert len(lost.probes) <= 2  # one clear miss is enough, or two

    final = evaluator.measure(found.configuration, confirm=True)
    assert not final.estimated
    assert 0.65 < final.metrics["peak_rps"] / found.metrics["peak_rps"] < 1.3


@pytest.mark.parametrize("served", [("decorated", None)], indirect=True)
def test_one_deployment_tells_about_all_settings_of_serves_own_batches(served: tuple[Any, Any]) -> None:
    """Fails if the application's `@serve.batch` is not recognised, or foretold by another rule than it follows."""
    _, evaluator = served
    asked = {"cpu_cores": 1, "max_batch_size": 4, "batch_wait_timeout_ms": 10}
    found = evaluator.measure(asked, exact=True)
    assert found.feasible, found.infeasible_because
    assert found.details["batches_formed"] == "blocking"
    configurations = [found.configuration, *(s.configuration for s in found.siblings)]
    assert len(configurations) == 10
    settings = [(c["max_batch_size"], c["batch_wait_timeout_ms"] / 1e3) for c in configurations]
    foreseen = [found.metrics["peak_rps"], *(float(np.sqrt(np.prod(s.bounds["peak_rps"]))) for s in found.siblings)]
    ratio = np.log(foreseen / truth(settings, "blocking"))
    assert abs(np.median(ratio)) < 0.3  # whatever Ray takes counts against it, twice as much where the machine is slow
    assert ratio.std() < 0.15
    best = configurations[int(np.argmax(foreseen))]
    probed = evaluator.measure(best, confirm=True)
    assert not probed.estimated
    assert 0.65 < probed.metrics["peak_rps"] / max(foreseen) < 1.3
    assert evaluator.stand.replicas
    assert probed.details["replicas"] == found.details["replicas"]  # changed live


@pytest.mark.parametrize(
    ("app", "reason"),
    [
        ("always_fails", "the first request failed: ZeroDivisionError"),
        ("hangs_at_start", "start-up timeout: not up after 9 s"),
    ],
)
def test_what_does_not_serve_has_a_reason(ray_serve: None, app: str, reason: str) -> None:
    """Fails if a candidate that cannot work raises, or is waited for."""
    began = time.monotonic()
    with serving(str(APPS / f"broken.py:{app}"), {"cpu_cores": [1]}, startup_timeout=9.0) as (_, evaluator):
        failed = evaluator.measure({"cpu_cores": 1})
    assert failed.infeasible_because.startswith(reason), failed.infeasible_because
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    ("app", "reason", "log"),
    [
        ("out_of_memory", "out of memory at batch size 16", ""),
        ("crashes", "crash under load", "a kernel went wrong"),
        ("unhealthy", f"{under_load('', 16)}: its health check failed: RuntimeError: the card has fallen off", ""),
    ],
)
def test_a_batch_that_fails_is_named_and_smaller_ones_are_measured(
    ray_serve: None, app: str, reason: str, log: str
) -> None:
    """Fails if the failure has no name, is waited for, or spoils what comes after it; batches above 4 fail here."""
    with serving(str(APPS / f"broken.py:{app}"), {"max_batch_size": [1, 2, 4, 8, 16]}) as (_, evaluator):
        began = time.monotonic()
        failed = evaluator.measure({"max_batch_size": 16}, exact=True)
        assert failed.infeasible_because.startswith(reason), failed.infeasible_because
        assert time.monotonic() - began < 60
        assert log in str(failed.details.get("log", ""))
        fine = evaluator.measure({"max_batch_size": 4}, exact=True)
        assert fine.feasible, fine.infeasible_because
        assert fine.metrics["peak_rps"] > 80
        assert not any(s.feasible and s.configuration["max_batch_size"] > 4 for s in fine.siblings)


@pytest.mark.parametrize("served", [("batching", None)], indirect=True)
def test_a_replica_that_was_replaced_gets_the_settings_again(served: tuple[Any, Any]) -> None:
    """Fails if a replica that Serve restarted with what it was told last is taken for one with live settings."""
    from morphling_ray.serving.control import ReplicaBatcher

    _, evaluator = served
    deployer = evaluator.stand.deployer
    small = {"cpu_cores": 1, "max_batch_size": 2, "batch_wait_timeout_ms": 0}
    large = {**small, "max_batch_size": 16}
    (first,) = deployer.deploy(small)
    began = time.monotonic()
    (same,) = deployer.deploy(large)
    assert time.monotonic() - began < 1.0  # Serve alone takes 0.3 s; the figure is printed by benchmarks/steps.py
    assert same == first
    os.kill(first.pid, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while not (now := deployer.replicas()) or now[0].pid == first.pid:
        assert time.monotonic() < deadline, "Serve did not replace the replica"
        time.sleep(0.1)
    (second,) = deployer.deploy(large)
    state = ReplicaBatcher(second.actor_name).state()
    assert state is not None
    assert state.max_batch_size == 16
    (third,) = deployer.deploy(small)
    assert third == second
    state = ReplicaBatcher(third.actor_name).state()
    assert state is not None
    assert state.max_batch_size == 2


@pytest.mark.parametrize("served", [("batching", None)], indirect=True)
def test_settings_are_taken_while_serves_controller_is_gone(served: tuple[Any, Any]) -> None:
    """Fails if a configuration is said to fail since a handle, without the controller, did not find its replicas."""
    import psutil

    from morphling_ray.serving.control import ReplicaBatcher

    _, evaluator = served
    deployer = evaluator.stand.deployer
    small = {"cpu_cores": 1, "max_batch_size": 2, "batch_wait_timeout_ms": 0}
    deployer.deploy(small)
    for size in (16, 4):
        every = psutil.process_iter(["cmdline"])  # None of one that has just ended
        (controller,) = [p for p in every if " ".join(p.info["cmdline"] or ()).startswith("ray::ServeController")]
        controller.kill()
        (replica,) = deployer.deploy({**small, "max_batch_size": size})
        state = ReplicaBatcher(replica.actor_name).state()
        assert state is not None
        assert state.max_batch_size == size


@pytest.mark.parametrize("served", [("md1", {"cpu_cores": [1]})], indirect=True)
def test_a_load_driver_that_is_lost_is_replaced(served: tuple[Any, Any]) -> None:
    """Fails if the death of a driver is taken for the application's, or breaks all trials that follow."""
    import ray

    _, evaluator = served
    lost: list[Any] = []

    def lose(text: str) -> None:
        (driver,) = evaluator.stand.crew._drivers
        if text == "warming up" and len(lost) < most and driver not in lost:
            lost.append(driver)
            ray.kill(driver)

    most = 1
    found = evaluator.measure({"cpu_cores": 1}, progress=lose)
    assert found.feasible, found.infeasible_because
    assert found.notes[0] == "attempt 1 was voided: a load driver was lost while it measured"
    most = 3
    found = evaluator.measure({"cpu_cores": 1}, progress=lose)
    assert found.infeasible_because == "the load drivers were lost, twice"
    ray.kill(evaluator.stand.crew._drivers[0])  # between two trials
    assert evaluator.measure({"cpu_cores": 1}).feasible


@pytest.mark.parametrize("served", [("md1", {"cpu_cores": [1]})], indirect=True)
def test_another_server_is_measured_by_plain_probes(served: tuple[Any, Any]) -> None:
    """Fails if the twin is taken to hold, or if the peak is off: 9 ms each keep 60 ms in 99 % up to 75 RPS."""
    _, evaluator = served
    found = evaluator.measure({"cpu_cores": 1})
    assert found.feasible, found.infeasible_because
    assert not found.estimated
    assert not found.siblings
    (expected,) = predicted_peaks(
        ServiceTimes(np.array([1]), np.array([0.009]), NO_STRAYS), [(1, 0.0)], slo_s=SLO_MS / 1e3, percentile=99.0
    )
    assert LOWEST < found.metrics["peak_rps"] / expected < HIGHEST


def test_a_server_that_waits_and_turns_requests_away_is_used_in_full(ray_serve: None) -> None:
    """Fails if its peak is what the usual few requests in flight are served (80 RPS), or if refusals are failures.

    Half of what it could serve is enough: whoever comes while a busy machine stands still finds the queue full.
    """
    with serving(f"{APPS / 'waiting.py'}:app", {"cpu_cores": [1]}, slo_p99_ms=400.0) as (_, evaluator):
        found = evaluator.measure({"cpu_cores": 1})
    assert found.feasible, found.infeasible_because
    assert 0.5 < found.metrics["peak_rps"] / (64 / 0.2) < 1.05


@pytest.mark.parametrize("served", [("md1", {"cpu_cores": [1, 2], "num_replicas": [1, 2]})], indirect=True)
@pytest.mark.skipif(len(os.sched_getaffinity(0)) != 2, reason="all cores must be one replica's")
def test_a_deployment_grows_where_there_is_no_room_beside_it(served: tuple[Any, Any]) -> None:
    """Fails if Serve waits for cores that the replica before holds: it would, for ever."""
    _, evaluator = served
    began = time.monotonic()
    for cores, replicas in ((2, 1), (1, 2), (2, 1)):
        evaluator.stand.bring_up({"cpu_cores": cores, "num_replicas": replicas})
        assert len(evaluator.stand.replicas) == replicas
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("served", [("md1", {"cpu_cores": [1]})], indirect=True)
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="a single core cannot be kept free")
def test_rays_own_processes_keep_off_the_replicas_cores(served: tuple[Any, Any]) -> None:
    """Fails if a daemon or the controller may run on a replica's core, or if what the raylet starts is confined."""
    from morphling_ray.serving.daemons import _own_processes
    from morphling_ray.serving.limits import cores_of

    _, evaluator = served
    everywhere = os.sched_getaffinity(0)
    stand = evaluator.stand
    stand.bring_up({"cpu_cores": 1})
    (replica,) = stand.replicas
    own = _own_processes()
    names = " ".join(" ".join(p.cmdline()) for p in own)
    assert all(name in names for name in ("gcs_server", "log_monitor", "ServeController")), names
    assert os.getpid() in [p.pid for p in own]
    for process in own:
        assert not set(cores_of(process.pid)) & set(cores_of(replica.pid)), process.cmdline()
    (raylet,) = [c for c in own[0].children() if c.name() == "raylet"]
    assert set(raylet.cpu_affinity()) == everywhere
    stand.close(wait=True)
    assert os.sched_getaffinity(0) == everywhere


@pytest.mark.parametrize("served", [("batching", None)], indirect=True)
def test_finalists_of_one_deployment_are_compared_on_the_same_replicas(served: tuple[Any, Any]) -> None:
    """Fails if a replica is restarted between windows, the better one loses, or its evidence is not kept."""
    _, evaluator = served
    small = {"cpu_cores": 1, "max_batch_size": 2, "batch_wait_timeout_ms": 0}
    large = {**small, "max_batch_size": 16}
    for _ in range(3):  # where the machine stalls too much to read rounds, they are measured one after the other
        lost, won = evaluator.compare(small, large)
        if lost.estimated:
            break
    assert won.comparison is not None
    assert won.comparison.won
    assert not won.comparison.tie
    assert won.comparison == lost.comparison.mirrored(small)
    computed = truth([(16, 0.0), (2, 0.0)])
    assert won.comparison.ratio == pytest.approx(computed[0] / computed[1], rel=0.3)
    assert LOWEST < won.metrics["peak_rps"] / computed[0] < HIGHEST
    assert lost.estimated
    assert lost.metrics["peak_rps"] == pytest.approx(won.metrics["peak_rps"] / won.comparison.ratio)
    assert won.details["replicas"] == lost.details["replicas"]
    assert any("on the same replicas" in note for note in won.notes)
    assert sum(p.kind == "open" for p in lost.probes) > won.comparison.rounds  # and those that find the rate
    assert sum(p.window_s > 2 for p in won.probes) >= 3  # the winner is measured long


@pytest.mark.parametrize(
    ("served", "one", "other", "note"),
    [
        (
            ("md1", {"cpu_cores": [1], "max_ongoing_requests": [50, 100]}),
            {"cpu_cores": 1, "max_ongoing_requests": 50},
            {"cpu_cores": 1, "max_ongoing_requests": 100},
            "both being up all the time",
        ),
        (("md1", {"cpu_cores": [1, 2]}), {"cpu_cores": 1}, {"cpu_cores": 2}, "one after the other"),
    ],
    indirect=["served"],
)
def test_finalists_of_two_deployments_are_compared(
    served: tuple[Any, Any], one: dict[str, Any], other: dict[str, Any], note: str
) -> None:
    """Two that are equal. Fails if a second application is left behind, or the first one's peak is that of both."""
    from ray import serve

    _, evaluator = served
    first, second = evaluator.compare(one, other)
    for measurement in (first, second):
        assert measurement.feasible, measurement.infeasible_because
        assert measurement.comparison is not None
        assert any(note in n for n in measurement.notes)
        assert LOWEST < measurement.metrics["peak_rps"] / 75 < HIGHEST  # see the test above
        assert 0.85 < measurement.comparison.ratio < 1.18
    assert first.comparison.won != second.comparison.won
    applications = set(serve.status().applications)
    assert not any(name.endswith("rival") for name in applications), applications


@pytest.mark.parametrize("work", ["", "__import__('time').sleep(0.008); "])
def test_the_batchers_application_is_measured(ray_serve: None, tmp_path: Path, work: str) -> None:
    """Fails if the page's application does not work as it is, or if its batches are taken for what limits it.

    As it is, its batches take microseconds, so that the way to the replica is the limit, and plain probes do the work.
    """
    page = Path(__file__).parents[1] / "docs" / "how_it_works.md"
    (block,) = [b for b in re.findall(r"```python\n(.*?)```", page.read_text(), re.S) if "Batcher" in b]
    app = tmp_path / f"readme_app_{len(work)}.py"
    app.write_text(block.replace("return [str", f"{work}return [str"))
    space: dict[str, list[Any]] = {"cpu_cores": [1], "max_batch_size": [1, 8], "batch_wait_timeout_s": [0.0, 0.01]}
    with serving(f"{app}:app", space) as (_, evaluator):
        found = evaluator.measure({"cpu_cores": 1, "max_batch_size": 8, "batch_wait_timeout_s": 0.0}, exact=True)
    assert found.feasible, found.infeasible_because
    assert len(found.siblings) == (3 if work else 0)
    assert 50 < found.metrics["peak_rps"] < 5000
