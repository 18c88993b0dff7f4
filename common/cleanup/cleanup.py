"""Cleanup of stale rows, in this order: back up, verify the backup, delete, verify the deletion, record."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta

from gated_backfill.common.cleanup.expiry import drop_backups
from gated_backfill.common.cleanup.operation import (
    UNUSABLE_TABLE,
    CleanupContext,
    backup_checksum,
    backup_of,
    deleted_figures,
    fenced,
    move_operation,
    renew_lease,
    restored_days,
    retention_end,
    table_fingerprints,
    verify_backup,
)
from gated_backfill.common.cleanup.restore import complete_restore
from gated_backfill.common.cleanup.stale_rows import (
    StaleRows,
    check_no_job_targets,
    cutoff_of,
    deletion_objection,
    find_stale_rows,
)
from gated_backfill.common.cleanup.unrecorded import abandon_unless_deleted
from gated_backfill.common.config.settings import Settings
from gated_backfill.common.errors import BackfillError, BackupMissing, TableInUse, WarehouseUnavailable
from gated_backfill.common.ledger import Ledger, NewAlert
from gated_backfill.common.ledger.stores.cleanups import (
    STATES_WITH_BACKUP,
    CleanupOperation,
    CleanupState,
    NewCleanup,
    new_cleanup_id,
)
from gated_backfill.common.model.alert_kinds import AlertKind
from gated_backfill.common.model.dates import ALL_DATES, chunk_dates, format_dates
from gated_backfill.common.model.publication import Backup, BackupDate
from gated_backfill.common.model.tables import DatedTable
from gated_backfill.common.process.clock import utcnow
from gated_backfill.common.warehouse.protocol import ABSENT

DATES_PER_OPERATION = 3000  #: one BigQuery job may modify 4,000 partitions
BACKUP_ATTEMPTS = 3  #: of a table that is written to while it is backed up
MAX_KEY_LENGTH = 200  #: of an alert, in the ledger


@dataclass
class CleanupReport:
    """The result of a cleanup by table."""

    done: list[CleanupOperation] = field(default_factory=list[CleanupOperation])
    absent: list[str] = field(default_factory=list[str])  #: tables that do not exist
    refused: list[str] = field(default_factory=list[str])  #: reasons: a larger share is stale than one cleanup deletes
    busy: list[str] = field(default_factory=list[str])  #: reasons: another process works on the table
    failed: list[str] = field(default_factory=list[str])  #: errors

    def describe(self) -> list[str]:
        lines = [describe_operation(operation) for operation in self.done]
        lines += [f"{table} does not exist" for table in self.absent]
        lines += [f"refused: {reason}" for reason in self.refused]
        lines += self.busy + self.failed
        return lines or ["nothing is stale"]


def describe_operation(operation: CleanupOperation) -> str:
    """Return the result of an operation in one line."""
    table, note = operation.table_name, f" ({operation.error})" if operation.error else ""
    rows = f"{operation.rows} rows on {operation.dates} date(s)"
    if operation.state is CleanupState.ABANDONED:
        return f"{table}: operation {operation.id} was abandoned{note}"
    if operation.state is CleanupState.DAMAGED:
        return f"{table}: the backup of operation {operation.id} is damaged, {rows} are deleted{note}"
    if operation.state in (CleanupState.RESTORED, CleanupState.RESTORING):
        return f"{table}: the restore of {operation.id} was completed{note}"
    return f"{table}: {rows} deleted, operation {operation.id}{note}"


def clean(
    context: CleanupContext,
    tables: Sequence[DatedTable],
    *,
    today: date,
    days: int,
    max_share: float,
    skip_restored: bool = False,
) -> CleanupReport:
    """Finish interrupted operations, then delete the rows of each table dated more than `days` days before `today`.

    A table is refused if a larger share of its rows than `max_share` (0 to 1) is stale. `skip_restored` leaves out
    dates that were restored. A table that fails does not stop the others. Rows dated today or later, and rows without
    a verified backup, are never deleted. Raises `UserError` for a bad number of days and for a job's target.
    """
    cutoff = cutoff_of(today, days)
    check_no_job_targets(tables)
    report = CleanupReport()
    _finish_interrupted(context, report)
    for table in tables:
        try:
            _clean_table(table, context, report, cutoff, max_share, skip_restored)
        except TableInUse as exc:
            report.busy.append(str(exc))
        except BackfillError as exc:
            report.failed.append(str(exc))
    report.failed += drop_backups(context)
    return report


def _clean_table(
    table: DatedTable,
    context: CleanupContext,
    report: CleanupReport,
    cutoff: date,
    max_share: float,
    skip_restored: bool,
) -> None:
    restored = restored_dates(table, context.ledger)
    stale = find_stale_rows(table, context.warehouse, cutoff, restored, skip_restored=skip_restored)
    if not stale.exists:
        report.absent.append(str(table))
    elif objection := deletion_objection(stale, max_share):
        report.refused.append(objection)
    else:
        for days in chunk_dates(sorted(stale.rows_by_date), DATES_PER_OPERATION):
            report.done.append(_clean_dates(stale, days, context))


def restored_dates(table: DatedTable, ledger: Ledger, *, since: datetime | None = None) -> frozenset[date]:
    """Return the restored dates whose backup has not expired. The daily cleanup does not delete them again.

    With `since`, only those of operations that were restored after that time.
    """
    operations = ledger.cleanups.list_cleanups(states=STATES_WITH_BACKUP)
    return frozenset(
        day
        for operation in operations
        if operation.table_name == str(table)
        if since is None or (operation.restored_at is not None and operation.restored_at > since)
        for day in operation.restored_days
    )


def _check_not_restored(
    operation: CleanupOperation, stale: StaleRows, days: Sequence[date], context: CleanupContext
) -> None:
    """Abandon the operation, which excludes restores, if any of the days was restored after this process began.

    It may have been suspended for hours since then. Raises `TableInUse`.
    """
    if restored := restored_dates(stale.table, context.ledger, since=context.began).intersection(days):
        reason = f"{len(restored)} date(s) were restored after this cleanup began: {format_dates(sorted(restored))}"
        _abandon_or_release(operation.id, context, reason)
        raise TableInUse(
            f"{reason}; nothing was deleted: look at them, then repeat the cleanup", table=str(stale.table)
        )


def _clean_dates(stale: StaleRows, days: Sequence[date], context: CleanupContext) -> CleanupOperation:
    """Back up and delete the dates in one operation. Starts again if they are written to during the backup."""
    for _ in range(BACKUP_ATTEMPTS):
        operation = _open_operation(stale, days, context)
        _check_not_restored(operation, stale, days, context)
        try:
            dates = _back_up(operation, days, context)
        except BackfillError as exc:
            _abandon_or_release(operation.id, context, str(exc))
            _drop_late_backup(operation, context)
            raise
        if dates is None:
            renew_lease(operation, context)  # a process that was suspended past its lease deletes nothing any more
            _abandon_or_release(operation.id, context, "its dates were written to while they were backed up")
            continue
        try:
            return _delete(replace(operation, state=CleanupState.BACKED_UP), dates, context)
        except BackfillError as exc:
            context.ledger.cleanups.release_cleanup(operation.id, context.owner, str(exc))
            raise
    raise WarehouseUnavailable(
        f"another program wrote to the stale dates during each of {BACKUP_ATTEMPTS} backups, and nothing was deleted: "
        "stop it, then repeat `backfill cleanup`",
        table=str(stale.table),
    )


def _open_operation(stale: StaleRows, days: Sequence[date], context: CleanupContext) -> CleanupOperation:
    operation_id = new_cleanup_id()
    backup = Backup(id=operation_id, table=stale.table.name, date_column=stale.table.date_column)
    new = NewCleanup(
        id=operation_id,
        table_name=str(stale.table),
        date_column=stale.table.date_column,
        cutoff=stale.cutoff,
        rows=sum(stale.rows_by_date[day] for day in days),
        dates=len(days),
        oldest=min(days),
        newest=max(days),
        table_rows=stale.table_rows,
        backup=context.warehouse.backup_location(backup),
        requested_by=context.by,
        expires_at=utcnow() + timedelta(days=context.settings.cleanup_backup_days),
    )
    return context.ledger.cleanups.open_cleanup(new, context.owner, context.lease())


def _back_up(
    operation: CleanupOperation, days: Sequence[date], context: CleanupContext
) -> Mapping[date, BackupDate] | None:
    """Back up the days and return the dates of the backup.

    Return None if the table was written to meanwhile and differs from the backup.
    """
    backup = backup_of(operation)
    assert operation.expires_at is not None
    context.warehouse.back_up(backup, days, until=operation.expires_at)
    dates = context.warehouse.read_backup(backup)
    fingerprints = context.warehouse.fingerprints(backup.table, backup.date_column, days)
    if fingerprints != {day: backup_date.fingerprint for day, backup_date in dates.items()}:
        return None
    rows = sum(backup_date.rows for backup_date in dates.values())
    move_operation(operation, CleanupState.BACKED_UP, context, checksum=backup_checksum(dates), kept=dates, rows=rows)
    return dates


def _delete(operation: CleanupOperation, dates: Mapping[date, BackupDate], context: CleanupContext) -> CleanupOperation:
    """Delete the backed-up dates, and compare the row counts before and after."""
    backup = backup_of(operation)
    before = context.warehouse.row_counts(backup.table, backup.date_column, ALL_DATES)
    renew_lease(operation, context)
    # If this process was suspended past its lease, another one may have deleted and restored these dates by now: its
    # lease had a higher generation.
    with fenced(operation):
        context.warehouse.delete_backed_up(backup, dates, generation=operation.generation)
    after = context.warehouse.row_counts(backup.table, backup.date_column, ALL_DATES)
    restored = restored_days(operation, context)
    move_operation(
        operation,
        CleanupState.DELETED,
        context,
        error=_describe_deviations(dates, before, after, restored),
        restored_days=restored,
        expires_at=retention_end(operation, context),
        **deleted_figures(dates, [day for day in dates if day not in after]),
    )
    return context.ledger.cleanups.get_cleanup(operation.id)


def _describe_deviations(
    dates: Collection[date], before: Mapping[date, int], after: Mapping[date, int], restored: Collection[date]
) -> str | None:
    """Describe the dates that were not deleted, and other dates that lost rows; None without any."""
    rewritten = [day for day in dates if day in after and day not in restored]
    shrunk = [day for day, rows in before.items() if day not in dates and after.get(day, 0) < rows]
    notes: list[str] = []
    if restored:
        notes.append(
            f"{len(restored)} date(s) were restored after an earlier deletion and were not deleted again: "
            f"{format_dates(sorted(restored))}"
        )
    if rewritten:
        notes.append(
            f"{len(rewritten)} date(s) were written by another program after their backup and were not deleted: "
            f"{format_dates(rewritten)}"
        )
    if shrunk:
        notes.append(f"another process deleted rows of {len(shrunk)} other date(s): {format_dates(shrunk)}")
    return "; ".join(notes) or None


def _abandon_or_release(operation_id: str, context: CleanupContext, reason: str) -> None:
    """Abandon the operation if it is still planned: it has deleted nothing.

    In any other state release it, so that the next cleanup finishes it.
    """
    is_abandoned = context.ledger.cleanups.move_cleanup(
        operation_id, expect=CleanupState.PLANNED, to=CleanupState.ABANDONED, owner=context.owner, error=reason
    )
    if not is_abandoned:
        context.ledger.cleanups.release_cleanup(operation_id, context.owner, reason)


def _drop_late_backup(operation: CleanupOperation, context: CleanupContext) -> None:
    """Drop a backup that this process completed only after another one had abandoned the operation."""
    current = context.ledger.cleanups.get_cleanup(operation.id)
    if current.state is CleanupState.ABANDONED and current.backup is None:
        context.warehouse.drop_backup(backup_of(operation))


def _finish_interrupted(context: CleanupContext, report: CleanupReport) -> None:
    """Finish the operations whose process died or lost its lease."""
    for operation in context.ledger.cleanups.list_unfinished_cleanups():
        is_lost = context.ledger.heartbeats.is_lost
        claimed = context.ledger.cleanups.claim_cleanup(operation.id, context.owner, context.lease(), is_dead=is_lost)
        if claimed is None:
            continue
        try:
            report.done.append(_finish(claimed, context))
        except TableInUse as exc:
            report.busy.append(str(exc))
        except BackfillError as exc:
            context.ledger.cleanups.release_cleanup(claimed.id, context.owner, str(exc))
            report.failed.append(str(exc))


def _finish(operation: CleanupOperation, context: CleanupContext) -> CleanupOperation:
    if operation.state is CleanupState.PLANNED:
        abandon_unless_deleted(operation, context)
    elif operation.state is CleanupState.RESTORING:
        complete_restore(operation, context)
    else:
        _finish_deletion(operation, context)
    return context.ledger.cleanups.get_cleanup(operation.id)


def _finish_deletion(operation: CleanupOperation, context: CleanupContext) -> None:
    try:
        dates = verify_backup(operation, context)
    except BackupMissing as exc:
        # The rest of the backup is kept: rows may have been deleted before it was damaged.
        _stop_deletion(operation, context, CleanupState.DAMAGED, f"nothing more was deleted: {exc}")
        return
    try:
        _delete(operation, dates, context)
    except UNUSABLE_TABLE as exc:
        _stop_deletion(operation, context, CleanupState.DELETED, f"the deletion was not completed: {exc}")


def _stop_deletion(operation: CleanupOperation, context: CleanupContext, to: CleanupState, error: str) -> None:
    """End the deletion as it is. The backup is kept as long as that of any other."""
    current = table_fingerprints(operation, operation.kept, context)
    deleted = [day for day, fingerprint in current.items() if fingerprint == ABSENT]
    figures = deleted_figures(operation.kept, deleted) | {"restored_days": restored_days(operation, context)}
    move_operation(operation, to, context, error=error, expires_at=retention_end(operation, context), **figures)


def unusual_cleanup_alert(report: CleanupReport, settings: Settings, today: date) -> NewAlert | None:
    """Return the alert about a cleanup with very many deleted rows, a damaged backup or a refused table; else None.

    The key has the day, the operations and the refused tables: a refusal is reported once a day.
    """
    large = [
        operation
        for operation in report.done
        if operation.state is CleanupState.DELETED and operation.rows > settings.cleanup_unusual_rows
    ]
    damaged = [operation for operation in report.done if operation.state is CleanupState.DAMAGED]
    if not large and not damaged and not report.refused:
        return None
    restore = "backfill cleanup restore"
    lines = [f"{describe_operation(operation)}; to put them back: {restore} {operation.id}" for operation in large]
    lines += [
        f"{describe_operation(operation)}; to restore the intact dates: {restore} {operation.id} --intact"
        for operation in damaged
    ]
    lines += [f"nothing was deleted from {reason}" for reason in report.refused]
    if report.refused:
        lines.append("check them: backfill cleanup --dry-run; then, to delete them all: backfill cleanup --allow-large")
    titles = [f"{sum(operation.rows for operation in large)} stale rows deleted"] if large else []
    titles += [f"{len(damaged)} backup(s) damaged"] if damaged else []
    titles += [f"{len(report.refused)} table(s) refused"] if report.refused else []
    operation_ids = [operation.id for operation in [*large, *damaged]]
    refused_tables = [reason.split(":")[0] for reason in report.refused]
    return NewAlert(
        key=" ".join([AlertKind.CLEANUP_UNUSUAL, str(today), *operation_ids, *refused_tables])[:MAX_KEY_LENGTH],
        kind=AlertKind.CLEANUP_UNUSUAL,
        title=f"Cleanup: {', '.join(titles)}",
        lines=lines,
    )
