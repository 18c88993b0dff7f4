"""What beat has had done: each slot of a work is given to one worker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import insert, select, update
from sqlalchemy.exc import IntegrityError

from gated_backfill.common.ledger.database import LedgerStore
from gated_backfill.common.ledger.records import Run
from gated_backfill.common.ledger.rows import run_from_row
from gated_backfill.common.ledger.states import ENDED_RUNS, RunState
from gated_backfill.common.ledger.tables import maintenance, runs
from gated_backfill.common.process.clock import utcnow

HEARTBEAT = "heartbeat"  #: the work whose only use is that it was done
LONGEST_TEXT = 4000
NEVER_ENDED = "its worker was killed, or it took longer than it may"
AT_ONCE = 500  #: ids in one query


@dataclass(frozen=True, kw_only=True)
class MaintenanceTaskRow:
    """How one work of beat's stands."""

    name: str
    done_slot: datetime | None  #: the due moment that was last carried out
    lease_owner: str | None
    lease_until: datetime | None
    started_at: datetime | None
    finished_at: datetime | None  #: of the last try, done or failed
    outcome: str | None  #: of the last one that was done, in words
    error: str | None  #: of the last try, when it failed


class MaintenanceStore(LedgerStore):
    """The works of beat, and which runs they are about."""

    def register_maintenance_task(self, name: str, slot: datetime) -> bool:
        """Write a work down as done up to the slot, unless it is known; returns whether it was not."""
        return self._insert_work({"name": name, "done_slot": slot})

    def claim_maintenance_task(
        self,
        name: str,
        slot: datetime,
        owner: str,
        until: datetime,
        *,
        is_dead: Callable[[str], bool],
        failed_before: datetime | None = None,
    ) -> bool:
        """Take the work of a due slot: one that is not done, and that nobody alive holds under a lease.

        One that failed in the slot is left alone until its failure is older than `failed_before`. A try that never
        ended, because its worker was killed, counts as one that failed when it began: what kills every worker that
        takes it up would else kill them one after the other.
        """
        self._insert_work({"name": name})
        now = utcnow()
        this = maintenance.c.name == name
        with self._write() as connection:
            row = connection.execute(select(maintenance).where(this).with_for_update()).mappings().one()
            if row["done_slot"] is not None and row["done_slot"] >= slot:
                return False
            holder = row["lease_owner"]
            if holder not in (None, owner) and row["lease_until"] > now and not is_dead(holder):
                return False
            left = holder is not None and row["lease_until"] is not None
            failed = row["started_at"] if left else row["finished_at"] if row["error"] is not None else None
            if failed is not None and failed_before is not None and failed >= slot and failed > failed_before:
                return False
            taken = {"lease_owner": owner, "lease_until": until, "started_at": now}
            if left:
                taken["error"] = f"the try of {row['started_at']:%Y-%m-%d %H:%M:%S} UTC did not end: {NEVER_ENDED}"
            connection.execute(update(maintenance).where(this).values(taken))
        return True

    def finish_maintenance_task(self, name: str, slot: datetime, owner: str, outcome: str) -> bool:
        """Note that the slot's work is done, if its claimant still holds it."""
        return self._leave_work(name, owner, {"done_slot": slot, "outcome": outcome[:LONGEST_TEXT], "error": None})

    def fail_maintenance_task(self, name: str, owner: str, error: str) -> bool:
        """Note why the work failed, and give it free for another try, if its claimant still holds it."""
        return self._leave_work(name, owner, {"error": error[:LONGEST_TEXT]})

    def list_maintenance_tasks(self) -> dict[str, MaintenanceTaskRow]:
        """Every work that was ever heard of, by its name."""
        with self._read() as connection:
            found = connection.execute(select(maintenance)).mappings()
            return {row["name"]: MaintenanceTaskRow(**row) for row in found}

    def last_heartbeat(self) -> datetime | None:
        """When beat last had something done; None if it never had."""
        beat = self.list_maintenance_tasks().get(HEARTBEAT)
        return None if beat is None or beat.done_slot is None else beat.finished_at

    def clear_heartbeat(self) -> None:
        """Note that beat was stopped on purpose: until it is heard of again, its silence is none."""
        with self._write() as connection:
            connection.execute(update(maintenance).where(maintenance.c.name == HEARTBEAT).values(finished_at=None))

    def list_active_runs(self) -> list[Run]:
        """Every run that has not ended, the oldest first."""
        active = [state.value for state in RunState if state not in ENDED_RUNS]
        query = select(runs).where(runs.c.state.in_(active)).order_by(runs.c.created_at)
        with self._read() as connection:
            return [run_from_row(row) for row in connection.execute(query).mappings()]

    def list_runs_ended_before(self, run_ids: Sequence[str], moment: datetime) -> list[str]:
        """Those of the runs that the ledger knows to have ended before the moment."""
        ended = [state.value for state in ENDED_RUNS]
        found: list[str] = []
        with self._read() as connection:
            for start in range(0, len(run_ids), AT_ONCE):
                some = runs.c.id.in_(run_ids[start : start + AT_ONCE])
                query = select(runs.c.id).where(some, runs.c.state.in_(ended), runs.c.finished_at < moment)
                found += connection.execute(query).scalars()
        return found

    def _insert_work(self, values: dict[str, Any]) -> bool:
        known = select(maintenance.c.name).where(maintenance.c.name == values["name"])
        with self._read() as connection:
            if connection.execute(known).scalar() is not None:
                return False
        try:
            with self._write() as connection:
                connection.execute(insert(maintenance), values)
        except IntegrityError:
            return False
        return True

    def _leave_work(self, name: str, owner: str, values: dict[str, Any]) -> bool:
        free = {"lease_owner": None, "lease_until": None, "finished_at": utcnow()}
        with self._write() as connection:
            left = connection.execute(
                update(maintenance)
                .where(maintenance.c.name == name, maintenance.c.lease_owner == owner)
                .values(values | free)
            )
        return bool(left.rowcount)
