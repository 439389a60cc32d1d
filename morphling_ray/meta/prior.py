"""A pre-trained Gaussian process over log-metrics (Wang et al., https://arxiv.org/abs/2109.08215), for any knob values.

For metric m of a new task, with x a configuration and T earlier tasks whose smoothed surfaces are f_1 .. f_T,

    log y_m(x) = mean_m(x) + spread * sum_t w_t (f_t,m(x) - mean_m(x)) / sqrt(T) + offset_m + residual_m(x) + white

with w ~ Normal(0, I) shared by all metrics: the empirical mean and covariance of the earlier surfaces, a level of the
task's own, and a small smooth Matern-5/2 residual. The surfaces are functions of encoded knobs (basis.py), so the prior
is defined at values and in spaces that it was not learned on; what it has never seen gets a smooth effect of its own.
"""

import io
import json
import os
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from morphling_ray.errors import PriorError
from morphling_ray.meta.basis import basis
from morphling_ray.meta.encoding import Encoding
from morphling_ray.meta.gaussian import GaussianModel, matern52, squared_distances
from morphling_ray.meta.tasks import TrainingTask, pack, unpack
from morphling_ray.space import Configuration, Knob

FloatArray = npt.NDArray[np.float64]

FORMAT = "morphling_ray prior 2"
UNSEEN_LENGTH = 0.5  # length scale of an unseen knob, in ranges of the space
UNSEEN_SD = 0.5  # how far a knob that the prior never saw may move a log-metric
UNKNOWN_OFFSET_SD = 10.0  # level of a metric that the prior never saw: nothing is known
_FEASIBLE_PRIOR = (1.9, 0.1)  # works / fails: what is believed where no earlier task was measured
_EDGE = 0.15  # length scale of earlier outcomes, in ranges of a knob: failure begins at one value, not gradually
_ARRAYS = (
    ("centres", 2),
    ("alpha", 3),
    ("taught", 2),
    ("smooth_lengths", 1),
    ("residual_lengths", 1),
    ("offset_sd", 1),
    ("residual_sd", 1),
    ("white_sd", 1),
    ("correlation", 2),
    ("outcomes", 2),
)


@dataclass(frozen=True, eq=False)
class Prior:
    """What was learned from earlier tasks. P = 1 + d + U basis functions, M metrics, T tasks.

    Attributes:
        encoding: How knobs become numbers.
        metrics: Names of the metrics, M of them.
        tasks: Names of the tasks, T of them.
        centres: Shape `(U, d)`.
        alpha: Surfaces of the tasks on the basis, shape `(M, P, T)`; 0 where a task lacks the metric.
        taught: 1 where the task has the metric, else 0, shape `(M, T)`.
        smooth_lengths: Length scales of the basis by column, shape `(d,)`.
        residual_lengths: Length scales of the residual, shape `(d,)`.
        spread: Factor on the tasks' deviations from their mean.
        offset_sd: Shape `(M,)`.
        residual_sd: Shape `(M,)`.
        white_sd: Shape `(M,)`.
        correlation: Between metrics, of what the features do not explain, shape `(M, M)`.
        outcomes: How often a configuration near each centre worked and failed, shape `(U, 2)`.
        earlier: What was measured for the tasks, for methods that learn in another way.
        about: Where it came from: sets, tasks, date, version, seed, how well it fits. For people only.
    """

    encoding: Encoding
    metrics: tuple[str, ...]
    tasks: tuple[str, ...]
    centres: FloatArray
    alpha: FloatArray
    taught: FloatArray
    smooth_lengths: FloatArray
    residual_lengths: FloatArray
    spread: float
    offset_sd: FloatArray
    residual_sd: FloatArray
    white_sd: FloatArray
    correlation: FloatArray
    outcomes: FloatArray
    earlier: tuple[TrainingTask, ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict)

    def model(
        self, configurations: Sequence[Configuration], knobs: Sequence[Knob], metrics: Sequence[str]
    ) -> GaussianModel:
        """The belief about a new task before anything is measured.

        Args:
            configurations: The candidates, n of them.
            knobs: The knobs of the space that they come from.
            metrics: What to model. One that the prior never saw is a smooth function at an unknown level.
        """
        z = self.encoding.encode(configurations)
        extra = self.encoding.unseen(knobs).encode(configurations) / UNSEEN_LENGTH
        known = [self.metrics.index(m) if m in self.metrics else None for m in metrics]
        surfaces = basis(z, self.centres, self.smooth_lengths)  # (n, P)
        n, tasks = len(z), len(self.tasks)
        mean, features = np.zeros((len(metrics), n)), np.zeros((len(metrics), n, tasks))
        for row, m in enumerate(known):
            if m is not None:
                values, who = surfaces @ self.alpha[m], self.taught[m]  # (n, T), (T,)
                mean[row] = values @ who / who.sum()
                features[row] = self.spread * (values - mean[row][:, None]) * who / np.sqrt(who.sum())
        fresh_inputs = self._fresh_inputs(configurations, knobs)
        residual_inputs = z / self.residual_lengths
        pick = np.array([m if m is not None else -1 for m in known])
        return GaussianModel(
            mean=mean,
            features=features,
            inputs=[fresh_inputs if m is None else residual_inputs for m in known],
            extra=extra,
            offset_sd=np.where(pick < 0, UNKNOWN_OFFSET_SD, self.offset_sd[pick]),
            residual_sd=np.where(pick < 0, 0.7, self.residual_sd[pick]),
            extra_sd=np.where(pick < 0, 0.0, UNSEEN_SD),
            white_sd=np.where(pick < 0, 0.03, self.white_sd[pick]),
            correlation=_correlation(self.correlation, known),
        )

    def _fresh_inputs(self, configurations: Sequence[Configuration], knobs: Sequence[Knob]) -> FloatArray:
        return Encoding.of_space(knobs).encode(configurations) / UNSEEN_LENGTH

    def feasible(self, configurations: Sequence[Configuration]) -> FloatArray:
        """Probability that each configuration works on a new task, shape `(n,)`."""
        lengths = np.minimum(self.smooth_lengths, _EDGE)
        near = matern52(squared_distances(self.encoding.encode(configurations) / lengths, self.centres / lengths))
        works, fails = (near @ self.outcomes).T + np.array(_FEASIBLE_PRIOR)[:, None]
        return np.asarray(works / (works + fails))

    def neighbourhood(self, configurations: Sequence[Configuration], knobs: Sequence[Knob]) -> FloatArray:
        """Candidates in units of length scales, shape `(n, d + e)`: by what outcomes of neighbours are weighed."""
        z = self.encoding.encode(configurations) / self.smooth_lengths
        return np.hstack([z, self.encoding.unseen(knobs).encode(configurations) / UNSEEN_LENGTH])

    def save(self, path: Path) -> None:
        """Writes one .npz file; it appears whole or not at all.

        Raises:
            PriorError: It cannot be written.
        """
        meta = {
            "format": FORMAT,
            "knobs": self.encoding.to_list(),
            "metrics": list(self.metrics),
            "tasks": list(self.tasks),
            "spread": self.spread,
            "about": dict(self.about),
        }
        arrays = {name: getattr(self, name) for name, _ in _ARRAYS}
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with temporary.open("wb") as file:
                np.savez_compressed(
                    file, allow_pickle=False, meta=np.array(json.dumps(meta)), **arrays, **pack(self.earlier)
                )
            os.replace(temporary, path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise PriorError(f"prior {path} cannot be written: {error.strerror}") from error

    @classmethod
    def load(cls, path: Path) -> "Prior":
        """Reads what `save` wrote. Nothing in the file is executed.

        Raises:
            PriorError: The file is no prior, or one of another format.
        """
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
                if not isinstance(file, Mapping) or "meta" not in file:
                    raise PriorError(f"{path} is not a prior: it has no description; make one with morphling_ray.train")
                meta = json.loads(str(file["meta"]))
                if not isinstance(meta, dict) or meta.get("format") != FORMAT:
                    found = meta.get("format") if isinstance(meta, dict) else meta
                    raise PriorError(
                        f"prior {path} has the format {found!r:.60}, this version reads {FORMAT!r}; train it again"
                    )
                arrays = {name: np.asarray(file[name], np.float64) for name, _ in _ARRAYS}
                earlier = tuple(unpack(file))
            prior = cls(
                encoding=Encoding.from_list(meta["knobs"]),
                metrics=tuple(map(str, meta["metrics"])),
                tasks=tuple(map(str, meta["tasks"])),
                spread=float(meta["spread"]),
                earlier=earlier,
                about=dict(meta["about"]),
                **arrays,
            )
            prior._check()
        except OSError as error:
            raise PriorError(f"prior {path} cannot be read: {error.strerror or error}") from error
        except (ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            why = " ".join(f"{type(error).__name__}: {error}".split())[:120]
            raise PriorError(f"{path} is not a prior ({why}); make one with morphling_ray.train") from error
        return prior

    def _check(self) -> None:
        """Raises ValueError unless all arrays fit together."""
        d, m, t, u = len(self.encoding.groups), len(self.metrics), len(self.tasks), len(self.centres)
        shapes = {
            **{"centres": (u, d), "alpha": (m, 1 + d + u, t), "taught": (m, t), "outcomes": (u, 2)},
            **{"smooth_lengths": (d,), "residual_lengths": (d,), "correlation": (m, m)},
            **dict.fromkeys(("offset_sd", "residual_sd", "white_sd"), (m,)),
        }
        for name, shape in shapes.items():
            values = getattr(self, name)
            if values.shape != shape or not np.isfinite(values).all():
                raise ValueError(f"{name} must be finite and of shape {shape}, got shape {values.shape}")


def _correlation(learned: FloatArray, known: Sequence[int | None]) -> FloatArray:
    """The learned correlations of known metrics; unknown ones stand alone."""
    out = np.eye(len(known))
    for i, m in enumerate(known):
        for j, k in enumerate(known):
            if m is not None and k is not None:
                out[i, j] = learned[m, k]
    return out
