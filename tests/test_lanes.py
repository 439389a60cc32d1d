"""Trials on several nodes at once: Ray's own nodes, all on this machine, and evaluators that only take their time."""

import itertools
import json
import sys
import tempfile
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

    def __init__(self, home: str | None = None, seat: int = 0, shared: bool = False, **how: Any) -> None:
        self.home, self.seat, self.shared, self.released = home, seat, shared, 0

    def measure(self, configuration: dict[str, Any], **how: Any) -> Measurement:
        import ray

        time.sleep(configuration.get("seconds", TRIAL_S))
        here = ray.get_runtime_context().get_node_id()
        assert self.home in (None, here)
        details = {"node": here, "seat": self.seat, "shared": self.shared, "released": self.released}
        return Measurement(configuration=configuration, metrics={"peak_rps": 1.0}, details=details)

    def throughput(self, configuration: dict[str, Any]) -> float:
        """Less where the other lane of this node is asked at the same time, by what the configuration says."""
        folder = Path(tempfile.gettempdir())
        mine, other = (folder / f"morphling-{self.home}-{number}" for number in (self.seat, 1 - self.seat))
        mine.touch()
        time.sleep(0.15)
        beside = other.exists()
        time.sleep(0.15)
        mine.unlink()
        return 100.0 * (1 - float(configuration.get("loss", 0.0)) * beside)

    def release(self) -> None:
        self.released += 1

    def tried(self, configurations: list[str]) -> None: ...

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
        if "ray.serve.context" in sys.modules:  # its client would be taken for that of the next test's cluster
            sys.modules["ray.serve.context"]._set_global_client(None)


def add(cluster: Any, room: dict[str, float]) -> Any:
    rest = {name: amount for name, amount in room.items() if name not in ("CPU", "GPU")}
    return cluster.add_node(num_cpus=room["CPU"], num_gpus=room.get("GPU", 0), resources=rest)


def lanes(*, node_timeout_s: float = 20.0, hang_s: float = 30.0, **how: Any) -> Any:
    from morphling_ray.evaluate.lanes import start_lanes

    name = f"lanes-{time.monotonic_ns()}"
    return start_lanes(name, Sleeper, {}, needs=needs, node_timeout_s=node_timeout_s, hang_s=hang_s, **how)


def ask(number: int, **configuration: Any) -> dict[str, Any]:
    return {"number": number, "configuration": configuration, "needed": {}, "stage": "search", "exact": False}


def measured(text: dict[str, str]) -> Measurement:
    return Measurement.from_dict(json.loads(text["measurement"]))


@pytest.mark.parametrize("nodes", [[T4]], indirect=True, ids=["1"])
@pytest.mark.timed
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


@pytest.mark.parametrize("nodes", [[T4, V100]], indirect=True, ids=["2"])
@pytest.mark.timed
def test_a_type_of_gpu_that_disappears(nodes: tuple[Any, list[Any]]) -> None:
    """Fails if a search waits for it again and again, if other types suffer, or if it is not taken when it is back."""
    import ray

    cluster, workers = nodes
    ours = lanes(node_timeout_s=2.0)
    running = [ours.measure.remote(ask(i, gpu_type=k, seconds=5.0)) for i, k in enumerate(("T4", "V100"))]
    time.sleep(2.5)  # lanes and trials have begun
    cluster.remove_node(workers[1], allow_graceful=False)
    stays, goes = [measured(text) for text in ray.get(running, timeout=60)]
    assert stays.feasible
    assert not stays.notes
    assert goes.infeasible_because == "no node: 2 s have passed without one that holds it"
    assert goes.voided == 1
    began = time.monotonic()
    asks = [ask(10 + i, gpu_type="V100") for i in range(5)] + [ask(20, gpu_type="T4")]
    found = [measured(text) for text in ray.get([ours.measure.remote(a) for a in asks], timeout=60)]
    assert [m.feasible for m in found] == [False] * 5 + [True]
    assert time.monotonic() - began < TRIAL_S + 1.4
    new = add(cluster, V100)
    assert measured(ray.get(ours.measure.remote(asks[0]), timeout=60)).details["node"] == new.node_id


@pytest.mark.parametrize("nodes", [[T4]], indirect=True, ids=["1"])
def test_what_does_not_end_or_has_no_node_has_a_reason(nodes: tuple[Any, list[Any]]) -> None:
    """Fails if a trial that hangs, or one for which there is no node, holds up the search."""
    import ray

    ours = lanes(node_timeout_s=1.5, hang_s=1.0)
    hung = measured(ray.get(ours.measure.remote(ask(1, seconds=60.0)), timeout=60))
    assert hung.infeasible_because == "the trial was lost 3 times: it had not ended after 1 s"
    assert len(hung.notes) == 3
    none = measured(ray.get(ours.measure.remote(ask(2, gpu_type="V100")), timeout=60))
    assert none.infeasible_because == "no node: 1.5 s have passed without one that holds it"
    rival = {**ask(3, seconds=0.1), "rival": ask(4, gpu_type="V100"), "ratio": 1.0, "cheaper": False}
    both = ray.get(ours.measure.remote(rival), timeout=60)
    assert set(both) == {"measurement", "rival"}


@pytest.mark.parametrize("nodes", [[T4, V100]], indirect=True, ids=["2"])
@pytest.mark.timed
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


@pytest.mark.parametrize("nodes", [[{"CPU": 6.0}]], indirect=True, ids=["1"])
@pytest.mark.parametrize(("loss", "at_once"), [(0.02, 2), (0.3, 1)])
@pytest.mark.timed
def test_two_trials_share_a_node_if_they_do_not_slow_each_other_down(
    nodes: tuple[Any, list[Any]], loss: float, at_once: int
) -> None:
    """Fails if neighbours are let in that disturb, if those that do not are kept out, or if it is not said."""
    import ray

    ours = lanes(seats=lambda room: 2)
    first = [measured(t) for t in ray.get([ours.measure.remote(ask(i, loss=loss)) for i in range(2)], timeout=60)]
    (said,) = [note for m in first for note in m.notes]
    assert said.startswith("trials share a node" if at_once == 2 else "trials have a node to themselves")
    assert said.endswith(f"beside each other two have {loss:.0%} less throughput than alone")
    began = time.monotonic()
    found = [measured(t) for t in ray.get([ours.measure.remote(ask(10 + i)) for i in range(4)], timeout=60)]
    rounds = 4 // at_once
    assert rounds * TRIAL_S <= time.monotonic() - began < rounds * TRIAL_S + 0.9
    assert {m.details["seat"] for m in found} == set(range(at_once))
    assert all(m.details["shared"] for m in found)
    assert not any(m.notes for m in found)


@pytest.mark.parametrize("nodes", [[{"CPU": 6.0}]], indirect=True, ids=["1"])
@pytest.mark.timed
def test_who_needs_the_whole_node_gets_it_in_turn(nodes: tuple[Any, list[Any]]) -> None:
    """Fails if a large trial or a finalist shares the node, waits while later ones go on, or finds its room taken."""
    import ray

    ours = lanes(seats=lambda room: 2)
    ray.get([ours.measure.remote(ask(i)) for i in range(2)], timeout=60)  # they share it from now on
    finalist = {**ask(20), "stage": "confirm"}
    began = time.monotonic()
    small = [ours.measure.remote(ask(10 + i)) for i in range(2)]
    time.sleep(0.2)
    large = ours.measure.remote(ask(30, cores=5))
    time.sleep(0.1)
    last = ours.measure.remote(finalist)
    time.sleep(0.1)
    later = [ours.measure.remote(ask(40 + i)) for i in range(2)]
    ends = {}
    for name, work in (("small", small), ("large", [large]), ("last", [last]), ("later", later)):
        found = [measured(t) for t in ray.get(work, timeout=60)]
        ends[name] = time.monotonic() - began
        assert all(m.feasible for m in found), [m.infeasible_because for m in found]
    assert TRIAL_S <= ends["small"] < ends["large"] - 0.8 * TRIAL_S
    assert ends["large"] < ends["last"] - 0.8 * TRIAL_S
    assert ends["last"] < ends["later"] - 0.8 * TRIAL_S
    assert {m.details["seat"] for m in found} == {0, 1}, "the last two did not share it again"
    assert sum(m.details["released"] for m in found) >= 1, "what was left up is in the way"


@pytest.mark.parametrize("nodes", [[{"CPU": 4.0, "GPU": 2.0}]], indirect=True, ids=["1"])
def test_two_candidates_never_share_a_card(nodes: tuple[Any, list[Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two lanes, each with two replicas on parts of a card. Fails if Ray is left to fill one card with both."""
    import threading

    from ray import serve

    from morphling_ray.serving.application import inspect_app
    from morphling_ray.serving.deployment import Deployer, start_serve

    _, (node,) = nodes
    start_serve()
    monkeypatch.chdir(Path(__file__).parent / "apps")
    facts = inspect_app("which_card:app")
    ours = lanes()
    deployers = [
        Deployer(
            facts,
            startup_timeout_s=60,
            app_name=f"app-{i}",
            node_id=node.node_id,
            whole_cards=True,
            turns=ours,
            route_prefix=f"/{i}",
        )
        for i in range(2)
    ]
    configuration = {"num_gpus": 0.3, "num_replicas": 2, "deployments.WhichCard.ray_actor_options.num_cpus": 0.5}
    threads = [threading.Thread(target=d.deploy, args=(configuration,)) for d in deployers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cards = []
    for i in range(2):
        handle = serve.get_app_handle(f"app-{i}")
        cards.append({handle.remote().result(timeout_s=20) for _ in range(20)})
    assert sorted(map(sorted, cards)) == [["0"], ["1"]], cards


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


@pytest.mark.timeout(240)
@pytest.mark.skipif(
    quoted_python() is not None, reason="a cluster of Ray's own starts no worker by a path with a space in it"
)
@pytest.mark.parametrize("nodes", [[{"CPU": 4.0}]], indirect=True, ids=["1"])
@pytest.mark.timed
def test_a_search_whose_trials_may_share_a_node(nodes: tuple[Any, list[Any]], tmp_path: Path) -> None:
    """Fails if it is not measured whether they disturb each other, or if they share the node although they do.

    Whether they do is for the machine to say: its cores are few, and the node claims more. A secret of the application
    goes to both lanes, and is in no file that others read.
    """
    from ray import serve

    cluster, _ = nodes
    (tmp_path / "request.json").write_text("21")
    (tmp_path / "experiment.yaml").write_text(
        "app: batched:app\nrequest: request.json\nobjective: rps\nmax_trials: 6\nsearcher: grid\n"
        "space: {max_batch_size: [1, 2, 4], max_ongoing_requests: [32, 64], "
        "runtime_env.env_vars.DB_PASSWORD: [hunter2]}\n"
    )
    how = ["--address", cluster.address, "--trials-per-node", "2", "--run-dir", "out"]
    finished = cli.tune(tmp_path, "--experiment", "experiment.yaml", *how, timeout_s=200)
    assert finished.status == 0, finished.said(tmp_path / "out")
    trials = cli.lines(tmp_path / "out" / "trials.jsonl")
    (said,) = [note for t in trials for note in t["notes"] if "than alone" in note]
    begun = sorted((t["started_s"], t["started_s"] + t["seconds"]) for t in trials if t["stage"] == "search")
    pids = {t["details"]["replicas"][0]["pid"] for t in trials if t["stage"] == "search"}
    assert len(begun) == 4
    if said.startswith("trials share a node"):
        assert len(pids) >= 2
    else:
        assert "have a node to themselves" in said
    kept = [file for file in (tmp_path / "out").iterdir() if file.is_file() and "hunter2" in file.read_text()]
    assert {file.name for file in kept} == {"secrets.json", "serve_config.yaml"}
    assert not any(file.stat().st_mode & 0o077 for file in kept)
    assert not serve.status().applications
