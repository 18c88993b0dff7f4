"""The pages of Flower, as a user with the password sees them."""

from __future__ import annotations

from typing import Any

from playwright.sync_api import Locator, Page

from tests.browser.conftest import OpenPage, Watched


def open_flower(open_page: OpenPage, stack: dict[str, Any], path: str, **context: Any) -> Watched:
    """Open a page of the Flower that is up, with the user and the password that `backfill up` has printed."""
    known = {"username": stack["flower_user"], "password": stack["flower_password"]}
    return open_page(f"{stack['flower_url']}{path}", http_credentials=known, **context)


def worker_row(page: Page, name: str) -> Locator:
    return page.locator("#workers-table tbody tr", has_text=f"{name}@")


def task_rows(page: Page) -> Locator:
    return page.locator("#tasks-table tbody tr")


def search_tasks(page: Page, text: str) -> None:
    """Type into the search box; the table follows."""
    page.get_by_role("searchbox").press_sequentially(text)


def task_columns(page: Page) -> set[tuple[str, str, str]]:
    """What the table shows of each task: name, arguments and state."""
    cells = task_rows(page).evaluate_all(
        "rows => rows.map(row => [...row.cells].slice(0, 3).map(one => one.innerText))"
    )
    return {(name, arguments, state) for name, arguments, state in cells}
