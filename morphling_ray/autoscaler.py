"""Which nodes the autoscaler of a cluster may add: no running cluster tells, so that the file is read that made it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from morphling_ray.errors import InputError

BOOTSTRAP = "~/ray_bootstrap_config.yaml"  # `ray up` leaves the cluster file there on the head node
Resources = dict[str, float]
"""What a node has, as Ray names it: `{"CPU": 8.0, "GPU": 1.0, "accelerator_type:T4": 1.0}`."""


def node_types(file: Path) -> list[tuple[Resources, int]]:
    """Resources of each type of worker, and how many of it there may be.

    Args:
        file: Ray's cluster file, or a manifest of KubeRay.

    Raises:
        InputError: The file cannot be read, or names no node types.
    """
    try:
        documents = [d for d in yaml.safe_load_all(file.read_text(encoding="utf-8")) if isinstance(d, dict)]
        configs = [config for document in documents if "available_node_types" in (config := _ray_config(document))]
        found = [
            ({name: float(amount) for name, amount in node["resources"].items()}, int(node.get("max_workers", 1)))
            for config in configs
            for kind, node in config["available_node_types"].items()
            if kind != config.get("head_node_type")
        ]
    except (OSError, ValueError, yaml.YAMLError, AttributeError, KeyError, TypeError, AssertionError) as error:
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        raise InputError(f"node types cannot be read from {file} ({why})") from error
    if not configs:
        raise InputError(f"{file} names no node types: it has neither available_node_types nor a cluster of KubeRay")
    return found


def to_come(types: Sequence[tuple[Resources, int]], nodes: Sequence[Resources]) -> tuple[Resources, ...]:
    """Nodes that may be added: as many of each type as there may be, less those that are there.

    Args:
        types: See `node_types`.
        nodes: Resources of each node that is there.
    """
    there, out = list(nodes), []
    for resources, most in types:
        for _ in range(most):
            known = {name: amount for name, amount in resources.items() if name != "memory"}  # which Ray finds itself
            same = next((n for n in there if all(n.get(k, 0.0) == v for k, v in known.items())), None)
            if same is None:
                out.append(resources)
            else:
                there.remove(same)
    return tuple(out)


def _ray_config(document: dict[str, Any]) -> dict[str, Any]:
    """A document as Ray's cluster file has it; Ray itself translates those of KubeRay."""
    spec = document.get("spec") or {}
    spec = spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec
    if "workerGroupSpecs" not in spec:
        return document
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    cluster = {"metadata": {"name": "ray", "namespace": "default"}, "spec": spec}
    found: dict[str, Any] = _derive_autoscaling_config_from_ray_cr(cluster)
    return found
