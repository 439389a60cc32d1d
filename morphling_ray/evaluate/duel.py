"""Two finalists in turn, until one of them is better or they are a tie.

the same replicas? switch live between windows ─┐
room for both?     both stay up ────────────────┼─► pairs of windows ─► the winner once more, long ─► two Measurements
neither            brought up in turn ──────────┘

The peaks that are reported rest on the winner's long windows; the other's is that over the ratio that the pairs showed.
"""

import math
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from morphling_ray.evaluate.attempt import Attempt, compared
from morphling_ray.evaluate.batching import ALONE
from morphling_ray.evaluate.plain import CONFIRM_NOISE_SD, PlainProbes
from morphling_ray.evaluate.stand import Stand
from morphling_ray.load.pairs import PairedPeaks, in_turn, unpaired
from morphling_ray.load.peak import HIGHEST_SHARE, LOWEST_SHARE, read_off
from morphling_ray.measurement import Measurement, Verdict
from morphling_ray.objective import Slo
from morphling_ray.serving.deployment import DeploymentFailed

WINDOW_S = 0.6
REQUESTS = 60  # that a window has at least, at slow rates
CAPACITY_S = 0.4
NEAR_PEAK = 1.03  # windows run at so many times the peak as it seems: where they tell most, and vary least
LEAST_PAIRS, MOST_PAIRS = 2, 8
PAIR_SD = 0.05  # of the difference between two windows of a pair, as benchmarks/pairs.py finds it
# Where each change takes a restart: windows of a visit, visits to each, and what visits seconds apart differ by.
VISIT_WINDOWS, VISITS, VISIT_SD = 4, 2, 0.07


@dataclass
class Side:
    """One of the two, on its stand."""

    attempt: Attempt
    stand: Stand
    capacity_rps: float = 0.0
    alone_s: float = 0.0
    logs: list[float] = field(default_factory=list)  # of the peaks that its windows foretold


class Duel:
    """One comparison.

    Args:
        first: To be preferred in a tie.
        second: The other.
        stand: Where the application is up already.
        plain: Measures the winner.
        slo: Bounds.
        ratio: The first one's peak over the second one's at which both are equally good.
    """

    def __init__(
        self, first: Attempt, second: Attempt, *, stand: Stand, plain: PlainProbes, slo: Slo, ratio: float
    ) -> None:
        self._attempts = first, second
        self._stand = stand
        self._plain = plain
        self._slo = slo
        self._ratio = ratio
        self.seconds = 0.0
        """Of the windows of `compare`."""

    def compare(self, *, within_s: float | None = None) -> PairedPeaks | None:
        """The comparison alone, without the winner's long windows.

        Args:
            within_s: Seconds of windows after which it ends undecided; None: only `MOST_PAIRS` ends it.
        """
        with self._sides() as (sides, in_place):
            return self._pairs(sides, in_place=in_place, within_s=within_s)

    def fight(self) -> tuple[Measurement, Measurement]:
        """Compares them; one that fails has lost."""
        with self._sides() as (sides, in_place):
            found = self._pairs(sides, in_place=in_place)
            won = 0 if found is None or found.tie or found.p_better > 0.5 else 1
            measured = self._alone(sides[won]) if found is not None else None
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
    def _sides(self) -> "Iterator[tuple[tuple[Side, Side], bool]]":
        """Both sides, and whether changing from one to the other takes no restart."""
        one, other = (attempt.configuration for attempt in self._attempts)
        first = Side(self._attempts[0], self._stand)
        if self._stand.deployer.changes_live(one, other):
            self._note("compared in turn on the same replicas")
            yield (first, Side(self._attempts[1], self._stand)), True
            return
        with self._attempts[0].watch.stage("deploying"):
            try:
                self._stand.bring_up(one)
            except DeploymentFailed:  # which is found once more, and reported, when it is measured by itself
                yield (first, Side(self._attempts[1], self._stand)), False
                return
        with self._stand.beside(other) as beside:
            if beside is not None:
                self._note("compared in turn, both being up all the time")
                yield (first, Side(self._attempts[1], beside)), True
            else:
                self._note("compared in turn, each brought up twice: there is no room for both")
                yield (first, Side(self._attempts[1], self._stand)), False

    def _note(self, text: str) -> None:
        for attempt in self._attempts:
            attempt.notes.append(text)

    def _pairs(self, sides: tuple[Side, Side], *, in_place: bool, within_s: float | None = None) -> PairedPeaks | None:
        """Windows of both in turn; None where one of them cannot be compared like that."""
        try:
            if in_place and not all(self._ready(side) for side in sides):
                return None
            began = time.monotonic()

            def going_on(pairs: int) -> bool:
                self.seconds = time.monotonic() - began
                return within_s is None or self.seconds * (1 + 1 / pairs) <= within_s

            def peak_of(number: int, pair: int) -> float:
                side = sides[number]
                if in_place:
                    side.stand.bring_up(side.attempt.configuration)
                    return self._window(side, pair)
                if not self._ready(side):
                    return 0.0
                each = [self._window(side, VISIT_WINDOWS * pair + i) for i in range(VISIT_WINDOWS)]
                return math.exp(statistics.fmean(map(math.log, each))) if all(each) else 0.0

            if in_place:
                found = in_turn(
                    peak_of,
                    usual_sd=PAIR_SD,
                    ratio=self._ratio,
                    least=LEAST_PAIRS,
                    most=MOST_PAIRS,
                    going_on=going_on,
                )
            else:
                found = in_turn(peak_of, usual_sd=VISIT_SD, ratio=self._ratio, most=VISITS)
            return found if all(side.stand.intact() for side in sides) or not in_place else None
        except Exception as error:  # noqa: BLE001  a replica that is gone may show anywhere
            self._note(f"the comparison in turn failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
            return None

    def _ready(self, side: Side) -> bool:
        """Brings a side up and learns what it can do at most, and without company."""
        attempt, stand = side.attempt, side.stand
        warm = stand.ready(attempt)
        if isinstance(warm, str):
            return False
        with attempt.watch.stage("probing", "measuring the capacity"):
            room = round(warm.achieved_rps * self._slo.latency_s)
            in_flight = max(2, min(stand.fill(attempt), room))
            capacity = stand.crew.saturate(in_flight=in_flight, window_s=CAPACITY_S)
            alone = stand.crew.alone(ALONE)
        attempt.probes.append(capacity)
        if not alone or self._plain.failing(capacity):
            return False
        side.capacity_rps, side.alone_s = capacity.achieved_rps, statistics.median(alone)
        return True

    def _window(self, side: Side, number: int) -> float:
        """The peak that one window foretells, 0 if it cannot; arrivals are the same for both, but for the rate."""
        attempt, crew = side.attempt, side.stand.crew
        usual = math.log(self._plain.expected(attempt.configuration, side.capacity_rps))
        rate = NEAR_PEAK * math.exp(statistics.fmean([usual, *side.logs]))
        rate = min(max(rate, LOWEST_SHARE * side.capacity_rps), HIGHEST_SHARE * side.capacity_rps)
        with attempt.watch.stage("probing", f"probing at {rate:.3g} RPS, in turn with a rival"):
            for again in (0, 1):
                probe = crew.probe(
                    rate_rps=rate,
                    window_s=max(WINDOW_S, REQUESTS / rate),
                    seed=attempt.seed + 2 * number + again,
                    representative=True,
                    whole=True,
                )
                attempt.probes.append(probe)
                side.stand.settle()
                if probe.verdict is not Verdict.INVALID:
                    break
            else:
                return 0.0
        if probe.errors or not probe.tail_s:
            return 0.0
        found = read_off(probe, capacity_rps=side.capacity_rps, alone_s=side.alone_s, slo_s=self._slo.latency_s)
        if found:
            side.logs.append(math.log(found))
        return found

    def _apart(self) -> tuple[Measurement, Measurement]:
        """Measures one after the other; that one is better then takes more of a difference."""
        one, other = (self._alone(Side(attempt, self._stand)) for attempt in self._attempts)
        peaks = [m.metrics.get("peak_rps", 0.0) if m.feasible else 0.0 for m in (one, other)]
        if not any(peaks):
            return one, other
        found = unpaired(*peaks, sd=CONFIRM_NOISE_SD, ratio=self._ratio)
        return compared(one, other, found, first_won=found.tie or found.p_better > 0.5)

    def _alone(self, side: Side) -> Measurement:
        """The peak of one of them, long and by plain probes."""
        attempt, stand = side.attempt, side.stand

        def measure() -> Measurement:
            warm = stand.ready(attempt)
            if isinstance(warm, str):
                return attempt.measurement(infeasible_because=warm)
            return self._plain.on(stand).measure(attempt, warm.achieved_rps, stand.fill(attempt))

        return stand.steady(measure, lambda: attempt)
