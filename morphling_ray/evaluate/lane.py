"""A lane: the Ray actor that owns one online evaluator, so that the application stays up from trial to trial.

Trials are short-lived; the replicas they measure need not be. A trial asks its lane to measure and waits; whoever
wants to show progress asks the lane meanwhile what it is doing.
"""

import json
from typing import Any

import ray

from morphling_ray.evaluate import Evaluator
from morphling_ray.measurement import Measurement

NAMESPACE = "morphling_ray"


class Lane:
    """One evaluator, one measurement at a time.

    Args:
        make_evaluator: Called in the actor's process.
        arguments: Keyword arguments for it.
    """

    def __init__(self, make_evaluator: Any, arguments: dict[str, Any]) -> None:
        self._evaluator: Evaluator = make_evaluator(**arguments)
        self._stage: tuple[int, str] | None = None

    def measure(self, ask: dict[str, Any]) -> str:
        """Measures what a searcher asked for.

        Args:
            ask: `number`, `configuration`, `stage` (`search` or `confirm`), `needed` and `exact`.

        Returns:
            The measurement as JSON text. An error of our own is a reason too: a trial never takes the search down.
        """

        def say(text: str) -> None:
            self._stage = (ask["number"], text)

        try:
            measurement = self._evaluator.measure(
                ask["configuration"],
                needed=ask["needed"],
                confirm=ask["stage"] == "confirm",
                exact=ask["exact"],
                progress=say,
            )
        except Exception as error:  # noqa: BLE001  a lost node or a dead driver ends this trial, not the search
            text = " ".join(str(error).split())[:500]
            measurement = Measurement(
                configuration=ask["configuration"],
                infeasible_because=f"the measurement failed: {type(error).__name__}: {text}",
            )
        finally:
            self._stage = None
        return json.dumps(measurement.to_dict())

    def stage(self) -> tuple[int, str] | None:
        """Trial number and what is being done for it; None between trials."""
        return self._stage

    def close(self) -> None:
        """Takes down what the evaluator put up."""
        self._evaluator.close()


def start_lane(name: str, make_evaluator: Any, arguments: dict[str, Any]) -> Any:
    """Starts a named lane on this node; two calls may run at once, so that `stage` answers during `measure`."""
    return (
        ray.remote(Lane)
        .options(name=name, namespace=NAMESPACE, num_cpus=0, max_concurrency=2, lifetime=None)
        .remote(make_evaluator, arguments)
    )
