"""A pre-trained Gaussian process over log-metrics, for any knob values.

It holds the smoothed surfaces f_1 .. f_T of T earlier tasks, and what a new task may have to do with them:

alike    log y_m(x) = mean_m(x) + sum_t w_t (f_t,m(x) - mean_m(x)) / sqrt(T) + own_m(x), with w ~ Normal(0, I) shared by
         all metrics: the empirical mean and covariance (Wang et al., https://arxiv.org/abs/2109.08215)
mixture  log y_m(x) = (1 - a) f_s,m(x) + a f_t,m(x) + own_m(x): it is one earlier task, or lies between two
bottlenecks  it needs other amounts of what earlier tasks needed too (bottlenecks.py), + own_m(x)
replicas of servers like these add up, nearly, where the prior never saw their number (copies.py), or do anything else
own      a level, a small smooth Matern-5/2 residual and a white part, each correlated between metrics; neither of them
         tells values of a knob apart that made no difference to any earlier task

The surfaces are functions of encoded knobs (basis.py), so the prior is defined at values and in spaces that it was not
learned on; what it has never seen gets a trend and a smooth effect of its own.
"""

import io
import json
import os
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from morphling_ray.errors import PriorError
from morphling_ray.meta.basis import basis
from morphling_ray.meta.bottlenecks import ENOUGH, Bottlenecks, Hats
from morphling_ray.meta.copies import P_SCALES, scaled, scaling, scaling_knobs
from morphling_ray.meta.encoding import Encoding
from morphling_ray.meta.ensemble import Hypothesis
from morphling_ray.meta.gaussian import Covariance, cholesky, matern52, squared_distances
from morphling_ray.meta.resembling import FAR, likely, pairs, resembling
from morphling_ray.meta.tasks import TrainingTask, matching_rows, pack, unpack
from morphling_ray.space import Configuration, Knob

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

FORMAT = "morphling_ray prior 5"
UNSEEN_LENGTH = 0.5  # length scale of an unseen knob, in ranges of the space
UNSEEN_SLOPE, UNSEEN_SD = 1.0, 1.0  # trend of a log-metric over the range of an unseen knob, and what strays from it
UNSEEN_METRIC = (10.0, 0.7, 0.03)  # level, residual and white part of a metric that the prior never saw
RESIDUAL_SD = 0.14  # of the residual, in logs
RESIDUAL_LENGTH = 0.6  # length scale of the residual, in ranges of a knob
WHITE_SD = 0.05
LEAST = 0.03  # of a knob's distances, where it made no difference to earlier tasks: it may to a new one
_BOTTLENECKED = 0.4  # probability of the third kind, beside both others
_MISSES = ((2.0, 0.5), (5.0, 0.5))  # by how many misfits of the earlier tasks a new one strays
_MISFIT = 0.03, 0.3  # within which the misfit is taken for what a new task strays by
DRAWN = 4000  # tasks that there might be, of the third kind
_FEASIBLE_PRIOR = (1.9, 0.1)  # works / fails: what is believed where no earlier task was measured
NEIGHBOURHOOD = 0.7  # within which outcomes tell of one another, at most: a metric may be smooth, failure never is
_EDGE = 0.15  # length scale of earlier outcomes, in ranges of a knob: failure begins at one value, not gradually
_ARRAYS = ("centres", "alpha", "taught", "smooth_lengths", "correlation", "effects", "outcomes")


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
        correlation: Between metrics, of what a new task has of its own, shape `(M, M)`.
        effects: By knob, how far (standard deviation) log-metrics of two configurations of a task lie apart that differ
            in nothing else; infinite where no two were measured. Shape `(K,)`.
        outcomes: How often a configuration near each centre worked and failed, shape `(U, 2)`.
        offset_sd: How far a new task's level may lie from those of the earlier ones, in logs.
        bottlenecks: What tasks have in common where their limits move; None where too few tasks were known.
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
    correlation: FloatArray
    effects: FloatArray
    outcomes: FloatArray
    offset_sd: float
    bottlenecks: Bottlenecks | None = None
    earlier: tuple[TrainingTask, ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def knobs(self) -> tuple[str, ...]:
        """Names of the knobs that it knows."""
        return tuple(code.name for code in self.encoding.codes)

    def hypotheses(
        self,
        configurations: Sequence[Configuration],
        knobs: Sequence[Knob],
        metrics: Sequence[str],
        descriptors: Mapping[str, float] | None = None,
    ) -> list[Hypothesis]:
        """What a new task may be like, before anything of it is measured.

        Args:
            configurations: The candidates, n of them.
            knobs: The knobs of the space that they come from.
            metrics: What to model. One that the prior never saw is a smooth function at an unknown level.
            descriptors: Of the new task, see `Objective`. Earlier tasks that are near in these are more likely like it.
        """
        surfaces, gaps = self.surfaces(configurations, metrics), self._gaps(descriptors or {})
        found = self._unscaled(configurations, knobs, metrics, surfaces, gaps)
        replicas = [name for name in scaling_knobs(knobs) if name not in self.knobs]
        if not replicas:
            return found
        out = [replace(h, log_prior=h.log_prior + float(np.log(1.0 - P_SCALES))) for h in found]
        for name in replicas:
            copies = self._unscaled(configurations, knobs, metrics, surfaces, gaps, copies=name)
            out += scaled(copies, scaling(configurations, name, metrics), P_SCALES / len(replicas))
        return out

    def _unscaled(
        self,
        configurations: Sequence[Configuration],
        knobs: Sequence[Knob],
        metrics: Sequence[str],
        surfaces: FloatArray,
        gaps: FloatArray,
        copies: str = "",
    ) -> list[Hypothesis]:
        """The three kinds; for `copies` see `own`."""
        own = self.own(configurations, knobs, metrics, copies=copies)
        far: Covariance | None = own
        if copies:
            far = None  # who strays far in other ways may well do so in this one
        elif (self._reach() < 1.0).any():
            far = self.own(configurations, knobs, metrics, idle=False)
        found = resembling(surfaces, own, far, gaps)
        if self.bottlenecks is None or any(name not in self.metrics for name in metrics):
            return found
        found = [replace(h, log_prior=h.log_prior + float(np.log(1.0 - _BOTTLENECKED))) for h in found]
        which = [self.metrics.index(name) for name in metrics]
        return found + self._bottlenecked(self.bottlenecks, configurations, own, far, which, gaps)

    def _bottlenecked(
        self,
        learned: Bottlenecks,
        configurations: Sequence[Configuration],
        own: Covariance,
        far: Covariance | None,
        which: list[int],
        gaps: FloatArray,
    ) -> list[Hypothesis]:
        """The third kind: it needs other amounts of the same bottlenecks."""
        weights = pairs(len(self.tasks), DRAWN)
        hats = Hats(self.centres)(self.encoding.encode(configurations))
        templates = learned.drawn(weights, hats, which)
        residual = np.clip(learned.misfit[which], *_MISFIT)
        wide = {f: far if f >= FAR else own for f, _ in _MISSES}
        return [
            Hypothesis(
                f"bottlenecks x{f:g}",
                float(np.log(_BOTTLENECKED * p)),
                templates,
                replace(covariance, residual_sd=f * residual),
                log_likely=likely(weights, gaps),
                works=templates.works if learned.wall_needs.size else None,
            )
            for f, p in _MISSES
            if (covariance := wide[f]) is not None
        ]

    def _gaps(self, descriptors: Mapping[str, float]) -> FloatArray:
        """How far each earlier task lies from a new one in the descriptors that all of them have, in logs, (T, D)."""
        known = [d for d in sorted(descriptors) if all(t.constants.get(d, 0.0) > 0 for t in self.earlier)]
        known = [d for d in known if descriptors[d] > 0 and self.earlier]
        return np.array([[np.log(t.constants[d] / descriptors[d]) for d in known] for t in self.earlier])

    def knows(self, knobs: Sequence[Knob], metrics: Sequence[str]) -> bool:
        """Whether it can say anything of a search: at least one of its knobs, and one of its metrics, is there."""
        return bool({k.name for k in knobs} & set(self.knobs)) and bool(set(metrics) & set(self.metrics))

    def mismatch(self, knobs: Sequence[Knob], metrics: Sequence[str]) -> str:
        """What of a search the prior never saw, in one sentence; empty if it knows all of it."""
        if not self.knows(knobs, metrics):
            known = ", ".join(self.knobs), ", ".join(self.metrics)
            return f"the prior does not match and is left out: it knows the knobs {known[0]} and the metrics {known[1]}"
        others = [k for k in knobs if k.name in self.knobs or k.name not in scaling_knobs(knobs)]
        fresh = [*self.encoding.beyond(others), *(f"the metric {m}" for m in metrics if m not in self.metrics)]
        return f"the prior never saw {'; '.join(fresh)}: this part is learned from the trials alone" if fresh else ""

    def of_tasks(self, which: Sequence[int]) -> "Prior":
        """The same with some of the tasks only; smoothing and spreads stay as they were learned from all."""
        some = list(which)
        return replace(
            self,
            tasks=tuple(self.tasks[t] for t in some),
            alpha=self.alpha[:, :, some],
            taught=self.taught[:, some],
            bottlenecks=self.bottlenecks.of_tasks(some) if self.bottlenecks and len(some) >= ENOUGH else None,
            earlier=tuple(self.earlier[t] for t in some) if self.earlier else (),
        )

    def surfaces(self, configurations: Sequence[Configuration], metrics: Sequence[str]) -> FloatArray:
        """Log-metrics of the earlier tasks at any configurations, shape `(T, n, M)`.

        Where a task was measured that is its value, elsewhere its smoothed surface. A task that lacks a metric gets the
        mean of those that have it.
        """
        b = basis(self.encoding.encode(configurations), self.centres, self.smooth_lengths)  # (n, P)
        out = np.zeros((len(self.tasks), len(configurations), len(metrics)))
        rows = matching_rows(self.earlier, configurations)
        for k, name in enumerate(metrics):
            if name not in self.metrics:
                continue
            m = self.metrics.index(name)
            values, who = (b @ self.alpha[m]).T, self.taught[m] > 0  # (T, n), (T,)
            for t, task in enumerate(self.earlier):
                if who[t]:
                    at = np.flatnonzero(rows[t] >= 0)
                    measured = np.asarray(task.metrics[name], float)[rows[t][at]]
                    good = task.feasible[rows[t][at]] & np.isfinite(measured) & (measured > 0)
                    values[t, at[good]] = np.log(measured[good])
            out[:, :, k] = np.where(who[:, None], values, values[who].mean(0))
        return out

    def own(
        self,
        configurations: Sequence[Configuration],
        knobs: Sequence[Knob],
        metrics: Sequence[str],
        *,
        idle: bool = True,
        copies: str = "",
    ) -> Covariance:
        """Of what a new task has of its own.

        Args:
            configurations: The candidates.
            knobs: Of the space that they come from.
            metrics: What to model.
            idle: Knobs that made little difference to earlier tasks make little to this one, too.
            copies: A knob that the prior never saw and whose effect is known all the same, see `copies.py`: a task
                strays from that no more than along the knobs that were seen.
        """
        known = [self.metrics.index(m) if m in self.metrics else None for m in metrics]
        seen = np.array([m is not None for m in known])
        reach = self._reach()[self.encoding.groups] if idle else 1.0
        near = self.encoding.encode(configurations) * reach / RESIDUAL_LENGTH
        if copies:
            scaled = Encoding.of_space([k for k in knobs if k.name == copies]).encode(configurations)
            near = np.hstack([near, scaled / RESIDUAL_LENGTH])
        fresh = Encoding.of_space(knobs).encode(configurations) / UNSEEN_LENGTH
        offset, residual, white = UNSEEN_METRIC
        extra = self.encoding.unseen([k for k in knobs if k.name != copies]).encode(configurations)
        correlation = _correlation(self.correlation, known)
        return Covariance(
            features=_trends(extra, correlation, np.where(seen, UNSEEN_SLOPE, 0.0)),
            inputs=[near if m is not None else fresh for m in known],
            extra=extra / UNSEEN_LENGTH,
            offset_sd=np.where(seen, self.offset_sd, offset),
            residual_sd=np.where(seen, RESIDUAL_SD, residual),
            extra_sd=np.where(seen, UNSEEN_SD, 0.0),
            white_sd=np.where(seen, WHITE_SD, white),
            correlation=correlation,
            same=self._same(configurations) if idle else None,
        )

    def _reach(self) -> FloatArray:
        """By knob, the part of its distances that counts in the residual: little where it made little difference."""
        return np.asarray(np.clip(self.effects / (np.sqrt(2.0) * RESIDUAL_SD), LEAST, 1.0))

    def _same(self, configurations: Sequence[Configuration]) -> IntArray | None:
        """A number for each configuration, equal for those that differ in idle knobs alone; None if no knob is idle.

        Idle is one that sets configurations less apart than white parts of their own would, which lie sqrt(2) standard
        deviations apart. Another of its values is not another chance to be better than expected.
        """
        idle = {code.name for code, effect in zip(self.encoding.codes, self.effects) if effect < WHITE_SD}
        if not idle:
            return None
        keys = [tuple((k, v) for k, v in c.items() if k not in idle) for c in configurations]
        place: dict[object, int] = {}
        return np.array([place.setdefault(key, len(place)) for key in keys], np.int64)

    def feasible(self, configurations: Sequence[Configuration]) -> FloatArray:
        """Probability that each configuration works on a new task, shape `(n,)`."""
        lengths = np.minimum(self.smooth_lengths, _EDGE)
        near = matern52(squared_distances(self.encoding.encode(configurations) / lengths, self.centres / lengths))
        works, fails = (near @ self.outcomes).T + np.array(_FEASIBLE_PRIOR)[:, None]
        return np.asarray(works / (works + fails))

    def neighbourhood(self, configurations: Sequence[Configuration], knobs: Sequence[Knob]) -> FloatArray:
        """Candidates in units of length scales, shape `(n, d + e)`: by what outcomes of neighbours are weighed."""
        z = self.encoding.encode(configurations) / np.minimum(self.smooth_lengths, NEIGHBOURHOOD)
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
            "offset_sd": self.offset_sd,
            "about": dict(self.about),
        }
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        if self.bottlenecks is not None:
            arrays |= {f"bottlenecks_{name}": values for name, values in vars(self.bottlenecks).items()}
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
                arrays = {name: np.asarray(file[name], np.float64) for name in _ARRAYS}
                learned = {f.name: file.get(f"bottlenecks_{f.name}") for f in fields(Bottlenecks)}
                known = {name: np.asarray(a, np.float64) for name, a in learned.items() if a is not None}
                earlier = tuple(unpack(file))
            prior = cls(
                encoding=Encoding.from_list(meta["knobs"]),
                metrics=tuple(map(str, meta["metrics"])),
                tasks=tuple(map(str, meta["tasks"])),
                offset_sd=float(meta["offset_sd"]),
                bottlenecks=Bottlenecks(**known) if known else None,
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
            **{"smooth_lengths": (d,), "correlation": (m, m), "effects": (len(self.encoding.codes),)},
        }
        for name, shape in shapes.items():
            values = getattr(self, name)
            if values.shape != shape or not (np.isfinite(values) | (name == "effects") & (values > 0)).all():
                raise ValueError(f"{name} must be finite and of shape {shape}, got shape {values.shape}")
        if not 0 < self.offset_sd < np.inf:
            raise ValueError("offset_sd must be positive")
        if self.bottlenecks is not None:
            self.bottlenecks.check(m, t, Hats(self.centres).count)


def _trends(extra: FloatArray, correlation: FloatArray, slope_sd: FloatArray) -> FloatArray:
    """Features of a linear trend along each column of what the prior never saw, shape `(M, n, M e)`.

    Args:
        extra: Encoded candidates, shape `(n, e)`.
        correlation: Between the metrics' trends, shape `(M, M)`.
        slope_sd: Of a metric's trend over the range, shape `(M,)`.
    """
    factor = slope_sd[:, None] * cholesky(correlation)
    centred = extra - extra.mean(0)
    return np.asarray(np.einsum("mk,ne->mnke", factor, centred)).reshape(len(slope_sd), len(extra), -1)


def _correlation(learned: FloatArray, known: Sequence[int | None]) -> FloatArray:
    """The learned correlations of known metrics; unknown ones stand alone."""
    out = np.eye(len(known))
    for i, m in enumerate(known):
        for j, k in enumerate(known):
            if m is not None and k is not None:
                out[i, j] = learned[m, k]
    return out
