"""The adapter to Ray Tune, without a cluster: only the class is used."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from synthetic import OBJECTIVE, SPACE, Task

from morphling_ray.errors import StoreError
from morphling_ray.measurement import Comparison, Measurement
from morphling_ray.objective import Prices, ServingObjective
from morphling_ray.search.random import RandomSampler
from morphling_ray.search.session import Ask, SearchSession
from morphling_ray.space import Configuration, Knob, SearchSpace

pytest.importorskip("ray.tune")
from morphling_ray.search.ray_searcher import SessionSearcher  # after the check that Ray is there

TASK = Task(20)


def searcher(trials: int = 8, **callbacks: Any) -> SessionSearcher:
    sampler = RandomSampler(SPACE, OBJECTIVE, seed=0)
    settings: dict[str, Any] = {"max_trials": trials, "time_budget_s": None, "clock": lambda: 0.0, "confirm": 2}
    return SessionSearcher(SearchSession(SPACE, OBJECTIVE, sampler, give_up_after=0, **settings), **callbacks)


def result(config: dict[str, Any]) -> dict[str, Any]:
    return {"measurement": json.dumps(TASK.measure(config["configuration"]).to_dict()), "done": True}


def test_a_whole_search() -> None:
    """Fails if the config lacks a key, ids are mixed up, or the end is not said with FINISHED."""
    asked: list[Ask] = []
    told: list[tuple[int, Measurement, float | None]] = []
    search = searcher(on_ask=asked.append, on_trial=lambda *trial: told.append(trial))
    assert search.set_search_properties("objective", "max", {})
    for n in range(1, 9):
        config = search.suggest(f"id-{n}")
        if config == SessionSearcher.FINISHED:
            break
        assert isinstance(config, dict)
        assert set(config) == {"number", "configuration", "stage", "needed", "exact"}
        assert config["number"] == n
        search.on_trial_complete(f"id-{n}", result(config))
    assert search.suggest("one more") == SessionSearcher.FINISHED
    assert [a.number for a in asked] == [number for number, _, _ in told]
    for _, measurement, objective in told:
        assert objective == (TASK.truth(measurement.configuration) or None)


def equals(**callbacks: Any) -> SessionSearcher:
    """A search in a space whose configurations are all about equally good, so that there are two finalists."""
    space = SearchSpace([Knob("cpu_cores", (1, 2, 3, 4))])
    objective = ServingObjective("rps_per_dollar", Prices(base=0.0, cpu_core=1.0, gpu={}))
    sampler = RandomSampler(space, objective, seed=0)
    session = SearchSession(space, objective, sampler, max_trials=8, time_budget_s=None, clock=lambda: 0.0, confirm=2)
    return SessionSearcher(session, **callbacks)


def equal(configuration: Configuration) -> Measurement:
    peak_rps = 99.0 * int(configuration["cpu_cores"]) + 1
    return Measurement(configuration=configuration, metrics={"peak_rps": peak_rps})


def compared(config: dict[str, Any]) -> dict[str, Any]:
    """The result of a comparison, which the first one wins."""
    one, other = (equal(c["configuration"]) for c in (config, config["rival"]))
    rival = config["rival"]["configuration"]
    seen = Comparison(rival=rival, ratio=1.1, sd=0.02, rounds=4, p_better=0.99, tie=False, won=True)
    sides = replace(one, comparison=seen), replace(other, comparison=seen.mirrored(config["configuration"]))
    return dict(zip(("measurement", "rival"), (json.dumps(m.to_dict()) for m in sides)))


def beginning_of_a_comparison(**callbacks: Any) -> tuple[SessionSearcher, dict[str, Any]]:
    """A search whose next trial is a comparison, and the config of that."""
    search = equals(**callbacks)
    for n in range(4):
        config = search.suggest(f"id-{n}")
        assert isinstance(config, dict)
        measured = json.dumps(equal(config["configuration"]).to_dict())
        search.on_trial_complete(f"id-{n}", {"measurement": measured})
    config = search.suggest("last")
    assert isinstance(config, dict)
    assert set(config["rival"]) == {"number", "configuration", "stage", "needed", "exact"}
    return search, config


def test_a_comparison_is_one_trial_to_tune_and_two_to_everybody_else() -> None:
    """Fails if one of its sides is not told, is told under the other's number, or is not shown as running."""
    asked: list[Ask] = []
    told: list[tuple[int, Measurement, float | None]] = []
    search, config = beginning_of_a_comparison(on_ask=asked.append, on_trial=lambda *trial: told.append(trial))
    first, second = config["number"], config["rival"]["number"]
    assert [a.number for a in asked[-2:]] == [first, second] == [first, first + 1]
    search.on_trial_complete("last", compared(config))
    assert [(number, m.configuration) for number, m, _ in told[-2:]] == [
        (first, config["configuration"]),
        (second, config["rival"]["configuration"]),
    ]
    assert told[-1][1].comparison is not None
    assert not told[-1][1].comparison.won
    assert search.suggest("one more") == SessionSearcher.FINISHED
    found = search.session.recommendation()
    assert found is not None
    assert found.configuration == config["configuration"]


def test_a_comparison_that_died_leaves_two_infeasible_trials() -> None:
    """Fails if the side that was not Tune's own is waited for in vain."""
    told: list[Measurement] = []
    search, _ = beginning_of_a_comparison(on_trial=lambda number, measurement, objective: told.append(measurement))
    search.on_trial_complete("last", None, error=True)
    assert ["error" in m.infeasible_because for m in told[-2:]] == [True, True]
    assert search.session.finished


def test_a_comparison_survives_save_and_restore(tmp_path: Path) -> None:
    """Fails if the rival of a running trial is lost, so that the restored search waits for it or forgets it."""
    search, config = beginning_of_a_comparison()
    search.save_to_dir(str(tmp_path), "one")
    again = equals()
    again.restore_from_dir(str(tmp_path))
    assert [a.number for a in again.session.outstanding] == [a.number for a in search.session.outstanding]
    again.on_trial_complete("last", compared(config))
    assert again.session.finished


def test_none_while_it_depends_on_what_is_running() -> None:
    """Fails if Tune is told FINISHED, which it takes as final, before finalists are known."""
    search = searcher(trials=5)
    configs = [search.suggest(str(n)) for n in range(3)]
    assert search.suggest("early") is None
    for n, config in enumerate(configs):
        assert isinstance(config, dict)
        search.on_trial_complete(str(n), result(config))
    late = search.suggest("late")
    assert isinstance(late, dict)
    assert late["stage"] == "confirm"


@pytest.mark.parametrize(
    ("outcome", "error", "reason"),
    [
        (None, True, "error"),
        (None, False, "without a measurement"),
        ({}, False, "without a measurement"),
        ({"measurement": "{half"}, False, "no readable"),
        ({"measurement": "[]"}, False, "no readable"),
        ({"measurement": 7}, False, "no readable"),
    ],
)
def test_a_trial_that_died_is_infeasible(outcome: dict[str, Any] | None, error: bool, reason: str) -> None:
    """Fails if a crash of one trial raises into Tune and ends the search."""
    told: list[Measurement] = []
    search = searcher(on_trial=lambda number, measurement, objective: told.append(measurement))
    config = search.suggest("a")
    search.on_trial_complete("a", outcome, error=error)
    search.on_trial_complete("a", outcome, error=error)  # Tune may say it twice
    search.on_trial_complete("never ours", None)
    assert len(told) == 1
    assert reason in told[0].infeasible_because
    assert isinstance(config, dict)
    assert told[0].configuration == config["configuration"]
    assert isinstance(search.suggest("b"), dict)


def test_save_and_restore(tmp_path: Path) -> None:
    """Fails if a restored search repeats, skips or renumbers a trial, or forgets one that was running."""
    search, ids = searcher(), iter("abcdefghijkl")
    for _ in range(3):
        trial = next(ids)
        config = search.suggest(trial)
        assert isinstance(config, dict)
        search.on_trial_complete(trial, result(config))
    running = search.suggest("running")
    search.save_to_dir(str(tmp_path), "first")
    search.save_to_dir(str(tmp_path), "first")
    assert os.listdir(tmp_path) == ["searcher-state-first.json"]
    again = searcher()
    again.restore_from_dir(str(tmp_path))
    for one in (search, again):
        assert isinstance(running, dict)
        one.on_trial_complete("running", result(running))
    assert search.suggest("next") == again.suggest("next")
    assert again.session.outstanding[0].number == 5


@pytest.mark.parametrize("text", ["", "{}", '{"format": "other"}', '{"format": "morphling_ray searcher 1", "told": 3}'])
def test_a_foreign_state_is_refused(tmp_path: Path, text: str) -> None:
    """Fails if junk ends in another exception."""
    path = tmp_path / "state.json"
    path.write_text(text)
    with pytest.raises(StoreError, match="not the state of a search"):
        searcher().restore(str(path))
