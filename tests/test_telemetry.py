"""Metrics: what Ray's agent reports during real searches, and what of them the documentation and Grafana know."""

import json
import re
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import cli
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from experiments.screenshots import MOST_BYTES, PAGES, SECTIONS
from morphling_ray.evaluate.lane import Lane
from morphling_ray.measurement import Measurement, Probe, Trial, Verdict
from morphling_ray.telemetry import METRICS, OF_RUN, Telemetry, label, stage_of, table

# A search in this process, and a thread that reads what the node's agent reports meanwhile.
WATCHED = """
import json, sys, threading, time, urllib.request
from pathlib import Path
import ray
from morphling_ray.tune import main

out, arguments = Path(sys.argv[1]), sys.argv[2:]

def watch():
    while True:
        time.sleep(0.5)
        try:
            node = ray.nodes()[0]
            url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
            page = urllib.request.urlopen(url, timeout=5).read().decode()
            actors = [a["name"] for a in ray.util.list_named_actors(all_namespaces=True)]
        except Exception:
            continue
        ours = "".join(line + "\\n" for line in page.splitlines() if "ray_morphling_" in line)
        with out.open("a") as pages:
            pages.write(json.dumps({"page": ours, "actors": actors, "at": time.monotonic()}) + "\\n")

threading.Thread(target=watch, daemon=True).start()
sys.exit(main(arguments))
"""
PROBE = Probe(
    kind="open", rate_rps=100.0, window_s=3.0, requests=300, achieved_rps=99.0, errors=0, late=1, p50_s=0.02,
    p90_s=0.05, p99_s=0.08, slo_latency_s=0.08, driver_lag_s=0.001, driver_cpu=0.2, verdict=Verdict.MET,
)  # fmt: skip
Sample = tuple[str, dict[str, str], float]


def watched(folder: Path, *arguments: str) -> list[dict[str, Any]]:
    """Runs a search to its end; what was to be seen of it, twice a second."""
    for app in cli.APPS.glob("*.py"):
        (folder / app.name).write_bytes(app.read_bytes())
    (folder / "home").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, "seen.jsonl", *arguments],
        cwd=folder,
        env={**cli.environment(folder / "home"), "RAY_metrics_report_interval_ms": "1000"},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return list(cli.lines(folder / "seen.jsonl"))


def samples(page: str) -> list[Sample]:
    """What a page of metrics says, as Prometheus reads it."""
    return [(s.name, s.labels, s.value) for family in text_string_to_metric_families(page) for s in family.samples]


def of(found: Iterable[Sample], name: str) -> list[tuple[dict[str, str], float]]:
    return [(labels, value) for sample, labels, value in found if sample == f"ray_{name}"]


@pytest.mark.serve
@pytest.mark.timeout(200)
@pytest.mark.timed
def test_a_real_search_is_seen_as_it_goes_on(tmp_path: Path) -> None:
    """A local search without any flag. Fails if a metric is missing, wrong, of another trial, or outlives its trial.

    Also if Ray's dashboard would list actors without a name that says whose they are.
    """
    (tmp_path / "request.json").write_text("21")
    (tmp_path / "experiment.yaml").write_text(
        "app: batched:app\nrequest: request.json\nsearcher: random\nmax_trials: 3\n"
        "space: {max_batch_size: [1, 4, 16]}\n"
    )
    pages = watched(tmp_path, "--experiment", "experiment.yaml", "--run-dir", "a run", "--quiet")
    trials = cli.lines(tmp_path / "a run" / "trials.jsonl")
    seen = [samples(page["page"]) for page in pages]
    everything = [sample for page in seen for sample in page]

    names = {name for name, _, _ in everything}
    # `voided_attempts` has nothing to count.
    assert names >= {s for m in METRICS if m.name != "morphling_voided_attempts" for s in m.series}
    for _, labels, _ in everything:
        assert (labels["run"], labels["application"]) == ("a_run", "batched:app")

    ended = [sum(value for _, value in of(page, "morphling_trials_total")) for page in seen]
    assert ended == sorted(ended)  # it only grows
    assert 1 <= ended[-1] <= len(trials)  # the last trial may end within the interval of the reports
    objectives = [t["objective"] for t in trials if t["objective"]]
    peaks = [t["metrics"]["peak_rps"] for t in trials if t["objective"]]
    costs = {t["details"]["cost_per_hour"] for t in trials}
    assert {value for _, value in of(everything, "morphling_incumbent_objective")} <= set(objectives)
    assert {value for _, value in of(everything, "morphling_incumbent_peak_rps")} <= set(peaks)
    assert {value for _, value in of(everything, "morphling_incumbent_cost_per_hour")} <= costs
    assert {value for _, value in of(everything, "morphling_max_trials")} == {3.0}
    assert {value for _, value in of(everything, "morphling_samples")} >= {0.0, 1.0}

    probes = {str(t["number"]): [p for p in t["probes"] if p["kind"] == "open"] for t in trials}
    for metric, key in (("offered_rps", "rate_rps"), ("achieved_rps", "achieved_rps"), ("p99_seconds", "p99_s")):
        for labels, value in of(everything, f"morphling_probe_{metric}"):
            assert value in [probe[key] for probe in probes[labels["trial"]]]
    stages = {labels["stage"] for labels, _ in of(everything, "morphling_running")}
    assert {"deploying", "probing"} & stages
    assert stages <= {"starting", "deploying", "warming_up", "table", "forecast", "probing"}
    for page in seen:  # one trial at a time is in one stage; not a report's length later still in the one before
        assert sum(value for _, value in of(page, "morphling_running")) <= 1.0
    # A report a second; Ray forgets after two, and the page is read twice a second.
    for number in probes:
        last = max(
            i for i, page in enumerate(seen) if any(x["trial"] == number for x, _ in of(page, "morphling_running"))
        )
        after = next((i for i, count in enumerate(ended) if count >= int(number)), last)
        assert pages[last]["at"] - pages[after]["at"] < 6.0

    actors = {name for page in pages for name in page["actors"]}
    assert [name for name in actors if name.startswith("morphling-a run-") and name.endswith("-lanes")]
    assert [name for name in actors if name.startswith("morphling-a run-") and name.endswith("-lane-1")]
    assert [name for name in actors if name.startswith("morphling-driver-")]


@pytest.mark.serve
@pytest.mark.timeout(120)
def test_a_replayed_search_is_seen_too(tmp_path: Path, surfaces: Path) -> None:
    """Fails if a search without Serve, probes or prices does not run with metrics, or its trials are not counted."""
    # One that thinks for a while: a search may be over before Ray's agent, which comes up beside it, has told anything.
    arguments = ["--replay", str(surfaces), "--task", "small", "--objective-name", "value", "--searcher", "botorch"]
    pages = watched(tmp_path, *arguments, "--max-trials", "15", "--run-dir", "out", "--quiet")
    assert len(cli.lines(tmp_path / "out" / "trials.jsonl")) == 15
    everything = [sample for page in pages for sample in samples(page["page"])]
    assert {labels["application"] for _, labels, _ in everything} == {"small"}
    assert not of(everything, "morphling_probe_offered_rps")


class Loads:
    """An evaluator of a lane that has one probe, at a rate that the configuration says, and then takes its time."""

    def __init__(self) -> None:
        self.probes: deque[Probe] = deque(maxlen=1)
        self.go_on = threading.Event()

    def measure(self, configuration: dict[str, Any], *, progress: Callable[[str], None], **how: Any) -> Measurement:
        progress(f"probing at {configuration['rate']} RPS")
        if configuration["rate"]:
            self.probes.append(replace(PROBE, rate_rps=configuration["rate"]))
        assert self.go_on.wait(20)
        return Measurement(configuration=configuration, metrics={"peak_rps": 1.0})


def test_each_lane_tells_of_its_own_trial() -> None:
    """Fails if two trials at once share a probe, or a trial is said to have that of the one before it."""
    evaluators = [Loads(), Loads()]
    lanes = [Lane(lambda one=one: one, {}) for one in evaluators]

    def begin(lane: Lane, number: int, rate: float) -> threading.Thread:
        ask = {"number": number, "configuration": {"rate": rate}, "needed": {}, "stage": "search", "exact": False}
        trial = threading.Thread(target=lane.measure, args=[ask])
        trial.start()
        cli.wait_for(lambda: (doing := lane.stage()) is not None and (doing.probe is not None) == (rate > 0), 10, "it")
        return trial

    trials = [begin(lanes[0], 7, 30.0), begin(lanes[1], 8, 50.0)]
    doing = [lane.stage() for lane in lanes]
    assert [each and (each.number, each.probe and each.probe.rate_rps) for each in doing] == [(7, 30.0), (8, 50.0)]
    evaluators[0].go_on.set()
    trials[0].join()
    assert lanes[0].stage() is None
    evaluators[0].go_on.clear()
    trials.append(begin(lanes[0], 9, 0.0))
    assert lanes[0].stage() == (9, "probing at 0.0 RPS", None)
    for evaluator in evaluators:
        evaluator.go_on.set()
    for trial in trials:
        trial.join()


def test_metrics_never_end_a_run() -> None:
    """Fails if an error on the way to Ray, which is not even connected here, reaches the search."""

    def broken(value: float) -> float:
        raise ZeroDivisionError

    measured = Measurement(configuration={"n": 1}, metrics={"peak_rps": 2.0}, timings_s={"probing": 1.0})
    trial = Trial(number=1, stage="search", measurement=measured, objective=3.0, started_s=0.0, seconds=1.0)
    telemetry = Telemetry(run="r", application="a", max_trials=2, reported=broken, kept=[trial])
    telemetry.refresh([1, 2], {2: ("probing at 3 RPS", None)})
    telemetry.trial_finished(trial)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("my_app:app", "my_app:app"),
        ("/home/me/my app.py:build", "my_app.py:build"),
        ("configs/serve.yaml:second", "serve.yaml:second"),
        ("/", "_"),
        ('a"b\nc{d}', "a_b_c_d_"),
        ("x" * 200, "x" * 64),
    ],
)
def test_labels_are_safe(name: str, shown: str) -> None:
    """Fails if folders of a user, ends of lines or quotes get into a label, or it is endless."""
    assert label(name) == shown


def test_what_a_lane_says_makes_few_stages() -> None:
    """Fails if a rate makes a label of its own, or a trial that waits for a lane is in no stage."""
    assert {stage_of(f"probing at {rate} RPS") for rate in range(50)} == {"probing"}
    assert stage_of("starting") == "starting"
    assert stage_of("LoadGen at 40 RPS") == "other"


def dashboard() -> dict[str, Any]:
    text = (resources.files("morphling_ray") / "data" / "grafana_dashboard.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def test_grafana_shows_every_metric_and_no_other() -> None:
    """Fails if a panel or a variable asks for a series that Ray does not report, or a metric is on no panel."""
    board = dashboard()
    panels = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    variables = [v["query"]["query"] for v in board["templating"]["list"] if v["type"] == "query"]
    asked = set(re.findall(r"\bray_\w+", " ".join(panels + variables)))
    assert asked <= {series for metric in METRICS for series in metric.series}
    shown = set(re.findall(r"\bray_\w+", " ".join(panels)))
    assert [metric.name for metric in METRICS if not shown & set(metric.series)] == []


def test_grafana_asks_for_labels_that_there_are() -> None:
    """Fails if an expression groups or filters by a label that its metric lacks, or leaves the variables out."""
    of_ray, of_buckets = {"SessionName"}, {"le"}
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            names = re.findall(r"\bray_\w+", target["expr"])
            labels = {name for m in METRICS if set(names) & set(m.series) for name in (*OF_RUN, *m.labels)}
            grouped = {g.strip() for by in re.findall(r"by \(([^)]*)\)", target["expr"]) for g in by.split(",")}
            assert grouped | set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= labels | of_buckets
            assert target["expr"].count('{SessionName=~"$SessionName",run=~"$run"}') == len(names)
            assert set(re.findall(r'(\w+)=~"', target["expr"])) <= labels | of_ray


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # Ray leaves it to the garbage collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_grafana_takes_the_datasource_of_rays_own_dashboards() -> None:
    """Fails if Ray names the variable of its datasource otherwise, or a panel or variable of ours has another one."""
    factory = pytest.importorskip("ray.dashboard.modules.metrics.grafana_dashboard_factory")
    rays = json.loads(factory.generate_default_grafana_dashboard()[0])
    ours = dashboard()
    names = {v["name"] for v in rays["templating"]["list"] if v["type"] == "datasource"}
    assert {v["name"] for v in ours["templating"]["list"] if v["type"] == "datasource"} == names
    where = {p["datasource"]["uid"] for p in ours["panels"]}
    where |= {v["datasource"]["uid"] for v in ours["templating"]["list"] if v["type"] == "query"}
    assert where == {"${" + name + "}" for name in names}
    assert ours["uid"] != rays["uid"]


def test_grafana_has_every_field_of_the_dashboard() -> None:
    """Fails if a panel, its options, a query or a variable has a field, or a value, that Grafana's own types lose."""
    pytest.importorskip("grafana_foundation_sdk", reason="Grafana's types need Python 3.11")
    from grafana_foundation_sdk.cog import encoder, plugins
    from grafana_foundation_sdk.models.dashboard import Dashboard

    plugins.register_default_plugins()
    ours = dashboard()
    theirs = json.loads(encoder.JSONEncoder(sort_keys=True).encode(Dashboard.from_json(ours)))

    def lost(one: Any, other: Any, where: str = "") -> list[str]:
        if isinstance(one, dict) and isinstance(other, dict):
            return [x for key in one for x in lost(one[key], other.get(key), f"{where}.{key}")]
        if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
            return [x for i, pair in enumerate(zip(one, other)) for x in lost(*pair, f"{where}[{i}]")]
        return [] if one == other else [where]

    # What Grafana shows of a variable in its list; the types leave it out, all of Grafana's own dashboards have it.
    assert {x.rpartition(".")[2] for x in lost(ours, theirs)} == {"definition"}


def test_the_documentation_has_its_pictures() -> None:
    """Fails if a picture is missing, is none, or is too large for a repository."""
    docs = Path(__file__).parents[1] / "docs"
    named = re.findall(r"!\[[^]]+\]\(([^)]+)\)", (docs / "observability.md").read_text(encoding="utf-8"))
    assert {docs / name for name in named} == {docs / "images" / f"{p}.png" for p in (*PAGES, "report", *SECTIONS)}
    for name in named:
        with Image.open(docs / name) as picture:
            assert picture.width >= 900
        assert (docs / name).stat().st_size <= MOST_BYTES


def test_the_documentation_has_the_table() -> None:
    """Fails if a metric is added or changed and docs/observability.md is not."""
    assert table() in (Path(__file__).parents[1] / "docs" / "observability.md").read_text(encoding="utf-8")
