"""The load driver: a Ray actor that offers load and reports what happened to each request.

Open loop: Poisson arrivals drawn before the window starts, sent at their instants however many are in flight; latency
counts from the scheduled instant, so a slow server cannot slow its own test down (no coordinated omission). Closed
loop: a fixed number in flight, for the capacity. A window ends as soon as it cannot be met any more, and what is still
in flight then is given up.
"""

import asyncio
import gc
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np

from morphling_ray.load.arrivals import poisson_arrivals
from morphling_ray.load.client import Client, HandleClient, HttpClient
from morphling_ray.load.window import allowed_late, judge
from morphling_ray.measurement import Probe
from morphling_ray.objective import Slo

DRAIN_S = 2.0  # how long requests that were given up may take to go away


@dataclass
class _Window:
    """Records of one window, filled while it runs."""

    latencies_s: list[float] = field(default_factory=list)  # of finished requests; infinite where one failed
    lags_s: list[float] = field(default_factory=list)
    in_flight: dict[asyncio.Task[None], float] = field(default_factory=dict)  # task -> scheduled instant
    finished_at: list[float] = field(default_factory=list)
    late: int = 0
    errors: int = 0
    first_error: str = ""


class LoadDriver:
    """Offers load to one application through a `Client`, in any event loop; `ServeLoadDriver` is it as a Ray actor.

    Args:
        connect: Makes the client; called inside the event loop.
        payloads: Endless iterator of what requests send.
        timeout_s: A request without an answer after this long has failed.
    """

    def __init__(self, connect: Callable[[], Client], payloads: Iterator[Any], timeout_s: float = 60.0) -> None:
        self._connect = connect
        self._payloads = payloads
        self._timeout_s = timeout_s
        self._client: Client | None = None

    @property
    def _open(self) -> Client:
        if self._client is None:
            self._client = self._connect()
        return self._client

    async def reconnect(self) -> None:
        """Opens a new client at the next request (the application was deployed anew)."""
        if self._client is not None:
            await self._client.close()
        self._client = None

    async def pin(self, cores: list[int]) -> None:
        """Keeps this process on `cores`."""
        from morphling_ray.serving.limits import pin_process

        pin_process(os.getpid(), cores)

    async def ask(self, timeout_s: float) -> tuple[str, Any]:
        """Sends a single request.

        Returns:
            An empty text and the answer, or what went wrong and None.
        """
        try:
            return "", await asyncio.wait_for(self._open.send(next(self._payloads)), timeout_s)
        except asyncio.TimeoutError:
            return f"no answer within {timeout_s:g} s", None
        except Exception as error:  # noqa: BLE001  the application's own error, whatever it is
            return _describe(error), None

    async def saturate(self, *, in_flight: int, window_s: float, slo: Slo) -> Probe:
        """Closed loop: keeps `in_flight` requests going for `window_s`; `achieved_rps` is the capacity."""
        window, start, cpu = _Window(), time.perf_counter(), time.process_time()
        end = start + window_s

        async def worker() -> None:
            while time.perf_counter() < end and window.errors < 20:
                await self._one(window, time.perf_counter(), slo)

        tasks = [asyncio.ensure_future(worker()) for _ in range(in_flight)]
        await asyncio.wait(tasks, timeout=window_s + 1.0)
        await _give_up(tasks)
        elapsed = time.perf_counter() - start
        return judge(
            kind="saturate",
            rate_rps=0.0,
            window_s=window_s,
            latencies_s=window.latencies_s,
            errors=window.errors,
            planned=len(window.latencies_s),
            achieved_rps=_completion_rate(window.finished_at, end, elapsed),
            lags_s=(),
            driver_cpu=(time.process_time() - cpu) / elapsed,
            slo=slo,
            ended_early=False,
            reason=window.first_error,
        )

    async def probe(self, *, rate_rps: float, window_s: float, seed: int, slo: Slo) -> Probe:
        """Open loop: Poisson arrivals at `rate_rps` for `window_s`, until the verdict is certain."""
        schedule = poisson_arrivals(rate_rps, window_s, seed)
        planned, allowed = len(schedule), allowed_late(len(schedule), slo)
        payloads = [next(self._payloads) for _ in range(planned)]
        window, cpu = _Window(), time.process_time()
        start = time.perf_counter() + 0.005
        ended_early = False
        for offset, payload in zip(schedule, payloads, strict=True):
            at = start + float(offset)
            delay = at - time.perf_counter()
            await asyncio.sleep(max(0.0, delay))
            window.lags_s.append(max(0.0, time.perf_counter() - at))
            window.in_flight[asyncio.ensure_future(self._one(window, at, slo, payload))] = at
            if window.late + _overdue(window, slo) > allowed:
                ended_early = True
                break
        while window.in_flight and not ended_early:
            due = min(window.in_flight.values()) + slo.latency_s
            timeout = max(0.001, due - time.perf_counter() + 0.001)
            await asyncio.wait(list(window.in_flight), timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            overdue = _overdue(window, slo)
            ended_early = window.late + overdue > allowed
            if overdue == len(window.in_flight):  # late whatever happens to them now
                break
        now = time.perf_counter()
        waiting = [now - at for at in window.in_flight.values()]
        elapsed = now - start
        driver_cpu = (time.process_time() - cpu) / elapsed
        if window.in_flight:
            await _give_up(list(window.in_flight))
            await self._drain(slo)
        return judge(
            kind="open",
            rate_rps=rate_rps,
            window_s=window_s,
            latencies_s=window.latencies_s + waiting,
            errors=window.errors,
            planned=planned,
            achieved_rps=len(window.finished_at) / elapsed,
            lags_s=window.lags_s,
            driver_cpu=driver_cpu,
            slo=slo,
            ended_early=ended_early,
            reason=window.first_error,
        )

    async def _drain(self, slo: Slo) -> None:
        """Waits until one request alone is quick again: a server may go on computing what was given up."""
        deadline = time.perf_counter() + DRAIN_S
        while time.perf_counter() < deadline:
            sent = time.perf_counter()
            problem, _ = await self.ask(DRAIN_S)
            if problem or time.perf_counter() - sent < slo.latency_s / 2:
                return

    async def _one(self, window: _Window, at: float, slo: Slo, payload: Any = None) -> None:
        """Sends one request that was due at `at` and records its end."""
        try:
            payload = next(self._payloads) if payload is None else payload
            await asyncio.wait_for(self._open.send(payload), self._timeout_s)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001  a failed request is a result; what failed is kept
            window.errors += 1
            window.late += 1
            window.latencies_s.append(float("inf"))
            window.first_error = window.first_error or _describe(error)
        else:
            now = time.perf_counter()
            window.finished_at.append(now)
            window.latencies_s.append(now - at)
            window.late += now - at > slo.latency_s
        finally:
            task = asyncio.current_task()
            if task is not None:
                window.in_flight.pop(task, None)


def _completion_rate(finished_at: list[float], end: float, elapsed_s: float) -> float:
    """Completions a second: slope of the count over time, which batches that complete at once do not bias.

    Starts at the first completion and stops at `end`, so that neither filling nor emptying the pipeline counts.
    """
    done = np.sort([t for t in finished_at if t <= end])
    if len(done) < 4 or done[-1] - done[0] < elapsed_s / 4:
        return len(finished_at) / elapsed_s
    return float(np.polyfit(done - done[0], np.arange(len(done)), 1)[0])


def _overdue(window: _Window, slo: Slo) -> int:
    """Requests in flight that are late already."""
    now = time.perf_counter()
    return sum(now - at > slo.latency_s for at in window.in_flight.values())


@dataclass(frozen=True, kw_only=True)
class RequestSource:
    """What requests send: one JSON value for all, or what a function returns (each call, or item by item).

    Attributes:
        value: The JSON value; unused where `function` is set.
        function: `module:function`, importable with `folder` on the path.
        folder: Put on the path first.
    """

    value: Any = None
    function: str | None = None
    folder: str | None = None

    def payloads(self) -> Iterator[Any]:
        """Endless iterator of payloads."""
        if self.function is None:
            return itertools.repeat(self.value)
        if self.folder and self.folder not in sys.path:
            sys.path.insert(0, self.folder)
        module, _, name = self.function.partition(":")
        function = getattr(import_module(module), name)
        first = function()
        if isinstance(first, Iterator):
            return itertools.cycle(first)
        return itertools.chain([first], iter(function, object()))


class ServeLoadDriver(LoadDriver):
    """The driver as a Ray actor: talks to a Serve application of the cluster.

    Args:
        app_name: The application.
        source: What requests send.
        root_url: Where the HTTP proxy listens; None to go through the Serve handle.
    """

    def __init__(self, app_name: str, source: RequestSource, root_url: str | None = None) -> None:
        def connect() -> Client:
            if root_url is not None:
                return HttpClient(root_url)
            from ray import serve

            return HandleClient(serve.get_app_handle(app_name))

        super().__init__(connect, source.payloads())
        gc.freeze()  # what was imported is never garbage: collections during a window get shorter


async def _give_up(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=DRAIN_S)


def _describe(error: BaseException) -> str:
    """The error in one line; for one that a replica raised, its cause."""
    cause = getattr(error, "cause", None) or error.__cause__ or error
    text = " ".join(str(cause).split()) or type(cause).__name__
    return f"{type(cause).__name__}: {text}"[:300]
