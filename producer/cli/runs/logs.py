"""`backfill logs`: the log lines of a run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from datetime import date
from pathlib import Path
from typing import Any

import click

from gated_backfill.common.config.settings import read_settings
from gated_backfill.common.errors import UserError
from gated_backfill.common.ledger import DateRow, open_ledger_of_command
from gated_backfill.common.model.dates import parse_date
from gated_backfill.common.process.printable_text import CONTINUATION, shorten
from gated_backfill.producer.cli.options import json_option, run_argument
from gated_backfill.producer.terminal.console import Console, make_console, print_json

FIXED_FIELDS = ("timestamp", "level", "event", "exception", "run")  #: not printed among the other fields of a line


@click.command
@run_argument
@click.argument("day", required=False, metavar="[DATE]", help="One date.  [default: all dates]")
@json_option
def logs(run_id: str, day: str | None, as_json: bool) -> None:
    """Show the log lines of a run or of one of its dates, with tracebacks, and the errors in the ledger.

    Reads the log files in BACKFILL_HOME: of commands, embedded workers and `backfill up`. Workers that
    were started in another way (containers, `celery worker`) log to their standard error.
    """
    settings = read_settings()
    selected_day = parse_date(day) if day is not None else None
    with closing(open_ledger_of_command(settings.ledger_url, only_looks=True)) as ledger:
        run = ledger.runs.get_run(run_id)
        dates = ledger.dates.list_dates(run.id, days=None if selected_day is None else [selected_day])
    if not dates:
        raise UserError(f"run {run.id} has no date {selected_day}")
    rows = [row for row in dates if row.error]
    files = sorted((settings.home / "logs").glob("*.log"))
    lines = sorted(
        (line for file in files for line in _read_lines(file, run.id, selected_day)), key=lambda line: line["timestamp"]
    )
    if as_json:
        errors = [{"day": row.day, "attempt": row.attempt, "kind": row.error_kind, "error": row.error} for row in rows]
        print_json({"run": run.id, "lines": lines, "errors": errors, "files": [str(file) for file in files]})
        return
    console = make_console()
    for line in lines:
        _print_line(console, line)
    _print_errors(console, rows)
    searched = ", ".join(str(file) for file in files) or f"no log file in {settings.home / 'logs'}"
    console.print(f"{len(lines)} line(s); searched: {searched}")
    if not lines:
        console.print("workers that run elsewhere log to their own standard error")


def _read_lines(file: Path, run_id: str, day: date | None) -> Iterator[dict[str, Any]]:
    """The JSON lines of a log file about the run and, if `day` is set, about that day."""
    with file.open(encoding="utf-8", errors="replace") as stream:
        for text in stream:
            if run_id not in text:
                continue
            try:
                line = json.loads(text)
            except ValueError:  # output of a library, or an incomplete line of a killed process
                continue
            if not isinstance(line, dict) or line.get("run") != run_id:
                continue
            if day is None or _concerns(line, str(day)):
                yield {"timestamp": "", **line, "file": file.name}


def _concerns(line: dict[str, Any], day: str) -> bool:
    """Whether a line is about the day: alone, in a list, or in a range like `2023-02-23..2023-03-24 (30 dates)`."""
    days = line.get("day") or line.get("dates") or line.get("days") or ()
    if not isinstance(days, str):
        return day in days
    start, _, through = days.partition(" ")[0].partition("..")
    return start <= day <= (through or start)


def _print_line(console: Console, line: dict[str, Any]) -> None:
    fields = " ".join(f"{name}={shorten(str(value))}" for name, value in line.items() if name not in FIXED_FIELDS)
    text = f"{line['timestamp']} {line.get('level', ''):<7} {line.get('event', '')}  {fields}"
    console.print(text)
    if "exception" in line:
        for text in str(line["exception"]).splitlines():
            console.print(f"{CONTINUATION}{shorten(text)}")


def _print_errors(console: Console, rows: list[DateRow]) -> None:
    for row in rows:
        text = f"{row.day}  attempt {row.attempt}  {row.error_kind}: {shorten(row.error or '')}"
        console.print(text)
