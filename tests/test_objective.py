from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from morphling_ray.errors import ExpressionError, InputError
from morphling_ray.objective import ExpressionObjective, Prices, ServingObjective, Slo

PRICES = Prices(base=0.2, cpu_core=0.02, gpu={"T4": 0.4, "V100": 2.6})


def test_price_of_a_replica_by_hand() -> None:
    """Fails if a term of Eq. 7 is dropped: 0.2 + 2.6 x 0.5 + 0.02 x 4 = 1.58 dollars an hour, times 3 replicas."""
    one = {"cpu_cores": 4, "gpu_type": "V100", "gpu_memory": 0.5}
    assert PRICES.cost_per_hour(one) == pytest.approx(1.58)
    assert PRICES.cost_per_hour({**one, "num_replicas": 3}) == pytest.approx(4.74)


def test_price_without_a_gpu_or_without_its_share() -> None:
    """Fails if the defaults change: one core, no GPU; a GPU without a share is a whole one."""
    assert PRICES.cost_per_hour({}) == pytest.approx(0.22)
    assert PRICES.cost_per_hour({"gpu_type": "T4"}) == pytest.approx(0.62)
    assert PRICES.cost_per_hour({"gpu_type": "T4", "num_gpus": 2}) == pytest.approx(1.02)


def test_price_of_many_configurations() -> None:
    """Fails if one GPU's price is used for all."""
    cost = PRICES.cost_per_hour({"gpu_type": np.array(["T4", "V100"]), "gpu_memory": np.array([1.0, 0.1])})
    np.testing.assert_allclose(cost, [0.62, 0.48])


def test_unpriced_gpu() -> None:
    """Fails if a KeyError escapes."""
    with pytest.raises(InputError, match="no price for GPU type H100; the price file knows T4, V100"):
        PRICES.cost_per_hour({"gpu_type": "H100"})


def test_bundled_prices_are_the_papers() -> None:
    """Fails if the file is not packaged or a figure of Table 2 changes."""
    prices = Prices.load()
    assert (prices.base, prices.cpu_core, prices.gpu) == (0.2, 0.02, {"T4": 0.4, "M60": 0.4, "V100": 2.6})


@pytest.mark.parametrize(
    "text",
    [
        "base: 1",
        "[]",
        "base: x\ncpu_core: 1",
        "base: -1\ncpu_core: 1",
        "base: 0\ncpu_core: 0",
        "a: b: c",
        "base: .nan\ncpu_core: 1",
    ],
)
def test_bad_price_file(tmp_path: Path, text: str) -> None:
    """Fails if a price file without sense is accepted, or an error does not name the file."""
    path = tmp_path / "my prices.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"my prices\.yaml"):
        Prices.load(str(path))


@pytest.mark.parametrize(
    "bound",
    [
        {"latency_s": 0.0},
        {"latency_s": float("nan")},
        {"percentile": 100.0},
        {"percentile": 0.0},
        {"max_error_rate": 1.0},
    ],
)
def test_illegal_slo(bound: dict[str, Any]) -> None:
    """Fails if a bound that everything or nothing meets can be built."""
    with pytest.raises(InputError, match="the SLO's"):
        Slo(**{"latency_s": 0.1, **bound})


def test_rps_per_dollar_is_equation_7() -> None:
    """Fails if the quotient is inverted: 158 rps at 1.58 dollars an hour is 100."""
    objective = ServingObjective("rps_per_dollar", PRICES)
    columns = {"cpu_cores": 4, "gpu_type": "V100", "gpu_memory": 0.5}
    assert objective(columns, {"peak_rps": 158.0}) == pytest.approx(100.0)
    assert ServingObjective("rps", PRICES)(columns, {"peak_rps": 158.0}) == 158.0


@pytest.mark.parametrize(
    ("peak", "copies"), [(1000.0, 1), (100.0, 1), (99.9, 2), (50.0, 2), (49.9, 3), (33.4, 3), (100.0 / 29, 29)]
)
def test_cheapest_buys_whole_copies(peak: float, copies: int) -> None:
    """Fails if copies are a fraction, are rounded down, or if 100 / (100 / 29) is rounded up to 30."""
    objective = ServingObjective("cheapest", PRICES, target_rps=100.0)
    value = float(objective({"cpu_cores": 2}, {"peak_rps": peak}))
    assert objective.copies(peak) == copies
    assert objective.reported(value) == pytest.approx(0.24 * copies)


def test_cheapest_of_nothing_is_worth_nothing() -> None:
    """Fails if a peak of 0 is divided by."""
    objective = ServingObjective("cheapest", PRICES, target_rps=100.0)
    np.testing.assert_array_equal(objective({}, {"peak_rps": np.zeros(2)}), [0, 0])


@given(
    st.sampled_from(ServingObjective.NAMES),
    st.floats(1, 500),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([1, 2, 4, 8]),
)
def test_needed_peak_is_where_the_objective_reaches_the_value(name: str, peak: float, cores: int, other: int) -> None:
    """Fails if `needed_peak_rps` and `__call__` disagree: a trial would be rejected although it can win."""
    objective = ServingObjective(name, PRICES, target_rps=120.0)
    incumbent = float(objective({"cpu_cores": cores}, {"peak_rps": peak}))
    needed = objective.needed_peak_rps({"cpu_cores": other}, incumbent)
    if np.isinf(needed):  # not even one copy is that cheap
        assert objective({"cpu_cores": other}, {"peak_rps": 1e6}) < incumbent
        return
    at, below = (float(objective({"cpu_cores": other}, {"peak_rps": needed * f})) for f in (1 + 1e-7, 1 - 1e-3))
    assert at >= incumbent * (1 - 1e-9)
    assert below < incumbent or (name == "cheapest" and needed >= 120.0)


def test_anything_beats_nothing() -> None:
    """Fails if a value of 0 is divided by: there is no incumbent then."""
    for name in ServingObjective.NAMES:
        assert ServingObjective(name, PRICES, 10.0).needed_peak_rps({}, 0.0) == 0.0


@pytest.mark.parametrize(
    ("name", "rps"), [("fastest", None), ("cheapest", None), ("cheapest", 0.0), ("cheapest", -1.0)]
)
def test_illegal_serving_objective(name: str, rps: float | None) -> None:
    """Fails if `cheapest` can be asked for without a rate, or an unknown name is accepted."""
    with pytest.raises(InputError):
        ServingObjective(name, PRICES, rps)


def expression(maximize: str = "rps / cost", *bounds: str) -> ExpressionObjective:
    return ExpressionObjective(
        "slo", maximize, bounds, metrics=["rps", "ms", "unused"], cost="n + extra", constants={"base_ms": 10.0}
    )


def test_expression_objective_by_hand() -> None:
    """Fails if cost, constants or a bound are left out: 60 / (2 + 1) = 20; the second breaks 41 <= 4 * 10."""
    columns = {"n": np.array([2, 2]), "extra": np.array([1.0, 1.0])}
    metrics = {"rps": np.array([60.0, 60.0]), "ms": np.array([40.0, 41.0])}
    objective = expression("rps / cost", "ms <= 4 * base_ms")
    np.testing.assert_allclose(objective(columns, metrics), [20.0, 0.0])
    np.testing.assert_allclose(objective.slack(columns, metrics), [0.0, -0.025])
    assert objective.metrics == ("rps", "ms")


def test_the_smallest_margin_counts() -> None:
    """Fails if slack is that of the first bound, or a mean."""
    objective = expression("rps", "ms <= 100", "rps >= 50")
    assert objective.slack({"n": 1, "extra": 0}, {"rps": 100.0, "ms": 90.0}) == pytest.approx(0.1)
    assert expression("rps").slack({"n": 1, "extra": 0}, {"rps": 1.0}) == np.inf


def test_draws_broadcast_and_what_is_not_finite_is_worth_nothing() -> None:
    """Fails if NaN of an infeasible row reaches the search."""
    rps = np.array([[1.0, np.nan], [2.0, 3.0]])
    np.testing.assert_array_equal(
        expression("rps")({"n": np.ones(2), "extra": np.ones(2)}, {"rps": rps}), [[1, 0], [2, 3]]
    )


@pytest.mark.parametrize("bound", ["ms", "ms == 4", "'x' <= gpu", "open('x')"])
def test_a_bound_must_be_a_bound(bound: str) -> None:
    """Fails if the constructor does not try its bounds."""
    with pytest.raises(ExpressionError):
        expression("rps", bound)
