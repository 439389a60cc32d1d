"""The figures of a recommendation, from trials that are written by hand."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from morphling_ray.experiment import Experiment
from morphling_ray.measurement import Measurement, Probe, Trial, Verdict
from morphling_ray.objective import Prices, ServingObjective
from morphling_ray.outcome import closing_lines, recommendation
from morphling_ray.search import make_sampler
from morphling_ray.search.session import SearchSession
from morphling_ray.space import Configuration, Knob, SearchSpace
from morphling_ray.target import Plan

PRICES = Prices(base=0.2, cpu_core=0.1, gpu={})


class Target:
    """Costs as the prices say; nothing to deploy."""

    needs_serve = True

    def plan(self, cluster: Any, *, one_node: bool = False) -> Plan:
        raise AssertionError("not called")

    def cost_per_hour(self, configuration: Configuration) -> float:
        return float(PRICES.cost_per_hour(configuration))

    def burden(self, configuration: Configuration) -> tuple[float, ...]:
        return (self.cost_per_hour(configuration),)

    def serve_config(self, configuration: Configuration, header: str, **more: Any) -> None:
        return None

    def difference(self, config: str) -> str:
        return ""


def probe(rate: float, verdict: Verdict) -> Probe:
    """A window at a rate; its p99 is a thousandth of the rate."""
    return Probe(
        kind="open",
        rate_rps=rate,
        window_s=1.0,
        achieved_rps=rate,
        verdict=verdict,
        requests=100,
        errors=0,
        late=0,
        p50_s=0.01,
        p90_s=0.01,
        p99_s=rate / 1000,
        slo_latency_s=rate / 1000,
        driver_lag_s=0.0,
        driver_cpu=0.1,
    )


PROBES = ((1.0, Verdict.MET), (1.05, Verdict.MISSED), (1.2, Verdict.MISSED))


def run(measured: list[tuple[str, int, float]], objective: str = "rps_per_dollar", **more: Any) -> dict[str, Any]:
    """The recommendation after trials of (stage, cores, peak); 0 is infeasible, below that it crashed at the rate."""
    space = SearchSpace([Knob("cpu_cores", (1, 2, 4))])
    goal = ServingObjective(objective, PRICES, more.get("target_rps"))
    sampler = make_sampler("random", space, goal, seed=0)
    session = SearchSession(space, goal, sampler, max_trials=9, time_budget_s=None, clock=lambda: 0.0, confirm=2)
    trials = []
    for number, (stage, cores, peak) in enumerate(measured, start=1):
        measurement = Measurement(
            configuration={"cpu_cores": cores},
            metrics={"peak_rps": peak} if peak > 0 else {},
            infeasible_because="" if peak > 0 else "crash under load",
            probes=tuple(probe(x * abs(peak), verdict) for x, verdict in PROBES),
            timings_s={"deploying": 2.0, "probing": 3.0},
        )
        value = session.replay(number, stage, measurement)
        trials.append(
            Trial(number=number, stage=stage, measurement=measurement, objective=value, started_s=0.0, seconds=5.0)
        )
    plan = Plan(
        space=space, objective=goal, unit="RPS per $/h", initial=({"cpu_cores": 1},), make_evaluator=dict, arguments={}
    )
    return recommendation(
        Experiment(objective=objective, searcher="random", **more),
        plan,
        session,
        trials,
        target=Target(),
        run_dir="out",
        seconds=60.0,
        starting_s=10.0,
        interrupted=False,
        command=[],
    )


def test_the_figures_of_a_search() -> None:
    """Fails if a cost, a gain, an interval or a time is wrong (Eq. 7: peak over base + cores)."""
    result = run([("search", 1, 60.0), ("search", 2, 200.0), ("search", 4, 0.0)])
    assert result["configuration"] == {"cpu_cores": 2}
    assert result["peak_rps"] == 200.0
    assert result["peak_rps_interval"] == [200.0, pytest.approx(210.0)]
    assert result["cost_per_hour"] == pytest.approx(0.4)
    assert result["objective"] == pytest.approx(500.0)
    assert result["p99_s"] == pytest.approx(0.2)
    assert result["baseline"] == {
        "configuration": {"cpu_cores": 1},
        "peak_rps": 60.0,
        "objective": pytest.approx(200.0),
    }
    assert result["gain_over_baseline"] == pytest.approx(2.5)
    assert (result["trials"], result["infeasible_trials"]) == (3, 1)
    assert result["timings_s"] == {
        "starting Ray": 10.0,
        "deploying": 6.0,
        "probing": 9.0,
        "deciding and the rest": 35.0,
    }
    assert "cpu_cores=2: 200 RPS at p99 <= 100 ms for $0.4 an hour, 2.50x the present" in result["summary"]


def test_finalists_that_all_changed_alike_are_told() -> None:
    """Fails if a gain over what was measured at the start is shown as sure, or if one unlucky finalist is a warning."""
    searched = [("search", 1, 100.0), ("search", 2, 240.0), ("search", 4, 290.0)]
    slow = run([*searched, ("confirm", 2, 120.0), ("confirm", 4, 145.0)])
    assert slow["configuration"] == {"cpu_cores": 2}
    assert slow["gain_over_baseline"] == pytest.approx((120 / 0.4) / (100 / 0.3))
    assert any("0.50 times the peaks" in note for note in slow["notes"])
    one = run([*searched, ("confirm", 2, 120.0), ("confirm", 4, 290.0)])
    assert not any("times the peaks" in note for note in one["notes"])


def test_a_lone_finalist_that_is_far_off_is_told_also_without_a_present_configuration() -> None:
    """Fails if a peak that is half of what the search had found passes in silence, or a little less is a warning."""
    half = run([("search", 2, 240.0), ("search", 4, 200.0), ("confirm", 2, 120.0)])
    assert half["baseline"] is None
    (note,) = (note for note in half["notes"] if "0.50 times the peaks" in note)
    assert "present configuration" not in note
    less = run([("search", 2, 240.0), ("search", 4, 200.0), ("confirm", 2, 200.0)])
    assert not any("times the peaks" in note for note in less["notes"])


def test_a_confirmation_is_what_is_reported() -> None:
    """Fails if the lucky first look at the winner is promised instead of the second."""
    result = run([("search", 2, 220.0), ("search", 1, 60.0), ("confirm", 2, 200.0)])
    assert result["peak_rps"] == 200.0
    assert result["objective"] == pytest.approx(500.0)


def test_the_cheapest_is_given_in_dollars_with_its_copies() -> None:
    """Fails if the reciprocal that is maximised is shown, or copies are not whole."""
    result = run([("search", 1, 90.0), ("search", 2, 100.0)], objective="cheapest", target_rps=250.0)
    assert result["configuration"] == {"cpu_cores": 1}
    assert result["copies"] == 3
    assert result["objective"] == pytest.approx(3 * 0.3)


def test_nothing_feasible_says_the_commonest_reason() -> None:
    """Fails if an infeasible configuration is recommended, or the reason is lost."""
    result = run([("search", 1, 0.0), ("search", 2, 0.0)])
    assert result["configuration"] is None
    assert result["reason"] == "no configuration meets the SLO; 2 of 2 trials: crash under load"


def test_who_crashed_did_not_come_near_the_slo() -> None:
    """Fails if a replica that was quick enough until it crashed is said to miss an SLO that it met."""
    assert run([("search", 1, -50.0)])["nearest"] is None


def test_the_command_to_deploy_can_be_pasted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Fails if a path with a space is not quoted, or `serve` is named where the shell would not find it."""
    beside_us = tmp_path / "bin" / "serve"
    beside_us.parent.mkdir()
    beside_us.write_text("#!/bin/sh\nprintf '%s\\n' \"$2\"\n")
    beside_us.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(beside_us.with_name("python")))
    config = Path("a folder/serve_config.yaml")
    summary = {"configuration": {"cpu_cores": 1}, "summary": ""}
    for found in (True, False):
        monkeypatch.setenv("PATH", f"{beside_us.parent}:/usr/bin:/bin" if found else "/usr/bin:/bin")
        line = next(x for x in closing_lines(summary, Path("report.html"), config) if x.startswith("Deploy:"))
        command = line.removeprefix("Deploy:").strip()
        assert command.startswith("serve run ") == found
        assert subprocess.run(["sh", "-c", command], capture_output=True, text=True).stdout.strip() == str(config)
