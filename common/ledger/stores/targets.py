"""Targets: which job each target table belongs to. The table's primary key allows one job only."""

from __future__ import annotations

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
    """The owners of target tables. A run claims its target when it is opened, see `claim_target`."""

    def get_owner(self, target: str) -> TargetOwner | None:
        """Return the owner of the table; None when no run has claimed it."""
        with self._read() as connection:
            row = connection.execute(select(targets).where(targets.c.target == target)).mappings().one_or_none()
        return None if row is None else TargetOwner(**row)

    def list_targets(self, job: str) -> list[TableName]:
        """Return the tables that belong to the job; more than one if earlier versions of it had other targets."""
        with self._read() as connection:
            names = connection.execute(select(targets.c.target).where(targets.c.job == job).order_by(targets.c.target))
            return [TableName.parse(name) for name in names.scalars()]


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
