"""Google Vizier's designers on a finite set of candidates. Imported by `vizier_search` when the first one is needed."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import equinox
import jax
import numpy as np
import numpy.typing as npt
from vizier import algorithms as vza
from vizier import pyvizier as vz
from vizier._src.algorithms.designers.gp_bandit import VizierGPBandit  # vizier.algorithms would import cvxpy as well
from vizier._src.algorithms.designers.gp_ucb_pe import VizierGPUCBPEBandit

jax.config.update("jax_enable_x64", True)  # as Vizier's own service does

FloatArray = npt.NDArray[np.float64]
Study = tuple[Sequence[int], FloatArray]
"""Rows of configurations, and their values."""

_METRIC = "objective"
_EPOCH = datetime(2000, 1, 1)  # trials are ordered by time; a clock would make proposals differ from run to run


class Scene:
    """Configurations in Vizier's terms: numbers in [0, 1], and categories.

    Args:
        codes: One column for each knob, n rows: floats for numbers, text for categories.
        seed: Of the designers.
    """

    def __init__(self, codes: Sequence[Sequence[float | str]], seed: int) -> None:
        self._rows = [{f"knob{j}": value for j, value in enumerate(row)} for row in codes]
        self._seed = seed
        self._problem = vz.ProblemStatement()
        for name, value in self._rows[0].items():
            if isinstance(value, str):
                categories = sorted({str(row[name]) for row in self._rows})
                self._problem.search_space.root.add_categorical_param(name, categories)
            else:
                self._problem.search_space.root.add_float_param(name, 0.0, 1.0)
        goal = vz.ObjectiveMetricGoal.MAXIMIZE
        self._problem.metric_information.append(vz.MetricInformation(_METRIC, goal=goal))

    def fit_prior(self, studies: Sequence[Study]) -> Any:
        """The stack of Gaussian processes of earlier studies."""
        designer = self._transfer_designer(len(studies), [])
        designer.set_priors([vza.CompletedTrials(self._completed(dict(zip(rows, values)))) for rows, values in studies])
        return designer.prior

    def best(self, untried: Sequence[int], value: Mapping[int, float], pending: Mapping[int, int]) -> int:
        """The untried row with the largest acquisition of Vizier's default algorithm.

        Args:
            untried: Rows to choose from.
            value: Of the rows that were measured, in the order in which that ended; 0 is infeasible.
            pending: Rows that are being measured, and how many measurements had ended when each began.
        """
        choice = Untried(self._trials(untried))
        designer = VizierGPUCBPEBandit(
            self._problem, rng=self._rng(len(value)), acquisition_optimizer_factory=lambda converter: choice
        )
        active = [
            vz.Trial(id=len(value) + i + 1, parameters=self._rows[row], creation_time=_at(ended))
            for i, (row, ended) in enumerate(pending.items())
        ]
        designer.update(vza.CompletedTrials(self._completed(value)), vza.ActiveTrials(active))
        designer.suggest(1)
        return int(untried[choice.chosen])

    def best_with_prior(self, untried: Sequence[int], value: Mapping[int, float], prior: Any) -> int:
        """The untried row with the largest upper confidence bound on top of earlier studies; see `best`."""
        designer = self._transfer_designer(len(value), self._trials(untried))
        designer.prior = prior
        designer.update(vza.CompletedTrials(self._completed(value)), vza.ActiveTrials())
        designer.suggest(1)
        return int(untried[designer.chosen])

    def _transfer_designer(self, stream: int, untried: Sequence[vz.Trial]) -> "TransferDesigner":
        designer = TransferDesigner(self._problem, rng=self._rng(stream), num_seed_trials=0)
        designer.untried = untried
        return designer

    def _rng(self, stream: int) -> jax.Array:
        return jax.random.fold_in(jax.random.PRNGKey(self._seed), stream)

    def _trials(self, rows: Sequence[int]) -> list[vz.Trial]:
        return [vz.Trial(parameters=self._rows[row]) for row in rows]

    def _completed(self, value: Mapping[int, float]) -> list[vz.Trial]:
        return [
            vz.Trial(
                id=i + 1,
                parameters=self._rows[row],
                creation_time=_at(i),
                completion_time=_at(i + 1),
                final_measurement=vz.Measurement({_METRIC: v}) if v > 0 else None,
                infeasibility_reason=None if v > 0 else "fails or breaks a bound",
            )
            for i, (row, v) in enumerate(value.items())
        ]


class Untried(vza.GradientFreeOptimizer):  # type: ignore[misc]  # the library has no types
    """Maximises an acquisition by evaluating it on every untried configuration.

    Args:
        trials: These.
    """

    def __init__(self, trials: Sequence[vz.Trial]) -> None:
        self._trials = trials
        self.chosen = 0
        """Which of them was best."""

    def optimize(self, score_fn: Any, problem: Any, **unused: Any) -> list[vz.Trial]:
        """See `GradientFreeOptimizer`."""
        scores = np.asarray(score_fn(self._trials)["acquisition"], float).reshape(-1)
        self.chosen = int(np.nan_to_num(scores, nan=-np.inf).argmax())
        best = self._trials[self.chosen]
        best.complete(vz.Measurement({"acquisition": float(scores[self.chosen])}))
        return [best]


class TransferDesigner(VizierGPBandit):  # type: ignore[misc]
    """Vizier's designer that takes prior studies, with the acquisition evaluated on every untried configuration."""

    untried: Sequence[vz.Trial] = ()
    chosen = 0

    @property
    def prior(self) -> Any:
        """What was fitted to the prior studies."""
        return self._prior_gp

    @prior.setter
    def prior(self, fitted: Any) -> None:
        self._prior_gp = fitted

    def suggest(self, count: int = 1) -> Sequence[vz.TrialSuggestion]:
        """See `VizierGPBandit`; without trials the prior studies alone decide, which it would not ask."""
        if self._trials:
            suggestions: Sequence[vz.TrialSuggestion] = super().suggest(count)
            return suggestions
        scoring = self._scoring_function_factory(self._trials_to_data([]), self._prior_gp, False)
        return self._optimize_acquisition(scoring, count)

    def _optimize_acquisition(self, scoring_fn: Any, count: int) -> list[vz.Trial]:
        features = self._converter.to_features(self.untried)
        scores = equinox.filter_jit(scoring_fn.score)(features, jax.random.PRNGKey(0))  # it draws nothing
        self.chosen = int(np.nan_to_num(np.asarray(scores, float).reshape(-1), nan=-np.inf).argmax())
        return [self.untried[self.chosen]]


def _at(ended: int) -> datetime:
    return _EPOCH + timedelta(seconds=ended)
