"""The page that `backfill history --html` writes, in a real browser, without a network."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from gated_backfill.common.model.coverage import Fallback
from gated_backfill.producer.planning.plan import Reprocess
from tests.browser.conftest import PHONE, OpenPage
from tests.lab import Lab, LocalTables, made_lab, players

FIRST = date(2023, 2, 1)
BLOCKED, FORCED, FALLBACK, FAILED, LOST = (FIRST + timedelta(days=n) for n in (3, 4, 5, 6, 20))
PAGE = "history.html"
HOSTILE = '</script><img src=x onerror="document.title=1">'


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Runs that went each way over thirty dates, and their page; one date's reason is full of markup."""
    home = tmp_path_factory.mktemp("shown")
    days = [FIRST + timedelta(days=n) for n in range(30)]
    present = dict.fromkeys(days, 20) | {BLOCKED: 3, FORCED: 10, FALLBACK: 0}
    with pytest.MonkeyPatch.context() as patch:
        for lab in made_lab(home, patch, LocalTables(home / "home" / "warehouse")):
            for day in days:
                lab.probe("expected", day, players(20))
                lab.probe("first", day, players(present[day]), trick="raise" if day == FAILED else None)
                lab.probe("second", day, players(20 if day == FALLBACK else 1))
            lab.run(days, "probe")
            lab.run([FORCED], "probe", because=HOSTILE)
            lab.keep_only("probe.first", LOST, "name", "player000", "day")
            lab.run([LOST], "probe", reprocess=Reprocess.ALL, fallback=Fallback.OFF)
            assert lab.command("history", "--html", str(lab.home / PAGE)).returncode == 0
            yield lab


@pytest.fixture
def page_file(shown: Lab) -> Path:
    return shown.home / PAGE


def cell(page: Page, day: date) -> Locator:
    return page.locator(f'.calendar [data-d="{day}"]')


def test_the_page_leads_with_the_state_now(page_file: Path, open_page: OpenPage) -> None:
    page = open_page(page_file.as_uri(), offline=True).page
    tiles = page.locator("dl.figures").first
    expect(tiles.locator(".figure.bad").first).to_contain_text("Not complete2")
    expect(tiles).to_contain_text("1 blocked, 1 failed")
    expect(tiles).to_contain_text("1 rebuild(s) that did not pass")
    now = page.locator("#now")
    expect(now.locator("tr", has_text=str(BLOCKED))).to_contain_text("3 of 20 expected entities")
    expect(now.locator("tr", has_text=str(FAILED))).to_contain_text("failed")
    expect(now.locator("tr", has_text=str(LOST))).to_contain_text("has the rows of an earlier checkpoint")
    expect(now.locator("tr", has_text=str(FORCED))).to_have_count(0)
    tops = [page.locator(part).bounding_box() for part in ("#now", ".past", ".calendar")]
    assert [top["y"] for top in tops if top] == sorted(top["y"] for top in tops if top)
    assert page.locator("dl.figures").last.locator(".bad, .warn").count() == 0


def test_the_page_opens_offline_and_tells_the_truth_of_every_date(
    shown: Lab, page_file: Path, open_page: OpenPage
) -> None:
    watched = open_page(page_file.as_uri(), offline=True)
    page = watched.page

    ledger = sqlite3.connect(shown.home / "ledger.db")
    expected = {day for (day,) in ledger.execute("SELECT DISTINCT day FROM run_dates")}
    ledger.close()
    cells = page.locator(".calendar .d").evaluate_all("found => found.map(one => one.dataset.d)")
    assert (len(cells), set(cells)) == (len(expected), expected)

    cell(page, BLOCKED).hover()
    tip = page.get_by_role("tooltip")
    expect(tip).to_contain_text("Sat 04 Feb 2023 · blocked")
    expect(tip).to_contain_text("3 of 20 (15.0 %)")
    expect(tip).to_contain_text("player003, player004")
    expect(cell(page, BLOCKED)).to_have_text("×")
    expect(cell(page, FORCED)).to_have_text("F")
    expect(cell(page, FAILED)).to_have_text("!")
    cell(page, FALLBACK).hover()
    expect(tip).to_contain_text("second: primary below 90% at 0.0 %")
    cell(page, LOST).hover()
    expect(tip).to_contain_text("1 of 20 (5.0 %)")
    expect(tip).to_contain_text("published20 of 20 (100.0 %) from first")
    page.mouse.move(0, 0)
    expect(tip).to_be_hidden()

    assert watched.requests == [page_file.as_uri()]
    assert watched.complaints == []


def test_the_keyboard_reaches_every_date(page_file: Path, open_page: OpenPage) -> None:
    page = open_page(page_file.as_uri(), offline=True).page
    tip = page.get_by_role("tooltip")

    page.keyboard.press("Tab")
    expect(tip).to_contain_text("Thu 02 Mar 2023")
    page.keyboard.press("Home")
    expect(tip).to_contain_text("Wed 01 Feb 2023 · complete")
    for key in ("ArrowDown", "ArrowLeft", "ArrowLeft", "ArrowLeft", "ArrowLeft"):
        page.keyboard.press(key)
    expect(tip).to_contain_text("Sat 04 Feb 2023 · blocked")
    expect(tip).to_contain_text("3 of 20 (15.0 %)")
    page.keyboard.press("Escape")
    expect(tip).to_be_hidden()


def test_what_users_wrote_is_shown_as_text(page_file: Path, open_page: OpenPage) -> None:
    watched = open_page(page_file.as_uri(), offline=True)

    cell(watched.page, FORCED).hover()

    expect(watched.page.get_by_role("tooltip")).to_contain_text(HOSTILE)
    expect(watched.page.locator("td.reason", has_text=HOSTILE)).to_be_visible()
    assert watched.page.title().startswith("Backfill history")
    assert watched.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_runs_out_of_a_narrow_page(page_file: Path, open_page: OpenPage, scheme: str) -> None:
    page = open_page(page_file.as_uri(), offline=True, viewport=PHONE, color_scheme=scheme).page

    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    cell(page, BLOCKED).hover()
    box = page.get_by_role("tooltip").bounding_box()
    assert box is not None
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= PHONE["width"]
