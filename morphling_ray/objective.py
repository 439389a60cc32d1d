"""What "good" means: the SLO, prices, and the objective that a search maximises.

An objective is a function of a configuration and of its measured metrics. It is applied after the metrics have been
modelled (to posterior draws as well as to measurements), so cost and bounds are never part of what is learned.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import yaml

from morphling_ray.errors import InputError
from morphling_ray.expressions import Expression

Array = npt.NDArray[Any]

BUNDLED_PRICES = {"paper": "prices.yaml", "aws": "prices_aws.yaml"}


@dataclass(frozen=True, kw_only=True)
class Slo:
    """Bounds that must all hold for a rate to count: latency at a percentile and in the median, and failed requests.

    Of answers that are streamed, `latency_s` bounds the time to the first token (TTFT), and `tpot_s` the time for each
    token after it (TPOT, in the mean of an answer). The percentile is then of requests that keep both, as in the
    goodput of DistServe (OSDI 2024, section 2). What such a request has for a latency is how far it is from its bounds
    (`streamed`), so that whatever is said and done about latencies holds for it.

    Attributes:
        latency_s: Bound of the percentile.
        percentile: Of latencies that keep it.
        max_error_rate: Share of requests that may fail. See `failed_are_late`.
        median_s: Bound of the median; None: it has none.
        streaming: It is about answers that are streamed.
        tpot_s: Bound of the time for each of their tokens after the first; None: it has none.

    Raises:
        InputError: A bound that nothing, or everything, would meet.
    """

    latency_s: float
    percentile: float = 99.0
    max_error_rate: float = 0.01
    median_s: float | None = None
    streaming: bool = False
    tpot_s: float | None = None

    def __post_init__(self) -> None:
        if not (np.isfinite(self.latency_s) and self.latency_s > 0):
            raise InputError(f"the SLO's latency must be above 0 ms, got {self.latency_s * 1e3:g} ms")
        if self.median_s is not None and not 0 < self.median_s <= self.latency_s:
            raise InputError(
                f"the SLO's median must be above 0 ms and at most the bound of p{self.percentile:g}, "
                f"got {self.median_s * 1e3:g} ms"
            )
        if not 0 < self.percentile < 100:
            got = f"{self.percentile:g} (write 99, not 0.99)"
            raise InputError(f"the SLO's percentile must lie between 0 and 100, got {got}")
        if not 0 <= self.max_error_rate < 1:
            raise InputError(f"the SLO's error rate must lie in [0, 1), got {self.max_error_rate:g}")

        if self.tpot_s is not None and not (self.streaming and np.isfinite(self.tpot_s) and self.tpot_s > 0):
            raise InputError(
                f"the SLO's time for each token must be above 0 ms, and goes with one for the first token; "
                f"got {self.tpot_s * 1e3:g} ms"
            )

    @property
    def failed_are_late(self) -> bool:
        """Whether one that fails is a late one as well. If more may fail than be late, the percentile is of answers."""
        return self.max_error_rate <= 1 - self.percentile / 100 + 1e-9

    def too_many_errors(self, errors: int, requests: int) -> bool:
        """Whether so many failed that it is hardly by chance that these are more than may fail."""
        expected = self.max_error_rate * requests
        return errors > expected + 2 * math.sqrt(expected)

    def streamed(self, ttft_s: float, tpot_s: float) -> float:
        """What a streamed answer has for a latency: its TTFT, or more where it is its TPOT that is nearer its bound."""
        return ttft_s if self.tpot_s is None else max(ttft_s, tpot_s * self.latency_s / self.tpot_s)

    def __str__(self) -> str:
        text = f"p{self.percentile:g} {'of TTFT ' if self.streaming else ''}<= {self.latency_s * 1e3:g} ms"
        if self.tpot_s is not None:
            return f"{text} and of TPOT <= {self.tpot_s * 1e3:g} ms"
        return text if self.median_s is None else f"{text} and p50 <= {self.median_s * 1e3:g} ms"


@dataclass(frozen=True, kw_only=True)
class Prices:
    """Dollars an hour of one replica (Eq. 7 of the paper): base + GPU price x GPU memory share + CPU price x cores.

    Attributes:
        base: Dollars an hour for a replica, whatever it uses.
        cpu_core: Dollars an hour for one core.
        gpu: Dollars an hour for a whole card, by GPU type.
    """

    base: float
    cpu_core: float
    gpu: Mapping[str, float]

    @classmethod
    def load(cls, name: str | None = None) -> "Prices":
        """Reads prices.

        Args:
            name: A file, or one of the bundled ones: `paper` (its Table 2, also where none is named) or `aws`.

        Raises:
            InputError: The file cannot be read or has no sensible `base`, `cpu_core` and `gpu`.
        """
        bundled = BUNDLED_PRICES.get(name or "paper")
        where = "the bundled prices" if bundled else name
        try:
            text = (resources.files("morphling_ray") / "data" / bundled if bundled else Path(str(name))).read_text()
            raw = yaml.safe_load(text)
            prices = cls(
                base=float(raw["base"]),
                cpu_core=float(raw["cpu_core"]),
                gpu={str(k): float(v) for k, v in (raw.get("gpu") or {}).items()},
            )
        except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
            why = f"cannot be read ({_one_line(error)}); it needs base, cpu_core and gpu"
            raise InputError(f"price file {where}: {why}") from error
        amounts = [prices.base, prices.cpu_core, *prices.gpu.values()]
        if not all(np.isfinite(a) and a >= 0 for a in amounts) or not any(a > 0 for a in amounts):
            raise InputError(f"price file {where}: prices are dollars an hour, at least 0, and not all 0")
        return prices

    def cost_per_hour(self, columns: Mapping[str, Any]) -> Array:
        """Dollars an hour of configurations, all replicas counted.

        Args:
            columns: Knob name to value or to an array of shape `(n,)`. A knob that is absent counts as one core, one
                replica, no GPU. Of a GPU, a replica pays for its share of the memory or of the multiprocessors,
                whichever is larger: nobody else can use the rest.

        Raises:
            InputError: A GPU type without a price.
        """
        cores = np.asarray(columns.get("cpu_cores", 1), float)
        replicas = np.asarray(columns.get("num_replicas", 1), float)
        cost = self.base + self.cpu_core * cores
        if "gpu_type" in columns:
            types = np.asarray(columns["gpu_type"])
            unpriced = sorted({str(t) for t in np.unique(types)} - set(self.gpu))
            if unpriced:
                known = ", ".join(sorted(self.gpu)) or "none"
                raise InputError(f"no price for GPU type {', '.join(unpriced)}; the price file knows {known}")
            price = np.vectorize(lambda t: self.gpu[str(t)], otypes=[float])(types)
            cost = cost + price * _gpus(columns)
        return np.asarray(cost * replicas)


def _gpus(columns: Mapping[str, Any]) -> Array:
    parts = [np.asarray(columns[name], float) for name in ("gpu_memory", "gpu_share") if name in columns]
    whole = np.asarray(columns.get("num_gpus", 1.0), float)
    return np.asarray(np.maximum(parts[0], parts[-1]) if parts else whole)


class Priced(Protocol):
    """What knows the cost of configurations: `Prices` themselves, or those of an application."""

    def cost_per_hour(self, columns: Mapping[str, Any]) -> Array:
        """Dollars an hour of configurations, given as columns of knob values."""
        ...


class Objective(Protocol):
    """A number to maximise, computed from knob values and metrics."""

    name: str
    metrics: tuple[str, ...]
    """Names of the metrics that it needs; these are what a surrogate models."""
    descriptors: Mapping[str, float]
    """Numbers that say what kind of task this is (parameters, a latency, ...), known before anything is measured."""

    def __call__(self, columns: Mapping[str, Any], metrics: Mapping[str, Any]) -> Array:
        """Value, higher is better; 0 where a bound is broken.

        Args:
            columns: Knob name to an array of shape `(n,)`.
            metrics: Metric name to an array that broadcasts with it, for example `(draws, n)`.
        """
        ...

    def slack(self, columns: Mapping[str, Any], metrics: Mapping[str, Any]) -> Array:
        """Smallest relative margin over all bounds (infinite without bounds): >= 0.03 means 3 % to spare."""
        ...

    def reported(self, value: float) -> float:
        """The value as a person reads it (dollars an hour for `cheapest`, else itself)."""
        ...


class ExpressionObjective:
    """`maximize EXPR subject to [EXPR <= EXPR, ...]` over knobs, metrics, `cost` and a task's own constants.

    Args:
        name: What it is called.
        maximize: Arithmetic expression.
        subject_to: Bounds; where one is broken the value is 0.
        metrics: The names of all metrics that can occur.
        cost: Arithmetic expression over knobs, which `cost` stands for.
        constants: Numbers of the task (for example `base_latency_ms`); they describe it as well.

    Raises:
        ExpressionError: An expression cannot be read or a bound is no comparison.
    """

    def __init__(
        self,
        name: str,
        maximize: str,
        subject_to: Sequence[str] = (),
        *,
        metrics: Sequence[str],
        cost: str | None = None,
        constants: Mapping[str, float] | None = None,
    ) -> None:
        self.name = name
        self._value = Expression(maximize)
        self._bounds = [Expression(bound) for bound in subject_to]
        self._cost = Expression(cost) if cost is not None else None
        self._constants = dict(constants or {})
        self.descriptors: Mapping[str, float] = self._constants
        for bound in self._bounds:
            bound_text_check(bound)
        named = self._value.names.union(*(b.names for b in self._bounds))
        if self._cost is not None and "cost" in named:
            named |= self._cost.names
        self.metrics = tuple(m for m in metrics if m in named)

    def _values(self, columns: Mapping[str, Any], metrics: Mapping[str, Any]) -> dict[str, Any]:
        values = {**self._constants, **columns, **metrics}
        if self._cost is not None:
            values["cost"] = self._cost(values)
        return values

    def __call__(self, columns: Mapping[str, Any], metrics: Mapping[str, Any]) -> Array:
        """See `Objective`."""
        values = self._values(columns, metrics)
        out = np.asarray(self._value(values), float)
        for bound in self._bounds:
            out = np.where(bound(values), out, 0.0)
        return np.where(np.isfinite(out), out, 0.0)

    def slack(self, columns: Mapping[str, Any], metrics: Mapping[str, Any]) -> Array:
        """Smallest relative margin over all bounds (infinite without bounds): >= 0.03 means 3 % to spare."""
        values = self._values(columns, metrics)
        margins = [np.asarray(bound.slack(values), float) for bound in self._bounds]
        return np.minimum.reduce(margins) if margins else np.asarray(np.inf)

    def reported(self, value: float) -> float:
        """The value as a person reads it: itself."""
        return value


class ServingObjective:
    """The objectives of an online search, over the metric `peak_rps` (the SLO is already inside the peak).

    Args:
        name: `rps`, `rps_per_dollar` (peak RPS per dollar an hour, Eq. 7 of the paper) or `cheapest` (one over the
            dollars an hour that sustain `target_rps`, with as many whole copies of the configuration as that takes).
        prices: What configurations cost.
        target_rps: Rate to sustain, for `cheapest`.
        descriptors: See `Objective`.

    Raises:
        InputError: An unknown name, or `cheapest` without a rate.
    """

    NAMES = ("rps", "rps_per_dollar", "cheapest")

    def __init__(
        self,
        name: str,
        prices: Priced,
        target_rps: float | None = None,
        *,
        descriptors: Mapping[str, float] | None = None,
    ) -> None:
        if name not in self.NAMES:
            raise InputError(f"unknown objective {name!r}; choose {', '.join(self.NAMES)}")
        if name == "cheapest" and not (target_rps is not None and np.isfinite(target_rps) and target_rps > 0):
            raise InputError("the objective cheapest needs a rate to sustain: --target-rps R, above 0")
        self.name = name
        self.metrics: tuple[str, ...] = ("peak_rps",)
        self.descriptors: Mapping[str, float] = dict(descriptors or {})
        self._prices = prices
        self._target_rps = target_rps or 0.0

    def copies(self, peak_rps: Any) -> Array:
        """Whole copies of a configuration that sustain the target rate (1 without a target)."""
        peak = np.asarray(peak_rps, float)
        return np.asarray(np.ceil(np.maximum(self._target_rps / np.maximum(peak, 1e-9), 1.0) - 1e-9))

    def cost_per_hour(self, columns: Mapping[str, Any]) -> Array:
        """Dollars an hour of one copy of each configuration."""
        return self._prices.cost_per_hour(columns)

    def __call__(self, columns: Mapping[str, Any], metrics: Mapping[str, Any]) -> Array:
        """See `Objective`."""
        peak = np.asarray(metrics["peak_rps"], float)
        if self.name == "rps":
            return peak
        cost = self.cost_per_hour(columns)
        if self.name == "rps_per_dollar":
            return peak / cost
        return np.where(peak > 0, 1.0 / (cost * self.copies(peak)), 0.0)

    def slack(self, columns: Mapping[str, Any], metrics: Mapping[str, Any]) -> Array:
        """See `Objective`. The SLO is inside the peak, so there is no bound left to break."""
        return np.asarray(np.inf)

    def needed_peak_rps(self, configuration: Mapping[str, Any], value: float) -> float:
        """The peak that `configuration` needs to reach the objective `value`: what a trial is tested against first."""
        if self.name == "rps" or value <= 0:  # anything beats nothing
            return max(value, 0.0)
        cost = float(self.cost_per_hour(configuration))
        if self.name == "rps_per_dollar":
            return value * cost
        copies = np.floor(1.0 / (value * cost) + 1e-9)  # how many copies the incumbent's price would buy
        return self._target_rps / copies if copies >= 1 else float("inf")

    def reported(self, value: float) -> float:
        """See `Objective`."""
        return 1.0 / value if self.name == "cheapest" and value > 0 else value


def bound_text_check(bound: Expression) -> None:
    """Raises `ExpressionError` unless the expression is a <= or >= comparison."""
    bound.slack(dict.fromkeys(bound.names, 1.0))


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
