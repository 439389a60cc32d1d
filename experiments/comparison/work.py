"""Runs the units of a comparison, over processes."""

import copy
import hashlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

from experiments.comparison.datasets import Dataset, seed_of
from experiments.comparison.planning import Unit
from experiments.comparison.protocol import Problem, search
from experiments.comparison.results import Run
from experiments.comparison.settings import Settings
from experiments.comparison.training import (
    learning_objective,
    names_beside,
    tasks_beside,
    training_names,
    training_tasks,
)
from morphling_ray.meta.tasks import TrainingTask
from morphling_ray.objective import Objective
from morphling_ray.search import SEARCHERS

_THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_CODE = ("search", "meta", "evaluate/replay.py", "objective.py", "space.py")  # of the package: what decides a proposal


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a unit; `error` is one line, or empty."""

    unit: Unit
    runs: Sequence[Run] = ()
    seconds: float = 0.0
    error: str = ""


def run_all(settings: Settings, units: Sequence[Unit], processes: int) -> Iterator[Outcome]:
    """Runs units and yields each as it ends. One process: here, without another.

    A unit that breaks is an outcome with an error. Whoever stops early ends the processes.
    """
    for name in _THREADS:  # inherited by the processes, and read when numpy and torch are imported
        os.environ[name] = "1"
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
    if processes == 1:
        for unit in units:
            yield attempt(settings, unit)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy BLAS and torch in the middle of their work
    before = set(multiprocessing.active_children())
    workers = min(processes, max(len(units), 1))
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_follow_parent, initargs=(os.getpid(),))
    try:
        waiting: dict[Future[Outcome], Unit] = {pool.submit(attempt, settings, unit): unit for unit in units}
        for future in as_completed(waiting):
            unit = waiting.pop(future)  # results are not kept twice
            try:
                yield future.result()
            except BrokenProcessPool:
                yield Outcome(unit=unit, error="a process died, perhaps for want of memory: try fewer --processes")
    except BaseException:  # an interrupt, or the caller wants no more: a unit may take minutes, so do not wait for it
        pool.shutdown(wait=False, cancel_futures=True)
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()
        raise
    pool.shutdown()


def _follow_parent(parent: int) -> None:
    """In a process: an interrupt is the parent's business, and without a parent there is nothing left to do."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(2.0)
        os._exit(1)  # it was killed: nobody would ever end this process

    threading.Thread(target=watch, daemon=True).start()


def attempt(settings: Settings, unit: Unit) -> Outcome:
    """Runs a unit; whatever a searcher raises becomes an outcome, so that hours of other work are not lost."""
    began = time.monotonic()
    try:
        with threadpool_limits(1):
            runs = run_unit(settings, unit)
    except Exception as error:  # noqa: BLE001  # other people's searchers raise anything
        last = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        return Outcome(unit=unit, seconds=time.monotonic() - began, error=last)
    return Outcome(unit=unit, runs=runs, seconds=time.monotonic() - began)


def run_unit(settings: Settings, unit: Unit) -> list[Run]:
    """Learns once, then searches each task of the unit."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    method, surfaces = SEARCHERS[unit.searcher], unit.dataset.surfaces
    names = training_names(settings, unit.dataset, unit.fold, unit.seed)
    beside = names_beside(settings, unit.fold)
    learned, train_s = _learned(settings, unit.dataset, unit.objective, unit.searcher, unit.seed, names, beside)
    runs = []
    for task in unit.tasks:
        problem = Problem.of(surfaces, unit.objective, task, settings.noise)
        began = time.perf_counter()
        sampler = method.make(
            problem.surface.space,
            problem.objective,
            seed=seed_of("sampler", unit.dataset.name, task, unit.seed),  # else all tasks would be searched alike
            learned=copy.deepcopy(learned),  # a network that is tuned to one task must not carry over to the next
            free_knobs=settings.free_knobs,
        )
        made_ms = 1e3 * (time.perf_counter() - began)
        found = search(
            problem,
            sampler,
            budget=settings.budget,
            noise=settings.noise,
            noise_seed=seed_of("noise", unit.dataset.name, task, unit.seed),
            free_knobs=settings.free_knobs,
            until_best=settings.until_best,
        )
        if found.suggest_ms:
            found.suggest_ms[0] += made_ms
        runs.append(
            Run(
                dataset=unit.dataset.name,
                objective=unit.objective,
                searcher=unit.searcher,
                variant=settings.variant(learns=method.learn is not None),
                task=task,
                family=problem.surface.family,
                seed=unit.seed,
                train_s=train_s,
                train_tasks=len(names) + len(beside) if learned is not None else 0,
                code=code(),
                **vars(found),
            )
        )
    return runs


@lru_cache(maxsize=16)  # folds have the same training tasks only where these are named or come from another data set
def _learned(
    settings: Settings,
    dataset: Dataset,
    objective: str,
    searcher: str,
    seed: int,
    names: tuple[str, ...],
    beside: tuple[str, ...],
) -> tuple[Any, float]:
    """What a searcher takes from the named tasks, and the seconds that it took."""
    method = SEARCHERS[searcher]
    if method.learn is None:
        return None, 0.0
    tasks = [*training_tasks(settings, dataset, names, seed), *tasks_beside(settings, beside)]
    began = time.perf_counter()
    learned = learn(settings, searcher, tasks, learning_objective(dataset, objective), seed)
    return learned, time.perf_counter() - began


def learn(settings: Settings, searcher: str, tasks: Sequence[TrainingTask], objective: Objective, seed: int) -> Any:
    """What a searcher takes from tasks."""
    if searcher == "maml" and settings.maml is not None and tasks:
        from morphling_ray.meta import maml

        return maml.learn(tasks, objective, seed, settings.maml)
    return SEARCHERS[searcher].learned(tasks, objective, seed)


@cache
def code() -> str:
    """Fingerprint of the code that decides what is proposed and how it is judged."""
    import morphling_ray

    package, here = Path(morphling_ray.__file__).parent, Path(__file__).parent
    files = [f for part in _CODE for f in sorted((package / part).rglob("*.py")) or [package / part]]
    digest = hashlib.sha256()
    for file in (*files, here / "protocol.py", here / "training.py"):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:8]
