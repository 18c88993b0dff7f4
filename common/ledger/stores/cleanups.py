"""Cleanup operations: what was deleted from which table, and where it is kept."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from enum import Enum
from typing import TYPE_CHECKING, Any

from sqlalchemy import insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from gated_backfill.common.errors import TableInUse, UserError
from gated_backfill.common.ledger.database import LedgerStore
from gated_backfill.common.ledger.tables import cleanup_operations as operations
from gated_backfill.common.process.clock import utcnow

if TYPE_CHECKING:
    from gated_backfill.common.model.backup import BackupDate


class CleanupState(Enum):
    """Where a cleanup operation is."""

    PLANNED = "planned"  #: its backup is being made; nothing is deleted
    BACKED_UP = "backed_up"  #: its backup is whole; rows are being deleted
    DELETED = "deleted"  #: what it deleted is gone, and is kept in its backup
    RESTORING = "restoring"  #: its backup is being put back
    RESTORED = "restored"  #: its backup was put back
    DAMAGED = "damaged"  #: it may have deleted rows, and its backup is not whole; what is left of that is kept
    EXPIRED = "expired"  #: its backup is removed
    ABANDONED = "abandoned"  #: it was given up before it deleted anything


CLEANUP_TRANSITIONS: Mapping[CleanupState, frozenset[CleanupState]] = {
    CleanupState.PLANNED: frozenset({CleanupState.BACKED_UP, CleanupState.ABANDONED}),
    CleanupState.BACKED_UP: frozenset({CleanupState.DELETED, CleanupState.DAMAGED}),
    CleanupState.DELETED: frozenset({CleanupState.RESTORING, CleanupState.EXPIRED}),
    CleanupState.RESTORING: frozenset({CleanupState.RESTORED, CleanupState.DELETED, CleanupState.DAMAGED}),
    CleanupState.DAMAGED: frozenset({CleanupState.RESTORING, CleanupState.EXPIRED}),
    CleanupState.RESTORED: frozenset({CleanupState.EXPIRED}),
    CleanupState.EXPIRED: frozenset(),
    CleanupState.ABANDONED: frozenset(),
}

#: An operation in one of these holds its table.
UNFINISHED_CLEANUPS = frozenset({CleanupState.PLANNED, CleanupState.BACKED_UP, CleanupState.RESTORING})

STAMPS: Mapping[CleanupState, str] = {
    CleanupState.BACKED_UP: "backed_up_at",
    CleanupState.DELETED: "deleted_at",
    CleanupState.RESTORED: "restored_at",
}


@dataclass(frozen=True, kw_only=True)
class NewCleanup:
    """An operation to open."""

    id: str
    table_name: str
    date_column: str
    cutoff: date  #: rows of dates before it are stale
    rows: int
    dates: int
    oldest: date
    newest: date
    table_rows: int
    backup: str  #: where the rows will be kept
    requested_by: str
    expires_at: datetime


@dataclass(frozen=True, kw_only=True)
class CleanupOperation:
    """A deletion of stale rows, as far as it has come."""

    id: str
    table_name: str
    date_column: str
    state: CleanupState
    cutoff: date
    rows: int  #: that are deleted; until they are, that are to be
    dates: int
    oldest: date | None
    newest: date | None
    table_rows: int  #: of the whole table before
    backup: str | None  #: where the rows are kept; None once they are not
    checksum: str | None
    kept: Mapping[date, BackupDate]  #: what was backed up, by date; once restored, what was put back
    leave_written: bool  #: of its restoration: dates written since are left alone
    intact_only: bool  #: of its restoration: dates that are damaged in the backup are left out
    requested_by: str
    owner: str | None
    lease_until: datetime | None
    active: bool
    created_at: datetime
    backed_up_at: datetime | None
    deleted_at: datetime | None
    restored_at: datetime | None
    restored_by: str | None
    expires_at: datetime | None
    error: str | None


def new_cleanup_id() -> str:
    return f"{utcnow():%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


class CleanupStore(LedgerStore):
    """At most one unfinished operation a table."""

    def open_cleanup(self, new: NewCleanup, owner: str, lease_until: datetime) -> CleanupOperation:
        """Write an operation down as planned. Raises `TableTaken` when the table has an unfinished one."""
        row = {
            **{name: getattr(new, name) for name in new.__dataclass_fields__},
            "state": CleanupState.PLANNED.value,
            "active": True,
            "owner": owner,
            "lease_until": lease_until,
            "created_at": utcnow(),
        }
        try:
            with self._write() as connection:
                connection.execute(insert(operations), row)
        except IntegrityError as exc:
            raise self._held_by_another(new.table_name) from exc
        return self.get_cleanup(new.id)

    def get_cleanup(self, operation_id: str) -> CleanupOperation:
        """The operation. Raises `UserError` when there is none of that id."""
        with self._read() as connection:
            query = select(operations).where(operations.c.id == operation_id)
            row = connection.execute(query).mappings().one_or_none()
        if row is None:
            raise UserError(f"there is no cleanup {operation_id!r}: `backfill cleanup list` shows them")
        return _operation_of(row)

    def list_cleanups(
        self, *, states: Collection[CleanupState] | None = None, limit: int | None = None
    ) -> list[CleanupOperation]:
        """The operations, by default of every state, newest first."""
        query = select(operations).order_by(operations.c.created_at.desc(), operations.c.id).limit(limit)
        if states is not None:
            query = query.where(operations.c.state.in_([state.value for state in states]))
        with self._read() as connection:
            return [_operation_of(row) for row in connection.execute(query).mappings()]

    def list_unfinished_cleanups(self) -> list[CleanupOperation]:
        """The operations that hold their tables."""
        with self._read() as connection:
            rows = connection.execute(select(operations).where(operations.c.active)).mappings()
            return [_operation_of(row) for row in rows]

    def claim_cleanup(
        self, operation_id: str, owner: str, lease_until: datetime, *, is_dead: Callable[[str], bool]
    ) -> CleanupOperation | None:
        """Take an unfinished operation over from an owner that is dead, gave it up, or whose lease has run out.

        Returns None when it is finished or its owner is at work.
        """
        found = self.get_cleanup(operation_id)
        waiting = found.owner in (None, owner) or found.lease_until is None or found.lease_until < utcnow()
        if not found.active or not (waiting or is_dead(str(found.owner))):
            return None
        with self._write() as connection:
            taken = connection.execute(
                update(operations)
                .where(
                    operations.c.id == operation_id,
                    operations.c.state == found.state.value,
                    operations.c.owner.is_not_distinct_from(found.owner),
                    operations.c.lease_until.is_not_distinct_from(found.lease_until),
                )
                .values(owner=owner, lease_until=lease_until)
            ).rowcount
        return self.get_cleanup(operation_id) if taken else None

    def renew_cleanup(self, operation_id: str, *, expect: CleanupState, owner: str, lease_until: datetime) -> bool:
        """Go on holding an unfinished operation; False when it is not in that state, or not the owner's, any more."""
        with self._write() as connection:
            return bool(
                connection.execute(
                    update(operations)
                    .where(
                        operations.c.id == operation_id,
                        operations.c.state == expect.value,
                        operations.c.owner == owner,
                        operations.c.active,
                    )
                    .values(lease_until=lease_until)
                ).rowcount
            )

    def release_cleanup(self, operation_id: str, owner: str, error: str) -> None:
        """Leave an unfinished operation, as it is, to whoever comes next."""
        with self._write() as connection:
            connection.execute(
                update(operations)
                .where(operations.c.id == operation_id, operations.c.owner == owner, operations.c.active)
                .values(owner=None, lease_until=None, error=error)
            )

    def move_cleanup(
        self,
        operation_id: str,
        *,
        expect: CleanupState,
        to: CleanupState,
        owner: str | None = None,
        lease_until: datetime | None = None,
        **facts: Any,
    ) -> bool:
        """Change an operation's state if it is the one expected and, of an unfinished one, the owner holds it.

        An operation that is begun again is then the owner's. Raises `TableTaken` when its table has another one.
        """
        if to not in CLEANUP_TRANSITIONS[expect]:
            raise ValueError(f"a cleanup never moves from {expect.value} to {to.value}")
        unfinished = to in UNFINISHED_CLEANUPS
        if "kept" in facts:
            facts["kept"] = {f"{day}": [one.fingerprint, one.rows] for day, one in facts["kept"].items()}
        values: dict[str, Any] = {"error": None} | facts | {"state": to.value, "active": unfinished}
        values |= {"owner": owner if unfinished else None, "lease_until": lease_until if unfinished else None}
        if to in STAMPS and not (expect is CleanupState.RESTORING and to is CleanupState.DELETED):
            values[STAMPS[to]] = utcnow()
        held = operations.c.owner == owner if expect in UNFINISHED_CLEANUPS else operations.c.active.is_(False)
        where = (operations.c.id == operation_id, operations.c.state == expect.value, held)
        try:
            with self._write() as connection:
                return bool(connection.execute(update(operations).where(*where).values(values)).rowcount)
        except IntegrityError as exc:
            raise self._held_by_another(self.get_cleanup(operation_id).table_name) from exc

    def list_backups_to_drop(self) -> list[CleanupOperation]:
        """The operations that are abandoned or expired, and whose backup was not yet said to be removed."""
        ended = [CleanupState.ABANDONED.value, CleanupState.EXPIRED.value]
        query = select(operations).where(operations.c.state.in_(ended), operations.c.backup.is_not(None))
        with self._read() as connection:
            return [_operation_of(row) for row in connection.execute(query).mappings()]

    def list_backups_to_expire(self, now: datetime) -> list[CleanupOperation]:
        """The operations whose backup was to be kept until before now, and still is."""
        kept = [CleanupState.DELETED.value, CleanupState.DAMAGED.value, CleanupState.RESTORED.value]
        query = select(operations).where(operations.c.state.in_(kept), operations.c.expires_at < now)
        with self._read() as connection:
            return [_operation_of(row) for row in connection.execute(query).mappings()]

    def mark_backup_dropped(self, operation_id: str) -> None:
        """Note that the backup of an abandoned or expired operation is removed."""
        with self._write() as connection:
            connection.execute(
                update(operations)
                .where(
                    operations.c.id == operation_id,
                    or_(
                        operations.c.state == CleanupState.ABANDONED.value,
                        operations.c.state == CleanupState.EXPIRED.value,
                    ),
                )
                .values(backup=None)
            )

    def _held_by_another(self, table_name: str) -> TableInUse:
        held = [one for one in self.list_cleanups(states=UNFINISHED_CLEANUPS) if one.table_name == table_name]
        by = f" (operation {held[0].id}, by {held[0].owner or 'nobody just now'})" if held else ""
        return TableInUse(f"is being cleaned or restored already{by}: try again after its end", table=table_name)


def _operation_of(row: Mapping[Any, Any]) -> CleanupOperation:
    from gated_backfill.common.model.backup import BackupDate  # which whoever looks at runs does not need

    kept = {
        date.fromisoformat(day): BackupDate(fingerprint=fingerprint, rows=rows)
        for day, (fingerprint, rows) in (row["kept"] or {}).items()
    }
    values: dict[str, Any] = {**row, "state": CleanupState(row["state"]), "kept": kept}
    return CleanupOperation(**values)
