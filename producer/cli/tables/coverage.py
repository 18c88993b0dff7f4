"""`backfill coverage`: audit published rows."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

import click
from rich.table import Table

from gated_backfill.common.audit.audit import FlagChanges, audit_dates, record_audit
from gated_backfill.common.audit.findings import AuditedDate, AuditFinding, AuditResult
from gated_backfill.common.config.settings import read_settings
from gated_backfill.common.errors import UserError
from gated_backfill.common.ledger import Ledger
from gated_backfill.common.model.coverage import format_percent
from gated_backfill.common.model.dates import DateRange, days_before, format_dates, parse_date
from gated_backfill.common.model.missing_names import MISSING_NAMES_SHOWN
from gated_backfill.common.model.registry import find_job, job_names
from gated_backfill.common.process.clock import today_in
from gated_backfill.common.process.printable_text import shorten
from gated_backfill.producer.cli.options import (
    dates_option,
    end_date_option,
    job_option,
    json_option,
    last_days_option,
    start_date_option,
)
from gated_backfill.producer.context import current_user, open_context
from gated_backfill.producer.planning.plan import parse_date_list, resolve_days
from gated_backfill.producer.terminal.console import Console, make_console, print_json, styled
from gated_backfill.producer.terminal.exit_codes import COMPLETE, INCOMPLETE

ALL_NAMES = 2**31  #: more than any date has entities: JSON is complete
MAX_DATES_LISTED = 60  #: dates listed without --every-date
FLAG_FIRST = "the same command with --flag-incomplete, then: "
STYLES = {
    AuditFinding.ACCEPTED: "yellow",
    AuditFinding.FORCED: "yellow",
    AuditFinding.IN_PROGRESS: "yellow",
    AuditFinding.COMPLETE: "green",
    AuditFinding.SKIPPED: "dim",
}


@click.command
@job_option
@start_date_option
@end_date_option
@dates_option
@last_days_option
@json_option
@click.option("--every-date", is_flag=True, help="A line for every date, including complete ones.")
@click.option(
    "--full",
    is_flag=True,
    help="Read all published rows, also those of which the warehouse's metadata tells that nothing has written them "
    "since they were last read. Where reading is free, this is always done.",
)
@click.option(
    "--flag-incomplete",
    is_flag=True,
    help="Flag the incomplete, missing, duplicated, invalid and changed dates for `backfill run --flagged`, and clear "
    "the flags of dates that are fine again. A forced date with unchanged rows is listed but not flagged, unless its "
    "rows are invalid or duplicated by the job's present columns.",
)
def coverage(
    job: str | None,
    start_date: str | None,
    end_date: str | None,
    dates: tuple[str, ...],
    last_days: int | None,
    as_json: bool,
    every_date: bool,
    full: bool,
    flag_incomplete: bool,
) -> None:
    """Compare the rows of each date, by any writer, with the current expectation.

    Changes nothing in the warehouse. Findings: complete; accepted (a little is missing, no more than the job accepts);
    incomplete; missing (no rows at all); duplicated (a key more than once); invalid (null keys, or nulls and values
    that the job's columns do not allow); changed (the rows differ from the checkpoint); forced (unchanged since they
    were forced); expectation incomplete (null entities, or the calendar, a floor, a checkpoint or rows say that more
    must be expected); in progress (an active run is working on the date); skipped. Dates are listed as stale whose
    job's version or rules, sources or inputs have changed since they were checkpointed, and as undone whose run was.
    Exit codes: 0 every date is complete, accepted, forced or skipped; 3 some are not.
    """
    if job is None:
        raise UserError(f"give --job; installed jobs: {', '.join(job_names())}")
    time_zone = find_job(job).time_zone(read_settings().timezone)
    days = resolve_audit_days(start_date, end_date, dates, last_days, today_in(time_zone))
    context = open_context(read_settings(), only_looks=not flag_incomplete)
    max_names = ALL_NAMES if as_json else MISSING_NAMES_SHOWN
    audit = audit_dates(
        find_job(job), days, context.warehouse, context.ledger, max_names=max_names, find_stale=True, reads_all=full
    )
    flags = record_audit(audit, context.ledger, current_user(context.settings)) if flag_incomplete else None
    if as_json:
        print_json(_audit_json(audit, flags))
    else:
        console = make_console()
        print_audit(console, audit, every_date=every_date)
        print_next_steps(console, audit, flags, context.ledger)
    raise SystemExit(COMPLETE if audit.is_fine else INCOMPLETE)


def resolve_audit_days(
    start: str | None, end: str | None, dates: Sequence[str], last_days: int | None, today: date
) -> tuple[date, ...]:
    """The dates given in exactly one of three ways. Raises `UserError` otherwise, and for future dates.

    `today` is the day after the last one of `last_days`.
    """
    if sum((bool(start or end), bool(dates), last_days is not None)) != 1:
        raise UserError("give one of: --start-date and --end-date, --dates, --last-days")
    if last_days is not None:
        return resolve_days(days_before(today, last_days), (), ())
    if dates:
        return resolve_days(None, parse_date_list(dates, "--dates"), ())
    if not (start and end):
        raise UserError("give both --start-date and --end-date")
    return resolve_days(DateRange(start=parse_date(start), through=parse_date(end)), (), ())


def print_audit(console: Console, audit: AuditResult, *, every_date: bool) -> None:
    """Print the counts in one line, then a table of the dates that are neither complete nor skipped."""
    console.print(styled(audit.summary(), "bold"))
    for note in audit.notes:
        console.print(f"  note: {shorten(note)}")
    unlisted = (AuditFinding.COMPLETE, AuditFinding.SKIPPED)
    dates = [
        audited
        for audited in audit.dates
        if every_date or audited.finding not in unlisted or audited.stale or audited.observed.undone
    ]
    if not dates:
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("date", "finding", "matched", "share"):
        table.add_column(name, justify="right" if name in ("matched", "share") else "left", no_wrap=True)
    table.add_column("written by", no_wrap=True)
    table.add_column("reason", overflow="fold")
    for audited in dates if every_date else dates[:MAX_DATES_LISTED]:
        table.add_row(*_table_row(audited), style=STYLES.get(audited.finding, "bold red"))
    console.print(table)
    if len(dates) > MAX_DATES_LISTED and not every_date:
        console.print(f"and {len(dates) - MAX_DATES_LISTED} more: --every-date lists all")


def _table_row(audited: AuditedDate) -> Sequence[str]:
    is_judged = audited.finding not in (AuditFinding.IN_PROGRESS, AuditFinding.SKIPPED)
    matched = f"{audited.observed.matched}/{audited.expected}" if is_judged else "-"
    share = format_percent(audited.observed.matched, audited.expected) if is_judged else "-"
    missing = audited.describe_missing()
    reason = "; ".join(part for part in (audited.reason, missing, audited.stale) if part)
    return [str(audited.day), audited.finding.value, matched, share, audited.written_by, shorten(reason)]


def print_next_steps(console: Console, audit: AuditResult, changes: FlagChanges | None, ledger: Ledger) -> None:
    """Print how the flags changed, and the commands that fix the findings."""
    if changes is not None:
        cleared = f"; cleared: {len(changes.cleared)} date(s) are fine again" if changes.cleared else ""
        console.print(f"flagged: {len(changes.flagged)} date(s){cleared}")
    if incomplete := audit.with_finding(AuditFinding.EXPECTATION_INCOMPLETE):
        console.print(f"next: load the expectation of {len(incomplete)} date(s) where it is incomplete")
    if audit.stale:
        days = format_dates(audited.day for audited in audit.stale)
        console.print(f"stale: {len(audit.stale)} date(s): {days}; `--reprocess stale` builds them")
    if audit.undone:
        days = format_dates(audited.day for audited in audit.undone)
        console.print(f"undone: {len(audit.undone)} date(s): {days}; `--reprocess undone` builds them")
    if audit.with_finding(AuditFinding.IN_PROGRESS):
        console.print("next: audit the dates of the active run again after its end: `backfill watch`")
    if not audit.dates_to_flag:
        return
    flagged_days = ledger.flags.list_open_flags(audit.job)
    first_step = "" if all(audited.day in flagged_days for audited in audit.dates_to_flag) else FLAG_FIRST
    console.print(f"next: {first_step}backfill run --job {audit.job} --flagged")


def _audit_json(audit: AuditResult, changes: FlagChanges | None) -> dict[str, object]:
    return {
        "job": audit.job,
        "fine": audit.is_fine,
        "summary": audit.summary(),
        "counts": {finding.value: len(audit.with_finding(finding)) for finding in AuditFinding},
        "stale": [{"day": str(audited.day), "reason": audited.stale} for audited in audit.stale],
        "undone": [audited.observed.undone.as_json() for audited in audit.undone if audited.observed.undone],
        "notes": list(audit.notes),
        "flagged": [str(audited.day) for audited in changes.flagged] if changes else None,
        "flags_cleared": [str(day) for day in changes.cleared] if changes else None,
        "dates": [audited.as_json() for audited in audit.dates],
    }
