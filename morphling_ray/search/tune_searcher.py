"""Any of our search methods as a Ray Tune search algorithm for an ordinary trainable.

    space = SearchSpace([Knob("batch", (1, 2, 4, 8)), Knob("cores", (1, 2, 4))])
    tuner = tune.Tuner(trainable, tune_config=tune.TuneConfig(
        search_alg=MorphlingSearcher(space, metric="rps", prior="prior.npz"), num_samples=20))

The trainable gets a configuration as its config and reports the metrics by name. One that reports nothing, NaN or a
metric that is not positive (metrics are modelled in logs), or that dies, is a configuration that does not work: the
search goes on and learns from it. What is asked for while other trials run takes them into account, so Tune's own
concurrency, a `ConcurrencyLimiter` and its batches all work.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher
from threadpoolctl import threadpool_limits

from morphling_ray.errors import InputError, StoreError
from morphling_ray.measurement import Measurement
from morphling_ray.objective import ExpressionObjective, Objective
from morphling_ray.search import Recommendation, make_sampler
from morphling_ray.search.history import NOISE_SD, pinned
from morphling_ray.search.stopping import StoppingRule
from morphling_ray.space import Configuration, Knob, SearchSpace, Value

_FORMAT = "morphling_ray tune searcher 1"


class MorphlingSearcher(Searcher):  # type: ignore[misc]  # Ray has no types
    """A Ray Tune searcher over a finite space.

    Args:
        space: The candidates, or a list of values by knob.
        metric: What the trainable reports and is to be optimised.
        mode: `max` or `min`.
        objective: Instead of `metric` and `mode`: an objective over several reported metrics, for example
            `ExpressionObjective("value", "rps / cores", ["latency_ms <= 50"], metrics=("rps", "latency_ms"))`.
        searcher: Name of the search method, one of `morphling_ray.search.SEARCHERS`.
        prior: File that `python -m morphling_ray.train` wrote; None: the one that comes with the package.
        points_to_evaluate: Configurations to try first, in order.
        evaluated: What is known already: pairs of a configuration and what it reported.
        noise_sd: About what standard deviation the logarithm of a metric has over repeats.
        stop_probability: Ends the search once the best so far is within 5 % of the best in the space with this
            probability (`StoppingRule`), as far as the method can say; None: never.
        seed: Equal seeds and results give equal proposals.

    Raises:
        InputError: Neither or both of a metric and an objective, a mode that is none, or an unknown method.
        SpaceError: A configuration to start from lacks a knob.
    """

    CKPT_FILE_TMPL = "searcher-state-{}.json"  # plain data: restoring executes nothing
    _metric: str | None
    _mode: str | None

    def __init__(
        self,
        space: SearchSpace | Mapping[str, Sequence[Value]],
        metric: str | None = None,
        mode: str = "max",
        *,
        objective: Objective | None = None,
        searcher: str = "morphling",
        prior: str | Path | None = None,
        points_to_evaluate: Sequence[Mapping[str, Value]] = (),
        evaluated: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]] = (),
        noise_sd: float = NOISE_SD,
        stop_probability: float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(metric=metric, mode=mode if metric else None)
        if not isinstance(space, SearchSpace):
            space = SearchSpace([Knob.infer(name, list(values)) for name, values in space.items()])
        self.space = space
        self._given = None if metric is None and objective is None else _objective(metric, mode, objective)
        self._settings: dict[str, Any] = {"name": searcher, "seed": seed, "prior": Path(prior) if prior else None}
        self._noise_sd = noise_sd
        self._stop_probability = stop_probability
        self._first = [self._configuration(c) for c in points_to_evaluate]
        self._known = [(self._configuration(c), dict(result)) for c, result in evaluated]
        self._start()

    def _start(self) -> None:
        """The state before any trial; it waits for Tune's metric where none was given."""
        self._waiting = list(self._first)
        self._running: dict[str, Configuration] = {}
        self._events: list[dict[str, Any]] = []  # what `restore` repeats
        self._stopping = StoppingRule(self._stop_probability)
        self._sampler = None
        if self._given is not None:
            self._sampler = make_sampler(objective=self._given, space=self.space, **self._settings)
            for configuration, result in self._known:
                self._sampler.observe(configuration, self._measurement(configuration, result))

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """Takes over the metric and mode of Tune's config where the constructor had none; False if it had others."""
        if metric is None:
            return True
        if self._given is not None:
            return bool(metric == self._metric and mode in (None, self._mode))
        self._metric, self._mode = metric, mode or "max"
        self._given = _objective(metric, mode or "max", None)
        self._start()
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The config of a trial; FINISHED when everything was tried, or the search is sure enough."""
        if self._sampler is None:
            raise InputError(
                "the search needs a metric: MorphlingSearcher(space, metric=...) or TuneConfig(metric=...)"
            )
        if self._stopping.met and not self._waiting:
            return str(Searcher.FINISHED)
        if self._waiting:
            configuration: Configuration | None = self._waiting.pop(0)
            self._sampler.reserve(dict(configuration or {}))
        else:
            with threadpool_limits(limits=1):  # small models; BLAS threads would wait for cores that the trials have
                configuration = self._sampler.suggest()
        if configuration is None:
            return str(Searcher.FINISHED)
        self._running[trial_id] = configuration
        self._events.append({"trial": trial_id, "asked": configuration})
        return dict(configuration)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Passes on what a trial reported; nothing, an error or NaN means that the configuration does not work."""
        configuration = self._running.pop(trial_id, None)
        if configuration is None:  # ended twice, or never ours
            return
        self._tell(trial_id, configuration, self._measurement(configuration, None if error else result))

    def add_evaluated_point(
        self,
        parameters: dict[str, Any],
        value: float,
        error: bool = False,
        pruned: bool = False,
        intermediate_values: list[float] | None = None,
    ) -> None:
        """Tells a result from elsewhere (Ray's own way to start warm); a pruned one says too little to be used."""
        if pruned or self._sampler is None:
            return
        configuration = self._configuration(parameters)
        result = None if error or self._metric is None else {self._metric: value}
        self._sampler.reserve(configuration)
        self._tell(None, configuration, self._measurement(configuration, result))

    def recommendation(self) -> Recommendation | None:
        """The best of what was tried, by expected objective; None before anything worked."""
        return None if self._sampler is None else self._sampler.recommend()

    def save(self, checkpoint_path: str) -> None:
        """Writes everything that happened; the file appears whole or not at all."""
        text = json.dumps({"format": _FORMAT, "metric": self._metric, "mode": self._mode, "events": self._events})
        path = Path(checkpoint_path)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)

    def restore(self, checkpoint_path: str) -> None:
        """Lives through what `save` wrote once more, so that the search goes on as if it had never stopped.

        The searcher must have been made with the same arguments.

        Raises:
            StoreError: The file is not such a state, or that of another search.
        """
        try:
            state = json.loads(Path(checkpoint_path).read_text(encoding="utf-8"))
            if state["format"] != _FORMAT:
                raise ValueError(f"format {state['format']!r}")
            if self._given is None and state["metric"] is not None:
                self.set_search_properties(state["metric"], state["mode"], {})
            self._start()
            for event in state["events"]:
                self._repeat(event)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(
                f"{checkpoint_path} is not the state of this search ({type(error).__name__}: {error})"
            ) from error

    def _repeat(self, event: Mapping[str, Any]) -> None:
        if "asked" in event:
            again = self.suggest(event["trial"])
            if again != event["asked"]:
                raise ValueError(f"trial {event['trial']} would be {again} now")
            return
        measurement = Measurement.from_dict(event["told"])
        if event["trial"] is None and self._sampler is not None:
            self._sampler.reserve(measurement.configuration)
        self._running.pop(event["trial"], None)
        self._tell(event["trial"], measurement.configuration, measurement)

    def _tell(self, trial_id: str | None, configuration: Configuration, measurement: Measurement) -> None:
        self._events.append({"trial": trial_id, "told": measurement.to_dict()})
        if self._sampler is not None:
            self._sampler.observe(configuration, measurement)
            if self._stopping.probability is not None:
                with threadpool_limits(limits=1):
                    found = self._sampler.recommend()
                self._stopping.told(found.p_near_best if found is not None else None)

    def _measurement(self, configuration: Configuration, result: Mapping[str, Any] | None) -> Measurement:
        """What a trial reported, as far as the objective needs it."""
        names = self._given.metrics if self._given is not None else ()
        reported = {name: (result or {}).get(name) for name in names}
        metrics = {name: float(v) for name, v in reported.items() if isinstance(v, (int, float))}
        measurement = Measurement(
            configuration=configuration, metrics=metrics, noise_sd=dict.fromkeys(names, self._noise_sd)
        )
        usable = pinned(measurement, names)
        if len(usable) < len(names):
            why = "the trial failed" if not result else f"reported {reported}"
            return Measurement(configuration=configuration, infeasible_because=why)
        return measurement

    def _configuration(self, given: Mapping[str, Any]) -> Configuration:
        names = [knob.name for knob in self.space.knobs]
        if missing := [name for name in names if name not in given]:
            raise InputError(f"the configuration {dict(given)} lacks {', '.join(missing)}")
        return {name: given[name] for name in names}


def _objective(metric: str | None, mode: str, objective: Objective | None) -> Objective:
    if (metric is None) == (objective is None):
        raise InputError("give either a metric with its mode, or an objective")
    if objective is not None:
        return objective
    if mode not in ("max", "min"):
        raise InputError(f"mode is max or min, got {mode!r}")
    return MetricObjective(str(metric), lower=mode == "min")


class MetricObjective(ExpressionObjective):
    """One reported metric, whatever its name, to be maximised, or minimised by maximising its reciprocal.

    Args:
        metric: Its name.
        lower: Whether lower is better.
    """

    def __init__(self, metric: str, *, lower: bool) -> None:
        super().__init__(metric, "value" if not lower else "1 / value", metrics=("value",))
        self.metrics = (metric,)
        self._lower = lower

    def __call__(self, columns: Mapping[str, Any], metrics: Mapping[str, Any]) -> Any:
        """See `Objective`."""
        return super().__call__({}, {"value": metrics[self.metrics[0]]})

    def slack(self, columns: Mapping[str, Any], metrics: Mapping[str, Any]) -> Any:
        """See `Objective`."""
        return super().slack({}, {"value": metrics[self.metrics[0]]})

    def reported(self, value: float) -> float:
        """The metric itself."""
        return 1.0 / value if self._lower and value > 0 else value
