"""The dates of runs: asked for and moved."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import date, datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, exists, func, select, true, update

from gated_backfill.common.ledger.database import LedgerStore, window_leased_by
from gated_backfill.common.ledger.records import DateRow, Run, RunSummary, SourceUse
from gated_backfill.common.ledger.rows import (
    DateColumns,
    cancelled_columns,
    date_from_row,
    date_transition,
    grouped_by_columns,
    lock_run_state,
    update_date,
)
from gated_backfill.common.ledger.states import INCOMPLETE_DATES, DateState, RunState, WindowState
from gated_backfill.common.ledger.stores.actions import cancellation_reason
from gated_backfill.common.ledger.tables import run_dates, runs, windows
from gated_backfill.common.model.coverage import Verdict
from gated_backfill.common.process.clock import utcnow

PACE_WINDOWS, PACE_RUNS, PACE_DATES = 4, 5, 100  #: of which it is told how long a date takes


class DateStore(LedgerStore):
    """The dates of runs, each in one state at a time."""

    def list_dates(
        self,
        run_id: str,
        *,
        window: int | None = None,
        states: Collection[DateState] | None = None,
        days: Collection[date] | None = None,
    ) -> list[DateRow]:
        """The run's dates, oldest first: all, or those of one window, of some states, or among some days."""
        query = select(run_dates).where(run_dates.c.run_id == run_id)  # to have them in order, SQLite would read all
        if window is not None:
            query = query.where(run_dates.c.window == window)
        if states is not None:
            query = query.where(run_dates.c.state.in_([state.value for state in states]))
        if days is not None:
            query = query.where(run_dates.c.day.in_(list(days)))
        with self._read() as connection:
            found = [date_from_row(row) for row in connection.execute(query).mappings()]
        return sorted(found, key=lambda row: row.day)

    def get_run_summary(self, run_id: str) -> RunSummary:
        """What there is to tell of the run's dates."""
        of_run = run_dates.c.run_id == run_id
        used = (
            select(
                run_dates.c.source,
                func.count(),
                func.sum(func.coalesce(run_dates.c.matched, 0)),
                func.sum(func.coalesce(run_dates.c.expected, 0)),
            )
            .where(of_run, run_dates.c.state == DateState.CHECKPOINTED.value, run_dates.c.source.is_not(None))
            .group_by(run_dates.c.source)
            .order_by(run_dates.c.source)
        )
        noted = select(run_dates).where(of_run, run_dates.c.verdict.in_([Verdict.ACCEPTED.value, Verdict.FORCED.value]))
        with self._read() as connection:
            sources = tuple(
                SourceUse(source=source, dates=dates, matched=int(matched), expected=int(expected))
                for source, dates, matched, expected in connection.execute(used)
            )
            rows = connection.execute(noted.order_by(run_dates.c.day)).mappings()
            told = tuple(date_from_row(row) for row in rows)
        incomplete = self.list_dates(run_id, states=INCOMPLETE_DATES)
        return RunSummary(sources=sources, incomplete=tuple(incomplete), accepted_or_forced=told)

    def move_date(
        self,
        run_id: str,
        day: date,
        *,
        expect: DateState,
        to: DateState,
        owner: str | None = None,
        gate: tuple[int, str] | None = None,
        **facts: Any,
    ) -> bool:
        """Change one date's state and record facts, if it is in the state expected.

        With `owner`, only if that worker holds the date; with `gate` (a window and an owner), only if that gate still
        holds the window. What would be queued again of a run that is being cancelled is cancelled instead: nobody
        takes it up any more.
        """
        return bool(self.move_dates(run_id, [day], expect=expect, to=to, owner=owner, gate=gate, **facts))

    def move_dates(
        self,
        run_id: str,
        days: Collection[date],
        *,
        expect: DateState,
        to: DateState,
        owner: str | None = None,
        gate: tuple[int, str] | None = None,
        **facts: Any,
    ) -> int:
        """Change the state of several dates at once, as `move_date` does; returns how many were in that expected."""
        if not days:
            return 0
        these = and_(
            run_dates.c.run_id == run_id,
            run_dates.c.day.in_(list(days)),
            run_dates.c.state == expect.value,
            *([run_dates.c.lease_owner == owner] if owner is not None else []),
            *([exists().where(window_leased_by(run_id, gate))] if gate is not None else []),
        )
        change, values = update(run_dates).where(these), date_transition(expect, to, facts)
        if to is not DateState.QUEUED:
            durable = to is not DateState.PUBLISHED  # of which the checkpoint is the proof
            with self._write_one(durable=durable) as connection:
                return connection.execute(change.values(values)).rowcount
        with self._write() as connection:
            if lock_run_state(connection, run_id) is RunState.CANCELLING:
                values |= cancelled_columns(cancellation_reason(connection, run_id))
            return connection.execute(change.values(values)).rowcount

    def fail_remaining_dates(self, run_id: str, kind: str, why: str) -> int:
        """Fail every date of a run that no worker has begun and close its unopened windows: no retry would help."""
        waiting = [DateState.PENDING.value, DateState.QUEUED.value]
        facts = {"verdict": Verdict.FAILED.value, "error_kind": kind, "error": why, "reason": f"{kind}: {why}"}
        with self._write() as connection:
            connection.execute(
                update(windows)
                .where(windows.c.run_id == run_id, windows.c.state == WindowState.PENDING.value)
                .values(state=WindowState.CLOSED.value, closed_at=utcnow())
            )
            return connection.execute(
                update(run_dates)
                .where(run_dates.c.run_id == run_id, run_dates.c.state.in_(waiting))
                .values(date_transition(DateState.PENDING, DateState.FAILED, facts))
            ).rowcount

    def last_activity(self, run_id: str) -> datetime | None:
        """When a date of the run was last queued, taken up or ended; None while one is being processed."""
        query = select(
            func.max(run_dates.c.queued_at).label("queued"),
            func.max(run_dates.c.started_at).label("started"),
            func.max(run_dates.c.ended_at).label("ended"),
            func.count().filter(run_dates.c.state == DateState.PROCESSING.value).label("processing"),
        ).where(run_dates.c.run_id == run_id)
        with self._read() as connection:
            row = connection.execute(query).one()
        known = [moment for moment in (row.queued, row.started, row.ended) if moment is not None]
        return max(known) if known and not row.processing else None

    def median_seconds_per_date(self, run: Run, window: int) -> float | None:
        """Seconds of work that a date takes, by those lately built of the run before that window, or of its job.

        None when no run of this version of the job has built any. The median: a worker's first date is no measure.
        """
        from statistics import median  # which only a launch needs

        near = and_(run_dates.c.run_id == run.id, run_dates.c.window.between(window - PACE_WINDOWS, window))
        before = (
            select(runs.c.id)
            .where(runs.c.job == run.job, runs.c.job_version == run.job_version, runs.c.id != run.id)
            .order_by(runs.c.created_at.desc())
            .limit(PACE_RUNS)
        )
        with self._read() as connection:
            if known := _seconds(connection, near):
                return median(known)
            for earlier in connection.execute(before).scalars().all():
                if known := _seconds(connection, run_dates.c.run_id == earlier):
                    return median(known)
        return None

    def record_verdicts(
        self, run_id: str, facts: Mapping[date, DateColumns], *, gate: tuple[int, str] | None = None
    ) -> None:
        """Record what the gate counted and decided, before it acts on it; only while it holds its window.

        Durably, with all before it: what is published next must be known to the ledger whatever happens.
        """
        held = true() if gate is None else exists().where(window_leased_by(run_id, gate))
        staged = run_dates.c.state == DateState.STAGED.value
        rows = [{"of_run": run_id, "of_day": day, **values} for day, values in facts.items()]
        with self._write() as connection:
            for alike in grouped_by_columns(rows):
                connection.execute(update_date(alike[0]).where(staged, held), alike)

    def latest_date_outcomes(self, job: str, start: date, through: date) -> dict[date, DateRow]:
        """For each day, how the latest run that ended it left it; a run that was cancelled before has not ended it."""
        query = (
            select(run_dates)
            .where(
                run_dates.c.job == job,
                run_dates.c.day.between(start, through),
                run_dates.c.ended_at.is_not(None),
                run_dates.c.state != DateState.CANCELLED.value,
            )
            .order_by(run_dates.c.ended_at)
        )
        with self._read() as connection:
            return {row["day"]: date_from_row(row) for row in connection.execute(query).mappings()}


def _seconds(connection: Connection, of: ColumnElement[bool]) -> list[float]:
    """What some of the dates that were built took."""
    built = (run_dates.c.checksum.is_not(None), run_dates.c.seconds.is_not(None))
    query = select(run_dates.c.seconds).where(of, *built).limit(PACE_DATES)
    return list(connection.execute(query).scalars())
