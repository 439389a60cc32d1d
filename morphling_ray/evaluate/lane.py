"""A lane: the Ray actor that owns one online evaluator, so that the application stays up from trial to trial.

Trials are short-lived; the replicas they measure need not be. A trial asks its lane to measure and waits; whoever
wants to show progress asks the lane meanwhile what it is doing.
"""

import json
from collections import deque
from dataclasses import asdict
from typing import Any, NamedTuple

from morphling_ray.evaluate import Evaluator
from morphling_ray.measurement import Measurement, Probe
from morphling_ray.space import Configuration

NAMESPACE = "morphling_ray"


class Doing(NamedTuple):
    """What a lane is doing: the trial's number, in a few words what, and the trial's latest probe if there was one.

    Of two trials that are compared in turn it is the first one's number, whichever of them is being loaded.
    """

    number: int
    stage: str
    probe: Probe | None = None


class Lane:
    """One evaluator, one measurement at a time.

    Args:
        make_evaluator: Called in the actor's process.
        arguments: Keyword arguments for it.
    """

    def __init__(self, make_evaluator: Any, arguments: dict[str, Any]) -> None:
        self._evaluator: Evaluator = make_evaluator(**arguments)
        self._stage: tuple[int, str] | None = None
        # Of an evaluator that loads something; others have none.
        self._probes: deque[Probe] = getattr(self._evaluator, "probes", deque())

    def measure(self, ask: dict[str, Any]) -> dict[str, str]:
        """Measures what a searcher asked for.

        Args:
            ask: `number`, `configuration`, `stage` (`search` or `confirm`), `needed` and `exact`; for a comparison also
                `rival`, which is such a dict, `ratio` and `cheaper`; and `tried`, where others have measured as well.

        Returns:
            `measurement` as JSON text, and that of the `rival`. An error of our own is a reason too: a trial never
            takes the search down.
        """

        def say(text: str) -> None:
            self._stage = (ask["number"], text)

        evaluator, rival = self._evaluator, ask.get("rival")
        self._probes.clear()  # those of the trial before
        measured: tuple[Measurement, ...]
        try:
            if ask.get("tried"):
                evaluator.tried(ask["tried"])  # type: ignore[attr-defined]
            if rival is not None:
                sides = (ask["configuration"], rival["configuration"])
                measured = evaluator.compare(*sides, ratio=ask["ratio"], cheaper=ask["cheaper"], progress=say)
            else:
                measured = (
                    evaluator.measure(
                        ask["configuration"],
                        needed=ask["needed"],
                        confirm=ask["stage"] == "confirm",
                        exact=ask["exact"],
                        progress=say,
                    ),
                )
        except Exception as error:  # noqa: BLE001  whatever it is ends this trial, not the search
            reason = f"the measurement failed: {type(error).__name__}: {' '.join(str(error).split())[:500]}"
            measured = tuple(
                Measurement(configuration=side["configuration"], infeasible_because=reason)
                for side in (ask, rival)
                if side is not None
            )
        finally:
            self._stage = None
        return dict(zip(("measurement", "rival"), (json.dumps(m.to_dict()) for m in measured)))

    def cross_check(self, number: int, configuration: Configuration) -> dict[str, Any]:
        """What MLPerf LoadGen finds; see `OnlineEvaluator.cross_check`.

        Args:
            number: Of the trial that is shown to be going on.
            configuration: Which has been measured before.
        """

        def say(text: str) -> None:
            self._stage = (number, text)

        try:
            return asdict(self._evaluator.cross_check(configuration, say))  # type: ignore[attr-defined]
        finally:
            self._stage = None

    def throughput(self, number: int, configuration: Configuration) -> float:
        """Requests a second of a short closed loop.

        Args:
            number: Of the trial that is shown to be going on.
            configuration: Which is brought up if need be.
        """
        self._stage = (number, "measuring whether two trials may share the node")
        try:
            return float(self._evaluator.throughput(configuration))  # type: ignore[attr-defined]
        finally:
            self._stage = None

    def release(self) -> None:
        """Takes the application down until the next trial: another lane wants its place."""
        self._evaluator.release()  # type: ignore[attr-defined]

    def stage(self) -> Doing | None:
        """What is being done; None between trials."""
        stage, probes = self._stage, list(self._probes)
        return Doing(*stage, *probes[-1:]) if stage is not None else None

    def close(self) -> None:
        """Takes down what the evaluator put up."""
        self._evaluator.close()
