"""`backfill coverage`: what is published against what is expected now."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from gated_backfill.common.config.settings import read_settings
from gated_backfill.common.errors import UserError
from gated_backfill.common.ledger import Ledger
from gated_backfill.common.model.coverage import format_percent
from gated_backfill.common.model.dates import ONE_DAY, DateRange, parse_date
from gated_backfill.common.model.registry import find_job, job_names
from gated_backfill.common.process.clock import today
from gated_backfill.producer.cli.options import EndDate, StartDate
from gated_backfill.producer.context import current_user, open_context
from gated_backfill.producer.planning.plan import parse_date_list, resolve_days
from gated_backfill.producer.terminal.exit_codes import COMPLETE, INCOMPLETE
from gated_backfill.producer.terminal.runs import make_console, print_json

if TYPE_CHECKING:
    from rich.console import Console

    from gated_backfill.common.audit.audit import FlagChanges
    from gated_backfill.common.audit.findings import AuditedDate, AuditResult

MAX_DATES_LISTED = 60  #: dates listed unless every one is asked for
STYLES = {
    "accepted": "yellow",
    "forced": "yellow",
    "held": "yellow",
    "complete": "green",
    "skipped": "dim",
}

JobName = Annotated[str | None, typer.Option("--job", help="The job to audit; `backfill jobs` lists them.")]
Dates = Annotated[
    list[str] | None,
    typer.Option("--dates", help="Dates instead of a range: 2023-02-23,2023-03-01..2023-03-05. May be repeated."),
]
LastDays = Annotated[
    int | None, typer.Option("--last-days", min=1, max=36500, help="So many days up to yesterday (UTC) instead.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON: every date with all its facts.")]
EveryDate = Annotated[bool, typer.Option("--every-date", help="A line for every date, the complete ones too.")]
FlagIncomplete = Annotated[
    bool,
    typer.Option(
        "--flag-incomplete",
        help="Record the incomplete, missing, duplicated and changed dates, which `backfill run --flagged` then builds "
        "anew, and take the flags off dates that are fine again. A forced date whose rows are still those that were "
        "committed is listed but not flagged: somebody decided it.",
    ),
]


def add_audit_commands(app: typer.Typer) -> None:
    app.command()(coverage)


def coverage(
    job: JobName = None,
    start_date: StartDate = None,
    end_date: EndDate = None,
    dates: Dates = None,
    last_days: LastDays = None,
    as_json: AsJson = False,
    every_date: EveryDate = False,
    flag_incomplete: FlagIncomplete = False,
) -> None:
    """Compare what is published with what is expected now, date by date, whoever wrote it.

    Changes nothing in the warehouse. Findings: complete; accepted (a little is missing, no more than the job accepts);
    incomplete; missing (no rows at all); duplicated (a key more than once); changed (the rows are not those that a run
    proved); forced (as somebody committed them); truth incomplete (what must be there is not known); held (a run is at
    it, not judged); skipped. Exit codes: 0 every date is complete, accepted, forced or skipped; 3 some are not.
    """
    from gated_backfill.common.audit.audit import audit_dates, record_audit

    days = resolve_audit_days(start_date, end_date, dates, last_days)
    if job is None:
        raise UserError(f"give --job; installed jobs: {', '.join(job_names())}")
    found = find_job(job)
    site = open_context(read_settings())
    audit = audit_dates(found, days, site.warehouse, site.ledger)
    recorded = record_audit(audit, site.ledger, current_user()) if flag_incomplete else None
    if as_json:
        print_json(_json(audit, recorded))
    else:
        console = make_console()
        print_audit(console, audit, every_date=every_date)
        print_next_steps(console, audit, recorded, site.ledger)
    raise typer.Exit(COMPLETE if audit.is_fine else INCOMPLETE)


def resolve_audit_days(
    start: str | None, end: str | None, dates: list[str] | None, last_days: int | None
) -> tuple[date, ...]:
    """The dates asked for in one of the three ways. Raises `UserError` for none, two, or a date in the future."""
    given = [bool(start or end), bool(dates), last_days is not None]
    if sum(given) != 1:
        raise UserError("give one of: --start-date and --end-date, --dates, --last-days")
    if last_days is not None:
        span = DateRange(start=today() - ONE_DAY * last_days, through=today() - ONE_DAY)
        return resolve_days(span, (), ())
    if dates:
        return resolve_days(None, parse_date_list(dates, "--dates"), ())
    if not (start and end):
        raise UserError("give both --start-date and --end-date")
    return resolve_days(DateRange(start=parse_date(start), through=parse_date(end)), (), ())


def print_audit(console: Console, audit: AuditResult, *, every_date: bool) -> None:
    """The counts in one line, then the dates that are not simply complete."""
    console.print(f"[bold]{escape(audit.summary())}[/bold]", soft_wrap=True)
    for note in audit.notes:
        console.print(f"  note: {escape(note)}", soft_wrap=True)
    shown = [one for one in audit.dates if every_date or one.finding.value not in ("complete", "skipped")]
    if not shown:
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("date", "finding", "matched", "share"):
        table.add_column(name, justify="right" if name in ("matched", "share") else "left", no_wrap=True)
    table.add_column("written by", no_wrap=True)
    table.add_column("why", overflow="fold")
    for one in shown if every_date else shown[:MAX_DATES_LISTED]:
        table.add_row(*_row(one), style=STYLES.get(one.finding.value, "bold red"))
    console.print(table)
    if len(shown) > MAX_DATES_LISTED and not every_date:
        console.print(f"and {len(shown) - MAX_DATES_LISTED} more: --every-date lists all")


def _row(one: AuditedDate) -> Sequence[str]:
    judged = one.finding.value not in ("held", "skipped")
    matched = f"{one.observed.matched}/{one.expected}" if judged else "-"
    share = format_percent(one.observed.matched, one.expected) if judged else "-"
    names = one.describe_missing()
    why = f"{one.reason}; {names}" if names else one.reason
    return [str(one.day), one.finding.value, matched, share, one.written_by, escape(why)]


def print_next_steps(console: Console, audit: AuditResult, recorded: FlagChanges | None, ledger: Ledger) -> None:
    """What was flagged, and what to do about what is wrong."""
    if recorded is not None:
        cleared = f"; {len(recorded.cleared)} flag(s) taken off, their dates are fine" if recorded.cleared else ""
        console.print(f"flagged: {len(recorded.flagged)} date(s){cleared}")
    if truthless := [one for one in audit.dates if one.finding.value == "truth incomplete"]:
        console.print(
            f"next: load what says who must be on {len(truthless)} date(s) with an incomplete truth", soft_wrap=True
        )
    if any(one.finding.value == "held" for one in audit.dates):
        console.print("next: audit the dates that a run holds again after its end: `backfill watch`")
    if not audit.dates_to_flag:
        return
    known = ledger.flags.list_open_flags(audit.job)
    if all(one.day in known for one in audit.dates_to_flag):
        console.print(f"next: backfill run --job {audit.job} --flagged", soft_wrap=True)
    else:
        console.print(
            f"next: the same command with --flag-incomplete, then: backfill run --job {audit.job} --flagged",
            soft_wrap=True,
        )


def _json(audit: AuditResult, recorded: FlagChanges | None) -> dict[str, object]:
    from gated_backfill.common.audit.findings import AuditFinding

    return {
        "job": audit.job,
        "fine": audit.is_fine,
        "summary": audit.summary(),
        "counts": {finding.value: len(audit.with_finding(finding)) for finding in AuditFinding},
        "notes": list(audit.notes),
        "flagged": [str(one.day) for one in recorded.flagged] if recorded else None,
        "flags_cleared": [str(day) for day in recorded.cleared] if recorded else None,
        "dates": [one.as_json() for one in audit.dates],
    }
