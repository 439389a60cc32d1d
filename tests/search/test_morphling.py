"""That the default search searches: its arithmetic against closed forms, and its results on made-up tasks."""

import math
import time
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from synthetic import KNOBS, OBJECTIVE, SPACE, Task, prior, wrong_prior

from morphling_ray.measurement import Measurement
from morphling_ray.meta.fit import fit_prior
from morphling_ray.meta.prior import Prior
from morphling_ray.objective import ExpressionObjective, Prices, ServingObjective
from morphling_ray.search.acquisition import Values, quasi_normals
from morphling_ray.search.history import History, log_moments
from morphling_ray.search.morphling import MorphlingSampler
from morphling_ray.search.surrogate import Surrogate
from morphling_ray.space import Configuration, Knob, SearchSpace

FloatArray = npt.NDArray[np.float64]

HELD_OUT = range(20, 32)


def samples_needed(task: Task, learned: Prior | None, budget: int = 20) -> int:
    """How many samples until what is recommended is within 5 % of the optimum and stays there."""
    sampler = MorphlingSampler(SPACE, OBJECTIVE, seed=0, learned=learned)
    rng = np.random.default_rng(1)
    good = []
    for _ in range(budget):
        configuration = sampler.suggest()
        assert configuration is not None
        sampler.observe(configuration, task.measure(configuration, rng.normal(0, 0.02, 2)))
        best = sampler.finalists(1)  # what it recommends, without the figures that take time
        good.append(bool(best) and task.truth(best[0]) >= 0.95 * task.best())
    return next((n + 1 for n in range(budget) if all(good[n:])), budget + 1)


def test_a_prior_saves_samples() -> None:
    """Fails if the prior is not used, or used wrongly: a third of the samples, on tasks that it has not seen."""
    tasks = [Task(i) for i in HELD_OUT][:6]
    with_prior = [samples_needed(task, prior(), budget=12) for task in tasks]
    without = [samples_needed(task, None, budget=12) for task in tasks]
    assert np.mean(with_prior) < 0.67 * np.mean(without)
    assert np.median(with_prior) <= 4


def test_a_knob_that_never_mattered_is_no_other_chance() -> None:
    """Fails if a search tries again with another value what the prior says is the same, or believes that to the end."""
    space = SearchSpace((*KNOBS, Knob("memory", (1, 2, 4, 8), scale="log")))
    learned = fit_prior([Task(i).training(space.knobs) for i in range(10)], seed=0)
    assert learned.effects[learned.knobs.index("memory")] == 0.0
    assert (learned.effects > 0.1).sum() == len(KNOBS)
    objective = ExpressionObjective("value", "rps", ["latency_ms <= 100"], metrics=("rps", "latency_ms"))

    def search(trials: int, power: float) -> tuple[set[tuple[object, ...]], Configuration]:
        sampler = MorphlingSampler(space, objective, seed=0, learned=learned)
        tried: set[tuple[object, ...]] = set()
        for _ in range(trials):
            one = sampler.suggest()
            assert one is not None
            measured = Task(21).measure(one)
            if measured.feasible:
                faster = float(one["memory"]) ** power
                measured = replace(measured, metrics={**measured.metrics, "rps": faster * measured.metrics["rps"]})
            sampler.observe(one, measured)
            tried.add(tuple(value for name, value in one.items() if name != "memory"))
        (best,) = sampler.finalists(1)
        return tried, best

    tried, best = search(4, power=0.0)
    assert len(tried) == 4
    fastest = max(Task(21).measure(c).metrics["rps"] for c in SPACE.configurations if Task(21).truth(c) > 0)
    assert Task(21).measure(best).metrics["rps"] > 0.95 * fastest
    assert search(14, power=0.5)[1]["memory"] == 8


def test_a_prior_knows_knobs_by_their_places_too() -> None:
    """Fails if a space that writes knobs as places in a Serve config is searched as if nothing were known of it."""
    places = {knob.name: f"deployments.Model.user_config.{knob.name}" for knob in SPACE.knobs}
    knobs = [Knob(places[k.name], k.values, k.kind, k.scale) for k in SPACE.knobs]
    objective = ExpressionObjective("value", "rps", ["latency_ms <= 100"], metrics=("rps", "latency_ms"))
    short = MorphlingSampler(SPACE, objective, seed=0, learned=prior())
    full = MorphlingSampler(SearchSpace(knobs), objective, seed=0, learned=prior())
    assert full.notes == ""
    for _ in range(4):
        one, other = short.suggest(), full.suggest()
        assert one is not None
        measured = Task(20).measure(one)
        assert other == {places[name]: value for name, value in one.items()}
        short.observe(one, measured)
        full.observe(other, replace(measured, configuration=other))


def test_a_wrong_prior_is_let_go() -> None:
    """Fails without the guard: a prior that holds for other knobs must not cost the search."""
    tasks = [Task(i) for i in HELD_OUT][:6]
    wrong = [samples_needed(task, wrong_prior()) for task in tasks]
    assert np.mean([n <= 20 for n in wrong]) >= 0.8
    history = History(SPACE, OBJECTIVE, np.random.default_rng(0))
    for point in range(0, len(SPACE), 9):
        history.tell(SPACE[point], tasks[0].measure(SPACE[point]))
    assert weights(history, wrong_prior())["plain"] > 0.95
    assert weights(history, prior())["plain"] < 0.5


def weights(history: History, learned: Prior) -> dict[str, float]:
    surrogate = Surrogate(history, learned)
    belief = surrogate.belief()
    assert belief is not None
    names = [c.hypothesis.name for c in belief.ensemble.conditioned]
    return dict(zip(names, map(float, belief.ensemble.weights)))


def log_rps(surrogate: Surrogate) -> FloatArray:
    """Marginal draws of log rps of all points, shape `(S, n)`."""
    belief = surrogate.belief()
    assert belief is not None
    normals = np.random.default_rng(0).standard_normal((512, 2))
    return belief.ensemble.marginal_draws(np.arange(len(SPACE)), normals)[:, :, 0]


def test_gains_are_shares_of_each_draws_best() -> None:
    """Fails if a bound is applied to means, the fastest draws decide, or a draw that breaks every bound counts as 0."""
    objective = ExpressionObjective("p", "a", ["b <= 1"], metrics=("a", "b"))
    a = np.log([[1.0, 2.0, 4.0], [300.0, 100.0, 200.0], [1.0, 1.0, 1.0]])
    b = np.log([[0.5, 0.9, 1.1], [0.5, 0.5, 0.5], [1.1, 2.0, 4.0]])
    values = Values(np.stack([a, b], axis=2), objective, {})
    np.testing.assert_allclose(values.values, [[1, 2, 0], [300, 100, 200], [0, 0, 0]])
    np.testing.assert_allclose(values.shares[:2], [[0.5, 1.0, 0.0], [1.0, 1 / 3, 2 / 3]])
    sure, none = np.ones((3, 1)), np.array([], int)
    expected = [[0.0, 0.0, 0.0], [2 / 3, 0.0, 1 / 3]]
    np.testing.assert_allclose(values.gains(np.array([1]), sure)[:2], expected, atol=1e-12)
    np.testing.assert_allclose(values.gains(np.array([1]), 0.5 * sure)[0], [0.0, 0.5, 0.0], atol=1e-12)
    np.testing.assert_allclose(values.gains(np.array([1, 2]), np.ones((3, 2)))[1], [1 / 3, 0.0, 0.0], atol=1e-12)
    nearest, farther, far = values.gains(none, np.zeros((3, 0)))[2]
    assert 0.3 >= nearest > farther > far > 0.0


def test_quasi_normals_are_standard_normals() -> None:
    """Fails if the sequence is shifted out of the unit cube, or its dimensions go together."""
    normals = quasi_normals(4096, 3, np.array([0.1, 0.7, 0.4]))
    np.testing.assert_allclose(normals.mean(0), 0.0, atol=5e-3)
    np.testing.assert_allclose(np.cov(normals.T), np.eye(3), atol=2e-2)


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        ((2.0, 8.0), (math.log(4.0), math.log(4.0) / math.sqrt(12))),
        ((0.0, 9.0), (math.log(9.0 / math.sqrt(3)), math.log(3.0) / math.sqrt(12))),
        ((3.0, None), (math.log(3.0 * math.sqrt(3)), math.log(3.0) / math.sqrt(12))),
        ((0.0, None), None),
        ((5.0, 4.0), None),
        ((math.nan, 4.0), (math.log(4.0 / math.sqrt(3)), math.log(3.0) / math.sqrt(12))),
    ],
)
def test_moments_of_an_interval(interval: tuple[float, float | None], expected: tuple[float, float] | None) -> None:
    """Fails if an open end is taken for 0 or for infinity."""
    got = log_moments(*interval)
    assert got == (pytest.approx(expected) if expected else None)


def test_a_rejected_trial_lowers_what_is_expected_of_it() -> None:
    """Fails if bounds are ignored: a peak below 10 where about 100 was expected."""
    history = History(SPACE, OBJECTIVE, np.random.default_rng(0))
    surrogate = Surrogate(history, prior())
    before = log_rps(surrogate)[:, 5].mean()
    history.tell(SPACE[5], Measurement(configuration=SPACE[5], bounds={"rps": (0.0, 10.0)}))
    after = log_rps(surrogate)[:, 5]
    assert after.mean() < before - 0.5
    assert after.std() > 0.1  # an interval is not a value
    assert history.contenders == []


def test_starts_in_the_middle_without_a_prior_and_spreads() -> None:
    """Fails if the first configurations are the first of the list."""
    sampler = MorphlingSampler(SPACE, OBJECTIVE, seed=0)
    first, second, third = (sampler.suggest() for _ in range(3))
    assert first is not None
    assert first["batch"] in (4, 8)
    assert first["cores"] in (2, 4)
    assert second is not None
    assert {second["batch"], second["cores"]} & {1, 8, 32}
    assert third not in (first, second)


def test_p_near_best_is_a_probability_that_learns() -> None:
    """Fails if it ignores rivals (always 1) or what was learned (never near 1 on an exhausted space)."""
    task, sampler = Task(25), MorphlingSampler(SPACE, OBJECTIVE, seed=0, learned=prior())
    said = []
    for _ in range(len(SPACE)):
        configuration = sampler.suggest()
        assert configuration is not None
        sampler.observe(configuration, task.measure(configuration))
        if (found := sampler.recommend()) is not None:
            assert found.p_near_best is not None
            assert found.sd is not None
            said.append(found.p_near_best)
        if len(said) == 1 or len(said) == 12:
            continue
        if len(said) > 12:
            break
    assert 0.0 <= said[0] < 0.9
    assert said[-1] > 0.8


def test_finalists_leave_out_what_is_clearly_worse() -> None:
    """Fails if the runner-up is always measured again, or never."""
    for second, count in ((0.5, 1), (0.99, 2)):
        sampler = MorphlingSampler(SPACE, OBJECTIVE, seed=0, learned=prior())
        for configuration, factor in ((SPACE[30], 1.0), (SPACE[31], second)):
            rps = 100.0 * factor * (0.5 + float(configuration["cores"]))
            sampler.reserve(configuration)
            sampler.observe(
                configuration, Measurement(configuration=configuration, metrics={"rps": rps, "latency_ms": 9.0})
            )
        assert len(sampler.finalists(2)) == count
        assert SPACE[30] in sampler.finalists(2)


@pytest.mark.timed
def test_a_suggestion_is_quick() -> None:
    """Fails if something per candidate is computed in Python: 72 candidates and 12 trials, far below a second each."""
    task, sampler = Task(26), MorphlingSampler(SPACE, OBJECTIVE, seed=0, learned=prior())
    began = time.perf_counter()
    for _ in range(12):
        configuration = sampler.suggest()
        assert configuration is not None
        sampler.observe(configuration, task.measure(configuration))
    assert (time.perf_counter() - began) / 12 < 0.1


def test_a_metric_that_the_prior_never_saw() -> None:
    """Fails if an unknown metric stops the prior, or the search, from working."""
    objective = ExpressionObjective("o", "rps", ["watts <= 9"], metrics=("rps", "watts"))
    sampler = MorphlingSampler(SPACE, objective, seed=0, learned=prior())
    for _ in range(10):
        configuration = sampler.suggest()
        assert configuration is not None
        latency = Task(27).latency_ms(configuration)
        metrics = {"rps": 1e3 * float(configuration["batch"]) / latency, "watts": 2.0 * float(configuration["cores"])}
        sampler.observe(configuration, Measurement(configuration=configuration, metrics=metrics))
    found = sampler.recommend()
    assert found is not None
    assert found.configuration["cores"] == 4  # 8 cores break the bound
    assert found.configuration["batch"] == 32


def test_a_prior_that_has_nothing_to_say_is_left_out() -> None:
    """Fails if a prior of other knobs or other metrics is searched by: it begins at random instead of in the middle."""
    other = replace(prior(), metrics=("a", "b"))
    space = SearchSpace([Knob("x", (1, 2, 3)), Knob("y", (1, 2, 3))])
    for where, learned in ((SPACE, other), (space, prior())):
        samplers = [MorphlingSampler(where, OBJECTIVE, seed=0, learned=given) for given in (learned, None)]
        for _ in range(5):
            configurations = [sampler.suggest() for sampler in samplers]
            assert configurations[0] == configurations[1]
        assert "left out" in samplers[0].notes


def test_what_is_pending_is_not_crowded() -> None:
    """Fails if pending trials are forgotten: parallel trials would then be neighbours of one optimum.

    Four at once are worth nearly what four in a row are, and much more than the best and its three likeliest rivals.
    """
    best_of_four = []
    for number in HELD_OUT:
        task, sampler = Task(number), MorphlingSampler(SPACE, OBJECTIVE, seed=0, learned=prior())
        together = [sampler.suggest() for _ in range(4)]
        best_of_four.append(max(task.truth(c) for c in together if c is not None) / task.best())
    assert np.mean(best_of_four) > 0.93


def test_failures_are_kept_away_from() -> None:
    """Fails if the probability of failure does not count: the metric promises most where nothing works."""
    space = SearchSpace([Knob("x", tuple(range(1, 11))), Knob("k", tuple(range(1, 9)))])
    objective = ExpressionObjective("o", "y", metrics=("y",))
    sampler, failed = MorphlingSampler(space, objective, seed=0), 0
    for _ in range(15):
        configuration = sampler.suggest()
        assert configuration is not None
        x, k = (float(configuration[name]) for name in ("x", "k"))
        if x > 5:
            failed += 1
            measurement = Measurement(configuration=configuration, infeasible_because="out of memory")
        else:
            measurement = Measurement(configuration=configuration, metrics={"y": x * (1.5 + math.sin(2.0 * k))})
        sampler.observe(configuration, measurement)
    assert failed <= 9  # 12 where it does not count
    best = sampler.recommend()
    assert best is not None
    assert best.configuration == {"x": 5, "k": 4}


def test_of_equal_cost_the_one_with_more_to_spare_is_recommended_as_a_tie() -> None:
    """Fails if two that take the same whole copies count as sure to differ, or the order of the space decides."""
    space = SearchSpace([Knob("cpu_cores", (1,)), Knob("wait_ms", (0, 10))])
    objective = ServingObjective("cheapest", Prices(base=0.0, cpu_core=1.0, gpu={}), target_rps=150.0)
    sampler = MorphlingSampler(space, objective, seed=0)
    for wait_ms, peak in ((0, 90.0), (10, 110.0)):  # two copies of either
        configuration: Configuration = {"cpu_cores": 1, "wait_ms": wait_ms}
        for _ in range(3):
            sampler.observe(configuration, Measurement(configuration=configuration, metrics={"peak_rps": peak}))
    found = sampler.recommend()
    assert found is not None
    assert found.configuration["wait_ms"] == 10
    assert found.p_better == pytest.approx(0.5)
    assert [r.configuration["wait_ms"] for r in found.tied] == [0]
