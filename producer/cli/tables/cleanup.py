"""`backfill cleanup`: delete stale rows, restore them, list cleanups."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from gated_backfill.common.cleanup.cleanup import (
    CleanupReport,
    describe_operation,
    restored_dates,
    unusual_cleanup_alert,
)
from gated_backfill.common.cleanup.cleanup import clean as clean_tables
from gated_backfill.common.cleanup.operation import CleanupContext
from gated_backfill.common.cleanup.restore import check_restorable
from gated_backfill.common.cleanup.restore import restore as restore_operation
from gated_backfill.common.cleanup.stale_rows import (
    StaleRows,
    check_no_job_targets,
    cutoff_of,
    deletion_objection,
    find_stale_rows,
    local_today,
    tables_to_clean,
)
from gated_backfill.common.cleanup.unrecorded import find_operation, list_unknown_backups
from gated_backfill.common.config.ledger_url import SQLITE_PREFIX
from gated_backfill.common.config.settings import Settings, read_settings
from gated_backfill.common.errors import BackfillError, LedgerUnusable, UserError
from gated_backfill.common.ledger import Ledger, open_ledger
from gated_backfill.common.ledger.stores.cleanups import CleanupOperation
from gated_backfill.common.model.coverage import format_percent
from gated_backfill.common.model.dates import format_dates
from gated_backfill.common.model.publication import Backup
from gated_backfill.common.model.tables import DatedTable
from gated_backfill.common.process.clock import utcnow
from gated_backfill.common.process.printable_text import shorten
from gated_backfill.common.warehouse.backends import open_warehouse
from gated_backfill.common.warehouse.rate_limited import limit_rate
from gated_backfill.producer.cli.options import json_option, yes_option
from gated_backfill.producer.context import current_user, open_context
from gated_backfill.producer.terminal.console import confirm, make_console, print_json
from gated_backfill.producer.terminal.exit_codes import COMPLETE, INCOMPLETE

JSON_FIELDS = (
    *("id", "table_name", "cutoff", "rows", "dates", "oldest", "newest", "table_rows", "backup", "checksum"),
    *("requested_by", "created_at", "deleted_at", "restored_at", "restored_by", "expires_at", "error"),
)


@click.group(invoke_without_command=True)
@click.option("--dry-run", is_flag=True, help="Show what would be deleted. Changes nothing.")
@click.option(
    "--days", type=int, help="Rows older than this number of days are stale.  [default: BACKFILL_CLEANUP_DAYS or 7]"
)
@click.option("--table", "names", multiple=True, help="Clean this table only. May be repeated.")
@click.option("--allow-large", is_flag=True, help="Allow deleting more than BACKFILL_CLEANUP_MAX_SHARE of a table.")
@yes_option
@json_option
@click.pass_context
def cleanup(
    context: click.Context,
    dry_run: bool,
    days: int | None,
    names: tuple[str, ...],
    allow_large: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Delete stale rows of the tables that jobs declare and of BACKFILL_CLEANUP_TABLES, after a verified backup.

    Rows dated today or later are never deleted. `backfill cleanup restore ID` restores deleted rows until their backup
    expires (BACKFILL_CLEANUP_BACKUP_DAYS). A cleanup that was killed is finished by the next one.
    Exit codes: 0 done, 2 refused or failed, 3 done, with a note.
    """
    if context.invoked_subcommand is not None:
        return
    settings = read_settings()
    began = utcnow()  # before the preview: rows that are restored while the user reads it are not deleted
    tables, restored = _tables_and_restored_dates(settings, names)
    check_no_job_targets(tables)
    age = settings.cleanup_days if days is None else days
    cutoff = cutoff_of(local_today(settings), age)
    warehouse = limit_rate(
        open_warehouse(settings.warehouse_url, limits=settings.warehouse_limits), settings.query_rate_limit
    )
    stale = [find_stale_rows(stale_table, warehouse, cutoff, restored[stale_table]) for stale_table in tables]
    if not as_json:
        _print_preview(stale)
    max_share = 1.0 if allow_large else settings.cleanup_max_share
    objections = [objection for rows in stale if (objection := deletion_objection(rows, max_share))]
    if dry_run:
        if as_json:
            print_json({"dry_run": True, "tables": [rows.as_json() for rows in stale], "refused": objections})
        else:
            for objection in objections:
                make_console().print(f"would be refused without --allow-large: {objection}")
        raise SystemExit(COMPLETE)
    if objections:
        raise UserError(f"nothing was deleted: {'; '.join(objections)}: --allow-large deletes them anyway")
    cleanup_context = replace(_open_cleanup_context(settings), began=began)
    _delete(cleanup_context, tables, stale, age=age, max_share=max_share, yes=yes, as_json=as_json)


def _delete(
    context: CleanupContext,
    tables: Sequence[DatedTable],
    stale: Sequence[StaleRows],
    *,
    age: int,
    max_share: float,
    yes: bool,
    as_json: bool,
) -> None:
    settings = context.settings
    count = sum(rows.rows for rows in stale)
    unfinished = context.ledger.cleanups.list_unfinished_cleanups()
    if count or unfinished:
        finish = f" and finish {len(unfinished)} interrupted operation(s)" if unfinished else ""
        confirm(yes, f"Delete {count} row(s){finish}?", "deleted")
    today = local_today(settings)
    report = clean_tables(context, tables, today=today, days=age, max_share=max_share)
    if alert := unusual_cleanup_alert(report, settings, today):
        context.ledger.alerts.record_alert(alert)
    if as_json:
        print_json({"dry_run": False, "tables": [rows.as_json() for rows in stale], **_report_json(report)})
    else:
        _print_report(report)
    if problems := report.refused + report.busy + report.failed:
        outcome = f"{len(report.done)} operation(s) were carried out" if report.done else "nothing was deleted"
        raise UserError(f"{'; '.join(problems)}; {outcome}")
    raise SystemExit(INCOMPLETE if any(operation.error for operation in report.done) else COMPLETE)


@cleanup.command
@click.argument("operation", metavar="ID", help="The cleanup; `backfill cleanup list` shows them.")
@click.option("--leave-written", is_flag=True, help="Skip dates that were written since, and restore the rest.")
@click.option("--intact", is_flag=True, help="Skip dates whose backup is damaged, and restore the rest.")
@yes_option
def restore(operation: str, leave_written: bool, intact: bool, yes: bool) -> None:
    """Restore the rows that a cleanup deleted, byte for byte.

    Refuses when a date was written since, or when the backup is damaged. Dates that were skipped can be restored later.
    The daily cleanup skips restored dates until the backup expires.
    """
    context = _open_cleanup_context(read_settings())
    deleted = find_operation(operation, context)
    check_restorable(deleted, context, intact_only=intact)
    console = make_console()
    rows = (
        f"{deleted.rows} row(s) of {deleted.table_name} on {deleted.dates} date(s), {deleted.oldest}..{deleted.newest}"
    )
    console.print(f"restore of cleanup {operation}: {rows}")
    confirm(yes, "Restore them?", "restored")
    restored = restore_operation(operation, context, leave_written=leave_written, intact_only=intact)
    days = f"{len(restored.restored_days)} of {len(restored.kept)} date(s) of {restored.table_name}"
    console.print(f"restored: {days}{f' ({restored.error})' if restored.error else ''}")
    if restored.is_restorable:
        until = f"{restored.expires_at:%Y-%m-%d %H:%M} UTC"
        console.print(f"to restore the skipped dates, repeat `backfill cleanup restore {operation}` before {until}")


@cleanup.command("list")
@click.option("--last", type=click.IntRange(1, 1000), default=20, help="Number of cleanups, the latest first.")
@json_option
def list_operations(last: int, as_json: bool) -> None:
    """List cleanups: the deleted rows, the state, and the time until which they can be restored.

    Backups that only the warehouse knows, because the ledger was restored from an older copy, have the state `unknown`.
    """
    context = _open_cleanup_context(read_settings())
    operations = context.ledger.cleanups.list_cleanups(limit=last)
    unknown = _list_unknown_backups(context)
    if as_json:
        print_json([*map(_operation_json, operations), *map(_unknown_json, unknown)])
        return
    if operations:
        _print_operations(operations)
    elif not unknown:
        make_console().print("nothing was cleaned up yet: `backfill cleanup --dry-run` shows what is stale")
    for backup in unknown:
        make_console().print(
            f"{backup.table}: this ledger does not know cleanup {backup.id}, whose backup is in the warehouse: "
            f"`backfill cleanup restore {backup.id}` restores it"
        )


def _list_unknown_backups(context: CleanupContext) -> list[Backup]:
    try:
        return list_unknown_backups(context)
    except BackfillError as exc:
        console = make_console(stderr=True)
        console.print(f"the warehouse was not searched for backups that the ledger does not know: {exc}")
        return []


def _tables_and_restored_dates(
    settings: Settings, names: Sequence[str]
) -> tuple[tuple[DatedTable, ...], dict[DatedTable, frozenset[date]]]:
    """The tables to clean, all or only the named ones, and the restored dates of each.

    A ledger that does not exist yet is not created.
    """
    url = settings.ledger_url
    ledger = None
    if not url.startswith(SQLITE_PREFIX) or Path(url.removeprefix(SQLITE_PREFIX)).exists():
        with suppress(LedgerUnusable):  # an older version, without cleanups; the cleanup itself reports other errors
            ledger = open_ledger(url, create=False)
    try:
        tables = _select_tables(settings, ledger, names)
        return tables, {table: restored_dates(table, ledger) if ledger else frozenset() for table in tables}
    finally:
        if ledger is not None:
            ledger.close()


def _select_tables(settings: Settings, ledger: Ledger | None, names: Sequence[str]) -> tuple[DatedTable, ...]:
    """The tables to clean, or only the named ones. Raises `UserError` for any other name."""
    tables = {str(table): table for table in tables_to_clean(settings, ledger, names)}
    if unknown := [name for name in names if name not in tables]:
        raise UserError(
            f"{unknown[0]} is not one of the tables to clean, which are {', '.join(tables) or 'none'}: declare it in "
            f"the stale_tables of a job or in BACKFILL_CLEANUP_TABLES"
        )
    return tuple(tables[name] for name in dict.fromkeys(names or tables))


def _open_cleanup_context(settings: Settings) -> CleanupContext:
    context = open_context(settings)
    return CleanupContext(
        settings=settings, ledger=context.ledger, warehouse=context.warehouse, by=current_user(settings)
    )


def _print_preview(stale: Sequence[StaleRows]) -> None:
    preview = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("table", "rows", "dates", "oldest", "newest", "cutoff", "share"):
        is_text = name in ("table", "oldest", "newest", "cutoff")
        preview.add_column(name, justify="left" if is_text else "right", no_wrap=True)
    for rows in stale:
        days = rows.rows_by_date
        bounds = [str(min(days)), str(max(days))] if days else ["-", "-"]
        share = format_percent(rows.rows, rows.table_rows) if rows.exists else "does not exist"
        preview.add_row(str(rows.table), str(rows.rows), str(len(days)), *bounds, str(rows.cutoff), share)
    console = make_console()
    console.print(preview)
    for rows in stale:
        if rows.restored:
            console.print(
                f"{rows.table}: {len(rows.restored)} of these dates were restored, and the daily cleanup skips them: "
                f"{format_dates(rows.restored)}"
            )


def _print_report(report: CleanupReport) -> None:
    console = make_console()
    if not report.done:
        console.print("nothing was deleted")
    for operation in report.done:
        console.print(describe_operation(operation))


def _print_operations(operations: Sequence[CleanupOperation]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("cleanup", "table", "state", "rows", "dates", "oldest", "newest", "restorable until", "note"):
        is_number = name in ("rows", "dates")
        table.add_column(name, justify="right" if is_number else "left", no_wrap=name != "note")
    for operation in operations:
        table.add_row(
            operation.id,
            operation.table_name,
            operation.state.value,
            str(operation.rows),
            str(operation.dates),
            str(operation.oldest or "-"),
            str(operation.newest or "-"),
            f"{operation.expires_at:%Y-%m-%d %H:%M} UTC" if operation.is_restorable else "-",
            shorten(operation.error or ""),
        )
    make_console().print(table)


def _report_json(report: CleanupReport) -> dict[str, Any]:
    return {
        "operations": [_operation_json(operation) for operation in report.done],
        "absent": report.absent,
        "refused": report.refused,
        "busy": report.busy,
        "failed": report.failed,
    }


def _operation_json(operation: CleanupOperation) -> dict[str, Any]:
    values = {"state": operation.state.value} | {name: getattr(operation, name) for name in JSON_FIELDS}
    return values | {"restored_dates": sorted(operation.restored_days)}


def _unknown_json(backup: Backup) -> dict[str, Any]:
    known = {"state": "unknown", "id": backup.id, "table_name": str(backup.table)}
    return {"state": None} | dict.fromkeys(JSON_FIELDS) | {"restored_dates": []} | known
