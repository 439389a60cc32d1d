"""The searcher for ordinary trainables: against the class alone, and once in a real Tune run."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from synthetic import OBJECTIVE, SPACE, Task, prior

from morphling_ray.errors import InputError, StoreError
from morphling_ray.space import Configuration, Knob, SearchSpace

pytest.importorskip("ray.tune")
from ray.tune.search import ConcurrencyLimiter  # after the check that Ray is there

from morphling_ray.search.tune_searcher import MorphlingSearcher

TASK = Task(20)
SMALL = {"batch": [1, 8], "cores": [1, 2, 4]}


def report(configuration: Configuration) -> dict[str, float]:
    return dict(TASK.measure(configuration).metrics)


def asked(searcher: Any, trial: str) -> Configuration:
    config = searcher.suggest(trial)
    assert isinstance(config, dict)
    return config


def run(searcher: MorphlingSearcher, trials: range) -> list[Configuration]:
    out = []
    for n in trials:
        configuration = asked(searcher, f"t{n}")
        out.append(configuration)
        searcher.on_trial_complete(f"t{n}", report(configuration))
    return out


@pytest.fixture
def prior_file(tmp_path: Path) -> Path:
    prior().save(tmp_path / "prior.npz")
    return tmp_path / "prior.npz"


def test_finds_the_best_and_says_when_there_is_no_more(prior_file: Path) -> None:
    """Fails if the objective, the prior or the bound does not reach the method, or the end is not FINISHED."""
    searcher = MorphlingSearcher(SPACE, objective=OBJECTIVE, prior=prior_file)
    run(searcher, range(8))
    found = searcher.recommendation()
    assert found is not None
    assert TASK.truth(found.configuration) >= 0.95 * TASK.best()
    small = MorphlingSearcher(SMALL, metric="rps", searcher="random")
    assert len({tuple(c.values()) for c in run(small, range(6))}) == 6
    assert small.suggest("one more") == MorphlingSearcher.FINISHED


@pytest.mark.parametrize(("mode", "best"), [("max", 8), ("min", 1)])
def test_metric_and_mode(mode: str, best: int) -> None:
    """Fails if min maximises; also with a metric whose name is no word of an expression."""
    searcher = MorphlingSearcher({"x": [1, 2, 4, 8]}, metric="p99/ms", mode=mode, searcher="gp")
    for n in range(4):
        configuration = asked(searcher, str(n))
        searcher.on_trial_complete(str(n), {"p99/ms": 10.0 * float(configuration["x"])})
    found = searcher.recommendation()
    assert found is not None
    assert found.configuration == {"x": best}


def test_the_metric_may_come_from_tune() -> None:
    """Fails if TuneConfig(metric=...) is ignored, or silently replaces another metric."""
    searcher = MorphlingSearcher(SMALL, searcher="random")
    with pytest.raises(InputError, match="needs a metric"):
        searcher.suggest("a")
    assert searcher.set_search_properties("rps", "max", {})
    asked(searcher, "a")
    assert not searcher.set_search_properties("latency_ms", "min", {})


@pytest.mark.parametrize(
    "result", [None, {}, {"rps": None}, {"rps": float("nan")}, {"rps": 0.0}, {"rps": -3.0}, {"rps": float("inf")}]
)
def test_a_trial_without_a_usable_result_does_not_work(result: dict[str, Any] | None) -> None:
    """Fails if None, NaN or 0 raises, is recommended, or is suggested again."""
    searcher = MorphlingSearcher(SMALL, metric="rps", searcher="gp")
    first = asked(searcher, "a")
    searcher.on_trial_complete("a", result)
    searcher.on_trial_complete("a", result)  # Tune may say it twice
    assert searcher.recommendation() is None
    assert asked(searcher, "b") != first
    searcher.on_trial_complete("b", {"rps": 5.0}, error=True)
    assert searcher.recommendation() is None


def test_points_to_evaluate_and_what_is_known() -> None:
    """Fails if given points are not first, or known ones are tried again or forgotten."""
    known = [({"batch": 1, "cores": 1}, {"rps": 10.0}), ({"batch": 8, "cores": 4}, {"rps": 90.0})]
    first: list[Configuration] = [{"batch": 8, "cores": 2}, {"batch": 1, "cores": 4}]
    searcher = MorphlingSearcher(SMALL, metric="rps", points_to_evaluate=first, evaluated=known, searcher="gp")
    found = searcher.recommendation()
    assert found is not None
    assert found.configuration == {"batch": 8, "cores": 4}
    tried = [asked(searcher, str(n)) for n in range(4)]
    assert tried[:2] == first
    assert not [c for c in tried if c in [k for k, _ in known]]
    assert searcher.suggest("x") == MorphlingSearcher.FINISHED
    searcher.add_evaluated_point({"batch": 8, "cores": 2}, 500.0)
    better = searcher.recommendation()
    assert better is not None
    assert better.configuration == {"batch": 8, "cores": 2}
    with pytest.raises(InputError, match="lacks cores"):
        MorphlingSearcher(SMALL, metric="rps", points_to_evaluate=[{"batch": 1}])


@pytest.mark.parametrize("method", ["morphling", "random"])
def test_save_and_restore_in_the_middle_goes_on_the_same(tmp_path: Path, prior_file: Path, method: str) -> None:
    """Fails if a restored search repeats, skips or forgets a trial, running ones included."""

    def new() -> MorphlingSearcher:
        return MorphlingSearcher(SPACE, objective=OBJECTIVE, prior=prior_file, searcher=method, seed=3)

    search = new()
    run(search, range(3))
    running = asked(search, "running")
    search.save_to_dir(str(tmp_path), "first")
    search.save_to_dir(str(tmp_path), "first")
    restored = new()
    restored.restore_from_dir(str(tmp_path))
    for one in (search, restored):
        one.on_trial_complete("running", report(running))
    assert run(search, range(4, 7)) == run(restored, range(4, 7))
    other = MorphlingSearcher(SMALL, metric="rps", searcher="random")
    with pytest.raises(StoreError, match="not the state of this search"):
        other.restore_from_dir(str(tmp_path))


def test_concurrency_and_batches(prior_file: Path) -> None:
    """Fails if a pending trial is proposed again, or a limiter's batch is not passed on whole."""
    inner = MorphlingSearcher(SPACE, objective=OBJECTIVE, prior=prior_file)
    limited = ConcurrencyLimiter(inner, max_concurrent=3, batch=True)
    batch = [asked(limited, str(n)) for n in range(3)]
    assert len({tuple(c.values()) for c in batch}) == 3
    assert limited.suggest("early") is None
    for n, configuration in enumerate(batch):
        limited.on_trial_complete(str(n), report(configuration))
    assert asked(limited, "next") not in batch


def test_the_end_when_it_is_sure(prior_file: Path) -> None:
    """Fails if the stopping rule is not asked, or stops before anything is known."""
    searcher = MorphlingSearcher(SPACE, objective=OBJECTIVE, prior=prior_file, stop_probability=0.9)
    for n in range(len(SPACE)):
        config = searcher.suggest(str(n))
        if config == MorphlingSearcher.FINISHED:
            break
        assert isinstance(config, dict)
        searcher.on_trial_complete(str(n), report(config))
    assert 1 <= n < 25
    found = searcher.recommendation()
    assert found is not None
    assert found.p_near_best is not None
    assert found.p_near_best >= 0.9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metric": "rps", "objective": OBJECTIVE}, "either a metric"),
        ({"metric": "rps", "searcher": "bogus"}, "unknown searcher"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    """Fails if a contradiction is not said at once."""
    with pytest.raises(InputError, match=message):
        MorphlingSearcher(SearchSpace([Knob("x", (1, 2))]), **arguments)


PAGE = Path(__file__).parents[2] / "docs" / "searchers.md"
# Ray alone starts no worker where the path of the interpreter has a space in it; see `quoted_python`.
START = """
import ray
from morphling_ray.cluster import quoted_python
python = quoted_python()
ray.init(address="local", num_cpus=2, runtime_env={"py_executable": python} if python else None)
"""
PROGRAM = """
def fragile(config):
    if config["batch"] == 64:
        raise MemoryError("too large")
    tune.report({"rps": config["batch"] / (1 + 0.02 * config["batch"] ** 2) * config["cores"] ** 0.5 * config["gain"]})

search = MorphlingSearcher(space, metric="rps", seed=1)
tuner = tune.Tuner(
    tune.with_resources(fragile, {"cpu": 0.1}),
    param_space={"gain": 3.0},
    tune_config=tune.TuneConfig(search_alg=search, num_samples=8, max_concurrent_trials=2, reuse_actors=True),
    run_config=tune.RunConfig(name="run", verbose=0),
)
results = tuner.fit()
best = results.get_best_result("rps", "max").config
print(best["batch"], best["cores"], len(results))
"""


@pytest.mark.serve
@pytest.mark.timeout(240)
def test_under_a_real_tuner(tmp_path: Path) -> None:
    """Fails if Tune cannot drive it: as on its page; then two trials at once, one that dies, a constant beside."""
    blocks = [b for b in re.findall(r"```python ray\n(.*?)```", PAGE.read_text(), re.S) if "MorphlingSearcher" in b]
    done = subprocess.run(
        [sys.executable, "-c", f"{START}\n{blocks[0]}\n{PROGRAM}"],
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "HOME": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=230,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "{'batch': 8, 'cores': 4}" in done.stdout
    assert done.stdout.strip().splitlines()[-1] == "8 4 8"
