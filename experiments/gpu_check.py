"""Proves the limits on parts of a GPU on a machine that has one: `python -m experiments.gpu_check`.

Each check runs processes under the limits of a replica and one without them, so that a limit that is off is seen.
Results, with the machine and the date, go to experiments/results/gpu_check_DATE.json. Works without Ray; the search at
the end needs it. No setting of the card is changed.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Sequence
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from morphling_ray.environment import environment
from morphling_ray.serving import failures, mps, nvml
from morphling_ray.serving.gpu_limits import gpu_environment

RESULTS = Path(__file__).parent / "results"
TIMEOUT_S = 120.0
Found = dict[str, Any]

# Programs under the limits; each prints one JSON object a line.
BIND = "import json, os, sys, time\nfrom morphling_ray.serving import gpu_limits\ngpu_limits.bind()\nimport torch\n"
FILL = """
    held = []
    step = torch.cuda.get_device_properties(0).total_memory // 100
    error = ""
    while len(held) < {percent} and not error:
        try:
            held.append(torch.empty(step, dtype=torch.uint8, device="cuda"))
        except Exception as raised:
            error = f"{{type(raised).__name__}}: {{raised}}"
    torch.cuda.synchronize()
    print(json.dumps({{"percent": len(held), "error": error, **gpu_limits.report()}}), flush=True)
    {then}
"""
PAST_TORCH = """
    import ctypes
    torch.zeros(1, device="cuda")
    cuda, pointer, held = ctypes.CDLL("libcuda.so.1"), ctypes.c_uint64(), 0
    step = torch.cuda.get_device_properties(0).total_memory // 100
    while held < {percent} and cuda.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(step)) == 0:
        held += 1
    print(json.dumps({{"percent": held}}), flush=True)
"""
MULTIPLY = """
    began_us = time.time_ns() // 1000
    a = torch.randn(4096, 4096, device="cuda", dtype=torch.float16)
    torch.cuda.synchronize()
    gpu_limits.report()  # the next one is of the time from here on
    end, count = time.perf_counter() + {seconds}, 0
    while time.perf_counter() < end:
        for _ in range(20):
            a @ a
        torch.cuda.synchronize()
        count += 20
    print(json.dumps({{"products_per_s": count / {seconds}, **gpu_limits.report(began_us)}}), flush=True)
"""
# Some hundred requests a second at the most, so that the card is what limits them; the smallest memory is too small.
EXPERIMENT = """
app: experiments.zoo.apps:bert_large_full
request: experiments.zoo.requests:bert_large_full
objective: rps
space: {gpu_memory: [0.02, 0.1, 0.5], gpu_share: [0.25, 1.0], max_batch_size: [1, 4, 16]}
"""
# Of the examples, which are small: a part of the card is as good as the whole, and costs less.
EXAMPLE = """
prices: aws
space: {cpu_cores: [1, 2], gpu_memory: [0.05, 0.2], gpu_share: [0.1, 0.3, 1.0], max_batch_size: [1, 4, 16, 64]}
"""


def start(program: str, card: str, **limits: Any) -> "subprocess.Popen[str]":
    """Starts a program on a card, under limits."""
    return subprocess.Popen(
        [sys.executable, "-c", BIND + textwrap.dedent(program)],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": card, **(gpu_environment(**limits) or gpu_environment(memory=1.0))},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(program: str, card: str, **limits: Any) -> Found:
    """What a program says in the end."""
    out, err = start(program, card, **limits).communicate(timeout=TIMEOUT_S)
    if not out.strip():
        raise RuntimeError((err.strip().splitlines() or ["it says nothing"])[-1])
    found: Found = json.loads(out.strip().splitlines()[-1])
    return found


def fill(percent: int, then: str = "") -> str:
    """A program that takes so many percent of the card's memory, and then does something."""
    return FILL.format(percent=percent, then=then)


def memory_binds(card: str) -> tuple[bool, Found]:
    """Torch gets its share and not more; without the limit it gets more."""
    limited, free = run(fill(60), card, memory=0.3, mps_mode="off"), run(fill(60), card)
    ok = 20 <= limited["percent"] <= 30 and free["percent"] == 60 and failures.ran_out(limited["error"])
    reason = failures.of_requests(limited["error"], 8)
    return ok and reason.startswith("out of memory at batch size 8"), {"limited": limited, "without": free}


def memory_binds_for_any_framework(card: str) -> tuple[bool, Found]:
    """The driver refuses what is above the share, whoever asks."""
    program = PAST_TORCH.format(percent=60)
    limited, free = run(program, card, memory=0.3, mps_mode="on"), run(program, card)
    return limited["percent"] <= 30 < free["percent"], {"limited": limited, "without": free}


def share_binds(card: str) -> tuple[bool, Found]:
    """Half of the multiprocessors do about half of the work, a quarter about a quarter; each is a client of MPS."""
    program = MULTIPLY.format(seconds=3)
    found = {f"{share:g}": run(program, card, share=share, mps_mode="on") for share in (1, 0.5, 0.25)}
    whole = found["1"]["products_per_s"]
    ratios = [found[name]["products_per_s"] / whole for name in ("0.5", "0.25")]
    ok = 0.35 < ratios[0] < 0.7 and 0.15 < ratios[1] < 0.4 and all(each.get("mps") for each in found.values())
    return ok, {**found, "ratios": ratios}


def two_are_isolated(card: str) -> tuple[bool, Found]:
    """Of two replicas on one card, one that runs out of memory does not disturb the other."""
    quiet = start(fill(30, then="sys.stdin.read()\n    print(json.dumps(gpu_limits.report()))"), card, memory=0.45)
    assert quiet.stdout is not None
    first = json.loads(quiet.stdout.readline())
    greedy = run(fill(90), card, memory=0.45)
    out, _ = quiet.communicate(timeout=TIMEOUT_S)
    after: Found = json.loads(out.strip().splitlines()[-1])
    ok = first["percent"] == 30 and greedy["percent"] <= 45 and after["memory_used"] <= 0.45
    return ok and failures.ran_out(greedy["error"]), {"quiet": after, "greedy": greedy}


def shares_add_up(card: str) -> tuple[bool, Found]:
    """Two replicas with half of the card each get about as much as each alone with its half."""
    program = MULTIPLY.format(seconds=4)
    alone = run(program, card, share=0.5, mps_mode="on")["products_per_s"]
    both = [start(program, card, share=0.5, mps_mode="on") for _ in range(2)]
    together = [json.loads(p.communicate(timeout=TIMEOUT_S)[0])["products_per_s"] for p in both]
    return min(together) > 0.7 * alone, {"alone": alone, "together": together}


def memory_is_released(card: str) -> tuple[bool, Found]:
    """A killed replica's memory is free soon, and the next one waits for it."""
    holder = start(fill(60, then="time.sleep(60)"), card, memory=0.9, mps_mode="off")
    assert holder.stdout is not None
    holder.stdout.readline()
    holder.kill()
    began = time.monotonic()
    after = run(fill(60), card, memory=0.9, mps_mode="off")
    return after["percent"] == 60, {"seconds": time.monotonic() - began, "after": after}


def daemons_end(card: str) -> tuple[bool, Found]:
    """Nothing of ours is left running."""
    ended = mps.end_all(mps.PATIENCE_S)
    return not list(mps.root().glob("*/*.pid")), {"ended": ended}


def search(card: str) -> tuple[bool, Found]:
    """A whole search over parts of the card; `serve run` of what it recommends holds what it promises within 10 %."""
    return _promise_holds(EXPERIMENT, [], "6", rounds=1)


def example_vision(card: str) -> tuple[bool, Found]:
    """The same of an example with `@serve.batch`."""
    return _example("vision")


def example_chat(card: str) -> tuple[bool, Found]:
    """The same of an example that streams."""
    return _example("chat")


def _example(name: str) -> tuple[bool, Found]:
    from benchmarks.examples import COMMANDS

    return _promise_holds(EXAMPLE, COMMANDS[name], "8", rounds=2)


def _promise_holds(experiment: str, command: Sequence[str], max_trials: str, rounds: int) -> tuple[bool, Found]:
    if find_spec("ray") is None:
        return True, {"skipped": "Ray is not installed"}
    from benchmarks.examples import EXAMPLES, promised_and_found

    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(EXAMPLES, folder, dirs_exist_ok=True)
        (Path(folder) / "experiment.yaml").write_text(experiment)
        trials = Path(folder) / "out" / "trials.jsonl"
        try:
            flags = [*command, "--experiment", "experiment.yaml"]
            found: Found = promised_and_found(Path(folder), flags, max_trials, rounds)
        except SystemExit as error:
            found = {"error": str(error)[-2000:]}
        lines = [json.loads(line) for line in trials.read_text().splitlines()] if trials.exists() else []
    kept = ("configuration", "metrics", "infeasible_because")
    found["trials"] = [{**{k: t[k] for k in kept if k in t}, "gpus": t["details"].get("gpus")} for t in lines]
    used = [gpu for t in lines if t.get("metrics") for gpu in t["details"].get("gpus", [])]
    holds = "found_rps" in found and abs(found["found_rps"] / found["promised_rps"] - 1) <= 0.1
    return holds and bool(used) and all(gpu.get("memory_used") for gpu in used), found


CHECKS: tuple[Callable[[str], tuple[bool, Found]], ...] = (
    memory_binds,
    memory_binds_for_any_framework,
    share_binds,
    two_are_isolated,
    shares_add_up,
    memory_is_released,
    search,
    example_vision,
    example_chat,
    daemons_end,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the checks; 0 if all hold, 1 if one does not, 2 where there is no card."""
    parser = argparse.ArgumentParser(prog="python -m experiments.gpu_check", description=__doc__)
    parser.add_argument("--card", default="0", help="index or UUID")
    parser.add_argument("--only", nargs="+", choices=[check.__name__ for check in CHECKS])
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR")
    arguments = parser.parse_args(argv)
    if not nvml.visible(arguments.card):
        print("there is no NVIDIA card on this machine", file=sys.stderr)
        return 2
    around = {**environment([]), "command": "python -m experiments.gpu_check", "mps": mps.available()}
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / f"gpu_check_{date.today().isoformat()}.json"
    results: list[Found] = []
    for check in CHECKS:
        if arguments.only and check.__name__ not in arguments.only:
            continue
        began = time.monotonic()
        try:
            ok, found = check(arguments.card)
        except Exception as error:  # noqa: BLE001  one that fails is a result
            ok, found = False, {"error": f"{type(error).__name__}: {error}"}
        results.append({"check": check.__name__, "ok": ok, "seconds": round(time.monotonic() - began, 1), **found})
        file.write_text(json.dumps({"environment": around, "checks": results}, indent=1) + "\n")
        about = (check.__doc__ or "").splitlines()[0]
        print(f"{'ok    ' if ok else 'FAILED'} {check.__name__}: {about}", flush=True)
    print(file)
    return 0 if all(result["ok"] for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
