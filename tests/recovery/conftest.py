"""The table of recovery times, printed at the end."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.lab import lab as lab

TIMES = pytest.StashKey[list[tuple[str, float]]]()


@pytest.fixture
def record_time(pytestconfig: pytest.Config) -> Callable[[str, float], None]:
    """Add a line to the table: what was lost, and for how many seconds nothing went on."""
    times = pytestconfig.stash.setdefault(TIMES, [])
    return lambda lost, seconds: times.append((lost, seconds))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for lost, seconds in config.stash.get(TIMES, []):
        terminalreporter.write_line(f"| {lost} | {seconds:.1f} s |")
