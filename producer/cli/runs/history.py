"""`backfill history`: report the state now, then the runs of a period, compared with the period before."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any

import click

from gated_backfill.common.config.settings import read_settings
from gated_backfill.common.errors import UserError
from gated_backfill.common.history.metadata import COLUMNS, rows_of, write_day
from gated_backfill.common.ledger import Ledger, RunWithDates
from gated_backfill.common.model.dates import ONE_DAY, DateRange
from gated_backfill.common.process.clock import midnight, today, utcnow
from gated_backfill.common.process.printable_text import printable
from gated_backfill.common.runs.stale_dates import find_stale_dates_of_runs
from gated_backfill.common.storage.files import check_writable, write_atomically
from gated_backfill.producer.cli.options import json_option
from gated_backfill.producer.context import CommandContext, open_context
from gated_backfill.producer.history.now import read_now
from gated_backfill.producer.history.page import render_page
from gated_backfill.producer.history.report import HistoryReport, print_history
from gated_backfill.producer.terminal.console import make_console, print_json

MAX_DAYS = 36_600
STDOUT = "-"
FORMULA_STARTS = tuple("=+-@＝＋－＠")  #: how a spreadsheet recognises a formula, also in full width


@click.command
@click.option(
    "--days", type=click.IntRange(1, MAX_DAYS), default=30, help="Length of the period, which ends today (UTC)."
)
@click.option("--job", help="One job only, installed or not.  [default: all]")
@json_option
@click.option("--csv", "as_csv", metavar="FILE", help="Write one CSV line per date and run; - prints them.")
@click.option("--html", "as_html", metavar="FILE", help="Write one self-contained page: coverage, sources, durations.")
@click.option(
    "--write-metadata",
    is_flag=True,
    help="Rewrite the warehouse's history table for these days; runs write it at their end.",
)
def history(
    days: int, job: str | None, as_json: bool, as_csv: str | None, as_html: str | None, write_metadata: bool
) -> None:
    """Show the state now, then the coverage, fallbacks, blocked and forced dates, durations and trend of past runs.

    The state now: by job, the dates that are not complete, also of older runs, and the newest date; the living workers.
    A date is not complete from the run that left it blocked or failed until one checkpoints or skips it.

    A run belongs to the day on which it ended or, if it has not ended, was opened. The figures count dates per run: a
    date that two runs built counts twice. Coverage does not count skipped and failed dates. The fallback rate is the
    share of published dates with rows from a source other than the job's first. Undone runs are counted and marked.
    """
    if as_json and as_csv == STDOUT:
        raise UserError("give either --json or --csv -: both print")
    for output in (as_csv, as_html):
        _check_output(output)  # before writing any file
    context = open_context(read_settings(), only_looks=True)
    period = _period(today(), days)
    runs, runs_before = _read_runs(context.ledger, period, job)
    now = read_now(context.ledger, context.settings, job=job)
    stale = find_stale_dates_of_runs([row.run for row in runs], context.ledger, lambda: context.warehouse)
    report = HistoryReport(
        days=period,
        job=job,
        facts=runs,
        before=runs_before,
        stale=stale,
        usage=context.ledger.runs.sum_usage([row.run.id for row in runs]),
        made_at=utcnow(),
        now=now,
    )
    if write_metadata:
        _write_metadata(context, period, job)
    if as_csv is not None:
        _write_text(as_csv, _to_csv(runs))
    if as_html is not None:
        _write_text(as_html, render_page(report))
    if as_json:
        print_json(report.as_json())
    elif as_csv is None and as_html is None and not write_metadata:
        print_history(make_console(), report)


def _period(last: date, count: int) -> DateRange:
    return DateRange(start=last - ONE_DAY * (count - 1), through=last)


def _read_runs(ledger: Ledger, period: DateRange, job: str | None) -> tuple[list[RunWithDates], list[RunWithDates]]:
    """The runs of the period, and the runs of the equally long period before it."""
    start, until = midnight(period.start), midnight(period.through + ONE_DAY)
    runs = ledger.history.list_runs_with_dates(start, until, job=job)
    return runs, ledger.history.list_runs_with_dates(start - (until - start), start, job=job)


def _write_metadata(context: CommandContext, period: DateRange, job: str | None) -> None:
    if job is not None:
        raise UserError("--write-metadata writes whole days, with the runs of every job: leave out --job")
    console = make_console(stderr=True)
    start, until = midnight(period.start), midnight(period.through + ONE_DAY)
    finish_times = [row.run.finished_at for row in context.ledger.history.list_ended_runs_with_dates(start, until)]
    days = sorted({moment.date() for moment in finish_times if moment is not None})
    for day in days:
        console.print(write_day(context.ledger, context.warehouse, context.settings, day))
    if not days:
        console.print("no run ended in these days: nothing was written")


def _to_csv(runs: Sequence[RunWithDates]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(COLUMNS), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _format_cell(value) for name, value in row.items()} for row in rows_of(runs))
    return text.getvalue()


def _format_cell(value: Any) -> Any:
    """The value as a cell: on one line, and no formula if a spreadsheet opens the file."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        text = printable(value)
        return f"'{text}" if text.lstrip().startswith(FORMULA_STARTS) else text
    return value.isoformat() if isinstance(value, date | datetime) else value


def _write_text(output: str, text: str) -> None:
    if output == STDOUT:
        sys.stdout.write(text)
        return
    file = Path(output)
    try:
        write_atomically(file, text.encode())
    except OSError as exc:
        raise UserError(f"{file} can't be written: {exc.strerror}") from exc
    make_console(stderr=True).print(f"written: {file}")


def _check_output(output: str | None) -> None:
    """Raise `UserError` for a file that can't be written."""
    if output in (None, STDOUT):
        return
    file = Path(output or "")
    try:
        if not file.absolute().parent.is_dir():
            raise UserError(f"{file} can't be written: there is no folder {file.parent}")
        if file.is_dir():
            raise UserError(f"{file} can't be written: it is a folder")
    except OSError as exc:  # an impossible file name
        raise UserError(f"{file} can't be written: {exc.strerror}") from exc
    check_writable(file.absolute().parent)
