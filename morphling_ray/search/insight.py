"""What the default search's model has to say about a search that is over, whatever method proposed its trials.

It goes through the trials in the order in which they ended, and says of each what was to be expected just before. At
the end it says what each knob is worth: how much of the best is left when the knob is fixed and all others are chosen
well; and the same for the two that matter most together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from morphling_ray.measurement import Measurement
from morphling_ray.meta.prior import Prior
from morphling_ray.objective import Objective
from morphling_ray.search.morphling import MorphlingSampler
from morphling_ray.search.sampler import take_in
from morphling_ray.space import SearchSpace, Value

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_LOW, _MIDDLE, _HIGH = 10.0, 50.0, 90.0  # percentiles
_TRACED = 40  # trials, the first ones, of which it is said what was expected: each costs as much as a proposal
_LIKELY = 3  # of the configurations with a value, those that may be its best
_SIDE = 12  # values of a knob on the plane, at most


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """What a trial was expected to find: the objective's 10th, 50th and 90th percentile."""

    number: int
    low: float
    middle: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Effect:
    """Share of the best that a knob's value leaves, all other knobs at will: 10th, 50th and 90th percentile."""

    value: Value
    low: float
    middle: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Plane:
    """The objective over two knobs, all others at will.

    Attributes:
        rows: The first knob and its values.
        columns: The second knob and its values.
        values: Expected objective, a list for each row; None where there is no such configuration, 0 where none is
            expected to work.
    """

    rows: tuple[str, tuple[Value, ...]]
    columns: tuple[str, tuple[Value, ...]]
    values: tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Insight:
    """What is believed after a search.

    Attributes:
        expected: By trial, before it was measured; of the first ones, less those before which nothing was known.
        effects: By knob that has several values, what matters most first; empty if nothing is known.
        plane: Of the first two of these; None where there are fewer.
    """

    expected: tuple[Expectation, ...] = ()
    effects: tuple[tuple[str, tuple[Effect, ...]], ...] = ()
    plane: Plane | None = None


def insight(
    space: SearchSpace,
    objective: Objective,
    trials: Sequence[tuple[int, Measurement]],
    *,
    prior: Prior | None,
    seed: int,
) -> Insight:
    """Looks back on a search.

    Args:
        space: The candidates.
        objective: What was maximised; the figures are of it, not of what a person reads (`Objective.reported`).
        trials: Numbers and measurements in the order in which they ended.
        prior: What the search knew before, or None.
        seed: Equal seeds give equal figures.
    """
    sampler = MorphlingSampler(space, objective, seed=seed, learned=prior)
    expected = []
    for place, (number, measurement) in enumerate(trials):
        if place < _TRACED and (draws := sampler.draw([measurement.configuration])) is not None:
            low, middle, high = np.percentile(draws[:, 0], (_LOW, _MIDDLE, _HIGH))
            expected.append(Expectation(number=number, low=float(low), middle=float(middle), high=float(high)))
        take_in(sampler, measurement)
    effects = _effects(space, sampler)
    plane = _plane(space, sampler, *(name for name, _ in effects[:2])) if len(effects) > 1 else None
    return Insight(expected=tuple(expected), effects=effects, plane=plane)


def _effects(space: SearchSpace, sampler: MorphlingSampler) -> tuple[tuple[str, tuple[Effect, ...]], ...]:
    """By knob, the share of each draw's best that each value leaves; that of the worst value decides the order."""
    configurations, median = sampler.points, sampler.predict()
    if not np.isfinite(median).any():
        return ()
    knobs = [knob for knob in space.knobs if len(knob.values) > 1]
    order = np.argsort(-median, kind="stable")
    likely = [
        [int(i) for i in order if configurations[i][knob.name] == value][:_LIKELY]
        for knob in knobs
        for value in knob.values
    ]
    # The best with each value first: what does not fit any more is a second guess.
    drawn = dict.fromkeys(best[rank] for rank in range(_LIKELY) for best in likely if rank < len(best))
    shown = [configurations[i] for i in list(drawn)[: sampler.most_drawn]]
    draws = sampler.draw(shown)
    if draws is None:
        return ()
    draws = draws[draws.max(1) > 0]
    if not len(draws):
        return ()
    out: list[tuple[str, tuple[Effect, ...]]] = []
    for knob in knobs:
        effects = []
        for value in knob.values:
            mine = [k for k, c in enumerate(shown) if c[knob.name] == value]
            if mine:
                share = draws[:, mine].max(1) / draws.max(1)
                low, middle, high = (float(x) for x in np.percentile(share, (_LOW, _MIDDLE, _HIGH)))
                effects.append(Effect(value=value, low=low, middle=middle, high=high))
        out.append((knob.name, tuple(effects)))
    return tuple(sorted(out, key=lambda pair: min((e.middle for e in pair[1]), default=1.0)))


def _plane(space: SearchSpace, sampler: MorphlingSampler, first: str, second: str) -> Plane | None:
    """The objective at the most promising configuration for each pair of values."""
    by_name = {knob.name: knob for knob in space.knobs}
    rows, columns = by_name[first].values, by_name[second].values
    if max(len(rows), len(columns)) > _SIDE:
        return None
    median, best = sampler.predict(), dict[tuple[Value, Value], int]()
    for i, configuration in enumerate(sampler.points):
        cell = configuration[first], configuration[second]
        if cell not in best or median[i] > median[best[cell]]:
            best[cell] = i
    values = tuple(
        tuple(float(median[best[row, column]]) if (row, column) in best else None for column in columns) for row in rows
    )
    return Plane(rows=(first, rows), columns=(second, columns), values=values)
