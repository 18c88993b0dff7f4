"""Restore of a cleanup: put back all deleted dates or none; the caller may allow to leave some out."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import date

from gated_backfill.common.cleanup.operation import (
    CleanupContext,
    backup_of,
    fenced,
    move_operation,
    renew_lease,
    table_fingerprints,
    verify_backup,
)
from gated_backfill.common.cleanup.unrecorded import find_operation
from gated_backfill.common.errors import BackfillError, BackupMissing, QueryFailed, TableInUse, UserError
from gated_backfill.common.ledger.stores.cleanups import CleanupOperation, CleanupState
from gated_backfill.common.model.dates import format_dates
from gated_backfill.common.model.publication import BackupDate
from gated_backfill.common.process.clock import utcnow
from gated_backfill.common.warehouse.protocol import ABSENT


def check_restorable(operation: CleanupOperation, context: CleanupContext, *, intact_only: bool = False) -> None:
    """Raise `UserError` with the reason if the operation has nothing that can be put back."""
    reasons = {
        # A ledger that was restored from an older copy may have an operation as planned that has deleted rows.
        CleanupState.PLANNED: "is not finished: the next `backfill cleanup` finishes it",
        CleanupState.BACKED_UP: "is not finished: the next `backfill cleanup` finishes it",
        CleanupState.ABANDONED: "was abandoned and has deleted nothing",
        CleanupState.EXPIRED: "has expired: its backup was removed (BACKFILL_CLEANUP_BACKUP_DAYS)",
    }
    if not intact_only:
        reasons[CleanupState.DAMAGED] = "has a damaged backup: --intact restores the dates that are intact"
    reason = reasons.get(operation.state)
    has_deleted_nothing = operation.state is CleanupState.DELETED and not operation.dates
    if has_deleted_nothing and not _dates_to_restore(operation, context):
        reason = "was restored already" if operation.restored_days else "has deleted nothing"
    if operation.state is CleanupState.RESTORED and not _dates_to_restore(operation, context):
        reason = f"was restored already, by {operation.restored_by}"
    if reason:
        raise UserError(f"cleanup {operation.id} of {operation.table_name} {reason}")


def _dates_to_restore(operation: CleanupOperation, context: CleanupContext) -> frozenset[date]:
    """Return the backed up dates without rows in the table, or with others that were not written after a restore."""
    current = table_fingerprints(operation, operation.kept, context)
    return frozenset(
        day
        for day, backup_date in operation.kept.items()
        if current[day] == ABSENT or (current[day] != backup_date.fingerprint and day not in operation.restored_days)
    )


def restore(
    operation_id: str, context: CleanupContext, *, leave_written: bool = False, intact_only: bool = False
) -> CleanupOperation:
    """Put back the dates that the operation deleted, and return it.

    `leave_written` leaves out dates that have other rows by now, `intact_only` leaves out dates that are damaged in the
    backup. Both are stored with the operation, so that a later process finishes an interrupted restore in the same way.
    Dates that were left out can be restored later, until the backup expires.

    An operation that only the warehouse knows, because the ledger was restored from an older copy, is added to it.

    Raises `UserError` and changes nothing if there is nothing to put back, or a date has other rows by now;
    `BackupMissing` if the backup is damaged; `TableInUse` if another process is restoring it.
    """
    ledger = context.ledger.cleanups
    operation = find_operation(operation_id, context)
    check_restorable(operation, context, intact_only=intact_only)
    if operation.state is CleanupState.RESTORING:
        is_lost = context.ledger.heartbeats.is_lost
        if ledger.claim_cleanup(operation_id, context.owner, context.lease(), is_dead=is_lost) is None:
            raise TableInUse(f"operation {operation_id} is being restored already", table=operation.table_name)
    else:
        try:
            verify_backup(operation, context, intact_only=intact_only)
        except BackupMissing as exc:
            hint = "" if intact_only else "; --intact restores the dates that are intact"
            raise BackupMissing(f"{exc}{hint}") from exc
        move_operation(operation, CleanupState.RESTORING, context, leave_written=leave_written, intact_only=intact_only)
    moved = ledger.get_cleanup(operation_id)
    renew_lease(replace(moved, state=CleanupState.RESTORING), context)  # another process may have taken it over by now
    return complete_restore(moved, context)


def complete_restore(operation: CleanupOperation, context: CleanupContext) -> CleanupOperation:
    """Restore the dates of an operation that is in the state RESTORING and leased by this process.

    If it cannot be restored, it goes back to its state before.
    """
    intact: Mapping[date, BackupDate] = {}
    restored: frozenset[date] = frozenset()
    try:
        intact = verify_backup(operation, context, intact_only=operation.intact_only)
        dates = _without_dates_written_after_restore(operation, intact, context)
        renew_lease(operation, context)
        with fenced(operation):
            restored = context.warehouse.restore_backup(
                backup_of(operation), dates, generation=operation.generation, leave_written=operation.leave_written
            )
        rewritten = set(dates) - restored
        if not operation.leave_written:
            _check_all_restored(rewritten)
    except TableInUse:
        raise
    except (UserError, QueryFailed) as exc:
        to = _state_before_restore(operation, is_damaged=not operation.kept.keys() <= intact.keys())
        restored_days = operation.restored_days | restored
        move_operation(
            operation, to, context, error=f"the restore was not completed: {exc}", restored_days=restored_days
        )
        raise
    except BackfillError as exc:
        context.ledger.cleanups.release_cleanup(operation.id, context.owner, str(exc))
        raise
    move_operation(
        operation,
        CleanupState.RESTORED,
        context,
        restored_by=context.by,
        restored_at=utcnow(),
        error=_describe_omitted(rewritten, set(operation.kept) - set(intact)),
        restored_days=operation.restored_days | restored,
    )
    return context.ledger.cleanups.get_cleanup(operation.id)


def _without_dates_written_after_restore(
    operation: CleanupOperation, dates: Mapping[date, BackupDate], context: CleanupContext
) -> Mapping[date, BackupDate]:
    """Leave out the dates that were restored before, and have been written since: they are not restored again."""
    current = table_fingerprints(operation, operation.restored_days & dates.keys(), context)
    rewritten = {day for day, fingerprint in current.items() if fingerprint not in (ABSENT, dates[day].fingerprint)}
    return {day: backup_date for day, backup_date in dates.items() if day not in rewritten}


def _state_before_restore(operation: CleanupOperation, *, is_damaged: bool) -> CleanupState:
    if is_damaged:
        return CleanupState.DAMAGED
    return CleanupState.DELETED if operation.restored_at is None else CleanupState.RESTORED


def _check_all_restored(rewritten: Collection[date]) -> None:
    if rewritten:
        days = format_dates(sorted(rewritten))
        raise UserError(
            f"{len(rewritten)} date(s) were written by another program during the restore and are left as they are: "
            f"{days}; the other dates are restored; --leave-written completes the restore without these dates"
        )


def _describe_omitted(rewritten: Collection[date], damaged: Collection[date]) -> str | None:
    """Describe the dates that a restore left out, with the reason; None if it restored all."""
    notes: list[str] = []
    if rewritten:
        notes.append(f"{len(rewritten)} date(s) have other rows and were skipped: {format_dates(sorted(rewritten))}")
    if damaged:
        days = format_dates(sorted(damaged))
        notes.append(f"{len(damaged)} date(s) are damaged in the backup and not restored: {days}")
    return "; ".join(notes) or None
