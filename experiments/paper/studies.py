"""Which searches the figures need, and their running: a line of JSON for each, so that what is there is not run again.

The paper judges a search by the best configuration that it has measured, without noise, and counts samples until that
is the optimum. So a search ends there, and of each only the samples are kept at which it got better.
"""

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median

from experiments.comparison.datasets import Dataset
from experiments.comparison.planning import missing, plan
from experiments.comparison.protocol import Problem
from experiments.comparison.results import Key, Run
from experiments.comparison.settings import Settings
from experiments.comparison.work import run_all
from experiments.simulator.spaces import SERVICES, ec2, production
from experiments.zoo.catalogue import PAPER
from morphling_ray.meta.maml import MamlSettings
from morphling_ray.surface import save_surfaces

TRAINING = {
    "ec2-simulated": tuple(list(PAPER)[2::4]),  # 10 of 42; which ones the paper does not say
    "production-simulated": SERVICES[2::6],  # 5 of 30
}
"""Every fourth or sixth model of Table 1's list, so that all kinds are among them; all others are the test models."""
MAML = MamlSettings(episodes=600, delta=0.3)
"""Chosen by leaving out each family of the ten training models in turn (maml.jsonl beside the searches has all that was
tried): `python -m experiments.simulator --only` with their names, and `python -m experiments.choose_maml`."""
QUICK, SLOW = ("morphling", "maml", "gp", "portfolio+gp"), ("finetune", "ernest", "bo")
LIBRARY = ("vizier-transfer",)  # ten seconds of thought a sample


@dataclass(frozen=True, kw_only=True)
class Study:
    """Searches of one space.

    Attributes:
        space: Name of the data set.
        objectives: Each.
        searchers: Each, on every test model.
        seeds: How often.
        budget: Samples, unless the optimum was found before.
        subset: Only so many of the test models; None for all.
    """

    space: str
    objectives: tuple[str, ...]
    searchers: tuple[str, ...]
    seeds: int
    budget: int
    subset: int | None = None


def studies(space: str, objectives: tuple[str, ...]) -> list[Study]:
    """All that a figure of a space compares; what thinks long is searched less often, so that all takes an hour."""
    size, budget = (720, 200) if space == "ec2-simulated" else (100, 100)

    def of(searchers: tuple[str, ...], seeds: int, budget: int, subset: int | None = None) -> Study:
        return Study(space=space, objectives=objectives, searchers=searchers, seeds=seeds, budget=budget, subset=subset)

    return [
        of(("random",), 3, size),
        of(QUICK, 3, budget),
        of(SLOW, 1, budget, None if objectives == ("objective1",) else 8),
        of(LIBRARY, 1, 30, 2),
    ]


@dataclass(frozen=True, kw_only=True)
class Line:
    """One search.

    Attributes:
        space: Name of the data set.
        objective: What was searched for.
        searcher: Its name.
        task: The test model.
        family: Of it.
        seed: Number of the repetition.
        budget: Samples that it could take.
        better: At which samples the best measured got better, and to what share of the optimum.
        proposed: What was measured first, at most 40, as numbers of the space's configurations.
        train_s: Seconds to learn from the training models.
        suggest_ms: Milliseconds of thought a sample, in the median.
        data: Fingerprint of the surfaces.
        code: Fingerprint of the searchers.
    """

    space: str
    objective: str
    searcher: str
    task: str
    family: str
    seed: int
    budget: int
    better: list[tuple[int, float]]
    proposed: list[int]
    train_s: float
    suggest_ms: float
    data: str
    code: str

    @property
    def key(self) -> Key:
        """What tells a search apart, as `comparison` does."""
        return self.space, self.objective, self.searcher, self.task, self.seed

    def quality(self, samples: int) -> float:
        """Best share of the optimum after so many samples; 0 before anything worked."""
        return max((share for sample, share in self.better if sample <= samples), default=0.0)

    def samples_to(self, share: float) -> int:
        """Samples to a share of the optimum; one more than the budget where that did not suffice."""
        return min((sample for sample, reached in self.better if reached >= share), default=self.budget + 1)


def spaces(cache: Path) -> dict[str, Dataset]:
    """The simulated data sets, made where the cache does not have them as the present simulator makes them.

    Args:
        cache: A folder, made if need be.
    """
    here = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for file in sorted([*(here / "simulator").glob("*.py"), *(here / "zoo").glob("*.py")]):
        digest.update(file.read_bytes())
    folder = cache / digest.hexdigest()[:12]
    made: Mapping[str, Callable[[], object]] = {
        "ec2-simulated": lambda: ec2(PAPER),
        "production-simulated": lambda: production({name: PAPER[name] for name in SERVICES}),
    }
    for name, make in made.items():
        if not (folder / name / "surfaces.yaml").exists():
            print(f"simulating {name}", file=sys.stderr)
            (folder / name).mkdir(parents=True, exist_ok=True)
            save_surfaces(folder / name, make())  # type: ignore[arg-type]
    return {name: Dataset.open(folder / name) for name in made}


def read(path: Path) -> list[Line]:
    """The lines of a file, none where there is no file."""
    if not path.exists():
        return []
    names = {field.name for field in fields(Line)}
    found = []
    for text in path.read_text(encoding="utf-8").splitlines():
        values = json.loads(text)
        values["better"] = [(int(sample), float(share)) for sample, share in values["better"]]
        found.append(Line(**{name: values[name] for name in names}))
    return found


def run(study: Study, dataset: Dataset, path: Path, processes: int) -> bool:
    """Runs what the file does not have of a study, and appends it.

    Lines of other surfaces or another budget are left out of the file. Returns whether all went well.
    """
    kept = [line for line in read(path) if not _stale(line, study, dataset)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(_text(line) for line in sorted(kept, key=lambda line: line.key)), encoding="utf-8")
    settings = Settings(budget=study.budget, noise=0.0, train_on=TRAINING[dataset.name], until_best=True, maml=MAML)
    settings.check([dataset])
    todo = plan(settings, [dataset], study.objectives, study.searchers, seeds=study.seeds, subset=study.subset)
    units = missing(todo.units, {line.key for line in kept})
    well = True
    began = time.monotonic()
    with path.open("a", encoding="utf-8") as file:
        for number, outcome in enumerate(run_all(settings, units, processes), start=1):
            if outcome.error:
                well = False
                print(f"{outcome.unit}: {outcome.error}", file=sys.stderr)
            for found in outcome.runs:
                file.write(_text(line_of(found, dataset, study.budget)))
            file.flush()
            left = (time.monotonic() - began) / number * (len(units) - number) / 60
            print(f"{number}/{len(units)}  {outcome.unit}  ({left:.0f} min left)", file=sys.stderr, flush=True)
    return well


def line_of(run: Run, dataset: Dataset, budget: int) -> Line:
    """What is kept of a search: when the best that it has measured got better."""
    problem = Problem.of(dataset.surfaces, run.objective, run.task, 0.0)
    return Line(
        space=run.dataset,
        objective=run.objective,
        searcher=run.searcher,
        task=run.task,
        family=run.family,
        seed=run.seed,
        budget=budget,
        better=list(_better(problem, run.proposed)),
        proposed=list(run.proposed[:40]),
        train_s=round(run.train_s, 3),
        suggest_ms=round(median(run.suggest_ms), 2),
        data=dataset.data,
        code=run.code,
    )


def _better(problem: Problem, proposed: Sequence[int]) -> Iterator[tuple[int, float]]:
    best = 0.0
    for sample, point in enumerate(proposed, start=1):
        share = float(problem.truth[point]) / problem.best
        if share > best:
            best = share
            yield sample, round(share, 6)


def _stale(line: Line, study: Study, dataset: Dataset) -> bool:
    same = line.space == study.space and line.objective in study.objectives and line.searcher in study.searchers
    return same and (line.data != dataset.data or line.budget != study.budget)


def _text(line: Line) -> str:
    return json.dumps(asdict(line), separators=(",", ":")) + "\n"
