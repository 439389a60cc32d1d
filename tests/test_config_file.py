"""A user's own Serve config: what is read from it, and how it is edited."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from morphling_ray.errors import InputError
from morphling_ray.experiment import read_experiment
from morphling_ray.objective import Prices
from morphling_ray.serving.application import ApplicationFacts, inspect_app
from morphling_ray.serving.config_file import difference, edited
from morphling_ray.serving.costs import ApplicationCosts
from morphling_ray.serving.knobs import check_knobs, place_of, present_configuration
from morphling_ray.serving.serve_config import Scale, application_config, edits, recommended
from morphling_ray.space import Configuration, Knob

APPS = Path(__file__).parent / "apps"
FILE = APPS / "pipeline.yaml"
CHOSEN: Configuration = {
    "args.seconds": 0.004,
    "runtime_env.env_vars.SCORER_MODE": "quick",
    "deployments.Front.max_ongoing_requests": 100,
    "deployments.Scorer.cpu_cores": 2,
    "deployments.Scorer.user_config.factor": 3,
}


@pytest.fixture
def facts() -> ApplicationFacts:
    """One of the two applications of the file."""
    return inspect_app(f"{FILE}:scoring")


def by_name(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {d["name"]: d for d in config["deployments"]}


def test_what_the_file_says_beats_the_code(facts: ApplicationFacts) -> None:
    """Fails if the code's own settings are taken where the config has others, or lost where it has none."""
    assert (facts.import_path, facts.folder, facts.ingress) == ("pipeline:build", str(APPS), "Front")
    assert facts.args == {"seconds": 0.02}
    front, scorer = facts.deployments["Front"], facts.deployments["Scorer"]
    assert (front.num_replicas, front.max_ongoing_requests, front.autoscaling) == (1, 50, None)
    assert front.ray_actor_options["num_cpus"] == 0.5
    assert scorer.user_config == {"factor": 1}
    assert scorer.autoscaling == {"min_replicas": 1, "max_replicas": 4, "target_ongoing_requests": 2}


def test_knobs_of_the_whole_application(facts: ApplicationFacts) -> None:
    """Fails if an argument or an environment variable does not arrive, or if the present value is not found."""
    measured = application_config(facts, CHOSEN)
    assert measured["args"] == {"seconds": 0.004}
    assert measured["runtime_env"]["env_vars"]["SCORER_MODE"] == "quick"
    scorer = by_name(measured)["Scorer"]
    assert (scorer["num_replicas"], scorer["autoscaling_config"]) == (1, None)
    ServeDeploySchema.model_validate({"applications": [measured]})
    knobs = tuple(Knob.infer(name, [value]) for name, value in CHOSEN.items())
    check_knobs(knobs, facts)
    assert present_configuration(knobs, facts) == {
        "args.seconds": 0.02,
        "runtime_env.env_vars.SCORER_MODE": "exact",
        "deployments.Front.max_ongoing_requests": 50,
        "deployments.Scorer.cpu_cores": 1,
        "deployments.Scorer.user_config.factor": 1,
    }
    threads = Knob.infer("runtime_env.env_vars.SCORER_MODE", [4, 8])
    assert application_config(facts, {threads.name: 4})["runtime_env"]["env_vars"]["SCORER_MODE"] == "4"


def test_an_application_that_is_bound_takes_no_arguments() -> None:
    """Fails if a knob is accepted that nothing would ever read."""
    bound = inspect_app(f"{APPS / 'batched.py'}:app")
    with pytest.raises(InputError, match="only an application that a builder function makes takes args"):
        place_of("args.size", bound)


def test_the_file_is_edited_and_its_comments_stay(facts: ApplicationFacts) -> None:
    """Fails if a comment, the other application or what is no knob changes, or if Serve refuses the result."""
    text = edited(FILE, "scoring", edits(facts, CHOSEN, Scale(copies=3, ongoing=4.5)))
    before, after = yaml.safe_load(FILE.read_text()), yaml.safe_load(text)
    ServeDeploySchema.model_validate(after)
    comments = [line.partition("#")[2] for line in FILE.read_text().splitlines() if "#" in line]
    assert len(comments) == 4
    assert all(comment in text for comment in comments)
    assert after["applications"][0] == before["applications"][0]
    application = after["applications"][1]
    assert (application["name"], application["route_prefix"]) == ("scoring", "/scoring")
    assert application["args"] == {"seconds": 0.004}
    assert application["runtime_env"] == {"env_vars": {"SCORER_MODE": "quick"}}
    front, scorer = by_name(application)["Front"], by_name(application)["Scorer"]
    assert front == {**before["applications"][1]["deployments"][0], "max_ongoing_requests": 100, "num_replicas": 3}
    assert scorer["ray_actor_options"]["num_cpus"] == 2
    assert scorer["ray_actor_options"]["runtime_env"]["env_vars"]["OMP_NUM_THREADS"] == "2"
    assert scorer["user_config"] == {"factor": 3}
    assert scorer["autoscaling_config"] == {"min_replicas": 3, "max_replicas": 4, "target_ongoing_requests": 2}
    assert "num_replicas" not in scorer
    assert str(APPS) not in text
    changed = [line for line in difference(FILE, text).splitlines() if line[:1] in "+-" and line[1:2] not in "+-"]
    assert "-      seconds: 0.02   # a smaller model: 0.004" in changed
    assert len(changed) < 20


@pytest.mark.parametrize("dash", ["", "  "])
def test_lists_stay_where_they_were(tmp_path: Path, dash: str) -> None:
    """Fails if lists that are written in another way are all moved: the change would not be seen for the noise."""
    text = f"applications:\n# the only one\n{dash}- name: one\n{dash}  import_path: a:b\n"
    text += f"{dash}  deployments:\n{dash}  {dash}- name: A\n{dash}  {dash}  num_replicas: 1\n"
    (file := tmp_path / "serve.yaml").write_text(text)
    assert edited(file, None, {"deployments": {"A": {"num_replicas": 2}}}) == text.replace("1\n", "2\n")


def test_an_autoscaled_ingress_gets_the_target_that_was_measured() -> None:
    """Fails if autoscaling is lost in the result, or if its target stays what somebody once guessed."""
    facts = inspect_app(f"{APPS / 'autoscaled.py'}:app")
    deployment = recommended(facts, {"cpu_cores": 1}, Scale(copies=1, ongoing=6.5))["deployments"][0]
    assert "num_replicas" not in deployment
    assert deployment["autoscaling_config"]["target_ongoing_requests"] == 6.5
    assert deployment["autoscaling_config"]["max_replicas"] == 3
    fixed = recommended(facts, {"num_replicas": 2}, Scale(copies=2, ongoing=6.5))["deployments"][0]
    assert (fixed["num_replicas"], fixed["autoscaling_config"]) == (4, None)
    with pytest.raises(InputError, match="follows from what was measured"):
        place_of("deployments.Web.autoscaling_config.target_ongoing_requests", facts)


def test_every_deployment_costs_money(facts: ApplicationFacts) -> None:
    """Fails if only the ingress is paid for, or a knob with a full name is free."""
    prices = Prices(base=0.0, cpu_core=1.0, gpu={})
    knobs = (Knob("deployments.Scorer.cpu_cores", (1, 4)), Knob("deployments.Scorer.num_replicas", (1, 2)))
    costs = ApplicationCosts(prices, facts, knobs)
    assert costs.cost_per_hour({}) == pytest.approx(0.5 + 1)
    most: Configuration = {"deployments.Scorer.cpu_cores": 4, "deployments.Scorer.num_replicas": 2}
    assert costs.cost_per_hour(most) == pytest.approx(0.5 + 8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("applications: [", "is not YAML"),
        ("[1, 2]", "expected applications"),
        ("applications: [{name: a}]", "is no Serve config"),
        ("applications: []", "has no applications"),
        ("applications: [{import_path: pipeline:build, deployments: [{name: Nobody}]}]", "has no deployment Nobody"),
        ("applications: [{import_path: pipeline:nothing}]", "has no 'nothing'"),
    ],
)
def test_a_config_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    """Fails if a mistake in the file ends in a traceback, or is found only when it is deployed."""
    file = tmp_path / "config.yaml"
    file.write_text(text)
    (tmp_path / "pipeline.py").write_text((APPS / "pipeline.py").read_text())
    with pytest.raises(InputError, match=message):
        inspect_app(str(file))


def test_which_application_is_meant_must_be_clear() -> None:
    """Fails if one of several is guessed."""
    with pytest.raises(InputError, match="has the applications other, scoring: write"):
        inspect_app(str(FILE))
    with pytest.raises(InputError, match="No such file"):
        inspect_app(str(APPS / "nowhere.yaml"))


def test_an_experiment_names_the_config_beside_it(tmp_path: Path) -> None:
    """Fails if the path is taken relative to where the command was given."""
    file = tmp_path / "experiment.yaml"
    file.write_text("app: mine/serve.yaml:scoring\n")
    assert read_experiment(file)["app"] == f"{tmp_path}/mine/serve.yaml:scoring"
