"""The load driver: a Ray actor that offers load and reports what happened to each request.

Open loop: Poisson arrivals drawn before the window starts, sent at their instants however many are in flight; latency
counts from the scheduled instant, so a slow server cannot slow its own test down (no coordinated omission). Closed
loop: a fixed number in flight, for the capacity. A window ends as soon as its verdict is settled, and what is still in
flight then is given up.
"""

import asyncio
import gc
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from morphling_ray.load.arrivals import poisson_arrivals, representative_arrivals
from morphling_ray.load.client import Client, connect
from morphling_ray.load.requests import RequestSource
from morphling_ray.load.sequential import Sequential, late_alone
from morphling_ray.load.tally import Tally, describe
from morphling_ray.load.window import Record, allowed_late
from morphling_ray.measurement import Verdict
from morphling_ray.objective import Slo

DRAIN_S = 2.0  # how long requests that were given up may take to go away
LEAD_S = 0.005  # from the last preparation to the first instant of a window
CHECK_S = 0.01  # how often it is checked whether a window is settled
_APART = 1_000_033  # between the seeds of the parts of a window that grows
# How long, or how many, requests are sent one by one; and how long where some are late, unless it is clear before that
# all rates miss the SLO.
ALONE_S, ALONE_AT_LEAST, IN_DOUBT_S = 0.6, 5, 15.0
# A window is as long as that many streams at least, and so is what goes before it and what is waited for after it.
STREAMS, LEARNING, LONGEST_STREAM_S = 2.0, 0.2, 60.0
SLOPE, LONGEST_LOOP_S = 4, 30.0  # so many ends of requests have a slope; a closed loop waits for them up to that long
RETRY_S = 0.01  # who is turned away waits so long, and twice as long each time it happens again
MANY_ERRORS = 20  # end a closed loop, which would otherwise fail as fast as it can


class LoadDriver:
    """Offers load to one application through a `Client`, in any event loop; `ServeLoadDriver` is it as a Ray actor.

    Args:
        connect: Makes the client; called inside the event loop.
        payloads: Endless iterator of what requests send.
        streaming: Answers are streamed.
    """

    def __init__(self, connect: Callable[[], Client], payloads: Iterator[Any], *, streaming: bool = False) -> None:
        self._connect = connect
        self._payloads = payloads
        self._streaming = streaming
        self._client: Client | None = None
        self._stream_s = 0.0  # what a stream takes, about: a window is to be as long as several

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
            return "", await asyncio.wait_for(self._answer(next(self._payloads)), timeout_s)
        except asyncio.TimeoutError:
            return f"no answer within {timeout_s:g} s", None
        except Exception as error:  # noqa: BLE001  the application's own error, whatever it is
            return describe(error), None

    async def alone(self, count: int, slo: Slo, within_s: float = ALONE_S) -> list[float]:
        """Latencies of requests that are sent one after the other, in seconds; failed ones are left out.

        Args:
            count: How many, at most.
            slo: What a latency is, where answers are streamed; and which are late, since then more are sent.
            within_s: None is sent later than this, but for the first few.
        """
        latency_s: list[float] = []
        began = time.perf_counter()
        for sent_before in range(count):
            late = any(s > slo.latency_s for s in latency_s)
            passed_s = time.perf_counter() - began
            if sent_before >= ALONE_AT_LEAST and passed_s > (IN_DOUBT_S if late else within_s):
                break
            if late and late_alone(latency_s, slo):
                break
            if (found := await self._one(slo)) is not None:
                latency_s.append(found)
        return latency_s

    async def _one(self, slo: Slo) -> float | None:
        """The latency of one request, or how long it was waited for in vain; None where it fails."""
        window = Tally(time.perf_counter(), slo)
        row = window.begin(window.start)
        try:
            patience_s = LONGEST_STREAM_S if self._streaming else max(DRAIN_S, 2 * slo.latency_s)
            await asyncio.wait_for(self._send(window, row, next(self._payloads)), patience_s)
        except asyncio.TimeoutError:
            return None if self._streaming else patience_s  # of a stream it is not known what would have been late
        return None if window.errors else window.latency_s[row]

    async def saturate(
        self, *, in_flight: int, window_s: float, slo: Slo, patient: bool = True, rounds: int = 0
    ) -> Record:
        """Closed loop: keeps `in_flight` requests going for `window_s`; `achieved_rps` is the capacity.

        It goes on until a few requests have ended, however slow they are, up to a bound; 0 if none did.

        Args:
            in_flight: How many.
            window_s: For how long.
            slo: Bounds.
            patient: Who is turned away comes again a little later, and that is no failure unless nobody is served.
            rounds: Goes on until so many times `in_flight` were answered, up to the same bound.
        """
        least = max(SLOPE, rounds * in_flight)
        window_s = max(window_s, STREAMS * self._stream_s)
        window = Tally(time.perf_counter(), slo)
        end, last = window.start + window_s, window.start + max(window_s, LONGEST_LOOP_S)

        async def worker() -> None:
            pause_s = 0.0
            while window.errors - patient * len(window.away) < MANY_ERRORS:
                if pause_s:
                    await asyncio.sleep(min(pause_s, max(0.0, end - time.perf_counter())))
                now = time.perf_counter()
                if now >= (end if len(window.finished_at) >= least or pause_s else last):
                    break
                row = window.begin(now)
                await self._send(window, row, next(self._payloads))
                again = patient and row in window.away[-1:]
                pause_s = (2 * pause_s or RETRY_S) if again else 0.0

        tasks = [asyncio.ensure_future(worker()) for _ in range(in_flight)]
        await asyncio.wait(tasks, timeout=window_s + 1.0 + self._stream_s)
        while len(window.finished_at) < least and time.perf_counter() < last and not all(t.done() for t in tasks):
            await asyncio.wait(tasks, timeout=CHECK_S, return_when=asyncio.FIRST_COMPLETED)
            end = max(end, time.perf_counter())
        capacity_rps = _completion_rate(window.finished_at, end, time.perf_counter() - window.start)
        if patient and window.finished_at:
            window.forgive()
        record = window.record(planned=len(window.due), settled=None, achieved_rps=capacity_rps)
        await _give_up(tasks)
        return record

    async def probe(
        self,
        *,
        rate_rps: float,
        window_s: float,
        seed: int,
        slo: Slo,
        settle_after_s: float | None = None,
        representative: bool = False,
        whole: bool = False,
        windows: int = 1,
    ) -> Record:
        """Open loop: Poisson arrivals at `rate_rps` for `window_s`, or until the verdict is settled.

        Args:
            rate_rps: Mean arrivals a second.
            window_s: The longest that the window may last.
            seed: Of the schedule.
            slo: Bounds.
            settle_after_s: From then on a settled verdict ends the window; None: only a certain miss does.
            representative: Choose the schedule so that it does what Poisson arrivals do in the long run.
            whole: Nothing ends the window, so that its share of late requests is that of the rate.
            windows: The window grows to up to so many times its length while the verdict is not settled.
        """
        draw = representative_arrivals if representative else poisson_arrivals
        # All of them are drawn now: while requests are sent there is no time for it.
        parts = [draw(rate_rps, window_s, seed + _APART * i) + i * window_s for i in range(windows)]
        # An empty server makes light of the first streams: others, which do not count, come before them.
        before_s = STREAMS * self._stream_s
        before = poisson_arrivals(rate_rps, before_s, seed + _APART * windows) - before_s if before_s else np.empty(0)
        first_payloads = [next(self._payloads) for _ in before]
        payloads = [[next(self._payloads) for _ in part] for part in parts]
        tests, most_late = Sequential(slo), allowed_late(sum(map(len, parts)), slo)
        collecting = gc.isenabled()
        gc.disable()  # a collection in the middle of a window would make it late
        window, settled, planned = Tally(time.perf_counter() + LEAD_S + before_s, slo), None, 0

        def decide() -> Verdict | None:
            if whole:
                return None
            known, late = window.known()
            if late > most_late:
                return Verdict.MISSED
            if settle_after_s is None or time.perf_counter() - window.start < settle_after_s:
                return None
            return tests.settled(known, late)

        try:
            await self._offer(window, (before + window.start).tolist(), first_payloads, lambda: None)
            for part, sent in zip(parts, payloads, strict=True):
                settled = await self._offer(window, (part + window.start).tolist(), sent, decide)
                planned += len(part)
                if settled is not None or tests.settled(*window.known()) is not None:
                    break
            last = max(window.due, default=0.0)  # one that has failed may be left out
            while window.in_flight and settled is not Verdict.MISSED:
                await asyncio.wait(
                    list(window.in_flight.values()), timeout=CHECK_S, return_when=asyncio.FIRST_COMPLETED
                )
                settled = settled or decide()
                if time.perf_counter() > last + slo.latency_s + STREAMS * self._stream_s:
                    break  # all that are left are late, whatever happens to them now
            record = window.record(planned=planned, settled=settled)
            await _give_up(list(window.in_flight.values()))
        finally:
            if collecting:
                gc.enable()
        return record

    async def _offer(
        self, window: Tally, due: list[float], payloads: list[Any], decide: Callable[[], Verdict | None]
    ) -> Verdict | None:
        """Sends each request at its instant; ends with a verdict where one is settled before the last is sent."""
        check_at = time.perf_counter()
        for at, payload in zip(due, payloads, strict=True):
            while True:
                now = time.perf_counter()
                if now >= check_at:
                    window.lag_s.append(now - check_at)  # a blocked event loop is late with answers as well
                    if (settled := decide()) is not None:
                        return settled
                    check_at = now + CHECK_S
                    await asyncio.sleep(0)  # who is behind must let answers in all the same
                elif now >= at:
                    break
                else:
                    await asyncio.sleep(min(at, check_at) - now)
            window.lag_s.append(now - at)
            row = window.begin(at)
            window.in_flight[row] = asyncio.ensure_future(self._send(window, row, payload))
        return None

    async def drain(self, slo: Slo) -> None:
        """Waits until one request alone is quick again: a server may go on computing what was given up."""
        deadline = time.perf_counter() + DRAIN_S
        while time.perf_counter() < deadline:
            took_s = await self._one(slo)
            if took_s is None or took_s < slo.latency_s / 2:
                return

    async def _send(self, window: Tally, row: int, payload: Any) -> None:
        """Sends the request of a row, and records its end."""
        try:
            if self._streaming:
                async for tokens in self._open.stream(payload):
                    window.piece(row, tokens)
            else:
                await self._open.send(payload)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001  a failed request is a result; what failed is kept
            window.end(row, error)
        else:
            window.end(row)
            if (stream := window.streams.get(row)) is not None:
                self._learn(stream.last - stream.first)

    async def _answer(self, payload: Any) -> Any:
        """The answer to one request; of one that is streamed, how many tokens it had."""
        if not self._streaming:
            return await self._open.send(payload)
        first = last = tokens = 0.0
        async for more in self._open.stream(payload):
            last, tokens = time.perf_counter(), tokens + more
            first = first or last
        self._learn(last - first)
        return int(tokens)

    def _learn(self, stream_s: float) -> None:
        self._stream_s += LEARNING * (stream_s - self._stream_s) if self._stream_s else stream_s


def _completion_rate(finished_at: list[float], end: float, elapsed_s: float) -> float:
    """Completions a second: slope of the count over time, which batches that complete at once do not bias.

    Starts at the first completion and stops at `end`, so that neither filling nor emptying the pipeline counts.
    """
    done = np.sort([t for t in finished_at if t <= end])
    if len(done) < SLOPE or done[-1] - done[0] < elapsed_s / 4:
        return len(finished_at) / elapsed_s
    return float(np.polyfit(done - done[0], np.arange(len(done)), 1)[0])


class ServeLoadDriver(LoadDriver):
    """The driver as a Ray actor: talks to a Serve application of the cluster.

    Args:
        app_name: The application.
        source: What requests send.
        root_url: See `connect`.
        streaming: See `LoadDriver`.
    """

    def __init__(
        self, app_name: str, source: RequestSource, root_url: str | None = None, *, streaming: bool = False
    ) -> None:
        super().__init__(lambda: connect(app_name, root_url), source.payloads(), streaming=streaming)
        gc.freeze()  # what was imported is never garbage: collections during a window get shorter


async def _give_up(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=DRAIN_S)
