"""What is tried next, on a scripted sampler: no model, so every decision can be foretold."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from synthetic import OBJECTIVE, SPACE, prior

from morphling_ray.errors import SpaceError
from morphling_ray.evaluate.replay import SimulatedClock
from morphling_ray.measurement import Comparison, Measurement
from morphling_ray.objective import Prices, ServingObjective
from morphling_ray.search.morphling import MorphlingSampler
from morphling_ray.search.random import RandomSampler
from morphling_ray.search.sampler import Recommendation
from morphling_ray.search.session import CONFIRM, SEARCH, Ask, SearchSession
from morphling_ray.space import Configuration, Knob, SearchSpace

LINE = SearchSpace([Knob("cpu_cores", tuple(range(1, 13)))])
PER_DOLLAR = ServingObjective("rps_per_dollar", Prices(base=0.0, cpu_core=1.0, gpu={}))


def session(space: SearchSpace = LINE, objective: Any = PER_DOLLAR, **settings: Any) -> SearchSession:
    given: dict[str, Any] = {
        "max_trials": 8,
        "time_budget_s": None,
        "clock": SimulatedClock(),
        "confirm": 2,
        **settings,
    }
    if isinstance(given["clock"], SimulatedClock):
        clock = given["clock"]
        given["clock"] = lambda: clock.now_s
    return SearchSession(space, objective, RandomSampler(space, objective, seed=0), **given)


def measured(
    configuration: Configuration, peak: float, bounds: Mapping[str, tuple[float, float | None]] | None = None
) -> Measurement:
    return Measurement(configuration=configuration, metrics={"peak_rps": peak}, bounds=bounds or {})


def peak(configuration: Configuration) -> float:
    """Per dollar 12, 11, 10, ...: one core is best, two cores are 8 % worse."""
    cores = int(configuration["cpu_cores"])
    return cores * (13.0 - cores)


def told(ask: Ask, peak_of: Callable[[Configuration], float], *, tie: bool = False) -> list[tuple[int, Measurement]]:
    """What the trials of an ask measure, by number: one, or the two sides of a comparison."""
    mine = measured(ask.configuration, peak_of(ask.configuration))
    if ask.rival is None:
        return [(ask.number, mine)]
    theirs = measured(ask.rival.configuration, peak_of(ask.rival.configuration))
    ratio = mine.metrics["peak_rps"] / theirs.metrics["peak_rps"]
    better = ratio > ask.ratio
    comparison = Comparison(
        rival=theirs.configuration,
        ratio=ratio,
        sd=0.02,
        rounds=6,
        p_better=0.99 if better else 0.01,
        tie=tie,
        won=(tie and ask.cheaper) or better,
    )
    mirrored = comparison.mirrored(mine.configuration)
    return [
        (ask.number, replace(mine, comparison=comparison)),
        (ask.rival.number, replace(theirs, comparison=mirrored)),
    ]


def finish(running: SearchSession, peak_of: Callable[[Configuration], float] = peak, *, tie: bool = False) -> list[Ask]:
    """Runs a search to its end; the asks, those of rivals included."""
    asks = []
    while (ask := running.next()) is not None:
        asks += [ask] if ask.rival is None else [ask, ask.rival]
        for number, measurement in told(ask, peak_of, tie=tie):
            running.tell(number, measurement)
    assert running.finished
    return asks


def test_finalists_are_compared_last() -> None:
    """Fails if stages, numbers or the count of trials are off, or finalists are not compared with each other."""
    running = session(max_trials=14)
    asks = finish(running)
    assert [a.number for a in asks] == list(range(1, 15))
    assert [a.stage for a in asks] == [SEARCH] * 12 + [CONFIRM] * 2
    assert [a.configuration["cpu_cores"] for a in asks[-2:]] == [1, 2]  # best first
    assert asks[-2].rival == asks[-1]
    assert asks[-2].ratio == pytest.approx(0.5)  # two cores cost twice as much
    assert all(not a.needed for a in asks[-2:])
    assert len({a.configuration["cpu_cores"] for a in asks[:12]}) == 12
    found = running.recommendation()
    assert found is not None
    assert found.configuration == {"cpu_cores": 1}
    assert (found.p_better, found.tied, found.beaten) == (0.99, 0, {"cpu_cores": 2})


def test_the_winner_of_a_comparison_is_recommended_whatever_was_seen_before() -> None:
    """Fails if a favourite that lost is recommended because its earlier, lucky measurement counts as well."""

    def peak_in_the_end(configuration: Configuration) -> float:
        later = len(running._told) >= 12
        return peak(configuration) * (0.9 if later and configuration["cpu_cores"] == 1 else 1.0)

    running = session(max_trials=14)
    finish(running, peak_in_the_end)
    found = running.recommendation()
    assert found is not None
    assert found.configuration == {"cpu_cores": 2}
    assert found.beaten == {"cpu_cores": 1}


@pytest.mark.parametrize("objective", ["rps", "rps_per_dollar"])
def test_the_cheaper_one_of_a_tie_wins(objective: str) -> None:
    """Fails if a tie goes to the dearer one, or is not said to be one."""
    costs = ServingObjective(objective, Prices(base=0.0, cpu_core=1.0, gpu={}))

    def almost_equal(configuration: Configuration) -> float:
        cores = int(configuration["cpu_cores"])
        best = 1.0 if cores == 9 else 0.99 if cores == 2 else 0.5
        return 100 * best * (cores if objective == "rps_per_dollar" else 1)

    running = session(max_trials=14, objective=costs, burden=lambda c: (float(c["cpu_cores"]),))
    asks = finish(running, almost_equal, tie=True)
    assert [a.configuration["cpu_cores"] for a in asks[-2:]] == [2, 9]
    found = running.recommendation()
    assert found is not None
    assert found.configuration == {"cpu_cores": 2}
    assert (found.tied, found.p_better, found.beaten) == (1, None, {"cpu_cores": 9})


def test_a_winner_meets_the_next_finalist() -> None:
    """Fails if a third finalist is left out where there are trials for it, or meets the loser."""

    def close(configuration: Configuration) -> float:
        return int(configuration["cpu_cores"]) * (60.0 - int(configuration["cpu_cores"]))

    asks = finish(session(max_trials=16, confirm=4), close)
    assert [a.configuration["cpu_cores"] for a in asks[-4:]] == [1, 2, 1, 3]


@pytest.mark.parametrize("falls", [True, False])
def test_what_takes_the_place_of_an_only_finalist_is_measured_again_too(falls: bool) -> None:
    """Fails if a lucky favourite falls and what follows it is recommended unlooked at, with a trial to spare."""
    looks = iter([700.0, 3.5 if falls else 700.0])  # of seven cores; per dollar 100, then a half

    def lucky(configuration: Configuration) -> float:
        return next(looks) if configuration["cpu_cores"] == 7 else peak(configuration)

    asks = finish(session(max_trials=14), lucky)
    assert [a.stage for a in asks[:12]] == [SEARCH] * 12
    assert [(a.stage, a.configuration["cpu_cores"]) for a in asks[12:]] == [(CONFIRM, 7), (CONFIRM, 1)][: 1 + falls]


def test_a_search_goes_on_where_an_only_finalist_has_fallen() -> None:
    """Fails if a search that is resumed between the two confirms something else than it would have."""
    looks = iter([700.0, 3.5])

    def lucky(configuration: Configuration) -> float:
        return next(looks) if configuration["cpu_cores"] == 7 else peak(configuration)

    running, resumed = session(max_trials=14), session(max_trials=14)
    for _ in range(13):
        ask = running.next()
        assert ask is not None
        ((number, measurement),) = told(ask, lucky)
        running.tell(number, measurement)
        resumed.replay(number, ask.stage, measurement)
    ask, again = running.next(), resumed.next()
    assert ask == again
    assert ask is not None
    assert (ask.stage, ask.configuration["cpu_cores"]) == (CONFIRM, 1)


def test_with_one_trial_left_the_favourite_is_measured_again() -> None:
    """Fails if half a comparison is begun, or the last trial is wasted."""
    asks = finish(session(max_trials=13, confirm=1))
    assert asks[-1].rival is None
    assert asks[-1].configuration["cpu_cores"] == 1
    assert len(asks) == 13


def test_few_trials_are_all_searched() -> None:
    """Fails if 4 trials are spent on 2 configurations."""
    assert [a.stage for a in finish(session(max_trials=4))] == [SEARCH] * 4
    assert [a.stage for a in finish(session(max_trials=5))][-1] == CONFIRM


def test_an_exhausted_space_is_confirmed_and_ends() -> None:
    """Fails if the session waits for ever for a 13th configuration of 12."""
    asks = finish(session(max_trials=99))
    assert [a.stage for a in asks].count(SEARCH) == 12
    assert [a.stage for a in asks].count(CONFIRM) == 2


def test_a_clearly_worse_runner_up_is_skipped() -> None:
    """Fails if the second finalist is confirmed although it cannot win."""
    two = SearchSpace([Knob("cpu_cores", (1, 12))])
    asks = finish(session(two, max_trials=8))
    assert [a.configuration["cpu_cores"] for a in asks if a.stage == CONFIRM] == [1]


def test_needed_is_what_beats_the_best_measured_in_full() -> None:
    """Fails if an infeasible or rejected trial sets the bar, or the bar is not that of the asked configuration."""
    running = session(max_trials=12, initial=[{"cpu_cores": 4}, {"cpu_cores": 5}, {"cpu_cores": 6}])
    asks = [running.next() for _ in range(3)]
    assert all(a is not None and a.needed == {} for a in asks)
    running.tell(1, Measurement(configuration={"cpu_cores": 4}, infeasible_because="crash"))
    running.tell(2, measured({"cpu_cores": 5}, 500.0, {"peak_rps": (500.0, 900.0)}))  # rejected
    fourth = running.next()
    assert fourth is not None
    assert fourth.needed == {}
    assert running.tell(3, measured({"cpu_cores": 6}, 60.0)) == pytest.approx(10.0)
    fifth = running.next()
    assert fifth is not None
    assert fifth.needed == {"peak_rps": pytest.approx(10.0 * int(fifth.configuration["cpu_cores"]))}


def test_initial_configurations_come_first() -> None:
    """Fails if the present configuration, here one outside the space, is not tried first, or is tried twice."""
    asks = finish(session(initial=[{"cpu_cores": 20}, {"cpu_cores": 3}], max_trials=14, confirm=0))
    cores = [a.configuration["cpu_cores"] for a in asks]
    assert cores[:2] == [20, 3]
    assert sorted(int(c) for c in cores) == [*range(1, 13), 20]
    with pytest.raises(SpaceError, match="lacks cpu_cores"):
        session(initial=[{"other": 3}])


def test_gives_up_when_the_first_trials_fail_alike() -> None:
    """Fails if an application that cannot start costs all trials, or if unlike reasons end the search."""
    running = session()
    for n in range(1, 4):
        ask = running.next()
        assert ask is not None
        running.tell(n, Measurement(configuration=ask.configuration, infeasible_because="no module named\n x"))
    assert running.finished
    assert running.next() is None
    assert "no module named x" in running.stopped_because
    running = session()
    for reason in ("out of memory", "out of memory", "crash"):
        ask = running.next()
        assert ask is not None
        running.tell(ask.number, Measurement(configuration=ask.configuration, infeasible_because=reason))
    assert not running.finished
    assert running.stopped_because == ""


def test_the_time_budget_ends_the_search() -> None:
    """Fails if a trial begins after the budget, or one that is running is forgotten."""
    clock = SimulatedClock(now_s=100.0)
    running = session(time_budget_s=10.0, clock=clock)
    first = running.next()
    assert first is not None
    clock.advance(10.0)
    assert running.next() is None
    assert not running.finished
    running.tell(1, measured(first.configuration, 5.0))
    assert running.finished
    assert "time budget" in running.stopped_because
    assert running.recommendation() is not None


def test_several_at_once() -> None:
    """Fails if finalists are chosen while trials are running, or more trials begin than were allowed."""
    running = session(max_trials=6)
    asks = [running.next() for _ in range(4)]
    assert running.next() is None
    assert running.more
    for ask in asks:
        assert ask is not None
        assert not running.finished
        running.tell(ask.number, measured(ask.configuration, peak(ask.configuration)))
    last = [running.next(), running.next()]
    assert all(ask is not None and ask.stage == CONFIRM for ask in last) or last[1] is None
    assert running.next() is None
    with pytest.raises(KeyError):
        running.tell(1, measured({"cpu_cores": 1}, 1.0))


def test_recommendation_pools_and_weighs_confirmations() -> None:
    """Fails if repeats are averaged with equal weights, or only the last counts."""
    running = session(max_trials=2, initial=[{"cpu_cores": 1}])
    assert running.recommendation() is None
    running.replay(1, SEARCH, measured({"cpu_cores": 1}, 16.0))
    running.replay(2, CONFIRM, measured({"cpu_cores": 1}, 2.0))
    outcome = running.recommendation()
    assert outcome is not None
    assert outcome.metrics["peak_rps"] == pytest.approx((16.0 * 2.0 * 2.0) ** (1 / 3))
    assert outcome.objective == pytest.approx(4.0)
    assert outcome.trials == (1, 2)
    assert outcome.confirmed


@pytest.mark.parametrize(
    "metrics", [{}, {"rps": 5.0}, {"rps": 5.0, "latency_ms": 500.0}, {"rps": float("nan"), "latency_ms": 1.0}]
)
def test_no_objective(metrics: dict[str, float]) -> None:
    """Fails if a missing metric, a broken bound or a NaN is given a number."""
    running = session(SPACE, OBJECTIVE)
    ask = running.next()
    assert ask is not None
    assert running.tell(ask.number, Measurement(configuration=ask.configuration, metrics=metrics)) is None
    assert running.recommendation() is None


@pytest.mark.parametrize("cut", [1, 5, 12, 13])
def test_a_resumed_session_goes_on_as_if_nothing_had_happened(cut: int) -> None:
    """Fails if replayed trials are not counted, numbered, or taken out of the plan."""
    settings: dict[str, Any] = {"max_trials": 14, "initial": [{"cpu_cores": 7}]}
    whole = finish(session(**settings))
    again = session(**settings)
    by_number = {number: m for ask in whole for number, m in told(ask, peak)}
    for ask in whole[:cut]:
        again.replay(ask.number, ask.stage, by_number[ask.number])
    rest = finish(again)
    if cut == 13:  # one side of the comparison tells of both
        assert not rest
    else:
        assert [(a.number, a.stage, a.configuration) for a in rest] == [
            (a.number, a.stage, a.configuration) for a in whole[cut:]
        ]
    found, as_before = again.recommendation(), session_recommendation(settings)
    assert found is not None
    assert found.configuration == as_before


def session_recommendation(settings: dict[str, Any]) -> Configuration:
    running = session(**settings)
    finish(running)
    found = running.recommendation()
    assert found is not None
    return found.configuration


class Sure(RandomSampler):
    """Says after each measurement what a script says."""

    script: tuple[float, ...] = ()

    def recommend(self, among: Sequence[Configuration] | None = None) -> Recommendation | None:
        found, count = super().recommend(among), self._history.told
        return found and replace(found, p_near_best=self.script[min(count, len(self.script)) - 1])


def test_ends_when_it_stays_sure() -> None:
    """Fails if one lucky measurement ends the search, it goes on when sure, or finalists are not confirmed then."""
    sampler = Sure(LINE, PER_DOLLAR, seed=0)
    sampler.script = (0.5, 0.95, 0.8, 0.91, 0.9, 0.93, 0.95, 0.2)
    running = SearchSession(
        LINE,
        PER_DOLLAR,
        sampler,
        max_trials=12,
        time_budget_s=None,
        clock=lambda: 0.0,
        confirm=2,
        stop_probability=0.9,
    )
    asks = finish(running)
    assert [a.stage for a in asks[:7]] == [SEARCH] * 7
    assert {a.stage for a in asks[7:]} == {CONFIRM}
    assert "90% sure" in running.stopped_because


def test_says_what_the_sampler_has_to_say() -> None:
    """Fails if what the user should know of the prior is lost on its way."""
    assert session().notes == ()
    known = MorphlingSampler(LINE, PER_DOLLAR, seed=0, learned=prior())
    running = SearchSession(LINE, PER_DOLLAR, known, max_trials=3, time_budget_s=None, clock=lambda: 0.0, confirm=0)
    assert "left out" in running.notes[0]


def foreseen(configuration: Configuration, peak_rps: float, width: float = 1.05) -> Measurement:
    """What a sibling's measurement tells of a configuration."""
    bounds = {"peak_rps": (peak_rps / width, peak_rps * width)}
    return Measurement(configuration=configuration, bounds=bounds, noise_sd={"peak_rps": 0.0})


def test_siblings_are_foreseen_and_what_was_asked_for_is_settled() -> None:
    """Fails if a forecast is taken for a measurement, is lost, or if what was asked for is asked for again."""
    sampler = MorphlingSampler(LINE, PER_DOLLAR, seed=0)
    running = SearchSession(LINE, PER_DOLLAR, sampler, max_trials=8, time_budget_s=None, clock=lambda: 0.0, confirm=0)
    ask = running.next()
    assert ask is not None
    better: Configuration = {"cpu_cores": 2 if ask.configuration["cpu_cores"] != 2 else 3}
    others = [c for c in LINE.configurations if c not in (better, ask.configuration)]
    measurement = replace(
        measured(better, peak(better)),
        asked=ask.configuration,
        siblings=tuple(foreseen(c, peak(c)) for c in [ask.configuration, *others]),
    )
    running.tell(ask.number, measurement)
    outcome = running.recommendation()
    assert outcome is not None
    assert outcome.configuration == better  # the only one that was measured
    following = running.next()
    assert following is not None
    assert following.configuration == {"cpu_cores": 1}  # foreseen to be the best
    assert not following.exact


def test_what_is_foreseen_to_fail_is_not_tried() -> None:
    """Fails if a forecast of infeasibility is lost."""
    sampler = MorphlingSampler(LINE, PER_DOLLAR, seed=0)
    running = SearchSession(LINE, PER_DOLLAR, sampler, max_trials=12, time_budget_s=None, clock=lambda: 0.0, confirm=0)
    ask = running.next()
    assert ask is not None
    doomed = [c for c in LINE.configurations if c != ask.configuration][:6]
    hopeless = tuple(Measurement(configuration=c, infeasible_because="not foreseen to work") for c in doomed)
    running.tell(ask.number, replace(measured(ask.configuration, peak(ask.configuration)), siblings=hopeless))
    asked = finish(running)
    assert len(asked) == 5
    assert all(a.configuration not in doomed for a in asked)


def test_the_present_configuration_and_finalists_are_measured_themselves() -> None:
    """Fails if a better sibling may stand in for what all others are compared with."""
    asks = finish(session(max_trials=6, initial=[{"cpu_cores": 5}]))
    assert asks[0].exact
    assert [a.exact for a in asks[1:]] == [a.stage == CONFIRM for a in asks[1:]]
    assert asks[-1].exact


def test_an_estimate_does_not_count_beside_a_measurement() -> None:
    """Fails if what is said of the recommended configuration rests on a model where it was measured as well."""
    running = session(SearchSpace([Knob("cpu_cores", (1,))]), max_trials=5)
    first = running.next()
    assert first is not None
    running.tell(first.number, replace(measured(first.configuration, 30.0), estimated=True))
    alone = running.recommendation()
    assert alone is not None
    assert alone.metrics["peak_rps"] == pytest.approx(30.0)
    second = running.next()
    assert second is not None
    running.tell(second.number, measured(second.configuration, 20.0))
    both = running.recommendation()
    assert both is not None
    assert both.metrics["peak_rps"] == pytest.approx(20.0)


def by_cores(configuration: Configuration) -> tuple[float, ...]:
    """A core costs a dollar."""
    return (float(configuration["cpu_cores"]),)


def rivals(
    peaks: Mapping[int, float], burden: Callable[[Configuration], tuple[float, ...]] = by_cores
) -> SearchSession:
    """A search that has measured cores and their peaks and recommends by RPS alone."""
    rps = ServingObjective("rps", Prices(base=0.0, cpu_core=1.0, gpu={}))
    sampler = MorphlingSampler(LINE, rps, seed=0)
    running = SearchSession(
        LINE,
        rps,
        sampler,
        max_trials=12,
        time_budget_s=None,
        clock=lambda: 0.0,
        confirm=0,
        initial=[{"cpu_cores": cores} for cores in peaks],
        burden=burden,
    )
    for found in peaks.values():
        ask = running.next()
        assert ask is not None
        running.tell(ask.number, measured(ask.configuration, found))
    return running


def test_in_a_tie_the_cheapest_is_recommended() -> None:
    """Fails if two that nobody can tell apart are ranked by luck, or if the tie is not said."""
    found = rivals({2: 300.0, 9: 303.0, 5: 100.0}).recommendation()
    assert found is not None
    assert found.configuration == {"cpu_cores": 2}
    assert found.tied == 1
    assert found.p_better is None


def test_in_a_tie_of_equal_cost_what_takes_less_is_recommended() -> None:
    """Fails if the order among those is left to luck, or comes before the cost."""
    peaks = {2: 300.0, 9: 303.0, 5: 100.0}
    for burden, cores in [(lambda c: (1.0, -c["cpu_cores"]), 9), (lambda c: (c["cpu_cores"], -c["cpu_cores"]), 2)]:
        found = rivals(peaks, burden).recommendation()
        assert found is not None
        assert found.configuration == {"cpu_cores": cores}


def test_a_clear_winner_is_said_to_be_one() -> None:
    """Fails if the cheapest wins where it is worse, or if how sure the winner is gets lost."""
    found = rivals({2: 200.0, 9: 400.0, 5: 100.0}).recommendation()
    assert found is not None
    assert found.configuration == {"cpu_cores": 9}
    assert found.tied == 0
    assert found.p_better is not None
    assert found.p_better > 0.95
