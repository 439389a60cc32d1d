"""What is searched where the user does not say: the application's own `space`, or what its code lets be changed."""

from importlib import import_module
from typing import Any

from morphling_ray.serving.application import ApplicationFacts, DeploymentFacts
from morphling_ray.serving.knobs import has_gpu
from morphling_ray.space import Knob, SearchSpace

BATCH_SIZES = [1, 2, 4, 8, 16, 32]
WAITS_MS = [0, 5, 20]
REPLICAS = [1, 2, 4]
CORES = [1, 2, 4, 8]
PARTS_OF_A_GPU = [0.1, 0.25, 0.5, 1.0]


def default_space(facts: ApplicationFacts, cores: int) -> SearchSpace:
    """The space of an application for which none was given.

    A module may say what is worth searching: a dict `space` of knob names and values beside the application. Otherwise
    cores and replicas, parts of a GPU where it asks for one, and the batch settings that its `user_config` declares;
    of several deployments, those of each one, without the waits.

    Args:
        facts: The application.
        cores: Cores of the largest node; values that need more are left out.

    """
    declared = getattr(import_module(facts.import_path.partition(":")[0]), "space", None)
    if isinstance(declared, dict) and declared:
        values = {str(k): list(v) for k, v in declared.items()}
        constraints: list[str] = []
    else:
        values, constraints = _from_code(facts, cores)
    for name in values:
        if name.split(".")[-1] == "cpu_cores":
            values[name] = [v for v in values[name] if v <= cores] or [1]
    return SearchSpace([Knob.infer(name, v) for name, v in values.items()], constraints)


def _from_code(facts: ApplicationFacts, cores: int) -> tuple[dict[str, list[Any]], list[str]]:
    if len(facts.deployments) > 1:
        each: dict[str, list[Any]] = {}
        for name, deployment in facts.deployments.items():
            path = f"deployments.{name}."
            if (deployment.ray_actor_options.get("num_cpus", 1) or 0) >= 1:  # else it is a light one, by its own word
                each[path + "cpu_cores"] = CORES
            each |= {path + part: PARTS_OF_A_GPU for part in _parts(deployment, facts.mps)}
            each[path + "num_replicas"] = [r for r in REPLICAS if r <= cores] or [1]
            if isinstance(present := (deployment.user_config or {}).get("max_batch_size"), int):
                each[path + "user_config.max_batch_size"] = sorted({*BATCH_SIZES, present})
        return each, []  # what the cluster cannot hold is left out later
    deployment = facts.deployments[facts.ingress]
    values: dict[str, list[Any]] = {"cpu_cores": CORES, **dict.fromkeys(_parts(deployment, facts.mps), PARTS_OF_A_GPU)}
    user_config = deployment.user_config or {}
    for name, present in user_config.items():
        if name == "max_batch_size":
            values[name] = sorted({*BATCH_SIZES, *([present] if isinstance(present, int) else [])})
        elif name == "batch_wait_timeout_ms":
            values[name] = sorted({*WAITS_MS, present})
        elif name == "batch_wait_timeout_s":
            values[name] = sorted({*(w / 1e3 for w in WAITS_MS), present})
    values["num_replicas"] = [r for r in REPLICAS if r <= cores] or [1]
    return values, [f"cpu_cores * num_replicas <= {cores}"]


def _parts(deployment: DeploymentFacts, mps: str) -> tuple[str, ...]:
    """Knobs of parts of a GPU, of a deployment that has a whole one and no more."""
    if not has_gpu(deployment.ray_actor_options) or deployment.ray_actor_options.get("num_gpus", 1) != 1:
        return ()
    if deployment.beside.get("GPU"):
        return ()
    return ("gpu_memory",) if mps == "off" else ("gpu_memory", "gpu_share")
