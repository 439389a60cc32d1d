"""Figures 4, 8, 9 and 10: how models respond, what a searcher believes of one, and where its searches go."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from experiments.comparison.datasets import Dataset
from experiments.comparison.figures import BAD, GOOD, INK, MUTED, sheet, style
from experiments.comparison.settings import Settings
from experiments.comparison.training import learning_objective, training_tasks
from experiments.comparison.work import learn
from experiments.paper.studies import MAML, TRAINING, Line
from morphling_ray.evaluate.replay import ReplayEvaluator
from morphling_ray.search import SEARCHERS
from morphling_ray.space import Configuration
from morphling_ray.surface import Surface

FloatArray = npt.NDArray[np.float64]

SHOWN = ("resnet_101", "vgg_16", "efficientnet_b5", "albert_base", "use_transformer", "word2vec_250")
"""In figure 4, about the models that the paper shows there."""
PLANE_MODEL = "nnlm_128"
PLANE: Configuration = {"cpu_cores": 5, "gpu_type": "T4"}  # of figure 8; batch size and GPU memory are its axes
CORNERS, MORE = 8, 20
PATHS = {"efficientnet_b5": "Efficientnet B5", "use_transformer": "Universal Sentence Encoder"}
BASE: Configuration = {"cpu_cores": 5, "gpu_memory": 0.4, "batch_size": 32, "gpu_type": "T4"}


def figure_4(dataset: Dataset, path: Path) -> str:
    """Requests a second against one knob at a time, as a share of each model's best; says how models differ."""
    surfaces = dataset.surfaces
    with style():
        figure = sheet(2.6, 9.5)
        panels = figure.subplots(1, 4, sharey=True)
        for axes, knob in zip(panels, surfaces.knobs):
            for name, line in zip(SHOWN, ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)))):
                surface = surfaces.task(name)
                peak = np.nan_to_num(surface.metrics["peak_rps"])
                points = [surface.space.index({**BASE, knob.name: value}) for value in knob.values]
                axes.plot(range(len(points)), peak[points] / peak.max(), ls=line, label=name, lw=1.3)
            axes.set_xticks(range(len(knob.values)), [str(value) for value in knob.values], fontsize=7)
            axes.set_xlabel(knob.name)
        panels[0].set_ylabel("share of the model's best rate")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=6, fontsize=7)
        figure.savefig(path)
    best = {name: _best(surfaces.task(name), surfaces.objective("objective1", name)) for name in surfaces.surfaces}
    different = {_short(c) for c in best.values()}
    return f"{len(best)} models have {len(different)} different best configurations by objective #1"


def figure_8(dataset: Dataset, path: Path) -> str:
    """What `maml` and `morphling` expect over batch size and GPU memory: at first, after 8 corners, after 20 more."""
    moments = [0, CORNERS, CORNERS + MORE]
    return _planes(dataset, ("maml", "morphling"), moments, path)


def figure_9(dataset: Dataset, path: Path) -> str:
    """The same of Bayesian optimisation, after as many samples."""
    return _planes(dataset, ("bo",), [CORNERS, CORNERS + MORE], path)


def figure_10(lines: Sequence[Line], dataset: Dataset, path: Path, count: int = 10) -> str:
    """The first configurations that `maml` and `morphling` try for two models, by GPU type, and their best."""
    told = []
    with style():
        figure = sheet(5.2)
        panels = figure.subplots(len(PATHS), 2, squeeze=False)
        for row, (name, title) in zip(panels, PATHS.items()):
            surface = dataset.surfaces.task(name)
            best = _best(surface, dataset.surfaces.objective("objective1", name))
            told.append(f"{title}: best <{_short(best)}>")
            for axes, searcher in zip(row, ("maml", "morphling")):
                found = [
                    line
                    for line in lines
                    if (line.task, line.searcher, line.seed, line.objective) == (name, searcher, 0, "objective1")
                ]
                path_of = [surface.space[i] for i in found[0].proposed[:count]] if found else []
                _draw_path(axes, path_of, best)
                axes.set_title(f"{searcher}: {title}")
                told.append(f"  {searcher}: " + ", ".join(f"<{_short(c)}>" for c in path_of[:3]) + ", ...")
        figure.savefig(path)
    return "\n".join(told)


def _draw_path(axes: Any, path: Sequence[Configuration], best: Configuration) -> None:
    """Batch size against cores, numbered in order; the marker is the GPU type, its size the share of memory."""
    markers = {"T4": "o", "M60": "s", "V100": "^"}
    x = [float(c["cpu_cores"]) + 0.09 * (i % 3 - 1) for i, c in enumerate(path)]
    y = [np.log2(float(c["batch_size"])) for c in path]
    axes.plot(x, y, color=MUTED, lw=0.7, zorder=1)
    for i, c in enumerate(path):
        size = 30 + 400 * float(c["gpu_memory"])
        axes.scatter(x[i], y[i], s=size, marker=markers[str(c["gpu_type"])], color=GOOD, alpha=0.5, lw=0)
        axes.text(x[i], y[i], str(i + 1), ha="center", va="center", fontsize=6.5, color=INK)
    axes.scatter(
        float(best["cpu_cores"]),
        np.log2(float(best["batch_size"])),
        s=90 + 400 * float(best["gpu_memory"]),
        marker=markers[str(best["gpu_type"])],
        facecolors="none",
        edgecolors=BAD,
        lw=1.6,
    )
    axes.set(xlim=(0.5, 5.5), ylim=(-0.6, 7.6), xlabel="CPU cores; ring: the best", ylabel="batch size")
    axes.set_yticks(range(8), [str(2**k) for k in range(8)])


def _planes(dataset: Dataset, searchers: Sequence[str], moments: Sequence[int], path: Path) -> str:
    surface = dataset.surfaces.task(PLANE_MODEL)
    memory, sizes = (next(k.values for k in surface.space.knobs if k.name == n) for n in ("gpu_memory", "batch_size"))
    cells = np.array(
        [[surface.space.index({**PLANE, "gpu_memory": m, "batch_size": b}) for b in sizes] for m in memory]
    )
    truth = np.nan_to_num(surface.metrics["peak_rps"])
    shown = [("what is there", _share(truth[cells]))]
    for searcher in searchers:
        for moment, belief in zip(moments, _beliefs(dataset, surface, searcher, moments)):
            shown.append((f"{searcher}, {_when(moment)}", _share(belief[cells])))
    columns = 4
    rows = -(-len(shown) // columns)
    with style():
        figure = sheet(2.2 * rows + 0.3, 9.5)
        panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for axes, (title, plane) in zip(panels.flat, shown):
            image = axes.imshow(plane, origin="lower", aspect="auto", vmin=0, vmax=1, cmap="cividis")
            axes.set_title(title)
            axes.set_xticks(range(len(sizes)), [str(b) for b in sizes], fontsize=7)
            axes.set_yticks(range(len(memory)), [f"{float(m):.0%}" for m in memory], fontsize=7)
            axes.grid(visible=False)
        for axes in panels.flat[len(shown) :]:
            axes.set_visible(False)
        figure.supxlabel("batch size", fontsize=8)
        figure.supylabel("GPU memory", fontsize=8)
        figure.colorbar(image, ax=panels, label="rate over the plane's highest", shrink=0.8)
        figure.savefig(path)
    off = [f"{title}: off by {np.abs(plane - shown[0][1]).mean():.0%} of the highest" for title, plane in shown[1:]]
    return f"{PLANE_MODEL}, mean over the plane\n  " + "\n  ".join(off)


def _beliefs(dataset: Dataset, surface: Surface, searcher: str, moments: Sequence[int]) -> list[FloatArray]:
    """What a searcher expects of every configuration by objective #3 after 8 corners on a T4 and its own choices."""
    names = TRAINING[dataset.name]
    settings = Settings(noise=0.0, train_on=names, maml=MAML)
    objective = dataset.surfaces.objective("objective3", surface.task)
    tasks = training_tasks(settings, dataset, names, 0)
    learned = learn(settings, searcher, tasks, learning_objective(dataset, "objective3"), 0)
    sampler: Any = SEARCHERS[searcher].make(surface.space, objective, seed=0, learned=learned)
    evaluator = ReplayEvaluator(surface, objective, noise=0.0, seed=0)
    out = [sampler.predict()] if 0 in moments else []
    for sample in range(max(moments)):
        if sample < CORNERS:
            chosen: Configuration = {
                "cpu_cores": (1, 5)[sample // 4],
                "gpu_memory": (0.05, 0.4)[sample // 2 % 2],
                "batch_size": (1, 128)[sample % 2],
                "gpu_type": "T4",
            }
            sampler.reserve(chosen)
        else:
            chosen = sampler.suggest()
        sampler.observe(chosen, evaluator.measure(chosen))
        if sample + 1 in moments:
            out.append(sampler.predict())
    return out


def _when(moment: int) -> str:
    if moment > CORNERS:
        return f"after {CORNERS} + {moment - CORNERS}"
    return f"after {moment}" if moment else "at first"


def _share(plane: FloatArray) -> FloatArray:
    return np.asarray(np.clip(plane, 0, None) / max(float(np.nanmax(plane)), 1e-9))


def _best(surface: Surface, objective: Any) -> Configuration:
    value = np.where(surface.feasible, objective(surface.columns, surface.metrics), -np.inf)
    return surface.space[int(np.argmax(value))]


def _short(c: Configuration) -> str:
    return f"{c['cpu_cores']} cores, {float(c['gpu_memory']):.0%}, {c['gpu_type']}, {c['batch_size']}"
