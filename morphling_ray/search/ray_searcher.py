"""A search session as a Ray Tune search algorithm: trial ids to trial numbers and back, and nothing else.

The trainable gets `{"number", "configuration", "stage", "needed", "exact"}` as its config and reports one result with
the key `measurement`: the JSON text of `Measurement.to_dict()`. Where the config has a `rival` as well, the two are
measured in turn (with the `ratio` of peaks at which they are equal, and whether it is `cheaper`), and the result has a
`rival` too. To Tune that is
one trial, to everybody else it is two.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher

from morphling_ray.errors import StoreError
from morphling_ray.measurement import Measurement
from morphling_ray.search.session import Ask, SearchSession

OnTrial = Callable[[int, Measurement, float | None], None]
"""Told the number, the measurement and the objective of every trial that has ended."""
OnAsk = Callable[[Ask], None]
"""Told of every trial that begins."""

_FORMAT = "morphling_ray searcher 1"


class SessionSearcher(Searcher):  # type: ignore[misc]  # Ray has no types
    """The adapter. A trial that ends without a measurement counts as infeasible; it never ends the search.

    Args:
        session: What decides.
        on_trial: Called after each trial.
        on_ask: Called before each trial.
    """

    CKPT_FILE_TMPL = "searcher-state-{}.json"  # plain data: restoring executes nothing

    def __init__(self, session: SearchSession, *, on_trial: OnTrial | None = None, on_ask: OnAsk | None = None) -> None:
        super().__init__(metric="objective", mode="max")
        self.session = session
        self._on_trial = on_trial
        self._on_ask = on_ask
        self._asks: dict[str, Ask] = {}
        self._told: list[dict[str, Any]] = []  # what restore needs, in the order in which trials ended

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its search algorithm; whom to tell belongs to this process and stays here."""
        return {**self.__dict__, "_on_trial": None, "_on_ask": None}

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """Nothing to take over: the session has its space and its objective."""
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The config of a trial; None while that depends on trials that are running, FINISHED after the last."""
        ask = self.session.next()
        if ask is None:
            return str(Searcher.FINISHED) if not self.session.more else None
        self._begin(trial_id, ask)
        return _config(ask)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Passes a measurement on. `result` may be None, or lack it, when the trial died."""
        ask = self._asks.pop(trial_id, None)
        if ask is None:  # ended twice, or never ours
            return
        self._tell(ask, _measurement(ask, "measurement", result, error))
        if ask.rival is not None:
            self._tell(ask.rival, _measurement(ask.rival, "rival", result, error))

    def _tell(self, ask: Ask, measurement: Measurement) -> None:
        objective = self.session.tell(ask.number, measurement)
        self._told.append({"number": ask.number, "stage": ask.stage, "measurement": measurement.to_dict()})
        if self._on_trial is not None:
            self._on_trial(ask.number, measurement, objective)

    def save(self, checkpoint_path: str) -> None:
        """Writes what was measured and what is running; the file appears whole or not at all."""
        running = {trial_id: _config(ask) for trial_id, ask in self._asks.items()}
        text = json.dumps({"format": _FORMAT, "told": self._told, "running": running})
        path = Path(checkpoint_path)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)

    def restore(self, checkpoint_path: str) -> None:
        """Replays what `save` wrote into the session, which must be a fresh one with the same seed.

        Raises:
            StoreError: The file is not such a state.
        """
        try:
            state = json.loads(Path(checkpoint_path).read_text(encoding="utf-8"))
            if state["format"] != _FORMAT:
                raise ValueError(f"format {state['format']!r}")
            told = [(int(t["number"]), str(t["stage"]), Measurement.from_dict(t["measurement"])) for t in state["told"]]
            running = {str(trial_id): _ask(config) for trial_id, config in state["running"].items()}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"{checkpoint_path} is not the state of a search ({type(error).__name__}: {error})"
            ) from error
        for number, stage, measurement in told:
            self.session.replay(number, stage, measurement)
        self._told = list(state["told"])
        for trial_id, ask in running.items():
            self.session.resume(ask)
            self._begin(trial_id, ask)

    def _begin(self, trial_id: str, ask: Ask) -> None:
        self._asks[trial_id] = ask
        if self._on_ask is not None:
            self._on_ask(ask)
            if ask.rival is not None:
                self._on_ask(ask.rival)


def _config(ask: Ask) -> dict[str, Any]:
    config: dict[str, Any] = {
        "number": ask.number,
        "configuration": dict(ask.configuration),
        "stage": ask.stage,
        "needed": dict(ask.needed),
        "exact": ask.exact,
    }
    return (
        config
        if ask.rival is None
        else {**config, "rival": _config(ask.rival), "ratio": ask.ratio, "cheaper": ask.cheaper}
    )


def _ask(config: dict[str, Any]) -> Ask:
    rival = config.get("rival")
    return Ask(**{**config, "rival": None if rival is None else _ask(rival)})


def _measurement(ask: Ask, key: str, result: dict[str, Any] | None, error: bool) -> Measurement:
    """What a trial measured, or why it has nothing."""
    text = None if error or not result else result.get(key)
    if text is None:
        why = "the trial ended with an error" if error else "the trial ended without a measurement"
        return Measurement(configuration=dict(ask.configuration), infeasible_because=why)
    try:
        return Measurement.from_dict(json.loads(text))
    except (ValueError, TypeError, KeyError, AttributeError) as problem:
        why = f"the trial reported no readable measurement ({type(problem).__name__}: {problem})"
        return Measurement(configuration=dict(ask.configuration), infeasible_because=why)
