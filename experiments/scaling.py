"""How a search scales with nodes: `python -m experiments.scaling`.

    session and sampler (the real ones) ─► trials on N nodes, in simulated time ─► recorded surfaces, with noise
    `--ray-nodes`: the same, through Ray Tune and lanes on that many of Ray's nodes, where trials take their time

A node measures one trial at a time, and trials take unequally long. Whatever is being measured is pending: the sampler
proposes around it. Families are held out of what is learned. Where types of GPUs are a knob, nodes are of these types
in turn, and a trial waits for one of its type. Then what bounds it from our side: proposals a second while many trials
are pending, and trials that the store takes.
"""

import argparse
import contextlib
import heapq
import io
import itertools
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from experiments.comparison.datasets import seed_of
from experiments.paper.studies import spaces
from morphling_ray.evaluate.replay import ReplayEvaluator
from morphling_ray.measurement import Measurement, Trial
from morphling_ray.meta.tasks import TrainingTask
from morphling_ray.objective import ExpressionObjective
from morphling_ray.search import SEARCHERS
from morphling_ray.search.sampler import Sampler
from morphling_ray.search.session import Ask, SearchSession
from morphling_ray.space import Configuration, Knob, SearchSpace
from morphling_ray.store import RunDirectory
from morphling_ray.surface import Surface, SurfaceSet, load_surfaces

NODES = (1, 2, 4, 8, 16, 32, 100)
TRIAL_S, SPREAD = 12.0, 0.4  # median and standard deviation of the logarithm of what a trial takes
NEAR, NOISE = 0.95, 0.03
PENDING, SHOWN = (0, 10, 100, 1000), 20  # trials that are pending, and proposals that are timed then
STORED = 10_000
SHORT_S = 3.0  # of a trial on Ray's nodes
CACHE = Path("build/paper")  # of simulated surfaces
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
    parser.add_argument(
        "--paper", action="store_true", help="the simulated space of the paper instead, of three GPU types"
    )
    parser.add_argument("--objective", metavar="NAME", help="default: rps_per_dollar, and the paper's first")
    parser.add_argument("--searcher", default="morphling", choices=SEARCHERS)
    parser.add_argument("--nodes", type=int, nargs="+", default=list(NODES), metavar="N")
    parser.add_argument("--trials", type=int, default=100, help="of each search, at most")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument(
        "--ray-nodes", type=int, nargs="+", default=[], metavar="N", help="on this machine, and nothing else"
    )
    arguments = parser.parse_args(argv)
    surfaces = spaces(CACHE)["ec2-simulated"].surfaces if arguments.paper else load_surfaces(arguments.surfaces)
    arguments.objective = arguments.objective or ("objective1" if arguments.paper else "rps_per_dollar")
    if arguments.ray_nodes:
        return _on_rays_nodes(surfaces, arguments)
    print(f"{arguments.searcher}, {surfaces.name}, {arguments.objective}: {len(surfaces.surfaces)} tasks")
    print(f"{'nodes':>6}{'trials to 5 %':>16}{'times as many':>15}{'minutes to 5 %':>17}{'speed-up':>10}")
    alone, fewest = 0.0, 0.0
    for nodes in arguments.nodes:
        found = list(_searches(surfaces, arguments.objective, arguments.searcher, nodes, arguments))
        trials, minutes = np.array([s.trials for s in found]), np.array([s.seconds for s in found]) / 60
        there = np.isfinite(minutes)
        mean_min = float(np.where(there, minutes, LONGEST_MIN).mean())
        mean_trials = float(np.where(there, trials, arguments.trials).mean())
        alone, fewest = alone or mean_min, fewest or mean_trials
        as_many, times = mean_trials / fewest, alone / mean_min
        print(
            f"{nodes:>6}{_two(trials, '.0f'):>16}{as_many:>15.2f}{_two(minutes, '.1f'):>17}{times:>10.1f}", flush=True
        )
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
            session = _session(surface, goal, sampler, arguments.trials)
            yield simulate(session, evaluator, goal, nodes, number)


def _session(surface: Surface, goal: ExpressionObjective, sampler: Sampler, trials: int) -> SearchSession:
    """Which ends by its number of trials alone."""
    return SearchSession(
        surface.space,
        goal,
        sampler,
        max_trials=trials,
        time_budget_s=None,
        clock=lambda: 0.0,
        confirm=0,
        give_up_after=0,
    )


def simulate(
    session: SearchSession, evaluator: ReplayEvaluator, objective: ExpressionObjective, nodes: int, seed: int
) -> Search:
    """A search on so many nodes, until what it recommends is within 5 % of the best, or its trials are over."""
    rng = np.random.default_rng(seed)
    types = next((k.values for k in evaluator.surface.space.knobs if k.name == "gpu_type"), (None,))
    free = Counter(itertools.islice(itertools.cycle(types), max(nodes, len(types))))
    waiting: list[Ask] = []
    best = max(evaluator.truth(c) for c in evaluator.surface.space.configurations)
    running: list[tuple[float, int, Ask]] = []
    now, told = 0.0, 0
    while True:
        while len(running) + len(waiting) < nodes and (ask := session.next()) is not None:
            waiting.append(ask)
        for ask in list(waiting):
            if free[ask.configuration.get("gpu_type")] > 0:
                free[ask.configuration.get("gpu_type")] -= 1
                waiting.remove(ask)
                takes_s = TRIAL_S * float(np.exp(SPREAD * rng.standard_normal()))
                heapq.heappush(running, (now + takes_s, ask.number, ask))
        if not running:
            return Search(np.inf, np.inf)
        now, _, ask = heapq.heappop(running)
        free[ask.configuration.get("gpu_type")] += 1
        session.tell(ask.number, evaluator.measure(ask.configuration))
        told += 1
        found = session.recommendation()
        if found is not None and evaluator.truth(found.configuration) >= NEAR * best:
            return Search(told, now)


class TakesTime(ReplayEvaluator):
    """Answers from a recorded surface, after as long as a trial takes.

    Args:
        seconds: Median of that.
        place: Where its lane is, which does not matter to it.
    """

    def __init__(
        self, surface: Surface, objective: ExpressionObjective, *, seed: int, seconds: float, **place: Any
    ) -> None:
        super().__init__(surface, objective, noise=NOISE, seed=seed)
        self._seconds = seconds

    def measure(self, configuration: Configuration, **how: Any) -> Measurement:
        """See `Evaluator`."""
        rng = np.random.default_rng(seed_of("takes", *map(str, configuration.values())))
        time.sleep(self._seconds * float(np.exp(SPREAD * rng.standard_normal())))
        return super().measure(configuration, **how)

    def tried(self, configurations: Sequence[str]) -> None:
        """Nothing is measured but what is asked for."""


def _on_rays_nodes(surfaces: SurfaceSet, arguments: argparse.Namespace) -> int:
    name, surface = next(iter(surfaces.surfaces.items()))
    goal = surfaces.objective(arguments.objective, name)
    print(f"{arguments.searcher}, {name}: {arguments.trials} trials of {SHORT_S:g} s, by Ray Tune on Ray's nodes")
    print(f"{'nodes':>6}{'trials a minute':>17}{'times as many':>15}")
    alone = 0.0
    for nodes in arguments.ray_nodes:
        sampler = SEARCHERS[arguments.searcher].make(surface.space, goal, seed=0, learned=None)
        session = _session(surface, goal, sampler, arguments.trials)
        per_minute = 60 * trials_a_second(session, surface, goal, nodes)
        alone = alone or per_minute
        print(f"{nodes:>6}{per_minute:>17.1f}{per_minute / alone:>15.2f}", flush=True)
    return 0


def trials_a_second(session: SearchSession, surface: Surface, objective: ExpressionObjective, nodes: int) -> float:
    """Of a search on so many of Ray's own nodes, all on this machine, from its first trial's end on."""
    import ray
    from ray.cluster_utils import Cluster

    from morphling_ray.cluster import QUIET
    from morphling_ray.evaluate.lane import NAMESPACE
    from morphling_ray.evaluate.lanes import start_lanes
    from morphling_ray.trials import run_trials

    os.environ.update(QUIET)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # which workers may not find
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    ended: list[float] = []
    try:
        for _ in range(nodes):
            cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, namespace=NAMESPACE, log_to_driver=False, logging_level="ERROR")
        arguments = {"surface": surface, "objective": objective, "seed": 0, "seconds": SHORT_S}
        asks = {"needs": lambda configuration: [{"CPU": 1.0, "GPU": 0.0}], "node_timeout_s": 60.0, "hang_s": 60.0}
        measuring = start_lanes(lanes := f"lanes-{nodes}", TakesTime, arguments, **asks)  # for as long as it is held
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            run_trials(
                session,
                lanes,
                at_once=nodes,
                folder=Path(folder),
                on_trial=lambda number, measurement, objective: ended.append(time.monotonic()),
            )
        ray.kill(measuring)
    finally:
        ray.shutdown()
        cluster.shutdown()
    return (len(ended) - 1) / (ended[-1] - ended[0])


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
