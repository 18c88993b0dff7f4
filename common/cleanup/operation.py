"""Steps that cleanup and restore share: the context, the moves of an operation, its lease and its backup."""

from __future__ import annotations

from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Any

from gated_backfill.common.config.settings import Settings
from gated_backfill.common.errors import (
    BackupMissing,
    LeaseTakenOver,
    QueryFailed,
    SchemaMismatch,
    TableInUse,
    TableNotFound,
)
from gated_backfill.common.ledger import Ledger
from gated_backfill.common.ledger.stores.cleanups import CleanupOperation, CleanupState
from gated_backfill.common.model.publication import Backup, BackupDate
from gated_backfill.common.model.tables import TableName
from gated_backfill.common.process.clock import utcnow
from gated_backfill.common.process.identity import process_identity
from gated_backfill.common.storage.files import checksum_of
from gated_backfill.common.warehouse.protocol import ABSENT, Warehouse

UNUSABLE_TABLE = (TableNotFound, SchemaMismatch, QueryFailed)  #: errors about a table that a later try meets again


@dataclass(frozen=True, kw_only=True)
class CleanupContext:
    """The settings, ledger and warehouse of a cleanup, its user and its process."""

    settings: Settings
    ledger: Ledger
    warehouse: Warehouse
    by: str  #: the user who requested it, or beat
    owner: str = field(default_factory=process_identity)  #: the process that holds the leases
    began: datetime = field(default_factory=utcnow)  #: rows that were restored since then are not deleted

    def lease(self) -> datetime:
        """The end of a lease that starts now."""
        return utcnow() + self.settings.operation_lease


def backup_of(operation: CleanupOperation) -> Backup:
    return Backup(id=operation.id, table=TableName.parse(operation.table_name), date_column=operation.date_column)


def backup_checksum(dates: Mapping[date, BackupDate]) -> str:
    """A checksum over the dates of a backup. It changes with any of their rows."""
    lines = [f"{day} {backup_date.fingerprint} {backup_date.rows}" for day, backup_date in sorted(dates.items())]
    return checksum_of("\n".join(lines).encode())


def move_operation(operation: CleanupOperation, to: CleanupState, context: CleanupContext, **values: Any) -> None:
    """Move the operation to another state, and set these columns. Raises `TableInUse` if the lease was lost."""
    if not context.ledger.cleanups.move_cleanup(
        operation.id, expect=operation.state, to=to, owner=context.owner, lease_until=context.lease(), **values
    ):
        raise _lease_lost(operation)


def renew_lease(operation: CleanupOperation, context: CleanupContext) -> None:
    """Renew the lease. Raises `TableInUse` if it was lost or the operation is in another state by now."""
    if not context.ledger.cleanups.renew_cleanup(
        operation.id, expect=operation.state, owner=context.owner, lease_until=context.lease()
    ):
        raise _lease_lost(operation)


@contextmanager
def fenced(operation: CleanupOperation) -> Generator[None]:
    """Raise `TableInUse` if the warehouse refuses the effect because a later lease of the operation had one."""
    try:
        yield
    except LeaseTakenOver as exc:
        raise _lease_lost(operation) from exc


def _lease_lost(operation: CleanupOperation) -> TableInUse:
    return TableInUse(f"another process has taken over operation {operation.id}", table=operation.table_name)


def verify_backup(
    operation: CleanupOperation, context: CleanupContext, *, intact_only: bool = False
) -> Mapping[date, BackupDate]:
    """Read the operation's backup, check it against the ledger, and return its dates.

    With `intact_only`, damaged dates are left out instead. Raises `BackupMissing` if the backup's checksum differs or,
    with `intact_only`, if none of its dates is intact.
    """
    dates = context.warehouse.read_backup(backup_of(operation), intact_only=intact_only)
    if intact_only:
        dates = {day: backup_date for day, backup_date in dates.items() if operation.kept.get(day) == backup_date}
        if not dates:
            raise BackupMissing(f"no date of the backup {operation.id} is intact", table=operation.table_name)
    elif backup_checksum(dates) != operation.checksum:
        raise BackupMissing(
            f"the backup {operation.id} is not what was backed up: its checksum differs", table=operation.table_name
        )
    return dates


def table_fingerprints(
    operation: CleanupOperation, days: Collection[date], context: CleanupContext
) -> Mapping[date, str]:
    """Return the fingerprints that the days have in the table now; `ABSENT` if the table is gone or unusable.

    Raises `WarehouseUnavailable`.
    """
    backup = backup_of(operation)
    try:
        return context.warehouse.fingerprints(backup.table, backup.date_column, list(days))
    except UNUSABLE_TABLE:
        return dict.fromkeys(days, ABSENT)


def restored_days(operation: CleanupOperation, context: CleanupContext) -> frozenset[date]:
    """Return the dates that restores have put back, by the ledger and by the backup's own record."""
    return operation.restored_days | context.warehouse.restored_days(backup_of(operation))


def deleted_figures(dates: Mapping[date, BackupDate], deleted_days: Collection[date]) -> dict[str, Any]:
    """Return the columns that record the dates deleted from the table."""
    deleted = sorted(deleted_days)
    return {
        "rows": sum(dates[day].rows for day in deleted),
        "dates": len(deleted),
        "oldest": deleted[0] if deleted else None,
        "newest": deleted[-1] if deleted else None,
    }


def retention_end(operation: CleanupOperation, context: CleanupContext) -> datetime:
    """Return when the backup may be removed. Its retention counts from the deletion, by the backup's own record."""
    deleted_at = context.warehouse.deleted_at(backup_of(operation)) or utcnow()
    return deleted_at + timedelta(days=context.settings.cleanup_backup_days)
