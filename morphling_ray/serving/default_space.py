"""What is searched where the user does not say: the application's own `space`, or what its code lets be changed."""

from importlib import import_module
from typing import Any

from morphling_ray.errors import InputError
from morphling_ray.serving.application import ApplicationFacts
from morphling_ray.space import Knob, SearchSpace

BATCH_SIZES = [1, 2, 4, 8, 16, 32]
WAITS_MS = [0, 5, 20]
REPLICAS = [1, 2, 4]
CORES = [1, 2, 4, 8]


def default_space(facts: ApplicationFacts, cores: int) -> SearchSpace:
    """The space of an application for which none was given.

    A module may say what is worth searching: a dict `space` of knob names and values beside the application. Otherwise
    cores and replicas, and the batch settings that its `user_config` declares.

    Args:
        facts: The application.
        cores: Cores of the largest node; values that need more are left out.

    Raises:
        InputError: The application has several deployments and says nothing itself.
    """
    declared = getattr(import_module(facts.import_path.partition(":")[0]), "space", None)
    if isinstance(declared, dict) and declared:
        values = {str(k): list(v) for k, v in declared.items()}
        constraints: list[str] = []
    else:
        values, constraints = _from_code(facts, cores)
    if "cpu_cores" in values:
        values["cpu_cores"] = [v for v in values["cpu_cores"] if v <= cores] or [1]
    return SearchSpace([Knob.infer(name, v) for name, v in values.items()], constraints)


def _from_code(facts: ApplicationFacts, cores: int) -> tuple[dict[str, list[Any]], list[str]]:
    if len(facts.deployments) > 1:
        raise InputError(
            f"the application has several deployments ({', '.join(facts.deployments)}): "
            "say what to search in an experiment file, for example space: {deployments.NAME.num_replicas: [1, 2]}"
        )
    values: dict[str, list[Any]] = {"cpu_cores": CORES}
    user_config = facts.deployments[facts.ingress].user_config or {}
    for name, present in user_config.items():
        if name == "max_batch_size":
            values[name] = sorted({*BATCH_SIZES, *([present] if isinstance(present, int) else [])})
        elif name == "batch_wait_timeout_ms":
            values[name] = sorted({*WAITS_MS, present})
        elif name == "batch_wait_timeout_s":
            values[name] = sorted({*(w / 1e3 for w in WAITS_MS), present})
    values["num_replicas"] = [r for r in REPLICAS if r <= cores] or [1]
    return values, [f"cpu_cores * num_replicas <= {cores}"]
