"""Knobs by name: the place in a Serve config that each one means, and the values that fit it.

Usual knobs have short names; any other name is a key of the deployment's `user_config`, or a full path:
`deployments.NAME.FIELD...`, `args.NAME` of the builder function, or `runtime_env.env_vars.NAME`.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ray.serve._private.constants import DEFAULT_MAX_ONGOING_REQUESTS

from morphling_ray.errors import InputError
from morphling_ray.masking import PRESENT, is_secret
from morphling_ray.serving.application import ApplicationFacts
from morphling_ray.space import Configuration, Knob, Value

BATCH_KEYS = ("max_batch_size", "batch_wait_timeout_ms", "batch_wait_timeout_s")
SHORT_NAMES: dict[str, tuple[str, ...]] = {
    # Not fields of Serve: num_cpus or num_gpus, and limits that bind.
    "cpu_cores": ("cpu_cores",),
    "gpu_memory": ("gpu_memory",),
    "gpu_share": ("gpu_share",),
    "gpu_instance": ("gpu_instance",),
    "num_replicas": ("num_replicas",),
    "max_ongoing_requests": ("max_ongoing_requests",),
    "num_gpus": ("ray_actor_options", "num_gpus"),
    "gpu_type": ("ray_actor_options", "accelerator_type"),
}
FIELDS = {
    "num_replicas",
    "max_ongoing_requests",
    "max_queued_requests",
    "user_config",
    "autoscaling_config",
    "ray_actor_options",
    "cpu_cores",
    "gpu_memory",
    "gpu_share",
    "gpu_instance",
}
GPU_PARTS = {"gpu_memory": "memory", "gpu_share": "share", "gpu_instance": "instance"}


@dataclass(frozen=True)
class Place:
    """Where a knob's value goes: a deployment, or None for the application as a whole, and the keys below that."""

    deployment: str | None
    keys: tuple[str, ...]


def place_of(name: str, facts: ApplicationFacts) -> Place:
    """The place in the Serve config that a knob names.

    Raises:
        InputError: There is no such place, or more than one deployment could be meant.
    """
    if name.startswith("args."):
        if facts.args is None:
            raise InputError(f"unknown knob {name!r}: only an application that a builder function makes takes args")
        return Place(None, tuple(name.split(".")))
    if name.startswith("runtime_env.env_vars.") and name.count(".") == 2:
        return Place(None, tuple(name.split(".")))
    if name.startswith("deployments."):
        for deployment in facts.deployments:
            prefix = f"deployments.{deployment}."
            if name.startswith(prefix):
                keys = tuple(name[len(prefix) :].split("."))
                if keys[0] in FIELDS and all(keys):
                    _no_autoscaling(name, keys)
                    return Place(deployment, keys)
                raise InputError(
                    f"unknown knob {name!r}: after the deployment comes one of {', '.join(sorted(FIELDS))}"
                )
        raise InputError(f"unknown knob {name!r}: the application's deployments are {', '.join(facts.deployments)}")
    if name in SHORT_NAMES:
        if len(facts.deployments) > 1:
            choices = " or ".join(f"deployments.{d}.{'.'.join(SHORT_NAMES[name])}" for d in facts.deployments)
            raise InputError(f"knob {name!r}: the application has several deployments; write {choices}")
        return Place(facts.ingress, SHORT_NAMES[name])
    owners = [d.name for d in facts.deployments.values() if d.user_config is not None and name in d.user_config]
    if len(owners) == 1:
        return Place(owners[0], ("user_config", name))
    if len(owners) > 1:
        choices = " or ".join(f"deployments.{d}.user_config.{name}" for d in owners)
        raise InputError(f"knob {name!r}: several deployments have it; write {choices}")
    declared = sorted({key for d in facts.deployments.values() for key in d.user_config or {}})
    raise InputError(
        f"unknown knob {name!r}: the application takes {', '.join([*SHORT_NAMES, *declared])}"
        + ("" if declared else " (and the keys of user_config, if a deployment declares one)")
    )


def _no_autoscaling(name: str, keys: tuple[str, ...]) -> None:
    if keys[0] == "autoscaling_config":
        raise InputError(
            f"knob {name!r}: a peak belongs to a fixed number of replicas, so that autoscaling is off while it is "
            "measured; target_ongoing_requests of the result follows from what was measured"
        )


def check_knobs(knobs: tuple[Knob, ...], facts: ApplicationFacts) -> None:
    """Checks that each knob has a place and each value fits it.

    Raises:
        InputError: One has not, or does not.
    """
    for knob in knobs:
        place = place_of(knob.name, facts)
        key = place.keys[-1] if place.deployment is not None else ""
        for value in knob.values:
            number = math.nan if isinstance(value, (bool, str)) else float(value)
            if key in ("num_replicas", "max_ongoing_requests") and not (isinstance(value, int) and number >= 1):
                raise InputError(f"knob {knob.name!r} takes whole numbers from 1, got {value!r}")
            if key == "cpu_cores" and not number > 0:
                raise InputError(f"knob {knob.name!r} takes numbers of cores above 0, got {value!r}")
            if key == "num_gpus" and not number >= 0:
                raise InputError(f"knob {knob.name!r} takes numbers from 0, got {value!r}")
            if key in ("gpu_memory", "gpu_share") and not 0 < number <= 1:
                raise InputError(f"knob {knob.name!r} takes shares of a GPU, above 0 and up to 1, got {value!r}")
            if key == "gpu_share" and facts.mps == "off" and value != 1:
                raise InputError(f"knob {knob.name!r}: a share of a GPU takes CUDA MPS, which --mps off forbids")
            if key == "gpu_instance" and instance_share(value) is None:
                raise InputError(f"knob {knob.name!r} takes MIG profiles, as in 1g.10gb, got {value!r}")


def present_configuration(knobs: tuple[Knob, ...], facts: ApplicationFacts) -> Configuration | None:
    """The knobs' values as the application's code and its own Serve config set them; None where they leave one open."""
    present: Configuration = {}
    for knob in knobs:
        value = _declared(facts, place_of(knob.name, facts))
        if value is None:
            return None
        if is_secret(knob.name):
            names = facts.secrets[knob.name]
            present[knob.name] = next(name for name, real in names.items() if real == str(value))
            continue
        # An environment variable is a text, whatever the knob's values are.
        present[knob.name] = next((v for v in knob.values if v == value or str(v) == value), value)
    return present


def with_present_secrets(secrets: dict[str, dict[str, str]], facts: ApplicationFacts) -> dict[str, dict[str, str]]:
    """What stands for the values of secret knobs, and for what the application has now where that is another one."""
    out = {}
    for knob, names in secrets.items():
        now = _declared(facts, place_of(knob, facts))
        more = {} if now is None or str(now) in names.values() else {PRESENT: str(now)}
        out[knob] = {**names, **more}
    return out


def _declared(facts: ApplicationFacts, place: Place) -> Value | None:
    keys = place.keys
    if place.deployment is None:
        return _scalar({**facts.config, "args": facts.args}, keys)
    deployment = facts.deployments[place.deployment]
    if keys == ("cpu_cores",):
        cores = deployment.ray_actor_options.get("num_cpus", 1) or 0
        return int(cores) if cores == int(cores) and cores >= 1 else float(cores)
    if keys == ("num_replicas",):
        return deployment.num_replicas or 1
    if keys == ("max_ongoing_requests",):
        return deployment.max_ongoing_requests or DEFAULT_MAX_ONGOING_REQUESTS
    if keys in [("gpu_memory",), ("gpu_share",)]:
        whole = deployment.ray_actor_options.get("num_gpus", 1) == 1
        return 1.0 if whole and has_gpu(deployment.ray_actor_options) else None
    if keys == ("ray_actor_options", "num_gpus"):
        return deployment.ray_actor_options.get("num_gpus") or 0
    return _scalar({"user_config": deployment.user_config, "ray_actor_options": deployment.ray_actor_options}, keys)


def _scalar(node: Any, keys: tuple[str, ...]) -> Value | None:
    for key in keys:
        node = node.get(key) if isinstance(node, dict) else None
    return node if isinstance(node, (int, float, str, bool)) else None


def undeclared_limits(knobs: Iterable[Knob], facts: ApplicationFacts) -> list[str]:
    """Deployments whose limit of requests in flight is left to Serve, and is no knob either."""
    places = {place_of(knob.name, facts) for knob in knobs}
    limit = SHORT_NAMES["max_ongoing_requests"]
    return [
        d.name
        for d in facts.deployments.values()
        if d.max_ongoing_requests is None and Place(d.name, limit) not in places
    ]


def batch_knobs(knobs: Iterable[Knob], facts: ApplicationFacts) -> list[str]:
    """Names of the knobs that set how requests are batched, and nothing else."""
    places = {knob.name: place_of(knob.name, facts).keys for knob in knobs}
    return [name for name, keys in places.items() if keys in [("user_config", key) for key in BATCH_KEYS]]


def parts_of_gpus(facts: ApplicationFacts, configuration: Mapping[str, Value]) -> bool:
    """Whether a configuration promises parts of GPUs that have to be enforced."""
    return any(place_of(name, facts).keys[0] in GPU_PARTS for name in configuration)


def gpu_held(settings: Mapping[str, Any]) -> float:
    """How much of a GPU a replica holds, for Ray and for its price: the largest part that it is promised of anything.

    Args:
        settings: `gpu_memory`, `gpu_share` and `gpu_instance`, as far as they are set.
    """
    shares = [float(settings[name]) for name in ("gpu_memory", "gpu_share") if name in settings]
    if "gpu_instance" in settings:
        shares.append(instance_share(settings["gpu_instance"]) or 1.0)
    return max(shares, default=1.0)


def instance_share(profile: object) -> float | None:
    """The share of its card that a MIG device has: `2g.20gb` is two sevenths. None for what is no profile."""
    found = re.fullmatch(r"([1-7])g\.\d+gb.*", profile) if isinstance(profile, str) else None
    return None if found is None else math.floor(1000 * int(found[1]) / 7) / 1000


def has_gpu(ray_actor_options: Mapping[str, Any]) -> bool:
    """Whether a deployment asks for a GPU."""
    return bool(ray_actor_options.get("num_gpus") or ray_actor_options.get("accelerator_type"))
