import json
from dataclasses import replace

import pytest

from morphling_ray.measurement import Comparison, Measurement, Probe, Trial, Verdict

PROBE = Probe(
    kind="open",
    rate_rps=40.0,
    window_s=5.0,
    requests=203,
    achieved_rps=39.5,
    errors=1,
    late=2,
    p50_s=0.01,
    p90_s=0.02,
    p99_s=0.05,
    slo_latency_s=0.05,
    driver_lag_s=0.001,
    driver_cpu=0.2,
    verdict=Verdict.MISSED,
    reason="p99 of 50 ms is above 40 ms",
)
MEASUREMENT = Measurement(
    configuration={"cpu_cores": 2, "gpu_type": "T4", "cache": True},
    metrics={"peak_rps": 38.25},
    bounds={"peak_rps": (30.0, None), "capacity_rps": (40.0, 44.0)},
    probes=(PROBE,),
    timings_s={"start": 1.5},
    estimated=True,
    asked={"cpu_cores": 2, "gpu_type": "T4", "cache": False},
    siblings=(
        Measurement(configuration={"cpu_cores": 2}, bounds={"peak_rps": (1.0, 2.0)}, noise_sd={"peak_rps": 0.0}),
        Measurement(configuration={"cpu_cores": 3}, infeasible_because="not foreseen to work"),
    ),
    comparison=Comparison(rival={"cpu_cores": 3}, ratio=1.25, sd=0.02, rounds=5, p_better=0.75, tie=True, won=True),
    notes=("cores were shared",),
    details={"pids": [1, 2]},
)


def test_round_trip_through_json() -> None:
    """Fails if a field is not written, or comes back as another type (tuples, verdicts)."""
    assert Measurement.from_dict(json.loads(json.dumps(MEASUREMENT.to_dict()))) == MEASUREMENT
    trial = Trial(number=3, stage="confirm", measurement=MEASUREMENT, objective=None, started_s=1.25, seconds=7.5)
    assert Trial.from_dict(json.loads(json.dumps(trial.to_dict()))) == trial
    assert trial.configuration == MEASUREMENT.configuration


def test_a_reason_makes_it_infeasible() -> None:
    """Fails if feasibility is read from anything but the reason; the reason survives a round trip."""
    failed = Measurement(configuration={"cpu_cores": 1}, infeasible_because="out of memory at batch 64")
    assert not failed.feasible
    assert MEASUREMENT.feasible
    assert Measurement.from_dict(json.loads(json.dumps(failed.to_dict()))) == failed


def test_a_comparison_as_the_rival_sees_it() -> None:
    """Fails if a side is told the other one's ratio or chances, or if both have won."""
    assert MEASUREMENT.comparison is not None
    seen = MEASUREMENT.comparison.mirrored({"cpu_cores": 2})
    expected = Comparison(rival={"cpu_cores": 2}, ratio=0.8, sd=0.02, rounds=5, p_better=0.25, tie=True, won=False)
    assert seen == expected
    assert seen.mirrored({"cpu_cores": 3}) == MEASUREMENT.comparison


def test_probes_that_met_the_slo_leave_short_windows_out() -> None:
    """Fails if a capacity, a miss, or the p99 of a window of half a second counts beside long ones."""
    met = replace(PROBE, verdict=Verdict.MET)
    short = replace(met, window_s=0.6, rate_rps=50.0)
    probes = (PROBE, replace(met, kind="saturate"), met, short)
    assert replace(MEASUREMENT, probes=probes).met == (met,)
    assert replace(MEASUREMENT, probes=(short,)).met == (short,)


def test_a_newer_file_can_be_read() -> None:
    """Fails if an unknown key of a measurement or a probe is passed on to the constructor."""
    data = MEASUREMENT.to_dict()
    newer = {**data, "energy_j": 4, "probes": [{**data["probes"][0], "power_w": 2}]}
    assert Measurement.from_dict(newer) == MEASUREMENT


def test_a_verdict_is_one_of_three() -> None:
    """Fails if an unknown verdict is kept as a text."""
    data = MEASUREMENT.to_dict()
    data["probes"][0]["verdict"] = "PERHAPS"
    with pytest.raises(ValueError, match="PERHAPS"):
        Measurement.from_dict(data)
