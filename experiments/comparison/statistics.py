"""Numbers from the finished runs of one searcher: how soon, how good, how sure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from experiments.comparison.results import Run
from morphling_ray.search.stopping import stops_after

QUALITY_AT = (3, 5, 10, 20)
STOP_AT = 0.9  # `p_near_best` at which a search would stop
NEAR = 0.95


def samples_to(curve: Sequence[float], threshold: float) -> int:
    """Samples until a curve first reaches a threshold; one more than its length if it never does."""
    return next((n for n, value in enumerate(curve, start=1) if value >= threshold), len(curve) + 1)


@dataclass(frozen=True)
class Reach:
    """How many samples it takes to come near the best.

    Attributes:
        median: Half of the runs need no more; above `budget` if fewer than half get there.
        p90: The least number by which nine in ten runs are there; above `budget` if fewer are.
        budget: Samples that the runs had.
    """

    median: float
    p90: float
    budget: int

    @classmethod
    def of(cls, counts: Sequence[int], budget: int) -> "Reach":
        """Of the samples that each run took, `budget + 1` for those that never got there."""
        return cls(float(np.median(counts)), float(np.quantile(counts, 0.9, method="inverted_cdf")), budget)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One searcher over many runs.

    Attributes:
        label: The searcher, and what sets its runs apart.
        runs: How many.
        clear5: Samples to within 5 % of the clear optimum.
        raw5: Samples to within 5 % of the optimum.
        clear10: Samples to within 10 % of the clear optimum.
        quality_at: Mean quality after so many samples.
        probes: Median probes spent until within 5 % of the clear optimum; infinite if fewer than half get there.
        suggest_ms: Median milliseconds of thought per sample.
        train_s: Median seconds to learn from earlier tasks; None for a searcher that does not.
    """

    label: str
    runs: int
    clear5: Reach
    raw5: Reach
    clear10: Reach
    quality_at: Mapping[int, float]
    probes: float
    suggest_ms: float
    train_s: float | None

    @classmethod
    def of(cls, runs: Sequence[Run]) -> "Summary":
        """Of the runs of one searcher; all have the same budget."""
        budget = len(runs[0].quality)
        clear5 = [samples_to(run.quality_clear, NEAR) for run in runs]
        raw5 = [samples_to(run.quality, NEAR) for run in runs]
        clear10 = [samples_to(run.quality_clear, 0.9) for run in runs]
        probes = [float(run.probes[n - 1]) if n <= budget else np.inf for run, n in zip(runs, clear5)]
        timings = [ms for run in runs for ms in run.suggest_ms]
        learned = [run.train_s for run in runs if run.train_s > 0]
        return cls(
            label=runs[0].label,
            runs=len(runs),
            clear5=Reach.of(clear5, budget),
            raw5=Reach.of(raw5, budget),
            clear10=Reach.of(clear10, budget),
            quality_at={n: float(np.mean([r.quality[n - 1] for r in runs])) for n in QUALITY_AT if n <= budget},
            probes=_median(probes),
            suggest_ms=float(np.median(timings)) if timings else 0.0,
            train_s=float(np.median(learned)) if learned else None,
        )


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What came of stopping when the searcher itself is sure, as `StoppingRule` with `STOP_AT` has it.

    Attributes:
        label: The searcher.
        runs: How many; one that never has anything to recommend never stops.
        stopped: Share of them that stop within the budget.
        right: Share of those that stop whose recommendation is then within 5 % of the clear optimum; NaN if none stops.
        samples: Median samples at which those stop; NaN if none does.
    """

    label: str
    runs: int
    stopped: float
    right: float
    samples: float


def calibration(runs: Sequence[Run]) -> Calibration | None:
    """Of the runs of one searcher; None if it never says how sure it is."""
    if all(p is None for run in runs for p in run.p_near_best):
        return None
    at = [(stops_after(run.p_near_best, STOP_AT), run) for run in runs]
    stops = [(n, run.quality_clear[n - 1]) for n, run in at if n is not None]
    return Calibration(
        label=runs[0].label,
        runs=len(runs),
        stopped=len(stops) / len(runs),
        right=float(np.mean([quality >= NEAR for _, quality in stops])) if stops else np.nan,
        samples=float(np.median([n for n, _ in stops])) if stops else np.nan,
    )


def _median(values: Sequence[float]) -> float:
    """The median, infinite where the half that is not is too small."""
    ordered = sorted(values)
    low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    return float("inf") if np.isinf(high) else (low + high) / 2
