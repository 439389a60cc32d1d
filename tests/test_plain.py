"""Plain probes on a server that is computed: what a closed loop shows at a number of requests in flight."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from morphling_ray.evaluate.attempt import Attempt, Stopwatch
from morphling_ray.evaluate.duel import Duel, Side
from morphling_ray.evaluate.plain import CONFIRM_NOISE_SD, PlainProbes
from morphling_ray.evaluate.stand import crowded
from morphling_ray.measurement import Measurement, Probe, Verdict
from morphling_ray.objective import Slo


class Crew:
    """Drivers of a server whose batch of b takes `base + each * b` seconds, two batches being in flight."""

    def __init__(self, base: float, each: float, first_s: float = 0.0) -> None:
        self.base, self.each = base, each
        self.first_s = first_s  # that the very first batch takes beside
        self.asked: list[int] = []

    def saturate(self, *, in_flight: int, window_s: float, **how: Any) -> Probe:
        self.asked.append(in_flight)
        batch = max(1, in_flight // 2)
        took_s = self.base + self.each * batch
        longest_s = took_s + (self.first_s if len(self.asked) == 1 else 0.0)
        rate = batch / longest_s
        nothing: dict[str, Any] = dict.fromkeys(("p90_s", "slo_latency_s", "driver_lag_s", "driver_cpu"), 0.0)
        requests = in_flight + round(max(4.0, rate * window_s))
        return Probe(
            kind="saturate",
            rate_rps=0.0,
            window_s=window_s,
            requests=requests,
            achieved_rps=rate,
            errors=0,
            late=0,
            p50_s=took_s,
            p99_s=longest_s,
            verdict=Verdict.MET,
            **nothing,
        )


@pytest.mark.parametrize(
    ("base", "each", "in_flight", "found", "asked"),
    [
        (1.2, 0.01, 6, 48, [6, 12, 24, 48, 64]),  # a batch costs what one costs: as many as the SLO leaves room for
        (0.0, 0.3, 6, 6, [6, 12]),  # batches are no better
        (1.0, 0.001, 6, 64, [6, 12, 24, 48, 64]),  # all that fill the batches
        (0.01, 0.001, 6, 6, [6]),  # quick: many were answered, and the first look was good
    ],
)
def test_a_slow_servers_capacity_is_not_that_of_the_batches_it_warmed_up_with(
    base: float, each: float, in_flight: int, found: int, asked: list[int]
) -> None:
    """Fails if few requests in flight prove that there is room for few only, or if a quick server is asked twice."""
    crew = Crew(base, each)
    slo = Slo(latency_s=3.0)
    plain = PlainProbes(slo, SimpleNamespace(crew=crew), None, closed_loop=False)  # type: ignore[arg-type]
    attempt = Attempt({"max_batch_size": 32}, Stopwatch(lambda text: None))
    capacity = plain._capacity(attempt, in_flight, 64, [], 1000)
    assert crew.asked == asked
    assert capacity.achieved_rps == pytest.approx(found / 2 / (base + each * found / 2))
    assert len(attempt.probes) == len(asked)


def test_a_capacity_that_one_long_batch_made_is_looked_at_again() -> None:
    """Fails if the first batch of its size, which a library prepares for, makes a server a third as quick as it is."""
    crew = Crew(0.8, 0.0, first_s=8.0)
    stand: Any = SimpleNamespace(crew=crew)
    plain = PlainProbes(Slo(latency_s=1.0), stand, None, closed_loop=False)
    attempt = Attempt({"max_batch_size": 8}, Stopwatch(lambda text: None))
    assert plain._capacity(attempt, 2, 2, [], 1000).achieved_rps == pytest.approx(1 / 0.8)
    assert crew.asked == [2, 2]


class Waiting(Crew):
    """Drivers of a server that waits `wait_s` for something else, in so many requests at once."""

    def __init__(self, wait_s: float, slots: int, breaks_at: int = 10**9) -> None:
        super().__init__(0.0, 0.0)
        self.wait_s, self.slots, self.breaks_at = wait_s, slots, breaks_at

    def saturate(self, *, in_flight: int, window_s: float, **how: Any) -> Probe:
        served = min(in_flight, self.slots) / self.wait_s
        took_s = in_flight / served
        self.base = took_s
        probe = super().saturate(in_flight=in_flight, window_s=window_s)
        requests = in_flight + round(served * window_s)
        errors = requests // 2 if in_flight >= self.breaks_at else 0
        return replace(probe, achieved_rps=served, requests=requests, errors=errors)


def test_a_server_that_fails_with_more_than_it_needs_is_taken_as_it_was_before() -> None:
    """Fails if a look at more requests in flight makes a configuration infeasible that serves fewer without failure."""
    crew = Waiting(0.02, 100, breaks_at=64)
    plain = PlainProbes(Slo(latency_s=0.1), SimpleNamespace(crew=crew), None, closed_loop=False)  # type: ignore[arg-type]
    attempt = Attempt({"num_replicas": 1}, Stopwatch(lambda text: None))
    capacity = plain._capacity(attempt, 16, 16, [0.02] * 5, 512)
    assert (crew.asked, capacity.errors) == ([16, 64], 0)
    assert capacity.achieved_rps == pytest.approx(800.0)


@pytest.mark.parametrize(("noise_sd", "tie"), [(CONFIRM_NOISE_SD, False), (0.3, True)])
def test_peaks_that_are_not_sure_make_a_tie(noise_sd: float, tie: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if what windows at odds leave open is forgotten where two are measured one after the other."""
    stand: Any = SimpleNamespace(batches_alike=lambda one, other: False)
    attempts = [Attempt({"cpu_cores": cores}, Stopwatch(lambda text: None)) for cores in (1, 2)]
    plain = PlainProbes(Slo(latency_s=0.1), SimpleNamespace(crew=None), None, closed_loop=False)  # type: ignore[arg-type]
    duel = Duel(*attempts, stand=stand, plain=plain, slo=Slo(latency_s=0.1), ratio=1.0, cheaper=False)

    def alone(side: Side) -> Measurement:
        peak_rps = 100.0 if side.attempt is attempts[0] else 130.0
        return side.attempt.measurement(metrics={"peak_rps": peak_rps}, noise_sd={"peak_rps": noise_sd})

    monkeypatch.setattr(duel, "_alone", alone)
    one, other = duel._apart()
    assert one.comparison is not None
    assert one.comparison.tie is tie
    assert other.comparison == one.comparison.mirrored({"cpu_cores": 1})


def test_two_that_are_compared_get_as_many_times_what_fills_their_batches() -> None:
    """Fails if one of two that batch differently has more in flight, and so seems to be the quicker one."""
    stand: Any = SimpleNamespace(
        crew=Waiting(0.02, 100), slots=lambda attempt: 40, batches_alike=lambda one, other: False
    )
    plain = PlainProbes(Slo(latency_s=0.1), stand, None, closed_loop=False)
    one, other = (Attempt({"max_batch_size": size}, Stopwatch(lambda text: None)) for size in (2, 4))
    plain._capacity(one, 4, 4, [0.02] * 5, 16)  # grows to what it takes at once
    plain._capacity(other, 8, 8, [0.01] * 5, 512)  # does not
    assert plain.fills == {str(one.configuration): 16, str(other.configuration): 8}
    duel = Duel(one, other, stand=stand, plain=plain, slo=Slo(latency_s=0.1), ratio=1.0, cheaper=False)
    for sides in ((Side(one, stand, 16), Side(other, stand, 8)), (Side(other, stand, 12), Side(one, stand, 16))):
        duel._fill_alike(sides)
        in_flight = {side.attempt.configuration["max_batch_size"]: side.in_flight for side in sides}
        assert in_flight[2] == 16
        assert in_flight[4] in (32, 40)  # four times, but no more than the replicas take


@pytest.mark.parametrize(
    ("configuration", "slo_s", "found", "asked"),
    [
        ({"max_num_seqs": 64}, 1.0, 64, [8, 16, 32, 64]),  # larger ones serve more, as far as the SLO leaves room
        ({"max_num_seqs": 64}, 0.2, 16, [8, 16]),
        ({"max_batch_size": 4}, 1.0, 8, [8]),  # known: no larger ones are formed
    ],
)
def test_batches_that_no_knob_tells_of_are_filled(
    configuration: dict[str, Any], slo_s: float, found: int, asked: list[int]
) -> None:
    """Fails if the batches of so few requests as are usual are taken for all that an engine can do."""
    crew = Crew(0.1, 0.01)
    plain = PlainProbes(Slo(latency_s=slo_s), SimpleNamespace(crew=crew), None, closed_loop=False)  # type: ignore[arg-type]
    attempt = Attempt(configuration, Stopwatch(lambda text: None))
    capacity = plain._capacity(attempt, 8, 8, [0.05], 64)
    assert crew.asked == asked
    assert capacity.achieved_rps == pytest.approx(found / 2 / (0.1 + 0.01 * found / 2))


@pytest.mark.parametrize(
    ("wait_s", "slots", "found", "asked"),
    [
        (0.02, 100, 5000.0, [16, 64, 256, 512]),  # there is room for many more
        (1.0, 100, 100.0, [16, 32, 64, 128, 256]),  # also where that takes longer
        (0.02, 16, 800.0, [16, 64]),  # for no more
        (0.04, 8, 200.0, [16]),  # they wait for each other as it is
        (0.08, 1000, 6400.0, [16, 64, 256, 512]),  # as many as replicas take, if the SLO leaves no time to wait
    ],
)
def test_a_server_that_waits_is_given_as_many_requests_as_it_takes(
    wait_s: float, slots: int, found: float, asked: list[int]
) -> None:
    """Fails if what a few requests in flight are served is taken for all that a server can do."""
    crew = Waiting(wait_s, slots)
    plain = PlainProbes(Slo(latency_s=0.1), SimpleNamespace(crew=crew), None, closed_loop=False)  # type: ignore[arg-type]
    attempt = Attempt({"num_replicas": 1}, Stopwatch(lambda text: None))
    assert plain._capacity(attempt, 16, 16, [wait_s] * 5, 512).achieved_rps == pytest.approx(found)
    assert crew.asked == asked


@pytest.mark.parametrize(
    ("asked", "cores", "said"), [(1, 2, True), (2, 2, True), (1, 4, False), (2, 4, True), (1, 16, False), (8, 16, True)]
)
def test_a_driver_on_a_large_machine_takes_nothing_from_a_small_replica(asked: float, cores: int, said: bool) -> None:
    """Fails if a peak is said to be a lower bound where most cores are idle, or is not where they are all wanted."""
    assert crowded(asked, cores) is said
