import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from synthetic import KNOBS, OBJECTIVE, SPACE, Task
from torch.func import grad, vmap

from morphling_ray.errors import InputError
from morphling_ray.meta import maml
from morphling_ray.meta.maml import Learned, MamlSettings, Points, TaskTable, initial, inputs, learn, meta_train
from morphling_ray.meta.network import Optimiser, Theta, descend, fit, loss, network, predict, random_theta
from morphling_ray.meta.tasks import TrainingTask
from morphling_ray.objective import ExpressionObjective
from morphling_ray.space import Knob

QUICK = MamlSettings(episodes=150, shots=10, query="fresh")
TASKS = [Task(i).training() for i in range(8)]
HELD_OUT = [Task(i).training() for i in range(20, 28)]


def double(theta: Theta) -> dict[str, torch.Tensor]:
    return {name: value.double() for name, value in theta.items()}


def two_tasks(seed: int) -> Points:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(size=(2, 4, 3))), torch.from_numpy(rng.normal(size=(2, 4)))


def test_one_step_is_eq_3() -> None:
    """Fails if the step has another size or sign, or follows anything but the mean squared error (Eq. 2)."""
    net = network(3, "tanh")
    theta, (x, y) = double(random_theta(net, np.random.default_rng(0))), two_tasks(1)
    leaves = {name: value.clone().requires_grad_() for name, value in theta.items()}
    hidden = torch.tanh(x[0] @ leaves["0.weight"].T + leaves["0.bias"])
    hidden = torch.tanh(hidden @ leaves["2.weight"].T + leaves["2.bias"])
    error = (hidden @ leaves["4.weight"].T + leaves["4.bias"])[:, 0] - y[0]
    slopes = torch.autograd.grad(error @ error / 4, list(leaves.values()))
    stepped = descend(net, theta, x[0], y[0], rate=0.1, steps=1)
    for name, slope in zip(leaves, slopes):
        torch.testing.assert_close(stepped[name], theta[name] - 0.1 * slope)
    torch.testing.assert_close(
        descend(net, stepped, x[0], y[0], rate=0.1, steps=1), descend(net, theta, x[0], y[0], rate=0.1, steps=2)
    )


@pytest.mark.parametrize(("optimiser", "rate"), [("sgd", 20.0), ("adam", 1.0)])
def test_a_fit_never_ends_above_where_it_began(optimiser: Optimiser, rate: float) -> None:
    """Fails if a rate at which the descent diverges is followed, or one at which it does not is changed."""
    net = network(3, "tanh")
    theta, (x, y) = double(random_theta(net, np.random.default_rng(0))), two_tasks(1)
    before = float(loss(net, theta, x[0], y[0]))
    after = fit(net, theta, x[0], y[0], optimiser=optimiser, rate=rate, steps=3)
    assert 0 < float(loss(net, after, x[0], y[0])) < before
    torch.testing.assert_close(fit(net, theta, x[0], y[0], optimiser=optimiser, rate=1e30, steps=3), theta)
    if optimiser == "sgd":
        small = fit(net, theta, x[0], y[0], optimiser=optimiser, rate=0.01, steps=3)
        torch.testing.assert_close(small, descend(net, theta, x[0], y[0], rate=0.01, steps=3))


@pytest.mark.parametrize("steps", [1, 3])
def test_the_meta_gradient_is_second_order(steps: int) -> None:
    """Fails if the adaptation is not differentiated (first order), or a task is left out of the sum."""
    settings = MamlSettings(alpha=0.1, inner_steps=steps)
    net = network(3, "tanh")
    theta, support, query = double(random_theta(net, np.random.default_rng(0))), two_tasks(1), two_tasks(2)
    slope: Theta = grad(maml.meta_loss)(theta, net, support, query, settings)

    rng = np.random.default_rng(3)
    way = {name: torch.from_numpy(rng.normal(size=value.shape)) for name, value in theta.items()}
    losses = []
    for h in (1e-5, -1e-5):
        moved = {name: value + h * way[name] for name, value in theta.items()}
        adapted = [descend(net, moved, x, y, rate=0.1, steps=steps) for x, y in zip(*support)]
        losses.append(sum(float(loss(net, a, x, y)) for a, x, y in zip(adapted, *query)))
    exact = float(sum((slope[name] * way[name]).sum() for name in theta))
    assert exact == pytest.approx((losses[0] - losses[1]) / 2e-5, rel=1e-5)

    def first_order(x: torch.Tensor, y: torch.Tensor, query_x: torch.Tensor, query_y: torch.Tensor) -> Theta:
        adapted = descend(net, theta, x, y, rate=0.1, steps=steps)
        out: Theta = grad(loss, argnums=1)(net, adapted, query_x, query_y)
        return out

    rough = vmap(first_order)(*support, *query)
    assert abs(float(sum((rough[name].sum(0) * way[name]).sum() for name in theta)) / exact - 1) > 0.01


def test_every_row_of_every_task_is_drawn_and_no_padding() -> None:
    """Fails if a short task is padded with zeros that are then learned, or some of its rows are never seen."""
    long, short = np.arange(1.0, 8.0), np.arange(1.0, 4.0)
    table = TaskTable([(y[:, None] * 10, y) for y in (long, short)])
    x, y = table.draw(200, np.random.default_rng(0))
    assert [set(row.tolist()) for row in y] == [set(long), set(short)]
    torch.testing.assert_close(x[..., 0], 10 * y)


def loss_after(learned: Learned, tasks: list[TrainingTask], *, shown: int) -> float:
    """Mean loss of held-out tasks on all points, after a step on a few."""
    net = network(len(learned.encoding.groups), learned.settings.activation)
    out = []
    for number, task in enumerate(tasks):
        values = task.values(OBJECTIVE)
        assert values is not None
        x = torch.tensor(inputs(learned.encoding, task.configurations, learned.settings.input_scale)).float()
        y = torch.tensor(values / values.max()).float()
        rows = np.random.default_rng(number).permutation(len(y))[:shown]
        steps = learned.settings.inner_steps if shown else 0
        theta = descend(net, learned.theta, x[rows], y[rows], rate=learned.settings.alpha, steps=steps)
        out.append(float(loss(net, theta, x, y)))
    return float(np.mean(out))


def test_training_makes_a_step_worth_more() -> None:
    """Fails if episodes do not improve what a task that was not seen gains from a step on a few points."""
    trained, untrained = (learn(TASKS, OBJECTIVE, 0, s) for s in (QUICK, replace(QUICK, episodes=0)))
    assert trained is not None
    assert untrained is not None
    after = loss_after(trained, HELD_OUT, shown=10)
    assert after < 0.5 * loss_after(untrained, HELD_OUT, shown=10)
    assert after < 0.9 * loss_after(trained, HELD_OUT, shown=0)


def test_query_points_are_what_the_settings_say() -> None:
    """Fails if fresh points are not fresh, or the settings change nothing."""
    thetas = [learn(TASKS[:2], OBJECTIVE, 0, replace(QUICK, episodes=2, query=query)) for query in ("fresh", "same")]
    assert not torch.equal(thetas[0].theta["0.weight"], thetas[1].theta["0.weight"])  # type: ignore[union-attr]


def test_seeds_and_pickle() -> None:
    """Fails if a seed decides nothing, equal seeds differ, or what is learned cannot be stored."""
    short = replace(QUICK, episodes=3)
    first, other = (learn(TASKS[:3], OBJECTIVE, seed, short) for seed in (0, 1))
    assert first is not None
    assert other is not None
    meta_train.cache_clear()
    again: Learned = pickle.loads(pickle.dumps(learn(TASKS[:3], OBJECTIVE, 0, short)))
    assert {name: value.tolist() for name, value in again.theta.items()} == {
        name: value.tolist() for name, value in first.theta.items()
    }
    assert not torch.equal(first.theta["0.weight"], other.theta["0.weight"])


def test_what_was_trained_is_remembered() -> None:
    """Fails if training is remembered by anything less than all numbers, settings and the seed."""
    short = replace(QUICK, episodes=2)
    x, y = np.ones((4, 2)), np.ones(4)
    theta = meta_train(TaskTable([(x, y)]), short, 0)
    assert meta_train(TaskTable([(x.copy(), y.copy())]), short, 0) is theta
    for table in (TaskTable([(x, 2 * y)]), TaskTable([(2 * x, y)]), TaskTable([(x[:3], y[:3])])):
        assert meta_train(table, short, 0) is not theta


def test_tasks_that_say_nothing_are_left_out() -> None:
    """Fails if a task without the metric, a knob of the cost or a single success breaks learning or changes it."""
    short = replace(QUICK, episodes=2)
    task = TASKS[0]
    useless = [
        replace(task, metrics={"rps": task.metrics["rps"]}),
        replace(task, feasible=np.zeros(len(task.feasible), bool)),
    ]
    assert learn(useless, OBJECTIVE, 0, short) is None
    assert learn([], OBJECTIVE, 0, short) is None
    priced = ExpressionObjective("value", "rps / cost", [], metrics=("rps", "latency_ms"), cost="gpus")
    assert learn([task], priced, 0, short) is None
    with_them, alone = learn([*useless, task], OBJECTIVE, 0, short), learn([task], OBJECTIVE, 0, short)
    assert with_them is not None
    assert alone is not None
    torch.testing.assert_close(dict(with_them.theta), dict(alone.theta))


def test_a_knob_that_was_never_seen_is_an_input_of_its_own() -> None:
    """Fails if the learned weights are lost in another space, or candidates that differ in a new knob look alike."""
    learned = learn(TASKS[:3], OBJECTIVE, 0, replace(QUICK, episodes=3))
    assert learned is not None
    knobs = (Knob("batch", (1, 32), scale="log"), Knob("colour", ("red", "blue"), kind="categorical"))
    encoding, theta = initial(learned, knobs, QUICK, np.random.default_rng(0))
    seen = len(learned.encoding.groups)
    assert len(encoding.groups) == seen + 2
    torch.testing.assert_close(theta["0.weight"][:, :seen], learned.theta["0.weight"])
    torch.testing.assert_close(theta["2.weight"], learned.theta["2.weight"])
    assert learned.theta["0.weight"].shape[1] == seen
    rows = inputs(encoding, [{"batch": 1, "colour": "red"}, {"batch": 1, "colour": "blue"}], 1.0)
    out = predict(network(seen + 2, QUICK.activation), theta, torch.from_numpy(rows).float())
    assert float((out[0] - out[1]).abs()) > 1e-4

    same, kept = initial(learned, KNOBS, QUICK, np.random.default_rng(0))
    torch.testing.assert_close(kept, dict(learned.theta))
    assert np.array_equal(same.encode(SPACE.configurations), learned.encoding.encode(SPACE.configurations))


@pytest.mark.parametrize(
    "wrong",
    [{"alpha": 0.0}, {"beta": float("nan")}, {"online_rate": -1.0}, {"inner_steps": -1}, {"shots": 0}, {"delta": -1.0}],
)
def test_settings_that_make_no_sense(wrong: dict[str, float]) -> None:
    """Fails if they can be built."""
    with pytest.raises(InputError, match=next(iter(wrong))):
        MamlSettings(**wrong)  # type: ignore[arg-type]
