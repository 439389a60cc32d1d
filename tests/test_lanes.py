"""Trials on several nodes at once: Ray's own nodes, all on this machine, and evaluators that only take their time."""

import itertools
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cli
import pytest

from morphling_ray.cluster import quoted_python
from morphling_ray.measurement import Measurement

pytestmark = [
    pytest.mark.serve,
    pytest.mark.timeout(120),
    # Ray starts its processes by fork and exec, here beside the threads that JAX has left from other tests.
    pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning"),
]
T4, V100 = {"CPU": 2.0, "GPU": 1.0, "accelerator_type:T4": 1.0}, {"CPU": 4.0, "GPU": 1.0, "accelerator_type:V100": 1.0}
TRIAL_S = 0.5


class Sleeper:
    """An evaluator that sleeps, and says where."""

    def __init__(self, home: str | None = None, turns: Any = None) -> None:
        self.home = home

    def measure(self, configuration: dict[str, Any], **how: Any) -> Measurement:
        import ray

        time.sleep(configuration.get("seconds", TRIAL_S))
        here = ray.get_runtime_context().get_node_id()
        assert self.home in (None, here)
        return Measurement(configuration=configuration, metrics={"peak_rps": 1.0}, details={"node": here})

    def close(self) -> None: ...


def needs(configuration: dict[str, Any]) -> list[dict[str, float]]:
    """One replica with so many cores, and a card of a type where one is named."""
    needed = {"CPU": float(configuration.get("cores", 1))}
    if "gpu_type" in configuration:
        needed.update({"GPU": 0.5, f"accelerator_type:{configuration['gpu_type']}": 0.001})
    return [needed]


@pytest.fixture
def nodes(request: pytest.FixtureRequest) -> Iterator[tuple[Any, list[Any]]]:
    """A cluster whose head has no cores, and workers with these resources; with the workers."""
    import ray
    from ray.cluster_utils import Cluster

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import it
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        workers = [add(cluster, room) for room in request.param]
        ray.init(address=cluster.address, namespace="morphling_ray", log_to_driver=False, logging_level="ERROR")
        yield cluster, workers
    finally:
        ray.shutdown()
        cluster.shutdown()


def add(cluster: Any, room: dict[str, float]) -> Any:
    rest = {name: amount for name, amount in room.items() if name not in ("CPU", "GPU")}
    return cluster.add_node(num_cpus=room["CPU"], num_gpus=room.get("GPU", 0), resources=rest)


def lanes(*, node_timeout_s: float = 20.0, hang_s: float = 30.0, **how: float) -> Any:
    from morphling_ray.evaluate.lanes import start_lanes

    name = f"lanes-{time.monotonic_ns()}"
    return start_lanes(name, Sleeper, {}, needs=needs, node_timeout_s=node_timeout_s, hang_s=hang_s, **how)


def ask(number: int, **configuration: Any) -> dict[str, Any]:
    return {"number": number, "configuration": configuration, "needed": {}, "stage": "search", "exact": False}


def measured(text: dict[str, str]) -> Measurement:
    return Measurement.from_dict(json.loads(text["measurement"]))


@pytest.mark.parametrize("nodes", [[T4]], indirect=True, ids=["1"])
def test_every_slot_is_full_and_nothing_waits_for_ever(nodes: tuple[Any, list[Any]]) -> None:
    """Fails if trials starve each other, go where their type is not, or do not run at once, on one to four nodes."""
    import ray

    cluster, (first,) = nodes
    kinds = {first.node_id: "T4"}
    ours = lanes()
    for kind, room in ((None, {}), ("V100", V100), ("T4", T4), ("V100", V100)):
        if kind is not None:
            kinds[add(cluster, room).node_id] = kind
        # The processes of all lanes are up after this.
        ray.get([ours.measure.remote(ask(0, gpu_type=k, seconds=1.0)) for k in kinds.values()])
        began = time.monotonic()
        asks = [ask(i, gpu_type=k) for i in range(3) for k in kinds.values()]
        asks += [ask(100, cores=2) for _ in kinds]  # which any of them holds
        found = [measured(text) for text in ray.get([ours.measure.remote(a) for a in asks], timeout=60)]
        seconds = time.monotonic() - began
        assert all(m.feasible for m in found), [m.infeasible_because for m in found]
        for m in found:
            assert m.configuration.get("gpu_type", kinds[m.details["node"]]) == kinds[m.details["node"]]
        assert 4 * TRIAL_S <= seconds < 4 * TRIAL_S + 1.5, "two on one node, or a node that waits"
        assert {m.details["node"] for m in found} == set(kinds)


@pytest.mark.parametrize("nodes", [[T4, T4]], indirect=True, ids=["2"])
def test_a_lost_node_costs_its_trial_only(nodes: tuple[Any, list[Any]]) -> None:
    """Fails if a trial on a lost node is lost, or counts against what it measured; or if a new node is not used."""
    import ray

    cluster, workers = nodes
    ours = lanes()
    ray.get([ours.measure.remote(ask(i, seconds=0.3)) for i in range(2)])
    running = [ours.measure.remote(ask(10 + i, seconds=4.0)) for i in range(2)]
    time.sleep(1.5)
    cluster.remove_node(workers[0], allow_graceful=False)
    found = [measured(text) for text in ray.get(running, timeout=60)]
    assert all(m.feasible for m in found)
    assert {m.details["node"] for m in found} == {workers[1].node_id}
    assert sorted(len(m.notes) for m in found) == [0, 1]
    (note,) = [note for m in found for note in m.notes]
    assert note.startswith("attempt 1 was voided: its lane was lost (")
    cluster.remove_node(workers[1], allow_graceful=False)
    waiting = ours.measure.remote(ask(20, gpu_type="V100"))
    time.sleep(2.0)
    new = add(cluster, V100)
    assert measured(ray.get(waiting, timeout=60)).details["node"] == new.node_id


@pytest.mark.parametrize("nodes", [[T4]], indirect=True, ids=["1"])
def test_what_does_not_end_or_has_no_node_has_a_reason(nodes: tuple[Any, list[Any]]) -> None:
    """Fails if a trial that hangs, or one for which there is no node, holds up the search."""
    import ray

    ours = lanes(node_timeout_s=1.5, hang_s=1.0)
    hung = measured(ray.get(ours.measure.remote(ask(1, seconds=60.0)), timeout=60))
    assert hung.infeasible_because == "the trial was lost 3 times: it had not ended after 1 s"
    assert len(hung.notes) == 3
    none = measured(ray.get(ours.measure.remote(ask(2, gpu_type="V100")), timeout=60))
    assert none.infeasible_because == "no node: there has been none for 1.5 s"
    rival = {**ask(3, seconds=0.1), "rival": ask(4, gpu_type="V100"), "ratio": 1.0, "cheaper": False}
    both = ray.get(ours.measure.remote(rival), timeout=60)
    assert set(both) == {"measurement", "rival"}


@pytest.mark.parametrize("nodes", [[T4, V100]], indirect=True, ids=["2"])
def test_one_at_a_time_changes_what_is_served(nodes: tuple[Any, list[Any]]) -> None:
    """Fails if two lanes change Serve's one config together, or if one that is gone blocks the others."""
    import ray

    ours = lanes(turn_s=2.0)
    ray.get(ours.begin_turn.remote("one"))
    second = ours.begin_turn.remote("two")
    assert not ray.wait([second], timeout=0.5)[0]
    ray.get(ours.end_turn.remote("two"))  # not its own
    assert not ray.wait([second], timeout=0.5)[0]
    ray.get(ours.end_turn.remote("one"))
    ray.get(second, timeout=2)
    began = time.monotonic()
    ray.get(ours.begin_turn.remote("three"), timeout=10)
    assert 1.0 < time.monotonic() - began < 5.0


@pytest.mark.timeout(240)
@pytest.mark.skipif(
    quoted_python() is not None, reason="a cluster of Ray's own starts no worker by a path with a space in it"
)
@pytest.mark.parametrize("nodes", [[{"CPU": 1.0}, {"CPU": 1.0}]], indirect=True, ids=["2"])
def test_a_search_on_two_nodes(nodes: tuple[Any, list[Any]], tmp_path: Path) -> None:
    """Fails if only one node is used, if a lane takes another one's application down, or leaves anything behind."""
    import ray
    from ray import serve

    cluster, workers = nodes

    class LeftOver:
        """By a lane that was lost: it holds the only core of its node."""

    there = {"label_selector": {"ray.io/node-id": workers[0].node_id}}
    left_over = serve.deployment(ray_actor_options=there)(LeftOver).bind()
    serve.run(left_over, name=f"morphling-{workers[0].node_id[-8:]}", route_prefix=None)
    (tmp_path / "request.json").write_text("21")
    (tmp_path / "experiment.yaml").write_text(
        "app: batched:app\nrequest: request.json\nobjective: rps\nmax_trials: 6\nsearcher: grid\n"
        "space: {max_batch_size: [1, 2, 4, 8], max_ongoing_requests: [32, 64]}\n"
    )
    finished = cli.tune(
        tmp_path, "--experiment", "experiment.yaml", "--address", cluster.address, "--run-dir", "out", timeout_s=200
    )
    assert finished.status == 0, finished.said(tmp_path / "out")
    trials = cli.lines(tmp_path / "out" / "trials.jsonl")
    assert len(trials) >= 4
    assert not any(trial.get("infeasible_because") for trial in trials)
    spans = sorted((t["started_s"], t["started_s"] + t["seconds"]) for t in trials if t["stage"] == "search")
    assert any(later[0] < earlier[1] - 0.5 for earlier, later in itertools.pairwise(spans)), "never two at once"
    used = {t["details"]["replicas"][0]["node"] for t in trials}
    assert used == {worker.node_id for worker in workers}
    assert not serve.status().applications
    assert not [actor for actor in ray.util.list_named_actors(all_namespaces=True) if "lane" in actor["name"]]
