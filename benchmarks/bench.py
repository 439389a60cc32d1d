"""What the benchmarks share: an application that is up, a long reference, and how results are kept."""

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import isotonic_regression  # type: ignore[import-untyped]

from morphling_ray.cluster import connect, disconnect
from morphling_ray.console import quiet
from morphling_ray.environment import environment
from morphling_ray.evaluate.online import OnlineEvaluator
from morphling_ray.experiment import Experiment
from morphling_ray.load.crew import Crew
from morphling_ray.serving.deployment import leave_serve
from morphling_ray.target import Plan, ServeTarget

RESULTS = Path(__file__).parent / "results"
WINDOW_S = 4.0


@contextlib.contextmanager
def serving(**settings: Any) -> Iterator[tuple[Plan, OnlineEvaluator, Callable[[str], None]]]:
    """A local Ray with Serve, and an evaluator for the application of an experiment with these settings.

    Yields:
        The plan, the evaluator, and what prints a line: everything else that is printed goes to a file.
    """
    RESULTS.mkdir(exist_ok=True)
    log = RESULTS / "ray.log"
    with quiet(log) as console:
        target = ServeTarget(Experiment(**settings))
        cluster = connect(None)
        try:
            target.start_serve()
            plan = target.plan(cluster)
            evaluator = OnlineEvaluator(**plan.arguments)
            yield plan, evaluator, lambda text: print(text, file=console.stdout, flush=True)
            evaluator.close()
            leave_serve(shut_down=True, wait=False)
        finally:
            disconnect()
    log.unlink(missing_ok=True)


@dataclass
class Reference:
    """Whole windows with fresh arrivals at rates around a peak, until their late shares say where it is.

    Args:
        around_rps: About the peak.
        seed: Of the first schedule.
        low: Lowest rate, over `around_rps`.
        high: Highest rate, over `around_rps`.
        levels: How many rates.
    """

    around_rps: float
    seed: int
    low: float = 0.78
    high: float = 1.22
    levels: int = 11

    def __post_init__(self) -> None:
        self.rates = self.around_rps * np.geomspace(self.low, self.high, self.levels)
        self.late = np.zeros(self.levels)
        self.requests = np.zeros(self.levels)
        self.seconds = 0.0
        self._order: list[int] = []
        self._rng = np.random.default_rng(self.seed)

    def window(self, crew: Crew) -> None:
        """One more window, at a rate that has had its turn the fewest times."""
        if not self._order:
            self._order = [int(i) for i in self._rng.permutation(self.levels)]
        i = self._order.pop()
        seed = int(self._rng.integers(2**31))
        probe = crew.probe(rate_rps=float(self.rates[i]), window_s=WINDOW_S, seed=seed, whole=True)
        crew.drain()
        self.late[i] += probe.late
        self.requests[i] += probe.requests
        self.seconds += WINDOW_S

    def peak_rps(self, allowed: float = 0.01) -> float:
        """Where the share of late requests, fitted so that it grows with the rate, passes what is allowed."""
        seen = self.requests > 0
        share = isotonic_regression(self.late[seen] / self.requests[seen], weights=self.requests[seen]).x
        rates = np.log(self.rates[seen])
        passing = np.flatnonzero(share <= allowed)
        if not len(passing):
            return float(np.exp(rates[0]))
        last = int(passing[-1])
        if last == len(rates) - 1:
            return float(np.exp(rates[-1]))
        part = (allowed - share[last]) / (share[last + 1] - share[last])
        return float(np.exp(rates[last] + part * (rates[last + 1] - rates[last])))


def spread(values: Sequence[float]) -> float:
    """Coefficient of variation, from logs."""
    return float(np.std(np.log(np.asarray(values)), ddof=1)) if len(values) > 1 else float("nan")


def percentiles(values: Sequence[float] | npt.NDArray[np.float64]) -> str:
    """`median (p90)`, to three digits."""
    return f"{np.median(values):.3g} (p90 {np.quantile(values, 0.9):.3g})"


def keep(name: str, rows: Sequence[dict[str, Any]], command: Sequence[str]) -> None:
    """Writes what was measured, with where and when, one JSON line each."""
    said = " ".join(["python -m", f"benchmarks.{name}", *command])
    lines = [{"environment": {**environment([]), "command": said}}, *rows]
    (RESULTS / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
