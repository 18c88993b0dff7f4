"""Flower, as `backfill up` starts it, in a real browser."""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser, Error, expect

from tests.browser.conftest import OpenPage
from tests.browser.flower_pages import open_flower, search_tasks, task_columns, task_rows, worker_row
from tests.kept_up import DAYS, RUN, family, found_by, nothing_is_left, ports_of, prepare, state, up
from tests.kept_up import upped as upped
from tests.lab import Lab, until

AGAIN = ("run", "--job", "probe", "--dates", str(DAYS[1]), "--reprocess", "all")


def test_flower_shows_the_workers_and_each_run_s_tasks_to_whoever_has_the_password(
    upped: Lab, open_page: OpenPage, chromium: Browser
) -> None:
    lab = upped
    prepare(lab)
    up(lab)
    stack, processes = state(lab), family(lab)
    for command in (RUN, AGAIN):
        ran = lab.command(*command)
        assert ran.returncode == 0, ran.stdout + ran.stderr
    second, first = (run.id for run in lab.ledger.runs.list_latest_runs())
    until(lambda: (len(found_by(stack, first)), len(found_by(stack, second))) == (5, 3), "the tasks of both runs")

    # without the password
    with pytest.raises(Error, match="ERR_INVALID_AUTH_CREDENTIALS"):
        open_page(stack["flower_url"])
    stranger = chromium.new_context()
    assert {stranger.request.get(f"{stack['flower_url']}{path}").status for path in ("/", "/tasks", "/api/tasks")} == {
        401
    }
    stranger.close()

    # the workers
    workers = open_flower(open_page, stack, "/")
    expect(workers.page.locator("#workers-table tbody tr")).to_have_count(5)
    for name in ("dates", "express", "gate", "maintenance", "housekeeping"):
        expect(worker_row(workers.page, name)).to_contain_text("Online")
    expect(workers.page.locator("#workers-online")).to_have_text("5")

    # the tasks, before a search and after it
    tasks = open_flower(open_page, stack, "/tasks")
    page = tasks.page
    expect(task_rows(page).filter(has_text=f"probe 2023-02-20 run={first}")).to_contain_text("process_date")
    expect(task_rows(page).filter(has_text=second)).to_have_count(3)
    search_tasks(page, first)
    expect(task_rows(page)).to_have_count(5)
    assert task_columns(page) == {
        *(("process_date", f"probe {day} run={first}", "SUCCESS") for day in DAYS),
        ("close_window", f"probe window 1 run={first}", "SUCCESS"),
        ("post_run", f"run={first}", "SUCCESS"),
    }

    for watched in (workers, tasks):
        assert watched.complaints == []
        assert [url for url in watched.requests if not url.startswith(f"{stack['flower_url']}/")] == []

    down = lab.command("down")
    assert (down.returncode, down.stdout.splitlines()[0]) == (0, "stopped")
    nothing_is_left(lab, processes, ports_of(stack))
