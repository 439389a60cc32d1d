"""One search from the first trial to the recommendation: what is tried next, and when it is over. Knows no Ray.

    while not session.finished:
        ask = session.next()                               # None: wait for one of those that are being measured
        measurement = evaluator.measure(ask.configuration, needed=ask.needed, confirm=ask.stage == "confirm")
        session.tell(ask.number, measurement)

Configurations that the user gave come first, then what the sampler suggests. Last come the finalists once more, two of
them in turn, as two trials that are one comparison: what is recommended has won it, or is the cheaper one of a tie.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from morphling_ray.errors import SpaceError
from morphling_ray.measurement import Measurement
from morphling_ray.objective import Objective
from morphling_ray.search.history import pinned
from morphling_ray.search.sampler import Sampler, take_in
from morphling_ray.search.stopping import StoppingRule
from morphling_ray.space import Configuration, SearchSpace

SEARCH, CONFIRM = "search", "confirm"

_CONFIRM_FROM = 5  # with fewer trials, each is worth more as a new configuration
_CONFIRM_WEIGHT = 2.0  # a confirming measurement is longer: it counts as much as two others


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A trial to make.

    Attributes:
        number: Of the trial, from 1.
        configuration: What to measure.
        stage: `search`, or `confirm` for a finalist that is measured again.
        needed: By metric, what it takes to beat the best so far; empty where the trial must be measured in full.
        exact: It must be this configuration; else one that costs nothing more to try and serves better will do.
        rival: To be measured in turn with it, a trial of its own.
        ratio: Its peak over the rival's at which both are equally good.
        cheaper: It costs less than the rival, or as much and takes less, and so wins a tie.
    """

    number: int
    configuration: Configuration
    stage: str
    needed: Mapping[str, float] = field(default_factory=dict)
    exact: bool = False
    rival: "Ask | None" = None
    ratio: float = 1.0
    cheaper: bool = False


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a search recommends.

    Attributes:
        configuration: The configuration.
        metrics: Geometric means over its measurements, confirming ones counted twice, estimates only where there is
            nothing else.
        objective: The objective at these.
        expected_objective: What the sampler expects of it, which is less than a lucky measurement says.
        sd: Standard deviation of that, or None without a model.
        p_near_best: Probability that it is within 5 % of the best in the space, or None without a model.
        trials: Numbers of the trials that measured it.
        confirmed: Whether one of them was a confirmation.
        p_better: Probability that it is better than the next best that was measured; None in a tie, or if not known.
        tied: How many others cannot be told from it.
        beaten: The finalist that it was compared with; None if with none. In a tie it is the cheaper one.
    """

    configuration: Configuration
    metrics: Mapping[str, float]
    objective: float
    expected_objective: float
    sd: float | None
    p_near_best: float | None
    trials: tuple[int, ...]
    confirmed: bool
    p_better: float | None = None
    tied: int = 0
    beaten: Configuration | None = None


class SearchSession:
    """Decides what is tried next.

    Args:
        space: The candidates.
        objective: What to maximise.
        sampler: Proposes and recommends.
        max_trials: At most so many, confirmations included.
        time_budget_s: No trial begins later than this after the session was made; None: no limit.
        clock: Seconds, from any origin.
        confirm: How many of the trials, the last ones, measure finalists again, two at a time; none if there are fewer
            than 5 trials.
        initial: Configurations to try first, for example the present one. They may lie outside the space.
        give_up_after: End the search if so many first trials all fail for one and the same reason; 0: never.
        burden: Of a configuration, to sort by: its cost, then whatever else there should be less of. Of two finalists
            that cannot be told apart the one with less is recommended.
        stop_probability: Search no further once the sampler deems the best so far within 5 % of the best in the space
            with this probability (`StoppingRule`); finalists are still confirmed. None: never.

    Raises:
        SpaceError: An initial configuration lacks a knob.
    """

    def __init__(
        self,
        space: SearchSpace,
        objective: Objective,
        sampler: Sampler,
        *,
        max_trials: int,
        time_budget_s: float | None,
        clock: Callable[[], float],
        confirm: int,
        initial: Sequence[Configuration] = (),
        give_up_after: int = 3,
        stop_probability: float | None = None,
        burden: Callable[[Configuration], tuple[float, ...]] | None = None,
    ) -> None:
        names = [knob.name for knob in space.knobs]
        for configuration in initial:
            if missing := [name for name in names if name not in configuration]:
                raise SpaceError(f"the configuration {dict(configuration)} to try first lacks {', '.join(missing)}")
        self._space = space
        self._objective = objective
        self._sampler = sampler
        self._max_trials = max_trials
        self._search_trials = max_trials - (min(confirm, max_trials) if max_trials >= _CONFIRM_FROM else 0)
        self._deadline = None if time_budget_s is None else clock() + time_budget_s
        self._clock = clock
        self._initial = [{name: configuration[name] for name in names} for configuration in initial]
        self._give_up_after = give_up_after
        self._burden = burden or (lambda configuration: ())
        self._stopping = StoppingRule(stop_probability)
        self._sure = False
        self._outstanding: dict[int, Ask] = {}
        self._told: list[tuple[int, str, Measurement]] = []
        self._last_number = 0
        self._asked = 0  # trials that were begun, those of an earlier session included
        self._exhausted = False
        self._finalists: list[Configuration] | None = None  # still to be measured again, the favourite first
        self._winner: Measurement | None = None  # of the latest comparison
        self._settled = False  # nothing is left to be measured again
        self.stopped_because = ""
        """Why the search ended before its trials were used up; empty if it did not."""

    @property
    def finished(self) -> bool:
        """Whether nothing is being measured and nothing will be asked any more."""
        return not self._outstanding and not self.more

    @property
    def more(self) -> bool:
        """Whether another trial may begin, now or once others have ended."""
        if self.stopped_because or self._asked >= self._max_trials:
            return False
        undecided = self._finalists is None and bool(self._outstanding)  # they are not known yet
        more = self._searching() or undecided or bool(self._to_confirm())
        if more and self._deadline is not None and self._clock() >= self._deadline:
            self.stopped_because = "the time budget is used up"
            return False
        if self._sure and not more:
            self.stopped_because = f"the search is {self._stopping.probability:.0%} sure to be within 5 % of the best"
        return more

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know about the sampler."""
        note = getattr(self._sampler, "notes", "")
        return (note,) if note else ()

    @property
    def outstanding(self) -> tuple[Ask, ...]:
        """What is being measured."""
        return tuple(self._outstanding.values())

    def next(self) -> Ask | None:
        """What to measure now; None if that depends on what is being measured, or if the search is over."""
        if not self.more:
            return None
        if self._searching():
            given = self._initial.pop(0) if self._initial else None
            if given is not None:
                self._sampler.reserve(given)
                return self._begin(given, SEARCH, {}, exact=True)  # in full: all others are compared with it
            if (configuration := self._sampler.suggest()) is not None:
                return self._begin(configuration, SEARCH, self._needed(configuration))
            self._exhausted = True
        finalists = self._to_confirm()
        if not finalists or self._outstanding:
            return None
        if len(finalists) == 1 or self._max_trials - self._asked < 2:
            ask = self._begin(finalists.pop(0), CONFIRM, {}, exact=True)
            self._sampler.reserve(ask.configuration)
            return ask
        pair = sorted([finalists.pop(0), finalists.pop(0)], key=self._burden)
        ask, rival = (self._begin(c, CONFIRM, {}, exact=True) for c in pair)
        for configuration in pair:
            self._sampler.reserve(configuration)
        cheaper = self._burden(pair[0]) < self._burden(pair[1])
        ask = self._outstanding[ask.number] = replace(ask, rival=rival, ratio=self._even(*pair), cheaper=cheaper)
        return ask

    def tell(self, number: int, measurement: Measurement) -> float | None:
        """Takes in what a trial measured.

        Returns:
            The objective; None where the trial is infeasible, lacks a metric or breaks a bound.

        Raises:
            KeyError: No trial of that number is being measured.
        """
        ask = self._outstanding.pop(number)
        return self._record(number, ask.stage, measurement)

    def replay(self, number: int, stage: str, measurement: Measurement) -> float | None:
        """Takes in a trial of an earlier, interrupted session, in the order in which they ended; see `tell`."""
        self._initial = [c for c in self._initial if c != measurement.configuration]
        if stage == CONFIRM:
            rival = measurement.comparison.rival if measurement.comparison is not None else None
            self._finalists = [f for f in self._to_confirm() if f not in (measurement.configuration, rival)]
        self._last_number = max(self._last_number, number)
        self._asked += 1
        return self._record(number, stage, measurement)

    def resume(self, ask: Ask) -> None:
        """Goes on waiting for a trial that an earlier session had begun."""
        self._initial = [c for c in self._initial if c != ask.configuration]
        if ask.stage == CONFIRM:
            self._finalists = [f for f in self._to_confirm() if f != ask.configuration]
        self._last_number = max(self._last_number, ask.number)
        self._asked += 1
        self._outstanding[ask.number] = ask
        self._sampler.reserve(ask.configuration)
        if ask.rival is not None:
            self.resume(ask.rival)

    def recommendation(self) -> Outcome | None:
        """The best configuration so far, by what the sampler expects; None while nothing works."""
        earned = self._winner
        found = self._sampler.recommend([earned.configuration] if earned is not None else None)
        if found is None:
            return None
        if earned is not None and found.configuration != earned.configuration:  # it has failed since
            earned = None
        if earned is None:  # the cheapest of those that seem as good, where the objective leaves the cost to others
            equal = [r for r in found.tied if math.isclose(self._even(found.configuration, r.configuration), 1.0)]
            cheapest = min((found, *equal), key=lambda r: self._burden(r.configuration))
            found = replace(cheapest, tied=found.tied)
        mine = self._pinned_trials(found.configuration)
        metrics = _pooled([(s, m) for _, s, m in mine if not m.estimated] or [(s, m) for _, s, m in mine])
        value = self._value(found.configuration, metrics)
        p_better, tied, beaten = found.p_better, len(found.tied), None
        if earned is not None and earned.comparison is not None:
            p_better, tied = earned.comparison.p_better, int(earned.comparison.tie)
            beaten = dict(earned.comparison.rival)
        return Outcome(
            configuration=found.configuration,
            metrics=metrics,
            objective=value if value is not None else 0.0,
            expected_objective=found.objective,
            sd=found.sd,
            p_near_best=found.p_near_best,
            trials=tuple(n for n, _, _ in mine),
            confirmed=any(s == CONFIRM for _, s, _ in mine),
            p_better=None if tied else p_better,
            tied=tied,
            beaten=beaten,
        )

    def _searching(self) -> bool:
        ended = self._exhausted or self._sure or self._finalists is not None
        return not ended and self._asked < self._search_trials

    def _to_confirm(self) -> list[Configuration]:
        """Finalists still to be measured again; chosen once, when everything else has ended.

        The winner of a comparison meets the next one, as long as there are trials for both.
        """
        if self._finalists is None and not self._searching() and not self._outstanding:
            count = self._max_trials - self._search_trials
            self._finalists = self._sampler.finalists(1 + count // 2) if count else []
            found = self._sampler.recommend() if len(self._finalists) > 1 else None
            if found is not None and found.tied:  # the cheapest that seems as good has to have its chance
                cheapest = min((found, *found.tied), key=lambda r: self._burden(r.configuration)).configuration
                if cheapest not in self._finalists:
                    self._finalists[1] = cheapest
        elif self._finalists == [] and not self._outstanding and not self._settled:
            self._settled = True  # until the next confirmation has ended
            self._finalists = self._not_confirmed()
        return self._finalists or []

    def _not_confirmed(self) -> list[Configuration]:
        """What would be recommended now, where that has not been measured again: the only finalist has fallen."""
        confirmed = [m.configuration for _, stage, m in self._told if stage == CONFIRM]
        if self._winner is not None or len(confirmed) >= self._max_trials - self._search_trials:
            return []
        found = self._sampler.recommend()
        return [] if found is None or found.configuration in confirmed else [found.configuration]

    def _even(self, configuration: Configuration, rival: Configuration) -> float:
        """The configuration's peak over the rival's at which the objective is the same; 1 if it does not say."""
        needed_peak_rps = getattr(self._objective, "needed_peak_rps", None)
        value, peak = self._pinned_value(rival), self._pinned_metrics(rival).get("peak_rps")
        if needed_peak_rps is None or not value or not peak:
            return 1.0
        ratio = float(needed_peak_rps(configuration, value)) / peak
        return ratio if np.isfinite(ratio) and ratio > 0 else 1.0

    def _decide(self, measurement: Measurement) -> None:
        """Takes in one side of a comparison: the winner stays, to meet the next finalist."""
        if measurement.comparison is not None and measurement.comparison.won:
            self._winner = measurement
            rest = [f for f in self._finalists or [] if f != measurement.configuration]
            self._finalists = [measurement.configuration, *rest] if rest else []

    def _begin(
        self, configuration: Configuration, stage: str, needed: Mapping[str, float], *, exact: bool = False
    ) -> Ask:
        self._last_number += 1
        self._asked += 1
        ask = Ask(number=self._last_number, configuration=configuration, stage=stage, needed=needed, exact=exact)
        self._outstanding[ask.number] = ask
        return ask

    def _record(self, number: int, stage: str, measurement: Measurement) -> float | None:
        self._told.append((number, stage, measurement))
        self._settled = False
        take_in(self._sampler, measurement)
        self._decide(measurement)
        if self._stopping.probability is not None and stage == SEARCH:
            found = self._sampler.recommend()
            self._stopping.told(found.p_near_best if found is not None else None)
            self._sure = self._sure or (self._stopping.met and not self._initial)
        first = self._told[: self._give_up_after]
        if 0 < self._give_up_after == len(self._told):
            reasons = {" ".join(m.infeasible_because.split()) for _, _, m in first}
            if len(reasons) == 1 and "" not in reasons:
                self.stopped_because = f"the first {len(first)} trials all failed: {reasons.pop()}"
        return self._value(measurement.configuration, measurement.metrics) if measurement.feasible else None

    def _value(self, configuration: Configuration, metrics: Mapping[str, float]) -> float | None:
        """The objective; None where a metric is missing or no positive number, or a bound is broken."""
        known = {name: metrics.get(name, np.nan) for name in self._objective.metrics}
        if not all(np.isfinite(v) and v > 0 for v in known.values()):
            return None
        value = float(np.asarray(self._objective(configuration, {**metrics, **known})))
        return value if np.isfinite(value) and value > 0 else None

    def _needed(self, configuration: Configuration) -> dict[str, float]:
        """The peak that beats the best so far, where the objective can say it."""
        needed_peak_rps = getattr(self._objective, "needed_peak_rps", None)
        best = max(
            (v for _, _, m in self._told if (v := self._pinned_value(m.configuration)) is not None), default=None
        )
        if needed_peak_rps is None or best is None:
            return {}
        peak = float(needed_peak_rps(configuration, best))
        return {"peak_rps": peak} if np.isfinite(peak) and peak > 0 else {}

    def _pinned_value(self, configuration: Configuration) -> float | None:
        """The objective of a configuration from all its trials that give every metric."""
        metrics = self._pinned_metrics(configuration)
        return self._value(configuration, metrics) if metrics else None

    def _pinned_metrics(self, configuration: Configuration) -> dict[str, float]:
        return _pooled([(s, m) for _, s, m in self._pinned_trials(configuration)])

    def _pinned_trials(self, configuration: Configuration) -> list[tuple[int, str, Measurement]]:
        names = [knob.name for knob in self._space.knobs]
        key = [configuration[name] for name in names]
        same = [t for t in self._told if [t[2].configuration[name] for name in names] == key]
        return [t for t in same if len(pinned(t[2], self._objective.metrics)) == len(self._objective.metrics)]


def _pooled(measurements: Sequence[tuple[str, Measurement]]) -> dict[str, float]:
    """Weighted geometric means of metrics over repeats of one configuration."""
    names = dict.fromkeys(name for _, m in measurements for name in m.metrics)
    out = {}
    for name in names:
        each = [
            (_CONFIRM_WEIGHT if s == CONFIRM else 1.0, m.metrics[name]) for s, m in measurements if name in m.metrics
        ]
        good = [(w, np.log(v)) for w, v in each if np.isfinite(v) and v > 0]
        if good:
            out[name] = float(np.exp(sum(w * v for w, v in good) / sum(w for w, _ in good)))
    return out
