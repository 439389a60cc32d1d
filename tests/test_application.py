"""What is read from an application's code, and the Serve config that a configuration becomes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from morphling_ray.errors import InputError
from morphling_ray.objective import Prices
from morphling_ray.serving.application import ApplicationFacts, inspect_app, resolve_app
from morphling_ray.serving.costs import ApplicationCosts
from morphling_ray.serving.default_space import default_space
from morphling_ray.serving.knobs import check_knobs, place_of, present_configuration, undeclared_limits
from morphling_ray.serving.limits import CORES_VARIABLE
from morphling_ray.serving.serve_config import (
    expected_replicas,
    fit,
    largest_batch,
    replica_resources,
    serve_config,
    taken_at_once,
    total,
)
from morphling_ray.space import Configuration, Knob

APPS = Path(__file__).parent / "apps"


@pytest.fixture
def batched() -> ApplicationFacts:
    """The application with `@serve.batch` and a user_config."""
    return inspect_app(f"{APPS / 'batched.py'}:app")


@pytest.fixture
def web() -> ApplicationFacts:
    """The FastAPI application with two deployments, made by a builder."""
    return inspect_app(f"{APPS / 'web.py'}:build")


def the_only(config: dict[str, Any]) -> dict[str, Any]:
    """The deployment of a config that has one."""
    (application,) = config["applications"]
    (deployment,) = application["deployments"]
    found: dict[str, Any] = deployment
    return found


def test_what_the_code_declares(batched: ApplicationFacts, web: ApplicationFacts) -> None:
    """Fails if an explicit setting is taken for Serve's default or the other way round, or HTTP is not recognised."""
    (deployment,) = batched.deployments.values()
    assert (batched.import_path, batched.folder, batched.ingress) == ("batched:app", str(APPS), "Doubler")
    assert (deployment.user_config, deployment.max_ongoing_requests) == ({"max_batch_size": 1}, 64)
    assert deployment.num_replicas is None
    assert not batched.wants_http
    assert batched.default_request is None
    assert list(web.deployments) == ["Model", "Web"]
    assert web.ingress == "Web"
    assert web.wants_http


def test_a_script_that_serves_when_it_is_imported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fails if a tutorial's script is served beside what is measured, or its prints are taken for the result."""
    from ray import serve

    given = serve.run
    (tmp_path / "a_script.py").write_text(
        "from ray import serve\n"
        "@serve.deployment\nclass Hello: ...\n"
        "app = Hello.bind()\n"
        "print('to be served')\n"
        "serve.run(app)\n"
    )
    with pytest.raises(InputError, match=r"importing a_script calls serve\.run: put it, and what follows it, under"):
        inspect_app(f"{tmp_path / 'a_script.py'}:app")
    assert serve.run is given
    out, err = capsys.readouterr()
    assert (out, "to be served" in err) == ("", True)


def test_a_web_request_is_known_without_its_type(tmp_path: Path) -> None:
    """Fails if `await request.json()` gets a dict through the handle, or a dict is taken for a web request."""
    calls = {
        "Body": "async def __call__(self, request):\n        return (await request.json())['x']",
        "Query": "def __call__(self, http):\n        return http.query_params['x']",
        "Typed": "async def __call__(self, request: dict):\n        return await request.json()",
        "Given": "async def __call__(self, request):\n        return request.json() + str(await self.body())",
    }
    text = "".join(f"@serve.deployment\nclass {n}:\n    {c}\n{n.lower()} = {n}.bind()\n" for n, c in calls.items())
    (tmp_path / "untyped.py").write_text("from ray import serve\n" + text)
    app = f"{tmp_path / 'untyped.py'}:"
    assert [inspect_app(app + n.lower()).wants_http for n in calls] == [True, True, False, False]


def test_the_demo_says_what_it_wants_to_be_asked_and_searched() -> None:
    """Fails if a module's own `request` and `space` are not used, or if values need more cores than there are."""
    demo = inspect_app("morphling_ray.serving.demo:app")
    assert demo.default_request == "morphling_ray.serving.demo:request"
    assert demo.folder is None
    space = default_space(demo, cores=2)
    assert space.knob("cpu_cores").values == (1, 2)
    assert space.knob("precision").kind == "categorical"
    assert len(space) == 72
    present = present_configuration(space.knobs, demo)
    assert present is not None
    assert present in space


def test_modules_are_found_by_name_and_by_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if the folder that replicas need on their path is not the module's own."""
    (tmp_path / "mine.py").write_text("")
    monkeypatch.chdir(tmp_path)
    assert resolve_app("mine:app") == ("mine:app", str(tmp_path))
    assert resolve_app(f"{tmp_path}/mine.py:app") == ("mine:app", str(tmp_path))
    assert resolve_app("mine.py:app") == ("mine:app", str(tmp_path))
    assert resolve_app("json:loads") == ("json:loads", None)


def test_knobs_go_where_they_belong(batched: ApplicationFacts) -> None:
    """Fails if a knob lands in another place, if what the code declares gets lost, or if Serve refuses the config."""
    configuration: Configuration = {"cpu_cores": 2, "num_replicas": 3, "max_batch_size": 8, "max_ongoing_requests": 7}
    config = serve_config(batched, configuration)
    ServeDeploySchema.model_validate(yaml.safe_load(yaml.safe_dump(config)))
    deployment = the_only(config)
    assert deployment["num_replicas"] == 3
    assert deployment["user_config"] == {"max_batch_size": 8}
    assert deployment["max_ongoing_requests"] == 7
    assert deployment["ray_actor_options"]["num_cpus"] == 2
    variables = deployment["ray_actor_options"]["runtime_env"]["env_vars"]
    assert variables[CORES_VARIABLE] == variables["OMP_NUM_THREADS"] == "2"
    assert variables["PYTHONPATH"].split(":")[0] == str(APPS)
    assert config["applications"][0]["runtime_env"]["env_vars"]["PYTHONPATH"].split(":")[0] == str(APPS)
    assert expected_replicas(batched, configuration) == 3
    assert total(replica_resources(batched, configuration)) == {"CPU": 6.0, "GPU": 0.0}
    assert taken_at_once(batched, configuration) == 21
    assert largest_batch(configuration) == 8


def test_resources_that_have_names_are_counted(batched: ApplicationFacts) -> None:
    """Fails if memory, or a resource that a cluster's owner named, is not counted for each replica."""
    options = {"num_cpus": 1, "memory": 1e9, "resources": {"fast_disk": 0.5}}
    (deployment,) = batched.deployments.values()
    asking = replace(batched, deployments={deployment.name: replace(deployment, ray_actor_options=options)})
    held = total(replica_resources(asking, {"num_replicas": 3}))
    assert held == {"CPU": 3.0, "GPU": 0.0, "memory": 3e9, "fast_disk": 1.5}


def test_what_a_replicas_placement_group_holds_counts() -> None:
    """Fails if workers of a replica are held, or paid for, by nobody, or a larger replica no longer fits its bundle."""
    facts = inspect_app(f"{APPS / 'sharded.py'}:app")
    assert facts.deployments["Sharded"].beside == {"CPU": 1.0}
    found = serve_config(facts, {"cpu_cores": 2, "num_replicas": 3})
    ServeDeploySchema.model_validate(found)
    assert the_only(found)["placement_group_bundles"] == [{"CPU": 2.5}, {"CPU": 0.5}]
    assert the_only(serve_config(facts, {"num_replicas": 3}))["placement_group_bundles"] == [{"CPU": 1.5}, {"CPU": 0.5}]
    assert total(replica_resources(facts, {"cpu_cores": 2, "num_replicas": 3})) == {"CPU": 9.0, "GPU": 0.0}
    prices = Prices(base=0.0, cpu_core=1.0, gpu={"L4": 10.0, "T4": 1.0})
    costs = ApplicationCosts(prices, facts, (Knob("cpu_cores", (1, 2)), Knob("num_replicas", (1, 3))))
    assert costs.cost_per_hour({"cpu_cores": [1, 2], "num_replicas": 3}) == pytest.approx([6.0, 9.0])
    cards = inspect_app(f"{APPS / 'sharded.py'}:parallel")
    assert total(replica_resources(cards, {"num_replicas": 2}))["GPU"] == 4.0
    costs = ApplicationCosts(prices, cards, (Knob("num_replicas", (1, 2)),), gpu_type="T4")
    assert costs.cost_per_hour({"num_replicas": 2}) == pytest.approx(2 * (2 * 1.0 + 2 * 10.0))


def test_the_limit_of_requests_at_once_is_that_of_the_ingress(web: ApplicationFacts) -> None:
    """Fails if another deployment's limit counts, or if one that is declared does not."""
    assert taken_at_once(web, {}) == 100
    declared = replace(web.deployments[web.ingress], max_ongoing_requests=7, num_replicas=2)
    assert taken_at_once(replace(web, deployments={**web.deployments, web.ingress: declared}), {}) == 14


def test_serves_small_default_limit_does_not_throttle_the_test(web: ApplicationFacts) -> None:
    """Fails if an application without a limit of its own keeps Serve's default, or if a declared one is overwritten."""
    config = serve_config(web, {})
    assert [d["max_ongoing_requests"] for d in config["applications"][0]["deployments"]] == [100, 100]
    declared = serve_config(inspect_app(f"{APPS / 'batched.py'}:app"), {})
    assert "max_ongoing_requests" not in the_only(declared)


def test_gpu_knobs(batched: ApplicationFacts) -> None:
    """Fails if a GPU or its type is not asked for, or not counted."""
    configuration: Configuration = {"num_gpus": 1, "gpu_type": "T4"}
    options = the_only(serve_config(batched, configuration))["ray_actor_options"]
    assert (options["num_gpus"], options["accelerator_type"]) == (1, "T4")
    assert total(replica_resources(batched, configuration))["GPU"] == 1.0
    assert total(replica_resources(batched, configuration))["accelerator_type:T4"] > 0


def test_names_with_several_deployments(web: ApplicationFacts) -> None:
    """Fails if a short name is guessed, or a full one is not understood."""
    with pytest.raises(InputError, match=r"write deployments\.Model\.cpu_cores or deployments\.Web\.cpu_cores"):
        place_of("cpu_cores", web)
    place = place_of("deployments.Model.ray_actor_options.num_cpus", web)
    assert (place.deployment, place.keys) == ("Model", ("ray_actor_options", "num_cpus"))
    with pytest.raises(InputError, match="the application's deployments are Model, Web"):
        place_of("deployments.Nobody.num_replicas", web)
    with pytest.raises(InputError, match="after the deployment comes one of"):
        place_of("deployments.Model.number_of_replicas", web)
    space = default_space(web, cores=2)
    assert {f"deployments.{d}.{k}" for d in ("Model", "Web") for k in ("cpu_cores", "num_replicas")} == set(
        space.columns
    )


@pytest.mark.parametrize(("name", "values"), [("num_replicas", (1.5,)), ("max_ongoing_requests", ("many",))])
def test_values_must_fit_their_knob(batched: ApplicationFacts, name: str, values: tuple[Any, ...]) -> None:
    """Fails if a value that Serve would refuse later is let through."""
    with pytest.raises(InputError, match="whole numbers from 1"):
        check_knobs((Knob.infer(name, list(values)),), batched)


def test_limits_that_are_left_to_serve(batched: ApplicationFacts, web: ApplicationFacts) -> None:
    """Fails if it is not known whose limit of requests in flight a measurement lifts."""
    assert undeclared_limits([], batched) == []
    assert undeclared_limits([], web) == ["Model", "Web"]
    knob = Knob.infer("deployments.Model.max_ongoing_requests", [5, 100])
    assert undeclared_limits([knob], web) == ["Web"]


def test_room_is_on_single_nodes() -> None:
    """Fails if a replica is taken to fit that no node has the room for, or if room is given away twice."""
    nodes = [{"CPU": 2.0}, {"CPU": 3.0, "GPU": 1.0}]
    assert fit([{"CPU": 2.0}, {"CPU": 2.0}], nodes)
    assert not fit([{"CPU": 4.0}], nodes)
    assert not fit([{"CPU": 2.0}] * 3, nodes)
    assert fit([{"CPU": 1.0, "GPU": 0.5}] * 2, nodes)
    assert not fit([{"CPU": 1.0, "GPU": 0.6}] * 2, nodes)
    assert nodes[1]["GPU"] == 1.0


def test_the_present_configuration(batched: ApplicationFacts) -> None:
    """Fails if it is not what the code says, also where that is not among the knob's values."""
    knobs = (Knob.infer("max_batch_size", [1, 4]), Knob.infer("cpu_cores", [1, 2]))
    assert present_configuration(knobs, batched) == {"max_batch_size": 1, "cpu_cores": 1}
    assert present_configuration((Knob.infer("max_batch_size", [2, 4]),), batched) == {"max_batch_size": 1}
    assert present_configuration((Knob.infer("gpu_type", ["T4"]),), batched) is None


def test_a_default_space_from_the_code_alone(batched: ApplicationFacts) -> None:
    """Fails if declared batch settings are not searched, or replicas need more cores than there are."""
    space = default_space(batched, cores=4)
    assert set(space.columns) == {"cpu_cores", "max_batch_size", "num_replicas"}
    assert (space.columns["cpu_cores"] * space.columns["num_replicas"]).max() == 4
