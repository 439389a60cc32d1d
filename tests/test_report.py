"""The report: one page that opens offline, tells the truth about every kind of run, and takes no text for markup."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from morphling_ray.measurement import Measurement, Probe, Trial, Verdict
from morphling_ray.report import main, render
from morphling_ray.store import RunDirectory
from morphling_ray.summary import Summary
from morphling_ray.wording import duration, number, quantity

VOID = {"meta", "link", "br", "wbr", "img", "hr", "input"}
EVIL = "<script>alert('x')</script>\"&"


class Page(HTMLParser):
    """Collects what a test wants to know; fails on tags that do not close in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.references: list[str] = []
        self.scripts = 0
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self._open.append(tag)
        self._collect(tag, attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._collect(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self._open):
            self.text += f" {data} "

    def _collect(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        for name, value in attrs:
            self.ids += [value or ""] if name == "id" else []
            self.references += [value or ""] if name in ("src", "href", "xlink:href", "srcset", "action") else []


def probe(rate_rps: float, p99_s: float, verdict: Verdict, kind: str = "open") -> Probe:
    return Probe(
        kind=kind, rate_rps=rate_rps, window_s=3.0, requests=300, achieved_rps=rate_rps, errors=0, late=1,
        p50_s=p99_s / 4, p90_s=p99_s / 2, p99_s=p99_s, slo_latency_s=p99_s, driver_lag_s=0.001, driver_cpu=0.2,
        verdict=verdict, reason="" if verdict is Verdict.MET else EVIL,
    )  # fmt: skip


def measured(number: int, batch: int, peak: float, stage: str = "search") -> Trial:
    probes = (
        probe(peak * 1.4, 0.0, Verdict.MET, "saturate"),
        probe(peak, 0.09, Verdict.MET),
        probe(peak * 1.2, 0.3, Verdict.MISSED),
        probe(peak * 1.1, float("nan"), Verdict.INVALID),
    )
    m = Measurement(
        configuration={"cpu_cores": 2, "max_batch_size": batch},
        metrics={"peak_rps": peak},
        probes=probes,
        timings_s={"deploying": 2.0, "probing": 9.0},
        notes=(EVIL,),
    )
    cost = 0.04 + 0.01 * batch
    return Trial(
        number=number, stage=stage, measurement=m, objective=peak / cost, started_s=10.0 * number, seconds=11.0
    )


def infeasible(number: int, reason: str = EVIL) -> Trial:
    m = Measurement(
        configuration={"cpu_cores": 2, "max_batch_size": 64}, infeasible_because=reason, details={"log_tail": EVIL}
    )
    return Trial(number=number, stage="search", measurement=m, objective=None, started_s=10.0 * number, seconds=5.0)


def rejected(number: int) -> Trial:
    m = Measurement(
        configuration={"cpu_cores": 2, "max_batch_size": 4},
        bounds={"peak_rps": (0.0, 118.0)},
        probes=(probe(118.0, 0.31, Verdict.MISSED),),
    )
    return Trial(number=number, stage="search", measurement=m, objective=None, started_s=10.0 * number, seconds=5.0)


TRIALS = [measured(1, 1, 50.0), infeasible(2), rejected(3), measured(4, 8, 212.0), measured(5, 8, 208.0, "confirm")]
FOUND: dict[str, Any] = {
    "configuration": {"cpu_cores": 2, "max_batch_size": 8}, "peak_rps": 208.0, "peak_rps_interval": [200.0, 215.0],
    "objective": 1733.0, "objective_name": "rps_per_dollar", "unit": "RPS per $/h", "cost_per_hour": 0.12, "copies": 1,
    "target_rps": None, "p99_s": 0.09, "trials": 5, "infeasible_trials": 1, "seconds": 96.0, "searcher": "morphling",
    "prior": None, "seed": 0, "slo": {"latency_s": 0.1, "percentile": 99.0, "max_error_rate": 0.01},
    "baseline": {"configuration": {"cpu_cores": 2, "max_batch_size": 1}, "peak_rps": 50.0, "objective": 962.8},
    "gain_over_baseline": 1.8, "probability_within_5_percent": 0.87, "stopped_because": "5 trials were made",
    "reason": "", "notes": [EVIL], "environment": {"python": "3.11", "gpus": ["H200"], "command": f"tune {EVIL}"},
    "timings_s": {"starting Ray": 6.0, "probing": 80.0},
}  # fmt: skip
INSIGHT: dict[str, Any] = {
    "expected": {"1": [300.0, 900.0, 2000.0], "2": [None, None, 80.0], "4": [None, 1500.0, 1800.0]},
    "effects": {
        "max_batch_size": [
            {"value": 1, "low": 0.4, "middle": 0.53, "high": 0.7}, {"value": 8, "low": 0.9, "middle": 1.0, "high": 1.0},
        ],
        EVIL: [
            {"value": "a", "low": 0.9, "middle": 0.98, "high": 1.0}, {"value": EVIL, "low": 0.9, "middle": 1, "high": 1}
        ],
    },
    "plane": {
        "rows": ["cpu_cores", [1, 2]], "columns": ["max_batch_size", [1, 8]], "values": [[None, 700.0], [963.0, 0]],
    },
}  # fmt: skip
EXPERIMENT = {"app": EVIL, "objective": "rps_per_dollar", "slo_p99_ms": 100, "seed": 0, "searcher": "morphling"}
REPLAY = {
    **dict.fromkeys(FOUND), "configuration": {"gpu": "t4", "$x_1": 2}, "objective": 130.0,
    "objective_name": "slo_$5_$6", "trials": 2, "seconds": 80.0,
}  # fmt: skip


def write(folder: Path, trials: list[Trial], found: dict[str, Any] | None, config: str = "") -> Path:
    run = RunDirectory.create(folder)
    run.write_experiment(EXPERIMENT if found is not REPLAY else {"replay": "surfaces", "task": "resnet"})
    for trial in trials:
        run.append_trial(trial)
    if found is not None:
        run.write_recommendation(found)
    if config:
        run.write_text("serve_config.yaml", config)
    return run.path


def replayed() -> list[Trial]:
    out = []
    for n, (gpu, objective) in enumerate((("t4", 130.0), ("v100", None)), start=1):
        m = Measurement(configuration={"gpu": gpu, "$x_1": 2}, metrics={"throughput": 130.0, "latency_ms": 20.0})
        out.append(Trial(number=n, stage="search", measurement=m, objective=objective, started_s=0.0, seconds=40.0))
    return out


NOTHING_FOUND = {
    **FOUND, **dict.fromkeys(["configuration", "peak_rps", "peak_rps_interval", "objective", "cost_per_hour", "p99_s"]),
    "baseline": None, "gain_over_baseline": None, "reason": "no configuration met the SLO", "trials": 2,
}  # fmt: skip
CHEAPEST = {
    **FOUND, "objective_name": "cheapest", "unit": "$/h", "objective": 0.36, "copies": 3, "target_rps": 500.0,
    "baseline": {**FOUND["baseline"], "objective": 0.9}, "gain_over_baseline": 2.5,
}  # fmt: skip
CASES: dict[str, tuple[list[Trial], dict[str, Any] | None]] = {
    "full": (TRIALS, FOUND),
    "interrupted": (TRIALS[:4], None),
    "interrupted at once": ([], None),
    "nothing feasible": ([rejected(1), infeasible(2)], NOTHING_FOUND),
    "one trial": (TRIALS[:1], {**FOUND, "trials": 1, "configuration": TRIALS[0].configuration}),
    "replay": (replayed(), REPLAY),
    "cheapest": (TRIALS, CHEAPEST),
    "insight": (TRIALS, {**FOUND, "insight": INSIGHT}),
    "insight of nothing": ([rejected(1), infeasible(2)], {**NOTHING_FOUND, "insight": {"expected": {}, "effects": {}}}),
}


@pytest.mark.parametrize("case", CASES)
def test_every_kind_of_run_is_one_sound_page(case: str, tmp_path: Path) -> None:
    html = render(write(tmp_path / "run", *CASES[case]))
    page = Page(html)
    assert len(page.ids) == len(set(page.ids))
    assert page.scripts == 1
    assert all(reference.startswith("#") or reference == "data:," for reference in page.references)
    assert {reference[1:] for reference in page.references if reference != "data:,"} <= set(page.ids)
    assert {f"{found}" for found in re.findall(r"url\(#([^)]+)\)", html)} <= set(page.ids)
    assert not re.search(r"@import|url\((?!#)|#1000[0-9a-f]{2}", html)  # nothing fetched; no stand-in colour left
    assert not re.search(r"\b(None|nan|inf)\b", page.text)


def test_no_text_is_taken_for_markup(tmp_path: Path) -> None:
    html = render(write(tmp_path / "run", TRIALS, FOUND, f"applications: {EVIL}"))
    assert "<script>alert" not in html
    shown = Page(html).text
    for place in (
        f"infeasible - - - 2 64 5.0 s {EVIL}",
        f"tune {EVIL}",
        f"applications: {EVIL}",
    ):  # a reason, the command, the Serve config
        assert place in shown


def test_the_headline_says_what_was_found(tmp_path: Path) -> None:
    text = Page(render(write(tmp_path / "run", TRIALS, FOUND, "x: 1"))).text
    assert "208 RPS at p99 ≤ 100 ms for $0.12/h, 1.8× the RPS per dollar of the present configuration" in text
    assert "Serve with cpu_cores=2 , max_batch_size=8 ." in text
    assert "Found in 5 trials, 96 s; 87 % likely to be within 5 % of the best there is." in text
    assert "serve run serve_config.yaml" in text
    assert "SLO 100 ms" in text  # in the plot, as text


def test_cheapest_counts_all_copies_and_says_the_share_of_the_cost(tmp_path: Path) -> None:
    text = Page(render(write(tmp_path / "run", TRIALS, CHEAPEST))).text
    assert "500 RPS from 3 copies of 208 RPS each at p99 ≤ 100 ms for $0.36/h" in text
    assert "40 % of the cost of the present configuration" in text
    assert "Serve 3 copies with" in text


def test_an_interrupted_run_recommends_its_best(tmp_path: Path) -> None:
    path = write(tmp_path / "run", TRIALS[:4], None)
    summary = Summary.read(path)
    assert summary.interrupted
    assert summary.configuration == {"cpu_cores": 2, "max_batch_size": 8}
    text = Page(render(path)).text
    assert "Best so far: cpu_cores=2 , max_batch_size=8" in text
    assert "Interrupted after 4 trials, 51 s" in text
    assert "serve run" not in text  # there is no Serve config to run


def test_what_was_voided_is_counted(tmp_path: Path) -> None:
    """Fails if a person does not see that something broke under the search."""
    assert (
        "1 infeasible, 3 repeated" in Page(render(write(tmp_path / "a", TRIALS, {**FOUND, "voided_attempts": 3}))).text
    )
    assert "repeated" not in Page(render(write(tmp_path / "b", TRIALS, FOUND))).text


def test_where_nothing_is_feasible_it_says_why_and_what_came_nearest(tmp_path: Path) -> None:
    text = Page(render(write(tmp_path / "run", [rejected(1), infeasible(2)], NOTHING_FOUND))).text
    assert "Nothing is recommended No configuration met the SLO (2 trials, 96 s)." in text
    assert "The nearest was cpu_cores=2, max_batch_size=4 with p99 310 ms at 118 RPS; the SLO is p99 ≤ 100 ms." in text
    assert "< 118" in text


def test_a_replay_shows_its_own_metrics_and_leaves_dollars_alone(tmp_path: Path) -> None:
    html = render(write(tmp_path / "run", replayed(), REPLAY))
    text = Page(html).text
    assert "130 slo_$5_$6" in text
    assert "latency_ ms" in text
    assert "$x_1" in text
    assert "breaks a bound" in text
    assert 'id="latency"' not in html
    assert 'id="cost"' not in html


def test_rows_sort_by_number_and_those_without_one_last(tmp_path: Path) -> None:
    html = render(write(tmp_path / "run", TRIALS, FOUND))
    rows = re.findall(r"<tbody[^>]*><tr>(.*?)</tr>", html)
    keys = [re.findall(r'data-v="([^"]*)"', row)[3] for row in rows if "data-v" in row]  # the column of the peak
    assert keys == ["50.0", "", "", "212.0", "208.0"]


def test_the_dearest_that_nothing_beats_are_on_the_front(tmp_path: Path) -> None:
    summary = Summary.read(write(tmp_path / "run", TRIALS, FOUND))
    assert [round(summary.cost_per_hour(t) or 0.0, 3) for t in summary.measured] == [0.05, 0.12, 0.12]
    assert 'id="plot-cost' in render(summary.run_dir)


def test_knobs_are_shown_as_the_model_sees_them_or_else_as_they_were_tried(tmp_path: Path) -> None:
    """Fails if the report of a run that was killed loses its knobs, or a finished one shows two accounts of them."""
    html = render(write(tmp_path / "a", TRIALS, {**FOUND, "insight": INSIGHT}))
    assert 'id="plot-effects' in html
    assert 'id="plot-plane' in html
    assert 'id="plot-knobs' not in html
    text = Page(html).text
    assert "The RPS per $/h to be expected" in text
    assert "963" in text
    assert "fails" in text  # a pair of which none is expected to work
    html = render(write(tmp_path / "b", TRIALS, FOUND))
    assert 'id="plot-knobs' in html
    assert 'id="plot-effects' not in html


def test_time_that_no_stage_accounts_for_is_shown(tmp_path: Path) -> None:
    summary = Summary.read(write(tmp_path / "run", TRIALS, FOUND))
    assert summary.timings_s() == {"starting Ray": 6.0, "probing": 80.0, "other": pytest.approx(10.0)}


def test_the_same_run_gives_the_same_page(tmp_path: Path) -> None:
    path = write(tmp_path / "run", TRIALS, FOUND)
    assert render(path) == render(path)


def test_main_writes_the_file_or_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "run", TRIALS, FOUND)
    assert main([str(path)]) == 0
    assert capsys.readouterr().out == f"{path / 'report.html'}\n"
    assert (path / "report.html").read_text(encoding="utf-8") == render(path)
    assert main([str(tmp_path / "nothing")]) == 2
    captured = capsys.readouterr()
    assert captured.err == f"error: run directory {tmp_path / 'nothing'} does not exist\n"
    assert captured.out == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.2412, "0.241"), (12.345, "12.3"), (212.4, "212"), (1234.5, "1,234"), (100.0, "100"), (0, "0"), (None, "-"),
     (float("nan"), "-"), (9.999, "10"), (0.5, "0.5")],
)  # fmt: skip
def test_numbers(value: float | None, text: str) -> None:
    assert number(value) == text


def test_quantities_and_durations() -> None:
    assert [quantity(0.24, "$/h"), quantity(0.0421, "$/h"), quantity(1234, "RPS")] == [
        "$0.24/h",
        "$0.0421/h",
        "1,234 RPS",
    ]
    assert [duration(s) for s in (0.44, 96, 119.4, 245, 7800)] == ["0.4 s", "96 s", "119 s", "4 min 05 s", "2 h 10 min"]
