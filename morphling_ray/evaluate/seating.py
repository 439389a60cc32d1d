"""Which lane measures a trial, on which node, and whether two trials may share one.

A trial claims what it takes of a node before it begins (room.py), and takes it from replicas that are only up since
nobody has taken them down. Those that have to wait are served in turn. Before two trials share a node, it is measured
once what they cost each other: where that is more than `NEIGHBOURS`, the node keeps one lane.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import ray

from morphling_ray.evaluate.room import Replicas, Room, claim, remaining, within
from morphling_ray.space import Configuration

LOOK_S = 1.0  # between two looks at the nodes, while a trial waits
DOUBT_S = 20.0  # that a node is left alone after a lane there was lost: Ray sees after 5 x 3 s that a node is gone
CLOSE_S = 30.0
NEIGHBOURS = 0.1  # share of its throughput that a trial may lose to another one on its node
LOOKS = 3  # at the throughput of each of two, alone and beside the other
NOTHING = {"CPU": 0.0, "GPU": 0.0}


@dataclass(eq=False)
class Seat:
    """A lane, and where it is.

    Attributes:
        actor: The lane.
        node_id: Its node; None: it is anywhere, and its replicas may be.
        number: Among those of its node.
        busy: It is measuring.
        claim: What it holds of the node's cores and cards, also between trials: its replicas stay up.
        served: The configuration that it measured last, and that is up.
        measured: Configurations that it has measured.
    """

    actor: Any
    node_id: str | None
    number: int
    busy: bool
    claim: dict[str, float]
    served: Configuration | None = None
    measured: set[str] = field(default_factory=set)


@dataclass(eq=False)
class Want:
    """What a trial wants of a node.

    Attributes:
        number: Of the trial.
        configuration: What it measures, or compares with another one.
        replicas: Of that, and of the other one.
        alone: Nothing else is to go on there.
        settled: It has found its node, and is in nobody's way on others.
    """

    number: int
    configuration: Configuration
    replicas: Sequence[Replicas]
    alone: bool
    settled: bool = False

    @property
    def kind(self) -> frozenset[str]:
        """Resources that its node must have, a type of GPU among them."""
        return frozenset(name for each in self.replicas for one in each for name, amount in one.items() if amount)

    def claim(self, room: Room) -> dict[str, float] | None:
        """What it takes of a node; None where that does not hold it."""
        each = [claim(replicas, room, alone=self.alone) for replicas in self.replicas]
        if not all(c is not None for c in each):
            return None
        return {name: max((c[name] for c in each if c is not None), default=0.0) for name in NOTHING}


class Seating:
    """All lanes of a run, and what their nodes have.

    Args:
        open_lane: Starts the lane with that number on a node, which may be one of several there; None: anywhere.
        take_down: Ends what a lane that is gone has left up.
        seats: How many trials a node with these resources takes at once; None: there is one lane, anywhere.
        node_timeout_s: A trial for which there has been no node for so long gets none.
        hang_s: What takes longer has hung.
    """

    def __init__(
        self,
        open_lane: Callable[[str | None, int, bool], Any],
        take_down: Callable[[str, int], None],
        *,
        seats: Callable[[Room], int] | None,
        node_timeout_s: float,
        hang_s: float,
    ) -> None:
        self._open_lane, self._take_down, self._seats_of = open_lane, take_down, seats
        self._node_timeout_s, self._hang_s = node_timeout_s, hang_s
        self.seats: list[Seat] = []
        self._freed = asyncio.Event()
        self._waiting: list[Want] = []
        self._doubted: dict[str | None, float] = {}  # nodes, and when a lane was lost there
        self._shares: dict[str, bool] = {}  # nodes where it was measured, and whether trials may share them
        self._trying: set[str] = set()  # nodes where it is being measured
        self._given_up: set[frozenset[str]] = set()  # kinds of nodes that were waited for, and are not again
        if seats is None:
            self._open(None, 0)

    async def take(self, want: Want, notes: list[str]) -> Seat | None:
        """A lane on a node that has room for the trial, now the trial's; None where no node holds it, and none comes.

        Args:
            want: The trial.
            notes: Gets what is to be said of the node.
        """
        patience_s = 0.0 if want.kind in self._given_up else self._node_timeout_s
        deadline = time.monotonic() + patience_s
        self._waiting.append(want)
        try:
            while True:
                found, there = await self._look(want, notes)
                if found is not None:
                    return found
                if there:  # what holds it is taken, and will not be for ever
                    self._given_up.discard(want.kind)
                    deadline = time.monotonic() + self._node_timeout_s
                elif time.monotonic() >= deadline:
                    self._given_up.add(want.kind)
                    return None
                await self._wait()
        finally:
            self._waiting.remove(want)
            self._look_again()

    def free(self, seat: Seat) -> None:
        """Its trial is over."""
        seat.busy = False
        self._look_again()

    def lost(self, seat: Seat, *, node_too: bool) -> None:
        """It does not answer any more, perhaps because its node is gone."""
        if node_too:
            self._doubted[seat.node_id] = time.monotonic()
        self._close(seat)
        if seat.node_id is not None:
            self._take_down(seat.node_id, seat.number)

    def _look_again(self) -> None:
        """Wakes all who wait."""
        self._freed.set()
        self._freed = asyncio.Event()

    async def _wait(self) -> None:
        """Until a lane is free, or a node may have come."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._freed.wait(), LOOK_S)

    async def _look(self, want: Want, notes: list[str]) -> tuple[Seat | None, bool]:
        """A lane for it, if there is one now; and whether any node holds it at all."""
        if self._seats_of is None:
            seat = self.seats[0] if self.seats else self._open(None, 0)
            if seat.busy:
                return None, True
            seat.busy = True
            return seat, True
        rooms = dict(alive())
        claims = {node_id: taken for node_id, room in rooms.items() if (taken := want.claim(room)) is not None}
        before = [other for other in self._waiting[: self._waiting.index(want)] if not other.settled]
        open_to_it = [
            node_id
            for node_id in claims
            if node_id not in self._trying
            and time.monotonic() >= self._doubted.get(node_id, -DOUBT_S) + DOUBT_S
            and not any(other.claim(rooms[node_id]) is not None for other in before)
        ]
        # A node whose lane is free, then one that has no lane yet, then one that trials may share.
        for node_id in sorted(open_to_it, key=lambda n: (len(self._busy(n)), -len(self._on(n)))):
            seats, busy, room = self._on(node_id), self._busy(node_id), rooms[node_id]
            if not within(claims[node_id], remaining(room, [seat.claim for seat in busy])):
                continue
            if busy and not self._shares.get(node_id, True):
                continue
            if busy and node_id not in self._shares:
                if self._seats_of(room) < 2:
                    continue
                return await self._first_neighbour(want, busy[0], claims[node_id], room, notes), True
            found = next((seat for seat in seats if not seat.busy), None)
            if found is None:
                if len(seats) >= self._seats_of(room):
                    continue
                found = self._open(node_id, min(set(range(len(seats) + 1)) - {seat.number for seat in seats}))
            want.settled = True
            await self._make_room(found, claims[node_id], room)
            return found, True
        return None, bool(claims)

    async def _make_room(self, seat: Seat, taken: dict[str, float], room: Room) -> None:
        """Lets a lane claim what no trial holds, and takes down what others on its node have left up, if need be."""
        seat.busy, seat.claim = True, taken
        others = [other for other in self._on(seat.node_id) if other is not seat]
        if within(taken, remaining(room, [other.claim for other in others])):
            return
        idle = [other for other in others if not other.busy]
        for other in idle:
            other.claim, other.served = dict(NOTHING), None
        await asyncio.gather(*(_result(other.actor.release.remote()) for other in idle), return_exceptions=True)

    async def _first_neighbour(
        self, want: Want, first: Seat, taken: dict[str, float], room: Room, notes: list[str]
    ) -> Seat | None:
        """A second lane on a node, if what it and the first one cost each other is little; else None.

        That is measured with the trial's configuration beside the one that the first lane has up.
        """
        node_id = str(first.node_id)
        self._trying.add(node_id)
        want.settled = True
        try:
            while first.busy and first in self.seats:
                await self._wait()
            if first not in self.seats or first.served is None:
                return None
            if not within(taken, remaining(room, [seat.claim for seat in self._on(node_id)])):
                return None
            second = self._open(node_id, 1 - first.number)
            first.busy, second.busy, second.claim = True, True, taken
            try:
                cost = await asyncio.wait_for(self._cost(want, first, second), self._hang_s)
            except Exception:  # noqa: BLE001  whatever it is shows again when the trial is measured
                self.lost(second, node_too=False)
                return None
            finally:
                self.free(first)
            self._shares[node_id] = cost <= NEIGHBOURS
            do = "share a node" if self._shares[node_id] else "have a node to themselves"
            notes.append(f"trials {do}: beside each other two have {max(0.0, cost):.0%} less throughput than alone")
            if not self._shares[node_id]:
                with contextlib.suppress(Exception):
                    await asyncio.wait_for(_result(second.actor.release.remote()), CLOSE_S)
                self._close(second)
                return None
            return second
        finally:
            want.settled = False
            self._trying.discard(node_id)

    async def _cost(self, want: Want, first: Seat, second: Seat) -> float:
        """Share of its throughput that the one of two lanes which suffers more loses to the other one."""

        async def throughput(seat: Seat, configuration: Configuration) -> float:
            found: float = await _result(seat.actor.throughput.remote(want.number, configuration))
            return found

        one, other = (first, dict(first.served or {})), (second, want.configuration)
        kept = []
        for _ in range(LOOKS):
            alone = await throughput(*one), await throughput(*other)
            beside = await asyncio.gather(throughput(*one), throughput(*other))
            kept.append([both / by_itself for both, by_itself in zip(beside, alone)])
        return 1 - min(float(median(of_one)) for of_one in zip(*kept))

    def _on(self, node_id: str | None) -> list[Seat]:
        return [seat for seat in self.seats if seat.node_id == node_id]

    def _busy(self, node_id: str | None) -> list[Seat]:
        return [seat for seat in self._on(node_id) if seat.busy]

    def _open(self, node_id: str | None, number: int) -> Seat:
        shared = self._seats_of is not None and self._seats_of(dict(alive()).get(str(node_id), {})) > 1
        seat = Seat(self._open_lane(node_id, number, shared), node_id, number, busy=False, claim=dict(NOTHING))
        self.seats.append(seat)
        return seat

    def _close(self, seat: Seat) -> None:
        ray.kill(seat.actor)
        self.seats.remove(seat)


def alive() -> list[tuple[str, dict[str, float]]]:
    """Id and resources of each node that is alive."""
    return [(str(node["NodeID"]), dict(node["Resources"])) for node in ray.nodes() if node["Alive"]]


async def _result(reference: Any) -> Any:
    return await reference
