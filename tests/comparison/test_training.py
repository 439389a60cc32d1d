from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from scripted import RPS, SpyMethod, four_tasks, write_surfaces

from experiments.comparison.datasets import Dataset
from experiments.comparison.planning import plan
from experiments.comparison.settings import Settings
from experiments.comparison.training import learning_objective, shuffled, training_names, training_tasks
from experiments.comparison.work import learn, run_unit
from morphling_ray.errors import ExpressionError, InputError
from morphling_ray.meta.maml import MamlSettings
from morphling_ray.meta.tasks import TrainingTask
from morphling_ray.search import SEARCHERS


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return Dataset.open(four_tasks(tmp_path / "four"))


@pytest.mark.parametrize(
    ("hold_out", "expected"),
    [
        ("family", {"f1": "g1 h1", "f2": "g1 h1", "g1": "f1 f2 h1"}),
        ("task", {"f1": "f2 g1 h1", "f2": "f1 g1 h1", "g1": "f1 f2 h1"}),
    ],
)
def test_nothing_of_the_fold_reaches_learning(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, hold_out: Literal["family", "task"], expected: dict[str, str]
) -> None:
    """Fails if a task of the held-out family (or the task itself) is handed to `learn`, or another one is kept back."""
    spy = SpyMethod()
    monkeypatch.setitem(SEARCHERS, "spy", spy)
    settings = Settings(budget=2, hold_out=hold_out)
    for unit in plan(settings, [dataset], ["value"], ["spy"], seeds=2).units:
        runs = run_unit(settings, unit)
        tasks, objective, seed = spy.told[-1]
        assert seed == unit.seed
        for run in runs:
            assert " ".join(task.task for task in tasks) == expected[run.task]
            assert run.train_tasks == len(tasks)
            assert {task.family for task in tasks}.isdisjoint({run.family}) or hold_out == "task"
        values = tasks[-1].values(objective)  # h1, in which nothing keeps the bound: its own limit, not the fold's
        assert values is not None
        assert not values.any()


def test_some_rows_of_each_task_are_learned_from(dataset: Dataset) -> None:
    """Fails if the draw is the same for every task or seed, or takes more."""
    settings = Settings(train_cells=3)
    tasks = training_tasks(settings, dataset, ["f1", "f2", "g1"], 0)
    drawn = [str(task.configurations) for task in tasks]
    assert [len(task.configurations) for task in tasks] == [3, 3, 3]
    assert len(set(drawn)) > 1
    assert drawn != [str(task.configurations) for task in training_tasks(settings, dataset, ["f1", "f2", "g1"], 1)]


def test_named_tasks_are_learned_from_and_all_others_searched(dataset: Dataset) -> None:
    """Fails if a task is on both sides, or on none."""
    settings = Settings(budget=2, train_on=("f1", "g1"))
    (unit,) = plan(settings, [dataset], ["value"], ["random"], seeds=1).units
    assert unit.tasks == ("f2",), "h1 has nothing that keeps the bound"
    assert training_names(settings, dataset, unit.fold, 0) == ("f1", "g1")
    with pytest.raises(InputError, match="--train-on nobody"):
        Settings(train_on=("nobody",)).check([dataset])


def test_the_objective_to_learn_for_knows_no_task(dataset: Dataset) -> None:
    """Fails if it carries a task's constants, which would be those of a held-out task."""
    objective = learning_objective(dataset, "value")
    assert objective.metrics == ("rps", "ms")
    with pytest.raises(ExpressionError, match="limit"):
        objective({"x": 1}, {"rps": 1.0, "ms": 1.0})


def test_another_set_to_learn_from(dataset: Dataset, tmp_path: Path) -> None:
    """Fails if the searched set's tasks are learned from too, or a namesake of the fold in the other set is."""
    families = {"k1": "k", "k2": "f", "f": "m"}
    other = Dataset.open(write_surfaces(tmp_path / "other", "other", families, dict.fromkeys(families, 40.0)))
    settings = Settings(learn_from=other)
    assert training_names(settings, dataset, "f", 0) == ("k1",)
    assert training_names(settings, dataset, "g", 0) == ("k1", "k2", "f")
    assert [task.task for task in training_tasks(settings, dataset, ("k1", "f"), 0)] == ["k1", "f"]
    with pytest.raises(InputError, match="nothing would be held out"):
        Settings(learn_from=dataset).check([dataset])


def test_a_second_set_to_learn_from(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if the second set is not learned from beside the first, or what is of the fold's name is."""
    families = {"k1": "k", "k2": "f", "g": "m"}
    other = Dataset.open(write_surfaces(tmp_path / "other", "other", families, dict.fromkeys(families, 40.0)))
    spy = SpyMethod()
    monkeypatch.setitem(SEARCHERS, "spy", spy)
    settings = Settings(budget=1, learn_also=other)
    learned = {}
    for unit in plan(settings, [dataset], ["value"], ["spy"], seeds=1).units:
        (run, *_) = run_unit(settings, unit)
        learned[unit.fold] = " ".join(task.task for task in spy.told[-1][0])
        assert run.train_tasks == len(spy.told[-1][0])
        assert run.variant == "prior from other too"
    assert learned == {"f": "g1 h1 k1 g", "g": "f1 f2 h1 k1 k2"}
    assert settings.to_dict()["learn_also"] == {"name": "other", "data": other.data}
    with pytest.raises(InputError, match="--learn-also made-up"):
        Settings(learn_also=dataset).check([dataset])


def test_some_training_tasks(dataset: Dataset) -> None:
    """Fails if the draw is not repeatable, ignores the seed, or takes more or fewer than asked for."""
    settings = Settings(train_tasks=1)
    draws = [training_names(settings, dataset, "g", seed) for seed in range(12)]
    assert draws == [training_names(settings, dataset, "g", seed) for seed in range(12)]
    assert {len(draw) for draw in draws} == {1}
    assert {name for draw in draws for name in draw} == {"f1", "f2", "h1"}
    assert training_names(Settings(train_tasks=9), dataset, "g", 0) == ("f1", "f2", "h1")


def test_a_shuffled_prior(dataset: Dataset) -> None:
    """Fails if rows are torn apart, each task is shuffled in its own way, or nothing moves."""
    plain = training_tasks(Settings(), dataset, ("f1", "g1"), 0)
    mixed = training_tasks(Settings(shuffle_prior=True), dataset, ("f1", "g1"), 0)
    for before, after in zip(plain, mixed):
        assert after.configurations == before.configurations
        assert rows(after) != rows(before)
        assert sorted(rows(after)) == sorted(rows(before))
    # The two tasks have equal metrics, so equal permutations leave them equal.
    assert rows(mixed[0]) == rows(mixed[1])
    assert rows(shuffled(plain[0], seed=1)) != rows(shuffled(plain[0], seed=0))


def rows(task: TrainingTask) -> list[tuple[float, ...]]:
    columns = [task.metrics["rps"], task.metrics["ms"], task.feasible]
    return [tuple(float(v) for v in row) for row in np.nan_to_num(np.stack(columns, axis=1))]


def test_a_shuffle_moves_equal_configurations_alike_in_unlike_tasks(dataset: Dataset) -> None:
    """Fails if the order depends on which other configurations a task has measured."""
    task = training_tasks(Settings(), dataset, ("f1",), 0)[0]
    ranks = []
    for keep in (list(range(8)), [0, 2, 4, 6]):
        configurations = [task.configurations[i] for i in keep]
        metrics = {"rps": np.arange(1.0, len(keep) + 1)}
        part = replace(task, configurations=configurations, metrics=metrics, feasible=np.ones(len(keep), bool))
        ranks.append(shuffled(part, 0).metrics["rps"])
    assert np.argsort(ranks[0][[0, 2, 4, 6]]).tolist() == np.argsort(ranks[1]).tolist()


def test_values_never_seen(dataset: Dataset) -> None:
    """Fails if a row with a dropped value is learned from, or the knob still lists it."""
    settings = Settings(drop_values=(("x", ("2", "4")), ("mode", ("b",))))
    settings.check([dataset])
    (task,) = training_tasks(settings, dataset, ("f1",), 0)
    assert task.configurations == [{"x": 1, "mode": "a"}, {"x": 3, "mode": "a"}]
    assert task.metrics["rps"].tolist() == [50.0, 100.0]
    assert [knob.values for knob in task.knobs] == [(1, 3), ("a",)]


@pytest.mark.parametrize(("knob", "left", "constants"), [("mode", 4, {}), ("x", 2, {"x": 1.0})])
def test_a_knob_never_seen(dataset: Dataset, knob: str, left: int, constants: dict[str, float]) -> None:
    """Fails if the knob is left in, several of its values are mixed, or what the cost may need of it is lost."""
    settings = Settings(drop_knob=knob)
    settings.check([dataset])
    task, other = training_tasks(settings, dataset, ("f1", "g1"), 0)
    assert [k.name for k in task.knobs] == [name for name in ("x", "mode") if name != knob]
    assert len(task.configurations) == left
    assert all(knob not in c for c in task.configurations)
    assert task.constants == {"limit": 40.0, **constants}
    assert task.metrics["rps"].tolist() == (list(RPS) if knob == "mode" else pytest.approx([50.0, np.nan], nan_ok=True))
    assert other.configurations == task.configurations


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"drop_values": (("x", ("9",)),)}, "x has no such value; it has 1, 2, 3, 4"),
        ({"drop_values": (("mode", ("a", "b")),)}, "leaves no value of mode"),
        ({"drop_values": (("y", ("1",)),)}, "no such knob"),
        ({"drop_knob": "y"}, "no such knob"),
        ({"free_knobs": ("y",)}, "no such knob"),
        ({"free_knobs": ("x", "mode")}, "leaves no knob"),
    ],
)
def test_settings_that_do_not_fit_the_data(dataset: Dataset, wrong: dict[str, Any], message: str) -> None:
    """Fails if a knob or value that is not there is found out in the middle of a comparison, or never."""
    with pytest.raises(InputError, match=message):
        Settings(**wrong).check([dataset])


def test_a_worse_prior_is_no_variant_of_a_searcher_that_has_none(dataset: Dataset) -> None:
    """Fails if the rows of a table do not say what was done to the prior, or say it where it changes nothing."""
    settings = Settings(shuffle_prior=True, train_tasks=5, drop_values=(("x", ("2", "4")),), free_knobs=("mode",))
    assert settings.variant(learns=True) == "5 training tasks, x 2, 4 unseen, shuffled prior, every mode at once"
    assert settings.variant(learns=False) == "every mode at once"
    assert Settings().variant(learns=True) == ""


def test_settings_of_maml_reach_its_training(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if `maml` is trained with its defaults, or another searcher with these."""
    seen: list[MamlSettings] = []
    monkeypatch.setattr("morphling_ray.meta.maml.learn", lambda tasks, objective, seed, settings: seen.append(settings))
    settings = Settings(maml=MamlSettings(episodes=3))
    tasks = training_tasks(settings, dataset, ["f1", "g1"], 0)
    learn(settings, "maml", tasks, learning_objective(dataset, "value"), 0)
    learn(settings, "random", tasks, learning_objective(dataset, "value"), 0)
    assert [s.episodes for s in seen] == [3]
