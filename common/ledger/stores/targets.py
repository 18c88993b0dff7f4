"""Targets: which job each target table belongs to, and which gate publishes to it.

The table's primary key allows one job only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, insert, select, update

from gated_backfill.common.errors import TargetTaken
from gated_backfill.common.ledger.database import LedgerStore
from gated_backfill.common.ledger.records import NewRun
from gated_backfill.common.ledger.states import ENDED_RUNS
from gated_backfill.common.ledger.tables import runs, targets
from gated_backfill.common.model.tables import TableName
from gated_backfill.common.process.clock import utcnow


@dataclass(frozen=True, kw_only=True)
class TargetOwner:
    """The job that a target table belongs to."""

    target: str
    job: str
    run_id: str  #: the run that claimed the table
    claimed_at: datetime


class TargetStore(LedgerStore):
    """The owners of target tables, and the leases of the gates that publish to them.

    A run claims its target when it is opened, see `claim_target`.
    """

    def get_owner(self, target: str) -> TargetOwner | None:
        """Return the owner of the table; None when no run has claimed it."""
        columns = select(targets.c.target, targets.c.job, targets.c.run_id, targets.c.claimed_at)
        with self._read() as connection:
            row = connection.execute(columns.where(targets.c.target == target)).mappings().one_or_none()
        return None if row is None else TargetOwner(**row)

    def list_targets(self, job: str) -> list[TableName]:
        """Return the tables that belong to the job; more than one if earlier versions of it had other targets."""
        with self._read() as connection:
            names = connection.execute(select(targets.c.target).where(targets.c.job == job).order_by(targets.c.target))
            return [TableName.parse(name) for name in names.scalars()]

    def claim_publishing(self, target: str, owner: str, until: datetime, *, is_dead: Callable[[str], bool]) -> bool:
        """Take the lease on publishing to the table, for one gate at a time, or extend it to `until`.

        Returns False while another gate has it that is neither dead nor past its lease. A table that no run has claimed
        has no lease to wait for.
        """
        is_target = targets.c.target == target
        with self._read() as connection:
            columns = select(targets.c.publisher, targets.c.publisher_until).where(is_target)
            row = connection.execute(columns).one_or_none()
        if row is None:
            return True
        if row.publisher not in (None, owner) and row.publisher_until >= utcnow() and not is_dead(row.publisher):
            return False
        is_unchanged = (
            targets.c.publisher.is_not_distinct_from(row.publisher),
            targets.c.publisher_until.is_not_distinct_from(row.publisher_until),
        )
        with self._write_one(durable=False) as connection:
            change = update(targets).where(is_target, *is_unchanged)
            return bool(connection.execute(change.values(publisher=owner, publisher_until=until)).rowcount)

    def release_publishing(self, target: str, owner: str) -> None:
        """End the owner's lease on publishing to the table, if it still has it."""
        is_own = (targets.c.target == target, targets.c.publisher == owner)
        with self._write_one(durable=False) as connection:
            connection.execute(update(targets).where(*is_own).values(publisher=None, publisher_until=None))


def claim_target(connection: Connection, run_id: str, new: NewRun) -> None:
    """Claim the target of a run that is being opened, in the same transaction.

    Raises `TargetTaken` when it belongs to another job than `new.replaced_owner`, or to that one while it has an active
    run; an integrity error when another transaction claims the table at the same time.
    """
    if new.target is None:
        return
    claim = {"job": new.job, "run_id": run_id, "claimed_at": utcnow()}
    of_target = targets.c.target == new.target
    owner = connection.execute(select(targets).where(of_target).with_for_update()).mappings().one_or_none()
    if owner is None:
        connection.execute(insert(targets), {"target": new.target, **claim})
    elif owner["job"] != new.job:
        if owner["job"] != new.replaced_owner or _has_active_run(connection, owner["job"]):
            raise target_taken_error(new.target, owner["job"], owner["run_id"])
        connection.execute(update(targets).where(of_target).values(claim))


def target_taken_error(target: str, job: str, run_id: str) -> TargetTaken:
    return TargetTaken(f"{target} is the target of job {job} (run {run_id}): two jobs can't build one table")


def _has_active_run(connection: Connection, job: str) -> bool:
    ended = [state.value for state in ENDED_RUNS]
    active = select(runs.c.id).where(runs.c.job == job, runs.c.state.not_in(ended)).limit(1)
    return connection.execute(active).first() is not None
