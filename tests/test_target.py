"""What a search plans for a Serve application on a cluster, before anything is deployed."""

from pathlib import Path

import numpy as np
import pytest

from morphling_ray.cluster import Cluster
from morphling_ray.errors import InputError
from morphling_ray.experiment import Experiment
from morphling_ray.target import Plan, ServeTarget

APPS = Path(__file__).parent / "apps"
TWO_CORES = Cluster(local=True, nodes=({"CPU": 2.0},))
BATCHED, PIPELINE = f"{APPS / 'batched.py'}:app", f"{APPS / 'pipeline.yaml'}:scoring"


def plan(app: str, cluster: Cluster = TWO_CORES, **settings: object) -> Plan:
    return ServeTarget(Experiment(app=app, **settings)).plan(cluster)  # type: ignore[arg-type]


def test_the_present_configuration_is_measured_although_nobody_listed_it() -> None:
    """Fails if a user who lists other values gets no gain to read, or if it takes the only trial that there is."""
    found = plan(BATCHED, space={"max_batch_size": [2, 4], "max_ongoing_requests": [8, 32]})
    assert found.initial == ({"max_batch_size": 1, "max_ongoing_requests": 64},)
    assert found.initial[0] not in found.space
    assert any("not in the space: it is measured" in note for note in found.notes)
    assert not plan(BATCHED, space={"max_batch_size": [2, 4]}, max_trials=1).initial
    inside = plan(BATCHED, space={"max_batch_size": [1, 4]})
    assert inside.initial == ({"max_batch_size": 1},)
    assert not inside.notes


def test_a_present_configuration_that_does_not_fit_is_left_out() -> None:
    """Fails if the first trial waits for ever for cores that no node has."""
    smaller = {"deployments.Scorer.ray_actor_options.num_cpus": [0.5]}
    found = plan(PIPELINE, Cluster(local=True, nodes=({"CPU": 1.2},)), space=smaller)
    assert not found.initial
    assert any("needs more than the cluster has: it is not measured" in note for note in found.notes)


def test_several_deployments_are_searched_without_a_word() -> None:
    """Fails if a pipeline needs an experiment file, or if a configuration needs more cores than there are."""
    found = plan(PIPELINE, Cluster(local=True, nodes=({"CPU": 4.0},)))
    knobs = (
        "Front.num_replicas",
        "Scorer.cpu_cores",
        "Scorer.num_replicas",
    )  # Front takes half a core, by its own word
    assert set(found.space.columns) == {f"deployments.{knob}" for knob in knobs}
    columns = found.space.columns
    scorers = columns["deployments.Scorer.cpu_cores"] * columns["deployments.Scorer.num_replicas"]
    cores = scorers + 0.5 * columns["deployments.Front.num_replicas"]
    assert cores.max() == 4
    assert len(found.space) > 5


def test_a_pipeline_that_no_node_holds_is_told_how_much_it_takes() -> None:
    """Fails if its user has to find out which cores are meant."""
    with pytest.raises(InputError, match=r"largest node has 1 cores: the smallest takes 1\.5 for its replicas"):
        plan(PIPELINE, Cluster(local=True, nodes=({"CPU": 1.0},)))


def test_all_deployments_count_in_the_objective() -> None:
    """Fails if another deployment than the ingress costs nothing."""
    found = plan(PIPELINE, Cluster(local=True, nodes=({"CPU": 8.0},)), objective="rps_per_dollar")
    small = dict.fromkeys(found.space.columns, 1)
    large = {**small, "deployments.Scorer.cpu_cores": 4}
    values = [float(found.objective(c, {"peak_rps": 100.0})) for c in (small, large)]
    assert values[0] > values[1] > 0
    assert values[0] == pytest.approx(values[1] * 2.5, rel=0.6)


def test_a_card_that_the_paper_does_not_know_has_a_price() -> None:
    """Fails if an H100 is free of charge, or what stands in for the paper's prices is not said."""
    h100 = Cluster(local=True, nodes=({"CPU": 8.0, "GPU": 1.0, "accelerator_type:H100": 1.0},))
    shares: dict[str, object] = {"space": {"gpu_share": [0.5, 1.0]}}
    found = plan(BATCHED, h100, objective="rps_per_dollar", **shares)
    assert "costs are by AWS's prices (--prices aws), since the paper's have none for H100" in found.notes
    half, whole = 100.0 / found.objective({"gpu_share": np.array([0.5, 1.0])}, {"peak_rps": np.full(2, 100.0)})
    assert whole - half == pytest.approx(5.81 / 2)
    other = Cluster(local=True, nodes=({"CPU": 8.0, "GPU": 1.0, "accelerator_type:B7000": 1.0},))
    assert (
        "the cost is without the GPU: there is no price for B7000"
        in plan(BATCHED, other, objective="rps", **shares).notes
    )
    with pytest.raises(InputError, match="no price for GPU type B7000"):
        plan(BATCHED, other, objective="rps_per_dollar", **shares)
    assert not any("price" in note for note in plan(BATCHED, h100, space={"cpu_cores": [1, 2]}).notes)


def test_an_application_for_a_gpu_is_searched_without_a_word(tmp_path: Path) -> None:
    """Fails if one that has a whole card now is not compared with parts of it, or may not have one replica on it."""
    (tmp_path / "app.py").write_text((APPS / "batched.py").read_text())
    options = "ray_actor_options: {num_gpus: 1}"
    config = f"applications: [{{name: a, import_path: 'app:app', deployments: [{{name: Doubler, {options}}}]}}]"
    (tmp_path / "serve.yaml").write_text(config)
    card = Cluster(local=True, nodes=({"CPU": 4.0, "GPU": 1.0, "accelerator_type:T4": 1.0},))
    found = plan(str(tmp_path / "serve.yaml"), card)
    assert {"gpu_memory", "gpu_share"} < set(found.space.columns)
    held = np.maximum(found.space.columns["gpu_memory"], found.space.columns["gpu_share"])
    assert (held * found.space.columns["num_replicas"]).max() == 1
    (present,) = found.initial
    assert (present["gpu_memory"], present["gpu_share"], present["num_replicas"]) == (1.0, 1.0, 1)
    assert "gpu_share" not in plan(str(tmp_path / "serve.yaml"), card, mps="off").space.columns
    with pytest.raises(InputError, match=r"asks for 0\.1 GPU, but the cluster has 0"):
        plan(str(tmp_path / "serve.yaml"))


def test_an_ingress_that_only_has_methods(tmp_path: Path) -> None:
    """Fails if who forgot to say which method is meant hears of it in a trial only, or is asked though it was said."""
    (tmp_path / "methods_only.py").write_text(
        "from ray import serve\n"
        "@serve.deployment\n"
        "class Index:\n"
        "    def reconfigure(self, config): ...\n"
        "    def add(self, text): ...\n"
        "    def search(self, text, k): ...\n"
        "    def _own(self): ...\n"
        "app = Index.bind()\n"
    )
    app, request = f"{tmp_path / 'methods_only.py'}:app", tmp_path / "request.json"
    request.write_text('{"call": "search", "args": ["cats"], "kwargs": {"k": 3}}')
    assert plan(app, request=str(request)).space
    request.write_text('"cats"')
    with pytest.raises(InputError, match=r'which method to call, of add, search: \{"call": "add"'):
        plan(app, request=str(request))


def test_a_method_of_a_web_application_is_called_through_its_handle(tmp_path: Path) -> None:
    """Fails if a call becomes the body of a POST."""
    request = tmp_path / "request.json"
    request.write_text('{"call": "score", "args": [{"text": "cats"}]}')
    target = ServeTarget(Experiment(app=f"{APPS / 'web.py'}:build", request=str(request)))
    assert target.proxy is None
    assert target.source.values == ({"call": "score", "args": [{"text": "cats"}]},)
