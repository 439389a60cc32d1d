"""What the paper never studied: how much the search depends on what it has learned from, and on the measurements.

`python -m experiments.paper beyond` searches the space of 720 by objective #1, changing one thing at a time. It counts
samples until what is recommended is within 5 % of the best, with 3 % noise unless said otherwise.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from experiments.comparison.datasets import Dataset
from experiments.comparison.planning import Unit, plan
from experiments.comparison.settings import Settings
from experiments.comparison.statistics import NEAR, Reach, samples_to
from experiments.comparison.table import count_text
from experiments.comparison.work import code, run_all
from experiments.paper.studies import MAML, TRAINING
from experiments.zoo.catalogue import PAPER

BUDGET, NOISE = 30, 0.03
BOTH, ALONE = ("morphling", "maml"), ("maml",)
TEN = TRAINING["ec2-simulated"]
IMAGES = tuple(name for name in TEN if PAPER[name].kind == "image")
TEXTS = tuple(name for name in TEN if PAPER[name].kind == "text")
USUAL = Settings(budget=BUDGET, noise=NOISE, train_on=TEN, maml=MAML)
TRIAL_MINUTES = 12.5
"""Of the paper's trials (10 to 15 minutes): what learning and searching are weighed in."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One line of the table.

    Attributes:
        study: What is changed.
        value: To what.
        settings: With that.
        searchers: Each.
        kind: Only test models of this kind are searched; empty for all.
    """

    study: str
    value: str
    settings: Settings
    searchers: Sequence[str] = BOTH
    kind: str = ""


def cases() -> list[Case]:
    """All lines. The number of training models is drawn anew for each test model and seed, from other families."""
    others = Settings(budget=BUDGET, noise=NOISE, maml=MAML)
    out = [Case(study="as in the paper", value="10 training models", settings=USUAL, searchers=(*BOTH, "gp"))]
    out += [
        Case(study="training models, other families", value=str(n), settings=replace(others, train_tasks=n))
        for n in (1, 2, 5, 10, 20)
    ]
    out += [
        Case(study="configurations of each", value=str(n), settings=replace(USUAL, train_cells=n))
        for n in (12, 24, 48, 144)
    ]
    out += [
        Case(study="noise", value=f"{noise:.0%}", settings=replace(USUAL, noise=noise), searchers=(*BOTH, "gp"))
        for noise in (0.0, 0.1, 0.2)
    ]
    unseen = replace(USUAL, drop_values=(("gpu_type", ("V100",)),))
    out.append(Case(study="never seen", value="V100", settings=unseen))
    out += [
        Case(study="never seen", value=f"knob {knob}", settings=replace(USUAL, drop_knob=knob))
        for knob in ("batch_size", "gpu_memory", "gpu_type")
    ]
    for learned, names, kind in (("images", IMAGES, "text"), ("texts", TEXTS, "image")):
        settings = replace(USUAL, train_on=names)
        out.append(Case(study="learned and searched", value=f"{learned}, {kind}s", settings=settings, kind=kind))
    tried = [("K", str(k), replace(MAML, shots=k)) for k in (5, 10, 36, 100)]
    tried += [("delta", f"{d:g}", replace(MAML, delta=d)) for d in (0.0, 0.3, 1.0, 3.0)]
    out += [
        Case(study=f"maml: {name}", value=value, settings=replace(USUAL, maml=maml), searchers=ALONE)
        for name, value, maml in tried
    ]
    return out


def run(dataset: Dataset, path: Path, processes: int, *, models: int | None = None, only: str = "") -> bool:
    """Runs the lines that the file does not have, and appends them; returns whether all went well.

    Args:
        dataset: The space of 720.
        path: JSON lines.
        processes: At once.
        models: Search so many test models only.
        only: Studies whose name contains this.
    """
    well = True
    for case in cases():
        if only not in case.study:
            continue
        done = {(line["study"], line["value"], line["searcher"]) for line in read(path) if line["data"] == dataset.data}
        searchers = [s for s in case.searchers if (case.study, case.value, s) not in done]
        if not searchers:
            continue
        units = plan(case.settings, [dataset], ["objective1"], searchers, seeds=1, subset=models).units
        units = [unit for unit in units if not case.kind or PAPER[unit.tasks[0]].kind == case.kind]
        found, fine = _searched(case, units, processes)
        well &= fine
        with path.open("a", encoding="utf-8") as file:
            for searcher, counts in found.items():
                about = {"study": case.study, "value": case.value, "searcher": searcher, "samples": counts}
                file.write(json.dumps({**about, "data": dataset.data, "code": code()}, separators=(",", ":")) + "\n")
                reach = _text(counts)
                print(f"{case.study}, {case.value}, {searcher}: {reach}", file=sys.stderr, flush=True)
    return well


def _searched(case: Case, units: Sequence[Unit], processes: int) -> tuple[dict[str, list[int]], bool]:
    """Samples to within 5 % by each searcher, and whether all went well."""
    counts: dict[str, list[int]] = {}
    well = True
    for outcome in run_all(case.settings, units, processes):
        if outcome.error:
            well = False
            print(f"{outcome.unit}: {outcome.error}", file=sys.stderr)
        for run in outcome.runs:
            counts.setdefault(run.searcher, []).append(samples_to(run.quality, NEAR))
    return counts, well


def read(path: Path) -> list[dict[str, object]]:
    """The lines of a file, none where there is no file."""
    return [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def table(lines: Sequence[Mapping[str, object]]) -> str:
    """Samples to within 5 % of the best, median / 90th percentile, and what the earlier measurements cost and save."""
    names = list(dict.fromkeys(str(line["searcher"]) for line in lines))
    cells = {(line["study"], line["value"], line["searcher"]): list(line["samples"]) for line in lines}  # type: ignore[call-overload]
    rows = list(dict.fromkeys((line["study"], line["value"]) for line in lines))
    out = [f"| changed | to | {' | '.join(names)} |", "|" + "---|" * (2 + len(names))]
    for study, value in rows:
        told = [_text(cells[study, value, name]) if (study, value, name) in cells else "" for name in names]
        out.append(f"| {study} | {value} | {' | '.join(told)} |")
    return "\n".join(out) + "\n\n" + _worth(cells)


def _worth(cells: Mapping[tuple[object, object, object], Sequence[int]]) -> str:
    """After how many searches the measurements of the training models have paid for themselves."""
    without = cells.get(("as in the paper", "10 training models", "gp"))
    if without is None:
        return ""
    mean = sum(without) / len(without)
    out = []
    for study, value, per_model, models in [
        ("as in the paper", "10 training models", 720, 10),
        *(("configurations of each", str(n), n, 10) for n in (12, 24, 48, 144)),
    ]:
        counts = cells.get((study, value, "morphling"))
        if counts is None:
            continue
        saved, trials = mean - sum(counts) / len(counts), per_model * models
        told = f"pay after {trials / saved:.0f} searches" if saved > 0 else "save nothing"
        hours = trials * TRIAL_MINUTES / 60
        out.append(
            f"{models} models x {per_model} configurations: {trials} trials ({hours:.0f} h) {told}, at {saved:.1f} "
            "fewer samples each"
        )
    return "\n".join(out)


def _text(counts: Sequence[int]) -> str:
    reach = Reach.of(counts, BUDGET)
    return f"{count_text(reach.median, BUDGET)} / {count_text(reach.p90, BUDGET)}"
