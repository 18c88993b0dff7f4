"""Cleanup operations: which stale rows were deleted from which table, and their backups."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from datetime import date, datetime
from enum import Enum
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from gated_backfill.common.errors import TableInUse, UserError
from gated_backfill.common.ledger.database import LedgerStore, next_generation
from gated_backfill.common.ledger.tables import cleanup_operations as operations
from gated_backfill.common.model.publication import BackupDate
from gated_backfill.common.process.clock import utcnow


class CleanupState(Enum):
    PLANNED = "planned"  #: the backup is being written; no row is deleted yet
    BACKED_UP = "backed_up"  #: the backup is complete; rows are being deleted
    DELETED = "deleted"  #: the rows are deleted, and kept in the backup
    RESTORING = "restoring"  #: the backup is being written back
    RESTORED = "restored"  #: the backup was written back; dates that were left out can still be restored
    DAMAGED = "damaged"  #: rows may be deleted and the backup is incomplete; the rest of it is kept
    EXPIRED = "expired"  #: the backup is removed after its retention
    ABANDONED = "abandoned"  #: stopped before any row was deleted


CLEANUP_TRANSITIONS: Mapping[CleanupState, frozenset[CleanupState]] = {
    # To the last two if its backup has rows that the table lacks: the ledger is then older than the deletion.
    CleanupState.PLANNED: frozenset(
        {CleanupState.BACKED_UP, CleanupState.ABANDONED, CleanupState.DELETED, CleanupState.DAMAGED}
    ),
    CleanupState.BACKED_UP: frozenset({CleanupState.DELETED, CleanupState.DAMAGED}),
    CleanupState.DELETED: frozenset({CleanupState.RESTORING, CleanupState.EXPIRED}),
    CleanupState.RESTORING: frozenset({CleanupState.RESTORED, CleanupState.DELETED, CleanupState.DAMAGED}),
    CleanupState.DAMAGED: frozenset({CleanupState.RESTORING, CleanupState.EXPIRED}),
    CleanupState.RESTORED: frozenset({CleanupState.RESTORING, CleanupState.EXPIRED}),
    CleanupState.EXPIRED: frozenset(),
    CleanupState.ABANDONED: frozenset(),
}

#: An operation in one of these states reserves its table.
UNFINISHED_CLEANUPS = frozenset({CleanupState.PLANNED, CleanupState.BACKED_UP, CleanupState.RESTORING})

#: A finished operation in one of these states has a backup, which expires.
STATES_WITH_BACKUP = frozenset({CleanupState.DELETED, CleanupState.DAMAGED, CleanupState.RESTORED})

#: The column that records when an operation first came to a state.
STAMPS: Mapping[CleanupState, str] = {
    CleanupState.BACKED_UP: "backed_up_at",
    CleanupState.DELETED: "deleted_at",
    CleanupState.RESTORED: "restored_at",
}


@dataclass(frozen=True, kw_only=True)
class NewCleanup:
    id: str
    table_name: str
    date_column: str
    cutoff: date  #: rows of earlier dates are stale
    rows: int
    dates: int
    oldest: date
    newest: date
    table_rows: int
    backup: str  #: location of the backup
    requested_by: str
    expires_at: datetime


@dataclass(frozen=True, kw_only=True)
class CleanupOperation:
    """A cleanup operation: the deletion of stale rows, and possibly their restore."""

    id: str
    table_name: str
    date_column: str
    state: CleanupState
    cutoff: date
    rows: int  #: stale rows, deleted or to delete
    dates: int
    oldest: date | None
    newest: date | None
    table_rows: int  #: in the whole table before the deletion
    backup: str | None  #: location of the backup; None after its removal
    checksum: str | None
    kept: Mapping[date, BackupDate]  #: backed up rows by date
    restored_days: frozenset[date]  #: dates that restores have put back
    leave_written: bool  #: option of the restore: skip dates written since the deletion
    intact_only: bool  #: option of the restore: skip dates that are damaged in the backup
    requested_by: str
    owner: str | None
    lease_until: datetime | None
    generation: int  #: of its latest lease: a fencing token
    active: bool
    created_at: datetime
    backed_up_at: datetime | None
    deleted_at: datetime | None
    restored_at: datetime | None
    restored_by: str | None
    expires_at: datetime | None
    found_expired_at: datetime | None  #: when its backup was first found to have expired
    error: str | None

    @property
    def is_restorable(self) -> bool:
        """Whether some of its dates were not put back yet and are in its backup."""
        return self.state in STATES_WITH_BACKUP and not self.kept.keys() <= self.restored_days


def new_cleanup_id() -> str:
    return f"{utcnow():%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


class CleanupStore(LedgerStore):
    """Cleanup operations, of which a table has at most one unfinished."""

    def open_cleanup(self, new: NewCleanup, owner: str, lease_until: datetime) -> CleanupOperation:
        """Insert an operation as planned. Raises `TableInUse` when the table has an unfinished one."""
        row = {
            **asdict(new),
            "state": CleanupState.PLANNED.value,
            "active": True,
            "owner": owner,
            "lease_until": lease_until,
            "generation": next_generation(0),
            "created_at": utcnow(),
        }
        try:
            with self._write() as connection:
                connection.execute(insert(operations), row)
                return _read_operation(connection, new.id)
        except IntegrityError as exc:
            raise self._table_in_use_error(new.table_name) from exc

    def get_cleanup(self, operation_id: str) -> CleanupOperation:
        """Return the operation. Raises `UserError` when the ledger has none of that id."""
        with self._read() as connection:
            query = select(operations).where(operations.c.id == operation_id)
            row = connection.execute(query).mappings().one_or_none()
        if row is None:
            raise UserError(f"there is no cleanup {operation_id!r}: `backfill cleanup list` shows them")
        return _operation_from_row(row)

    def list_cleanups(
        self, *, states: Collection[CleanupState] | None = None, limit: int | None = None
    ) -> list[CleanupOperation]:
        """Return the operations in one of the states (default: any), newest first."""
        query = select(operations).order_by(operations.c.created_at.desc(), operations.c.id).limit(limit)
        if states is not None:
            query = query.where(operations.c.state.in_([state.value for state in states]))
        return self._select(query)

    def list_unfinished_cleanups(self) -> list[CleanupOperation]:
        """Return the operations that reserve their tables."""
        return self._select(select(operations).where(operations.c.active))

    def claim_cleanup(
        self, operation_id: str, owner: str, lease_until: datetime, *, is_dead: Callable[[str], bool]
    ) -> CleanupOperation | None:
        """Claim an unfinished operation that was released, or whose owner is dead or whose lease has expired.

        The generation gets higher. Returns None when the operation is finished or a live owner has its lease.
        """
        operation = self.get_cleanup(operation_id)
        is_free = operation.owner in (None, owner) or operation.lease_until is None or operation.lease_until < utcnow()
        if not operation.active or not (is_free or is_dead(str(operation.owner))):
            return None
        with self._write() as connection:
            is_claimed = connection.execute(
                update(operations)
                .where(
                    operations.c.id == operation_id,
                    operations.c.state == operation.state.value,
                    operations.c.owner.is_not_distinct_from(operation.owner),
                    operations.c.lease_until.is_not_distinct_from(operation.lease_until),
                    operations.c.generation == operation.generation,
                )
                .values(owner=owner, lease_until=lease_until, generation=next_generation(operation.generation))
            ).rowcount
            return _read_operation(connection, operation_id) if is_claimed else None

    def renew_cleanup(self, operation_id: str, *, expect: CleanupState, owner: str, lease_until: datetime) -> bool:
        """Extend the lease of an unfinished operation; returns False if the owner lost it or its state changed."""
        is_owned = (operations.c.id == operation_id, operations.c.owner == owner, operations.c.active)
        renewal = update(operations).where(*is_owned, operations.c.state == expect.value)
        with self._write() as connection:
            return bool(connection.execute(renewal.values(lease_until=lease_until)).rowcount)

    def release_cleanup(self, operation_id: str, owner: str, error: str) -> None:
        """Release an unfinished operation in its state, with the error, so that another process can continue it."""
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
        **columns: Any,
    ) -> bool:
        """Change an operation from state `expect` to state `to`, and write further columns.

        An unfinished operation is changed only by the owner of its lease; a finished one that becomes unfinished gets
        `owner`, `lease_until` and a higher generation. Returns False if a condition does not hold. Raises `TableInUse`
        when the table has another unfinished operation.
        """
        if to not in CLEANUP_TRANSITIONS[expect]:
            raise ValueError(f"a cleanup never moves from {expect.value} to {to.value}")
        is_unfinished = to in UNFINISHED_CLEANUPS
        values: dict[str, Any] = {"error": None} | _stamp_of(to) | _as_json_columns(columns)
        values |= {"state": to.value, "active": is_unfinished}
        values |= {"owner": owner if is_unfinished else None, "lease_until": lease_until if is_unfinished else None}
        conditions = [operations.c.id == operation_id, operations.c.state == expect.value]
        if expect in UNFINISHED_CLEANUPS:
            conditions.append(operations.c.owner == owner)
        else:
            conditions.append(operations.c.active.is_(False))
        if is_unfinished and expect not in UNFINISHED_CLEANUPS:
            latest = self.get_cleanup(operation_id).generation
            values["generation"] = next_generation(latest)
            conditions.append(operations.c.generation == latest)
        try:
            with self._write() as connection:
                return bool(connection.execute(update(operations).where(*conditions).values(values)).rowcount)
        except IntegrityError as exc:
            raise self._table_in_use_error(self.get_cleanup(operation_id).table_name) from exc

    def list_backups_to_drop(self) -> list[CleanupOperation]:
        """Return the abandoned and expired operations whose backup is not recorded as removed."""
        ended = [CleanupState.ABANDONED.value, CleanupState.EXPIRED.value]
        return self._select(select(operations).where(operations.c.state.in_(ended), operations.c.backup.is_not(None)))

    def list_backups_to_expire(self, now: datetime) -> list[CleanupOperation]:
        """Return the operations whose backup has passed its retention."""
        return self._select(select(operations).where(_has_backup(), operations.c.expires_at < now))

    def record_found_expired(self, operation_id: str, now: datetime) -> None:
        """Record that the backup was found to have expired, unless that is recorded already.

        A record that lies in the future is replaced: it is from a clock that was set ahead.
        """
        found_at = operations.c.found_expired_at
        is_unrecorded = (operations.c.id == operation_id, or_(found_at.is_(None), found_at > now))
        with self._write() as connection:
            connection.execute(update(operations).where(*is_unrecorded).values(found_expired_at=now))

    def postpone_expiry(self, operation_id: str, expires_at: datetime) -> None:
        """Have the backup of a finished operation expire at another time."""
        values = {"expires_at": expires_at, "found_expired_at": None}
        with self._write() as connection:
            connection.execute(update(operations).where(operations.c.id == operation_id, _has_backup()).values(values))

    def mark_backup_dropped(self, operation_id: str) -> None:
        """Record that the backup of an abandoned or expired operation is removed."""
        is_ended = operations.c.state.in_([CleanupState.ABANDONED.value, CleanupState.EXPIRED.value])
        with self._write() as connection:
            connection.execute(update(operations).where(operations.c.id == operation_id, is_ended).values(backup=None))

    def _select(self, query: Select[Any]) -> list[CleanupOperation]:
        with self._read() as connection:
            return [_operation_from_row(row) for row in connection.execute(query).mappings()]

    def _table_in_use_error(self, table_name: str) -> TableInUse:
        unfinished = [
            operation
            for operation in self.list_cleanups(states=UNFINISHED_CLEANUPS)
            if operation.table_name == table_name
        ]
        by = f" (operation {unfinished[0].id}, by {unfinished[0].owner or 'no process now'})" if unfinished else ""
        return TableInUse(f"is being cleaned or restored already{by}: try again after it ends", table=table_name)


def _has_backup() -> ColumnElement[bool]:
    return operations.c.state.in_([state.value for state in STATES_WITH_BACKUP])


def _stamp_of(state: CleanupState) -> dict[str, Any]:
    """Return the value that records when an operation came to the state, unless it was in it before."""
    if state not in STAMPS:
        return {}
    column = STAMPS[state]
    return {column: func.coalesce(operations.c[column], utcnow())}


def _as_json_columns(columns: Mapping[str, Any]) -> dict[str, Any]:
    values = dict(columns)
    if "kept" in values:
        values["kept"] = {f"{day}": [saved.fingerprint, saved.rows] for day, saved in values["kept"].items()}
    if "restored_days" in values:
        values["restored_days"] = [f"{day}" for day in sorted(values["restored_days"])]
    return values


def _read_operation(connection: Connection, operation_id: str) -> CleanupOperation:
    """Read an operation in the transaction that wrote it: afterwards, another process may have changed it."""
    row = connection.execute(select(operations).where(operations.c.id == operation_id)).mappings().one()
    return _operation_from_row(row)


def _operation_from_row(row: Mapping[Any, Any]) -> CleanupOperation:
    backup_dates = {
        date.fromisoformat(day): BackupDate(fingerprint=fingerprint, rows=rows)
        for day, (fingerprint, rows) in (row["kept"] or {}).items()
    }
    state = CleanupState(row["state"])
    if row["restored_days"] is None and state is CleanupState.RESTORED:
        restored_days = frozenset(backup_dates)  # by an earlier version, which then kept only these
    else:
        restored_days = frozenset(map(date.fromisoformat, row["restored_days"] or ()))
    values: dict[str, Any] = {**row, "state": state, "kept": backup_dates, "restored_days": restored_days}
    return CleanupOperation(**values)
