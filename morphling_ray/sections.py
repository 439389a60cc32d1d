"""Parts of the report in words: the headline, the key figures, how to deploy, notes, and how to repeat the run.

Whatever comes from a user, an application or a log goes through `esc`.
"""

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from morphling_ray.masking import masked
from morphling_ray.objective import Slo
from morphling_ray.store import to_yaml
from morphling_ray.summary import Summary
from morphling_ray.wording import (
    NOTHING,
    Outcome,
    configuration_text,
    differing,
    duration,
    number,
    outcome,
    percent,
    quantity,
)


def esc(value: object) -> str:
    """Text for HTML, safe between tags and in quoted attributes."""
    return escape(str(value), quote=True)


def section(name: str, title: str, body: str) -> str:
    """A section with its heading, to which the contents link."""
    return (
        f'<section id="{name}" aria-labelledby="{name}-title">\n<h2 id="{name}-title">{title}</h2>\n{body}\n</section>'
    )


def figure(svg: str, caption: str) -> str:
    """A plot with its caption; nothing where there is no plot."""
    if not svg:
        return ""
    text = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f'<figure><div class="scroll">{svg}</div>{text}</figure>'


def headline(summary: Summary) -> str:
    """The recommendation in a sentence, or why there is none."""
    r = summary.recommendation
    effort = f"{_count(r.get('trials') or len(summary.trials), 'trial')}, {duration(r.get('seconds'))}"
    if summary.configuration is None:
        why = str(r.get("reason") or "no trial was feasible").rstrip(".")
        text = f"{esc(_sentence(why))} ({esc(effort)}).{_nearest(summary)}"
        return f"<h1>Nothing is recommended</h1>\n<p class=lead>{text}</p>"
    copies = r.get("copies") or 1
    many = f"{copies} copies " if copies > 1 else ""
    verb = "Best so far:" if summary.interrupted else f"Serve {many}with" if r.get("peak_rps") else "Choose"
    pairs = configuration_text(summary.configuration, "\n").split("\n")
    knobs = ", ".join(f"<code>{esc(pair)}</code>" for pair in pairs)
    after = f"Interrupted after {effort}" if summary.interrupted else f"Found in {effort}"
    return (
        f"<h1>{esc(found(summary))}</h1>\n<p class=lead>{verb} {knobs}.</p>\n"
        f"<p class=sub>{esc(after)}{esc(_gap(summary))}.</p>"
    )


def found(summary: Summary) -> str:
    """`212 RPS at p99 <= 100 ms for $0.24/h, 1.8x the present configuration`; only where there is a recommendation."""
    r = summary.recommendation
    copies, peak, dollars = r.get("copies") or 1, r.get("peak_rps"), r.get("cost_per_hour")
    text = quantity(peak, "RPS") if peak else quantity(r.get("objective"), summary.unit or summary.objective_name)
    if copies > 1 and r.get("target_rps"):
        text = f"{quantity(r['target_rps'], 'RPS')} from {copies} copies of {text} each"
    if peak and summary.slo:
        text += f" at {_slo(summary.slo)}"
    if peak and dollars is not None:
        text += f" for {quantity(dollars * copies, '$/h')}"
    gain = r.get("gain_over_baseline")
    if gain is None or not r.get("baseline"):
        return text
    what = {"rps_per_dollar": "the RPS per dollar of ", "cheapest": "the cost of "}.get(summary.objective_name, "")
    if gain < 1.005:
        return f"{text}, no better than the present configuration"
    share = f"{100 / gain:.0f} %" if summary.lower_is_better else f"{gain:.{1 if gain < 10 else 0}f}\u00d7"
    return f"{text}, {share} {'of ' if summary.lower_is_better else ''}{what}the present configuration"


def _gap(summary: Summary) -> str:
    r = summary.recommendation
    chance, better = r.get("probability_within_5_percent"), r.get("probability_better_than_next")
    tied, rival = r.get("tied_with") or 0, r.get("compared_with")
    name = differing(r.get("configuration") or {}, rival) if rival else ""
    text = f"; {percent(chance)} likely to be within 5 % of the best there is" if chance is not None else ""
    if tied:
        text += f"; it could not be told from {name or f'{tied} other' + 's' * (tied > 1)}"
        text += " in a comparison in turn" if name else ""
    elif better is not None:
        text += f"; {percent(better)} likely to be better than {name or 'the next best that was measured'}"
    return text


def _slo(slo: Mapping[str, Any]) -> str:
    return str(Slo(**{name: value for name, value in slo.items() if value is not None})).replace("<=", "\u2264")


def _nearest(summary: Summary) -> str:
    nearest = summary.nearest()
    if nearest is None or not summary.slo:
        return ""
    trial, probe = nearest
    percentile = f"p{float(summary.slo.get('percentile') or 99):g}"
    measured = f"{percentile} {number(probe.slo_latency_s * 1e3)} ms at {number(probe.rate_rps)} RPS"
    configuration = configuration_text(trial.configuration, ", ")
    return (
        f" The nearest was <code>{esc(configuration)}</code> with {esc(measured)}; the SLO is {esc(_slo(summary.slo))}."
    )


def tiles(summary: Summary) -> str:
    """The key figures."""
    r = summary.recommendation
    low_high = r.get("peak_rps_interval")
    copies, dollars = r.get("copies") or 1, r.get("cost_per_hour")
    infeasible = r.get("infeasible_trials")
    if infeasible is None:
        infeasible = sum(outcome(t) is Outcome.INFEASIBLE for t in summary.trials)
    out: list[tuple[str, str, str]] = []
    if r.get("peak_rps"):
        between = f"between {number(low_high[0])} and {number(low_high[1])}" if low_high else "requests per second"
        out.append(("peak RPS", number(r["peak_rps"]), between))
    if r.get("objective") is not None and summary.objective_name != "rps":
        name = {"rps_per_dollar": "RPS per $/h", "cheapest": "cost"}.get(summary.objective_name)
        under = f"sustains {number(r['target_rps'])} RPS" if r.get("target_rps") else "the objective"
        value = quantity(r["objective"], summary.unit) if summary.lower_is_better else number(r["objective"])
        out.append((name or summary.objective_name, value, under if summary.lower_is_better else "the objective"))
    if r.get("p99_s"):
        out.append(("p99 at the peak", f"{number(r['p99_s'] * 1e3)} ms", _slo(summary.slo) if summary.slo else ""))
    if dollars is not None and not (summary.lower_is_better and copies == 1):
        title, under = ("cost", "for one copy") if copies == 1 else ("cost of one copy", f"{copies} copies")
        out.append((title, quantity(dollars, "$/h"), under))
    if r.get("gain_over_baseline") and r.get("baseline"):
        out.append(("gain", f"{r['gain_over_baseline']:.2f}\u00d7", "over the present configuration"))
    total = r.get("trials") or len(summary.trials)
    voided = r.get("voided_attempts", 0)
    counted = f"{infeasible} infeasible" if infeasible else "all feasible"
    out.append(("trials", str(total), counted + (f", {voided} repeated" if voided else "")))
    out.append(("time", _short_duration(r.get("seconds")), str(r.get("searcher") or "")))
    cells = [
        f"<div><dt>{esc(a)}</dt><dd><b>{esc(b)}</b><span>{esc(c)}</span></dd></div>" for a, b, c in out if b != NOTHING
    ]
    return f"<dl class=tiles>{''.join(cells)}</dl>"


def deploy(summary: Summary) -> str:
    """The Serve config, to copy, and the commands that take it."""
    if not summary.serve_config:
        return ""
    shown = masked(summary.serve_config)
    hidden = "<p>Secrets are left out here; the file has them.</p>\n" if shown != summary.serve_config else ""
    return (
        "<p>Save this as <code>serve_config.yaml</code> (it also lies beside this report). On this machine:</p>\n"
        "<pre><code>serve run serve_config.yaml</code></pre>\n<p>On a Ray cluster that is running:</p>\n"
        "<pre><code>serve deploy serve_config.yaml</code></pre>\n"
        f'{hidden}<pre id="serve-config" class=copy tabindex=0><code>{esc(shown)}</code></pre>'
    )


def search(summary: Summary) -> str:
    """How the search went, in a sentence or two."""
    r = summary.recommendation
    says = []
    if searcher := r.get("searcher"):
        prior = f" with the prior {r['prior']}" if r.get("prior") else ""
        says.append(f"The searcher {searcher}{prior} proposed the trials.")
    if r.get("stopped_because"):
        says.append(f"The search stopped because: {str(r['stopped_because']).rstrip('.')}.")
    return f"<p>{esc(' '.join(says))}</p>" if says else ""


def notes(summary: Summary) -> str:
    """What a reader should know: of the run, then of single trials."""
    given = [esc(note) for note in summary.recommendation.get("notes") or ()]
    by_note: dict[str, list[int]] = {}
    for trial in summary.trials:
        for note in trial.measurement.notes:
            by_note.setdefault(note, []).append(trial.number)
    for note, numbers in by_note.items():
        given.append(
            f"{esc(note)} <span class=muted>({'trial' if len(numbers) == 1 else 'trials'} {_list(numbers)})</span>"
        )
    return f"<ul>{''.join(f'<li>{note}</li>' for note in given)}</ul>" if given else ""


def environment(summary: Summary) -> str:
    """Hardware, versions, seed and command; the experiment as it was resolved."""
    r = summary.recommendation
    facts = dict(r.get("environment") or {})
    command = facts.pop("command", None)
    if gpus := facts.get("gpus"):
        facts["gpus"] = ", ".join(str(gpu) for gpu in gpus)
    if facts.get("memory_gib") is not None:
        facts["memory"] = f"{number(facts.pop('memory_gib'))} GiB"
    facts = {**facts, "searcher": r.get("searcher"), "prior": r.get("prior"), "seed": r.get("seed")}
    if summary.slo:
        limit = summary.slo.get("max_error_rate")
        facts["SLO"] = _slo(summary.slo) + (f", errors \u2264 {100 * float(limit):g} %" if limit is not None else "")
    out = definitions((k, v) for k, v in facts.items() if v not in (None, "", []))
    if command:
        out = f"<pre class=copy id=command tabindex=0><code>{esc(command)}</code></pre>\n{out}"
    text = to_yaml(summary.experiment)
    return f"{out}\n<details><summary>The experiment, resolved</summary><pre><code>{esc(text)}</code></pre></details>"


def definitions(pairs: Iterable[tuple[str, object]]) -> str:
    """Names and values."""
    return f"<dl class=facts>{''.join(f'<div><dt>{esc(k)}</dt><dd>{esc(v)}</dd></div>' for k, v in pairs)}</dl>"


def _count(n: int, word: str) -> str:
    return f"{n} {word if n == 1 else word + 's'}"


def _short_duration(seconds: float | None) -> str:
    """To one decimal, for a tile: `96 s`, `2.2 min`."""
    if seconds is None or seconds < 119.5:
        return duration(seconds)
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def _list(numbers: list[int]) -> str:
    return ", ".join(str(n) for n in numbers)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
