"""The trials of a search as Ray Tune runs them: each asks the lanes to measure, and waits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from morphling_ray.evaluate.lane import NAMESPACE
from morphling_ray.measurement import Measurement
from morphling_ray.search.session import Ask, SearchSession

TUNE_FOLDER = "tune"


def run_trials(
    session: SearchSession,
    lanes: str,
    *,
    at_once: int,
    folder: Path,
    on_ask: Callable[[Ask], None] | None = None,
    on_trial: Callable[[int, Measurement, float | None], None],
) -> None:
    """Has Ray Tune run a search's trials to its end.

    Args:
        session: What is tried, and when that is enough.
        lanes: Name of the actor that measures, see `evaluate.lanes`.
        at_once: Trials at the same time.
        folder: Where Tune may write.
        on_ask: Told of each trial that begins.
        on_trial: Told of each trial that has ended.
    """
    from ray import tune

    from morphling_ray.search.ray_searcher import SessionSearcher

    def morphling_trial(config: dict[str, Any]) -> None:  # its name is what Ray's dashboard and logs show
        import ray

        # A trial holds no CPU (that is the replicas'), and a worker runs one trial after another.
        measured = ray.get(ray.get_actor(lanes, namespace=NAMESPACE).measure.remote(config))
        tune.report({**measured, "number": config["number"]})

    tuner = tune.Tuner(
        tune.with_resources(morphling_trial, tune.PlacementGroupFactory([{"CPU": 0, "memory": 1}])),
        tune_config=tune.TuneConfig(
            search_alg=SessionSearcher(session, on_ask=on_ask, on_trial=on_trial),
            num_samples=-1,  # the session says when it is over
            max_concurrent_trials=at_once,
            reuse_actors=True,
            trial_name_creator=lambda t: f"{folder.name}-trial-{t.config['number']}",
            trial_dirname_creator=lambda t: f"trial-{t.trial_id}",
        ),
        run_config=tune.RunConfig(name=TUNE_FOLDER, storage_path=str(folder.resolve()), verbose=0),
    )
    tuner.fit()
