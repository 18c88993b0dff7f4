"""Deletions that the ledger has no record of: it may have been restored from a copy that is older than they are."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from datetime import date, timedelta

from gated_backfill.common.cleanup.operation import (
    CleanupContext,
    backup_checksum,
    backup_of,
    deleted_figures,
    move_operation,
    restored_days,
    retention_end,
    table_fingerprints,
)
from gated_backfill.common.errors import BackupMissing, UserError
from gated_backfill.common.ledger.stores.cleanups import CleanupOperation, CleanupState, NewCleanup
from gated_backfill.common.model.dates import format_dates
from gated_backfill.common.model.publication import Backup, BackupDate
from gated_backfill.common.warehouse.protocol import ABSENT


def list_unknown_backups(context: CleanupContext) -> list[Backup]:
    """Return the backups of deleted rows whose operations the ledger does not have, newest first."""
    known = {operation.id for operation in context.ledger.cleanups.list_cleanups()}
    unknown = [context.warehouse.find_backup(id_) for id_ in context.warehouse.list_backup_ids() if id_ not in known]
    return [backup for backup in unknown if backup is not None and context.warehouse.deleted_at(backup) is not None]


def find_operation(operation_id: str, context: CleanupContext) -> CleanupOperation:
    """Return the operation. If only the warehouse knows its backup, it is added to the ledger.

    Raises `UserError` if neither knows it, and `TableInUse` if it has to be added while its table is being cleaned.
    """
    ledger = context.ledger.cleanups
    try:
        return ledger.get_cleanup(operation_id)
    except UserError:
        backup = context.warehouse.find_backup(operation_id)
        if backup is None or context.warehouse.deleted_at(backup) is None:
            raise
    operation = ledger.open_cleanup(_new_cleanup(backup, context), context.owner, context.lease())
    abandon_unless_deleted(operation, context)
    return ledger.get_cleanup(operation_id)


def _new_cleanup(backup: Backup, context: CleanupContext) -> NewCleanup:
    """Describe the operation by its backup. Raises `BackupMissing` if no date of it is intact."""
    dates = context.warehouse.read_backup(backup, intact_only=True)
    if not dates:
        raise BackupMissing(f"no date of the backup {backup.id} is intact", table=str(backup.table))
    rows = sum(backup_date.rows for backup_date in dates.values())
    deleted_at = context.warehouse.deleted_at(backup)
    assert deleted_at is not None
    return NewCleanup(
        id=backup.id,
        table_name=str(backup.table),
        date_column=backup.date_column,
        cutoff=max(dates) + timedelta(days=1),
        rows=rows,
        dates=len(dates),
        oldest=min(dates),
        newest=max(dates),
        table_rows=rows,
        backup=context.warehouse.backup_location(backup),
        requested_by=context.by,
        expires_at=deleted_at + timedelta(days=context.settings.cleanup_backup_days),
    )


def abandon_unless_deleted(operation: CleanupOperation, context: CleanupContext) -> None:
    """Abandon an operation that has deleted nothing.

    If its backup has rows that the table lacks, or that were put back, it counts as deleted.

    The ledger alone cannot tell: it may have been restored from a copy that is older than the deletion.
    """
    dates, is_damaged = _read_any_backup(operation, context)
    current = table_fingerprints(operation, dates, context)
    missing = [day for day, backup_date in dates.items() if current[day] != backup_date.fingerprint]
    restored = restored_days(operation, context)
    if not missing and not is_damaged and not restored:
        reason = "its process died before it deleted rows; nothing was deleted"
        move_operation(operation, CleanupState.ABANDONED, context, error=reason)
        return
    description = _describe_backup(missing, restored, is_damaged=is_damaged)
    move_operation(
        operation,
        CleanupState.DAMAGED if is_damaged else CleanupState.DELETED,
        context,
        checksum=backup_checksum(dates),
        kept=dates,
        error=f"the ledger has no record of a deletion, but {description}",
        restored_days=restored,
        expires_at=retention_end(operation, context),
        **deleted_figures(dates, [day for day in dates if current[day] == ABSENT]),
    )


def _read_any_backup(operation: CleanupOperation, context: CleanupContext) -> tuple[Mapping[date, BackupDate], bool]:
    """Return the intact dates of the operation's backup, none if it is incomplete, and whether others are damaged."""
    backup = backup_of(operation)
    with suppress(BackupMissing):
        return context.warehouse.read_backup(backup), False
    with suppress(BackupMissing):
        return context.warehouse.read_backup(backup, intact_only=True), True
    return {}, False


def _describe_backup(missing: Sequence[date], restored: Collection[date], *, is_damaged: bool) -> str:
    notes = [f"{len(missing)} date(s) of the backup are not in the table: {format_dates(missing)}"] if missing else []
    if restored:
        notes.append(f"{len(restored)} date(s) were restored from it: {format_dates(sorted(restored))}")
    if is_damaged:
        notes.append("the backup is damaged")
    return " and ".join(notes)
