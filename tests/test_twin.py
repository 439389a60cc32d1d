"""The batching twin: against theory, against the batcher itself, and on a live replica."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from morphling_ray.serving.batcher import Batch, Batcher, Dropped
from morphling_ray.serving.twin import NO_STRAYS, ServiceTimes, Strays, ladder, predicted_peaks, simulate, sweep_sizes


def plain(setting: tuple[int, float], arrivals: Sequence[float], seconds: Sequence[float]) -> list[float]:
    """The rule of batcher.py, one batch after the other."""
    most, wait = setting
    out, free, first = [], 0.0, 0
    while first < len(arrivals):
        full = arrivals[first + most - 1] if first + most <= len(arrivals) else float("inf")
        start = max(free, min(full, arrivals[first] + wait))
        size = sum(a <= start for a in arrivals[first : first + most])
        free = start + seconds[size]
        out += [free - a for a in arrivals[first : first + size]]
        first += size
    return out


def test_the_rule_in_many_lanes_at_once() -> None:
    """Fails if lanes are mixed up, a batch is too large, or the wait is wrong."""
    rng = np.random.default_rng(0)
    settings = [(1, 0.0), (3, 0.02), (8, 0.0), (8, 0.3), (2, 5.0)]
    arrivals = np.cumsum(rng.exponential(0.05, (len(settings), 200)), axis=1)
    seconds = np.array([0.0, 0.04, 0.05, 0.07, 0.08, 0.1, 0.1, 0.12, 0.15])
    found = simulate(arrivals, seconds, settings, NO_STRAYS, seed=0)
    for row, setting in enumerate(settings):
        assert np.allclose(found[row], plain(setting, list(arrivals[row]), list(seconds)))


def test_the_peak_of_a_single_server_is_that_of_theory() -> None:
    """Fails for any bias: M/D/1 with 9 ms of service keeps 100 ms in 99 % up to 88 RPS (Lindley's recursion)."""
    times = ServiceTimes(np.array([1]), np.array([0.009]), NO_STRAYS)
    (peak,) = predicted_peaks(times, [(1, 0.0)], slo_s=0.1, percentile=99.0)
    gaps = np.random.default_rng(1).exponential(1.0, 300_000)

    def late(rate: float) -> float:
        wait, count = 0.0, 0
        for gap in gaps / rate:
            wait = max(0.0, wait + 0.009 - gap)
            count += wait + 0.009 > 0.1
        return count / len(gaps)

    rates = np.arange(80.0, 96.0, 1.0)
    truth = rates[np.searchsorted([late(r) for r in rates], 0.01)]
    assert peak == pytest.approx(truth, rel=0.03)


def test_a_bound_that_cannot_be_kept_has_no_peak() -> None:
    """Fails if a setting whose wait alone breaks the bound gets one."""
    times = ServiceTimes(np.array([1, 8]), np.array([0.03, 0.05]), NO_STRAYS)
    fine, hopeless = predicted_peaks(times, [(8, 0.0), (8, 0.5)], slo_s=0.1, percentile=99.0)
    assert fine > 50
    assert hopeless < fine
    assert not predicted_peaks(times, [(1, 0.0)], slo_s=0.02, percentile=99.0).any()


def test_service_times_come_from_batches_without_a_pause() -> None:
    """Fails if idle time counts as service, or if one disturbed batch moves its size's entry."""
    batches, now = [], 0.0
    for i, size in enumerate([2, 2, 4, 4, 2, 4, 2, 2, 4, 4, 2, 4, 2]):
        took = 5.0 if i == 6 else size / 2  # one is disturbed
        idle = i == 4  # nobody waits behind this one
        batches.append(Batch(size, now, now + took, 0 if idle else 9))
        now += took + (30.0 if idle else 0.0)
    times = ServiceTimes.measured(batches)
    assert times.sizes.tolist() == [2, 4]
    assert times.seconds == pytest.approx([1.0, 2.0], rel=0.01)
    assert times.strays.jitter.max() < 1.5  # one long batch of eight does not say how often there are long ones
    assert times.of(5) == pytest.approx([1.0, 1.0, 1.0, 1.5, 2.0, 2.5], rel=0.01)
    assert times.scaled(2.0).seconds == pytest.approx([2.0, 4.0], rel=0.01)
    assert sweep_sizes(8) == (1, 2, 3, 4, 6, 8)
    with pytest.raises(ValueError, match="three batches"):
        ServiceTimes.measured(batches[:2])


def test_what_a_batch_owes_to_the_one_before_is_told_apart() -> None:
    """Fails if the answers that a large batch leaves behind count as time of the small batch after it."""
    log, now, before = [], 0.0, 8
    for size in ladder(8) * 4:
        took = 0.01 + 0.002 * size + 0.001 * before  # answers are sent while the next batch is computed
        log.append(Batch(size, now, now + took, 99))
        now, before = now + took, size
    times = ServiceTimes.measured(log)
    assert times.sizes.tolist() == [1, 2, 3, 4, 6, 8]
    assert times.seconds == pytest.approx(0.01 + 0.003 * times.sizes, rel=1e-3)  # each among others of its size


def test_pauses_are_told_from_jitter_and_last_as_long_in_a_small_batch() -> None:
    """Fails if a pause is a factor on the time of the batch it hit, or if the machine's speed counts as one."""
    times = ServiceTimes(np.array([1, 8]), np.array([0.01, 0.08]), NO_STRAYS)
    took = [0.02, 0.16, 0.02, 0.07, 0.021, 0.16]  # everything takes twice as long, and the fourth paused for 50 ms
    strays = times.strays_of([Batch(8 if t > 0.1 else 1, 0.0, t, 9) for t in took])
    assert strays.pauses_s.round(3).tolist() == [0, 0, 0, 0.05, 0, 0]
    assert strays.jitter.round(2).tolist() == [1.0, 1.0, 1.0, 1.0, 1.05, 1.0]
    arrivals = np.array([[0.0, 1.0, 2.0, 3.0]])
    latency = simulate(arrivals, np.array([0.0, 0.02]), [(1, 0.0)], Strays(np.ones(1), np.array([0.05])), seed=0)
    assert latency == pytest.approx(0.07)


async def test_a_sweep_makes_batches_of_the_sizes_that_it_was_given() -> None:
    """Fails if the sweep takes what is there, if it never ends, or if the time of a batch is not logged."""

    def forward(items: Sequence[Any]) -> Sequence[Any]:
        time.sleep(0.002 * len(items))
        return items

    batcher = Batcher(forward, max_batch_size=2)
    going = True

    async def client() -> None:
        while going:
            await batcher(0)

    clients = [asyncio.ensure_future(client()) for _ in range(16)]
    await asyncio.sleep(0.05)
    before = batcher.computed
    sizes = [1, 3, 6, 2, 4, 6, 1, 3]
    batcher.sweep(sizes)
    await asyncio.sleep(0.4)
    going = False
    await asyncio.gather(*clients)
    made = batcher.since(before)
    text = ",".join(str(b.size) for b in made)
    assert ",".join(map(str, sizes)) in text
    assert made[-1].size <= 2
    times = ServiceTimes.measured(made)
    assert times.of(6)[6] == pytest.approx(0.012, rel=0.4)


async def test_what_waits_can_be_dropped_and_the_rest_goes_on() -> None:
    """Fails if a stale request is still computed, or if the batcher is stuck afterwards."""
    seen: list[Any] = []

    def forward(items: Sequence[Any]) -> Sequence[Any]:
        seen.extend(items)
        time.sleep(0.05)
        return items

    batcher = Batcher(forward)
    tasks = [asyncio.ensure_future(batcher(i)) for i in range(4)]
    await asyncio.sleep(0.02)
    assert batcher.drop() == 3
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert results[0] == 0
    assert all(isinstance(r, Dropped) for r in results[1:])
    assert await batcher(9) == 9
    assert seen == [0, 9]


async def test_who_has_given_up_does_not_fill_a_batch() -> None:
    """Fails if a request in the middle of the queue that was given up still counts for a full batch."""
    batcher = Batcher(lambda items: items, max_batch_size=3, batch_wait_timeout_s=0.2)
    first, second = asyncio.ensure_future(batcher(1)), asyncio.ensure_future(batcher(2))
    await asyncio.sleep(0.01)
    second.cancel()
    await asyncio.sleep(0.01)
    third = asyncio.ensure_future(batcher(3))
    await asyncio.sleep(0.05)
    assert not first.done()  # two wait: not full
    assert list(await asyncio.gather(first, third)) == [1, 3]
    assert batcher.log[-1].size == 2
