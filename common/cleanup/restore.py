"""Restore of a cleanup: put back all deleted dates or none; the caller may allow to leave some out."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import date

from gated_backfill.common.cleanup.operation import (
    CleanupContext,
    backup_of,
    move_operation,
    renew_lease,
    verify_backup,
)
from gated_backfill.common.errors import BackfillError, BackupMissing, TableInUse, UserError
from gated_backfill.common.ledger.stores.cleanups import CleanupOperation, CleanupState
from gated_backfill.common.model.dates import format_dates
from gated_backfill.common.model.publication import BackupDate
from gated_backfill.common.process.identity import is_dead


def check_restorable(operation: CleanupOperation, *, intact_only: bool = False) -> None:
    """Raise `UserError` with the reason if the operation has nothing that can be put back."""
    reasons = {
        CleanupState.PLANNED: "has deleted nothing",
        CleanupState.BACKED_UP: "is not finished: the next `backfill cleanup` finishes it",
        CleanupState.ABANDONED: "was abandoned and has deleted nothing",
        CleanupState.RESTORED: f"was restored already, by {operation.restored_by}",
        CleanupState.EXPIRED: "has expired: its backup was removed (BACKFILL_CLEANUP_BACKUP_DAYS)",
    }
    if not intact_only:
        reasons[CleanupState.DAMAGED] = "has a damaged backup: --intact restores the dates that are intact"
    reason = reasons.get(operation.state)
    if operation.state is CleanupState.DELETED and not operation.dates:
        reason = "has deleted nothing"
    if reason:
        raise UserError(f"cleanup {operation.id} of {operation.table_name} {reason}")


def restore(
    operation_id: str, context: CleanupContext, *, leave_written: bool = False, intact_only: bool = False
) -> CleanupOperation:
    """Put back the dates that the operation deleted, and return it.

    `leave_written` leaves out dates that have other rows by now, `intact_only` leaves out dates that are damaged in the
    backup. Both are stored with the operation, so that a later process finishes an interrupted restore in the same way.
    Raises `UserError` and changes nothing if there is nothing to put back, or a date has other rows by now;
    `BackupMissing` if the backup is damaged; `TableInUse` if another process is restoring it.
    """
    ledger = context.ledger.cleanups
    operation = ledger.get_cleanup(operation_id)
    check_restorable(operation, intact_only=intact_only)
    if operation.state is CleanupState.RESTORING:
        if ledger.claim_cleanup(operation_id, context.owner, context.lease(), is_dead=is_dead) is None:
            raise TableInUse(f"operation {operation_id} is being restored already", table=operation.table_name)
    else:
        try:
            verify_backup(operation, context, intact_only=intact_only)
        except BackupMissing as exc:
            hint = "" if intact_only else "; --intact restores the dates that are intact"
            raise BackupMissing(f"{exc}{hint}") from exc
        move_operation(operation, CleanupState.RESTORING, context, leave_written=leave_written, intact_only=intact_only)
    return complete_restore(ledger.get_cleanup(operation_id), context)


def complete_restore(operation: CleanupOperation, context: CleanupContext) -> CleanupOperation:
    """Restore the dates of an operation that is in the state RESTORING and leased by this process."""
    dates: Mapping[date, BackupDate] = {}
    try:
        dates = verify_backup(operation, context, intact_only=operation.intact_only)
        renew_lease(operation, context)
        restored = context.warehouse.restore_backup(backup_of(operation), dates, leave_written=operation.leave_written)
        rewritten = set(dates) - restored
        if not operation.leave_written:
            _check_all_restored(rewritten)
    except TableInUse:
        raise
    except UserError as exc:
        is_damaged = set(dates) != set(operation.kept)
        to = CleanupState.DAMAGED if is_damaged else CleanupState.DELETED
        move_operation(operation, to, context, error=f"not restored: {exc}")
        raise
    except BackfillError as exc:
        context.ledger.cleanups.release_cleanup(operation.id, context.owner, str(exc))
        raise
    move_operation(
        operation,
        CleanupState.RESTORED,
        context,
        restored_by=context.by,
        error=_describe_omitted(rewritten, set(operation.kept) - set(dates)),
        kept={day: dates[day] for day in restored},
    )
    return context.ledger.cleanups.get_cleanup(operation.id)


def _check_all_restored(rewritten: Collection[date]) -> None:
    if rewritten:
        days = format_dates(sorted(rewritten))
        raise UserError(f"{len(rewritten)} date(s) were written meanwhile and are left alone: {days}")


def _describe_omitted(rewritten: Collection[date], damaged: Collection[date]) -> str | None:
    """Describe the dates that a restore left out, with the reason; None if it restored all."""
    notes = [f"{len(rewritten)} date(s) were left as they are: {format_dates(sorted(rewritten))}"] if rewritten else []
    if damaged:
        days = format_dates(sorted(damaged))
        notes.append(f"{len(damaged)} date(s) are damaged in the backup and not restored: {days}")
    return "; ".join(notes) or None
