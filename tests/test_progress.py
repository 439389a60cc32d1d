"""Progress: plain lines where there is no terminal, a live view of 80 columns where there is one."""

import io
import json
import re
import threading
import time
from dataclasses import replace

import pytest

from morphling_ray.json_progress import JsonProgress
from morphling_ray.measurement import Measurement, Probe, Trial, Verdict
from morphling_ray.progress import Progress

CONFIGURATION = {"cpu_cores": 2, "max_batch_size": 16, "batch_wait_timeout_ms": 5, "num_replicas": 1}


PROBE = Probe(
    kind="open", rate_rps=100.0, window_s=3.0, requests=300, achieved_rps=99.0, errors=0, late=1, p50_s=0.02,
    p90_s=0.05, p99_s=0.08, slo_latency_s=0.08, driver_lag_s=0.001, driver_cpu=0.2, verdict=Verdict.MET,
)  # fmt: skip


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def a_trial(
    number: int, peak: float | None = None, *, below: float = 0.0, why: str = "", stage: str = "search"
) -> Trial:
    measurement = Measurement(
        configuration={**CONFIGURATION, "max_batch_size": number},
        metrics={"peak_rps": peak} if peak else {},
        bounds={"peak_rps": (0.0, below)} if below else {},
        infeasible_because=why,
        probes=(PROBE,) if peak else (),
    )
    return Trial(
        number=number, stage=stage, measurement=measurement, objective=peak and peak * 4, started_s=0.0, seconds=8.0
    )


def a_progress(stream: io.StringIO, clock: Clock | None = None, **options: object) -> Progress:
    settings = {"max_trials": 12, "time_budget_s": None, "objective_name": "rps_per_dollar", "unit": "RPS per $/h"}
    return Progress(stream, reported=lambda v: v, clock=clock or Clock(), **{**settings, **options})  # type: ignore[arg-type]


def run(progress: Progress | JsonProgress) -> None:
    progress.message("starting Ray")
    trials = [a_trial(1, 50.0), a_trial(2, below=118.0), a_trial(3, why="out of\nmemory \x1b[31m"), a_trial(4, 100.0)]
    for trial in trials:
        progress.trial_started(trial.number, trial.configuration, trial.stage)
        for text in ("deploying", "warming up", "probing\x07at 100 RPS", "probing at 212 RPS", "probing at 150 RPS"):
            progress.stage(trial.number, text)
        progress.trial_finished(trial)
    progress.close()


def lines_of(screen: str) -> list[str]:
    """The lines that were drawn, without colours and movements."""
    return re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen))


@pytest.fixture(autouse=True)
def eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "40")


def test_plain_lines_say_all_without_control_characters() -> None:
    stream = io.StringIO()
    run(a_progress(stream))
    text = stream.getvalue()
    assert all(c == "\n" or c.isprintable() for c in text)
    lines = text.splitlines()
    assert lines[0] == "starting Ray"
    assert lines[1].startswith("trial 1/12: deploying cpu_cores=2 max_batch_size=1 ")
    assert lines[2] == "trial 1/12: probing at 100 RPS"
    assert lines[3].startswith("trial 1/12: 200 RPS per $/h (50 RPS) in 8.0 s; cpu_cores=2 max_batch_size=1")
    assert lines[6].startswith("trial 2/12: < 118 RPS, rejected in 8.0 s; ")
    assert lines[9].startswith("trial 3/12: infeasible: out of memory [31m in 8.0 s; ")
    assert lines[-1].endswith("; best so far 400 RPS per $/h")
    assert len(lines) == 1 + 3 * 4  # one message; deploying, probing and the end of each trial


def test_verbose_says_every_step_once_and_when() -> None:
    """Fails if a step is left out, or said again for nothing, or the live view hides them on a terminal."""
    stream, clock = Terminal(), Clock()
    progress = a_progress(stream, clock, verbose=True)
    progress.trial_started(1, CONFIGURATION, "search")
    for now, text in enumerate(("deploying", "deploying", "warming up", "probing at 100 RPS", "probing at 212 RPS")):
        clock.now = float(now)
        progress.stage(1, text)
    assert [line.partition(" cpu_cores")[0] for line in stream.getvalue().splitlines()] == [
        "trial 1/12: deploying",
        "trial 1/12: warming up after 2.0 s",
        "trial 1/12: probing at 100 RPS after 3.0 s",
        "trial 1/12: probing at 212 RPS after 4.0 s",
    ]


def test_json_lines_hold_what_trials_jsonl_holds_but_probes() -> None:
    """Fails if a line is no JSON, an event is lost, or a closed pipe ends the run."""
    stream, clock = io.StringIO(), Clock()
    with JsonProgress(stream, clock=clock) as progress:
        run(progress)
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    kinds = [event["event"] for event in events]
    assert kinds[:2] == ["message", "trial_started"]
    assert [kinds.count(kind) for kind in ("trial_started", "stage", "trial_finished")] == [4, 20, 4]
    ends = [event for event in events if event["event"] == "trial_finished"]
    assert [event["outcome"] for event in ends] == ["measured", "rejected", "infeasible", "measured"]
    assert ends[0]["trial"]["configuration"] == {**CONFIGURATION, "max_batch_size": 1}
    assert "probes" not in ends[0]["trial"]
    stream.close()
    progress.message("nobody listens")


def test_dollars_and_the_rise_of_the_best_are_in_sight() -> None:
    """Fails if what is spent is not what the trials took, or the curve falls."""
    stream, clock = Terminal(), Clock()
    progress = a_progress(stream, clock)
    for number, peak in enumerate((50.0, 100.0, 80.0, 200.0), start=1):
        trial = a_trial(number, peak)
        told = replace(trial.measurement, details={"cost_per_hour": 9.0})  # two cents in 8 s
        progress.trial_started(number, trial.configuration, "search")
        progress.trial_finished(replace(trial, measurement=told))
    time.sleep(0.6)  # until it is drawn
    progress.close()
    lines = lines_of(stream.getvalue())
    assert any("$0.08 of about $0.24" in line for line in lines)
    assert any("▃▅▅█ best so far 800 RPS per $/h" in line for line in lines)
    assert max(map(len, lines)) <= 80
    assert any(line.split()[:6] == ["4", "800", "200", "80", "ms", "9"] for line in lines)


def test_a_terminal_that_cannot_move_its_cursor_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    dumb, plain = Terminal(), io.StringIO()
    run(a_progress(dumb))
    run(a_progress(plain))
    assert dumb.getvalue() == plain.getvalue()


def test_the_live_view_fits_80_columns_and_leaves_the_best_behind() -> None:
    stream = Terminal()
    run(a_progress(stream))
    lines = lines_of(stream.getvalue())
    assert max(map(len, lines)) <= 80
    assert any("trial 3/12: infeasible: out of memory" in line for line in lines)
    table = stream.getvalue().rpartition("\x1b[?25h")[2]  # behind the cursor's return
    rows = [line for line in lines_of(table) if re.match(r" *\d", line)]
    assert [row.split()[:5] for row in rows] == [["4", "400", "100", "80", "ms"], ["1", "200", "50", "80", "ms"]]
    assert "2.00x" in rows[0]
    assert "first" in rows[1]
    assert "cpu_cores=2" in rows[0]


def test_what_runs_is_shown_with_its_stage_and_the_time_left() -> None:
    stream, clock = Terminal(), Clock()
    progress = a_progress(stream, clock, time_budget_s=1000.0)
    progress.trial_started(1, CONFIGURATION, "search")
    progress.trial_finished(a_trial(1, 50.0))
    progress.trial_started(2, CONFIGURATION, "search")
    progress.stage(2, "probing at 212 RPS")
    clock.now = 5.0
    progress._live.refresh()  # type: ignore[union-attr]
    text = "\n".join(lines_of(stream.getvalue()))
    progress.close()
    assert "1/12 trials, 5.0 s elapsed, about 83 s left" in text  # 11 trials of 8 s less the 5 s of the second
    assert re.search(r"trial 2/12: probing at 212 RPS  5.0 s  cpu_cores=2 max_batch_size=16", text)


def test_the_time_budget_bounds_the_time_left() -> None:
    clock = Clock()
    progress = a_progress(io.StringIO(), clock, time_budget_s=60.0)
    assert progress._left_s(10.0) == 50.0
    progress.trial_finished(a_trial(1, 50.0))
    assert progress._left_s(10.0) == 50.0
    assert progress._left_s(100.0) == 0.0


def test_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    run(a_progress(stream))
    codes = {code for found in re.findall(r"\x1b\[([0-9;]*)m", stream.getvalue()) for code in found.split(";")}
    assert codes <= {"0", "1", "2", ""}  # bold and dim, but no colour


def test_the_table_is_laid_out_only_when_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    progress = a_progress(stream)
    progress.message("starting Ray")
    progress.trial_finished(a_trial(1, 50.0))
    progress._live.refresh()  # type: ignore[union-attr]
    laid_out = progress._table._laid_out
    progress._live.refresh()  # type: ignore[union-attr]
    assert laid_out is not None
    assert progress._table._laid_out is laid_out
    progress.trial_finished(a_trial(2, 60.0))
    progress._live.refresh()  # type: ignore[union-attr]
    assert progress._table._laid_out is not laid_out
    progress.close()


def test_a_finalist_that_fails_when_measured_again_is_no_longer_the_best() -> None:
    stream = io.StringIO()
    progress = a_progress(stream)
    progress.trial_finished(a_trial(1, 50.0))
    progress.trial_finished(a_trial(2, 90.0))
    again = a_trial(2, why="crashed", stage="confirm")
    progress.trial_finished(again)
    last = stream.getvalue().splitlines()[-1]
    assert last.startswith("trial 2 (confirm): infeasible: crashed")
    assert last.endswith("best so far 200 RPS per $/h")


def test_quiet_and_broken_streams() -> None:
    silent, closed = io.StringIO(), io.StringIO()
    run(a_progress(silent, quiet=True))
    assert silent.getvalue() == ""
    progress = a_progress(closed)
    closed.close()
    run(progress)  # must not raise


def test_many_threads_write_whole_lines() -> None:
    stream = io.StringIO()
    progress = a_progress(stream, max_trials=200)
    threads = [threading.Thread(target=progress.trial_finished, args=(a_trial(n, 50.0 + n),)) for n in range(1, 33)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(stream.getvalue().splitlines()) == 32
    assert all(line.startswith("trial ") and "best so far" in line for line in stream.getvalue().splitlines())
