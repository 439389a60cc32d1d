import json
import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from synthetic import KNOBS, SPACE, Task, prior

from morphling_ray.errors import InputError, PriorError
from morphling_ray.meta.encoding import Encoding
from morphling_ray.meta.ensemble import Ensemble, Hypothesis
from morphling_ray.meta.fit import fit_prior
from morphling_ray.meta.gaussian import NOTHING, Observations
from morphling_ray.meta.prior import Prior
from morphling_ray.space import Configuration, Knob, SearchSpace

METRICS = ("rps", "latency_ms")


WORKS = [c for c in SPACE.configurations if int(c["batch"]) <= 16]


def truth(task: Task, configurations: list[Configuration]) -> np.ndarray:
    return np.array([np.log(task.latency_ms(c)) for c in configurations])


def seen(rows: list[int], values: np.ndarray, metric: int = 0, sd: float = 0.01) -> Observations:
    return Observations(np.array(rows), np.full(len(rows), metric), values[rows], np.full(len(rows), sd**2))


def posterior(hypotheses: Sequence[Hypothesis], obs: Observations = NOTHING, draws: int = 512) -> np.ndarray:
    """Marginal draws of all points, shape `(S, n, M)`."""
    ensemble = Ensemble(hypotheses, obs, [0.0] * len(hypotheses))
    covariance = hypotheses[0].covariance
    n, metrics = covariance.inputs[0].shape[0], len(covariance.inputs)
    return ensemble.marginal_draws(np.arange(n), np.random.default_rng(0).standard_normal((draws, metrics)))


def test_predicts_a_new_task_from_six_rows() -> None:
    """Fails if the hypotheses do not carry how tasks differ: the mean and the residual alone must do worse."""
    learned = prior().hypotheses(WORKS, KNOBS, ["latency_ms"])
    alike = learned[0]
    flat = replace(alike, covariance=replace(alike.covariance, features=np.zeros_like(alike.covariance.features)))
    shown = [0, 8, 17, 30, 41, 50]
    errors: dict[str, list[float]] = {"learned": [], "flat": []}
    for number in range(20, 30):
        values = truth(Task(number), WORKS)
        for name, hypotheses in (("learned", learned), ("flat", [flat])):
            mean = posterior(hypotheses, seen(shown, values))[:, :, 0].mean(0)
            errors[name].append(float(np.sqrt(((mean - values) ** 2).mean())))
    assert np.mean(errors["learned"]) < 0.08
    assert np.mean(errors["learned"]) < 0.75 * np.mean(errors["flat"])


def test_uncertainty_is_honest() -> None:
    """Fails if spreads are learned in sample: held-out z-scores would then be far above 1."""
    scores = []
    for number in range(20, 30):
        values = truth(Task(number), WORKS)
        draws = posterior(prior().hypotheses(WORKS, KNOBS, ["latency_ms"]), seen([5, 40], values))[:, :, 0]
        scores.append(((draws.mean(0) - values) ** 2 / draws.var(0)).mean())
    assert 0.1 < np.mean(scores) < 3.0


def test_metrics_inform_one_another() -> None:
    """Fails if weights are not shared between metrics: a slow latency must lower the expected rps."""
    hypotheses = prior().hypotheses(SPACE.configurations, KNOBS, METRICS)
    before = posterior(hypotheses).mean(0)
    slow = Observations(np.array([0]), np.array([1]), before[[0], 1] + 1.0, np.array([1e-4]))
    assert posterior(hypotheses, slow).mean(0)[0, 0] < before[0, 0] - 0.5


def test_where_a_task_was_measured_that_is_its_surface() -> None:
    """Fails if only the smoothed surface is kept: what it smooths away belongs to the earlier task, and is known."""
    task = Task(3)
    surfaces = prior().surfaces(WORKS, ["latency_ms"])
    np.testing.assert_allclose(surfaces[3, :, 0], truth(task, WORKS), atol=1e-9)
    between: list[Configuration] = [{"batch": 6, "cores": 4, "build": "fast"}]
    np.testing.assert_allclose(prior().surfaces(between, ["latency_ms"])[3, :, 0], truth(task, between), atol=0.1)


def test_feasibility_is_learned() -> None:
    """Fails if outcomes are not counted: half of the tasks run out of memory at batch 32, none at 1."""
    at_1, at_32 = prior().feasible([{"batch": b, "cores": 4, "build": "fast"} for b in (1, 32)])
    assert at_1 > 0.9
    assert at_32 < at_1 - 0.1


def test_save_and_load_round_trip(tmp_path: Path) -> None:
    """Fails if an array or a field is left out of the file, or changes in it by more than a float32 does."""
    path = tmp_path / "a prior.npz"
    prior().save(path)
    loaded = Prior.load(path)
    a, b = (p.hypotheses(SPACE.configurations, KNOBS, METRICS) for p in (prior(), loaded))
    np.testing.assert_array_equal(posterior(a), posterior(b))
    np.testing.assert_allclose(prior().feasible(SPACE.configurations), loaded.feasible(SPACE.configurations))
    assert loaded.about == json.loads(json.dumps(dict(prior().about)))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('executed')",)


def test_junk_is_refused_and_never_executed(tmp_path: Path) -> None:
    """Fails if anything is unpickled, or ends in another exception than one clear PriorError."""
    path = tmp_path / "prior.npz"
    prior().save(path)
    good = path.read_bytes()
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    junk = {"pickle": pickle.dumps(Bomb()), "empty": b"", "text": b"hello", "cut": good[: len(good) // 2]}
    junk["flipped"] = good[:3000] + bytes(255 - b for b in good[3000:3200]) + good[3200:]
    for name, content in junk.items():
        (tmp_path / name).write_bytes(content)
    np.save(tmp_path / "array.npy", np.zeros(3))
    np.savez(tmp_path / "objects.npz", meta=np.array([Bomb()], dtype=object))
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    np.savez(tmp_path / "shapes.npz", **{**arrays, "taught": np.zeros((9, 9))})
    np.savez(tmp_path / "nan.npz", **{**arrays, "smooth_lengths": np.full(5, np.nan)})
    wide = {**json.loads(str(arrays["meta"])), "offset_sd": -1.0}
    np.savez(tmp_path / "wide.npz", **{**arrays, "meta": np.array(json.dumps(wide))})
    newer = {**json.loads(str(arrays["meta"])), "format": "morphling_ray prior 99"}
    np.savez(tmp_path / "newer.npz", **{**arrays, "meta": np.array(json.dumps(newer))})
    names = [
        *junk,
        "array.npy",
        "objects.npz",
        "other.npz",
        "shapes.npz",
        "nan.npz",
        "wide.npz",
        "newer.npz",
        "missing",
    ]
    for name in names:
        with pytest.raises(PriorError) as caught:
            Prior.load(tmp_path / name)
        assert "\n" not in str(caught.value)
        assert name in str(caught.value)
    with pytest.raises(PriorError, match="prior 99"):
        Prior.load(tmp_path / "newer.npz")


@pytest.mark.parametrize(
    "knobs",
    [
        (*KNOBS, Knob("threads", (1, 2, 4))),  # a knob that the prior never saw
        (KNOBS[0], KNOBS[1], Knob("build", ("fast", "new"), kind="categorical")),  # a value that it never saw
        (Knob("batch", (1, 8, 64, 512), scale="log"), KNOBS[1], KNOBS[2]),  # far outside its range
        (KNOBS[0], KNOBS[2]),  # a knob that the space lacks
        (Knob("batch", ("auto", 1, 2), kind="categorical"), KNOBS[1]),  # numbers that are texts here
        (Knob("other", (1, 2)),),  # nothing in common
    ],
    ids=["unseen knob", "unseen value", "beyond", "missing", "kind", "unlike"],
)
def test_holds_for_other_spaces(knobs: tuple[Knob, ...]) -> None:
    """Fails if the encoding breaks, or lets the prior be sure about what it has never seen."""
    space = SearchSpace(knobs)
    draws = posterior(prior().hypotheses(space.configurations, knobs, ["rps", "never seen"]))
    assert np.isfinite(draws).all()
    assert (draws.std(0) > 0.1).all()
    p = prior().feasible(space.configurations)
    assert ((p > 0) & (p < 1)).all()


def test_says_where_a_space_does_not_match() -> None:
    """Fails if an unseen knob, value or metric goes unmentioned, or one that was seen is called new."""
    assert prior().mismatch(KNOBS, METRICS) == ""
    inside = Knob("batch", (1, 6, 32), scale="log")
    assert prior().mismatch([inside, *KNOBS[1:]], ["rps"]) == ""
    knobs = [Knob("batch", (1, 8, 512)), Knob("threads", (1, 2)), Knob("build", ("fast", "new"), kind="categorical")]
    said = prior().mismatch(knobs, ["rps", "watts"])
    for new in ("batch 512", "the knob threads", "build new", "the metric watts"):
        assert new in said
    assert "left out: it knows the knobs batch, cores, build" in prior().mismatch([Knob("other", (1, 2))], ["rps"])
    assert "and the metrics latency_ms, rps" in prior().mismatch(KNOBS, ["watts"])


def test_near_descriptors_make_tasks_likelier() -> None:
    """Fails if descriptors are ignored, or the task that is far in them is preferred."""
    tasks = [replace(Task(i).training(), constants={"flops": 10.0**i}) for i in range(3)]
    learned = fit_prior(tasks, seed=0)
    for near in range(3):
        hypotheses = learned.hypotheses(WORKS, KNOBS, METRICS, {"flops": 1.1 * 10.0**near, "unknown": 5.0})
        mixture = hypotheses[1]
        assert int(mixture.log_priors[:3].argmax()) == near  # the first three templates are the tasks themselves
        assert np.exp(mixture.log_priors).sum() == pytest.approx(np.exp(mixture.log_prior))


def test_what_is_new_is_learned_from_the_task_itself() -> None:
    """Fails if an unseen knob has no dimension of its own: its effect here is a factor of 2."""
    knobs = (*KNOBS, Knob("threads", (1, 2, 4)))
    space = SearchSpace(knobs)
    hypotheses = prior().hypotheses(space.configurations, knobs, ["rps"])
    before = posterior(hypotheses).mean(0)[:, 0]
    rows = [i for i, c in enumerate(space.configurations) if (c["batch"], c["build"]) == (8, "fast")]
    threads = np.array([float(c["threads"]) for c in space.configurations])
    mean = posterior(hypotheses, seen(rows, before + np.log(threads), sd=0.03)).mean(0)[:, 0] - before
    far = [i for i, c in enumerate(space.configurations) if (c["batch"], c["build"]) == (2, "lean")]
    by = [np.mean([mean[i] for i in far if threads[i] == t]) for t in (1, 4)]
    assert by[1] - by[0] == pytest.approx(np.log(4), abs=0.5)


def test_what_is_new_goes_on_as_it_began() -> None:
    """Fails if an unseen knob has no trend: measured at its lower values, it is taken for average at the others."""
    knobs = (*KNOBS, Knob("threads", (1, 2, 4, 8, 16, 32)))
    space = SearchSpace(knobs)
    hypotheses = prior().hypotheses(space.configurations, knobs, ["rps"])
    before = posterior(hypotheses).mean(0)[:, 0]
    threads = np.array([float(c["threads"]) for c in space.configurations])
    kind = [(c["batch"], c["build"]) == (8, "fast") for c in space.configurations]
    rows = [i for i, here in enumerate(kind) if here and threads[i] <= 4]
    mean = posterior(hypotheses, seen(rows, before + np.log(threads), sd=0.03)).mean(0)[:, 0] - before
    low, high = (np.mean([mean[i] for i, here in enumerate(kind) if here and threads[i] == t]) for t in (4, 32))
    assert high - low > 0.2 * np.log(32 / 4)


def test_few_tasks_do_not_make_a_confident_prior() -> None:
    """Fails if one task counts as the truth about all."""
    one = fit_prior([Task(0).training()], seed=0)
    two = fit_prior([Task(i).training() for i in range(2)], seed=0)
    for learned in (one, two):
        assert (posterior(learned.hypotheses(SPACE.configurations, KNOBS, METRICS)).std(0) > 0.25).all()


def test_sets_with_other_knobs_and_metrics_are_learned_together() -> None:
    """Fails if a task that lacks a metric or a knob breaks the fit, or teaches what it does not know."""
    short = [Task(i).training(KNOBS[:2]) for i in range(4, 8)]
    short = [
        type(t)(t.task, t.family, t.knobs, t.configurations, {"tok_s": t.metrics["rps"]}, t.feasible) for t in short
    ]
    both = fit_prior([*(Task(i).training() for i in range(4)), *short], seed=0)
    assert both.metrics == ("latency_ms", "rps", "tok_s")
    np.testing.assert_array_equal(both.taught, [[1] * 4 + [0] * 4] * 2 + [[0] * 4 + [1] * 4])
    assert (both.correlation[2, :2] == 0).all()
    assert np.isfinite(posterior(both.hypotheses(SPACE.configurations, KNOBS, both.metrics))).all()


def test_same_seed_same_prior() -> None:
    """Fails if anything in the fit is drawn from a generator that nobody seeded."""
    a, b = (fit_prior([Task(i).training() for i in range(3)], seed=5) for _ in range(2))
    np.testing.assert_array_equal(a.alpha, b.alpha)
    assert a.offset_sd == b.offset_sd


def test_nothing_to_learn_from() -> None:
    """Fails if tasks without a feasible row reach the arithmetic."""
    with pytest.raises(InputError, match="nothing to learn"):
        fit_prior([], seed=0)


def test_encoding_of_values() -> None:
    """Fails if a log scale is not by ratio, or two categories are not 1 apart, or a constant knob is kept."""
    configurations: list[Configuration] = [{"b": b, "k": k, "c": 3} for b in (1, 4, 16) for k in ("x", "y")]
    encoding = Encoding.of(
        [Knob("b", (1, 4, 16), scale="log"), Knob("k", ("x", "y"), "categorical"), Knob("c", (3,))], configurations
    )
    z = encoding.encode(configurations)
    np.testing.assert_allclose(z[::2, 0], [0.0, 0.5, 1.0])
    assert np.linalg.norm(z[0] - z[1]) == pytest.approx(1.0)
    assert [code.name for code in encoding.codes] == ["b", "k"]
    np.testing.assert_allclose(encoding.encode([{"b": 4.0}])[0, 0], 0.5)  # 4.0 is 4, and k has a reference value
    assert Encoding.from_list(json.loads(json.dumps(encoding.to_list()))).codes == encoding.codes


def test_tasks_of_unlike_levels_teach_that() -> None:
    """Fails if levels are not held out, or a task is foretold with the help of its own."""
    unlike = []
    for i in range(6):
        task = Task(i).training()
        unlike.append(replace(task, metrics={name: v * 30.0 ** (i * i % 5) for name, v in task.metrics.items()}))
    assert fit_prior(unlike, seed=0).offset_sd > prior().offset_sd
