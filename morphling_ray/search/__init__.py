"""Search methods by name. Importing this imports none of them: what a method needs (torch, say) is imported with it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module, resources, util
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morphling_ray.errors import InputError
from morphling_ray.objective import Objective
from morphling_ray.search.sampler import Recommendation, Sampler
from morphling_ray.space import SearchSpace

if TYPE_CHECKING:
    from morphling_ray.meta.prior import Prior
    from morphling_ray.meta.tasks import TrainingTask

Learn = Callable[["Sequence[TrainingTask]", Objective, int], Any]
"""What a method takes from earlier tasks, for one objective and seed; picklable."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """One search method.

    Attributes:
        module: Where it lives, below `morphling_ray.search`.
        sampler: Name of its class there, called as `sampler(space, objective, seed=seed, learned=learned)`, where
            `learned` is what `learn` returned, or None where there are no earlier tasks.
        learn: Name of its function of the kind `Learn` there; None where it takes nothing from earlier tasks.
        options: Further keyword arguments of the class.
        needs: Packages that only the extra `[baselines]` installs.
    """

    module: str
    sampler: str
    learn: str | None = None
    options: Mapping[str, Any] | None = None
    needs: tuple[str, ...] = ()

    @property
    def installed(self) -> bool:
        """Whether everything that it needs can be imported."""
        return not self.missing

    @property
    def missing(self) -> tuple[str, ...]:
        """Those of `needs` that cannot be imported."""
        return tuple(package for package in self.needs if util.find_spec(package) is None)

    def learned(self, tasks: "Sequence[TrainingTask]", objective: Objective, seed: int) -> Any:
        """What it takes from earlier tasks; None if that is nothing, or there are none."""
        if self.learn is None or not tasks:
            return None
        return getattr(self._import(), self.learn)(tasks, objective, seed)

    @property
    def takes_free_knobs(self) -> bool:
        """Whether its class has the keyword `free_knobs`."""
        return "free_knobs" in signature(getattr(self._import(), self.sampler)).parameters

    def make(
        self,
        space: SearchSpace,
        objective: Objective,
        *,
        seed: int,
        learned: Any = None,
        free_knobs: tuple[str, ...] = (),
    ) -> Sampler:
        """A sampler; equal seeds and measurements give equal proposals.

        Args:
            space: The candidates.
            objective: What to maximise.
            seed: Of the sampler.
            learned: What `learned` returned.
            free_knobs: Knobs whose every value is observed with each configuration that is measured; passed on to
                classes that take them, all others are just told more.
        """
        told = {"free_knobs": free_knobs} if free_knobs and self.takes_free_knobs else {}
        sampler: Sampler = getattr(self._import(), self.sampler)(
            space, objective, seed=seed, learned=learned, **(self.options or {}), **told
        )
        return sampler

    def _import(self) -> Any:
        return import_module(f"morphling_ray.search.{self.module}")


SEARCHERS: Mapping[str, Method] = {
    "morphling": Method(module="morphling", sampler="MorphlingSampler", learn="learn"),
    "gp": Method(module="morphling", sampler="MorphlingSampler"),
    "random": Method(module="random", sampler="RandomSampler"),
    "grid": Method(module="grid", sampler="GridSampler"),
    "portfolio": Method(module="portfolio", sampler="PortfolioSampler", learn="learn"),
    "portfolio+gp": Method(module="portfolio_gp", sampler="PortfolioGpSampler", learn="learn"),
    "hill-climb": Method(module="hill_climb", sampler="HillClimbSampler"),
    "optuna-tpe": Method(module="optuna_search", sampler="OptunaSampler", needs=("optuna",)),
    "optuna-gp": Method(
        module="optuna_search",
        sampler="OptunaSampler",
        options={"algorithm": "GPSampler"},
        needs=("optuna", "scipy", "torch"),
    ),
    "botorch": Method(module="botorch_search", sampler="BotorchSampler", needs=("botorch",)),
    "bo": Method(module="bo", sampler="BoSampler", needs=("sklearn",)),
    "maml": Method(module="maml", sampler="MamlSampler", learn="learn"),
    "ernest": Method(module="maml", sampler="ErnestSampler"),
    "finetune": Method(module="maml", sampler="FinetuneSampler", learn="pretrain"),
    "vizier": Method(module="vizier_search", sampler="VizierSampler", needs=("vizier", "jax", "equinox")),
    "vizier-transfer": Method(
        module="vizier_search",
        sampler="VizierSampler",
        learn="learn",
        options={"transfer": True},
        needs=("vizier", "jax", "equinox"),
    ),
}


def bundled_prior() -> Path | None:
    """The prior that comes with the package, or None where there is none."""
    path = Path(str(resources.files("morphling_ray") / "data" / "prior.npz"))
    return path if path.is_file() else None


def make_sampler(
    name: str, space: SearchSpace, objective: Objective, *, seed: int, prior: Path | None = None
) -> Sampler:
    """A sampler by name, with what it learns from the tasks of a prior's file.

    Args:
        name: One of `SEARCHERS`.
        space: The candidates.
        objective: What to maximise.
        seed: Equal seeds and measurements give equal proposals.
        prior: File of a prior; without it the bundled one, where there is one.

    Raises:
        InputError: An unknown name, or a file that does not exist.
        PriorError: The file is not a prior.
    """
    check_searcher(name, prior)
    method, stored = SEARCHERS[name], stored_prior(name, prior)
    learned: Any = stored
    if stored is not None and name != "morphling":
        learned = method.learned(stored.earlier, objective, seed)
    return method.make(space, objective, seed=seed, learned=learned)


def stored_prior(name: str, prior: Path | None = None) -> "Prior | None":
    """The prior of a search method, from its file or the bundled one; None where it takes none, or there is none.

    Raises:
        PriorError: The file is not a prior.
    """
    file = prior if prior is not None else bundled_prior()
    if SEARCHERS[name].learn is None or file is None:
        return None
    from morphling_ray.meta.prior import Prior

    return Prior.load(file)


def check_searcher(name: str, prior: Path | None = None) -> None:
    """Checks what can be checked before there is a space.

    Raises:
        InputError: An unknown name, a package that is not installed, or a prior's file that does not exist.
        PriorError: The file is not a prior.
    """
    if name not in SEARCHERS:
        raise InputError(f"unknown searcher {name!r}; choose {', '.join(SEARCHERS)}")
    if missing := SEARCHERS[name].missing:
        raise InputError(f"searcher {name} needs {', '.join(missing)}; the extra [baselines] of this package has it")
    if prior is not None and not prior.is_file():
        raise InputError(f"prior {prior} does not exist; make one with python -m morphling_ray.train")
    if prior is not None:
        from morphling_ray.meta.prior import Prior

        Prior.load(prior)


__all__ = [
    "SEARCHERS",
    "Method",
    "Recommendation",
    "Sampler",
    "bundled_prior",
    "check_searcher",
    "make_sampler",
    "stored_prior",
]
