from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scripted import Scripted, four_tasks

from experiments.comparison.protocol import Problem, deployments, search
from morphling_ray.search import SEARCHERS
from morphling_ray.search.random import RandomSampler
from morphling_ray.space import Configuration, SearchSpace
from morphling_ray.surface import SurfaceSet, load_surfaces


@pytest.fixture
def recorded(tmp_path: Path) -> SurfaceSet:
    return load_surfaces(four_tasks(tmp_path / "four"))


def at(x: int, mode: str = "a") -> Configuration:
    return {"x": x, "mode": mode}


def test_curves_by_hand(recorded: SurfaceSet) -> None:
    """Fails if a broken bound, no recommendation or the wrong optimum counts, or if a worse trial costs 7 probes."""
    problem = Problem.of(recorded, "value", "f1", 0.03)
    assert problem.best == pytest.approx(110)  # x = 3 in mode b, 1.25 % below the bound
    assert problem.best_clear == pytest.approx(88)  # x = 2 in mode b
    sampler = Scripted(
        # Breaks the bound, works, works but is worse, infeasible, better, equally good.
        proposals=[at(4), at(2), at(1), at(1, "b"), at(3), at(3)],
        recommendations=[None, at(2), at(4), at(1, "b"), at(3), at(3, "b")],
        sure=[None, 0.1, 0.2, 0.3, 0.4, 0.5],
    )
    found = search(problem, sampler, budget=6, noise=0.0, noise_seed=0)
    assert found.quality == pytest.approx([0, 80 / 110, 0, 0, 100 / 110, 1])
    assert found.quality_clear == pytest.approx([0, 80 / 88, 0, 0, 100 / 88, 110 / 88])
    assert found.probes == [1, 8, 9, 10, 17, 24]
    assert found.proposed == [6, 2, 0, 1, 4, 4]
    assert found.recommended == [None, 2, 6, 1, 4, 5]
    assert found.p_near_best == [None, 0.1, 0.2, 0.3, 0.4, 0.5]
    assert len(found.suggest_ms) == len(found.recommend_ms) == 6


def test_a_search_may_end_at_the_best_there_is(recorded: SurfaceSet) -> None:
    """Fails if it goes on, ends at something worse, or if what follows is not as good as then."""
    proposals = [at(2), at(3), at(3, "b"), at(1)]
    sampler = Scripted(proposals=proposals, recommendations=proposals, sure=[None] * 4)
    problem = Problem.of(recorded, "value", "f1", 0.0)
    found = search(problem, sampler, budget=4, noise=0.0, noise_seed=0, until_best=True)
    assert found.proposed == [2, 4, 5]
    assert found.quality == pytest.approx([80 / 110, 100 / 110, 1, 1])


def test_a_search_that_runs_dry_is_padded(recorded: SurfaceSet) -> None:
    """Fails if curves are shorter than the budget, padded with 0, or if timings of samples never taken are made up."""
    sampler = Scripted(proposals=[at(1), at(2)], recommendations=[at(1), at(2)], sure=[0.3, 0.6])
    found = search(Problem.of(recorded, "value", "f1", 0.03), sampler, budget=5, noise=0.0, noise_seed=0)
    assert found.quality == pytest.approx([50 / 110, *[80 / 110] * 4])
    assert found.quality_clear == pytest.approx([50 / 88, *[80 / 88] * 4])
    assert found.probes == [7, *[14] * 4]
    assert found.recommended == [0, *[2] * 4]
    assert found.p_near_best == [0.3, *[0.6] * 4]
    assert found.proposed == [0, 2]
    assert len(found.suggest_ms) == 2


def test_nothing_keeps_the_bound_with_the_noise_to_spare(recorded: SurfaceSet) -> None:
    """Fails if the clear optimum is then 0, so that quality is divided by it."""
    problem = Problem.of(recorded, "value", "g1", 0.9)
    assert problem.best_clear == problem.best == pytest.approx(88)


def test_an_objective_without_bounds_is_clear_everywhere(recorded: SurfaceSet) -> None:
    """Fails if an infinite slack, or one that is a single number, is mishandled."""
    problem = Problem.of(recorded, "plain", "f1", 0.03)
    assert problem.best_clear == problem.best == pytest.approx(110)
    assert Problem.of(recorded, "value", "h1", 0.03).best == 0


def test_noise_is_told_and_quality_is_not_noisy(recorded: SurfaceSet) -> None:
    """Fails if the truth is judged with noise, noise is not told, or it depends on the order of the search."""
    problem = Problem.of(recorded, "value", "f1", 0.03)
    orders = [[at(1), at(2), at(2)], [at(2), at(2), at(1)]]
    told = []
    for order in orders:
        sampler = Scripted(proposals=order, recommendations=[at(2)] * 3)
        found = search(problem, sampler, budget=3, noise=0.1, noise_seed=5)
        assert found.quality == pytest.approx([80 / 110] * 3)
        told.append([measurement.metrics["rps"] for measurement in sampler.observed])
    assert told[0] == [told[1][2], told[1][0], told[1][1]]
    assert len({50.0, 80.0, *told[0]}) == 5


def test_free_knobs_by_hand(recorded: SurfaceSet) -> None:
    """Fails if other settings of the deployment are not told, or are counted as samples or probed for."""
    problem = Problem.of(recorded, "value", "f1", 0.03)
    sampler = Scripted(proposals=[at(1), at(2), at(4)], recommendations=[at(1), at(2, "b"), at(2, "b")])
    found = search(problem, sampler, budget=4, noise=0.0, noise_seed=0, free_knobs=("mode",))
    observed = [at(1), at(1, "b"), at(2), at(2, "b"), at(4), at(4, "b")]
    assert [m.configuration for m in sampler.observed] == observed
    assert [m.feasible for m in sampler.observed] == [True, False, True, True, True, True]
    assert sampler.reserved == [at(1, "b"), at(2, "b"), at(4, "b")]  # never suggested, so announced
    assert found.proposed == [0, 2, 6]
    assert found.probes == [7, 14, 15, 15]
    assert found.quality == pytest.approx([50 / 110, 0.8, 0.8, 0.8])


def test_each_setting_of_a_deployment_has_its_own_noise(recorded: SurfaceSet) -> None:
    """Fails if one draw of noise is shared by a deployment: mode b would then always be a tenth better."""
    sampler = Scripted(proposals=[at(2)], recommendations=[at(2)])
    search(Problem.of(recorded, "value", "f1", 0.03), sampler, budget=1, noise=0.1, noise_seed=0, free_knobs=("mode",))
    first, second = (measurement.metrics["rps"] for measurement in sampler.observed)
    assert second / first != pytest.approx(1.1)


def test_deployments(recorded: SurfaceSet) -> None:
    """Fails if a free knob separates deployments, or another does not."""
    space = recorded.task("f1").space
    assert deployments(space, ("mode",)).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert deployments(space, ("x",)).tolist() == [0, 1] * 4
    assert deployments(space, ()).tolist() == list(range(8))


def test_only_samplers_that_take_free_knobs_are_told(recorded: SurfaceSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if the keyword breaks a sampler without it, is kept from one with it, or is passed on when empty."""
    told = []

    class Aware(RandomSampler):
        def __init__(self, space: SearchSpace, objective: Any, *, free_knobs: tuple[str, ...] = ("none",), **rest: Any):
            super().__init__(space, objective, **rest)
            told.append(free_knobs)

    problem = Problem.of(recorded, "value", "f1", 0.03)
    method = SEARCHERS["random"]
    assert not method.takes_free_knobs
    method.make(problem.surface.space, problem.objective, seed=0, free_knobs=("mode",))
    monkeypatch.setattr("morphling_ray.search.random.Aware", Aware, raising=False)
    aware = replace(method, sampler="Aware")
    assert aware.takes_free_knobs
    aware.make(problem.surface.space, problem.objective, seed=0, free_knobs=("mode",))
    aware.make(problem.surface.space, problem.objective, seed=0)
    assert told == [("mode",), ("none",)]
