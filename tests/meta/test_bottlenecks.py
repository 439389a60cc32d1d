"""Bottlenecks: a law with moving turning points is found, and tells of a task that is like none before."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from morphling_ray.errors import PriorError
from morphling_ray.measurement import Measurement
from morphling_ray.meta.bottlenecks import Bottlenecks, Drawn, Hats
from morphling_ray.meta.ensemble import Ensemble
from morphling_ray.meta.fit import fit_prior
from morphling_ray.meta.gaussian import NOTHING, Observations
from morphling_ray.meta.prior import Prior
from morphling_ray.meta.tasks import TrainingTask
from morphling_ray.objective import ExpressionObjective
from morphling_ray.search.history import History
from morphling_ray.search.surrogate import Surrogate
from morphling_ray.space import Knob, SearchSpace

KNOBS = (
    Knob("cores", (1, 2, 3, 4, 5)),
    Knob("batch", (1, 2, 4, 8, 16, 32, 64), scale="log"),
    Knob("gpu", ("small", "large"), kind="categorical"),
)
SPACE = SearchSpace(KNOBS)
CORES, BATCH = (np.array([float(c[k]) for c in SPACE.configurations]) for k in ("cores", "batch"))
SPEED = np.array([{"small": 1.0, "large": 4.0}[str(c["gpu"])] for c in SPACE.configurations])
OBJECTIVE = ExpressionObjective("rps", "rps", [], metrics=("rps",), cost=None)


def rates(cpu_ms: float, launch_ms: float, gpu_ms: float) -> np.ndarray:
    """Requests a second: the slower of the cores and of a GPU that starts up for each batch."""
    return 1e3 / np.maximum(cpu_ms / CORES, launch_ms / BATCH + gpu_ms / SPEED)


def works(memory: float) -> np.ndarray:
    """A batch fails if it does not fit; the large card has four times the memory."""
    return BATCH * memory <= 40 * SPEED


def task(number: int) -> TrainingTask:
    rng = np.random.default_rng([3, number])
    needs = np.exp(rng.normal(np.log([4.0, 10.0, 3.0]), 1.0))
    fits = works(float(np.exp(rng.normal(0.5, 1.0))))
    rps = np.where(fits, rates(*needs), np.nan)
    return TrainingTask(f"task-{number}", f"task-{number}", KNOBS, SPACE.configurations, {"rps": rps}, fits)


@cache
def prior() -> Prior:
    return fit_prior([task(i) for i in range(8)], seed=0)


def learned() -> Bottlenecks:
    found = prior().bottlenecks
    assert found is not None
    return found


def test_the_law_is_found_and_that_it_is_a_rate() -> None:
    assert learned().misfit[0] < 0.06
    assert learned().power[0] < 0
    latency = [replace(t, metrics={"rps": 1 / t.metrics["rps"]}) for t in (task(i) for i in range(8))]
    found = fit_prior(latency, seed=0).bottlenecks
    assert found is not None
    assert found.power[0] > 0


def test_a_task_whose_limits_lie_elsewhere_is_foretold_from_a_few_rows() -> None:
    """Fails without the bottlenecks: mixtures of two earlier tasks miss where the cores stop to matter."""
    truth = np.log(rates(40.0, 2.0, 12.0))
    rows = np.array([0, 25, 44, 69])
    obs = Observations(rows, np.zeros(4, int), truth[rows], np.full(4, 1e-4))
    everything = prior().hypotheses(SPACE.configurations, KNOBS, ["rps"])

    def off(prefix: str) -> float:
        some = [h for h in everything if h.name.startswith(prefix)]
        ensemble = Ensemble(some, obs, [0.0] * len(some))
        return float(np.median(np.abs(ensemble.mean(np.arange(len(SPACE)))[:, 0] - truth)))

    assert off("bottlenecks") < 0.1
    assert off("bottlenecks") < 0.5 * off("mixture")


def test_outcomes_tell_where_others_fail() -> None:
    """Fails if what fails on the small card says nothing of the large one."""
    fits, rps = works(4.0), rates(4.0, 10.0, 3.0)  # 8 on the small card, 32 on the large one

    def chances(learned: Prior) -> np.ndarray:
        history = History(SPACE, OBJECTIVE, np.random.default_rng(0))
        surrogate = Surrogate(history, learned)
        for point in (SPACE.index({"cores": 2, "batch": b, "gpu": "small"}) for b in (1, 8, 16)):
            why = "" if fits[point] else "out of memory"
            metrics = {"rps": float(rps[point])} if fits[point] else {}
            told = Measurement(configuration=SPACE[point], metrics=metrics, infeasible_because=why)
            history.tell(SPACE[point], told)
        belief = surrogate.belief()
        assert belief is not None
        return np.asarray(belief.works(256, np.arange(len(SPACE))).mean(0))

    told = np.log(np.where(fits, chances(prior()), 1 - chances(prior()))).sum()
    without = replace(prior(), bottlenecks=None)
    assert told > np.log(np.where(fits, chances(without), 1 - chances(without))).sum() + 5
    small = chances(prior())[[SPACE.index({"cores": 5, "batch": b, "gpu": "small"}) for b in (4, 64)]]
    assert small[0] > 0.8
    assert small[1] < 0.1


def test_drawn_tasks_are_what_the_formula_says() -> None:
    bottlenecks = Bottlenecks(
        effects=np.array([[[0.0, 1.0], [2.0, 0.0]]]),
        needs=np.array([[[-1.0, -2.0], [-1.0, -2.0]]]),
        power=np.array([-1.0]),
        misfit=np.array([0.1]),
        wall_effects=np.array([[0.0, 3.0]]),
        wall_needs=np.array([[-1.0], [-1.0]]),
    )
    hats = np.array([[1.0, 0.0], [0.5, 0.5]])
    drawn = bottlenecks.drawn(np.array([[1.0, 0.0]]), hats, [0])  # two equal tasks: nothing to stray by
    expected = -np.log(np.exp(-1.0 + hats @ [0.0, 1.0]) + np.exp(-2.0 + hats @ [2.0, 0.0]))
    np.testing.assert_allclose(drawn.at(np.array([0]), np.array([0, 1]))[0], expected)
    obs = Observations(np.array([1]), np.array([0]), np.zeros(1), np.zeros(1))
    np.testing.assert_allclose(drawn.observed(obs), expected[None, 1:])
    assert drawn.observed(NOTHING).shape == (1, 0)
    wall = np.exp(-1.0 + hats @ [0.0, 3.0])
    np.testing.assert_allclose(drawn.works(None, np.array([0, 1]))[0], 1 / (1 + wall))
    assert isinstance(drawn, Drawn)


def test_hats_are_straight_between_knots_and_beyond() -> None:
    hats = Hats(np.array([[0.0], [1.0], [3.0]]))
    weights = np.array([5.0, 7.0, 3.0])
    z = np.array([[0.0], [0.5], [2.0], [4.0], [-1.0]])
    np.testing.assert_allclose(hats(z) @ weights, [5.0, 6.0, 5.0, 1.0, 3.0])
    assert Hats(np.array([[2.0], [2.0]]))(z).shape == (5, 1)


def test_they_are_kept_in_the_file_and_checked(tmp_path: Path) -> None:
    prior().save(tmp_path / "prior.npz")
    back = Prior.load(tmp_path / "prior.npz").bottlenecks
    assert back is not None
    for name, values in vars(learned()).items():
        np.testing.assert_array_equal(getattr(back, name), values)
    broken = replace(prior(), bottlenecks=replace(learned(), needs=learned().needs[:, :3]))
    broken.save(tmp_path / "broken.npz")
    with pytest.raises(PriorError, match="needs of the bottlenecks"):
        Prior.load(tmp_path / "broken.npz")


def test_two_tasks_are_too_few() -> None:
    assert fit_prior([task(0), task(1)], seed=0).bottlenecks is None
