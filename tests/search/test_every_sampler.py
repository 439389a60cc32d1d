"""One suite for every search method, by name: whatever is registered must keep the promises of `Sampler`."""

import json
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic import OBJECTIVE, SPACE, Task, prior

from morphling_ray.errors import InputError
from morphling_ray.measurement import Measurement
from morphling_ray.search import SEARCHERS, Sampler, make_sampler
from morphling_ray.space import Configuration, Knob, SearchSpace

ROOT = Path(__file__).parents[2]
SLOW = {"vizier", "vizier-transfer"}  # seconds a suggestion: the library is stood in for here, and has tests of its own
STEPS = {"optuna-tpe": 12, "optuna-gp": 12, "bo": 11}  # until the model is used, where that is more than 6
SMALL = SearchSpace(
    [Knob("batch", (1, 8)), Knob("cores", (1, 2, 4)), Knob("build", ("fast", "new"), kind="categorical")]
)


@pytest.fixture(scope="module")
def prior_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prior") / "prior.npz"
    prior().save(path)
    return path


# One that takes nothing from earlier tasks is the same with a prior. Libraries have more time, for busy machines.
MADE = [
    pytest.param((name, with_prior), marks=[pytest.mark.timeout(60)] if method.needs else [])
    for name, method in SEARCHERS.items()
    for with_prior in ((False, True) if method.learn else (False,))
]


@pytest.fixture(params=MADE, ids=str)
def make(request: pytest.FixtureRequest, prior_file: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a sampler of one name, with or without a prior."""
    name, with_prior = request.param
    if not SEARCHERS[name].installed:
        pytest.skip(f"{name} needs {SEARCHERS[name].needs}")
    if name in SLOW:
        monkeypatch.setattr("morphling_ray.search.vizier_search.VizierSampler._ask", lambda self, free, value: free[-1])
    monkeypatch.setattr("morphling_ray.search.bundled_prior", lambda: None)
    return lambda space, seed=0: make_sampler(
        name, space, OBJECTIVE, seed=seed, prior=prior_file if with_prior else None
    )


def odd_measurement(step: int, configuration: Configuration) -> Measurement:
    """Everything that can come back from a trial, in turn."""
    rps = 50.0 + 10 * step
    kinds: list[dict[str, Any]] = [
        {"infeasible_because": "out of memory"},
        {"metrics": {"rps": rps, "latency_ms": 50.0}},
        {"metrics": {"rps": math.nan, "latency_ms": math.inf}},
        {},
        {"bounds": {"rps": (10.0, 40.0)}},
        {"metrics": {"rps": 12.0, "latency_ms": 50.0}, "bounds": {"rps": (12.0, 40.0)}},
        {"bounds": {"rps": (0.0, 30.0)}},
        {"metrics": {"rps": 0.0, "latency_ms": -1.0}},
        {"metrics": {"rps": rps}, "bounds": {"rps": (rps, None), "latency_ms": (5.0, None)}},
        {"metrics": {"rps": rps, "other": 1.0}},
        {"bounds": {"rps": (0.0, None)}},
        {"metrics": {"rps": rps, "latency_ms": 20.0, "other": 1.0}},
    ]
    return Measurement(configuration=configuration, **kinds[step % len(kinds)])


def suggested(sampler: Sampler) -> Configuration:
    configuration = sampler.suggest()
    assert configuration is not None
    return configuration


def run(sampler: Sampler, task: Task, steps: int) -> list[Configuration]:
    out = []
    for _ in range(steps):
        configuration = suggested(sampler)
        out.append(configuration)
        sampler.observe(configuration, task.measure(configuration))
    return out


def test_every_configuration_once_then_none(make: Any) -> None:
    """Fails if a suggestion repeats, leaves the space, is no native value, or trips over an odd measurement."""
    sampler: Sampler = make(SMALL)
    seen = []
    for step in range(len(SMALL)):
        configuration = suggested(sampler)
        assert configuration in SMALL
        assert all(type(value) in (int, float, str, bool) for value in configuration.values())
        json.dumps(configuration)
        seen.append(configuration)
        sampler.observe(configuration, odd_measurement(step, configuration))
        found = sampler.recommend()
        assert found is None or math.isfinite(found.objective)
    assert len({tuple(c.values()) for c in seen}) == len(SMALL)
    assert sampler.suggest() is None
    found = sampler.recommend()
    assert found is not None
    assert found.configuration in (seen[1], seen[11])  # the only ones measured in full and within the bound


def test_pending_suggestions_differ(make: Any) -> None:
    """Fails if what is being measured is suggested again before it is observed."""
    sampler: Sampler = make(SMALL)
    asked = [suggested(sampler) for _ in range(len(SMALL))]
    assert len({tuple(c.values()) for c in asked}) == len(SMALL)
    assert sampler.suggest() is None
    assert sampler.recommend() is None


def test_only_infeasible(make: Any) -> None:
    """Fails if a search without a single success breaks, or recommends what failed."""
    sampler: Sampler = make(SMALL)
    for _ in range(len(SMALL)):
        configuration = suggested(sampler)
        sampler.observe(configuration, Measurement(configuration=configuration, infeasible_because="crash"))
    assert sampler.recommend() is None
    assert sampler.finalists(2) == []


def test_a_configuration_from_outside(make: Any) -> None:
    """Fails if the user's present configuration cannot be learned from, or recommended, when it is not in the space."""
    sampler: Sampler = make(SMALL)
    present: Configuration = {"batch": 16, "cores": 3, "build": "own"}
    sampler.reserve(present)
    first = suggested(sampler)
    assert first in SMALL
    sampler.observe(present, Measurement(configuration=present, metrics={"rps": 500.0, "latency_ms": 20.0}))
    for configuration in (first, suggested(sampler)):
        assert configuration in SMALL
        sampler.observe(
            configuration, Measurement(configuration=configuration, metrics={"rps": 5.0, "latency_ms": 20.0})
        )
    found = sampler.recommend()
    assert found is not None
    assert found.configuration == present


def test_repeats_are_pooled(make: Any) -> None:
    """Fails if the first or the last of several measurements wins: the lucky one here is 50 % too high."""
    sampler: Sampler = make(SPACE)
    lucky, steady = SPACE[30], SPACE[31]
    for configuration, rps in ((lucky, 150.0), (steady, 120.0), (lucky, 90.0), (lucky, 95.0), (steady, 121.0)):
        sampler.reserve(configuration)
        cost = 0.5 + float(configuration["cores"])
        metrics = {"rps": rps * cost, "latency_ms": 20.0}
        sampler.observe(configuration, Measurement(configuration=configuration, metrics=metrics))
    found = sampler.recommend()
    assert found is not None
    assert found.configuration == steady
    assert sampler.finalists(1) == [steady]


def test_one_that_failed_again_is_not_recommended(make: Any) -> None:
    """Fails if a configuration that worked once and crashed when it was confirmed is still handed out."""
    sampler: Sampler = make(SMALL)
    for configuration, rps in ((SMALL[0], 500.0), (SMALL[1], 300.0)):
        sampler.reserve(configuration)
        sampler.observe(
            configuration, Measurement(configuration=configuration, metrics={"rps": rps, "latency_ms": 20.0})
        )
    sampler.observe(SMALL[0], Measurement(configuration=SMALL[0], infeasible_because="crash"))
    found = sampler.recommend()
    assert found is not None
    assert found.configuration == SMALL[1]


def test_pickle_in_the_middle(make: Any) -> None:
    """Fails if state is left behind by pickle."""
    task, sampler = Task(20), make(SPACE)
    run(sampler, task, 5)
    copy = pickle.loads(pickle.dumps(sampler))
    assert run(sampler, task, 2) == run(copy, task, 2)


def test_seeds(make: Any) -> None:
    """Fails if equal seeds differ: a second sampler must repeat the first."""
    assert run(make(SPACE, 3), Task(21), 7) == run(make(SPACE, 3), Task(21), 7)


PROGRAM = """
import sys
from pathlib import Path
from synthetic import OBJECTIVE, SPACE, Task
from morphling_ray.search import make_sampler
for name, steps in zip(sys.argv[2::2], sys.argv[3::2]):
    sampler = make_sampler(name, SPACE, OBJECTIVE, seed=4, prior=Path(sys.argv[1]))
    for _ in range(int(steps)):
        configuration = sampler.suggest()
        print(name, configuration)
        sampler.observe(configuration, Task(22).measure(configuration))
"""


@pytest.mark.timeout(120)
def test_other_process_with_other_hashes(prior_file: Path) -> None:
    """Fails if a proposal depends on the order of a set or a hash, or on what a library draws without a seed."""
    steps = {name: STEPS.get(name, 6) for name, method in SEARCHERS.items() if method.installed and name not in SLOW}
    names = [text for name, count in steps.items() for text in (name, str(count))]
    command, path = [sys.executable, "-c", PROGRAM, str(prior_file), *names], f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
    running = [
        subprocess.Popen(
            command, env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": path}, stdout=subprocess.PIPE, text=True
        )
        for seed in ("1", "77")
    ]
    said = [process.communicate(timeout=100)[0] for process in running]
    assert said[0] == said[1]
    assert said[0].count("\n") == sum(steps.values())


def test_a_very_large_space(make: Any) -> None:
    """Fails if the drawn part of the space is all that can ever be suggested, or the whole of it is modelled."""
    space = SearchSpace([Knob(n, tuple(range(1, 31))) for n in ("batch", "cores", "x")])  # 27,000 > MAX_POINTS
    sampler: Sampler = make(space)
    for step in range(2):
        configuration = suggested(sampler)
        assert configuration in space
        sampler.observe(configuration, odd_measurement(step, configuration))


def test_unknown_names_and_files(tmp_path: Path) -> None:
    """Fails if a wrong name or path is not refused in one line that helps."""
    with pytest.raises(InputError, match=r"unknown searcher 'bogus'; choose .*morphling.*random"):
        make_sampler("bogus", SPACE, OBJECTIVE, seed=0)
    with pytest.raises(InputError, match="does not exist"):
        make_sampler("morphling", SPACE, OBJECTIVE, seed=0, prior=tmp_path / "none.npz")


def test_import_is_light() -> None:
    """Fails if importing the registry imports a method, or a search with a stored prior needs torch."""
    code = "import sys, morphling_ray.search.morphling as m; print('torch' in sys.modules, 'ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == ["False", "False"]


def test_noise_does_not_need_to_be_zero(make: Any) -> None:
    """Fails if repeated noise breaks a factor: same point, conflicting values."""
    sampler: Sampler = make(SMALL)
    rng = np.random.default_rng(0)
    for _ in range(15):
        sampler.observe(SMALL[0], Task(0).measure(SMALL[0], rng.normal(0, 0.5, 2)))
    assert sampler.suggest() is not None


@pytest.mark.parametrize("name", ["morphling", "gp", "maml", "bo"])
def test_what_is_predicted_of_every_configuration(name: str, prior_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if predictions are in another order than the space, ignore what was measured, or are of something else."""
    if not SEARCHERS[name].installed:
        pytest.skip("not installed")
    monkeypatch.setattr("morphling_ray.search.bundled_prior", lambda: None)
    task = Task(3)
    sampler: Any = make_sampler(
        name, SPACE, OBJECTIVE, seed=0, prior=prior_file if name in ("morphling", "maml") else None
    )
    run(sampler, task, 24)
    predicted, truth = sampler.predict(), np.array([task.truth(c) for c in SPACE.configurations])
    assert predicted.shape == truth.shape
    assert np.corrcoef(predicted, truth)[0, 1] > 0.4  # in another order it would be about 0
