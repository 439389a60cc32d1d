"""What all runs of one results file have in common."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from experiments.comparison.datasets import Dataset
from morphling_ray.errors import InputError
from morphling_ray.meta.maml import MamlSettings
from morphling_ray.space import Knob, Value
from morphling_ray.surface import SurfaceSet


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a comparison is run. Which tasks and searchers are compared is not part of it.

    Attributes:
        budget: Samples of each search.
        noise: Standard deviation of the logarithm of each measured metric; also the slack that a "clear" optimum keeps.
        hold_out: What a task is held out with: its whole family, or itself alone.
        free_knobs: Knobs whose every value is observed with each sample (one deployment tells about all of them).
        train_on: Tasks that are learned from, and not searched; all others are searched. Then nothing else is held out.
        learn_from: Another data set to learn from, instead of the tasks outside the fold.
        learn_also: Another data set to learn from as it is, beside those tasks; but for what is of the fold's name.
        shuffle_prior: Whether each training task's rows are permuted over its configurations: a useless prior.
        train_tasks: How many training tasks are drawn; None for all.
        train_cells: How many rows of each training task are drawn; None for all.
        drop_values: Knobs and values (as texts) whose rows the training tasks lose.
        drop_knob: A knob that the training tasks do not have.
        until_best: Whether a search ends once it has measured the best configuration there is: without noise it cannot
            be lost again.
        maml: Settings of `maml`, where not its defaults.

    Raises:
        InputError: A number that makes no sense.
    """

    budget: int = 30
    noise: float = 0.03
    hold_out: Literal["family", "task"] = "family"
    free_knobs: tuple[str, ...] = ()
    train_on: tuple[str, ...] = ()
    learn_from: Dataset | None = None
    learn_also: Dataset | None = None
    shuffle_prior: bool = False
    train_tasks: int | None = None
    train_cells: int | None = None
    drop_values: tuple[tuple[str, tuple[str, ...]], ...] = ()
    drop_knob: str | None = None
    until_best: bool = False
    maml: MamlSettings | None = None

    def __post_init__(self) -> None:
        if self.budget < 1:
            raise InputError(f"--budget must be at least 1, got {self.budget}")
        if not 0 <= self.noise < 1:
            raise InputError(f"--noise must lie in [0, 1): 0.03 is about 3 %, got {self.noise:g}")
        if self.train_tasks is not None and self.train_tasks < 1:
            raise InputError(f"--train-tasks must be at least 1, got {self.train_tasks}")
        if self.train_cells is not None and self.train_cells < 1:
            raise InputError(f"--train-cells must be at least 1, got {self.train_cells}")
        if self.until_best and self.noise:
            raise InputError(
                f"--until-best needs --noise 0, got {self.noise:g}: what is best cannot be seen through noise"
            )
        if self.train_on and self.learn_from is not None:
            raise InputError("--train-on names tasks of what is searched; --learn-from takes all of another set")

    def to_dict(self) -> dict[str, Any]:
        """What must be equal for runs to stand in one file; without paths."""
        source, also = self.learn_from, self.learn_also
        return {
            "budget": self.budget,
            "noise": self.noise,
            "hold_out": self.hold_out,
            "free_knobs": list(self.free_knobs),
            **({"train_on": list(self.train_on)} if self.train_on else {}),
            **({"until_best": True} if self.until_best else {}),
            **({"maml": asdict(self.maml)} if self.maml is not None else {}),
            **({"train_cells": self.train_cells} if self.train_cells is not None else {}),
            "learn_from": None if source is None else {"name": source.name, "data": source.data},
            **({} if also is None else {"learn_also": {"name": also.name, "data": also.data}}),
            "shuffle_prior": self.shuffle_prior,
            "train_tasks": self.train_tasks,
            "drop_values": {knob: list(texts) for knob, texts in self.drop_values},
            "drop_knob": self.drop_knob,
        }

    def variant(self, *, learns: bool) -> str:
        """In a few words what sets runs apart from ordinary ones; empty where that is nothing.

        Args:
            learns: Whether the searcher takes anything from earlier tasks; if not, a worse prior does not change it.
        """
        parts = []
        if learns:
            if self.learn_from is not None:
                parts.append(f"prior from {self.learn_from.name}")
            if self.learn_also is not None:
                parts.append(f"and from {self.learn_also.name}" if parts else f"prior from {self.learn_also.name} too")
            if self.train_tasks is not None:
                parts.append(f"{self.train_tasks} training tasks")
            if self.train_cells is not None:
                parts.append(f"{self.train_cells} rows of each")
            parts += [f"{knob} {', '.join(texts)} unseen" for knob, texts in self.drop_values]
            if self.drop_knob is not None:
                parts.append(f"knob {self.drop_knob} unseen")
            if self.shuffle_prior:
                parts.append("shuffled prior")
        if self.free_knobs:
            parts.append(f"every {' and '.join(self.free_knobs)} at once")
        return ", ".join(parts)

    def check(self, datasets: Sequence[Dataset]) -> None:
        """Checks the settings against the data.

        Raises:
            InputError: A knob or a value that a data set lacks, or learning from what is searched.
        """
        for dataset in datasets:
            _need_knobs(dataset.surfaces, "--free-knobs", self.free_knobs)
            if self.free_knobs and {k.name for k in dataset.surfaces.knobs} <= set(self.free_knobs):
                raise InputError(f"--free-knobs leaves no knob of {dataset.name} to search")
            if unknown := [name for name in self.train_on if name not in dataset.surfaces.surfaces]:
                raise InputError(f"--train-on {unknown[0]}: {dataset.name} has no such task")
            for option, other in (("--learn-from", self.learn_from), ("--learn-also", self.learn_also)):
                if other is not None and dataset.name == other.name:
                    raise InputError(f"{option} {dataset.name}: it is searched too, so nothing would be held out")
        for dataset in datasets if self.learn_from is None else [self.learn_from]:
            surfaces = dataset.surfaces
            _need_knobs(surfaces, "--drop-knob", () if self.drop_knob is None else (self.drop_knob,))
            _need_knobs(surfaces, "--drop-values", [knob for knob, _ in self.drop_values])
            for knob in surfaces.knobs:
                left = kept_values(knob, self.drop_values)
                if not left:
                    raise InputError(f"--drop-values leaves no value of {knob.name} in {dataset.name} to learn from")
            if self.drop_knob is not None and len(surfaces.knobs) == 1:
                raise InputError(f"--drop-knob {self.drop_knob}: {dataset.name} has no other knob to learn from")


def kept_values(knob: Knob, drop_values: Sequence[tuple[str, tuple[str, ...]]]) -> list[Value]:
    """The values of a knob that training tasks keep.

    Raises:
        InputError: A value to drop that the knob does not have.
    """
    dropped = set()
    for name, texts in drop_values:
        for text in texts if name == knob.name else ():
            if text not in map(str, knob.values):
                known = ", ".join(map(str, knob.values))
                raise InputError(f"--drop-values {name}={text}: {name} has no such value; it has {known}")
            dropped.add(text)
    return [value for value in knob.values if str(value) not in dropped]


def _need_knobs(surfaces: SurfaceSet, option: str, names: Sequence[str]) -> None:
    known = [knob.name for knob in surfaces.knobs]
    if unknown := [name for name in names if name not in known]:
        raise InputError(f"{option} {unknown[0]}: {surfaces.name} has no such knob; it has {', '.join(known)}")
