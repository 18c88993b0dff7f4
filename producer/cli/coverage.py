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
from gated_backfill.common.model.coverage import percent
from gated_backfill.common.model.dates import ONE_DAY, DateRange, parse_date
from gated_backfill.common.model.registry import find_job, job_names
from gated_backfill.common.process.clock import today
from gated_backfill.producer.cli.options import End, Start
from gated_backfill.producer.context import open_site, requester
from gated_backfill.producer.planning.plan import input_list, requested_days
from gated_backfill.producer.terminal.exit_codes import COMPLETE, INCOMPLETE
from gated_backfill.producer.terminal.runs import make_console, print_json

if TYPE_CHECKING:
    from rich.console import Console

    from gated_backfill.common.audit.audit import Audit, Audited, Recorded

LINES_SHOWN = 60  #: dates listed unless every one is asked for
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
    start_date: Start = None,
    end_date: End = None,
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

    days = audited_days(start_date, end_date, dates, last_days)
    if job is None:
        raise UserError(f"give --job; installed jobs: {', '.join(job_names())}")
    found = find_job(job)
    site = open_site(read_settings())
    audit = audit_dates(found, days, site.warehouse, site.ledger)
    recorded = record_audit(audit, site.ledger, requester()) if flag_incomplete else None
    if as_json:
        print_json(_json(audit, recorded))
    else:
        console = make_console()
        print_audit(console, audit, every_date=every_date)
        print_next(console, audit, recorded, site.ledger)
    raise typer.Exit(COMPLETE if audit.is_fine else INCOMPLETE)


def audited_days(
    start: str | None, end: str | None, dates: list[str] | None, last_days: int | None
) -> tuple[date, ...]:
    """The dates asked for in one of the three ways. Raises `UserError` for none, two, or a date in the future."""
    given = [bool(start or end), bool(dates), last_days is not None]
    if sum(given) != 1:
        raise UserError("give one of: --start-date and --end-date, --dates, --last-days")
    if last_days is not None:
        span = DateRange(start=today() - ONE_DAY * last_days, through=today() - ONE_DAY)
        return requested_days(span, (), ())
    if dates:
        return requested_days(None, input_list(dates, "--dates"), ())
    if not (start and end):
        raise UserError("give both --start-date and --end-date")
    return requested_days(DateRange(start=parse_date(start), through=parse_date(end)), (), ())


def print_audit(console: Console, audit: Audit, *, every_date: bool) -> None:
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
    for one in shown if every_date else shown[:LINES_SHOWN]:
        table.add_row(*_row(one), style=STYLES.get(one.finding.value, "bold red"))
    console.print(table)
    if len(shown) > LINES_SHOWN and not every_date:
        console.print(f"and {len(shown) - LINES_SHOWN} more: --every-date lists all")


def _row(one: Audited) -> Sequence[str]:
    judged = one.finding.value not in ("held", "skipped")
    matched = f"{one.seen.matched}/{one.expected}" if judged else "-"
    share = percent(one.seen.matched, one.expected) if judged else "-"
    names = one.names_in_words()
    why = f"{one.reason}; {names}" if names else one.reason
    return [str(one.day), one.finding.value, matched, share, one.written_by, escape(why)]


def print_next(console: Console, audit: Audit, recorded: Recorded | None, ledger: Ledger) -> None:
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
    if not audit.to_flag:
        return
    known = ledger.flagged(audit.job)
    if all(one.day in known for one in audit.to_flag):
        console.print(f"next: backfill run --job {audit.job} --flagged", soft_wrap=True)
    else:
        console.print(
            f"next: the same command with --flag-incomplete, then: backfill run --job {audit.job} --flagged",
            soft_wrap=True,
        )


def _json(audit: Audit, recorded: Recorded | None) -> dict[str, object]:
    from gated_backfill.common.audit.audit import Finding

    return {
        "job": audit.job,
        "fine": audit.is_fine,
        "summary": audit.summary(),
        "counts": {finding.value: len(audit.of(finding)) for finding in Finding},
        "notes": list(audit.notes),
        "flagged": [str(one.day) for one in recorded.flagged] if recorded else None,
        "flags_cleared": [str(day) for day in recorded.cleared] if recorded else None,
        "dates": [one.as_json() for one in audit.dates],
    }
