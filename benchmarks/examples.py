"""Whether what is promised holds: `python -m benchmarks.examples`.

Each example is tuned by the command in its README, its Serve config is started with `serve run` as a user would, and a
client that shares nothing with our load driver but the requests offers Poisson load at rates around the promised peak,
twice each. A rate is held, and what comes in the first part is not judged: a server that begins without a queue keeps
an SLO for seconds at rates that it cannot sustain.
"""

import argparse
import asyncio
import contextlib
import gc
import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import isotonic_regression  # type: ignore[import-untyped]

from benchmarks.bench import keep
from morphling_ray.experiment import Parser, add_flags, resolve
from morphling_ray.load.crew import ENVIRONMENT
from morphling_ray.objective import Slo
from morphling_ray.target import ServeTarget

EXAMPLES = Path(__file__).parents[1] / "examples"
COMMANDS = {
    line.split("](")[0].split("[")[1].removesuffix(".py"): shlex.split(line.split("`")[-2])[3:]
    for line in (EXAMPLES / "README.md").read_text().splitlines()
    if "python -m morphling_ray.tune" in line
}
LOW, HIGH, RATES = 0.75, 1.2, 8
VISITS, ROUNDS = 2, 3  # of each rate, so that not all that is known of one is of one bad minute; and windows in each
WINDOW_S, LONGEST_S, REQUESTS = 2.5, 8.0, 100  # a window has so many requests, unless it gets longer than that
OWN_PAUSE, TRIES = 0.25, 3  # of the SLO: a window in which the client itself stood still for so long does not count
PATIENCE_S = 1.0  # beyond the SLO: a longer backlog will not go away, and is given up
UP_S = 90.0
Send = Callable[[Any], AsyncIterator[None]]
FloatArray = npt.NDArray[np.float64]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs and prints; returns 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.examples", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    parser.add_argument("--max-trials", default="12")
    parser.add_argument("--client", type=float, metavar="RPS", help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=argparse.SUPPRESS)
    arguments, rest = parser.parse_known_args(argv)
    if arguments.client:
        print(json.dumps(asyncio.run(_offer_around(arguments.client, rest, arguments.rounds))))
        return 0
    rows: list[dict[str, Any]] = []
    for name in arguments.only:
        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree(EXAMPLES, folder, dirs_exist_ok=True)
            rows.append({"example": name, **promised_and_found(Path(folder), COMMANDS[name], arguments.max_trials)})
        row = rows[-1]
        print(
            f"{name}: promised {row['promised_rps']:.4g} RPS, found {row['found_rps']:.4g} RPS "
            f"({row['found_rps'] / row['promised_rps']:.2f}), gain {row['gain']}",
            flush=True,
        )
        keep("examples", rows, argv or sys.argv[1:])
    off = [abs(row["found_rps"] / row["promised_rps"] - 1) for row in rows]
    print(f"within 10 %: {sum(o <= 0.1 for o in off)} of {len(off)}; off by {np.median(off):.1%} in the median")
    return 0


def promised_and_found(folder: Path, command: Sequence[str], max_trials: str, rounds: int = ROUNDS) -> dict[str, Any]:
    """Tunes an application as a user would, serves what was recommended and loads that.

    Args:
        folder: Where to do so; the run is in `out` there.
        command: What says which application it is: arguments of `python -m morphling_ray.tune`.
        max_trials: Of the search.
        rounds: Windows in which each rate is offered, each time.
    """
    tune = [sys.executable, "-m", "morphling_ray.tune", *command, "--max-trials", max_trials, "--run-dir", "out"]
    paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "RAY_USAGE_STATS_ENABLED": "0"}
    ended = subprocess.run(tune, cwd=folder, env=variables, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise SystemExit(ended.stderr)
    result = json.loads(ended.stdout.splitlines()[-1])
    outcome = json.loads((folder / "out" / "recommendation.json").read_text())
    with _serve_run(folder, variables):
        client = [sys.executable, "-m", "benchmarks.examples", "--rounds", str(rounds)]
        client += ["--client", str(result["peak_rps"]), *command]
        quick = {**variables, **ENVIRONMENT}  # Ray's own switch for handles that are used at high rates
        offered = subprocess.run(client, cwd=folder, env=quick, capture_output=True, text=True, check=False)
        if offered.returncode:
            raise SystemExit(offered.stderr)
    found: dict[str, Any] = json.loads(offered.stdout.splitlines()[-1])
    gain = outcome.get("gain_over_baseline")
    return {
        "configuration": result["configuration"],
        "promised_rps": result["peak_rps"],
        "interval_rps": outcome.get("peak_rps_interval"),
        "gain": f"{gain:.2f}x" if gain else "none",
        "seconds": result["seconds"],
        **found,
    }


@contextlib.contextmanager
def _serve_run(folder: Path, variables: dict[str, str]) -> Iterator[None]:
    """`serve run` of what was recommended, ended with all that it started."""
    command = [sys.executable, "-m", "ray.serve.scripts", "run", "out/serve_config.yaml"]
    with (folder / "serve.log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=variables, stdout=log, stderr=log, start_new_session=True)
        try:
            deadline = time.monotonic() + UP_S
            while "Submitted deploy config" not in (folder / "serve.log").read_text():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit((folder / "serve.log").read_text()[-3000:])
                time.sleep(0.5)
            yield
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # with the Ray that it started: a polite end takes half a minute
            process.wait()


async def _offer_around(promised_rps: float, command: Sequence[str], rounds: int) -> dict[str, Any]:
    """In a process of its own: load around the promised peak, and where the share of late requests passes the SLO's."""
    parser = Parser()
    add_flags(parser)
    target = ServeTarget(resolve(parser.parse_args(command)))
    slo = target._experiment.slo()  # as it was tuned for
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # as if on another machine: replicas take the last cores
    gc.disable()  # 0.15 s each, and whoever came in them would be late: collected between windows
    send = _sender(target, _running())
    payloads = target.source.payloads()
    rng = np.random.default_rng(0)
    rates = promised_rps * np.geomspace(LOW, HIGH, RATES)
    late: FloatArray = np.full((VISITS, rounds, RATES), np.nan)
    paused = 0
    window_s = min(LONGEST_S, max(WINDOW_S, REQUESTS / promised_rps))
    await _held(send, payloads, promised_rps / 2, window_s, 1, slo, rng)  # which warms everything up
    for visit, i in [(visit, i) for visit in range(VISITS) for i in rng.permutation(RATES)]:
        for _ in range(TRIES):
            shares, pauses_s = await _held(send, payloads, float(rates[i]), window_s, 1 + rounds, slo, rng)
            stood = pauses_s > OWN_PAUSE * slo.latency_s
            stood[1:] |= stood[:-1]  # the next window still serves what came too late in this one
            late[visit, :, i] = np.where(stood, np.nan, shares)[1:]
            paused += int(stood[1:].sum())
            if not stood[1:].all():
                break
    late = late.reshape(-1, RATES)
    held = np.isfinite(late).any(0)  # rates that the client itself could hold
    allowed, found = 1 - slo.percentile / 100, float("nan")
    if held.any():
        usual = np.nanmedian(late[:, held], axis=0)  # a pause of a shared machine makes one window late at any rate
        passing = np.flatnonzero(isotonic_regression(usual).x <= allowed)
        offered = rates[held]
        last = int(passing[-1]) if len(passing) else 0
        beyond = min(last + 1, len(offered) - 1) if len(passing) else 0  # at either end: that rate, or more, or less
        found = float(np.sqrt(offered[last] * offered[beyond]))
    told = [[None if math.isnan(share) else round(float(share), 4) for share in row] for row in late]
    return {"found_rps": found, "rates_rps": rates.tolist(), "late": told, "paused": paused}


def _running() -> str:
    """Connects to the cluster of `serve run`, and waits until its application is up; the application's name."""
    import ray
    from ray import serve

    ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
    deadline = time.monotonic() + UP_S
    while True:
        applications = serve.status().applications
        if up := [name for name, application in applications.items() if application.status == "RUNNING"]:
            return str(up[0])
        if time.monotonic() > deadline:
            raise SystemExit(f"no application is up: {applications}")
        time.sleep(0.2)


def _sender(target: ServeTarget, app_name: str) -> Send:
    """Sends a request as a user's own code would; yields at each piece of the answer."""
    if target.proxy == "http":
        import aiohttp

        session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))

        async def over_http(payload: Any) -> AsyncIterator[None]:
            url = f"http://127.0.0.1:8000{payload['path']}"
            async with session.request(payload["method"], url, json=payload.get("json")) as response:
                response.raise_for_status()
                await response.read()
                yield

        return over_http
    from ray import serve

    handle = serve.get_app_handle(app_name)
    streaming = target._experiment.slo().streaming

    async def by_handle(payload: Any) -> AsyncIterator[None]:
        if streaming:
            async for _ in handle.options(stream=True).remote(payload):
                yield
        else:
            await handle.remote(payload)
            yield

    return by_handle


async def _held(
    send: Send,
    payloads: Iterator[Any],
    rate_rps: float,
    window_s: float,
    windows: int,
    slo: Slo,
    rng: np.random.Generator,
) -> tuple[FloatArray, FloatArray]:
    """Poisson arrivals through windows: the share of each that was late or failed, and how late the client was in it.

    The latter is in seconds, of the request that was sent longest after its time.
    """
    gaps = rng.exponential(1 / rate_rps, size=int(2 * rate_rps * window_s * windows) + 20)
    due = np.cumsum(gaps)
    due = due[due < window_s * windows]
    window = (due / window_s).astype(int)
    async for _ in send(next(payloads)):  # answered after whatever the last window left in the queues
        pass
    gc.collect()
    start, waiting = time.perf_counter(), 0
    late, pauses_s = np.ones(len(due)), np.zeros(windows)  # whoever is not answered is late

    async def one(number: int, at: float) -> None:
        nonlocal waiting
        waiting += 1
        try:
            pieces = []
            async for _ in send(next(payloads)):
                pieces.append(time.perf_counter() - start - at)
            first, last = pieces[0], pieces[-1]
            took = slo.streamed(first, (last - first) / max(1, len(pieces) - 1)) if slo.streaming else last
            late[number] = took > slo.latency_s
        except Exception:  # noqa: BLE001  a failed request is late
            pass
        finally:
            waiting -= 1

    tasks: list[asyncio.Task[None]] = []
    for number, at in enumerate(due):
        if waiting > 20 + rate_rps * (slo.latency_s + PATIENCE_S):
            break  # who would come now waits for longer than that
        if (wait := start + at - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        pauses_s[window[number]] = max(pauses_s[window[number]], time.perf_counter() - start - at)
        if number % 100 == 0 and pauses_s[window[number]] > slo.latency_s:
            pauses_s[window[number] :] = np.inf  # the client cannot hold that rate
            break
        tasks.append(asyncio.ensure_future(one(number, float(at))))
    _, left = await asyncio.wait(tasks, timeout=slo.latency_s + PATIENCE_S)
    for task in left:
        task.cancel()
    if left:
        await asyncio.wait(left, timeout=PATIENCE_S)
        await asyncio.sleep(PATIENCE_S)  # the replicas get rid of them
    counts = np.bincount(window, minlength=windows)
    return np.bincount(window, late, windows) / np.maximum(counts, 1), pauses_s


if __name__ == "__main__":
    sys.exit(main())
