"""What the benchmarks are judged by: the long reference, and how slow the machine was."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from benchmarks.bench import Reference
from benchmarks.slowdown import slowness
from morphling_ray.load.crew import Crew
from morphling_ray.serving.batcher import Batch


class Server:
    """A crew whose windows have the late share that a curve says."""

    def __init__(self, noise: float) -> None:
        self.rates: list[float] = []
        self._noise, self._rng = noise, np.random.default_rng(0)

    def probe(self, *, rate_rps: float, window_s: float, seed: int, whole: bool) -> Any:
        assert whole  # a window that ends early has another share
        self.rates.append(rate_rps)
        share = 0.01 * (rate_rps / 105.0) ** 12 * np.exp(self._noise * self._rng.standard_normal())
        return SimpleNamespace(late=share * 10_000, requests=10_000)

    def drain(self) -> None:
        """Nothing waits."""


@pytest.mark.parametrize(("noise", "within"), [(0.0, 0.01), (0.5, 0.04)])
def test_the_reference_finds_where_the_share_passes_what_is_allowed(noise: float, within: float) -> None:
    """Fails if the crossing is taken at a tested rate instead of between two, or if one window decides."""
    server, reference = Server(noise), Reference(100.0, seed=1)
    for _ in range(4 * reference.levels):
        reference.window(cast(Crew, server))
    assert reference.peak_rps() == pytest.approx(105.0, rel=within)
    _, times = np.unique(np.round(server.rates, 6), return_counts=True)
    assert times.tolist() == [4] * reference.levels


def test_a_slow_machine_shows_in_batches_of_any_size() -> None:
    """Fails if large batches are taken for slow ones, or one slow repeat moves what is usual."""

    def repeat(slower: float, sizes: list[int]) -> list[Batch]:
        return [Batch(size, 0.0, slower * (0.004 + 0.002 * size), 0) for size in sizes]

    usual = [[1, 2, 4, 8] * 5, [8] * 6 + [1, 2, 4], [4, 2, 1, 8] * 3]
    slow = slowness([repeat(1.0, sizes) for sizes in usual] + [repeat(1.3, [2, 4, 8, 8])])
    assert slow == pytest.approx([1.0, 1.0, 1.0, 1.3])
