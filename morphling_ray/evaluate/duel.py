"""Two finalists in turn, until one of them is better or they are a tie.

the same replicas? switch live between windows ─┬─► rounds in turn ─► the winner once more, long ─┬─► two Measurements
room for both?     both stay up ────────────────┘                                                │
neither            one after the other, long ────────────────────────────────────────────────────┘

The peaks that are reported rest on the winner's long windows; the other's follows from the ratio that rounds showed.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from morphling_ray.evaluate.attempt import Attempt, compared
from morphling_ray.evaluate.plain import ALONE, CONFIRM_NOISE_SD, PlainProbes
from morphling_ray.evaluate.stand import Stand
from morphling_ray.load.pairs import PairedPeaks, Round, in_turn, unpaired
from morphling_ray.load.peak import HIGHEST_SHARE, LEAST_EXCESS, LOWEST_SHARE
from morphling_ray.load.window import lone_tail
from morphling_ray.measurement import Measurement, Verdict
from morphling_ray.objective import Slo
from morphling_ray.serving.deployment import DeploymentFailed

WINDOW_S, REQUESTS = 0.6, 60  # at least
CAPACITY_S, ANSWERS = 0.27, 20  # at least; two rounds in three seconds
LONGEST_S = 3.0  # of either, whatever they would need
MOST_ROUNDS, UNALIKE_ROUNDS = 8, 4  # the law is too rough for more where it does not hold for both alike
APART_SD = 0.07  # of the logarithm of a peak that was measured long (benchmarks/peak.py)
LONE_LOOKS, LONE_SD = 3, 0.1  # at lone requests, at most; and how sure they are to be, of what is left to wait
RATE_LOOKS, NEAR = 4, 0.1  # windows to find a rate near the peak, at most; and how near, in logs
RATE_GAIN = 0.3  # how far a rate follows an excess, in logs: the excess grows faster than the rate


@dataclass
class Side:
    """One of the two, on its stand."""

    attempt: Attempt
    stand: Stand
    in_flight: int = 0
    alone: list[float] = field(default_factory=list)
    """Latencies of requests without company."""
    alone_s: float = 0.0
    alone_sd_s: float = 0.0
    rate_rps: float = 0.0  # of its windows


class Duel:
    """One comparison.

    Args:
        first: One of them.
        second: The other.
        stand: Where the application is up already.
        plain: Measures the winner.
        slo: Bounds.
        ratio: The first one's peak over the second one's at which both are equally good.
        cheaper: The first one costs less, and so wins a tie.
    """

    def __init__(
        self,
        first: Attempt,
        second: Attempt,
        *,
        stand: Stand,
        plain: PlainProbes,
        slo: Slo,
        ratio: float,
        cheaper: bool,
    ) -> None:
        self._attempts = first, second
        self._stand = stand
        self._plain = plain
        self._slo = slo
        self._ratio = ratio
        self._cheaper = cheaper
        self._alike = stand.batches_alike(first.configuration, second.configuration)
        self.seconds = 0.0
        """Of the rounds of `compare`."""
        self._next_s = 0.0  # what the next round takes

    def compare(self, *, within_s: float | None = None) -> PairedPeaks | None:
        """The comparison alone, without the winner's long windows.

        Args:
            within_s: Seconds of rounds after which it ends undecided; None: only the number of rounds ends it.
        """
        with self._sides() as sides:
            return self._rounds(sides, within_s=within_s) if sides is not None else None

    def fight(self) -> tuple[Measurement, Measurement]:
        """Compares them; one that fails has lost."""
        # Of the median, and of streams, the rounds say nothing.
        if self._plain.closed_loop or self._slo.median_s is not None or self._slo.streaming:
            return self._apart()
        with self._sides() as sides:
            found = self._rounds(sides) if sides is not None else None
            won = 0 if found is None or found.first_wins(self._cheaper) else 1
            measured = self._alone(sides[won]) if sides is not None and found is not None else None
        if found is None or measured is None or not measured.feasible:
            return self._apart()
        ratio = math.exp(found.log_ratio)  # of the first one's peak over the second one's
        beaten = self._attempts[1 - won].measurement(
            metrics={"peak_rps": measured.metrics["peak_rps"] * (1 / ratio if won == 0 else ratio)},
            noise_sd={"peak_rps": CONFIRM_NOISE_SD},
            estimated=True,
        )
        return compared(*((measured, beaten) if won == 0 else (beaten, measured)), found, first_won=won == 0)

    @contextmanager
    def _sides(self) -> "Iterator[tuple[Side, Side] | None]":
        """Both sides, where changing from one to the other takes no restart; else None."""
        first, second = self._attempts
        if self._stand.deployer.changes_live(first.configuration, second.configuration):
            self._note("compared in turn on the same replicas")
            yield Side(first, self._stand), Side(second, self._stand)
            return
        if not self._is_up(first):  # which is found once more, and reported, when it is measured by itself
            yield None
            return
        second.watch.say("deploying a rival beside it")
        began = time.monotonic()
        with self._stand.beside(second.configuration) as beside:
            second.watch.add("deploying", time.monotonic() - began)
            if beside is None:
                self._note("measured one after the other: there is no room for both")
                yield None
            else:
                self._note("compared in turn, both being up all the time")
                yield Side(first, self._stand), Side(second, beside)

    def _is_up(self, attempt: Attempt) -> bool:
        """Brings a configuration up, if it comes up."""
        with attempt.watch.stage("deploying"):
            try:
                self._stand.bring_up(attempt.configuration)
            except DeploymentFailed:
                return False
        return True

    def _note(self, text: str) -> None:
        for attempt in self._attempts:
            attempt.notes.append(text)

    def _rounds(self, sides: tuple[Side, Side], *, within_s: float | None = None) -> PairedPeaks | None:
        """Windows of both in turn; None where one of them cannot be compared like that."""
        try:
            if not all(self._ready(side) for side in sides):
                return None
            self._fill_alike(sides)
            if not self._find_rates(sides):
                return None
            began = time.monotonic()

            def going_on(rounds: int) -> bool:
                self.seconds = time.monotonic() - began
                return within_s is None or self.seconds + self._next_s <= within_s

            found = in_turn(
                lambda number: self._round(sides, number),
                rates_rps=(sides[0].rate_rps, sides[1].rate_rps),
                alone_s=(sides[0].alone_s, sides[1].alone_s),
                alone_sd_s=(sides[0].alone_sd_s, sides[1].alone_sd_s),
                slo_s=self._slo.latency_s,
                alike=self._alike,
                ratio=self._ratio,
                most=MOST_ROUNDS if self._alike else UNALIKE_ROUNDS,
                going_on=going_on,
            )
            return found if all(side.stand.intact() for side in sides) else None
        except Exception as error:  # noqa: BLE001  a replica that is gone may show anywhere
            self._note(f"the comparison in turn failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
            return None

    def _ready(self, side: Side) -> bool:
        """Brings a side up and learns what it takes without company."""
        attempt, stand = side.attempt, side.stand
        warm = stand.ready(attempt)
        if isinstance(warm, str):
            return False
        fill = self._plain.fills.get(str(attempt.configuration))  # if it was measured by plain probes before
        side.in_flight = fill or max(2, min(stand.fill(attempt), round(warm.achieved_rps * self._slo.latency_s)))
        side.rate_rps = warm.achieved_rps
        for _ in range(LONE_LOOKS):
            with attempt.watch.stage("probing", "sending requests one by one"):
                side.alone += stand.crew.alone(ALONE)
            if not side.alone:
                return False
            side.alone_s, side.alone_sd_s = lone_tail(side.alone, self._slo.percentile)
            room_s = self._slo.latency_s - side.alone_s
            if 0.0 <= side.alone_sd_s < LONE_SD * room_s:
                break
        return room_s > 0.0

    def _fill_alike(self, sides: tuple[Side, Side]) -> None:
        """Where one of them was given more requests than fill its batches, the other is given as many times more.

        Who has more in flight wastes less time between two batches, which is no merit of its configuration.
        """
        grown = [self._plain.grown.get(str(side.attempt.configuration), 1.0) for side in sides]
        for side, own in zip(sides, grown):
            slots = side.stand.slots(side.attempt)
            side.in_flight = max(side.in_flight, min(slots, round(side.in_flight * max(grown) / own)))

    def _find_rates(self, sides: tuple[Side, Side]) -> bool:
        """Rates near the peaks, where windows tell most; of those who batch alike, the same share of the capacities."""
        capacity = [self._capacity(side) for side in sides]
        if not all(capacity):
            return False
        rates = [self._plain.expected(s.attempt.configuration, c) for s, c in zip(sides, capacity)]
        if self._alike:
            share = math.sqrt(rates[0] / capacity[0] * rates[1] / capacity[1])
            rates = [share * c for c in capacity]
        for side, rate, c in zip(sides, rates, capacity):
            side.rate_rps = min(max(rate, LOWEST_SHARE * c), HIGHEST_SHARE * c)
        if self._alike:
            return True
        for side, c in zip(sides, capacity):  # nothing makes an error of one rate up for that of the other
            for look in range(RATE_LOOKS):
                if not (excess := self._excess(side, number=MOST_ROUNDS + look)):
                    return False
                follow = ((self._slo.latency_s - side.alone_s) / excess) ** RATE_GAIN
                side.rate_rps = min(side.rate_rps * follow, HIGHEST_SHARE * c)
                if abs(math.log(follow)) < NEAR:
                    break
        return True

    def _round(self, sides: tuple[Side, Side], number: int) -> Round | None:
        """Closed loops A B B A, or the other way round, and between those who do not batch alike a window of each.

        None if one of them cannot be read.
        """
        began, order = time.monotonic(), (0, 1) if number % 2 == 0 else (1, 0)
        capacity = [{i: self._capacity(sides[i]) for i in turn} for turn in (order, order[::-1])]
        excess = None if self._alike else {i: self._excess(sides[i], number) for i in order}
        self._next_s = time.monotonic() - began
        if not all(all(found.values()) for found in [*capacity, excess or {}]):
            return None
        return Round(tuple((c[0], c[1]) for c in capacity), None if excess is None else (excess[0], excess[1]))

    def _capacity(self, side: Side) -> float:
        """Throughput of a short closed loop; 0 where requests fail."""
        side.stand.bring_up(side.attempt.configuration)
        with side.attempt.watch.stage("probing"):
            window_s = min(LONGEST_S, max(CAPACITY_S, ANSWERS / side.rate_rps))
            found = side.stand.crew.saturate(in_flight=side.in_flight, window_s=window_s)
        side.attempt.probes.append(found)
        return 0.0 if self._plain.failing(found) else found.achieved_rps

    def _excess(self, side: Side, number: int) -> float:
        """The percentile of a window above that of lone requests, 0 if it has none; both have the same arrivals."""
        attempt, stand = side.attempt, side.stand
        stand.bring_up(attempt.configuration)
        with attempt.watch.stage("probing", f"probing at {side.rate_rps:.3g} RPS, in turn with a rival"):
            for again in (0, 1):
                probe = stand.crew.probe(
                    rate_rps=side.rate_rps,
                    window_s=min(LONGEST_S, max(WINDOW_S, REQUESTS / side.rate_rps)),
                    seed=attempt.seed + 2 * number + again,
                    representative=True,
                    whole=True,
                )
                attempt.probes.append(probe)
                stand.settle()
                if probe.verdict is not Verdict.INVALID:
                    break
            else:
                return 0.0
        readable = not probe.errors and probe.tail_s > 0.0
        return max(probe.tail_s - side.alone_s, LEAST_EXCESS * self._slo.latency_s) if readable else 0.0

    def _apart(self) -> tuple[Measurement, Measurement]:
        """Measures one after the other; that one is better then takes more of a difference."""
        one, other = (self._alone(Side(attempt, self._stand)) for attempt in self._attempts)
        peaks = [m.metrics.get("peak_rps", 0.0) if m.feasible else 0.0 for m in (one, other)]
        if not any(peaks):
            return one, other
        # Windows that were at odds leave a peak less sure than is usual.
        sds = [max((sd for sd in m.noise_sd.values() if sd > CONFIRM_NOISE_SD), default=APART_SD) for m in (one, other)]
        found = unpaired(*peaks, sd=math.hypot(*sds) / math.sqrt(2.0), ratio=self._ratio)
        return compared(one, other, found, first_won=found.first_wins(self._cheaper))

    def _alone(self, side: Side) -> Measurement:
        """The peak of one of them, long and by plain probes."""
        attempt, stand = side.attempt, side.stand

        def measure() -> Measurement:
            warm = stand.ready(attempt)
            if isinstance(warm, str):
                return attempt.measurement(infeasible_because=warm)
            return self._plain.on(stand).measure(attempt, warm.achieved_rps, stand.fill(attempt))

        return stand.steady(measure, lambda: attempt)
