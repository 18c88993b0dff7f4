"""What the steps of a cleanup and of its restoration work with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any

from gated_backfill.common.config.settings import Settings
from gated_backfill.common.errors import BackupMissing, TableInUse
from gated_backfill.common.ledger import Ledger
from gated_backfill.common.ledger.stores.cleanups import CleanupOperation, CleanupState
from gated_backfill.common.model.backup import Backup, BackupDate
from gated_backfill.common.model.tables import TableName
from gated_backfill.common.process.clock import utcnow
from gated_backfill.common.process.identity import process_identity
from gated_backfill.common.storage.files import checksum_of
from gated_backfill.common.warehouse.protocol import Warehouse


@dataclass(frozen=True, kw_only=True)
class CleanupContext:
    """What a cleanup works on, and for whom."""

    settings: Settings
    ledger: Ledger
    warehouse: Warehouse
    by: str
    owner: str = field(default_factory=process_identity)

    def lease(self) -> datetime:
        return utcnow() + self.settings.cleanup_lease


def backup_of(operation: CleanupOperation) -> Backup:
    return Backup(id=operation.id, table=TableName.parse(operation.table_name), date_column=operation.date_column)


def checksum_of_kept(kept: Mapping[date, BackupDate]) -> str:
    """Of a backup: it changes with any row that is kept."""
    lines = [f"{day} {one.fingerprint} {one.rows}" for day, one in sorted(kept.items())]
    return checksum_of("\n".join(lines).encode())


def move_operation(operation: CleanupOperation, to: CleanupState, site: CleanupContext, **facts: Any) -> None:
    """Move the operation, which must still be ours. Raises `TableTaken`."""
    lease = site.lease()
    if not site.ledger.cleanups.move_cleanup(
        operation.id, expect=operation.state, to=to, owner=site.owner, lease_until=lease, **facts
    ):
        raise _taken_over(operation)


def renew_lease(operation: CleanupOperation, site: CleanupContext) -> None:
    """Renew the lease on the operation, which must still be ours and where it was. Raises `TableTaken`."""
    state, lease = operation.state, site.lease()
    if not site.ledger.cleanups.renew_cleanup(operation.id, expect=state, owner=site.owner, lease_until=lease):
        raise _taken_over(operation)


def _taken_over(operation: CleanupOperation) -> TableInUse:
    return TableInUse(
        f"operation {operation.id} was taken over by another process meanwhile", table=operation.table_name
    )


def verify_backup(
    operation: CleanupOperation, site: CleanupContext, *, intact_only: bool = False
) -> Mapping[date, BackupDate]:
    """What the operation's backup holds. Raises `NothingKept` unless it is what was backed up.

    With `intact_only`, it is those of its dates that are, if there is any.
    """
    kept = site.warehouse.read_backup(backup_of(operation), intact_only=intact_only)
    if intact_only:
        kept = {day: one for day, one in kept.items() if operation.kept.get(day) == one}
        if not kept:
            raise BackupMissing(f"no date of the backup {operation.id} is intact", table=operation.table_name)
    elif checksum_of_kept(kept) != operation.checksum:
        raise BackupMissing(f"the backup {operation.id} is not what was backed up", table=operation.table_name)
    return kept
