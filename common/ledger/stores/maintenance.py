"""Maintenance tasks of beat: each due moment (slot) of a task is claimed by one worker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import insert, select, update
from sqlalchemy.exc import IntegrityError

from gated_backfill.common.ledger.database import LedgerStore
from gated_backfill.common.ledger.tables import maintenance
from gated_backfill.common.process.clock import utcnow

HEARTBEAT = "heartbeat"  #: a task that does nothing: its completion shows that beat and the workers are alive
MAX_TEXT_LENGTH = 4000  #: characters of an outcome or error
ATTEMPT_LOST = "its worker was killed, or it exceeded its time limit"


@dataclass(frozen=True, kw_only=True)
class MaintenanceTaskRow:
    name: str
    done_slot: datetime | None  #: latest slot that was completed
    lease_owner: str | None
    lease_until: datetime | None
    started_at: datetime | None
    finished_at: datetime | None  #: end of the last attempt, successful or failed
    outcome: str | None  #: of the last successful attempt, in words
    error: str | None  #: of the last attempt; None if it succeeded


class MaintenanceStore(LedgerStore):
    """Slots, leases and outcomes of maintenance tasks."""

    def register_task(self, name: str, slot: datetime) -> bool:
        """Add a task, completed up to the slot; returns False if the ledger has it already."""
        return self._insert_task({"name": name, "done_slot": slot})

    def claim_task(
        self,
        name: str,
        slot: datetime,
        owner: str,
        until: datetime,
        *,
        is_dead: Callable[[str], bool],
        failed_before: datetime | None = None,
    ) -> bool:
        """Claim the slot of a task, unless the slot is done or a live process holds an unexpired lease.

        `until` is the end of the new lease. A slot whose attempt failed is claimed only if the failure is older than
        `failed_before`. An attempt that never ended counts as failed at its start, so that a task that kills its worker
        does not kill all workers in a row.
        """
        self._insert_task({"name": name})
        now = utcnow()
        is_task = maintenance.c.name == name
        with self._write() as connection:
            row = connection.execute(select(maintenance).where(is_task).with_for_update()).mappings().one()
            if row["done_slot"] is not None and row["done_slot"] >= slot:
                return False
            holder = row["lease_owner"]
            if holder not in (None, owner) and row["lease_until"] > now and not is_dead(holder):
                return False
            is_lost = holder is not None and row["lease_until"] is not None
            failed_at = row["started_at"] if is_lost else row["finished_at"] if row["error"] is not None else None
            if failed_at is not None and failed_before is not None and failed_at >= slot and failed_at > failed_before:
                return False
            values = {"lease_owner": owner, "lease_until": until, "started_at": now}
            if is_lost:
                values["error"] = (
                    f"the attempt of {row['started_at']:%Y-%m-%d %H:%M:%S} UTC did not end: {ATTEMPT_LOST}"
                )
            connection.execute(update(maintenance).where(is_task).values(values))
        return True

    def finish_task(self, name: str, slot: datetime, owner: str, outcome: str) -> bool:
        """Record that the slot is done; returns False if `owner` no longer holds the task."""
        return self._release_task(name, owner, {"done_slot": slot, "outcome": outcome[:MAX_TEXT_LENGTH], "error": None})

    def fail_task(self, name: str, owner: str, error: str) -> bool:
        """Record the error and release the task for a retry; returns False if `owner` no longer holds it."""
        return self._release_task(name, owner, {"error": error[:MAX_TEXT_LENGTH]})

    def list_tasks(self) -> dict[str, MaintenanceTaskRow]:
        """Return every registered task by name."""
        with self._read() as connection:
            rows = connection.execute(select(maintenance)).mappings()
            return {row["name"]: MaintenanceTaskRow(**row) for row in rows}

    def last_heartbeat(self) -> datetime | None:
        """Return when beat's heartbeat task last finished; None if it never did."""
        task = self.list_tasks().get(HEARTBEAT)
        return None if task is None or task.done_slot is None else task.finished_at

    def clear_heartbeat(self) -> None:
        """Forget the last heartbeat: after an intended stop, beat's silence must raise no alert."""
        with self._write() as connection:
            connection.execute(update(maintenance).where(maintenance.c.name == HEARTBEAT).values(finished_at=None))

    def _insert_task(self, values: dict[str, Any]) -> bool:
        query = select(maintenance.c.name).where(maintenance.c.name == values["name"])
        with self._read() as connection:
            if connection.execute(query).scalar() is not None:
                return False
        try:
            with self._write() as connection:
                connection.execute(insert(maintenance), values)
        except IntegrityError:
            return False
        return True

    def _release_task(self, name: str, owner: str, values: dict[str, Any]) -> bool:
        released = {"lease_owner": None, "lease_until": None, "finished_at": utcnow()}
        with self._write() as connection:
            result = connection.execute(
                update(maintenance)
                .where(maintenance.c.name == name, maintenance.c.lease_owner == owner)
                .values(values | released)
            )
        return bool(result.rowcount)
