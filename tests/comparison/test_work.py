import io
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scripted import Scripted, SpyMethod, four_tasks

from experiments.comparison import work
from experiments.comparison.datasets import Dataset, open_all
from experiments.comparison.planning import Unit, missing, plan
from experiments.comparison.progress import Progress, clock_text
from experiments.comparison.results import Results, Run
from experiments.comparison.settings import Settings
from experiments.comparison.work import Outcome, attempt, run_all, run_unit
from morphling_ray.errors import InputError
from morphling_ray.search import SEARCHERS
from morphling_ray.space import Configuration

SETTINGS = Settings(budget=4)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return Dataset.open(four_tasks(tmp_path / "four"))


def register(monkeypatch: pytest.MonkeyPatch, name: str, method: SpyMethod) -> SpyMethod:
    monkeypatch.setitem(SEARCHERS, name, method)
    return method


def meta(dataset: Dataset, settings: Settings = SETTINGS) -> dict[str, Any]:
    datasets = {dataset.name: {"data": dataset.data}}
    return {"settings": settings.to_dict(), "datasets": datasets, "searchers": ["random", "gp"], "left_out": {}}


def told(run: Run) -> dict[str, Any]:
    """A run without what a clock says."""
    return {name: value for name, value in run.to_dict().items() if not name.endswith(("_ms", "_s"))}


def test_the_plan(dataset: Dataset) -> None:
    """Fails if a hopeless task is searched, an objective that the set lacks stops everything, or a fold is torn."""
    todo = plan(SETTINGS, [dataset], ["value", "other", "plain"], ["a", "b"], seeds=2)
    assert todo.left_out == {"made-up, value": ["h1"]}
    assert todo.notes == ["made-up has no objective other, only value, plain: skipped"]
    assert {u.tasks for u in todo.units if u.objective == "value"} == {("f1", "f2"), ("g1",)}
    assert {u.tasks for u in todo.units if u.objective == "plain"} == {("f1", "f2"), ("g1",), ("h1",)}
    assert len(todo.units) == len(set(todo.units)) == 2 * 2 * (2 + 3)
    assert [u.seed for u in todo.units] == [0] * 10 + [1] * 10
    by_task = plan(Settings(hold_out="task"), [dataset], ["value"], ["a"], seeds=1)
    assert {u.tasks for u in by_task.units} == {("f1",), ("f2",), ("g1",)}


def test_the_plan_of_some_tasks(dataset: Dataset) -> None:
    """Fails if a pattern or a subset is ignored, or a subset differs from call to call."""
    some = plan(SETTINGS, [dataset], ["plain"], ["a"], seeds=1, tasks="f*")
    assert {u.tasks for u in some.units} == {("f1", "f2")}
    drawn = [plan(SETTINGS, [dataset], [o], ["a"], seeds=1, subset=2) for o in ("plain", "plain", "value")]
    tasks = [{t for u in p.units for t in u.tasks} | {t for ts in p.left_out.values() for t in ts} for p in drawn]
    assert tasks[0] == tasks[1] == tasks[2]
    assert len(tasks[0]) == 2


@pytest.mark.parametrize(
    ("objectives", "tasks", "message"),
    [
        (["other"], "*", "no objective other"),
        (["value"], "z*", "no task that matches 'z\\*'"),
        (["value"], "h1", "keeps the bounds"),
    ],
)
def test_nothing_to_compare(dataset: Dataset, objectives: list[str], tasks: str, message: str) -> None:
    """Fails if an empty comparison is run, or the way out is not named."""
    with pytest.raises(InputError, match=message):
        plan(SETTINGS, [dataset], objectives, ["a"], seeds=1, tasks=tasks)


def test_two_sets_of_one_name(tmp_path: Path) -> None:
    """Fails if runs of two sets could be taken for each other's."""
    folders = [four_tasks(tmp_path / "one"), four_tasks(tmp_path / "two")]
    with pytest.raises(InputError, match="also named 'made-up'"):
        open_all(folders)


def test_an_interrupted_comparison_goes_on(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if a finished search is repeated, one is forgotten, or the result depends on the interruption."""
    spy = register(monkeypatch, "spy", SpyMethod())
    units = plan(SETTINGS, [dataset], ["value"], ["random", "spy"], seeds=2).units

    def go_on(path: Path, stop_after: int | None) -> Results:
        work._learned.cache_clear()  # as in a new process
        results = Results.open(path, meta(dataset), restart=False)
        todo = missing(units, results.runs)
        todo = todo[::-1] if stop_after else todo  # as other processes might finish them
        for count, outcome in enumerate(run_all(SETTINGS, todo, processes=1), start=1):
            assert not outcome.error
            results.add(outcome.runs)
            if count == stop_after:
                break
        results.write()
        return results

    whole = go_on(tmp_path / "whole.json", None)
    calls = len(spy.told)
    go_on(tmp_path / "parts.json", 3)
    assert len(Results.read(tmp_path / "parts.json").runs) == 4
    parts = go_on(tmp_path / "parts.json", None)
    assert missing(units, parts.runs) == []
    files = [Results.read(results.path) for results in (whole, parts)]
    assert [told(run) for run in files[0].runs.values()] == [told(run) for run in files[1].runs.values()]
    assert len(spy.told) == 2 * calls


def test_a_started_fold_is_finished_alone(dataset: Dataset) -> None:
    """Fails if a task that is done is searched again because another one of its fold is not."""
    (unit,) = plan(SETTINGS, [dataset], ["value"], ["random"], seeds=1, tasks="f*").units
    assert [u.tasks for u in missing([unit], {unit.key("f1")})] == [("f2",)]
    assert missing([unit], {unit.key("f1"), unit.key("f2")}) == []


def test_other_settings_or_data_are_refused(dataset: Dataset, tmp_path: Path) -> None:
    """Fails if runs of two kinds land in one file, or `restart` does not help."""
    path = tmp_path / "out.json"
    Results.open(path, meta(dataset), restart=False).write()
    other = meta(dataset, replace(SETTINGS, noise=0.05))
    with pytest.raises(InputError, match=r"made with noise 0\.03, not 0\.05; choose another --json .* --restart"):
        Results.open(path, other, restart=False)
    assert Results.open(path, other, restart=True).meta["settings"]["noise"] == 0.05
    changed = {**meta(dataset), "datasets": {dataset.name: {"data": "?"}}}
    with pytest.raises(InputError, match="other data in made-up"):
        Results.open(path, changed, restart=False)


def test_the_fingerprint_of_data(tmp_path: Path) -> None:
    """Fails if another number in the table goes unnoticed, or the order of its rows matters."""
    folder = four_tasks(tmp_path / "four")
    before = Dataset.open(folder)
    table = folder / "surfaces.csv"
    head, *rows = table.read_text().splitlines()
    turned = tmp_path / "turned"
    folder.rename(turned)
    (turned / "surfaces.csv").write_text("\n".join([head, *reversed(rows)]) + "\n")
    assert Dataset.open(turned).data == before.data
    other = tmp_path / "other"
    turned.rename(other)
    (other / "surfaces.csv").write_text("\n".join([head, *rows]).replace("80.0", "80.5") + "\n")
    assert Dataset.open(other).data != before.data


def test_redo(dataset: Dataset, tmp_path: Path) -> None:
    """Fails if a searcher's old runs are kept, or another's are lost."""
    results = Results.open(tmp_path / "out.json", meta(dataset), restart=False)
    for unit in plan(SETTINGS, [dataset], ["value"], ["random", "gp"], seeds=1, tasks="g1").units:
        results.add(run_unit(SETTINGS, unit))
    results.write()
    again = Results.open(tmp_path / "out.json", meta(dataset), restart=False, redo=["gp"])
    assert [run.searcher for run in again.runs.values()] == ["random"]


def test_a_failed_write_leaves_the_old_file(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if the file is written in place, or a half-written one is left beside it."""
    reader = tmp_path / "reader"
    reader.mkdir()
    results = Results.open(tmp_path / "out.json", meta(dataset), restart=False)
    results.write()
    before = results.path.read_bytes()
    os.link(results.path, reader / "opened.json")  # what somebody who opened the file before goes on to see
    results.meta["more"] = 1
    results.write()
    assert (reader / "opened.json").read_bytes() == before != results.path.read_bytes()
    before = results.path.read_bytes()

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left"):
        results.write()
    assert results.path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["out.json"]


def test_a_searcher_that_breaks(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if one searcher's exception ends the work of all, or its reason is lost."""

    def breaks(*_: object) -> Scripted:
        raise RuntimeError("no\nluck")

    register(monkeypatch, "broken", SpyMethod(made=breaks))
    units = plan(SETTINGS, [dataset], ["value"], ["broken", "random"], seeds=1, tasks="g1").units
    broken, fine = run_all(SETTINGS, units, processes=1)
    assert broken.error == "RuntimeError: no luck"
    assert not broken.runs
    assert len(fine.runs) == 1


def test_what_was_learned_does_not_change_from_task_to_task(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if tasks share one learned object: what is tuned to one of them would be known in the next."""
    seen = []

    def tunes(space: Any, objective: Any, seed: int, learned: dict[str, list[str]]) -> Scripted:
        seen.append(list(learned["tasks"]))
        learned["tasks"].append("tuned")
        return Scripted(proposals=[], recommendations=[])

    register(monkeypatch, "tunes", SpyMethod(made=tunes))
    (unit,) = plan(SETTINGS, [dataset], ["value"], ["tunes"], seeds=1, tasks="f*").units
    assert len(run_unit(SETTINGS, unit)) == 2
    assert seen == [["g1", "h1"]] * 2


def test_equal_noise_for_all_searchers_and_other_for_other_tasks_and_seeds(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails if noise depends on the searcher, or is the same in two tasks or seeds: they would be luckily alike."""
    samplers = []

    def same(*_: object) -> Scripted:
        where: Configuration = {"x": 2, "mode": "a"}
        samplers.append(Scripted(proposals=[where], recommendations=[where]))
        return samplers[-1]

    for name in ("one", "two"):
        register(monkeypatch, name, SpyMethod(made=same))
    units = plan(SETTINGS, [dataset], ["value"], ["one", "two"], seeds=2, tasks="f*").units
    keys = [(unit.searcher, task, unit.seed) for unit in units for task in unit.tasks]
    for unit in units:
        run_unit(SETTINGS, unit)
    measured = dict(zip(keys, (sampler.observed[0].metrics["rps"] for sampler in samplers)))
    for task in ("f1", "f2"):
        for seed in (0, 1):
            assert measured["one", task, seed] == measured["two", task, seed]
    assert len(set(measured.values())) == 4


def test_tasks_are_not_searched_in_the_same_random_order(dataset: Dataset) -> None:
    """Fails if the sampler's seed is the run's alone: a lucky order would then be lucky in every task."""
    (unit,) = plan(SETTINGS, [dataset], ["value"], ["random"], seeds=1, tasks="f*").units
    first, second = run_unit(SETTINGS, unit)
    assert first.proposed != second.proposed
    assert run_unit(SETTINGS, unit)[0].proposed == first.proposed


def test_runs_survive_the_file(dataset: Dataset, tmp_path: Path) -> None:
    """Fails if a value is lost on the way, or a file with the promised keys alone cannot be read."""
    (unit,) = plan(SETTINGS, [dataset], ["value"], ["gp"], seeds=1, tasks="g1").units
    outcome = attempt(SETTINGS, unit)
    results = Results.open(tmp_path / "out.json", meta(dataset), restart=False)
    results.add(outcome.runs)
    (run,) = Results.read(tmp_path / "out.json").runs.values()
    assert run.to_dict() == outcome.runs[0].to_dict()
    promised = ["dataset", "objective", "searcher", "task", "family", "seed", "probes", "suggest_ms", "train_s"]
    promised += ["quality", "quality_clear"]
    short = Run.from_dict({name: value for name, value in run.to_dict().items() if name in promised})
    assert short.quality == run.quality
    assert short.label == "gp"


def test_progress_knows_slow_searchers(dataset: Dataset) -> None:
    """Fails if the estimate takes all searchers for equally slow, forgets the processes, or floods a log."""
    units = [
        Unit(dataset=dataset, objective="value", fold="f", tasks=("f1", "f2"), searcher=searcher, seed=seed)
        for searcher in ("quick", "slow")
        for seed in range(3 if searcher == "quick" else 2)
    ]
    now, out = [0.0], io.StringIO()
    progress = Progress(units, 2, out, clock=lambda: now[0])
    progress.tell(Outcome(unit=units[0], seconds=2.0))
    assert progress.left_s() == pytest.approx((4 * 1 + 4 * 1) / 2)  # of the slow one nothing is known yet
    now[0] = 1.0
    progress.tell(Outcome(unit=units[3], seconds=200.0, error="broke"))
    assert progress.left_s() == pytest.approx((4 * 1 + 2 * 100) / 2)
    said = out.getvalue().splitlines()
    assert said == [
        "2 of 10 runs, 0:00, about 0:04 left; quick on made-up, value, f, seed 0",
        "failed: slow on made-up, value, f, seed 0: broke",
    ]
    assert clock_text(3725) == "1:02:05"
