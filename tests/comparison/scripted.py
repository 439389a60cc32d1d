"""Surfaces with numbers that can be reckoned by hand, and searchers that do as they are told."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from morphling_ray.measurement import Measurement
from morphling_ray.meta.tasks import TrainingTask
from morphling_ray.objective import Objective
from morphling_ray.search import Method, Recommendation
from morphling_ray.space import Configuration, SearchSpace

DESCRIPTION = """
name: {name}
table: surfaces.csv
missing: infeasible
knobs:
  x: {{kind: ordinal, scale: linear, values: [1, 2, 3, 4]}}
  mode: {{kind: categorical, values: [a, b]}}
metrics:
  rps: {{column: rps, better: higher}}
  ms: {{column: ms, better: lower}}
objectives:
  value: {{maximize: rps, subject_to: [ms <= limit]}}
  plain: {{maximize: rps}}
"""
# By x: what mode a delivers, and how long it takes; mode b delivers a tenth more in the same time.
RPS, MS = (50.0, 80.0, 100.0, 90.0), (10.0, 20.0, 39.5, 45.0)


def write_surfaces(folder: Path, name: str, families: Mapping[str, str], limits: Mapping[str, float]) -> Path:
    """A set of tasks that are alike but for their bound on `ms`.

    Truth of mode a under `value` and a limit of 40: 50, 80, 100 and 0; x = 3 keeps 1.25 % to spare. No row for x = 1 in
    mode b, so it is infeasible.
    """
    folder.mkdir()
    (folder / "surfaces.yaml").write_text(DESCRIPTION.format(name=name))
    rows = ["task,family,x,mode,rps,ms,limit"]
    for task, family in families.items():
        for i, (rps, ms) in enumerate(zip(RPS, MS), start=1):
            for mode in ("a", "b") if i > 1 else ("a",):
                rows.append(f"{task},{family},{i},{mode},{rps * (1.1 if mode == 'b' else 1)},{ms},{limits[task]}")
    (folder / "surfaces.csv").write_text("\n".join(rows) + "\n")
    return folder


def four_tasks(folder: Path, name: str = "made-up") -> Path:
    """Families f (tasks f1, f2), g and h; in h nothing keeps the bound."""
    families = {"f1": "f", "f2": "f", "g1": "g", "h1": "h"}
    return write_surfaces(folder, name, families, {"f1": 40.0, "f2": 40.0, "g1": 25.0, "h1": 5.0})


@dataclass
class Scripted:
    """Proposes and recommends from lists; None proposes nothing more, or recommends nothing."""

    proposals: Sequence[Configuration]
    recommendations: Sequence[Configuration | None]
    sure: Sequence[float | None] = ()
    reserved: list[Configuration] = field(default_factory=list)
    observed: list[Measurement] = field(default_factory=list)
    suggested: int = 0

    def suggest(self) -> Configuration | None:
        self.suggested += 1
        return self.proposals[self.suggested - 1] if self.suggested <= len(self.proposals) else None

    def reserve(self, configuration: Configuration) -> None:
        self.reserved.append(configuration)

    def foresee(self, configuration: Configuration, measurement: Measurement) -> None:
        """Nothing is foreseen where everything is recorded."""
        raise NotImplementedError

    def observe(self, configuration: Configuration, measurement: Measurement) -> None:
        assert configuration == measurement.configuration
        self.observed.append(measurement)

    def recommend(self, among: Sequence[Configuration] | None = None) -> Recommendation | None:
        found = self.recommendations[self.suggested - 1]
        sure = self.sure[self.suggested - 1] if self.sure else None
        return None if found is None else Recommendation(configuration=found, objective=1.0, p_near_best=sure)

    def finalists(self, count: int) -> list[Configuration]:
        return []


@dataclass(frozen=True, kw_only=True)
class SpyMethod(Method):
    """A method that tells what reaches it; register it under a name with `monkeypatch.setitem`.

    Attributes:
        told: What `learn` was given, one entry a call.
        made: Called for each new sampler.
    """

    module: str = "random"
    sampler: str = "RandomSampler"
    learn: str | None = "learn"
    told: list[tuple[list[TrainingTask], Objective, int]] = field(default_factory=list)
    made: Callable[..., Any] | None = None

    def learned(self, tasks: Sequence[TrainingTask], objective: Objective, seed: int) -> Any:
        self.told.append((list(tasks), objective, seed))
        return {"tasks": [task.task for task in tasks]}

    def make(
        self,
        space: SearchSpace,
        objective: Objective,
        *,
        seed: int,
        learned: Any = None,
        free_knobs: tuple[str, ...] = (),
    ) -> Any:
        if self.made is not None:
            return self.made(space, objective, seed, learned)
        return super().make(space, objective, seed=seed, free_knobs=free_knobs)
