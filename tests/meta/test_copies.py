"""That replicas are copies is known before anything is measured, and given up where it is not so."""

import numpy as np
import pytest
from synthetic import KNOBS, SPACE, prior

from morphling_ray.meta.copies import SCALING, scaling, scaling_knobs
from morphling_ray.meta.ensemble import Ensemble, Hypothesis
from morphling_ray.meta.gaussian import NOTHING, Observations
from morphling_ray.space import Knob, SearchSpace

REPLICAS = Knob("num_replicas", (1, 2, 4, 8, 16), scale="log")
METRICS = ("latency_ms", "rps")


def expected(hypotheses: list[Hypothesis], obs: Observations = NOTHING) -> np.ndarray:
    """Posterior means of log-metrics, shape `(n, M)`."""
    ensemble = Ensemble(hypotheses, obs, [0.0] * len(hypotheses))
    return ensemble.mean(np.arange(hypotheses[0].covariance.inputs[0].shape[0]))


def of_two() -> tuple[SearchSpace, list[Hypothesis]]:
    """A space with replicas of two deployments, and what is believed of it."""
    knobs = [
        *KNOBS[:2],
        Knob("deployments.Front.num_replicas", (1, 2, 4)),
        Knob("deployments.Model.num_replicas", (1, 4)),
    ]
    space = SearchSpace(knobs)
    return space, prior().hypotheses(space.configurations, space.knobs, METRICS)


def test_which_knobs_are_replicas() -> None:
    """Fails if another knob is taken for a number of replicas, or one of a named deployment is not."""
    model = Knob("deployments.Model.num_replicas", (1, 2))
    assert scaling_knobs([REPLICAS, model, Knob("replicas", (1, 2)), *KNOBS]) == [REPLICAS.name, model.name]
    assert scaling_knobs([Knob("num_replicas", (2,)), Knob("num_replicas", ("auto", 1), kind="categorical")]) == []


def test_only_rates_grow_with_replicas() -> None:
    """Fails if a latency is expected to, or if a rate is not."""
    added = scaling([{"num_replicas": 1}, {"num_replicas": 8}], "num_replicas", ("p99_ms", "peak_rps", "rps"))
    assert added == pytest.approx(np.array([[0.0, 0.0, 0.0], [0.0, SCALING * np.log(8), SCALING * np.log(8)]]))


def test_more_replicas_are_expected_to_serve_more() -> None:
    """Fails if replicas are a knob like any other, of which nothing is known."""
    space = SearchSpace([*KNOBS, REPLICAS])
    mean = expected(prior().hypotheses(space.configurations, space.knobs, METRICS))
    replicas = space.columns["num_replicas"]
    gain = mean[replicas == 16].mean(0) - mean[replicas == 1].mean(0)
    assert gain[METRICS.index("rps")] > 0.6 * np.log(16)
    assert abs(gain[METRICS.index("latency_ms")]) < 0.1


def test_the_law_is_given_up_where_it_does_not_hold() -> None:
    """Fails if measurements that show no gain from replicas leave the search expecting one."""
    space = SearchSpace([*KNOBS, REPLICAS])
    hypotheses = prior().hypotheses(space.configurations, space.knobs, ["rps"])
    replicas = space.columns["num_replicas"]
    before = expected(hypotheses)[:, 0] - SCALING * np.log(replicas)
    kind = [(c["batch"], c["build"]) == (8, "fast") for c in space.configurations]
    rows = np.flatnonzero(np.array(kind) & np.isin(replicas, (1, 4, 16)))
    flat = Observations(rows, np.zeros(len(rows), int), before[rows], np.full(len(rows), 0.03**2))
    mean = expected(hypotheses, flat)[:, 0]
    other = np.array([(c["batch"], c["build"]) == (2, "fast") for c in space.configurations])
    gain = mean[other & (replicas == 16)].mean() - mean[other & (replicas == 1)].mean()
    assert gain < 0.3 * np.log(16)


def test_which_of_two_deployments_limits_is_learned() -> None:
    """Fails if both are expected to, whatever was measured."""
    space, hypotheses = of_two()
    front, model = (space.columns[f"deployments.{name}.num_replicas"] for name in ("Front", "Model"))
    before = expected(hypotheses)[:, 1]
    same = (space.columns["batch"] == 8) & (space.columns["cores"] == space.columns["cores"].max())
    rows = np.flatnonzero(same & np.isin(front, (1, 4)))
    values = before[same].mean() + np.log(model[rows])  # only those of the model add anything
    seen = Observations(rows, np.ones(len(rows), int), values, np.full(len(rows), 0.03**2))
    mean = expected(hypotheses, seen)[:, 1]
    other = space.columns["batch"] == 2

    def gain(knob: np.ndarray, fixed: np.ndarray) -> float:
        return float(mean[other & (knob == 4) & (fixed == 1)].mean() - mean[other & (knob == 1) & (fixed == 1)].mean())

    assert gain(model, front) > 0.7 * np.log(4)
    assert gain(front, model) < 0.2 * np.log(4)


def test_replicas_go_unmentioned_among_what_the_prior_never_saw() -> None:
    """Fails if a user is told that replicas are learned from the trials alone."""
    assert prior().mismatch([*KNOBS, REPLICAS], ["rps"]) == ""
    assert "the knob threads" in prior().mismatch([*KNOBS, REPLICAS, Knob("threads", (1, 2))], ["rps"])
    assert "left out" in prior().mismatch([REPLICAS], ["rps"])


def test_a_space_without_replicas_is_as_it_was() -> None:
    """Fails if hypotheses about replicas cost time where there are none."""
    one = SearchSpace([*KNOBS, Knob("num_replicas", (2,))])
    kinds = [h.name for h in prior().hypotheses(SPACE.configurations, KNOBS, METRICS)]
    assert [h.name for h in prior().hypotheses(one.configurations, one.knobs, METRICS)] == kinds
