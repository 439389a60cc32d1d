"""Brings a configuration up on Ray Serve and says which processes serve it.

Everything goes through Serve's own config schema, so what is measured is what `serve run` brings up later. Where only
`user_config` changes, the replicas' `reconfigure` is called directly, in milliseconds; the schema would take a third of
a second for the same. A change of resources starts new replicas.
"""

import math
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray import serve
from ray._private.state import available_resources_per_node
from ray.exceptions import RayTaskError
from ray.serve.context import _get_global_client, _set_global_client
from ray.serve.schema import ServeDeploySchema
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from morphling_ray.serving import mps
from morphling_ray.serving.application import ApplicationFacts
from morphling_ray.serving.failures import on_load
from morphling_ray.serving.serve_config import (
    APP_NAME,
    application_config,
    expected_replicas,
    fit,
    grpc_options,
    resources,
)
from morphling_ray.space import Configuration

POLL_S = 0.02
END_MPS_S = 60.0
GONE_S = 60.0  # until an application that is taken down is thought to be gone
NODE_LABEL = "ray.io/node-id"  # by which Ray itself labels every node
# The application, that of a lane on a node, and a rival beside either; not what somebody else has called alike.
OUR_NAMES = re.compile(rf"{APP_NAME}(-[0-9a-f]{{8}}(-[0-9]+)?)?(-rival)?")
NAME_LENGTH = 8  # of a node's id, which has 56 hexadecimal digits
PLACED_S = 15.0  # until replicas are thought not to get their cards in turn
BROADCAST_S = 10.0  # until every replica must have taken new settings


class DeploymentFailed(Exception):
    """The candidate did not come up, which ends in a measurement. `reason` is one line, `log` what Serve said."""

    def __init__(self, reason: str, log: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.log = log


@dataclass(frozen=True)
class Replica:
    """A running replica: its process and where that is."""

    replica_id: str
    pid: int
    node_id: str
    actor_name: str = ""


class Deployer:
    """Serves one application, in one configuration at a time.

    Args:
        facts: The application.
        startup_timeout_s: A candidate that is not up by then, once all its replicas have a node, has failed.
        node_timeout_s: So has one for which the autoscaler has no nodes until then; 0 where there is no autoscaler.
        clock: Monotonic seconds.
        app_name: Its name in Serve.
        route_prefix: Where it takes HTTP.
        node_id: Where its replicas have to be; None: anywhere.
        whole_cards: Replicas that get parts of a card fill one, so that Ray puts nobody else's there.
        turns: The actor (`begin_turn`, `end_turn`) that lets one at a time change what Serve serves; None: this is the
            only one.
    """

    def __init__(
        self,
        facts: ApplicationFacts,
        *,
        startup_timeout_s: float,
        node_timeout_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        app_name: str = APP_NAME,
        route_prefix: str = "/",
        node_id: str | None = None,
        whole_cards: bool = False,
        turns: Any = None,
    ) -> None:
        self._facts = facts
        self._whole_cards = whole_cards
        self._name, self._route_prefix = app_name, route_prefix
        self._node_id, self._turns = node_id, turns
        self._startup_timeout_s, self._node_timeout_s = startup_timeout_s, node_timeout_s
        self._clock = clock
        self._client: Any = _get_global_client()
        self._up: dict[str, Any] | None = None  # what the live replicas are set to
        self._told: dict[str, Any] | None = None  # what Serve was told last, where that differs
        self._replicas: list[Replica] = []
        self._configuration: Configuration = {}  # that was applied last

    def deploy(self, configuration: Configuration) -> list[Replica]:
        """Applies a configuration and waits until all of its replicas answer.

        Raises:
            DeploymentFailed: A replica failed to start or to take the settings, or it took too long.
        """
        config = self._config(configuration)
        before, self._up = self._up, None  # if this fails, it is not known what is up
        same = before is not None and _without_user_config(before) == _without_user_config(config)
        # Where a handle does not find all replicas, as while Serve's controller is being restarted, Serve has to do it.
        live = before is not None and same and self._replicas == self.replicas() and self._reconfigure(before, config)
        if not live:
            # A lane that was lost may have left its application on the node.
            left_over = before is None and self._node_id is not None and bool(self._details())
            grows = not self._whole_cards and self._grows_into_free_room(configuration)
            if left_over or (before is not None and not grows):
                self.delete(wait=True)
            self._replicas = self._apply(config, expected_replicas(self._facts, configuration))
            self._configuration = configuration
            # A replica that Serve keeps is still set to what it was set to directly.
            if self._told is not None and not self._reconfigure(self._told, config, always=True):
                raise DeploymentFailed("failed to reconfigure: not all replicas were reached")
            self._told = None
        self._up = config
        return self._replicas

    def _grows_into_free_room(self, configuration: Configuration) -> bool:
        """Whether the replicas that come on top fit beside those that are up.

        Where a deployment grows, Serve starts the new replicas before it stops one of the old: without room for both it
        would wait for ever.
        """
        now, then = (resources(self._facts, c) for c in (self._configuration, configuration))
        more = [needed for name, (count, needed) in then.items() for _ in range(count - now[name][0])]
        return fit(more, free_room(self._node_id))

    def changes_live(self, one: Configuration, other: Configuration) -> bool:
        """Whether the same replicas serve both configurations, one after the other."""
        return _without_user_config(self._config(one)) == _without_user_config(self._config(other))

    def _config(self, configuration: Configuration) -> dict[str, Any]:
        config = application_config(self._facts, configuration, name=self._name, route_prefix=self._route_prefix)
        for deployment in config["deployments"]:
            # Requests of an ended probe are of no interest, so the replica before need not finish them.
            deployment.update(graceful_shutdown_wait_loop_s=0.05, graceful_shutdown_timeout_s=1.0)
            if self._node_id is not None:
                selector = deployment.setdefault("ray_actor_options", {}).setdefault("label_selector", {})
                selector[NODE_LABEL] = self._node_id
        if self._whole_cards:
            fill_cards(config["deployments"], resources(self._facts, configuration))
        return config

    def _reconfigure(self, before: dict[str, Any], config: dict[str, Any], *, always: bool = False) -> bool:
        """Calls `reconfigure` of all live replicas whose `user_config` changes, past Serve's controller.

        Returns whether it reached them all.
        """
        for old, new in zip(before["deployments"], config["deployments"], strict=True):
            if new.get("user_config") is None or (old.get("user_config") == new["user_config"] and not always):
                continue
            self._told = self._told or before
            if not self._broadcast(new["name"], new["user_config"]):
                return False
        return True

    def _broadcast(self, deployment: str, user_config: dict[str, Any]) -> bool:
        """Calls `reconfigure` of every replica of a deployment; handles hear of new replicas with a delay."""
        handle = serve.get_deployment_handle(deployment, self._name)
        expected = len(_running({"deployments": {deployment: self._details()["deployments"][deployment]}}))
        deadline = self._clock() + min(BROADCAST_S, self._startup_timeout_s)
        while self._clock() < deadline:
            try:
                reached = len(handle.broadcast("reconfigure", user_config).results(timeout_s=BROADCAST_S))
            except RayTaskError as error:
                raise DeploymentFailed(f"failed to reconfigure: {_last_line(str(error))}", str(error)) from error
            except Exception:  # noqa: BLE001  whatever a handle raises that still knows dead replicas
                reached = 0
            if reached == expected:
                return True
            time.sleep(POLL_S)
        return False

    def _apply(self, config: dict[str, Any], expected: int) -> list[Replica]:
        """Has Serve bring the application up as `config` says, in `expected` replicas."""
        with self._turn():
            self._client.deploy_apps(ServeDeploySchema.model_validate({"applications": [*self._others(), config]}))
            # Ray gives the rest of a card that is begun to whoever asks for that much: nobody else may ask meanwhile.
            last = self._clock() + PLACED_S * (self._whole_cards and _takes_parts_of_cards(config))
            while self._clock() < last and _placed(application := self._details()) < expected:
                if _failure(application, ""):
                    break
                time.sleep(POLL_S)
        began = placed = self._clock()
        while True:
            application = self._details()
            status = str(getattr(application.get("status"), "value", application.get("status")))
            replicas = _running(application)
            if status == "RUNNING" and len(replicas) == expected:
                return replicas
            if log := _failure(application, status):
                raise DeploymentFailed(on_load(log), log)
            now, log = self._clock(), "\n".join(d["message"] for d in application.get("deployments", {}).values())
            if now - began < self._node_timeout_s and _placed(application) < expected:
                placed = now
            if now - placed > self._startup_timeout_s:
                raise DeploymentFailed(f"start-up timeout: not up after {self._startup_timeout_s:g} s", log)
            if 0 < self._node_timeout_s < now - began and _placed(application) < expected:
                raise DeploymentFailed(f"no node: the autoscaler had none after {self._node_timeout_s:g} s", log)
            time.sleep(POLL_S)

    def replicas(self) -> list[Replica]:
        """The replicas that run now."""
        return _running(self._details())

    def delete(self, *, wait: bool) -> None:
        """Takes the application down."""
        self._up = self._told = None
        with self._turn():
            self._client.delete_apps([self._name], blocking=False)
        deadline = self._clock() + GONE_S
        while wait and self._details() and self._clock() < deadline:
            time.sleep(POLL_S)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Nobody else of this run changes what Serve serves meanwhile."""
        if self._turns is None:
            yield
            return
        ray.get(self._turns.begin_turn.remote(self._name))
        try:
            yield
        finally:
            ray.get(self._turns.end_turn.remote(self._name))

    def _details(self) -> dict[str, Any]:
        applications = self._client.get_serve_details()["applications"]
        details: dict[str, Any] = applications.get(self._name, {})
        return details

    def _others(self) -> list[dict[str, Any]]:
        """Configs of other applications on this cluster: Serve would delete what a new config leaves out."""
        applications = self._client.get_serve_details()["applications"]
        return [
            a["deployed_app_config"]
            for name, a in applications.items()
            if name != self._name and a.get("deployed_app_config") and "DELETING" not in str(a.get("status"))
        ]


def suffix_on(node_id: str, seat: int) -> str:
    """Of the name of an application on a node, the first one there or another."""
    return node_id[-NAME_LENGTH:] + f"-{seat}" * (seat > 0)


def name_on(node_id: str, seat: int) -> str:
    """Of the application that a lane serves there."""
    return f"{APP_NAME}-{suffix_on(node_id, seat)}"


def take_down(name: str) -> None:
    """Ends an application, and one that stands beside it, where Serve runs; does not wait for it."""
    client: Any = _get_global_client(raise_if_no_controller_running=False)
    if client is not None:
        client.delete_apps([name, f"{name}-rival"], blocking=False)


def free_room(node_id: str | None) -> list[dict[str, float]]:
    """Resources that nobody holds, of each node or of one."""
    free = available_resources_per_node()
    return [dict(room) for name, room in free.items() if node_id in (None, name)]


def free_port() -> int:
    """A TCP port on the loopback interface that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def start_serve(
    *, proxy: str | None = None, grpc_servicer: str | None = None, everywhere: bool = False
) -> tuple[bool, str | None]:
    """Starts Serve where it does not run yet; with a proxy only where requests go through one.

    Args:
        proxy: `http`, `grpc`, or None for the Serve handle.
        grpc_servicer: `module:function` that adds the service to a gRPC server.
        everywhere: There is a proxy on every node.

    Returns:
        Whether it was started here (and so is ours to shut down), and where the proxy listens, as `load.client.connect`
        takes it.
    """
    # Serve keeps its client past `ray.shutdown` and knows it by the number of the job, the same in every new cluster.
    _set_global_client(None)
    client: Any = _get_global_client(raise_if_no_controller_running=False)
    ours = client is None
    if ours and proxy is None:
        serve.start(proxy_location="Disabled")
    elif ours:
        options = grpc_options(free_port(), grpc_servicer) if grpc_servicer is not None else None
        http = {"host": "127.0.0.1", "port": free_port()}
        location = "EveryNode" if everywhere else "HeadOnly"
        serve.start(proxy_location=location, http_options=http, grpc_options=options)
    client = _get_global_client()
    if proxy == "grpc":
        return ours, f"grpc://127.0.0.1:{ray.get(client._controller.get_grpc_config.remote()).port}"
    return ours, f"http://127.0.0.1:{client.http_config.port}" if proxy == "http" else None


def leave_serve(*, shut_down: bool, wait: bool) -> None:
    """Takes our application down, or all of Serve where we started it; and our MPS daemons on all nodes with GPUs."""
    if shut_down:
        serve.shutdown()
    else:
        client = _get_global_client()
        served = client.get_serve_details()["applications"]
        client.delete_apps([name for name in served if OUR_NAMES.fullmatch(name)], blocking=wait)
    nodes = [n["NodeID"] for n in ray.nodes() if n["Alive"] and n["Resources"].get("GPU")]
    end = ray.remote(num_cpus=0)(mps.end_all)
    where = [NodeAffinitySchedulingStrategy(node_id, soft=False) for node_id in nodes]
    patience_s = mps.PATIENCE_S if wait else 0.0
    ray.get([end.options(scheduling_strategy=there).remote(patience_s) for there in where], timeout=END_MPS_S)


def fill_cards(deployments: list[dict[str, Any]], held: dict[str, tuple[int, dict[str, float]]]) -> None:
    """Has replicas with parts of a card ask for shares that fill it, where they take one card together.

    What binds them is what they were promised; this is only what Ray counts.

    Args:
        deployments: Of a Serve config; changed.
        held: Of each, see `serve_config.resources`.
    """
    parts = {name: (count, each["GPU"]) for name, (count, each) in held.items() if 0 < each["GPU"] < 1}
    in_all = sum(count * share for count, share in parts.values())
    if not 0 < in_all < 1:
        return
    for entry in deployments:
        if entry["name"] in parts and not entry.get("placement_group_bundles"):  # a bundle is of what was asked for
            share = parts[entry["name"]][1] / in_all
            entry["ray_actor_options"]["num_gpus"] = 1 if share == 1 else math.floor(share * 1e4) / 1e4


def _takes_parts_of_cards(config: dict[str, Any]) -> bool:
    return any(0 < (d.get("ray_actor_options", {}).get("num_gpus") or 0) < 1 for d in config["deployments"])


def _without_user_config(config: dict[str, Any]) -> dict[str, Any]:
    deployments = [{k: v for k, v in d.items() if k != "user_config"} for d in config["deployments"]]
    return {**config, "deployments": deployments}


def _running(application: dict[str, Any]) -> list[Replica]:
    return [
        Replica(
            replica_id=r["replica_id"],
            pid=r["pid"],
            node_id=str(r.get("node_id")),
            actor_name=str(r.get("actor_name") or ""),
        )
        for d in application.get("deployments", {}).values()
        for r in d["replicas"]
        if str(getattr(r["state"], "value", r["state"])) == "RUNNING" and r.get("pid")
    ]


def _placed(application: dict[str, Any]) -> int:
    """How many replicas have a node, whatever their state."""
    return sum(bool(r.get("node_id")) for d in application.get("deployments", {}).values() for r in d["replicas"])


def _failure(application: dict[str, Any], status: str) -> str:
    """What Serve says of a failure, or nothing. The first failed replica counts: nobody waits for its retries."""
    messages = [str(d["message"]) for d in application.get("deployments", {}).values() if d["message"]]
    if status in ("DEPLOY_FAILED", "UNHEALTHY"):
        return "\n".join([str(application.get("message", "")), *messages]).strip() or status
    return "\n".join(m for m in messages if "failed to start" in m or "Failed to update" in m)


def _last_line(text: str) -> str:
    return ([line.strip() for line in text.splitlines() if line.strip()] or ["unknown"])[-1][:300]


def is_local(replica: Replica, node_id: str) -> bool:
    """Whether the replica's process can be seen from here."""
    return replica.node_id == node_id and os.path.exists(f"/proc/{replica.pid}")
