"""Finds the cheapest or fastest configuration of a Ray Serve application that meets a latency SLO.

The whole system is one loop:

    space = SearchSpace([Knob("cpu_cores", (1, 2, 4)), Knob("max_batch_size", (1, 8, 32))])  # space.py
    for _ in range(max_trials):
        configuration = searcher.propose()                 # search/: the first ones come from the prior (meta/)
        measurement = evaluator.measure(configuration)     # evaluate/: replayed, or served and loaded (serving/, load/)
        searcher.observe(configuration, measurement)       # the metrics, or the reason that there are none
    configuration = searcher.recommend()                   # the best by the objective (objective.py)

`Evaluator.measure` is the seam: everything above it is the same on a recorded surface (surface.py) and on a live
cluster. What was measured is kept (store.py), told (progress.py, report.py), handed on (result.py, export.py), and
can train the next prior (train.py). `morphling_ray.tune(app, ...)` and `python -m morphling_ray.tune` run it all.

Names are imported when they are first used, so `import morphling_ray` is quick and needs neither Ray nor torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from morphling_ray.api import tune
    from morphling_ray.measurement import Measurement, Probe, Trial, Verdict
    from morphling_ray.objective import ExpressionObjective, Prices, Slo
    from morphling_ray.result import Result
    from morphling_ray.search.tune_searcher import MorphlingSearcher
    from morphling_ray.serving.batcher import Batcher
    from morphling_ray.space import Knob, SearchSpace
    from morphling_ray.surface import Surface, load_surfaces

__version__ = "0.1.0"

__all__ = [
    "Batcher",
    "ExpressionObjective",
    "Knob",
    "Measurement",
    "MorphlingSearcher",
    "Prices",
    "Probe",
    "Result",
    "SearchSpace",
    "Slo",
    "Surface",
    "Trial",
    "Verdict",
    "__version__",
    "load_surfaces",
    "tune",
]

_MODULE_OF = {
    "Batcher": "serving.batcher",
    "ExpressionObjective": "objective",
    "Knob": "space",
    "Measurement": "measurement",
    "MorphlingSearcher": "search.tune_searcher",
    "Prices": "objective",
    "Probe": "measurement",
    "Result": "result",
    "SearchSpace": "space",
    "Slo": "objective",
    "Surface": "surface",
    "Trial": "measurement",
    "Verdict": "measurement",
    "load_surfaces": "surface",
    "tune": "api",  # a module too: once that is imported it has the name, and is called like the function
}


def __getattr__(name: str) -> Any:
    """Imports a public name on its first use (PEP 562)."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, also those not imported yet."""
    return sorted({*globals(), *__all__})
