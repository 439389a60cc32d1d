"""A run for TensorBoard: objective, peak and cost by trial, and the configurations as hyper-parameters.

Written from the store when it is asked for (`python -m morphling_ray.report RUN_DIR --tensorboard`), during a run or
after it: the library that writes event files loads torch, which would take seconds from every search.
"""

import shutil
from pathlib import Path

from morphling_ray.store import RunDirectory

FOLDER = "tensorboard"


def write_events(directory: RunDirectory) -> Path:
    """Writes a folder of event files anew; returns it.

    The search has one file, with a step for each trial. A trial has one of its own only where it has an objective: that
    is how TensorBoard tells configurations apart.

    Raises:
        StoreError: A file of the run cannot be read.
    """
    from tensorboardX import SummaryWriter

    folder = directory.path / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    best = 0.0
    with SummaryWriter(str(folder)) as writer:
        for trial in directory.trials():
            measurement = trial.measurement
            figures = {"objective": trial.objective, "peak_rps": measurement.metrics.get("peak_rps")}
            figures["cost_per_hour"] = measurement.details.get("cost_per_hour")
            known = {f"trial/{name}": float(value) for name, value in figures.items() if value is not None}
            best = max(best, trial.objective or 0.0)
            for name, value in {**known, "search/best_objective": best, "search/trial_seconds": trial.seconds}.items():
                writer.add_scalar(name, value, trial.number)
            if trial.objective is not None:
                configuration = {
                    knob: value if isinstance(value, bool | int | float) else str(value)
                    for knob, value in trial.configuration.items()
                }
                writer.add_hparams(configuration, known, name=f"trial-{trial.number}", global_step=trial.number)
    return folder
