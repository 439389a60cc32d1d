"""A configuration as a Ray Serve config: what is measured is exactly what is deployed afterwards.

Each knob names a place in the config (knobs.py).
"""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from morphling_ray.serving.application import ApplicationFacts, DeploymentFacts, python_path
from morphling_ray.serving.gpu_limits import gpu_environment
from morphling_ray.serving.knobs import GPU_PARTS, SHORT_NAMES, Place, gpu_held, has_gpu, place_of
from morphling_ray.serving.limits import CORES_VARIABLE, HOOK, cpu_environment
from morphling_ray.space import Value

APP_NAME = "morphling"


def application_config(
    facts: ApplicationFacts, configuration: Mapping[str, Value], *, name: str = APP_NAME, route_prefix: str = "/"
) -> dict[str, Any]:
    """One entry of a Serve config's `applications`: the application with one configuration applied."""
    deployments: dict[str, dict[str, Any]] = {}
    for deployment in facts.deployments.values():
        entry: dict[str, Any] = {**copy.deepcopy(deployment.config), "name": deployment.name}
        # A config replaces what the code declares, so what must stay is repeated.
        if deployment.user_config is not None:
            entry["user_config"] = copy.deepcopy(deployment.user_config)
        entry["ray_actor_options"] = copy.deepcopy(deployment.ray_actor_options)
        if deployment.autoscaling is not None:
            # A peak belongs to a fixed number of replicas; autoscaling would move it during the measurement.
            entry["num_replicas"], entry["autoscaling_config"] = 1, None
        deployments[deployment.name] = entry
    config = copy.deepcopy(facts.config)
    config.update(name=name, route_prefix=route_prefix, import_path=facts.import_path)
    if facts.args:
        config["args"] = copy.deepcopy(facts.args)
    parts: dict[str, dict[str, Any]] = {}  # of a GPU, by deployment
    for knob, value in configuration.items():
        place, value = place_of(knob, facts), facts.secrets.get(knob, {}).get(str(value), value)
        if place.deployment is None:
            _put(config, place.keys, str(value) if place.keys[0] == "runtime_env" else value)
            continue
        entry = deployments[place.deployment]
        if place.keys == ("cpu_cores",):
            entry["ray_actor_options"]["num_cpus"] = value
            if float(value) > 0:  # an application's present configuration may reserve none
                _environment(entry).update(cpu_environment(float(value)))
        elif place.keys[0] in GPU_PARTS:
            parts.setdefault(place.deployment, {})[place.keys[0]] = value
        else:
            _put(entry, place.keys, value)
    knobs = {place_of(knob, facts) for knob in configuration}
    for owner, wanted in parts.items():
        limits = {GPU_PARTS[name]: value for name, value in wanted.items()}
        _environment(deployments[owner]).update(HOOK, **gpu_environment(**limits, mps_mode=facts.mps))
        if Place(owner, SHORT_NAMES["num_gpus"]) not in knobs:
            held = gpu_held(wanted)
            deployments[owner]["ray_actor_options"]["num_gpus"] = 1 if held == 1 else held
    for deployment in facts.deployments.values():
        _environment(deployments[deployment.name]).update(python_path(facts.folder))
        _allow_enough_requests(deployments[deployment.name], deployment)
        _make_room(deployments[deployment.name], deployment)
    runtime_env = config["runtime_env"] = dict(config.get("runtime_env") or {})
    if facts.folder:
        runtime_env.setdefault("env_vars", {}).update(python_path(facts.folder))
    if facts.py_executable:
        runtime_env["py_executable"] = facts.py_executable
    if not runtime_env:
        config.pop("runtime_env")
    config["deployments"] = [_without_empty(entry) for entry in deployments.values()]
    return config


@dataclass(frozen=True)
class Scale:
    """What a configuration is deployed for.

    Attributes:
        copies: Of the configuration, which sustain the rate that is wanted.
        ongoing: Requests in flight at each replica of the ingress that leave its peak some headroom; None: not known.
    """

    copies: int = 1
    ongoing: float | None = None


def recommended(facts: ApplicationFacts, configuration: Mapping[str, Value], scale: Scale) -> dict[str, Any]:
    """The application as it is to be deployed: as it was measured, in as many copies, and autoscaled if it was."""
    config = application_config(facts, configuration)
    knobs = {place_of(name, facts) for name in configuration}
    for entry in config["deployments"]:
        deployment = facts.deployments[entry["name"]]
        if deployment.autoscaling is not None and Place(deployment.name, ("num_replicas",)) not in knobs:
            entry.pop("num_replicas")
            entry["autoscaling_config"] = _autoscaling(deployment, scale, facts.ingress)
        elif scale.copies > 1:
            entry["num_replicas"] = scale.copies * (entry.get("num_replicas") or deployment.num_replicas or 1)
    return config


def _autoscaling(deployment: DeploymentFacts, scale: Scale, ingress: str) -> dict[str, Any]:
    """As declared, with the target that follows from what was measured."""
    found = dict(deployment.autoscaling or {})
    if scale.ongoing is not None and deployment.name == ingress:
        found["target_ongoing_requests"] = scale.ongoing
    if scale.copies > 1:
        found["min_replicas"] = max(scale.copies, int(found.get("min_replicas") or 0))
        found["max_replicas"] = max(found["min_replicas"], int(found.get("max_replicas") or 0))
    return found


def edits(facts: ApplicationFacts, configuration: Mapping[str, Value], scale: Scale) -> dict[str, Any]:
    """What of the user's own Serve config changes; see `config_file.edited`."""
    # Where the module lies and which interpreter runs it is the user's own business there.
    config = recommended(replace(facts, folder=None, py_executable=None), configuration, scale)
    places = [place_of(name, facts) for name in configuration]
    changed: dict[str, Any] = {p.keys[0]: config[p.keys[0]] for p in places if p.deployment is None}
    deployments: dict[str, dict[str, Any]] = {}
    for entry in config["deployments"]:
        deployment = facts.deployments[entry["name"]]
        touched = {p.keys[0] for p in places if p.deployment == deployment.name}
        touched = {"ray_actor_options" if key in ("cpu_cores", *GPU_PARTS) else key for key in touched}
        if deployment.max_ongoing_requests is None:
            touched.add("max_ongoing_requests")
        if deployment.bundles and "ray_actor_options" in touched:
            touched.add("placement_group_bundles")
        if deployment.autoscaling is not None or scale.copies > 1:
            touched |= {"num_replicas", "autoscaling_config"}
        if settings := {key: entry.get(key) for key in sorted(touched)}:
            deployments[deployment.name] = settings
    return {**changed, "deployments": deployments}


def serve_config(
    facts: ApplicationFacts,
    configuration: Mapping[str, Value],
    *,
    grpc_servicer: str | None = None,
    scale: Scale | None = None,
) -> dict[str, Any]:
    """A whole Serve config, as `serve run` and `serve deploy` take it."""
    config: dict[str, Any] = {
        "proxy_location": "EveryNode",
        "http_options": {"host": "127.0.0.1", "port": 8000},
    }
    if grpc_servicer is not None:
        config["grpc_options"] = grpc_options(9000, grpc_servicer)
    return {**config, "applications": [recommended(facts, configuration, scale or Scale())]}


def grpc_options(port: int, servicer: str) -> dict[str, Any]:
    """Serve's settings for gRPC, with a servicer function as `module:function`."""
    return {"port": port, "grpc_servicer_functions": [servicer.replace(":", ".")]}


def replica_resources(facts: ApplicationFacts, configuration: Mapping[str, Value]) -> list[dict[str, float]]:
    """Ray resources that each replica holds: `CPU`, `GPU`, and what else is named: a type of GPU, memory, one's own.

    Of a replica with a placement group, all bundles, as if it lay on one node.
    """
    return [needed for count, needed in resources(facts, configuration).values() for _ in range(count)]


def resources(facts: ApplicationFacts, configuration: Mapping[str, Value]) -> dict[str, tuple[int, dict[str, float]]]:
    """Of each deployment, how many replicas it has and what each of them holds; see `replica_resources`."""
    each = {}
    for entry in application_config(facts, configuration)["deployments"]:
        options = entry.get("ray_actor_options", {})
        needed = {
            "CPU": float(options.get("num_cpus", 1)),
            "GPU": float(options.get("num_gpus") or has_gpu(options)),
        }
        if options.get("accelerator_type"):
            needed[f"accelerator_type:{options['accelerator_type']}"] = 0.001
        if options.get("memory"):
            needed["memory"] = float(options["memory"])
        needed |= {name: float(amount) for name, amount in (options.get("resources") or {}).items()}
        for name, amount in facts.deployments[entry["name"]].beside.items():
            needed[name] = needed.get(name, 0.0) + amount
        count = entry.get("num_replicas") or facts.deployments[entry["name"]].num_replicas or 1
        each[entry["name"]] = count, needed
    return each


def fit(replicas: Iterable[Mapping[str, float]], nodes: Iterable[Mapping[str, float]]) -> bool:
    """Whether nodes with these free resources have room for all replicas, each on one node."""
    free = [dict(node) for node in nodes]
    for needed in replicas:
        node = next((n for n in free if all(n.get(name, 0.0) >= amount for name, amount in needed.items())), None)
        if node is None:
            return False
        for name, amount in needed.items():
            node[name] = node.get(name, 0.0) - amount
    return True


def total(replicas: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Ray resources that replicas hold in all; a type that is named counts once."""
    held: dict[str, float] = {"CPU": 0.0, "GPU": 0.0}
    for needed in replicas:
        for name, amount in needed.items():
            held[name] = amount if name.startswith("accelerator_type:") else held.get(name, 0.0) + amount
    return held


def expected_replicas(facts: ApplicationFacts, configuration: Mapping[str, Value]) -> int:
    """Replicas of all deployments together."""
    return len(replica_resources(facts, configuration))


def taken_at_once(facts: ApplicationFacts, configuration: Mapping[str, Value]) -> int:
    """Requests that the replicas of the ingress take at once; more than these wait in Serve's router."""
    entry = next(e for e in application_config(facts, configuration)["deployments"] if e["name"] == facts.ingress)
    declared = facts.deployments[facts.ingress]
    each = entry.get("max_ongoing_requests", declared.max_ongoing_requests)
    return int(each) * int(entry.get("num_replicas") or declared.num_replicas or 1)


def fractions_of_cores(facts: ApplicationFacts, configuration: Mapping[str, Value]) -> int:
    """How many replicas are to be held to a fraction of a core."""
    count = 0
    for entry in application_config(facts, configuration)["deployments"]:
        variables = entry.get("ray_actor_options", {}).get("runtime_env", {}).get("env_vars", {})
        if float(variables.get(CORES_VARIABLE, 1)) % 1:
            count += entry.get("num_replicas") or facts.deployments[entry["name"]].num_replicas or 1
    return count


def batch_setting(facts: ApplicationFacts, configuration: Mapping[str, Value]) -> tuple[int, float | None] | None:
    """`max_batch_size` and the wait in seconds that a configuration sets; None where its `user_config` has none.

    The wait alone is None where the code fixes it. All of it of an application with several deployments: which one
    would be meant?
    """
    (entry, *others) = application_config(facts, configuration)["deployments"]
    user_config = entry.get("user_config") or {}
    size, wait_s = user_config.get("max_batch_size"), user_config.get("batch_wait_timeout_s")
    if "batch_wait_timeout_ms" in user_config:
        wait_s = user_config["batch_wait_timeout_ms"] / 1e3
    return (size, None if wait_s is None else float(wait_s)) if isinstance(size, int) and not others else None


def largest_batch(configuration: Mapping[str, Value], default: int = 8) -> int:
    """The largest batch that any knob allows, which says how many requests must be in flight to fill it."""
    sizes = [v for k, v in configuration.items() if k.split(".")[-1] == "max_batch_size" and isinstance(v, int)]
    return max(sizes, default=default)


def _put(entry: dict[str, Any], keys: tuple[str, ...], value: Value) -> None:
    for key in keys[:-1]:
        entry = entry.setdefault(key, {})
    entry[keys[-1]] = value


def _environment(entry: dict[str, Any]) -> dict[str, str]:
    variables: dict[str, str] = entry["ray_actor_options"].setdefault("runtime_env", {}).setdefault("env_vars", {})
    return variables


def _allow_enough_requests(entry: dict[str, Any], deployment: DeploymentFacts) -> None:
    """Serve's default limit of requests in flight is small, and would be what a load test finds."""
    if "max_ongoing_requests" not in entry and deployment.max_ongoing_requests is None:
        batch = (entry.get("user_config") or {}).get("max_batch_size", 1)
        entry["max_ongoing_requests"] = max(100, 4 * batch if isinstance(batch, int) else 0)


def _make_room(entry: dict[str, Any], deployment: DeploymentFacts) -> None:
    """The first bundle of a replica's placement group grows and shrinks with the replica, which must fit into it."""
    if not deployment.bundles:
        return
    bundles = [dict(bundle) for bundle in deployment.bundles]
    for name, option, default in (("CPU", "num_cpus", 1), ("GPU", "num_gpus", 0)):
        both = entry["ray_actor_options"], deployment.ray_actor_options
        now, declared = (options.get(option, default) or 0 for options in both)
        if now != declared:
            bundles[0][name] = bundles[0].get(name, 0) + now - declared
    entry["placement_group_bundles"] = bundles


def _without_empty(entry: dict[str, Any]) -> dict[str, Any]:
    options = dict(entry["ray_actor_options"])
    if not options.get("runtime_env", {}).get("env_vars", True):
        runtime_env = {k: v for k, v in options["runtime_env"].items() if k != "env_vars"}
        options["runtime_env"] = runtime_env
    if not options.get("runtime_env", True):
        options.pop("runtime_env")
    out = {k: v for k, v in entry.items() if k != "ray_actor_options"}
    if options:
        out["ray_actor_options"] = options
    return out
