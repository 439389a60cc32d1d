"""How a search scales with nodes: `python -m experiments.scaling`.

    session and sampler (the real ones) ─► trials on N nodes, in simulated time ─► recorded surfaces, with noise

A node measures one trial at a time, and trials take unequally long. Whatever is being measured is pending: the sampler
proposes around it. Families are held out of what is learned. Then what bounds it from our side: proposals a second
while many trials are pending, and trials that the store takes.
"""

import argparse
import heapq
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from experiments.comparison.datasets import seed_of
from morphling_ray.evaluate.replay import ReplayEvaluator
from morphling_ray.measurement import Measurement, Trial
from morphling_ray.meta.tasks import TrainingTask
from morphling_ray.objective import ExpressionObjective
from morphling_ray.search import SEARCHERS
from morphling_ray.search.session import Ask, SearchSession
from morphling_ray.space import Knob, SearchSpace
from morphling_ray.store import RunDirectory
from morphling_ray.surface import SurfaceSet, load_surfaces

NODES = (1, 2, 4, 8, 16, 32, 100)
TRIAL_S, SPREAD = 12.0, 0.4  # median and standard deviation of the logarithm of what a trial takes
NEAR, NOISE = 0.95, 0.03
PENDING, SHOWN = (0, 10, 100, 1000), 20  # trials that are pending, and proposals that are timed then
STORED = 10_000
LONGEST_MIN = 60.0  # that a search which never gets there counts for in a mean
FloatArray = npt.NDArray[np.float64]


@dataclass
class Search:
    """One simulated search.

    Attributes:
        trials: Told until the recommendation is within 5 % of the best; infinite: never.
        seconds: Of simulated time until then.
    """

    trials: float
    seconds: float


def main(argv: Sequence[str] | None = None) -> int:
    """Runs and prints; returns 0."""
    parser = argparse.ArgumentParser(prog="python -m experiments.scaling", description=__doc__)
    parser.add_argument("--surfaces", type=Path, default=Path("experiments/surfaces/h100"), metavar="DIR")
    parser.add_argument("--objective", default="rps_per_dollar", metavar="NAME")
    parser.add_argument("--searcher", default="morphling", choices=SEARCHERS)
    parser.add_argument("--nodes", type=int, nargs="+", default=list(NODES), metavar="N")
    parser.add_argument("--trials", type=int, default=100, help="of each search, at most")
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args(argv)
    surfaces = load_surfaces(arguments.surfaces)
    print(f"{arguments.searcher}, {surfaces.name}, {arguments.objective}: {len(surfaces.surfaces)} tasks")
    print(f"{'nodes':>6}{'trials to 5 %':>16}{'minutes to 5 %':>17}{'speed-up':>10}")
    alone = 0.0
    for nodes in arguments.nodes:
        found = list(_searches(surfaces, arguments.objective, arguments.searcher, nodes, arguments))
        trials, minutes = np.array([s.trials for s in found]), np.array([s.seconds for s in found]) / 60
        alone = alone or float(np.minimum(minutes, LONGEST_MIN).mean())
        times = alone / float(np.minimum(minutes, LONGEST_MIN).mean())
        print(f"{nodes:>6}{_two(trials, '.0f'):>16}{_two(minutes, '.1f'):>17}{times:>10.1f}", flush=True)
    print()
    for pending, each_s in proposals(arguments.searcher):
        print(f"{pending:>6} trials pending, {len(_large_space())} configurations: {1 / each_s:.3g} proposals a second")
    write_s, read_s = stored(STORED)
    print(f"{STORED} trials stored: {STORED / write_s:.0f} a second; read back in {read_s:.2f} s")
    return 0


def _searches(
    surfaces: SurfaceSet, objective: str, searcher: str, nodes: int, arguments: argparse.Namespace
) -> Iterator[Search]:
    method = SEARCHERS[searcher]
    for name, surface in surfaces.surfaces.items():
        others = [s for s in surfaces.surfaces.values() if s.family != surface.family]
        goal = surfaces.objective(objective, name)
        learned = method.learned([TrainingTask.of_surface(s) for s in others], goal, 0) if method.learn else None
        for number in range(arguments.seeds):
            sampler = method.make(surface.space, goal, seed=seed_of("scaling", name, number), learned=learned)
            evaluator = ReplayEvaluator(surface, goal, noise=NOISE, seed=seed_of("noise", name, number))
            session = SearchSession(
                surface.space,
                goal,
                sampler,
                max_trials=arguments.trials,
                time_budget_s=None,
                clock=lambda: 0.0,
                confirm=0,
                give_up_after=0,
            )
            yield simulate(session, evaluator, goal, nodes, number)


def simulate(
    session: SearchSession, evaluator: ReplayEvaluator, objective: ExpressionObjective, nodes: int, seed: int
) -> Search:
    """A search on so many nodes, until what it recommends is within 5 % of the best, or its trials are over."""
    rng = np.random.default_rng(seed)
    best = max(evaluator.truth(c) for c in evaluator.surface.space.configurations)
    running: list[tuple[float, int, Ask]] = []
    now, told = 0.0, 0
    while True:
        while len(running) < nodes and (ask := session.next()) is not None:
            heapq.heappush(running, (now + TRIAL_S * float(np.exp(SPREAD * rng.standard_normal())), ask.number, ask))
        if not running:
            return Search(np.inf, np.inf)
        now, _, ask = heapq.heappop(running)
        session.tell(ask.number, evaluator.measure(ask.configuration))
        told += 1
        found = session.recommendation()
        if found is not None and evaluator.truth(found.configuration) >= NEAR * best:
            return Search(told, now)


def proposals(searcher: str) -> Iterator[tuple[int, float]]:
    """Seconds of a proposal while so many trials are pending, in a large space without a prior."""
    space = _large_space()
    objective = ExpressionObjective("rps", "rps", [], metrics=("rps",))
    rng = np.random.default_rng(0)
    for pending in PENDING:
        sampler = SEARCHERS[searcher].make(space, objective, seed=0, learned=None)
        for index in rng.permutation(len(space))[:SHOWN]:
            value = float(np.exp(rng.standard_normal()))
            sampler.observe(space[int(index)], Measurement(configuration=space[int(index)], metrics={"rps": value}))
        for index in rng.permutation(len(space))[:pending]:
            sampler.reserve(space[int(index)])
        began = time.perf_counter()
        for _ in range(SHOWN):
            sampler.suggest()
        yield pending, (time.perf_counter() - began) / SHOWN


def _large_space() -> SearchSpace:
    return SearchSpace([Knob.infer(name, [1, 2, 4, 8, 16, 32, 64, 128]) for name in "abcd"])


def stored(count: int) -> tuple[float, float]:
    """Seconds that it takes to store so many trials, each on the disk before the next; and to read them back."""
    with tempfile.TemporaryDirectory() as folder:
        directory = RunDirectory(Path(folder))
        began = time.perf_counter()
        for number in range(1, count + 1):
            measurement = Measurement(configuration={"max_batch_size": 8}, metrics={"peak_rps": 100.0})
            directory.append_trial(
                Trial(number=number, stage="search", measurement=measurement, objective=1.0, started_s=0.0, seconds=1.0)
            )
        took = time.perf_counter() - began
        began = time.perf_counter()
        assert len(directory.trials()) == count
        return took, time.perf_counter() - began


def _two(values: FloatArray, form: str) -> str:
    """Median and the value by which nine in ten are there."""
    values = np.sort(values)
    middle, late = (values[min(len(values) - 1, int(np.ceil(share * len(values))) - 1)] for share in (0.5, 0.9))
    return " / ".join(format(v, form) if np.isfinite(v) else "never" for v in (middle, late))


if __name__ == "__main__":
    sys.exit(main())
