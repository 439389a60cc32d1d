"""Tables of the report: before and after, every trial with its probes, the time by stage."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from morphling_ray.measurement import Measurement, Probe, Trial
from morphling_ray.sections import definitions, esc
from morphling_ray.summary import Summary
from morphling_ray.svg import STAGES
from morphling_ray.wording import (
    ABOUT,
    NOTHING,
    Outcome,
    at_peak,
    bound_text,
    duration,
    number,
    outcome,
    quantity,
    setting,
)


def comparison(summary: Summary) -> str:
    """The present configuration beside the recommended one; what changes is marked."""
    before, r = summary.recommendation.get("baseline"), summary.recommendation
    if not before or summary.configuration is None:
        return ""
    old: Mapping[str, Any] = before.get("configuration") or {}
    rows = []
    for knob in dict.fromkeys([*summary.configuration, *old]):
        a, b = (setting(c[knob]) if knob in c else NOTHING for c in (old, summary.configuration))
        mark = ' class="changed"' if a != b else ""
        rows.append(f"<tr{mark}><th scope=row><code>{esc(knob)}</code></th><td>{esc(a)}</td><td>{esc(b)}</td></tr>")
    results = [("peak RPS", number(before.get("peak_rps")), number(r.get("peak_rps")))]
    if summary.objective_name != "rps":
        name = summary.unit or summary.objective_name
        pair = [
            quantity(x, summary.unit if summary.lower_is_better else "")
            for x in (before.get("objective"), r.get("objective"))
        ]
        results.append((name, pair[0], pair[1]))
    for name, a, b in results:
        if (a, b) != (NOTHING, NOTHING):
            rows.append(f"<tr class=result><th scope=row>{esc(name)}</th><td>{esc(a)}</td><td>{esc(b)}</td></tr>")
    head = "<th scope=col>knob</th><th scope=col>present</th><th scope=col>recommended</th>"
    return f"<table class=compare><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def trials(summary: Summary) -> str:
    """Every trial: one row to sort by, and below it what was measured."""
    if not summary.trials:
        return "<p>No trial has ended.</p>"
    metrics = [m for m in dict.fromkeys(m for t in summary.trials for m in t.measurement.metrics) if m != "peak_rps"]
    online = any(t.measurement.probes or "peak_rps" in t.measurement.metrics for t in summary.trials)
    with_objective = summary.objective_name != "rps" or not online
    titles = ["#", "outcome"]
    titles += [_objective_title(summary)] if with_objective else []
    titles += ["peak RPS", "p99"] if online else metrics
    titles += [*summary.knobs, "time"]
    head = "".join(f"<th scope=col>{_breakable(title)}</th>" for title in titles)
    bodies = []
    for trial in summary.trials:
        cells = [_cell(trial.number, str(trial.number)), _outcome_cell(summary, trial)]
        if with_objective:
            value = summary.value(trial)
            cells.append(_cell(value, quantity(value, summary.unit if summary.lower_is_better else "")))
        if online:
            peak, probe = trial.measurement.metrics.get("peak_rps"), at_peak(trial.measurement)
            known = number(peak) if peak else bound_text(trial.measurement).removesuffix(" RPS") or NOTHING
            cells.append(_cell(peak, (ABOUT if peak and trial.measurement.estimated else "") + known))
            cells.append(_cell(probe.p99_s, _ms(probe.p99_s) + " ms") if probe else _cell(None, NOTHING))
        else:
            cells += [_cell(v, number(v)) for v in (trial.measurement.metrics.get(m) for m in metrics)]
        cells += [
            _cell(v, setting(v) if v is not None else NOTHING) for v in map(trial.configuration.get, summary.knobs)
        ]
        cells.append(_cell(trial.seconds, duration(trial.seconds)))
        mark = " class=recommended" if summary.is_recommended(trial) else ""
        more = f"<tr class=more><td></td><td colspan={len(titles) - 1}>{_evidence(trial)}</td></tr>"
        bodies.append(f"<tbody{mark}><tr>{''.join(cells)}</tr>{more}</tbody>\n")
    table = f"<table class=sortable><thead><tr>{head}</tr></thead>\n{''.join(bodies)}</table>"
    return f'<div class=scroll tabindex=0 role=region aria-label="Every trial">{table}</div>'


def timings(summary: Summary) -> str:
    """Seconds and share of each stage, with the colour of its part of the bar."""
    stages = summary.timings_s()
    total = sum(stages.values())
    items = []
    for i, (stage, seconds) in enumerate(stages.items()):
        colour = "var(--line)" if stage == "other" else f"var(--s{i % len(STAGES) + 1})"
        share = f"{duration(seconds)}, {100 * seconds / total:.0f} %"
        items.append(f'<li><i style="background:{colour}"></i>{esc(stage)} <span class=muted>{share}</span></li>')
    return f"<ul class=legend>{''.join(items)}</ul>" if items else ""


def _evidence(trial: Trial) -> str:
    """What was measured in a trial, folded away; the reason of an infeasible one stands in sight."""
    m = trial.measurement
    reason = f"<p class=reason>{esc(m.infeasible_because)}</p>" if m.infeasible_because else ""
    parts = [_probe_table(m.probes)] if m.probes else []
    parts += [f"<p>{esc(note)}</p>" for note in m.notes]
    logs = {k: v for k, v in m.details.items() if "log" in k and v}
    facts: list[tuple[str, object]] = [(stage, duration(seconds)) for stage, seconds in m.timings_s.items()]
    given = {k: v for k, v in m.details.items() if k not in logs and v not in (None, "", [], {})}
    facts += [(k.replace("_", " "), _fact(v)) for k, v in given.items()]
    parts += [definitions(facts)] if facts else []
    for name, text in logs.items():
        lines = "\n".join(map(str, text)) if isinstance(text, (list, tuple)) else str(text)
        parts.append(f"<p>{esc(name.replace('_', ' '))}</p><pre><code>{esc(lines)}</code></pre>")
    if not parts:
        return reason
    return f"{reason}<details><summary>{esc(_what(m))}</summary><div>{''.join(parts)}</div></details>"


def _fact(value: object) -> object:
    """`[{"pid": 1, "memory_used": 0.24}]` as `pid 1, memory used 0.24`."""
    if isinstance(value, Mapping):
        return ", ".join(f"{str(k).replace('_', ' ')} {_fact(v)}" for k, v in value.items())
    if isinstance(value, list):
        return ("; " if any(isinstance(v, Mapping) for v in value) else ", ").join(str(_fact(v)) for v in value)
    return value


def _what(m: Measurement) -> str:
    """What lies behind the fold."""
    probes = f"{len(m.probes)} probe{'s' if len(m.probes) > 1 else ''}" if m.probes else ""
    log = "log" if any("log" in k and v for k, v in m.details.items()) else ""
    return ", ".join(filter(None, (probes, "a note" if m.notes else "", log))) or "details"


def _probe_table(probes: Sequence[Probe]) -> str:
    titles = ["offered RPS", "verdict", "achieved RPS", "p50 ms", "p90 ms", "p99 ms"]
    streamed = any(p.ttft_s for p in probes)
    titles += ["TTFT ms", "TPOT ms"] if streamed else []
    titles += ["requests", "errors", "late", "window", "driver lag ms", "driver CPU", ""]
    head = "".join(f"<th scope=col>{title}</th>" for title in titles)
    rows = []
    for p in probes:
        closed = p.kind == "saturate"  # a closed loop offers as much as is answered: there is no verdict to give
        badge = f'<span class="verdict {p.verdict.value.lower()}">{p.verdict.value}</span>'
        cells = [number(p.achieved_rps), _ms(p.p50_s), _ms(p.p90_s), _ms(p.p99_s)]
        cells += [_ms(p.ttft_s), _ms(p.tpot_s)] if streamed else []
        cells += [f"{p.requests:,}", str(p.errors), str(p.late), duration(p.window_s), _ms(p.driver_lag_s)]
        cells.append(f"{100 * p.driver_cpu:.0f} %" if math.isfinite(p.driver_cpu) else NOTHING)
        row = "".join(f"<td>{esc(cell)}</td>" for cell in cells)
        first = "<td>saturated</td><td></td>" if closed else f"<td>{number(p.rate_rps)}</td><td>{badge}</td>"
        rows.append(f"<tr>{first}{row}<td class=words>{esc(p.reason)}</td></tr>")
    return f"<table class=probes><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _outcome_cell(summary: Summary, trial: Trial) -> str:
    kind = outcome(trial)
    word = "recommended" if summary.is_recommended(trial) and kind is Outcome.MEASURED else kind.value
    stage = "" if trial.stage == "search" else f" <span class=muted>{esc(trial.stage)}</span>"
    return f'<td data-v="{word}"><span class="badge {word.split()[0]}">{word}</span>{stage}</td>'


def _objective_title(summary: Summary) -> str:
    return summary.unit or summary.objective_name


def _cell(value: object, text: str) -> str:
    """A cell that sorts by `value`; those without one sort last."""
    missing = value is None or (isinstance(value, float) and not math.isfinite(value))
    return f'<td data-v="{"" if missing else esc(value)}">{esc(text)}</td>'


def _ms(seconds: float) -> str:
    return number(seconds * 1e3)


def _breakable(title: str) -> str:
    """A long name may be broken behind its underscores."""
    return esc(title).replace("_", "_<wbr>")
