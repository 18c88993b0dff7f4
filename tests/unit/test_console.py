"""What others wrote is shown as they wrote it."""

from __future__ import annotations

import io
from contextlib import redirect_stderr

import pytest
from hypothesis import given
from rich.table import Table

from gated_backfill.common.ledger import RunProgress, RunState
from gated_backfill.common.ledger.states import DateState
from gated_backfill.common.process.printable_text import printable
from gated_backfill.producer.terminal.console import line, make_console, stack_lines, styled
from gated_backfill.producer.terminal.error_line import print_error
from gated_backfill.producer.terminal.watcher import RunWatcher
from tests.builders import a_run
from tests.texts import acting_characters, check_output, texts

WRITTEN = "no route to [::1/0] [/there] :warning:"


@pytest.fixture
def progress() -> RunProgress:
    return RunProgress(run=a_run(state=RunState.SUCCEEDED), counts={DateState.CHECKPOINTED: 3}, note=WRITTEN)


@given(text=texts)
@pytest.mark.parametrize("is_terminal", [False, True])
def test_whatever_is_printed_is_literal_and_on_one_line(text: str, is_terminal: bool) -> None:
    shown = printable(text)
    page = io.StringIO()
    console = make_console(file=page, force_terminal=is_terminal, color_system=None, width=20)

    console.print(text)
    console.print(f"found {text}", "here")
    console.print(line("found ", styled(text, "bold red"), text))

    found = [f"{shown}", f"found {shown} here", f"found {shown}{shown}"]
    assert [written.rstrip(" ") for written in page.getvalue().split("\n")] == [one.rstrip(" ") for one in found] + [""]


@given(text=texts)
def test_a_cell_of_a_table_forges_no_line(text: str) -> None:
    page = io.StringIO()
    table = Table("date", "reason", box=None)
    table.add_row("2023-02-23", text)
    table.add_row(styled(text, "red"), stack_lines(text, styled(text, "red")))

    make_console(file=page, width=80).print(table)

    assert acting_characters(page.getvalue()) == set()


def test_a_style_is_only_what_we_style() -> None:
    page = io.StringIO()

    make_console(file=page, force_terminal=True, color_system="standard").print(
        line("[red]a[/red] ", styled("b", "red"))
    )

    assert page.getvalue() == "[red]a[/red] \x1b[31mb\x1b[0m\n"


@given(text=texts)
def test_an_error_is_one_line(text: str) -> None:
    page = io.StringIO()
    with redirect_stderr(page):
        print_error(text)

    check_output(page.getvalue())
    assert len(page.getvalue().splitlines()) == 1


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
    with RunWatcher(make_console(force_terminal=True, width=200, color_system=None)).live_display() as watcher:
        watcher.update(progress)
    assert WRITTEN in capsys.readouterr().out
