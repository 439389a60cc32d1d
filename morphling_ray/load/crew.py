"""The drivers of one application: as many as its load needs, seen from outside as one.

They share a rate: Poisson arrivals of rate R are those of n drivers with R / n each. There is one driver until a window
turns out INVALID, since each takes a core of its own to be any help.
"""

import secrets
from collections import deque
from collections.abc import Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from morphling_ray.load.driver import ServeLoadDriver
from morphling_ray.load.requests import RequestSource
from morphling_ray.load.window import Record, judge, together
from morphling_ray.measurement import Probe, Verdict
from morphling_ray.objective import Slo
from morphling_ray.serving.application import python_path

# The optimised mode runs the handle's router in the driver's own event loop: three times the requests a second.
ENVIRONMENT = {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}
_BUSY = 0.5  # share of a core that a driver uses when more drivers are any help; a hiccup needs no helper


class Crew:
    """Offers load to one application, and judges it.

    Args:
        app_name: The application.
        source: What requests send.
        root_url: Where the HTTP proxy listens; None to go through the Serve handle.
        slo: What windows are judged by.
        node_id: Where the drivers have to be; None: anywhere.
    """

    def __init__(
        self, app_name: str, source: RequestSource, root_url: str | None, slo: Slo, node_id: str | None = None
    ) -> None:
        self._arguments = app_name, source, root_url
        self._environment = {**ENVIRONMENT, **python_path(source.folder)}
        self._slo = slo
        self._where = NodeAffinitySchedulingStrategy(node_id, soft=False) if node_id is not None else "DEFAULT"
        self.cores: list[int] = []
        """Which all drivers keep to; empty: any."""
        self._drivers: list[Any] = []
        self.record: Record | None = None
        """What the latest window showed, request by request."""
        self.probes: deque[Probe] = deque(maxlen=1)
        """The latest one with a verdict that counts; for whoever wants to watch."""
        self._add()

    @property
    def address(self) -> tuple[str, RequestSource, str | None]:
        """Name of the application, what requests send, and where to."""
        return self._arguments

    @property
    def size(self) -> int:
        """How many drivers there are."""
        return len(self._drivers)

    def pin(self, cores: Sequence[int]) -> None:
        """Keeps all drivers on `cores`; there are never more drivers than these."""
        self.cores = list(cores)
        ray.get([d.pin.remote(self.cores) for d in self._drivers])

    def ask(self, timeout_s: float) -> tuple[str, Any]:
        """A single request; see `LoadDriver.ask`."""
        answer: tuple[str, Any] = ray.get(self._drivers[0].ask.remote(timeout_s))
        return answer

    def alone(self, count: int) -> list[float]:
        """Latencies without company; see `LoadDriver.alone`."""
        latency_s: list[float] = ray.get(self._drivers[0].alone.remote(count, self._slo))
        return latency_s

    def saturate(self, *, in_flight: int, window_s: float, kind: str = "saturate", rounds: int = 0) -> Probe:
        """A closed loop with `in_flight` requests in all; see `LoadDriver.saturate`. `closed`: its verdict counts."""
        shares = [in_flight // self.size + (i < in_flight % self.size) for i in range(self.size)]
        records = ray.get(
            [
                driver.saturate.remote(
                    in_flight=share, window_s=window_s, slo=self._slo, patient=kind != "closed", rounds=rounds
                )
                for driver, share in zip(self._drivers, shares)
                if share
            ]
        )
        self.record = together(records)
        rate_rps = self.record.achieved_rps if kind == "closed" else 0.0
        return self._judged(self.record, kind, rate_rps, window_s)

    def probe(self, *, rate_rps: float, window_s: float, seed: int, **how: Any) -> Probe:
        """One window of Poisson arrivals; see `LoadDriver.probe`. An INVALID one leaves a larger crew, if it can."""
        each = {"rate_rps": rate_rps / self.size, "window_s": window_s, "slo": self._slo, **how}
        seeds = [seed, *(hash((seed, i)) % 2**32 for i in range(1, self.size))]
        self.record = together(ray.get([d.probe.remote(seed=s, **each) for d, s in zip(self._drivers, seeds)]))
        probe = self._judged(self.record, "open", rate_rps, window_s)
        if probe.verdict is Verdict.INVALID and probe.driver_cpu > _BUSY and self.size < len(self.cores):
            self._add()
        return probe

    def drain(self) -> None:
        """Waits until the server is done with what was given up; see `LoadDriver.drain`."""
        ray.get(self._drivers[0].drain.remote(self._slo))

    def mend(self) -> bool:
        """Puts new drivers in the place of those whose process is gone; whether there were any."""
        lost = [driver for driver in self._drivers if not _lives(driver)]
        self._drivers = [driver for driver in self._drivers if driver not in lost]
        for _ in lost:
            self._add()
        return bool(lost)

    def close(self) -> None:
        """Ends all drivers."""
        for driver in self._drivers:
            ray.kill(driver)

    def _judged(self, record: Record, kind: str, rate_rps: float, window_s: float) -> Probe:
        probe = judge(record, kind=kind, rate_rps=rate_rps, window_s=window_s, slo=self._slo)
        self.probes.extend([probe] if probe.judged else [])
        return probe

    def _add(self) -> None:
        driver = (
            ray.remote(ServeLoadDriver)
            .options(
                name=f"{self._arguments[0]}-driver-{secrets.token_hex(4)}",
                num_cpus=0,
                max_concurrency=4,
                runtime_env={"env_vars": self._environment},
                scheduling_strategy=self._where,
            )
            .remote(*self._arguments, streaming=self._slo.streaming)
        )
        if self.cores:
            ray.get(driver.pin.remote(self.cores))
        self._drivers.append(driver)


def _lives(driver: Any) -> bool:
    try:
        ray.get(driver.__ray_ready__.remote())
    except ray.exceptions.RayActorError:
        return False
    return True
