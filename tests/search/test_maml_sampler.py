from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from synthetic import OBJECTIVE, SPACE, Task

from morphling_ray.measurement import Measurement
from morphling_ray.meta.maml import Learned, MamlSettings, inputs, learn
from morphling_ray.meta.network import descend, network, predict
from morphling_ray.objective import ExpressionObjective
from morphling_ray.search import SEARCHERS
from morphling_ray.search.bo import BoSampler
from morphling_ray.search.maml import FINETUNE, MAML, ErnestSampler, MamlSampler
from morphling_ray.search.sampler import Sampler
from morphling_ray.space import Configuration, Knob, SearchSpace

TASKS = [Task(i).training() for i in range(12)]
PRINTED = MamlSettings(
    activation="tanh",
    episodes=30,
    delta=2.0,
    mean="before",
    online_rate=0.02,
    online_steps=None,
    online_optimiser="sgd",
    online_data="newest",
    restart=False,
    corners=False,
)


def learned_with(settings: MamlSettings) -> Learned:
    learned = learn(TASKS, OBJECTIVE, 0, settings)
    assert learned is not None
    return learned


def proposals(sampler: Sampler, task: Task, count: int) -> list[Configuration]:
    out = []
    for _ in range(count):
        configuration = sampler.suggest()
        assert configuration is not None
        out.append(configuration)
        sampler.observe(configuration, task.measure(configuration))
    return out


@pytest.mark.parametrize(
    "settings",
    [
        PRINTED,
        replace(PRINTED, restart=True, online_data="all"),
        replace(PRINTED, mean="after", online_rate=0.01, online_steps=2),
    ],
)
def test_proposals_are_algorithm_2(settings: MamlSettings) -> None:
    """Fails if theta_i lags, Eq. 6 is another sum, a value has another scale, or a measured candidate comes again."""
    learned, task = learned_with(settings), Task(20)
    found = proposals(MamlSampler(SPACE, OBJECTIVE, seed=0, learned=learned), task, 5)

    net = network(len(learned.encoding.groups), settings.activation)
    x = torch.tensor(inputs(learned.encoding, SPACE.configurations, settings.input_scale)).float()
    before = after = dict(learned.theta)
    measured: list[int] = []
    for proposed in found:
        f, changed = (predict(net, theta, x) for theta in (before, after))
        acquisition = (f if settings.mean == "before" else changed) + settings.delta * (f - changed).abs()
        acquisition[measured] = -torch.inf
        assert SPACE.index(proposed) == int(acquisition.argmax())
        measured.append(int(acquisition.argmax()))
        values = np.array([task.truth(SPACE[i]) for i in measured])
        y = torch.tensor(values / (values.max() or 1.0)).float()
        used = slice(None) if settings.online_data == "all" else slice(-1, None)
        rate, steps = settings.online_rate or settings.alpha, settings.online_steps or settings.inner_steps
        start = learned.theta if settings.restart else after
        before, after = after, descend(net, start, x[measured][used], y[used], rate=rate, steps=steps)


def test_asking_twice_changes_nothing() -> None:
    """Fails if a suggestion without a new measurement is another update: Eq. 6 would then see no change."""
    learned = learned_with(PRINTED)
    samplers = [MamlSampler(SPACE, OBJECTIVE, seed=0, learned=learned) for _ in range(2)]
    for sampler in samplers:
        proposals(sampler, Task(20), 3)
    assert [samplers[0].suggest(), samplers[0].suggest()][0] == samplers[1].suggest()
    for one, other in ((s._before, s._after) for s in samplers):
        assert not torch.equal(one["0.weight"], other["0.weight"])
    for twice, once in zip(*((s._before, s._after) for s in samplers)):
        assert torch.equal(twice["0.weight"], once["0.weight"])


def test_begins_with_the_corners_of_the_paper() -> None:
    """Fails if the initial design is not max and min of three knobs on the first category, or not that of BO."""
    names = ("cores", "gpu_memory", "batch")
    values = ((1, 2, 5), (0.05, 0.1, 0.4), (1, 16, 128))
    gpus = ("T4", "M60", "V100")
    space = SearchSpace([*(Knob(n, v) for n, v in zip(names, values)), Knob("gpu", gpus, kind="categorical")])
    objective = ExpressionObjective("rps", "rps", [], metrics=("rps",))
    first: dict[str, list[tuple[object, ...]]] = {}
    for sampler in (ErnestSampler(space, objective, seed=0), BoSampler(space, objective, seed=0)):
        first[type(sampler).__name__] = [tuple((sampler.suggest() or {}).values()) for _ in range(8)]
    assert set(first["ErnestSampler"]) == {(*c, "T4") for c in product(*((v[0], v[-1]) for v in values))}
    assert first["ErnestSampler"] == first["BoSampler"]


def samples_needed(sampler: Sampler, task: Task) -> int:
    """How many samples until the best measured one is within 5 % of the optimum."""
    found = [task.truth(c) for c in proposals(sampler, task, 10)]
    return next((n + 1 for n, value in enumerate(found) if value >= 0.95 * task.best()), 11)


def mean_needed(make: type[MamlSampler], learned: Learned | None) -> float:
    samplers = {Task(i): make(SPACE, OBJECTIVE, seed=0, learned=learned) for i in range(20, 24)}
    return float(np.mean([samples_needed(sampler, task) for task, sampler in samplers.items()]))


def test_earlier_tasks_save_samples() -> None:
    """Fails if the sampler does not use what Algorithm 1 learned: a random start must need half as many more."""
    learned = learned_with(replace(MAML, episodes=100))
    assert mean_needed(MamlSampler, learned) < 0.67 * mean_needed(MamlSampler, None)


def test_ernest_uses_nothing_of_earlier_tasks_and_is_not_starved() -> None:
    """Fails if earlier tasks reach it, or its steps do not fit what was measured."""
    method = SEARCHERS["ernest"]
    assert method.learned(TASKS, OBJECTIVE, 0) is None
    sampler = ErnestSampler(SPACE, OBJECTIVE, seed=0)
    found = proposals(sampler, Task(20), 7)
    handed = ErnestSampler(SPACE, OBJECTIVE, seed=0, learned=learned_with(PRINTED))  # type: ignore[arg-type]
    assert proposals(handed, Task(20), 7) == found
    sampler.suggest()
    rows = [SPACE.index(c) for c in found]
    truth = np.array([Task(20).truth(c) for c in found])
    net = network(len(sampler._encoding.groups), MAML.activation)
    error = predict(net, sampler._after, sampler._inputs()[rows]).numpy() - truth / truth.max()
    assert np.sqrt((error**2).mean()) < 0.1


def test_finetune_is_trained_for_the_average_task() -> None:
    """Fails if its training adapts to tasks as MAML's does: it must predict an unseen task better before any step."""
    losses: dict[int, list[float]] = {}
    for steps in (0, 3):
        learned = learned_with(replace(FINETUNE, inner_steps=steps, alpha=0.3, episodes=60))
        net = network(len(learned.encoding.groups), FINETUNE.activation)
        x = torch.tensor(inputs(learned.encoding, SPACE.configurations, FINETUNE.input_scale)).float()
        f = predict(net, learned.theta, x).numpy()
        for task in (Task(i) for i in range(20, 28)):
            truth = np.array([task.truth(c) for c in SPACE.configurations])
            losses.setdefault(steps, []).append(float(((f - truth / truth.max()) ** 2).mean()))
    assert FINETUNE.inner_steps == 0
    assert np.mean(losses[0]) < 0.8 * np.mean(losses[3])


@pytest.mark.parametrize("knobs", [(), ("batch",)])
def test_a_space_it_has_never_seen(knobs: Sequence[str]) -> None:
    """Fails if it needs the knobs of the earlier tasks, or does not tell candidates apart that differ in a new one."""
    new = [
        Knob("depth", (1, 2, 3, 4)),
        Knob("colour", ("red", "blue"), "categorical"),
        Knob("on", (True,), "categorical"),
    ]
    space = SearchSpace([*(Knob(name, (1, 8)) for name in knobs), *new])
    objective = ExpressionObjective("rps", "rps", [], metrics=("rps",))
    sampler = MamlSampler(space, objective, seed=0, learned=learned_with(PRINTED))
    for step in range(len(space)):
        assert len(set(sampler._acquisition().round(6))) == len(space)
        configuration = sampler.suggest()
        assert configuration is not None
        assert configuration in space
        sampler.observe(configuration, Measurement(configuration=configuration, metrics={"rps": 10.0 + step % 5}))
    assert sampler.suggest() is None


def test_a_space_of_one() -> None:
    """Fails if a network without inputs is built for it."""
    objective = ExpressionObjective("rps", "rps", [], metrics=("rps",))
    sampler = MamlSampler(SearchSpace([Knob("x", (1,))]), objective, seed=0)
    assert sampler.suggest() == {"x": 1}
    assert sampler.suggest() is None


def test_steps_that_lead_nowhere() -> None:
    """Fails if a rate at which the descent diverges leaves numbers that are none, and with them no proposal."""
    settings = replace(PRINTED, online_rate=1e6, online_steps=3)
    sampler = MamlSampler(SPACE, OBJECTIVE, seed=0, learned=learned_with(PRINTED), settings=settings)
    assert len({tuple(c.values()) for c in proposals(sampler, Task(20), 6)}) == 6
    assert all(bool(torch.isfinite(value).all()) for value in sampler._after.values())
