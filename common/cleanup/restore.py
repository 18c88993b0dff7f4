"""Putting back what a cleanup deleted: all of it, or nothing, unless some of it is to be left out."""

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
from gated_backfill.common.model.backup import BackupDate
from gated_backfill.common.model.dates import format_dates
from gated_backfill.common.process.identity import is_dead


def check_restorable(operation: CleanupOperation, *, intact_only: bool = False) -> None:
    """Raises `UserError`, saying why, unless the operation has something to put back."""
    refusals = {
        CleanupState.PLANNED: "has deleted nothing",
        CleanupState.BACKED_UP: "is not finished: the next `backfill cleanup` does that",
        CleanupState.ABANDONED: "was given up and has deleted nothing",
        CleanupState.RESTORED: f"was restored already, by {operation.restored_by}",
        CleanupState.EXPIRED: "has expired: its backup was removed (BACKFILL_CLEANUP_BACKUP_DAYS)",
    }
    if not intact_only:
        refusals[CleanupState.DAMAGED] = "has a damaged backup: --intact restores the dates that are intact"
    if why := refusals.get(operation.state):
        raise UserError(f"cleanup {operation.id} of {operation.table_name} {why}")
    if operation.state is CleanupState.DELETED and not operation.dates:
        raise UserError(f"cleanup {operation.id} of {operation.table_name} has deleted nothing")


def restore(
    operation_id: str, site: CleanupContext, *, leave_written: bool = False, intact_only: bool = False
) -> CleanupOperation:
    """Put back what the operation deleted, all of it or nothing.

    Unless dates written since are to be left alone, and dates that are damaged in the backup are to be left out; who
    completes the restoration after a death does the same. Raises `UserError`, and changes nothing, when there is
    nothing to put back, or dates hold other rows by now.
    """
    operation = site.ledger.cleanups.get_cleanup(operation_id)
    check_restorable(operation, intact_only=intact_only)
    if operation.state is CleanupState.RESTORING:
        taken = site.ledger.cleanups.claim_cleanup(operation_id, site.owner, site.lease(), is_dead=is_dead)
        if taken is None:
            raise TableInUse(f"operation {operation_id} is being restored already", table=operation.table_name)
    else:
        try:
            verify_backup(operation, site, intact_only=intact_only)
        except BackupMissing as exc:
            hint = "" if intact_only else "; --intact restores the dates that are intact"
            raise BackupMissing(f"{exc}{hint}") from exc
        move_operation(operation, CleanupState.RESTORING, site, leave_written=leave_written, intact_only=intact_only)
    return complete_restore(site.ledger.cleanups.get_cleanup(operation_id), site)


def complete_restore(operation: CleanupOperation, site: CleanupContext) -> CleanupOperation:
    """The restoration itself, of an operation that is ours."""
    kept: Mapping[date, BackupDate] = {}
    try:
        kept = verify_backup(operation, site, intact_only=operation.intact_only)
        renew_lease(operation, site)
        back = site.warehouse.restore_backup(backup_of(operation), kept, leave_written=operation.leave_written)
        if not operation.leave_written:
            _refuse_left(sorted(set(kept) - back))
    except TableInUse:
        raise
    except UserError as exc:
        damaged = set(kept) != set(operation.kept)
        to = CleanupState.DAMAGED if damaged else CleanupState.DELETED
        move_operation(operation, to, site, error=f"not restored: {exc}")
        raise
    except BackfillError as exc:
        site.ledger.cleanups.release_cleanup(operation.id, site.owner, str(exc))
        raise
    left, lost = set(kept) - back, set(operation.kept) - set(kept)
    restored = {day: kept[day] for day in back}
    move_operation(operation, CleanupState.RESTORED, site, restored_by=site.by, error=_notes(left, lost), kept=restored)
    return site.ledger.cleanups.get_cleanup(operation.id)


def _refuse_left(left: Collection[date]) -> None:
    if left:
        raise UserError(f"{len(left)} date(s) were written meanwhile and are left alone: {format_dates(left)}")


def _notes(left: Collection[date], lost: Collection[date]) -> str | None:
    """What is to be told of a restoration besides what it restored."""
    told = [f"{len(left)} date(s) were left as they are: {format_dates(sorted(left))}"] if left else []
    told += (
        [f"{len(lost)} date(s) are damaged in the backup and not restored: {format_dates(sorted(lost))}"]
        if lost
        else []
    )
    return "; ".join(told) or None
