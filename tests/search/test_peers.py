"""The methods that Morphling is compared with: what is special about each; what all share is in test_every_sampler."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from synthetic import OBJECTIVE, SPACE, Task

from morphling_ray.errors import InputError
from morphling_ray.measurement import Measurement
from morphling_ray.meta.tasks import TrainingTask
from morphling_ray.objective import ExpressionObjective
from morphling_ray.search import SEARCHERS, Method, Sampler, check_searcher, portfolio
from morphling_ray.search.measured import penalised_value
from morphling_ray.space import Configuration, Knob, SearchSpace

RPS = ExpressionObjective("rps", "rps", ["latency_ms <= 100"], metrics=("rps", "latency_ms"))
TASKS = range(40, 46)
BUDGET = 30


def measured(configuration: Configuration, rps: float, latency_ms: float = 20.0) -> Measurement:
    return Measurement(configuration=configuration, metrics={"rps": rps, "latency_ms": latency_ms})


def proposals(sampler: Sampler, measure: Callable[[Configuration], Measurement], count: int) -> list[Configuration]:
    out = []
    for _ in range(count):
        configuration = sampler.suggest()
        assert configuration is not None
        sampler.observe(configuration, measure(configuration))
        out.append(configuration)
    return out


def made(name: str, space: SearchSpace, objective: Any = RPS, seed: int = 0, learned: Any = None) -> Sampler:
    if not SEARCHERS[name].installed:
        pytest.skip(f"{name} needs {SEARCHERS[name].needs}")
    return SEARCHERS[name].make(space, objective, seed=seed, learned=learned)


def test_what_a_method_is_told_of_a_failure() -> None:
    """Fails if a failure, a broken bound or a missing metric scores anything, or if an interval counts as a failure."""
    c = SPACE[0]
    assert penalised_value(c, measured(c, 50.0), RPS) == 50.0
    assert penalised_value(c, measured(c, 50.0, latency_ms=101.0), RPS) == 0.0
    assert penalised_value(c, Measurement(configuration=c, infeasible_because="crash"), RPS) == 0.0
    assert penalised_value(c, Measurement(configuration=c, metrics={"rps": 50.0}), RPS) == 0.0
    cut_short = Measurement(configuration=c, metrics={"latency_ms": 20.0}, bounds={"rps": (10.0, 40.0)})
    assert penalised_value(c, cut_short, RPS) == pytest.approx(20.0)


class TestGrid:
    """The even sweep."""

    SPACE = SearchSpace([Knob("a", (1, 2, 3, 4)), Knob("b", (10, 20, 30, 40, 50, 60)), Knob("c", (5, 6, 7))])

    def test_a_prefix_is_spread_over_every_knob(self) -> None:
        """Fails if the sweep goes row by row: a sixth of it would have one value of the first knob."""
        tried = proposals(made("grid", self.SPACE), lambda c: measured(c, 1.0), 12)
        assert tried[0] == {"a": 3, "b": 40, "c": 6}  # the middle
        for knob in self.SPACE.knobs:
            counts = [sum(c[knob.name] == value for c in tried) for value in knob.values]
            assert max(counts) - min(counts) <= 2, knob.name
            assert min(counts) >= 12 // len(knob.values) - 1, knob.name

    def test_it_is_blind(self) -> None:
        """Fails if what is measured, or the seed, changes the sweep."""
        rising = proposals(made("grid", self.SPACE, seed=1), lambda c: measured(c, float(c["b"])), 20)
        failing = proposals(
            made("grid", self.SPACE, seed=2), lambda c: Measurement(configuration=c, infeasible_because="no"), 20
        )
        assert rising == failing


class TestPortfolio:
    """The list that is made before the search."""

    def test_greedy_cover(self) -> None:
        """Fails if candidates are ranked by their mean, which gives 0, 2, 1, 3, instead of by what they add.

        By hand: totals are 1.8, 1.65, 1.7, 1.0. After candidate 0 the others add 0, 0.2 + 0.4 and 1.0; after candidate
        3 they add 0 and 0.2; then nothing is left to gain.
        """
        shares = np.array([[1.0, 0.95, 0.3, 0.0], [0.8, 0.7, 1.0, 0.0], [0.0, 0.0, 0.4, 1.0]])
        assert portfolio.greedy(shares) == [0, 3, 2, 1]

    def test_one_lucky_task_does_not_decide(self) -> None:
        """Fails if a candidate that one task of five measured, perfect there, precedes one that all found good."""
        shares = np.full((5, 3), np.nan)
        shares[:, 0] = 0.9
        shares[0, 1] = 1.0
        shares[:, 2] = 0.1
        assert portfolio.greedy(shares) == [0, 1, 2]

    def test_learned_from_tasks_and_proposed_in_order(self) -> None:
        """Fails if shares are not relative to the best of each task, or what fails or breaks a bound counts."""
        space = SearchSpace([Knob("batch", (1, 2, 4))])
        earlier = [
            _earlier(space, rps=[50.0, 100.0, 900.0], latency_ms=[10.0, 20.0, 200.0]),  # the last breaks the bound
            _earlier(space, rps=[1.0, 4.0, np.nan], latency_ms=[10.0, 20.0, np.nan]),  # the last fails
            _earlier(space, rps=[9000.0, 1000.0, 5000.0], latency_ms=[1.0, 1.0, 1.0]),
        ]
        learned = SEARCHERS["portfolio"].learned(earlier, RPS, 0)
        assert [list(task.shares) for task in learned] == [
            [0.5, 1.0, 0.0],
            [0.25, 1.0, 0.0],
            [1.0, pytest.approx(1 / 9), pytest.approx(5 / 9)],
        ]
        tried = proposals(made("portfolio", space, learned=learned), lambda c: measured(c, 1.0), 3)
        assert [c["batch"] for c in tried] == [2, 1, 4]

    def test_warm_start_of_a_gaussian_process(self) -> None:
        """Fails if the first four are not the portfolio's, or all others are."""
        learned = SEARCHERS["portfolio"].learned([Task(i).training() for i in range(6)], OBJECTIVE, 0)
        task = Task(40)
        warm = proposals(made("portfolio+gp", SPACE, OBJECTIVE, learned=learned), task.measure, 8)
        listed = proposals(made("portfolio", SPACE, OBJECTIVE, learned=learned), task.measure, 8)
        assert warm[:4] == listed[:4]
        assert warm[4:] != listed[4:]


class TestHillClimb:
    """Steps between neighbours on the grid."""

    SPACE = SearchSpace([Knob("a", tuple(range(1, 9))), Knob("b", (1, 2, 4, 8, 16, 32, 64), scale="log")])

    @staticmethod
    def hill(configuration: Configuration) -> float:
        """One top, at a = 6 and b = 16; a factor of 1.5 a step."""
        return float(1e3 * 1.5 ** -(abs(float(configuration["a"]) - 6) + abs(np.log2(float(configuration["b"])) - 4)))

    def test_up_to_the_top(self) -> None:
        """Fails if it starts elsewhere than in the lowest corner, or takes more than a third of the grid to the top."""
        tried = proposals(made("hill-climb", self.SPACE), lambda c: measured(c, self.hill(c)), len(self.SPACE) // 3)
        assert tried[0] == {"a": 1, "b": 1}
        assert {"a": 6, "b": 16} in tried
        assert all(float(c["a"]) <= 4 for c in tried[:4])  # neighbours of the corner

    def test_it_backs_off_from_what_fails(self) -> None:
        """Fails if it goes on beyond a home that broke the bound: the top lies right at the edge here."""

        def measure(c: Configuration) -> Measurement:
            return measured(c, float(c["a"]) * float(c["b"]), latency_ms=101.0 if float(c["a"]) > 5 else 50.0)

        tried = proposals(made("hill-climb", self.SPACE), measure, 28)
        assert {"a": 5, "b": 64} in tried
        assert sum(float(c["a"]) > 6 for c in tried) < 6

    def test_the_best_category(self) -> None:
        """Fails if a category is taken for a level: the best one is neither next to the first nor at either end."""
        space = SearchSpace(
            [Knob("kind", ("a", "b", "c", "d", "e"), kind="categorical"), Knob("a", (1, 2, 3, 4, 5, 6))]
        )
        gain = {"a": 1.0, "b": 0.8, "c": 0.5, "d": 3.0, "e": 0.3}
        tried = proposals(
            made("hill-climb", space), lambda c: measured(c, gain[str(c["kind"])] * float(c["a"])), len(space) // 2
        )
        assert {"kind": "d", "a": 6} in tried

    @pytest.mark.parametrize("kind", ["flat", "nothing works", "many tops"])
    def test_it_never_stalls(self, kind: str) -> None:
        """Fails if the climb ends, or goes round in circles, before everything was tried."""
        rng = np.random.default_rng(0)

        def measure(c: Configuration) -> Measurement:
            if kind == "nothing works":
                return Measurement(configuration=c, infeasible_because="no")
            return measured(c, 7.0 if kind == "flat" else float(rng.uniform(1.0, 100.0)), float(rng.uniform(50, 110)))

        tried = proposals(made("hill-climb", self.SPACE), measure, len(self.SPACE))
        assert len({tuple(c.values()) for c in tried}) == len(self.SPACE)


def _earlier(space: SearchSpace, *, rps: Sequence[float], latency_ms: Sequence[float]) -> TrainingTask:
    return TrainingTask(
        task="earlier",
        family="earlier",
        knobs=space.knobs,
        configurations=list(space.configurations),
        metrics={"rps": np.array(rps), "latency_ms": np.array(latency_ms)},
        feasible=np.isfinite(rps),
    )


NUMBERS = SearchSpace(
    [Knob("batch", (1, 2, 3, 4, 6, 8, 12, 16, 24, 32), scale="log"), Knob("cores", tuple(range(1, 9)), scale="log")]
)


class TestModels:
    """Methods that model what they measure."""

    @pytest.mark.timeout(60)
    @pytest.mark.parametrize(
        ("name", "space"),
        [
            ("optuna-tpe", SPACE),
            ("optuna-gp", SPACE),
            ("bo", SPACE),
            ("botorch", NUMBERS),  # with categories it takes a second a proposal
        ],
    )
    def test_earlier_than_random(self, name: str, space: SearchSpace) -> None:
        """Fails if it takes more than 0.7 times as many samples as random ones to come within 3 % of the best.

        Any fault in what the library is told does: a sign, the order of the values, positions of another candidate.
        """
        taken = [_samples_until_near(name, space, Task(i)) for i in TASKS]
        random = [_samples_until_near("random", space, Task(i)) for i in TASKS]
        assert np.mean(taken) < 0.7 * np.mean(random)

    @pytest.mark.timeout(60)
    def test_botorch_with_categories(self) -> None:
        """Fails if categories are told as numbers of a scale, or as those of another candidate."""
        space = SearchSpace(
            [Knob("kind", ("a", "b", "c", "d", "e"), kind="categorical"), Knob("size", (1, 2, 3, 4, 5, 6))]
        )
        gain = {"a": 10.0, "b": 60.0, "c": 20.0, "d": 100.0, "e": 15.0}
        sampler = made("botorch", space)
        for kind in gain:
            for size in (1, 2):
                c: Configuration = {"kind": kind, "size": size}
                sampler.observe(c, measured(c, gain[kind] * (4.0 + size)))
        following = sampler.suggest()
        assert following is not None
        assert following["kind"] == "d"


def _samples_until_near(name: str, space: SearchSpace, task: Task) -> int:
    best = max(task.truth(c) for c in space.configurations)
    sampler = made(name, space, OBJECTIVE)
    for sample in range(1, BUDGET + 1):
        configuration = sampler.suggest()
        assert configuration is not None
        if task.truth(configuration) >= 0.97 * best:
            return sample
        sampler.observe(configuration, task.measure(configuration))
    return BUDGET + 1


class TestVizier:
    """The library itself; the other suites stand in for it, since it takes seconds a suggestion."""

    SPACE = SearchSpace([Knob("a", tuple(range(1, 13)))])

    @pytest.mark.slow
    @pytest.mark.timeout(120)
    def test_a_suggestion(self) -> None:
        """Fails if the library is told the wrong sign or the wrong candidates: values rise up to the last one."""
        sampler = made("vizier", self.SPACE)
        for a in (1, 4, 7):
            sampler.observe({"a": a}, measured({"a": a}, 10.0 * a))
        following = sampler.suggest()
        assert following is not None
        assert int(following["a"]) > 7

    @pytest.mark.slow
    @pytest.mark.timeout(120)
    def test_what_failed_is_told(self) -> None:
        """Fails if a failure is left out: without it the climb above goes on."""
        sampler = made("vizier", self.SPACE)
        for a in (1, 4, 7):
            sampler.observe({"a": a}, measured({"a": a}, 10.0 * a))
        for a in (8, 10, 12):
            sampler.observe({"a": a}, measured({"a": a}, 10.0 * a, latency_ms=200.0))
        following = sampler.suggest()
        assert following is not None
        assert int(following["a"]) < 7

    @pytest.mark.slow
    @pytest.mark.timeout(120)
    def test_transfer(self) -> None:
        """Fails if earlier tasks do not decide the first proposal, or are forgotten once something is measured."""
        for top in (3, 10):
            earlier = [
                portfolio.TaskShares(
                    names=("a",),
                    configurations=tuple((a,) for a in range(1, 13)),
                    shares=np.exp(-0.5 * ((np.arange(1, 13) - top) / width) ** 2),
                )
                for width in (2.0, 2.5)
            ]
            sampler = made("vizier-transfer", self.SPACE, learned=earlier)
            first, second = proposals(sampler, lambda c: measured(c, 50.0), 2)
            assert first == {"a": top}
            assert abs(int(second["a"]) - top) <= 2

    @pytest.mark.slow
    @pytest.mark.timeout(120)
    def test_transfer_without_earlier_tasks(self) -> None:
        """Fails if it needs earlier tasks: it begins as the sweep does."""
        assert made("vizier-transfer", self.SPACE).suggest() == made("grid", self.SPACE).suggest()


def test_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if the user gets a traceback, or is not told which package is missing and how to install it."""
    method = Method(module="vizier_search", sampler="VizierSampler", needs=("numpy", "no_such_package"))
    monkeypatch.setitem(SEARCHERS, "vizier", method)
    assert not method.installed
    with pytest.raises(InputError, match=r"^searcher vizier needs no_such_package; the extra \[baselines\]"):
        check_searcher("vizier")
