"""Pictures for the documentation: Ray's dashboard during a search, and its report. `python -m experiments.screenshots`.

Starts a cluster of its own with Ray's dashboard, searches on it, and has a Chromium without a window look at both.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

IMAGES = Path(__file__).parents[1] / "docs" / "images"
CHROMIUM = "/usr/bin/chromium"
SIZE = (1280, 800)
COLOURS = 128  # few enough for small files, enough for smooth text
MOST_BYTES = 200_000
STARTED, LOADED_S = "Ray runtime started", 6.0
SEEN = "trial 2/"  # the search is looked at when it says so
# Pages of Ray's dashboard, by the name of the picture.
PAGES = {"ray_actors": "#/actors", "ray_serve": "#/serve"}
SECTIONS = {"report_search": "#search figure", "report_latency": "#latency figure"}  # of the report


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the pictures; 0, or 1 if the search failed."""
    parser = argparse.ArgumentParser(prog="python -m experiments.screenshots", description=__doc__)
    parser.add_argument("--out", type=Path, default=IMAGES, help="folder for the pictures")
    parser.add_argument("--chromium", default=CHROMIUM, help="the browser")
    parser.add_argument("--max-trials", default="8", help="of the search")
    arguments = parser.parse_args(argv)
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, browser(arguments.chromium) as page:
        run_dir = Path(folder) / "demo"
        with cluster() as (address, dashboard):
            search = [sys.executable, "-m", "morphling_ray.tune", "--address", address, "--run-dir", str(run_dir)]
            tune = subprocess.Popen(
                [*search, "--max-trials", arguments.max_trials], env=environment(), stderr=subprocess.PIPE, text=True
            )
            assert tune.stderr is not None
            for line in tune.stderr:
                if SEEN in line:
                    break
            for name, where in PAGES.items():
                page.goto(f"{dashboard}/{where}")
                time.sleep(LOADED_S)
                keep(page, arguments.out / f"{name}.png")
            tune.communicate()
        if tune.returncode:
            return 1
        page.goto((run_dir / "report.html").as_uri())
        keep(page, arguments.out / "report.png")
        for name, where in SECTIONS.items():
            keep(page.locator(where).first, arguments.out / f"{name}.png")
    return 0


@contextmanager
def browser(chromium: str) -> Iterator[Any]:
    """A page of a browser without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        as_root = ["--no-sandbox"] * (os.geteuid() == 0)  # it does not start otherwise
        started = playwright.chromium.launch(executable_path=chromium, args=as_root)
        yield started.new_page(viewport={"width": SIZE[0], "height": SIZE[1]})
        started.close()


@contextmanager
def cluster() -> Iterator[tuple[str, str]]:
    """A Ray cluster on this machine, with the dashboard; its address, and where the dashboard is."""
    port, dashboard = free_port(), free_port()
    always = ["--head", "--block", f"--port={port}", "--disable-usage-stats", "--include-dashboard=true"]
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name("ray")), "start", *always, f"--dashboard-port={dashboard}"],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if STARTED in line:
                break
        yield f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)  # Ray ends its processes itself
        process.communicate(timeout=60)


def environment() -> dict[str, str]:
    """Without Ray's authentication: the dashboard would ask for a token, and the cluster is on this machine alone."""
    return {**os.environ, "RAY_AUTH_MODE": "disabled"}


def free_port() -> int:
    """Of TCP, on which nobody listens now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def keep(shown: Any, file: Path) -> None:
    """Writes what a page, or a part of one, shows, with few colours.

    Raises:
        ValueError: It is too large a file for a repository.
    """
    shown.screenshot(path=str(file))
    with Image.open(file) as picture:
        small = picture.convert("RGB").quantize(COLOURS)
    small.save(file, optimize=True)
    if file.stat().st_size > MOST_BYTES:
        raise ValueError(f"{file.name} has {file.stat().st_size} bytes; at most {MOST_BYTES} are wanted")


if __name__ == "__main__":
    raise SystemExit(main())
