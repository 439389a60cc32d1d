"""What the twin makes of a table, without a replica: when it is let go of, and which batches it does not promise."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from morphling_ray.evaluate.batching import BatchingTwin, _Table
from morphling_ray.objective import Slo
from morphling_ray.serving.application import inspect_app
from morphling_ray.serving.twin import NO_STRAYS, Rule, ServiceTimes
from morphling_ray.space import Configuration, Knob, SearchSpace

SMALL: Configuration = {"max_batch_size": 4}


def twin(rule: Rule, works: float = math.inf) -> BatchingTwin:
    """With a table of one replica: 10 ms a batch and 1 ms a request."""
    facts = inspect_app(f"{Path(__file__).parent / 'apps' / 'batched.py'}:app")
    nobody: Any = None
    made = BatchingTwin(facts, Slo(latency_s=0.1), nobody, SearchSpace([Knob("max_batch_size", (1, 4, 16))]))
    sizes = np.arange(1, 17)
    times = ServiceTimes(sizes, np.array([0.01 + 0.001 * n for n in sizes]), NO_STRAYS)
    made._tables[made._deployment(SMALL)] = _Table(times, 0.001, rule, works)
    made._batchers = [nobody]
    return made


def test_a_forecast_for_serves_own_batches_is_let_go_of_where_probes_say_something_else() -> None:
    """Fails if a forecast that is off is told on, or if one that is near, or our own batcher's, is thrown away."""
    found = twin("blocking")
    assert found.holds(SMALL, 100.0, 110.0)
    assert found.knows(SMALL)
    assert not found.holds(SMALL, 100.0, 70.0)
    assert not found.knows(SMALL)
    assert found._deployment(SMALL) in found._unfit
    own = twin("work-conserving")
    assert own.holds(SMALL, 100.0, 70.0)
    assert own.knows(SMALL)


def test_batches_that_failed_in_the_sweep_are_promised_nothing() -> None:
    """Fails if a size is extrapolated to that ran out of memory."""
    every: list[Configuration] = [{"max_batch_size": size} for size in (1, 4, 16)]
    fine = twin("work-conserving").forecast(every)
    assert fine[2] > fine[1] > fine[0] > 0
    assert twin("work-conserving", works=4.0).forecast(every) == [fine[0], fine[1], 0.0]
