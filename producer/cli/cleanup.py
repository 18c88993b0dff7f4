"""The commands that clean up stale rows and put them back."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from gated_backfill.common.config.settings import Settings, read_settings
from gated_backfill.common.errors import LedgerUnusable, UserError
from gated_backfill.producer.cli.options import AsJson, Yes
from gated_backfill.producer.context import current_user, open_context
from gated_backfill.producer.terminal.exit_codes import COMPLETE, INCOMPLETE
from gated_backfill.producer.terminal.runs import make_console, print_json

if TYPE_CHECKING:
    from gated_backfill.common.cleanup.cleanup import CleanupReport
    from gated_backfill.common.cleanup.operation import CleanupContext
    from gated_backfill.common.cleanup.stale_rows import StaleRows
    from gated_backfill.common.ledger import Ledger
    from gated_backfill.common.ledger.stores.cleanups import CleanupOperation
    from gated_backfill.common.model.dated_tables import DatedTable


cleanup = typer.Typer(help="Delete stale rows, each backed up before, and put them back.")


def add_cleanup_commands(app: typer.Typer) -> None:
    app.add_typer(cleanup, name="cleanup")


@cleanup.callback(invoke_without_command=True)
def clean(
    context: typer.Context,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be deleted. Changes nothing.")] = False,
    days: Annotated[
        int | None,
        typer.Option(help="Rows dated more than so many days ago are stale.  [default: BACKFILL_CLEANUP_DAYS or 7]"),
    ] = None,
    table: Annotated[
        list[str] | None, typer.Option("--table", help="Only this one of the tables. May be repeated.")
    ] = None,
    allow_large: Annotated[
        bool,
        typer.Option("--allow-large", help="Delete also more of a table than BACKFILL_CLEANUP_MAX_SHARE (a half)."),
    ] = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Delete stale rows of the tables that jobs declare and of BACKFILL_CLEANUP_TABLES, after a verified backup.

    Rows dated today or later are never deleted. What is deleted can be put back with `backfill cleanup restore ID`
    until its backup expires (BACKFILL_CLEANUP_BACKUP_DAYS). A cleanup that was killed is finished by the next one.
    Exit codes: 0 done, 2 refused, 3 some of it was not done.
    """
    if context.invoked_subcommand is not None:
        return
    from gated_backfill.common.cleanup.stale_rows import (
        check_no_job_targets,
        cutoff_of,
        deletion_objection,
        find_stale_rows,
        local_today,
    )
    from gated_backfill.common.warehouse import open_warehouse
    from gated_backfill.common.warehouse.rate_limited import limit_rate

    settings = read_settings()
    tables, restored = _tables_and_restored_dates(settings, table or [])
    check_no_job_targets(tables)
    cutoff = cutoff_of(local_today(settings), settings.cleanup_days if days is None else days)
    opened = open_warehouse(settings.warehouse_url, limits=settings.warehouse_limits)
    warehouse = limit_rate(opened, settings.query_rate_limit)
    found = [find_stale_rows(one, warehouse, cutoff, restored[one]) for one in tables]
    if not as_json:
        _print_preview(found)
    max_share = 1.0 if allow_large else settings.cleanup_max_share
    objections = [why for one in found if (why := deletion_objection(one, max_share))]
    if dry_run:
        if as_json:
            print_json({"dry_run": True, "tables": [one.as_json() for one in found], "refused": objections})
        else:
            for why in objections:
                make_console().print(f"would be refused without --allow-large: {escape(why)}", soft_wrap=True)
        raise typer.Exit(COMPLETE)
    if objections:
        raise UserError(f"nothing was deleted: {'; '.join(objections)}: --allow-large deletes them all the same")
    _carry_out(settings, tables, found, days=days, max_share=max_share, yes=yes, as_json=as_json)


def _carry_out(
    settings: Settings,
    tables: Sequence[DatedTable],
    found: Sequence[StaleRows],
    *,
    days: int | None,
    max_share: float,
    yes: bool,
    as_json: bool,
) -> None:
    from gated_backfill.common.cleanup.cleanup import clean as carry_out
    from gated_backfill.common.cleanup.cleanup import unusual_cleanup_alert
    from gated_backfill.common.cleanup.stale_rows import local_today

    rows = sum(one.rows for one in found)
    site = _site(settings)
    if rows or site.ledger.cleanups.list_unfinished_cleanups():
        _ask(yes, f"Delete {rows} row(s)?", "deleted")
    today = local_today(settings)
    age = settings.cleanup_days if days is None else days
    report = carry_out(site, tables, today=today, days=age, max_share=max_share)
    if alert := unusual_cleanup_alert(report, settings, today):
        site.ledger.alerts.record_alert(alert)
    if as_json:
        print_json({"dry_run": False, "tables": [one.as_json() for one in found], **_report_json(report)})
    else:
        _print_report(report)
    if report.refused or report.busy or report.failed:
        done = f"; {len(report.done)} operation(s) were carried out" if report.done else "; nothing was deleted"
        raise UserError(f"{'; '.join(report.refused + report.busy + report.failed)}{done}")
    raise typer.Exit(INCOMPLETE if any(one.error for one in report.done) else COMPLETE)


@cleanup.command()
def restore(
    operation: Annotated[str, typer.Argument(metavar="ID", help="The cleanup; `backfill cleanup list` shows them.")],
    leave_written: Annotated[
        bool,
        typer.Option("--leave-written", help="Leave dates alone that hold other rows by now, and restore the rest."),
    ] = False,
    intact: Annotated[
        bool,
        typer.Option("--intact", help="Leave out dates that are damaged in the backup, and restore the rest."),
    ] = False,
    yes: Yes = False,
) -> None:
    """Put back what a cleanup deleted, byte for byte. Refuses when a date was written since, or a backup is damaged.

    The daily cleanup leaves restored dates alone until the backup expires.
    """
    from gated_backfill.common.cleanup.restore import check_restorable
    from gated_backfill.common.cleanup.restore import restore as put_back

    site = _site(read_settings())
    found = site.ledger.cleanups.get_cleanup(operation)
    check_restorable(found, intact_only=intact)
    console = make_console()
    where = f"{found.rows} row(s) of {found.table_name} on {found.dates} date(s), {found.oldest}..{found.newest}"
    console.print(f"restore of cleanup {operation}: {where}", soft_wrap=True)
    _ask(yes, "Put them back?", "restored")
    done = put_back(operation, site, leave_written=leave_written, intact_only=intact)
    console.print(f"restored: {where}{f' ({done.error})' if done.error else ''}", soft_wrap=True)


@cleanup.command(name="list")
def list_operations(
    last: Annotated[int, typer.Option("--last", min=1, max=1000, help="So many, the newest.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List cleanups: what each deleted, in which state it is, and until when it can be restored."""
    found = _site(read_settings()).ledger.cleanups.list_cleanups(limit=last)
    if as_json:
        print_json([_operation_json(one) for one in found])
    elif not found:
        make_console().print("nothing was cleaned up yet: `backfill cleanup --dry-run` shows what is stale")
    else:
        _print_operations(found)


# -- shared by the commands -----------------------------------------------------------------------------------


def _tables_and_restored_dates(
    settings: Settings, names: Sequence[str]
) -> tuple[tuple[DatedTable, ...], dict[DatedTable, frozenset[date]]]:
    """The tables to clean, all or those with these names, and the dates of each that were restored.

    A ledger that does not exist yet is not created.
    """
    from gated_backfill.common.cleanup.cleanup import restored_dates
    from gated_backfill.common.config.ledger_url import SQLITE_PREFIX
    from gated_backfill.common.ledger import open_ledger

    url = settings.ledger_url
    ledger = None
    if not url.startswith(SQLITE_PREFIX) or Path(url.removeprefix(SQLITE_PREFIX)).exists():
        with suppress(LedgerUnusable):  # of an older version, without cleanups; the cleanup itself reports other errors
            ledger = open_ledger(url, create=False)
    try:
        tables = _select_tables(settings, ledger, names)
        return tables, {table: restored_dates(table, ledger) if ledger else frozenset() for table in tables}
    finally:
        if ledger is not None:
            ledger.close()


def _select_tables(settings: Settings, ledger: Ledger | None, names: Sequence[str]) -> tuple[DatedTable, ...]:
    from gated_backfill.common.cleanup.stale_rows import tables_to_clean

    tables = {str(table): table for table in tables_to_clean(settings, ledger)}
    if unknown := [name for name in names if name not in tables]:
        raise UserError(
            f"{unknown[0]} is not one of the tables to clean, which are {', '.join(tables) or 'none'}: declare it in "
            f"the stale_tables of a job or in BACKFILL_CLEANUP_TABLES"
        )
    return tuple(tables[name] for name in dict.fromkeys(names)) if names else tuple(tables.values())


def _site(settings: Settings) -> CleanupContext:
    from gated_backfill.common.cleanup.operation import CleanupContext

    site = open_context(settings)
    return CleanupContext(settings=settings, ledger=site.ledger, warehouse=site.warehouse, by=current_user())


def _ask(yes: bool, question: str, done: str) -> None:
    if not yes and not sys.stdin.isatty():
        raise UserError(f"nothing was {done}: nobody is at a terminal to be asked, so say --yes")
    if not yes and not typer.confirm(question, err=True):
        raise UserError(f"nothing was {done}")


def _print_preview(found: Sequence[StaleRows]) -> None:
    from gated_backfill.common.model.coverage import format_percent
    from gated_backfill.common.model.dates import format_dates

    shown = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("table", "rows", "dates", "oldest", "newest", "cutoff", "of the table"):
        left = name in ("table", "oldest", "newest", "cutoff")
        shown.add_column(name, justify="left" if left else "right", no_wrap=True)
    for one in found:
        days = one.rows_by_date
        ends = [str(min(days)), str(max(days))] if days else ["-", "-"]
        share = format_percent(one.rows, one.table_rows) if one.exists else "does not exist"
        shown.add_row(str(one.table), str(one.rows), str(len(days)), *ends, str(one.cutoff), share)
    console = make_console()
    console.print(shown)
    for one in found:
        if one.restored:
            days = format_dates(one.restored)
            console.print(
                f"{one.table}: {len(one.restored)} of these dates were restored, and the daily cleanup leaves them "
                f"alone: {days}",
                soft_wrap=True,
            )


def _print_report(report: CleanupReport) -> None:
    console = make_console()
    if not report.done:
        console.print("nothing was deleted")
    from gated_backfill.common.cleanup.cleanup import describe_operation

    for one in report.done:
        console.print(escape(describe_operation(one)), soft_wrap=True)


def _print_operations(found: Sequence[CleanupOperation]) -> None:
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("cleanup", "table", "state", "rows", "dates", "oldest", "newest", "restorable until", "note"):
        right = name in ("rows", "dates")
        shown.add_column(name, justify="right" if right else "left", no_wrap=name != "note")
    for one in found:
        until = (
            f"{one.expires_at:%Y-%m-%d %H:%M} UTC"
            if one.expires_at and one.state.value in ("deleted", "damaged")
            else "-"
        )
        facts = [str(one.rows), str(one.dates), str(one.oldest or "-"), str(one.newest or "-")]
        shown.add_row(one.id, one.table_name, one.state.value, *facts, until, escape(one.error or ""))
    make_console().print(shown)


def _report_json(report: CleanupReport) -> dict[str, Any]:
    return {
        "operations": [_operation_json(one) for one in report.done],
        "absent": report.absent,
        "refused": report.refused,
        "busy": report.busy,
        "failed": report.failed,
    }


def _operation_json(one: CleanupOperation) -> dict[str, Any]:
    names = ("id", "table_name", "cutoff", "rows", "dates", "oldest", "newest", "table_rows", "backup", "checksum")
    more = ("requested_by", "created_at", "deleted_at", "restored_at", "restored_by", "expires_at", "error")
    return {"state": one.state.value} | {name: getattr(one, name) for name in (*names, *more)}
