"""Search methods by name. Importing this imports none of them: what a method needs (torch, say) is imported with it."""

from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path

from morphling_ray.errors import InputError
from morphling_ray.objective import Objective
from morphling_ray.search.sampler import Recommendation, Sampler
from morphling_ray.space import SearchSpace

Factory = Callable[[SearchSpace, Objective, int, Path | None], Sampler]
"""Makes a sampler from space, objective, seed and the file of a prior (None: there is none)."""


def _morphling(space: SearchSpace, objective: Objective, seed: int, prior: Path | None) -> Sampler:
    from morphling_ray.meta.prior import Prior
    from morphling_ray.search.morphling import MorphlingSampler

    return MorphlingSampler(space, objective, seed=seed, prior=Prior.load(prior) if prior is not None else None)


def _random(space: SearchSpace, objective: Objective, seed: int, prior: Path | None) -> Sampler:
    from morphling_ray.search.random import RandomSampler

    return RandomSampler(space, objective, seed=seed)


SEARCHERS: Mapping[str, Factory] = {"morphling": _morphling, "random": _random}


def bundled_prior() -> Path | None:
    """The prior that comes with the package, or None where there is none."""
    path = Path(str(resources.files("morphling_ray") / "data" / "prior.npz"))
    return path if path.is_file() else None


def make_sampler(
    name: str, space: SearchSpace, objective: Objective, *, seed: int, prior: Path | None = None
) -> Sampler:
    """A sampler by name.

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
    return SEARCHERS[name](space, objective, seed, prior if prior is not None else bundled_prior())


def check_searcher(name: str, prior: Path | None = None) -> None:
    """Checks what can be checked before there is a space.

    Raises:
        InputError: An unknown name, or a prior's file that does not exist.
        PriorError: The file is not a prior.
    """
    if name not in SEARCHERS:
        raise InputError(f"unknown searcher {name!r}; choose {', '.join(SEARCHERS)}")
    if prior is not None and not prior.is_file():
        raise InputError(f"prior {prior} does not exist; make one with python -m morphling_ray.train")
    if prior is not None:
        from morphling_ray.meta.prior import Prior

        Prior.load(prior)


__all__ = ["SEARCHERS", "Factory", "Recommendation", "Sampler", "bundled_prior", "check_searcher", "make_sampler"]
