"""A real browser: Debian's Chromium, driven by Playwright. Without it these tests fail; nothing is skipped."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.lab import lab as lab

#: These make a season of data for the documentation's pictures: `make screenshots` runs them.
collect_ignore = [] if os.environ.get("SCREENSHOTS") else ["test_pictures.py"]

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = [
    "--no-sandbox",  # Chromium refuses to start as root with one
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 400, "height": 800}


@dataclass
class Watched:
    """A page, with everything that it asked the network for and everything it complained of."""

    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """A Chromium with an empty profile that lives as long as the session."""
    if not CHROMIUM.exists():
        pytest.fail(f"there is no {CHROMIUM}: apt-get install chromium", pytrace=False)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


OpenPage = Callable[..., Watched]


@pytest.fixture
def open_page(chromium: Browser) -> Iterator[OpenPage]:
    """Open a page in a context of its own: `open_page(url, offline=True, viewport=PHONE, color_scheme="dark")`."""
    contexts = []

    def opened(url: str, *, offline: bool = False, **context: object) -> Watched:
        made = chromium.new_context(**{"viewport": DESKTOP, **context})  # pyright: ignore[reportArgumentType]
        contexts.append(made)
        made.set_offline(offline)
        watched = Watched(page=made.new_page())
        watched.page.on("request", lambda request: watched.requests.append(request.url))
        watched.page.on("console", lambda said: watched.complaints.append(f"{said.type}: {said.text}"))
        watched.page.on("pageerror", lambda error: watched.complaints.append(str(error)))
        watched.page.goto(url)
        return watched

    yield opened
    for context in contexts:
        context.close()
