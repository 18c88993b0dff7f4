"""The documentation's pictures, of the season that `backfill demo` makes: `make screenshots` takes them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import OpenPage
from tests.browser.flower_pages import open_flower, search_tasks, task_rows, worker_row
from tests.browser.pictures import take_picture
from tests.kept_up import found_by, state, up
from tests.lab import Lab, LocalTables, made_lab, until

FOLDER = Path(os.environ.get("SCREENSHOTS", ""))
INCIDENT = date(2023, 2, 23)
#: A window in which all columns of Flower's tasks have room, in a picture as wide as the others.
WIDE = {"viewport": {"width": 1680, "height": 600}, "device_scale_factor": 1280 / 1680}
LOW = {"viewport": {"width": 1280, "height": 480}}
RUN = ("run", "--job", "player_composite_factors", "--start-date", "2023-02-23", "--end-date", "2023-03-06")
DATES = 12


@pytest.fixture(scope="module")
def season(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The demo and the page of its history; then the stack that is up, and on it a run that is not on the page."""
    home = tmp_path_factory.mktemp("season")
    with pytest.MonkeyPatch.context() as patch:
        for lab in made_lab(home, patch, LocalTables(home / "home" / "warehouse")):
            assert lab.command("demo").returncode == 0
            assert lab.command("history", "--html", str(lab.home / "history.html")).returncode == 0
            up(lab)
            ran = lab.command(*RUN, "--reprocess", "all")
            assert ran.returncode == 0, ran.stdout + ran.stderr
            yield lab
            lab.command("down", BACKFILL_STOP_SECONDS="0")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_history(season: Lab, open_page: OpenPage, scheme: str) -> None:
    page = open_page((season.home / "history.html").as_uri(), offline=True, color_scheme=scheme).page
    page.locator(f'.calendar [data-d="{INCIDENT}"]').hover()
    tip = page.get_by_role("tooltip")
    expect(tip).to_contain_text("1 of 187 (0.5 %)")
    expect(tip).to_contain_text("187 of 187 (100.0 %) from derived")
    take_picture(page, FOLDER / f"history-{scheme}.png")


def test_flower_s_tasks(season: Lab, open_page: OpenPage) -> None:
    stack, run = state(season), season.ledger.runs.list_latest_runs()[0].id
    until(lambda: len(found_by(stack, run)) == DATES + 2, "the run's tasks, those of the gate and of its end")
    page = open_flower(open_page, stack, "/tasks", **WIDE).page
    search_tasks(page, run)
    expect(task_rows(page)).to_have_count(DATES + 2)
    page.mouse.move(0, 0)
    take_picture(page, FOLDER / "flower-tasks.png")


def test_flower_s_workers(season: Lab, open_page: OpenPage) -> None:
    page = open_flower(open_page, state(season), "/", **LOW).page
    for name in ("dates", "express", "gate", "maintenance", "housekeeping"):
        expect(worker_row(page, name)).to_contain_text("Online")
    expect(page.locator("#workers-online")).to_have_text("4")
    take_picture(page, FOLDER / "flower-workers.png")
