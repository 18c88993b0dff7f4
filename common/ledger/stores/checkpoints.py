"""Checkpoints: the durable proof that a date is complete."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import date, datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Insert, and_, delete, exists, insert, literal, select, true, update
from sqlalchemy.exc import IntegrityError

from gated_backfill.common.errors import DatesInUse
from gated_backfill.common.ledger.database import LedgerStore, window_leased_by
from gated_backfill.common.ledger.records import Checkpoint
from gated_backfill.common.ledger.rows import checkpoint_from_row, date_transition
from gated_backfill.common.ledger.states import DateState, RunAction
from gated_backfill.common.ledger.stores.actions import record_action
from gated_backfill.common.ledger.stores.flags import clear_open_flags, reopen_flags
from gated_backfill.common.ledger.tables import UtcDateTime, checkpoints, replaced_checkpoints, run_dates, runs
from gated_backfill.common.model.coverage import Verdict
from gated_backfill.common.process.clock import utcnow


class CheckpointStore(LedgerStore):
    """One checkpoint a job and date."""

    def write_checkpoints(
        self, run_id: str, days: Collection[date], *, gate: tuple[int, str] | None = None
    ) -> list[date]:
        """Prove published dates complete; returns those that were in that state. One transaction.

        Only a published date with a passing verdict can be checkpointed: there is no other way to write one. It clears
        the date's flag. With `gate`, only while that gate holds its window.
        """
        if not days:
            return []
        now = utcnow()
        passing = [verdict.value for verdict in Verdict if verdict.is_passing]
        held = true() if gate is None else exists().where(window_leased_by(run_id, gate))
        with self._write() as connection:
            query = (
                select(run_dates.c.day, run_dates.c.job)
                .where(
                    run_dates.c.run_id == run_id,
                    run_dates.c.day.in_(list(days)),
                    run_dates.c.state == DateState.PUBLISHED.value,
                    run_dates.c.active,  # a run that was closed meanwhile no longer holds its dates
                    run_dates.c.verdict.in_(passing),
                    held,
                )
                .with_for_update()
            )
            found = connection.execute(query).all()
            if not found:
                return []
            proven = [row.day for row in found]
            job = found[0].job
            earlier = and_(checkpoints.c.job == job, checkpoints.c.day.in_(proven))
            _remember(connection, run_id, earlier)
            connection.execute(delete(checkpoints).where(earlier))
            connection.execute(_proof(run_id, proven, now))
            clear_open_flags(connection, job, proven, run_id, now)
            connection.execute(
                update(run_dates)
                .where(run_dates.c.run_id == run_id, run_dates.c.day.in_(proven))
                .values(date_transition(DateState.PUBLISHED, DateState.CHECKPOINTED, {}))
            )
        return proven

    def list_checkpoints(self, job: str, start: date, through: date) -> dict[date, Checkpoint]:
        """The job's checkpoints in the range, by day."""
        query = select(checkpoints).where(checkpoints.c.job == job, checkpoints.c.day.between(start, through))
        with self._read() as connection:
            return {row["day"]: checkpoint_from_row(row) for row in connection.execute(query).mappings()}

    # -- undo -----------------------------------------------------------------------------------------------

    def begin_undo(self, run_id: str, days: Collection[date]) -> None:
        """Remove an ended run's checkpoints of the days, before their rows go, and hold the days for its undoing.

        No checkpoint is ever without its rows, and no other run can take the days until `undone` or `let_go`. A flag
        that such a checkpoint cleared is open again: what was wrong with its date is about to come back. Raises
        `DatesTaken`, and changes nothing, when an active run holds one of them or another run's checkpoint stands.
        """
        these = and_(run_dates.c.run_id == run_id, run_dates.c.day.in_(list(days)))
        try:
            with self._write() as connection:
                job = connection.execute(select(runs.c.job).where(runs.c.id == run_id)).scalar_one()
                connection.execute(update(run_dates).where(these).values(active=True))
                of_days = and_(checkpoints.c.job == job, checkpoints.c.day.in_(list(days)))
                later = connection.execute(
                    select(checkpoints.c.run_id, checkpoints.c.day).where(of_days, checkpoints.c.run_id != run_id)
                ).first()
                if later is not None:
                    raise DatesInUse(f"run {later.run_id} has checkpointed {later.day} meanwhile", run=later.run_id)
                connection.execute(delete(checkpoints).where(of_days))
                reopen_flags(connection, job, days, run_id)
        except IntegrityError as exc:
            raise DatesInUse(f"a run holds some of the dates of run {run_id} now: wait for its end", run="") from exc

    def release_undo(self, run_id: str) -> None:
        """Give free the dates that an ended run holds for its undoing."""
        with self._write() as connection:
            connection.execute(update(run_dates).where(run_dates.c.run_id == run_id).values(active=False))

    def list_replaced_checkpoints(self, run_id: str) -> dict[date, Checkpoint]:
        """The checkpoints that the run's own replaced, by day."""
        query = select(replaced_checkpoints).where(replaced_checkpoints.c.replaced_by == run_id)
        with self._read() as connection:
            return {
                row["day"]: checkpoint_from_row(_without_replacer(row)) for row in connection.execute(query).mappings()
            }

    def finish_undo(self, run_id: str, again: Collection[date], by: str) -> None:
        """Mark the run as undone, reinstate the checkpoints that it had replaced on these days, and let go of all."""
        replaced = select(replaced_checkpoints).where(
            replaced_checkpoints.c.replaced_by == run_id, replaced_checkpoints.c.day.in_(list(again))
        )
        with self._write() as connection:
            rows = [_without_replacer(row) for row in connection.execute(replaced).mappings()]
            if rows:
                connection.execute(insert(checkpoints), rows)
            connection.execute(update(runs).where(runs.c.id == run_id).values(undone_at=utcnow(), undone_by=by))
            record_action(connection, run_id, RunAction.UNDONE, by=by)
            connection.execute(update(run_dates).where(run_dates.c.run_id == run_id).values(active=False))


def _proof(run_id: str, days: Sequence[date], now: datetime) -> Insert:
    """The checkpoints of the run's dates, taken from what it says of them without reading that first."""
    found: dict[str, ColumnElement[Any]] = {
        one.name: run_dates.c[one.name] for one in checkpoints.c if one.name in run_dates.c
    }
    found |= {"job_version": runs.c.job_version, "checkpointed_at": literal(now, UtcDateTime())}
    of_days = (
        select(*found.values())
        .join_from(run_dates, runs, runs.c.id == run_dates.c.run_id)
        .where(run_dates.c.run_id == run_id, run_dates.c.day.in_(days))
    )
    return insert(checkpoints).from_select(list(found), of_days)


def _without_replacer(row: Mapping[Any, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "replaced_by"}


def _remember(connection: Connection, run_id: str, earlier: ColumnElement[bool]) -> None:
    """Keep the checkpoints of other runs that this run's are about to replace."""
    rows = connection.execute(select(checkpoints).where(earlier, checkpoints.c.run_id != run_id)).mappings().all()
    if rows:
        connection.execute(insert(replaced_checkpoints), [{**row, "replaced_by": run_id} for row in rows])
