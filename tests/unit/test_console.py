"""What others wrote is shown as they wrote it."""

from __future__ import annotations

import pytest
from rich.console import Console

from gated_backfill.common.ledger import RunProgress, RunState
from gated_backfill.common.ledger.states import DateState
from gated_backfill.producer.terminal.console import make_console
from gated_backfill.producer.terminal.watcher import RunWatcher
from tests.builders import a_run

WRITTEN = "no route to [::1/0] [/there] :warning:"


@pytest.fixture
def progress() -> RunProgress:
    return RunProgress(run=a_run(state=RunState.SUCCEEDED), counts={DateState.CHECKPOINTED: 3}, note=WRITTEN)


def test_colons_are_no_pictures(capsys: pytest.CaptureFixture[str]) -> None:
    make_console().print("because of :x: and :warning:")
    assert capsys.readouterr().out == "because of :x: and :warning:\n"


def test_a_line_on_the_way_says_what_there_is_to_know(
    progress: RunProgress, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunWatcher(make_console()).live_display() as watcher:
        watcher.update(progress)
    assert WRITTEN in capsys.readouterr().out


def test_a_bar_says_what_there_is_to_know(progress: RunProgress, capsys: pytest.CaptureFixture[str]) -> None:
    with RunWatcher(Console(force_terminal=True, width=200, color_system=None)).live_display() as watcher:
        watcher.update(progress)
    assert WRITTEN in capsys.readouterr().out
