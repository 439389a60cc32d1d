import numpy as np
import pytest

from morphling_ray.errors import InputError, SpaceError
from morphling_ray.evaluate import Evaluator
from morphling_ray.evaluate.replay import ReplayEvaluator, SimulatedClock
from morphling_ray.objective import ExpressionObjective
from morphling_ray.space import Knob, SearchSpace
from morphling_ray.surface import Surface

OBJECTIVE = ExpressionObjective("o", "rps / (n + base)", ["ms <= 40"], metrics=["rps", "ms"])


def surface(order: tuple[str, str] = ("rps", "ms")) -> Surface:
    space = SearchSpace([Knob("n", tuple(range(1, 401)))])
    metrics = {"rps": 10.0 * np.arange(1, 401), "ms": np.full(400, 40.0)}
    feasible = np.ones(400, bool)
    feasible[1] = False
    for values in metrics.values():
        values[1] = np.nan
    metrics["ms"][2] = 41.0
    return Surface("t", "f", space, {name: metrics[name] for name in order}, feasible, {"base": 1.0})


def replay(noise: float = 0.03, seed: int = 0) -> ReplayEvaluator:
    return ReplayEvaluator(surface(), OBJECTIVE, noise=noise, seed=seed)


def test_without_noise_a_row_is_answered_as_recorded() -> None:
    """Fails if another row is looked up, or a metric is left out."""
    evaluator: Evaluator = replay(noise=0.0)
    measurement = evaluator.measure({"n": 5})
    assert measurement.configuration == {"n": 5}
    assert measurement.metrics == {"rps": 50.0, "ms": 40.0}
    assert measurement.feasible
    evaluator.close()


def test_infeasible_is_data() -> None:
    """Fails if NaN metrics are handed out, or an exception is raised."""
    measurement = replay().measure({"n": 2})
    assert measurement.infeasible_because == "recorded as infeasible"
    assert not measurement.metrics


def test_noise_does_not_depend_on_the_order_of_the_search() -> None:
    """Fails if one generator is shared by all configurations."""
    one, other = replay(), replay()
    forwards = {n: dict(one.measure({"n": n}).metrics) for n in (1, 3, 4, 5)}
    backwards = {n: dict(other.measure({"n": n}).metrics) for n in (5, 4, 3, 1)}
    assert forwards == backwards


def test_noise_does_not_depend_on_the_order_of_the_metrics() -> None:
    """Fails if draws are handed out in the order of the mapping."""
    turned = ReplayEvaluator(surface(("ms", "rps")), OBJECTIVE, noise=0.03, seed=0)
    assert turned.measure({"n": 7}).metrics == replay().measure({"n": 7}).metrics


def test_each_repeat_seed_and_configuration_has_its_own_noise() -> None:
    """Fails if seed, configuration or the count of repeats is left out of the generator's seed."""
    evaluator = replay()
    factors = [evaluator.measure({"n": 1}).metrics["rps"] / 10 for _ in range(3)]
    factors += [evaluator.measure({"n": 4}).metrics["rps"] / 40, replay(seed=1).measure({"n": 1}).metrics["rps"] / 10]
    assert len(set(factors)) == len(factors)


def test_noise_is_lognormal_of_the_size_asked_for_and_its_own_for_each_metric() -> None:
    """Fails if noise is added instead of multiplied, has another size, or is shared by the metrics of a row."""
    evaluator = replay(noise=0.1)
    measured = [evaluator.measure({"n": n}).metrics for n in range(3, 401)]
    rps = np.log([m["rps"] / (10 * n) for n, m in enumerate(measured, start=3)])
    ms = np.log([m["ms"] / (41 if n == 3 else 40) for n, m in enumerate(measured, start=3)])
    assert np.std(rps) == pytest.approx(0.1, rel=0.15)
    assert np.std(ms) == pytest.approx(0.1, rel=0.15)
    assert abs(np.mean(rps)) < 0.02
    assert abs(np.corrcoef(rps, ms)[0, 1]) < 0.2


def test_clock_advances_by_each_trial() -> None:
    """Fails if time stands still, also for an infeasible row, or if the clock that was passed is not used."""
    clock = SimulatedClock(now_s=5.0)
    evaluator = ReplayEvaluator(surface(), OBJECTIVE, seed=0, clock=clock, trial_s=30.0)
    evaluator.measure({"n": 1})
    assert evaluator.measure({"n": 2}).timings_s == {"replay": 30.0}
    assert clock.now_s == 65.0
    for seconds in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="at least 0"):
            clock.advance(seconds)


def test_truth_has_no_noise_and_counts_bounds() -> None:
    """Fails if noise, the task's constants or a bound go wrong: 50 / (5 + 1); row 2 failed; row 3 has 41 ms."""
    evaluator = replay()
    assert evaluator.truth({"n": 5}) == pytest.approx(50 / 6)
    assert evaluator.truth({"n": 2}) == 0.0
    assert evaluator.truth({"n": 3}) == 0.0


def test_progress_is_told_and_the_configuration_is_copied() -> None:
    """Fails if `progress` is ignored, or if a caller that changes its dict changes the measurement."""
    said: list[str] = []
    configuration: dict[str, int | float | str | bool] = {"n": 4}
    measurement = replay().measure(configuration, needed={"rps": 1e9}, confirm=True, progress=said.append)
    configuration["n"] = 1
    assert said == ["replaying"]
    assert measurement.configuration == {"n": 4}


def test_an_unknown_configuration_is_refused() -> None:
    """Fails if it is answered as infeasible: it was never recorded."""
    with pytest.raises(SpaceError, match="not in the space"):
        replay().measure({"n": 500})


@pytest.mark.parametrize("bad", [{"noise": -0.1}, {"noise": float("nan")}, {"seed": -1}, {"trial_s": -1.0}])
def test_illegal_arguments(bad: dict[str, float]) -> None:
    """Fails if they are found out only at the first measurement, or never."""
    with pytest.raises(InputError, match=f"{next(iter(bad))} must be at least 0"):
        ReplayEvaluator(surface(), OBJECTIVE, **{"seed": 0, **bad})  # type: ignore[arg-type]
