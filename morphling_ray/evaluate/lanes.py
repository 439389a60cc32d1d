"""Who measures a trial, and where: one lane for a node, where a cluster has several.

    trial ─► Lanes.measure ─► a free lane on a node that holds the configuration ─► its evaluator, replicas and drivers
                                      │ lost or hung: another one, twice at most

A lane keeps its replicas and drivers on its own node. So two trials never share a core or a card, none waits for
resources that another one holds, and a lost node costs only the trials on it. A configuration whose replicas take more
than one node is for `--concurrency 1`, which has one lane and puts replicas wherever there is room.
"""

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.autoscaler.sdk import request_resources
from ray.exceptions import RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from morphling_ray.evaluate.lane import NAMESPACE, Lane
from morphling_ray.measurement import Measurement
from morphling_ray.serving.serve_config import fit
from morphling_ray.space import Configuration

Needs = Callable[[Configuration], list[dict[str, float]]]
"""Ray resources of each replica of a configuration."""

REPEATS = 2  # of a trial whose lane was lost
LOOK_S = 1.0  # between two looks at the nodes, while a trial waits
DOUBT_S = (
    10.0  # that a node is left alone after a lane on it was lost: Ray itself takes seconds to see that one is gone
)
TURN_S = 20.0
STAGE_S = 1.0


@dataclass(eq=False)
class Seat:
    """A lane, and where it is.

    Attributes:
        actor: The lane.
        node_id: Its node; None: it is anywhere, and its replicas may be.
        room: Resources of that node.
        busy: It is measuring.
        measured: Configurations that it has measured.
    """

    actor: Any
    node_id: str | None
    room: dict[str, float]
    busy: bool
    measured: set[str]

    def holds(self, replicas: Sequence[Sequence[dict[str, float]]]) -> bool:
        """Whether each of some configurations, given by what its replicas need, fits on the node."""
        return self.node_id is None or all(fit(each, [self.room]) for each in replicas)


class Lanes:
    """An asynchronous Ray actor: any number of trials may ask at the same time.

    Args:
        name: Of the lanes, with a number behind.
        make_evaluator: Called in the process of each lane.
        arguments: Keyword arguments for it; a lane with a node gets `home` and `turns` too.
        needs: What replicas need, which says on which nodes; None: there is one lane, anywhere.
        node_timeout_s: A trial for which there has been no node for so long is infeasible.
        hang_s: A trial that takes longer has hung.
        to_come: Resources of nodes that an autoscaler may add; it is asked for one for each trial.
        turn_s: Who has taken a turn and not given it back after that is gone.
    """

    def __init__(
        self,
        name: str,
        make_evaluator: Callable[..., Any],
        arguments: dict[str, Any],
        *,
        needs: Needs | None,
        node_timeout_s: float,
        hang_s: float,
        to_come: Sequence[dict[str, float]] = (),
        turn_s: float = TURN_S,
    ) -> None:
        self._to_come = to_come
        self._wanted: dict[int, dict[str, float]] = {}  # by trial, what its node has
        self._turn_s = turn_s
        self._name, self._make_evaluator, self._arguments = name, make_evaluator, arguments
        self._needs, self._node_timeout_s, self._hang_s = needs, node_timeout_s, hang_s
        self._seats: list[Seat] = []
        self._opened = 0
        self._freed = asyncio.Event()
        self._doubted: dict[str | None, float] = {}  # nodes, and when a lane was lost there
        self._turn: tuple[str, float] | None = None
        if needs is None:
            self._open(None, {})

    async def measure(self, ask: dict[str, Any]) -> dict[str, str]:
        """See `Lane.measure`. What is lost on the way is measured again; then the trial has a reason, and nothing else.

        Args:
            ask: What a searcher asked for.
        """
        sides = [ask, *([ask["rival"]] if ask.get("rival") else [])]
        replicas = [self._needs(side["configuration"]) for side in sides] if self._needs is not None else []
        self._want(ask["number"], replicas)
        try:
            return await self._measure(ask, sides, replicas)
        finally:
            self._want(ask["number"], [])

    async def _measure(
        self, ask: dict[str, Any], sides: Sequence[dict[str, Any]], replicas: Sequence[Sequence[dict[str, float]]]
    ) -> dict[str, str]:
        lost: list[str] = []
        while len(lost) <= REPEATS:
            seat = await self._take(replicas)
            if seat is None:
                return _failed(sides, f"no node: there has been none for {self._node_timeout_s:g} s", lost)
            try:
                found: dict[str, str] = await asyncio.wait_for(_result(seat.actor.measure.remote(ask)), self._hang_s)
                seat.measured |= {str(json.loads(text)["configuration"]) for text in found.values()}
                return _noted(found, lost)
            except RayActorError as error:
                lost.append(f"its lane was lost ({' '.join(str(error).split())[:200]})")
                self._doubted[seat.node_id] = time.monotonic()
                self._close(seat)
            except asyncio.TimeoutError:
                lost.append(f"it had not ended after {self._hang_s:g} s")
                self._close(seat)
            finally:
                seat.busy = False
                self._freed.set()  # whoever waits looks again
                self._freed = asyncio.Event()
        return _failed(sides, f"the trial was lost {len(lost)} times: {lost[-1]}", lost)

    async def cross_check(self, number: int, configuration: Configuration) -> dict[str, Any]:
        """See `Lane.cross_check`: by a lane that has measured the configuration.

        Raises:
            LookupError: It is lost.
        """
        seat = next((seat for seat in self._seats if str(configuration) in seat.measured), None)
        if seat is None:
            raise LookupError("the lane that has measured it is lost")
        found: dict[str, Any] = await _result(seat.actor.cross_check.remote(number, configuration))
        return found

    async def stages(self) -> list[tuple[int, str]]:
        """Trial number and what is being done for it, of each lane that is measuring and answers."""

        async def of(seat: Seat) -> tuple[int, str] | None:
            try:
                doing: tuple[int, str] | None = await asyncio.wait_for(_result(seat.actor.stage.remote()), STAGE_S)
            except Exception:  # noqa: BLE001  a lane that does not answer is the trial's problem, not the display's
                return None
            return doing

        found = await asyncio.gather(*(of(seat) for seat in self._seats))
        return [doing for doing in found if doing is not None]

    async def close(self) -> None:
        """Takes down what the evaluators put up; a lane in the middle of a trial is ended as it is."""
        await asyncio.gather(*(_result(seat.actor.close.remote()) for seat in self._seats), return_exceptions=True)

    async def begin_turn(self, who: str) -> None:
        """Waits until nobody else is changing what Serve serves: its config is one for all applications."""
        while self._turn is not None and self._turn[0] != who and time.monotonic() < self._turn[1] + self._turn_s:
            await asyncio.sleep(0.02)
        self._turn = who, time.monotonic()

    async def end_turn(self, who: str) -> None:
        """Lets the next one change it."""
        if self._turn is not None and self._turn[0] == who:
            self._turn = None

    async def _take(self, replicas: Sequence[Sequence[dict[str, float]]]) -> Seat | None:
        """A free lane on a node that holds it; opens one if need be. None where no node does, and none comes."""
        deadline = time.monotonic() + self._node_timeout_s
        while True:
            fitting = [seat for seat in self._seats if seat.holds(replicas)]
            free = next((seat for seat in fitting if not seat.busy), None)
            if free is None and self._needs is not None:
                taken = {seat.node_id for seat in self._seats}
                taken |= {node_id for node_id, at in self._doubted.items() if time.monotonic() < at + DOUBT_S}
                for node_id, room in _nodes():
                    if node_id not in taken and all(fit(each, [room]) for each in replicas):
                        free = self._open(node_id, room)
                        break
            elif free is None and not self._seats:
                free = self._open(None, {})
            if free is not None:
                free.busy = True
                return free
            if fitting:  # it is busy, and will not be for ever
                deadline = time.monotonic() + self._node_timeout_s
            elif time.monotonic() > deadline:
                return None
            await asyncio.wait([asyncio.ensure_future(self._freed.wait())], timeout=LOOK_S)

    def _want(self, number: int, replicas: Sequence[Sequence[dict[str, float]]]) -> None:
        """Has the autoscaler hold a node for each trial that goes on: a whole one, or it would put several on one."""
        if not self._to_come or self._needs is None:
            return
        rooms = [room for room in self._to_come if replicas and all(fit(each, [room]) for each in replicas)]
        if rooms:
            self._wanted[number] = {k: v for k, v in rooms[0].items() if k != "memory"}
        else:
            self._wanted.pop(number, None)
        request_resources(bundles=[{k: int(v) for k, v in room.items()} for room in self._wanted.values()])

    def _open(self, node_id: str | None, room: dict[str, float]) -> Seat:
        self._opened += 1
        arguments, where = self._arguments, {}
        if node_id is not None:
            turns = ray.get_runtime_context().current_actor
            arguments = {**arguments, "home": node_id, "turns": turns}
            where = {"scheduling_strategy": NodeAffinitySchedulingStrategy(node_id, soft=False)}
        actor = (
            ray.remote(Lane)
            .options(
                name=f"{self._name}-{self._opened}", namespace=NAMESPACE, num_cpus=0, max_concurrency=2, **where
            )  # two calls at once, so that `stage` answers during `measure`
            .remote(self._make_evaluator, arguments)
        )
        seat = Seat(actor, node_id, room, busy=False, measured=set())
        self._seats.append(seat)
        return seat

    def _close(self, seat: Seat) -> None:
        ray.kill(seat.actor)
        self._seats.remove(seat)


def start_lanes(name: str, make_evaluator: Callable[..., Any], arguments: dict[str, Any], **how: Any) -> Any:
    """Starts the actor on this node, under a name that trials know; see `Lanes`."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return (
        ray.remote(Lanes)
        .options(name=name, namespace=NAMESPACE, num_cpus=0, scheduling_strategy=here)
        .remote(name, make_evaluator, arguments, **how)
    )


def homes(needs: Needs, configurations: Sequence[Configuration]) -> int:
    """How many of the cluster's nodes hold one of the configurations."""
    different = _different(needs, configurations)
    return sum(any(fit(each, [room]) for each in different) for _, room in _nodes())


def on_one_node(needs: Needs, configurations: Sequence[Configuration], nodes: Sequence[dict[str, float]]) -> bool:
    """Whether each of the configurations fits on one of the nodes, given by their resources."""
    return all(any(fit(each, [room]) for room in nodes) for each in _different(needs, configurations))


def _different(needs: Needs, configurations: Sequence[Configuration]) -> list[list[dict[str, float]]]:
    return list({json.dumps(each, sort_keys=True): each for each in map(needs, configurations)}.values())


def _nodes() -> list[tuple[str, dict[str, float]]]:
    """Id and resources of each node that is alive."""
    return [(str(node["NodeID"]), dict(node["Resources"])) for node in ray.nodes() if node["Alive"]]


async def _result(reference: Any) -> Any:
    return await reference


def _failed(sides: Sequence[dict[str, Any]], reason: str, lost: Sequence[str]) -> dict[str, str]:
    each = (Measurement(configuration=side["configuration"], infeasible_because=reason) for side in sides)
    return _noted(dict(zip(("measurement", "rival"), (json.dumps(m.to_dict()) for m in each))), lost)


def _noted(found: dict[str, str], lost: Sequence[str]) -> dict[str, str]:
    """The measurements with a note for each time that the trial was lost."""
    if not lost:
        return found
    notes = [f"attempt {number} was voided: {why}" for number, why in enumerate(lost, start=1)]
    out = {}
    for name, text in found.items():
        data = json.loads(text)
        out[name] = json.dumps({**data, "notes": [*notes, *data.get("notes", ())]})
    return out
