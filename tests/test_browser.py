"""The report in a real browser. Without a Chromium these are skipped; `make browser` installs Debian's."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright
from test_report import FOUND, INSIGHT, infeasible, measured, rejected, write

from morphling_ray.measurement import Trial
from morphling_ray.report import render

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here; `make browser` installs it")

LARGEST_MIB = 3.0
LOADED_S = 2.0
OFFLINE = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    sandbox = [] if os.getuid() else ["--no-sandbox"]  # which Chromium refuses to have for root
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=[*OFFLINE, *sandbox])
        yield chromium
        chromium.close()


def report_of(count: int, folder: Path) -> Path:
    """A report with everything that it may hold, of so many trials."""
    trials: list[Trial] = []
    for number in range(1, count - 1):
        kinds = (measured(number, 8, 100.0 + number), infeasible(number, "out of memory"), rejected(number))
        trial = kinds[0] if number % 3 else kinds[1 + number % 2]
        probes = trial.measurement.probes * 3
        trials.append(replace(trial, measurement=replace(trial.measurement, probes=probes)))
    trials += [measured(count - 1, 8, 208.0, "confirm"), measured(count, 1, 180.0, "confirm")]
    found = {**FOUND, "insight": INSIGHT, "trials": count}
    run_dir = write(folder / "run", trials, found, "applications:\n- name: app\n")
    (run_dir / "report.html").write_text(render(run_dir), encoding="utf-8")
    return run_dir / "report.html"


@pytest.fixture(params=[12])
def page(browser: Browser, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A report of so many trials, opened; fails if it fetches anything or something in it goes wrong."""
    report = report_of(request.param, tmp_path)
    context = browser.new_context(viewport={"width": 1100, "height": 900})
    opened = context.new_page()
    wrong: list[str] = []
    fetched: set[str] = set()
    opened.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("request", lambda asked: fetched.add(asked.url))
    opened.goto(report.as_uri())
    yield opened
    context.close()
    assert wrong == []
    assert {url for url in fetched if not url.startswith("data:")} == {report.as_uri()}


@pytest.mark.parametrize("page", [100], indirect=True)
@pytest.mark.timed
def test_a_hundred_trials_are_small_and_there_at_once(page: Page, tmp_path: Path) -> None:
    """Fails if a report of a usual search is too large to be sent, or makes its reader wait."""
    assert (tmp_path / "run" / "report.html").stat().st_size < LARGEST_MIB * 2**20
    loaded = []
    for _ in range(3):
        page.reload()
        loaded.append(page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd / 1000"))
        assert page.locator("#trials .sortable > tbody").count() == 100
    assert 0 < sorted(loaded)[1] < LOADED_S


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_keeps_a_reader_out(scheme: Any, page: Page) -> None:
    """Fails if axe finds what it calls serious: contrast, names, order of headings, what a keyboard cannot reach."""
    page.emulate_media(color_scheme=scheme)
    page.evaluate("for (const folded of document.querySelectorAll('details')) folded.open = true")
    found = Axe().run(page).response["violations"]
    serious = [(v["id"], v["nodes"][0]["html"][:200]) for v in found if v["impact"] in ("serious", "critical")]
    assert serious == []


def test_a_table_is_sorted_by_keyboard(page: Page) -> None:
    """Fails if sorting needs a mouse, or is not told to who cannot see it."""
    head = page.locator("#trials th", has_text="peak")
    head.locator("button").focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") is not None
    peaks = page.locator("#trials tbody tr:first-child td:nth-child(4)").evaluate_all(
        "cells => cells.map(cell => cell.dataset.v).filter(v => v !== '').map(Number)"
    )
    assert len(peaks) > 5
    assert peaks in (sorted(peaks), sorted(peaks, reverse=True))


def test_a_narrow_window_and_paper(page: Page) -> None:
    """Fails if a phone has to scroll sideways, or a print-out loses what is folded away or shows buttons."""
    page.set_viewport_size({"width": 400, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible()
    assert not page.locator("#deploy button").first.is_visible()
    assert page.pdf().startswith(b"%PDF")
