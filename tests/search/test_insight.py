"""What is said of the knobs in the end agrees with the truth of made-up tasks."""

from functools import cache

import numpy as np
import pytest
from synthetic import KNOBS, OBJECTIVE, SPACE, Task, prior

from morphling_ray.measurement import Measurement
from morphling_ray.objective import ExpressionObjective
from morphling_ray.search.insight import Effect, Insight, insight
from morphling_ray.space import Knob, SearchSpace, Value

TASK = Task(21)


def left_of_the_best(knob: str, value: Value) -> float:
    return float(max(TASK.truth(c) for c in SPACE.configurations if c[knob] == value) / TASK.best())


@cache
def all_known() -> Insight:
    """Of a search that measured everything."""
    every = [(n, TASK.measure(c)) for n, c in enumerate(SPACE.configurations, start=1)]
    return insight(SPACE, OBJECTIVE, every, prior=None, seed=0)


def test_effects_are_the_truth_once_everything_is_measured() -> None:
    """Fails if a knob's value is judged by others than its best, or the order is not that of what matters."""
    found = all_known()
    assert {name for name, _ in found.effects} == {knob.name for knob in KNOBS}
    for name, effects in found.effects:
        for effect in effects:
            assert effect.middle == pytest.approx(left_of_the_best(name, effect.value), abs=0.06)
            assert effect.low <= effect.middle <= effect.high <= 1.0
    worst = [min(e.middle for e in effects) for _, effects in found.effects]
    assert worst == sorted(worst)


def test_the_plane_holds_the_best_of_each_pair() -> None:
    """Fails if rows and columns are swapped, or a pair is not shown at its best."""
    found = all_known()
    assert found.plane is not None
    (row_knob, rows), (column_knob, columns) = found.plane.rows, found.plane.columns
    assert [row_knob, column_knob] == [name for name, _ in found.effects[:2]]
    for row, values in zip(rows, found.plane.values):
        for column, value in zip(columns, values):
            there = [c for c in SPACE.configurations if (c[row_knob], c[column_knob]) == (row, column)]
            truth = max(map(TASK.truth, there))
            assert value == pytest.approx(truth, abs=0.1 * TASK.best())


def test_little_data_means_wide_bars_and_expectations_that_hold() -> None:
    """Fails if expectations know their own outcome, or intervals do not say how little is known."""
    rng = np.random.default_rng(3)
    trials = [
        (n, TASK.measure(SPACE[int(i)], rng.normal(0, 0.03, 2))) for n, i in enumerate(rng.permutation(len(SPACE))[:14])
    ]
    few = insight(SPACE, OBJECTIVE, trials[:3], prior=prior(), seed=0)
    many = insight(SPACE, OBJECTIVE, trials, prior=prior(), seed=0)
    assert [e.number for e in many.expected] == [n for n, _ in trials]  # a prior expects something of the first, too

    def width(effects: tuple[Effect, ...]) -> float:
        return float(np.mean([e.high - e.low for e in effects]))

    assert np.mean([width(e) for _, e in few.effects]) > 1.5 * np.mean([width(e) for _, e in many.effects])
    truth = {n: TASK.truth(m.configuration) for n, m in trials}
    held = [0.9 * e.low <= truth[e.number] <= 1.1 * e.high for e in many.expected]
    assert np.mean(held) >= 0.75
    first = insight(SPACE, OBJECTIVE, trials[:1], prior=prior(), seed=0)
    assert first.expected == many.expected[:1]


def test_without_a_prior_nothing_is_expected_of_the_first() -> None:
    """Fails if a search that knew nothing is said to have expected something."""
    found = insight(
        SPACE, OBJECTIVE, list(enumerate(map(TASK.measure, SPACE.configurations[:3]), 1)), prior=None, seed=0
    )
    assert [e.number for e in found.expected] == [2, 3]


def test_where_nothing_works_nothing_is_said() -> None:
    """Fails if a search without a single measurement ends in an error instead of a report."""
    failed = [
        (n, Measurement(configuration=c, infeasible_because="no")) for n, c in enumerate(SPACE.configurations[:3])
    ]
    found = insight(SPACE, OBJECTIVE, failed, prior=None, seed=0)
    assert (found.expected, found.effects, found.plane) == ((), (), None)


def test_pairs_that_the_space_rules_out_are_left_empty() -> None:
    """Fails if a constraint makes a cell a failure, or one knob alone a plane."""
    space = SearchSpace([Knob("a", (1, 2, 4)), Knob("b", (1, 2))], ["a * b <= 4"])
    objective = ExpressionObjective("rps", "rps", [], metrics=("rps",))
    trials = [(n, Measurement(configuration=c, metrics={"rps": 10.0 + n})) for n, c in enumerate(space.configurations)]
    plane = insight(space, objective, trials, prior=None, seed=0).plane
    assert plane is not None
    by_pair = {
        frozenset([(plane.rows[0], row), (plane.columns[0], column)]): value
        for row, values in zip(plane.rows[1], plane.values)
        for column, value in zip(plane.columns[1], values)
    }
    empty = [pair for pair, value in by_pair.items() if value is None]
    assert empty == [frozenset([("a", 4), ("b", 2)])]
    alone = SearchSpace([Knob("a", (1, 2, 4))])
    told = [(n, Measurement(configuration=c, metrics={"rps": 1.0 + n})) for n, c in enumerate(alone.configurations)]
    assert insight(alone, objective, told, prior=None, seed=0).plane is None


def test_no_value_is_left_out_for_second_guesses_at_others() -> None:
    """Fails if a space of many values shows only those of its first knobs."""
    space = SearchSpace([Knob("a", tuple(range(1, 201))), Knob("b", (1, 2))])
    objective = ExpressionObjective("rps", "rps", [], metrics=("rps",))
    told = [(n, Measurement(configuration=c, metrics={"rps": 1.0 + n})) for n, c in enumerate(space.configurations[:3])]
    effects = dict(insight(space, objective, told, prior=None, seed=0).effects)
    assert {name: len(values) for name, values in effects.items()} == {"a": 200, "b": 2}
