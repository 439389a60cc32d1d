import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from synthetic import KNOBS, SPACE, Task, prior

from morphling_ray.errors import InputError, PriorError
from morphling_ray.meta.encoding import Encoding
from morphling_ray.meta.fit import fit_prior
from morphling_ray.meta.gaussian import Observations
from morphling_ray.meta.prior import Prior
from morphling_ray.space import Configuration, Knob, SearchSpace

METRICS = ("rps", "latency_ms")
NOTHING = Observations(*(np.zeros(0, np.int64),) * 2, *(np.zeros(0),) * 2)


def truth(task: Task, configurations: list[Configuration]) -> np.ndarray:
    return np.array([np.log(task.latency_ms(c)) for c in configurations])


def test_predicts_a_new_task_from_six_rows() -> None:
    """Fails if features do not carry how tasks differ: the mean and the residual alone must do worse."""
    works = [c for c in SPACE.configurations if int(c["batch"]) <= 16]
    model = prior().model(works, KNOBS, ["latency_ms"])
    featureless = replace(model, features=np.zeros_like(model.features))
    shown = np.array([0, 8, 17, 30, 41, 50])
    errors: list[float] = []
    without: list[float] = []
    for number in range(20, 30):
        values = truth(Task(number), works)
        obs = Observations(shown, np.zeros(6, np.int64), values[shown], np.full(6, 1e-4))
        for into, m in ((errors, model), (without, featureless)):
            into.append(float(np.sqrt(((m.condition(obs).mean[:, 0] - values) ** 2).mean())))
    assert np.mean(errors) < 0.08
    assert np.mean(errors) < 0.75 * np.mean(without)


def test_uncertainty_is_honest() -> None:
    """Fails if spreads are learned in sample: held-out z-scores would then be far above 1."""
    works = [c for c in SPACE.configurations if int(c["batch"]) <= 16]
    scores = []
    for number in range(20, 30):
        values = truth(Task(number), works)
        obs = Observations(np.array([5, 40]), np.zeros(2, np.int64), values[[5, 40]], np.full(2, 1e-4))
        posterior = prior().model(works, KNOBS, ["latency_ms"]).condition(obs)
        scores.append(((posterior.mean[:, 0] - values) ** 2 / posterior.covariance[:, 0, 0]).mean())
    assert 0.1 < np.mean(scores) < 3.0


def test_metrics_inform_one_another() -> None:
    """Fails if weights are not shared between metrics: a slow latency must lower the expected rps."""
    model = prior().model(SPACE.configurations, KNOBS, METRICS)
    latency = model.mean[1, 0]
    slow = Observations(np.array([0]), np.array([1]), np.array([latency + 1.0]), np.array([1e-4]))
    assert model.condition(slow).mean[0, 0] < model.mean[0, 0] - 0.5


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
    a, b = (p.model(SPACE.configurations, KNOBS, METRICS) for p in (prior(), loaded))
    np.testing.assert_allclose(a.mean, b.mean, atol=1e-4)
    np.testing.assert_allclose(a.at_each(), b.at_each(), atol=1e-4)
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
    np.savez(tmp_path / "nan.npz", **{**arrays, "white_sd": np.full(2, np.nan)})
    newer = {**json.loads(str(arrays["meta"])), "format": "morphling_ray prior 99"}
    np.savez(tmp_path / "newer.npz", **{**arrays, "meta": np.array(json.dumps(newer))})
    names = [*junk, "array.npy", "objects.npz", "other.npz", "shapes.npz", "nan.npz", "newer.npz", "missing"]
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
    model = prior().model(space.configurations, knobs, ["rps", "never seen"])
    posterior = model.condition(NOTHING)
    assert np.isfinite(posterior.mean).all()
    assert (np.linalg.eigvalsh(posterior.covariance) > 0).all()
    p = prior().feasible(space.configurations)
    assert ((p > 0) & (p < 1)).all()


def test_what_is_new_is_learned_from_the_task_itself() -> None:
    """Fails if an unseen knob has no dimension of its own: its effect here is a factor of 2."""
    knobs = (*KNOBS, Knob("threads", (1, 2, 4)))
    space = SearchSpace(knobs)
    model = prior().model(space.configurations, knobs, ["rps"])
    rows = np.array([i for i, c in enumerate(space.configurations) if (c["batch"], c["build"]) == (8, "fast")])
    threads = np.array([float(c["threads"]) for c in space.configurations])
    obs = Observations(
        rows, np.zeros(len(rows), np.int64), model.mean[0, rows] + np.log(threads[rows]), np.full(len(rows), 1e-3)
    )
    mean = model.condition(obs).mean[:, 0] - model.mean[0]
    far = [i for i, c in enumerate(space.configurations) if (c["batch"], c["build"]) == (2, "lean")]
    by = [np.mean([mean[i] for i in far if threads[i] == t]) for t in (1, 4)]
    assert by[1] - by[0] == pytest.approx(np.log(4), abs=0.5)


def test_few_tasks_do_not_make_a_confident_prior() -> None:
    """Fails if one task counts as the truth about all."""
    one = fit_prior([Task(0).training()], seed=0)
    two = fit_prior([Task(i).training() for i in range(2)], seed=0)
    for learned in (one, two):
        covariance = learned.model(SPACE.configurations, KNOBS, METRICS).at_each()
        assert (covariance[:, 0, 0] > 0.25**2).all()


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
    assert np.isfinite(both.model(SPACE.configurations, KNOBS, both.metrics).at_each()).all()


def test_same_seed_same_prior() -> None:
    """Fails if anything in the fit is drawn from a generator that nobody seeded."""
    a, b = (fit_prior([Task(i).training() for i in range(3)], seed=5) for _ in range(2))
    np.testing.assert_array_equal(a.alpha, b.alpha)
    np.testing.assert_array_equal(a.residual_sd, b.residual_sd)


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


def test_tasks_that_have_nothing_in_common_teach_that() -> None:
    """Fails if a task is foretold with the help of its own surface: the features would then explain everything."""
    unlike = fit_prior([Task(i).training(shuffled=i) for i in range(6)], seed=0)
    own = np.sqrt(unlike.residual_sd**2 + unlike.white_sd**2)
    assert (own > 0.4).all()
