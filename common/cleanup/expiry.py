"""Expiry of backups: their retention counts from the deletion, and a clock that is set ahead removes none."""

from __future__ import annotations

from datetime import datetime

from gated_backfill.common.cleanup.operation import CleanupContext, backup_of, retention_end
from gated_backfill.common.errors import BackfillError
from gated_backfill.common.ledger.stores.cleanups import CleanupOperation, CleanupState
from gated_backfill.common.model.publication import is_confirmed_expired
from gated_backfill.common.process.clock import utcnow


def remove_expired_backups(context: CleanupContext, errors: list[str]) -> list[CleanupOperation]:
    """Remove the backups that have expired, and return their operations, which cannot be restored any more.

    Errors are added to `errors`.
    """
    now = utcnow()
    expired: list[CleanupOperation] = []
    for operation in context.ledger.cleanups.list_backups_to_expire(now):
        try:
            if _expire(operation, context, now):
                expired.append(operation)
        except BackfillError as exc:
            errors.append(str(exc))
    errors += drop_backups(context)
    return expired


def _expire(operation: CleanupOperation, context: CleanupContext, now: datetime) -> bool:
    """Expire the operation if an earlier check, at least a day ago, also found its retention over; return whether.

    The first such check only records the time, because this machine's clock may be ahead.
    The backup's own record says when rows were deleted: the ledger may have been restored from an older copy.
    """
    ledger = context.ledger.cleanups
    if context.warehouse.deleted_at(backup_of(operation)) is not None:
        retained_until = retention_end(operation, context)
        if retained_until >= now:
            ledger.postpone_expiry(operation.id, retained_until)
            return False
    if not is_confirmed_expired(operation.found_expired_at, now):
        ledger.record_found_expired(operation.id, now)
        return False
    return ledger.move_cleanup(operation.id, expect=operation.state, to=CleanupState.EXPIRED, error=operation.error)


def drop_backups(context: CleanupContext) -> list[str]:
    """Remove the backups of abandoned and expired operations, and return the errors."""
    errors: list[str] = []
    for operation in context.ledger.cleanups.list_backups_to_drop():
        try:
            context.warehouse.drop_backup(backup_of(operation))
            context.ledger.cleanups.mark_backup_dropped(operation.id)
        except BackfillError as exc:
            errors.append(str(exc))
    return errors
