"""Who measures a trial: a lane for each that goes on at the same time.

    trial ─► Lanes.measure ─► a free lane on a node that holds the configuration ─► its evaluator, replicas and drivers
                                      │ lost or hung: another one, twice at most

A lane keeps its replicas and drivers on its own node, so that a lost node costs only the trials on it. How many lanes a
node has, and which of them is free for what, is for `seating` to say; finalists have a node to themselves.

A configuration whose replicas take more than one node is for `--concurrency 1`, which has one lane and puts replicas
wherever there is room.
"""

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
from ray.autoscaler.sdk import request_resources
from ray.exceptions import RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from morphling_ray.evaluate.lane import NAMESPACE, Doing, Lane
from morphling_ray.evaluate.room import Room
from morphling_ray.evaluate.seating import Seat, Seating, Want, alive
from morphling_ray.measurement import Measurement, voided
from morphling_ray.serving.deployment import name_on, take_down
from morphling_ray.space import Configuration

Needs = Callable[[Configuration], list[dict[str, float]]]
"""Ray resources of each replica of a configuration."""

REPEATS = 2  # of a trial whose lane was lost
TURN_S = 20.0
STAGE_S = 1.0


class Lanes:
    """An asynchronous Ray actor: any number of trials may ask at the same time.

    Args:
        name: Of the lanes, with a number behind.
        make_evaluator: Called in the process of each lane.
        arguments: Keyword arguments for it; a lane with a node gets `home`, `seat`, `shared` and `turns` too.
        needs: What replicas need, which says on which nodes; None: there is one lane, anywhere.
        node_timeout_s: A trial for which there has been no node for so long is infeasible.
        hang_s: A trial that takes longer has hung.
        seats: How many trials a node with these resources takes at once.
        to_come: Resources of nodes that an autoscaler may add; it is asked for as many as trials take.
        tried: Configurations (as texts) that were measured before there were lanes.
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
        seats: Callable[[Room], int] = lambda room: 1,
        to_come: Sequence[dict[str, float]] = (),
        tried: Sequence[str] = (),
        turn_s: float = TURN_S,
    ) -> None:
        self._to_come, self._seats_of = to_come, seats
        self._wanted: dict[int, dict[str, float]] = {}  # by trial, what its node has
        self._turn_s = turn_s
        self._tried = set(tried)
        self._tells = needs is not None or bool(tried)  # a lane alone knows what it has measured
        self._name, self._make_evaluator, self._arguments = name, make_evaluator, arguments
        self._needs, self._node_timeout_s, self._hang_s = needs, node_timeout_s, hang_s
        self._opened = 0
        self._turn: tuple[str, float] | None = None
        self._tidying: list[asyncio.Future[None]] = []
        self._seating = Seating(
            self._open_lane,
            self._take_down,
            seats=seats if needs is not None else None,
            node_timeout_s=node_timeout_s,
            hang_s=hang_s,
        )

    async def measure(self, ask: dict[str, Any]) -> dict[str, str]:
        """See `Lane.measure`. What is lost on the way is measured again; then the trial has a reason, and nothing else.

        Args:
            ask: What a searcher asked for.
        """
        sides = [ask, *([ask["rival"]] if ask.get("rival") else [])]
        replicas = [self._needs(side["configuration"]) for side in sides] if self._needs is not None else []
        alone = len(sides) > 1 or ask["stage"] == "confirm"
        want = Want(ask["number"], ask["configuration"], replicas, alone)
        self._ask_autoscaler(want, begins=True)
        try:
            return await self._measure(ask, sides, want)
        finally:
            self._ask_autoscaler(want, begins=False)

    async def _measure(self, ask: dict[str, Any], sides: Sequence[dict[str, Any]], want: Want) -> dict[str, str]:
        lost: list[str] = []
        if self._tells:
            ask = {**ask, "tried": sorted(self._tried)}
        while len(lost) <= REPEATS:
            notes: list[str] = []
            seat = await self._seating.take(want, notes)
            if seat is None:
                return _failed(
                    sides, f"no node: {self._node_timeout_s:g} s have passed without one that holds it", lost
                )
            try:
                found: dict[str, str] = await asyncio.wait_for(_result(seat.actor.measure.remote(ask)), self._hang_s)
                told = [json.loads(text) for text in found.values()]
                seat.measured |= (configurations := {str(each["configuration"]) for each in told})
                self._tried |= configurations
                seat.served = None if told[-1].get("infeasible_because") else told[-1]["configuration"]
                return _noted(found, [*_voided(lost), *notes])
            except RayActorError as error:
                lost.append(f"its lane was lost ({' '.join(str(error).split())[:200]})")
                self._seating.lost(seat, node_too=True)
            except asyncio.TimeoutError:
                lost.append(f"it had not ended after {self._hang_s:g} s")
                self._seating.lost(seat, node_too=False)
            finally:
                self._seating.free(seat)
        return _failed(sides, f"the trial was lost {len(lost)} times: {lost[-1]}", lost)

    async def cross_check(self, number: int, configuration: Configuration) -> dict[str, Any]:
        """See `Lane.cross_check`: by a lane that has measured the configuration.

        Raises:
            LookupError: It is lost.
        """
        seat = next((seat for seat in self._seating.seats if str(configuration) in seat.measured), None)
        if seat is None:
            raise LookupError("the lane that has measured it is lost")
        found: dict[str, Any] = await _result(seat.actor.cross_check.remote(number, configuration))
        return found

    async def stages(self) -> list[Doing]:
        """What is being done, of each lane that is measuring and answers."""

        async def of(seat: Seat) -> Doing | None:
            try:
                doing: Doing | None = await asyncio.wait_for(_result(seat.actor.stage.remote()), STAGE_S)
            except Exception:  # noqa: BLE001  a lane that does not answer is the trial's problem, not the display's
                return None
            return doing

        found = await asyncio.gather(*(of(seat) for seat in self._seating.seats))
        return [doing for doing in found if doing is not None]

    async def close(self) -> None:
        """Takes down what the evaluators put up; a lane in the middle of a trial is ended as it is."""
        closing = [_result(seat.actor.close.remote()) for seat in self._seating.seats]
        await asyncio.gather(*closing, return_exceptions=True)

    async def begin_turn(self, who: str) -> None:
        """Waits until nobody else is changing what Serve serves: its config is one for all applications."""
        while self._turn is not None and self._turn[0] != who and time.monotonic() < self._turn[1] + self._turn_s:
            await asyncio.sleep(0.02)
        self._turn = who, time.monotonic()

    async def end_turn(self, who: str) -> None:
        """Lets the next one change it."""
        if self._turn is not None and self._turn[0] == who:
            self._turn = None

    def _ask_autoscaler(self, want: Want, *, begins: bool) -> None:
        """Has the autoscaler hold nodes for the trials that go on: whole ones, or it would put more on one."""
        if not self._to_come or self._needs is None:
            return
        room = next((room for room in self._to_come if want.claim(room) is not None), None)
        if begins and room is not None:
            self._wanted[want.number] = room
        else:
            self._wanted.pop(want.number, None)
        request_resources(bundles=list(self._bundles()))

    def _bundles(self) -> Iterator[dict[str, int]]:
        for room in self._to_come:
            trials = sum(wanted is room for wanted in self._wanted.values())
            for _ in range(-(-trials // max(1, self._seats_of(room)))):
                yield {name: int(amount) for name, amount in room.items() if name != "memory"}

    def _open_lane(self, node_id: str | None, number: int, shared: bool) -> Any:
        self._opened += 1
        arguments, where = self._arguments, {}
        if node_id is not None:
            turns = ray.get_runtime_context().current_actor
            arguments = {**arguments, "home": node_id, "seat": number, "shared": shared, "turns": turns}
            where = {"scheduling_strategy": NodeAffinitySchedulingStrategy(node_id, soft=False)}
        return (
            ray.remote(Lane)
            .options(
                name=f"{self._name.removesuffix('s')}-{self._opened}",
                namespace=NAMESPACE,
                num_cpus=0,
                max_concurrency=2,
                **where,
            )  # two calls at once, so that `stage` answers during `measure`
            .remote(self._make_evaluator, arguments)
        )

    def _take_down(self, node_id: str, number: int) -> None:
        """Has Serve end what a lost lane has left up: others of its node may need the room."""

        async def in_turn() -> None:
            await self.begin_turn(name := name_on(node_id, number))
            try:
                await asyncio.to_thread(take_down, name)
            finally:
                await self.end_turn(name)

        self._tidying.append(asyncio.ensure_future(in_turn()))


def start_lanes(name: str, make_evaluator: Callable[..., Any], arguments: dict[str, Any], **how: Any) -> Any:
    """Starts the actor on this node, under a name that trials know; see `Lanes`."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return (
        ray.remote(Lanes)
        .options(name=name, namespace=NAMESPACE, num_cpus=0, scheduling_strategy=here)
        .remote(name, make_evaluator, arguments, **how)
    )


def places(seats: Callable[[Room], int]) -> int:
    """How many trials the nodes that are there take at once."""
    return sum(seats(room) for _, room in alive())


async def _result(reference: Any) -> Any:
    return await reference


def _failed(sides: Sequence[dict[str, Any]], reason: str, lost: Sequence[str]) -> dict[str, str]:
    each = (Measurement(configuration=side["configuration"], infeasible_because=reason) for side in sides)
    return _noted(dict(zip(("measurement", "rival"), (json.dumps(m.to_dict()) for m in each))), _voided(lost))


def _voided(lost: Sequence[str]) -> list[str]:
    return [voided(number, why) for number, why in enumerate(lost, start=1)]


def _noted(found: dict[str, str], notes: Sequence[str]) -> dict[str, str]:
    """The measurements with some notes before their own."""
    if not notes:
        return found
    out = {}
    for name, text in found.items():
        data = json.loads(text)
        out[name] = json.dumps({**data, "notes": [*notes, *data.get("notes", ())]})
    return out
