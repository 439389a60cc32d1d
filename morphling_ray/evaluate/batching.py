"""The batching twin in a trial: what the replicas that are up now would do with every batch setting of the space.

attach: a batcher that is known? ─► table: a sweep under load ─► forecast ─► a real probe calibrates it (`compared`)

It guides and ranks. Where it does not hold (another batcher, several deployments, `@serve.batch` of which a probe shows
something else) plain probes do the work.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from morphling_ray.load.arrivals import representative_arrivals
from morphling_ray.load.crew import Crew
from morphling_ray.objective import Slo
from morphling_ray.serving.application import ApplicationFacts
from morphling_ray.serving.batcher import Batch
from morphling_ray.serving.control import ReplicaBatcher
from morphling_ray.serving.deployment import Replica
from morphling_ray.serving.knobs import batch_knobs
from morphling_ray.serving.serve_config import batch_setting
from morphling_ray.serving.twin import (
    BatchSetting,
    Rule,
    ServiceTimes,
    Strays,
    capacity_rps,
    ladder,
    predicted_peaks,
    sweep_sizes,
)
from morphling_ray.space import Configuration, SearchSpace

ROUNDS = 2.5  # of the ladder, in a table
TABLE_S = (1.2, 4.0)
BUSY = 0.6  # share of a sweep that batches must take, for them to be what limits a replica
SCHEDULES, FORESEEN = 2, 6000  # of simulated arrivals, and how many in each
STRAYS = 2000  # batches that show how often the machine pauses
ALONE = 7  # requests without company: what the way through Ray takes
# Standard deviations of log-peaks, as benchmarks/twin.py and benchmarks/peak.py find them: of a forecast, and of one
# that a real window was averaged with, which has this weight.
FORECAST_SD, CALIBRATED_SD = 0.08, 0.06
WINDOW_WEIGHT = 0.3
# Logarithm of a peak over its forecast, before any probe: what the twin leaves out (the way through Ray under load,
# batches that take longer where requests come by chance than in a sweep) only ever lowers a peak. Long windows and
# probes of six servers found -0.04 for one that sleeps, and -0.09 to -0.19 for models.
USUAL = -0.08
OFF = 0.2  # of the logarithm of a peak: a forecast for `@serve.batch` that is off by more is no help


def _busy_share(log: Sequence[Batch]) -> float:
    """Which part of the time was spent in batches; 0 for fewer than three of them."""
    if len(log) < 3:
        return 0.0
    return sum(b.done - b.taken for b in log) / (log[-1].done - log[0].taken)


@dataclass(frozen=True)
class _Table:
    """What was measured on one deployment: its batches, and what the way to the replica and back takes."""

    times: ServiceTimes
    overhead_s: float
    rule: Rule
    works: float
    """The largest batch that did not fail."""


class BatchingTwin:
    """Forecasts for the replicas that are up; tables are kept, so that a deployment that returns needs none.

    Args:
        facts: The application.
        slo: What a rate must meet.
        crew: Offers load to it.
        space: Whose batch settings are of interest.
    """

    def __init__(self, facts: ApplicationFacts, slo: Slo, crew: Crew, space: SearchSpace) -> None:
        self._facts = facts
        self._slo = slo
        self._crew = crew
        self._free = batch_knobs(space.knobs, facts)
        self._variants: dict[str, list[Configuration]] = {}
        for configuration in space.configurations:
            self._variants.setdefault(self._deployment(configuration), []).append(configuration)
        self._batchers: list[ReplicaBatcher] = []
        self._own_wait_s = 0.0  # of the replicas, where the code fixes it
        # The same for all forecasts, so that they differ by less.
        self._schedules = np.stack([representative_arrivals(1.0, FORESEEN, seed) for seed in range(SCHEDULES)])
        self._tables: dict[str, _Table] = {}
        self._unfit: set[str] = set()  # deployments for which no table holds
        self._log_ratios: list[float] = []  # peaks that probes found over what was foreseen, uncorrected
        self._strays = Strays(np.empty(0), np.empty(0))  # of all batches in all probes: the machine's
        self._computed: list[int] = []  # batches of each replica before the probe

    def attach(self, configuration: Configuration, replicas: Sequence[Replica]) -> bool:
        """Looks for the batcher in each replica, with the very settings that were deployed."""
        known = batch_setting(self._facts, configuration) is not None
        found = [ReplicaBatcher.find(r.actor_name) for r in replicas] if known else []
        self._batchers = [b for b in found if b is not None]
        states = [b.state() for b in self._batchers]
        self._own_wait_s = next((s.batch_wait_timeout_s for s in states if s is not None), 0.0)
        setting = self._setting(configuration)
        agree = [s is not None and (s.max_batch_size, s.batch_wait_timeout_s) == setting for s in states]
        fit = bool(self._free) and self._deployment(configuration) not in self._unfit
        return fit and len(agree) == len(replicas) and all(agree)

    def forget(self) -> None:
        """Throws all tables and calibrations away; how often the machine pauses is not forgotten."""
        self._tables.clear()
        self._log_ratios.clear()

    def knows(self, configuration: Configuration) -> bool:
        """Whether there is a table of this deployment."""
        return self._deployment(configuration) in self._tables

    def measure(self, configuration: Configuration, rough_rps: float) -> bool:
        """Makes the table of the deployment that is up, as `configuration` says.

        Args:
            configuration: That is deployed.
            rough_rps: About how much it serves in a closed loop.

        Returns:
            Whether it holds. It does not where something else than its batches is what a replica's time goes into, or
            where they take seconds.
        """
        n = len(self._batchers)
        settings = self._settings(configuration)
        largest = max(size for size, _ in settings)
        room = rough_rps / n * self._slo.latency_s  # a larger batch alone takes longer than the SLO allows
        largest = min(largest, next((size for size in sweep_sizes(largest) if size > room), largest))
        round_s = sum(ladder(largest)) * n / rough_rps
        window_s = min(max(ROUNDS * round_s, TABLE_S[0]), TABLE_S[1])
        self._unfit.add(self._deployment(configuration))  # unless it survives: large batches may kill a replica
        before = [batcher.state() for batcher in self._batchers]
        for batcher in self._batchers:
            batcher.sweep(ladder(largest) * math.ceil(10 * window_s / round_s))
        swept = self._crew.saturate(in_flight=n * (2 * largest + 16), window_s=window_s)
        logs = [b.since(s.computed if s is not None else 0) for b, s in zip(self._batchers, before)]
        for batcher in self._batchers:
            batcher.sweep([])
            batcher.drop()
        rule = self._rule()
        # Where the event loop is blocked, whatever a request takes besides its batch is in the time between batches.
        if not logs or (rule != "blocking" and min(map(_busy_share, logs)) < BUSY):
            return False
        times = ServiceTimes.measured(*logs)
        size, wait_s = self._setting(configuration)
        alone = self._crew.alone(ALONE)
        overhead_s = float(np.median(alone)) - float(times.of(1)[1]) - (wait_s if size > 1 else 0.0) if alone else 0.0
        self._unfit.discard(self._deployment(configuration))
        works = float(times.sizes.max()) if swept.errors else math.inf  # larger ones were tried, and failed
        self._tables[self._deployment(configuration)] = _Table(times, max(0.0, overhead_s), rule, works)
        return True

    def _rule(self) -> Rule:
        """How the replicas form batches; one that has shown that its event loop is blocked speaks for all."""
        rules = {state.rule for b in self._batchers if (state := b.state()) is not None}
        return "blocking" if "blocking" in rules else next(iter(rules), "work-conserving")

    def holds(self, configuration: Configuration, foreseen_rps: float, found_rps: float) -> bool:
        """Whether a forecast is near enough to what probes found; if not, this deployment has none from now on.

        For our own batcher it always is: there, probes correct it (`compared`).
        """
        table = self._table(configuration)
        if table.rule == "work-conserving" or abs(math.log(found_rps / foreseen_rps)) <= OFF:
            return True
        self._unfit.add(self._deployment(configuration))
        del self._tables[self._deployment(configuration)]
        return False

    def rule(self, configuration: Configuration) -> Rule:
        """How the deployment forms batches."""
        return self._table(configuration).rule

    def forecast(self, configurations: Sequence[Configuration]) -> list[float]:
        """Peak of each configuration, in RPS, 0 where no rate meets the SLO; all of one deployment with a table."""
        table = self._table(configurations[0])
        settings = [self._setting(c) for c in configurations]
        few = max(0, STRAYS - len(self._strays))  # seldom pauses are not to be made out from few batches
        undisturbed = Strays(np.resize(table.times.strays.jitter, few), np.zeros(few))
        times = replace(table.times, strays=self._strays.then(undisturbed))
        bounds = [(self._slo.latency_s, self._slo.percentile)]
        if self._slo.median_s is not None:
            bounds.append((self._slo.median_s, 50.0))
        peaks = np.min(
            [
                predicted_peaks(
                    times,
                    settings,
                    slo_s=bound_s,
                    percentile=percentile,
                    overhead_s=table.overhead_s,
                    replicas=len(self._batchers),
                    schedules=self._schedules,
                    rule=table.rule,
                )
                for bound_s, percentile in bounds
            ],
            axis=0,
        )
        works = [size <= table.works for size, _ in settings]
        return [self.factor * float(peak) if fine else 0.0 for peak, fine in zip(peaks, works, strict=True)]

    def variants(self, configuration: Configuration) -> list[Configuration]:
        """All configurations of the space that differ from it in batch settings alone, itself included."""
        found = [dict(c) for c in self._variants.get(self._deployment(configuration), [])]
        return found if configuration in found else [dict(configuration), *found]

    @property
    def factor(self) -> float:
        """Peaks over forecasts: the mean of what probes showed so far, and of what is usual."""
        return math.exp((USUAL + sum(self._log_ratios)) / (len(self._log_ratios) + 1))

    def compared(self, foreseen_rps: float, found_rps: float) -> None:
        """Takes in what real probes found where `forecast` said something else."""
        self._log_ratios.append(math.log(found_rps / foreseen_rps * self.factor))

    def capacity_rps(self, configuration: Configuration) -> float:
        """What the replicas serve when they are never idle."""
        table = self._table(configuration)
        return len(self._batchers) * capacity_rps(table.times, self._setting(configuration), table.rule)

    def alone_s(self, configuration: Configuration) -> float:
        """Latency of a request without company."""
        table = self._table(configuration)
        size, wait_s = self._setting(configuration)
        return table.overhead_s + float(table.times.of(1)[1]) + (wait_s if size > 1 else 0.0)

    def before_probe(self) -> None:
        """Notes where the replicas' logs stand."""
        self._computed = [s.computed for b in self._batchers if (s := b.state()) is not None]

    def after_probe(self, configuration: Configuration) -> None:
        """Takes in how batches strayed since then."""
        table = self._tables.get(self._deployment(configuration))
        if table is None:
            return
        for batcher, computed in zip(self._batchers, self._computed):
            self._strays = self._strays.then(table.times.strays_of(batcher.since(computed)))
        kept = slice(-10 * STRAYS, None)
        self._strays = Strays(self._strays.jitter[kept], self._strays.pauses_s[kept])

    def _settings(self, configuration: Configuration) -> list[BatchSetting]:
        return [self._setting(c) for c in self.variants(configuration)]

    def _setting(self, configuration: Configuration) -> BatchSetting:
        size, wait_s = batch_setting(self._facts, configuration) or (1, 0.0)
        return size, self._own_wait_s if wait_s is None else wait_s

    def _table(self, configuration: Configuration) -> _Table:
        return self._tables[self._deployment(configuration)]

    def _deployment(self, configuration: Mapping[str, object]) -> str:
        return json.dumps({k: v for k, v in configuration.items() if k not in self._free}, sort_keys=True)
