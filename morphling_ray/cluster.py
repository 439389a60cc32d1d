"""The Ray cluster of a run: a local one that is started and ended here, or the user's own."""

import os
import secrets
import shlex
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from morphling_ray.autoscaler import BOOTSTRAP, Resources, node_types, to_come
from morphling_ray.errors import InputError
from morphling_ray.serving import mps

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is sent to anybody
    "RAY_DEDUP_LOGS": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # results go to trials.jsonl
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is ours: it must end within seconds
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_TRAIN_V2_ENABLED": "0",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # the session, not the trial, knows the objective
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # replicas that asked for no GPU see none
}
OBJECT_STORE_BYTES = 256 * 2**20
_connected_here = False  # the process has one connection to Ray: whether `connect` made it


@dataclass(frozen=True)
class Cluster:
    """What the run may use.

    Attributes:
        local: Started here, so ended here.
        nodes: Resources of each node alive, as Ray names them.
        to_come: Resources of each node that an autoscaler may add to those.
    """

    local: bool
    nodes: tuple[dict[str, float], ...]
    to_come: tuple[dict[str, float], ...] = ()

    @property
    def all_nodes(self) -> tuple[dict[str, float], ...]:
        """Nodes that are there and nodes that may come."""
        return self.nodes + self.to_come

    @property
    def largest_cpus(self) -> int:
        """Cores of the largest node."""
        return int(max((n.get("CPU", 0.0) for n in self.all_nodes), default=0.0))

    @property
    def gpu_types(self) -> list[str]:
        """Types of the cluster's cards, as Ray names them."""
        return sorted({k.partition(":")[2] for n in self.all_nodes for k in n if k.startswith("accelerator_type:")})

    def can_hold(self, needed: dict[str, float]) -> bool:
        """Whether all nodes together have these resources."""
        return all(sum(n.get(name, 0.0) for n in self.all_nodes) >= amount for name, amount in needed.items())

    def check(self, needed: dict[str, float]) -> None:
        """Checks GPUs and resources that have names before anything is deployed: Ray would wait for them for ever.

        Raises:
            InputError: The cluster has no such resource, too few GPUs, or none of that type.
        """
        gpus, types = sum(n.get("GPU", 0.0) for n in self.all_nodes), self.gpu_types
        if needed.get("GPU", 0.0) > gpus:
            raise InputError(
                f"the space asks for {needed['GPU']:g} GPU, but the cluster has {gpus:g}; "
                "add a node with GPUs, or ask for less in the space or in the application"
            )
        for name in needed:
            kind, _, gpu_type = name.partition(":")
            if kind == "accelerator_type" and gpu_type not in types:
                raise InputError(
                    f"the space asks for GPU type {gpu_type}, but the cluster has {', '.join(types) or 'none'}"
                )
            if kind not in ("CPU", "GPU", "accelerator_type") and not any(n.get(name) for n in self.all_nodes):
                raise InputError(
                    f"the application asks for the Ray resource {name!r}, which no node of the cluster has; "
                    f"start a node with it (ray start --resources), or ask for none in ray_actor_options"
                )


def quoted_python() -> str | None:
    """How Ray must be told of this interpreter (`py_executable` of a runtime_env) on this machine; None: as it is.

    Ray starts a worker that has a runtime_env by a shell, and does not quote the interpreter's path itself: in a folder
    with a space in its name, say, no worker would ever start.
    """
    quoted = shlex.quote(sys.executable)
    return quoted if quoted != sys.executable else None


def connected_to() -> str | None:
    """The address of the Ray that this process is connected to already; None if it is not."""
    ray = sys.modules.get("ray")  # importing it takes seconds
    if ray is None or not ray.is_initialized():
        return None
    try:
        return str(ray.get_runtime_context().gcs_address)
    except Exception:  # noqa: BLE001  Ray Client's has none
        return "auto"


def connect(address: str | None, types_file: str | None = None) -> Cluster:
    """Connects to a running cluster, or starts a local one on all cores that this process may use.

    Where this process is connected already, that cluster is taken as it is, and `disconnect` leaves it connected.

    Args:
        address: Of the cluster; None: a local one.
        types_file: What its autoscaler may add, see `autoscaler.node_types`; None: what `ray up` left on this machine,
            where the address is `auto`.

    Raises:
        InputError: There is no cluster at the address, no node types in the file, or a connection to another cluster.
    """
    global _connected_here
    bootstrap = Path(BOOTSTRAP).expanduser()
    file = Path(types_file) if types_file else bootstrap if address == "auto" and bootstrap.exists() else None
    types = node_types(file) if file is not None else []
    os.environ.update(QUIET)
    import ray

    present = connected_to()
    _connected_here = present is None
    if present is not None:
        if address not in (None, "auto", present):
            raise InputError(
                f"this process is connected to the Ray cluster at {present} already: call ray.shutdown() first, or "
                f"leave out the address {address}"
            )
        return _cluster(local=False, types=types)
    common: dict[str, Any] = {"log_to_driver": True, "configure_logging": True, "namespace": "morphling_ray"}
    if address is None:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # else Ray keeps one in the home directory
        python = quoted_python()
        ray.init(
            address="local",
            num_cpus=len(os.sched_getaffinity(0)),
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            runtime_env={"py_executable": python} if python else None,
            **common,
        )
    else:
        _check_listening(address)
        try:
            ray.init(address=address, **common)
        except (ConnectionError, ValueError, RuntimeError) as error:
            # Ray sends its token to an address that is given only where it is told to.
            told = address == "auto" or "RAY_AUTH_MODE" in os.environ
            hint = "" if told else "; if it is one that asks for Ray's token, set RAY_AUTH_MODE=token"
            raise InputError(f"no Ray cluster at {address!r}: {' '.join(str(error).split())[:200]}{hint}") from error
    return _cluster(local=address is None, types=types)


def _cluster(*, local: bool, types: list[tuple[Resources, int]]) -> Cluster:
    import ray

    nodes = tuple(dict(n["Resources"]) for n in ray.nodes() if n["Alive"])
    return Cluster(local=local, nodes=nodes, to_come=to_come(types, nodes))


def _check_listening(address: str) -> None:
    """Raises `InputError` where nobody listens at `host:port`: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():  # `auto`, or the name of a session
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10.0).close()
    except (OSError, OverflowError) as error:
        raise InputError(f"no Ray cluster at {address!r}: {error}") from error


def head_answers() -> bool:
    """Whether somebody listens where the head node of the cluster that we are connected to is."""
    import ray

    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=2.0).close()
    except OSError:
        return False
    return True


def disconnect() -> None:
    """Leaves the cluster; a local one ends with all its processes, and with the MPS daemons that they started.

    Whoever was connected before `connect` stays so.
    """
    global _connected_here
    import ray

    if _connected_here:
        ray.shutdown()
        _connected_here = False
    mps.end_all(mps.PATIENCE_S)
