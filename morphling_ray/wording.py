"""How numbers, configurations and outcomes read: the same in the progress display as in the report."""

import math
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import Any

from morphling_ray.measurement import Measurement, Probe, Trial

NOTHING = "-"
ABOUT = "about "  # before a value that a model read off the probes


class Outcome(str, Enum):
    """What became of a trial."""

    MEASURED = "measured"
    REJECTED = "rejected"  # only shown to be worse than what was known already
    OVER_LIMIT = "breaks a bound"  # measured, but not within the bounds of the objective
    INFEASIBLE = "infeasible"


def outcome(trial: Trial) -> Outcome:
    """What became of a trial."""
    if not trial.measurement.feasible:
        return Outcome.INFEASIBLE
    if trial.objective is not None and trial.objective > 0:
        return Outcome.MEASURED
    return Outcome.REJECTED if trial.measurement.bounds else Outcome.OVER_LIMIT


def ranked(trials: Iterable[Trial]) -> list[Trial]:
    """The newest measurement of each configuration, best first."""
    newest = {configuration_text(t.configuration): t for t in trials if outcome(t) is not Outcome.REJECTED}
    measured = [t for t in newest.values() if outcome(t) is Outcome.MEASURED]
    return sorted(measured, key=lambda t: -(t.objective or 0.0))


def number(value: float | None, digits: int = 3) -> str:
    """Three significant digits, thousands with a comma: 0.241, 12.3, 212, 1,234."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if value == 0:
        return "0"
    decimals = max(digits - 1 - math.floor(math.log10(abs(value))), 0)
    text = f"{value:,.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def quantity(value: float | None, unit: str) -> str:
    """A number with its unit: `212 RPS`, `$0.24/h`."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if unit.startswith("$"):
        return f"${value:,.2f}{unit[1:]}" if value >= 0.1 else f"${number(value)}{unit[1:]}"
    return f"{number(value)} {unit}".rstrip()


def duration(seconds: float | None) -> str:
    """Time as a person says it: `0.4 s`, `96 s`, `4 min 05 s`, `2 h 10 min`."""
    if seconds is None or not math.isfinite(seconds):
        return NOTHING
    if seconds < 9.95:
        return f"{max(seconds, 0.0):.1f} s"
    if seconds < 119.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def percent(probability: float) -> str:
    """`87 %`; neither never nor always: at most `> 99 %`."""
    shown = 100 * probability
    return "> 99 %" if shown > 99.5 else "< 1 %" if shown < 0.5 else f"{shown:.0f} %"


def counted(count: int, what: str) -> str:
    """`1 trial`, `12 trials`."""
    return f"{count:,} {what}" + ("" if count == 1 else "s")


def setting(value: Any) -> str:
    """A knob's value."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)


def configuration_text(configuration: Mapping[str, Any], separator: str = " ") -> str:
    """`cpu_cores=2 max_batch_size=16`."""
    return separator.join(f"{name}={setting(value)}" for name, value in configuration.items())


def differing(configuration: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """The other's settings where they differ: `max_batch_size=16, precision=float32`."""
    return configuration_text({k: v for k, v in other.items() if configuration.get(k) != v}, ", ")


def one_line(text: str) -> str:
    """`text` without ends of line or control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def at_peak(measurement: Measurement) -> Probe | None:
    """The probe with the highest rate that met the SLO."""
    return max(measurement.met, key=lambda p: p.rate_rps, default=None)


def cost_usd(trial: Trial) -> float | None:
    """What the resources of a trial cost while it lasted, in dollars; None where the run knew no prices."""
    per_hour = trial.measurement.details.get("cost_per_hour")
    return float(per_hour) * trial.seconds / 3600 if isinstance(per_hour, (int, float)) else None


def bound_text(measurement: Measurement) -> str:
    """What is known where a metric was not pinned down: `< 118 RPS`. Empty where all were."""
    for name, (low, high) in sorted(measurement.bounds.items(), key=lambda item: item[0] != "peak_rps"):
        sign, value = (">", low) if high is None else ("<", high)
        return f"{sign} {number(value)} RPS" if name == "peak_rps" else f"{name} {sign} {number(value)}"
    return ""


def result_text(trial: Trial, reported: Callable[[float], float], unit: str) -> str:
    """The outcome of a trial on one line: `880 RPS per $/h (212 RPS)`, `< 118 RPS, rejected`, `infeasible: why`."""
    kind, measurement = outcome(trial), trial.measurement
    if kind is Outcome.MEASURED:
        value = quantity(reported(trial.objective or 0.0), unit)
        peak = quantity(measurement.metrics.get("peak_rps"), "RPS")
        about = ABOUT if measurement.estimated else ""
        return f"{about}{value}" if peak in (NOTHING, value) else f"{about}{value} ({peak})"
    if kind is Outcome.REJECTED:
        return f"{bound_text(measurement)}, rejected"
    return f"infeasible: {one_line(measurement.infeasible_because)}" if kind is Outcome.INFEASIBLE else kind.value
