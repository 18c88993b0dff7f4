"""The command that looks back: what runs did over a period, and how that compares with the one before."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Sequence
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gated_backfill.common.config.settings import read_settings
from gated_backfill.common.errors import UserError
from gated_backfill.common.model.dates import ONE_DAY, DateRange
from gated_backfill.common.process.clock import midnight, today, utcnow
from gated_backfill.common.storage.files import check_writable, write_atomically
from gated_backfill.producer.context import open_context
from gated_backfill.producer.terminal.runs import make_console, print_json

if TYPE_CHECKING:
    from gated_backfill.common.ledger import Ledger, RunWithDates
    from gated_backfill.producer.context import CommandContext

MAX_DAYS = 36_600
STDOUT = "-"


def add_history_commands(app: typer.Typer) -> None:
    app.command()(history)


def history(
    days: Annotated[
        int, typer.Option("--days", min=1, max=MAX_DAYS, help="Runs that ended in so many days, today (UTC) included.")
    ] = 30,
    job: Annotated[str | None, typer.Option("--job", help="One job only, installed or not.  [default: all]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    as_csv: Annotated[
        str | None,
        typer.Option("--csv", metavar="FILE", help="Write a line for each run and date, all facts; - prints them."),
    ] = None,
    as_html: Annotated[
        str | None,
        typer.Option(
            "--html", metavar="FILE", help="Write one page that needs no network: coverage, sources, durations."
        ),
    ] = None,
    write_metadata: Annotated[
        bool,
        typer.Option(
            "--write-metadata",
            help="Write the warehouse's history table anew for these days; runs do so themselves at their end.",
        ),
    ] = False,
) -> None:
    """Show what runs did: coverage, fallbacks, blocked and forced dates, durations, and the trend.

    A run belongs to the day on which it ended, or was opened if it has not ended. The figures count what every run did
    with every date: a date that two runs built counts twice. Coverage is that of the dates that were judged, so skipped
    and failed ones don't count; the fallback rate is the share of published dates that hold rows of another source than
    the job's first. Runs that were undone since are counted and marked.
    """
    from gated_backfill.producer.history.report import HistoryReport

    if sum((as_json, as_csv == STDOUT)) > 1:
        raise UserError("give either --json or --csv -: both print")
    for where in (as_csv, as_html):
        _check_writable(where)  # before anything is written anywhere
    site = open_context(read_settings())
    now, before = _read(site.ledger, today(), days, job)
    found = HistoryReport(days=_days(today(), days), job=job, facts=now, before=before, made_at=utcnow())
    if write_metadata:
        _write_metadata(site, found.days, job)
    if as_csv is not None:
        _write(as_csv, _csv(now))
    if as_html is not None:
        from gated_backfill.producer.history.page import render_page

        _write(as_html, render_page(found))
    if as_json:
        print_json(found.as_json())
    elif as_csv is None and as_html is None and not write_metadata:
        from gated_backfill.producer.history.report import print_history

        print_history(make_console(), found)


def _days(last: date, count: int) -> DateRange:
    return DateRange(start=last - ONE_DAY * (count - 1), through=last)


def _read(ledger: Ledger, last: date, count: int, job: str | None) -> tuple[list[RunWithDates], list[RunWithDates]]:
    """The facts of the period, and those of the one before it."""
    this = _days(last, count)
    start, until = midnight(this.start), midnight(this.through + ONE_DAY)
    now = ledger.history.list_runs_with_dates(start, until, job=job)
    return now, ledger.history.list_runs_with_dates(start - (until - start), start, job=job)


def _write_metadata(site: CommandContext, days: DateRange, job: str | None) -> None:
    from gated_backfill.common.history.metadata import write_day

    if job is not None:
        raise UserError("--write-metadata writes whole days, with the runs of every job: leave out --job")
    console = make_console(stderr=True)
    facts = site.ledger.history.list_ended_runs_with_dates(midnight(days.start), midnight(days.through + ONE_DAY))
    ended = sorted({one.run.finished_at.date() for one in facts if one.run.finished_at is not None})
    for day in ended:
        console.print(write_day(site.ledger, site.warehouse, site.settings, day), soft_wrap=True)
    if not ended:
        console.print("no run ended in these days: nothing was written")


def _csv(facts: Sequence[RunWithDates]) -> str:
    from gated_backfill.common.history.metadata import COLUMNS, rows_of

    text = io.StringIO()
    writer = csv.DictWriter(text, list(COLUMNS), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _plain(value) for name, value in row.items()} for row in rows_of(facts))
    return text.getvalue()


def _plain(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    return value.isoformat() if isinstance(value, date | datetime) else value


def _write(where: str, text: str) -> None:
    if where == STDOUT:
        sys.stdout.write(text)
        return
    file = Path(where)
    try:
        write_atomically(file, text.encode())
    except OSError as exc:
        raise UserError(f"{file} can't be written: {exc.strerror}") from exc
    make_console(stderr=True).print(f"written: {file}", soft_wrap=True, markup=False)


def _check_writable(where: str | None) -> None:
    """Raises `UserError` for a file that can't be written."""
    if where in (None, STDOUT):
        return
    file = Path(where or "")
    try:
        if not file.absolute().parent.is_dir():
            raise UserError(f"{file} can't be written: there is no folder {file.parent}")
        if file.is_dir():
            raise UserError(f"{file} can't be written: it is a folder")
    except OSError as exc:  # of a name that no file can have
        raise UserError(f"{file} can't be written: {exc.strerror}") from exc
    check_writable(file.absolute().parent)
