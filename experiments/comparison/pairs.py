"""One searcher against another, task by task: whether a difference is more than luck."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from experiments.comparison.results import Run
from experiments.comparison.statistics import NEAR, QUALITY_AT, samples_to

FloatArray = npt.NDArray[np.float64]
Pairing = tuple[str, str, str, int]
"""Data set, objective, task, seed: what two searchers must share to be compared."""

RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Paired:
    """One searcher against another on the same tasks, seeds and noise; positive differences favour the first.

    Attributes:
        label: The first searcher.
        against: The other.
        runs: Pairs of runs.
        tasks: Tasks that they are of; intervals are over these.
        quality: Mean difference in quality after so many samples.
        samples: Mean samples to within 5 % of the clear optimum that the first saves; "never" counts as budget + 1.
        ratio: Geometric mean of the ratios of those samples: 2 means that the other needs twice as many.
        median_ratio: Ratio of the medians of those samples.
        better: Tasks in which the first needs fewer samples on average over seeds.
        worse: Tasks in which it needs more.
    """

    label: str
    against: str
    runs: int
    tasks: int
    quality: Mapping[int, Estimate]
    samples: Estimate
    ratio: Estimate
    median_ratio: Estimate
    better: int
    worse: int


def paired(first: Sequence[Run], other: Sequence[Run], *, seed: int = 0) -> Paired | None:
    """Compares two searchers on what both have run; None if that is nothing."""
    a, b = ({pairing(run): run for run in runs} for runs in (first, other))
    shared = sorted(a.keys() & b.keys())
    if not shared:
        return None
    clusters = [key[0] + "\0" + key[2] for key in shared]  # a task under several objectives is one cluster
    n_a = np.array([samples_to(a[key].quality_clear, NEAR) for key in shared], float)
    n_b = np.array([samples_to(b[key].quality_clear, NEAR) for key in shared], float)
    budget = min(len(a[key].quality) for key in shared)
    quality = {}
    for n in (n for n in QUALITY_AT if n <= budget):
        gap = np.array([a[key].quality[n - 1] - b[key].quality[n - 1] for key in shared])
        quality[n] = bootstrap(gap[:, None], clusters, _mean, seed=seed)
    both = np.stack([n_a, n_b], axis=1)
    saved = dict.fromkeys(clusters, 0.0)
    for cluster, gain in zip(clusters, n_b - n_a):
        saved[cluster] += gain
    return Paired(
        label=first[0].label,
        against=other[0].label,
        runs=len(shared),
        tasks=len(saved),
        quality=quality,
        samples=bootstrap((n_b - n_a)[:, None], clusters, _mean, seed=seed),
        ratio=bootstrap(np.log(n_b / n_a)[:, None], clusters, lambda v: np.exp(_mean(v)), seed=seed),
        median_ratio=bootstrap(both, clusters, _ratio_of_medians, seed=seed),
        better=sum(gain > 0 for gain in saved.values()),
        worse=sum(gain < 0 for gain in saved.values()),
    )


def bootstrap(
    values: FloatArray,
    clusters: Sequence[str],
    statistic: Callable[[FloatArray], FloatArray],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """A statistic and its 95 % percentile interval under resampling of whole clusters.

    Runs of one task share its surface, so drawing runs one by one would make intervals too narrow.

    Args:
        values: Shape `(runs, k)`.
        clusters: Task of each run.
        statistic: From shape `(resamples, m, k)`, NaN where a cluster has fewer runs than another, to `(resamples,)`.
        resamples: How many are drawn.
        seed: Of the draws.
    """
    rows: dict[str, list[int]] = {}
    for i, cluster in enumerate(clusters):
        rows.setdefault(cluster, []).append(i)
    size = max(map(len, rows.values()))
    table = np.full((len(rows), size, values.shape[1]), np.nan)  # (clusters, runs of each, k)
    for c, members in enumerate(rows.values()):
        table[c, : len(members)] = values[members]
    drawn = np.random.default_rng(seed).integers(len(rows), size=(resamples, len(rows)))
    found = statistic(table[drawn].reshape(resamples, -1, values.shape[1]))
    low, high = np.quantile(found, [0.025, 0.975])
    return Estimate(float(statistic(values[None])[0]), float(low), float(high))


def pairing(run: Run) -> Pairing:
    """What a run shares with the runs of other searchers that it may be compared with."""
    return run.dataset, run.objective, run.task, run.seed


def _mean(values: FloatArray) -> FloatArray:
    return np.asarray(np.nanmean(values, axis=(1, 2)))


def _ratio_of_medians(values: FloatArray) -> FloatArray:
    first, other = np.moveaxis(np.nanmedian(values, axis=1), -1, 0)
    return np.asarray(other / first)
