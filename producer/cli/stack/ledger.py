"""`backfill ledger`: migrate the ledger, or rebuild a lost one from the warehouse."""

from __future__ import annotations

from collections.abc import Sequence

import click

from gated_backfill.common.config.settings import read_settings
from gated_backfill.common.ledger.migration import carry_out, plan_migration
from gated_backfill.common.model.dates import format_dates
from gated_backfill.common.model.registry import find_job, job_names
from gated_backfill.common.process.printable_text import shorten
from gated_backfill.producer.cli.options import (
    end_date_option,
    json_option,
    parse_open_range,
    single_job_option,
    start_date_option,
    yes_option,
)
from gated_backfill.producer.context import CommandContext, current_user, open_context
from gated_backfill.producer.runs.post_run import mark_run_reported
from gated_backfill.producer.runs.rebuild import Rebuild, plan_rebuild, release_interrupted_rebuilds, write_checkpoints
from gated_backfill.producer.terminal.console import Console, confirm, make_console, print_json
from gated_backfill.producer.terminal.exit_codes import COMPLETE, INCOMPLETE
from gated_backfill.producer.terminal.progress import progress_bar

MAX_DATES_LISTED = 60  #: unproven dates listed without --every-date


@click.group
def ledger() -> None:
    """The ledger: the database of runs, dates and checkpoints."""


@ledger.command
@click.option("--dry-run", is_flag=True, help="Show what would change, and what uses the ledger. Changes nothing.")
@click.option("--yes", "-y", is_flag=True, help="Migrate even if processes that are connected could not go on.")
@json_option
def migrate(dry_run: bool, yes: bool, as_json: bool) -> None:
    """Create the ledger's tables, or migrate those of an older version.

    Shows which processes of which version use the ledger (PostgreSQL). They go on with the migrated tables if only
    columns or tables were added; if some could not, the command refuses. Commands that launch runs migrate a SQLite
    file by themselves; one in PostgreSQL is migrated by this command, and by `tables create`, only.
    """
    url = read_settings().ledger_url
    planned = plan_migration(url)
    console = make_console(stderr=as_json)
    for line in planned.describe():
        console.print(line)
    if not dry_run and planned.is_needed:
        carry_out(planned, url, exclude=yes)
        console.print("migrated")
    if as_json:
        print_json({"dry_run": dry_run, **planned.as_json()})


@ledger.command
@single_job_option
@start_date_option
@end_date_option
@click.option("--add-missing", is_flag=True, help="Add only checkpoints of dates that have none in the ledger.")
@click.option("--dry-run", is_flag=True, help="Show what can be proven. Changes nothing.")
@click.option("--every-date", is_flag=True, help="List every date that cannot be proven.")
@yes_option
@json_option
def rebuild(
    job: str | None,
    start_date: str | None,
    end_date: str | None,
    add_missing: bool,
    dry_run: bool,
    every_date: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Make the checkpoints of a lost ledger again, from what the warehouse proves.

    A date is proven if its rows are those that a run published, as the warehouse's records of publications and of runs
    (BACKFILL_METADATA_TABLE) say, and if they satisfy the expectation as it is now, as `coverage` checks it. Its
    checkpoint says what was recorded of it; if it is not known which version of the job built it, the date is stale.
    All other dates are listed with the reason, get no checkpoint, and are built by the next run.

    A checkpoint that the ledger has is never replaced, and dates of active runs are left alone. Runs, orders and alerts
    of before do not come back; `undo` of a run of before is not possible, `backfill kept restore` is.
    Exit codes: 0 every date is proven; 2 refused, nothing changed; 3 some dates could not be proven.
    """
    dates = parse_open_range(start_date, end_date)
    context = open_context(read_settings(), only_looks=dry_run)
    console = make_console(stderr=as_json)
    jobs = [find_job(name) for name in ([job] if job else job_names())]
    with progress_bar() as progress:
        if not dry_run:
            for of_job in jobs:
                release_interrupted_rebuilds(of_job, context)
        rebuilds = [plan_rebuild(of_job, dates, context, add_missing=add_missing, progress=progress) for of_job in jobs]
    for planned in rebuilds:
        _print_rebuild(console, planned, every_date=every_date)
    count = sum(len(planned.proven) for planned in rebuilds)
    unproven = sum(len(planned.unproven) for planned in rebuilds)
    if count and not dry_run:
        confirm(yes, f"Write {count} checkpoint(s)?", "written")
        unproven += _write(rebuilds, context, console)
    code = INCOMPLETE if unproven else COMPLETE
    if as_json:
        print_json({"dry_run": dry_run, "jobs": [planned.as_json() for planned in rebuilds], "exit_code": code})
    raise SystemExit(code)


def _write(rebuilds: Sequence[Rebuild], context: CommandContext, console: Console) -> int:
    """Write the checkpoints; return the number of dates that something has changed meanwhile."""
    changed_count = 0
    for planned in rebuilds:
        if not planned.proven:
            continue
        with progress_bar() as progress:
            run, changed = write_checkpoints(planned, context, current_user(context.settings), progress)
        mark_run_reported(run.id, context)
        written = len(planned.proven) - len(changed)
        console.print(f"{planned.job.name}: {written} checkpoint(s) written, as those of run {run.id}")
        if changed:
            console.print(f"  something else has changed {format_dates(changed)} meanwhile: no checkpoint")
        changed_count += len(changed)
    return changed_count


def _print_rebuild(console: Console, planned: Rebuild, *, every_date: bool) -> None:
    """Print what can be proven, and every date that cannot with its reason."""
    if not planned.count:
        present = f"{len(planned.present)} date(s) have a checkpoint" if planned.present else "no date was ever built"
        console.print(f"{planned.job.name}: nothing to rebuild: {present}")
        return
    days = f": {format_dates(planned.proven)}" if planned.proven else ""
    console.print(f"{planned.job.name}: {len(planned.proven)} of {planned.count} date(s) are proven{days}")
    if planned.present:
        console.print(f"  {len(planned.present)} date(s) have a checkpoint, which stays as it is")
    if planned.skipped:
        console.print(
            f"  {len(planned.skipped)} date(s) need none, as the job skips them: {format_dates(planned.skipped)}"
        )
    if without := planned.without_version:
        console.print(
            f"  {len(without)} date(s) will be stale, as it is not known which version of the job built them: "
            f"{format_dates(without)}"
        )
    if not planned.unproven:
        return
    console.print(f"  {len(planned.unproven)} date(s) could not be proven, and get no checkpoint:")
    listed = list(planned.unproven.items())
    for day, reason in listed if every_date else listed[:MAX_DATES_LISTED]:
        console.print(f"  {day}  {shorten(reason)}")
    if len(listed) > MAX_DATES_LISTED and not every_date:
        console.print(f"  and {len(listed) - MAX_DATES_LISTED} more: --every-date lists all")
