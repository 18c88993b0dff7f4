"""Dates of runs: list them, change their state, record verdicts."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import date, datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, exists, func, select, true, update

from gated_backfill.common.ledger.database import LedgerStore, window_leased_by
from gated_backfill.common.ledger.records import DateRow, Run, RunSummary, SourceUse
from gated_backfill.common.ledger.rows import (
    UNDONE_DATE,
    DateColumns,
    cancelled_columns,
    date_from_row,
    date_transition,
    failure_columns,
    group_by_columns,
    lock_run_state,
    undone_from_row,
    update_date_statement,
)
from gated_backfill.common.ledger.states import INCOMPLETE_DATES, DateState, RunState, WindowState
from gated_backfill.common.ledger.stores.actions import cancellation_reason
from gated_backfill.common.ledger.tables import checkpoints, run_dates, runs, windows
from gated_backfill.common.model.coverage import Verdict
from gated_backfill.common.process.clock import utcnow

#: Sample from which the duration of a date is estimated.
PACE_WINDOWS, PACE_RUNS, PACE_DATES = 4, 5, 100


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
        """Return the run's dates, oldest first, limited to a window, states or days where given."""
        query = select(run_dates).where(run_dates.c.run_id == run_id)
        if window is not None:
            query = query.where(run_dates.c.window == window)
        if states is not None:
            query = query.where(run_dates.c.state.in_([state.value for state in states]))
        if days is not None:
            query = query.where(run_dates.c.day.in_(list(days)))
        with self._read() as connection:
            rows = [date_from_row(row) for row in connection.execute(query).mappings()]
        return sorted(rows, key=lambda row: row.day)  # with ORDER BY, SQLite would choose an index that reads all dates

    def earliest_day(self, job: str) -> date | None:
        """Return the earliest date of any run of the job; None when it has no run."""
        queries = [select(func.min(table.c.day)).where(table.c.job == job) for table in (run_dates, checkpoints)]
        with self._read() as connection:
            days = [connection.execute(query).scalar() for query in queries]
        return min((day for day in days if day is not None), default=None)

    def get_run_summary(self, run_id: str) -> RunSummary:
        """Return what a report shows of the run's dates."""
        of_run = run_dates.c.run_id == run_id
        by_source = (
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
        exceptions = select(run_dates).where(
            of_run, run_dates.c.verdict.in_([Verdict.ACCEPTED.value, Verdict.FORCED.value])
        )
        undone_dates = select(*UNDONE_DATE).where(of_run, run_dates.c.undone_at.is_not(None)).order_by(run_dates.c.day)
        with self._read() as connection:
            sources = tuple(
                SourceUse(source=source, dates=dates, matched=int(matched), expected=int(expected))
                for source, dates, matched, expected in connection.execute(by_source)
            )
            rows = connection.execute(exceptions.order_by(run_dates.c.day)).mappings()
            accepted_or_forced = tuple(date_from_row(row) for row in rows)
            undone = tuple(map(undone_from_row, connection.execute(undone_dates).mappings()))
        incomplete = self.list_dates(run_id, states=INCOMPLETE_DATES)
        return RunSummary(
            sources=sources, incomplete=tuple(incomplete), accepted_or_forced=accepted_or_forced, undone=undone
        )

    def move_date(
        self,
        run_id: str,
        day: date,
        *,
        expect: DateState,
        to: DateState,
        owner: str | None = None,
        gate: tuple[int, str] | None = None,
        **columns: Any,
    ) -> bool:
        """Change one date from state `expect` to state `to`, and write further columns of `run_dates`.

        `owner`: change it only while that worker has the date's lease. `gate` (window number and owner): change it only
        while that gate has the window's lease. A date to requeue is cancelled if its run is being cancelled, because no
        worker would claim it. Returns False, and changes nothing, when a condition does not hold.
        """
        return bool(self.move_dates(run_id, [day], expect=expect, to=to, owner=owner, gate=gate, **columns))

    def move_dates(
        self,
        run_id: str,
        days: Collection[date],
        *,
        expect: DateState,
        to: DateState,
        owner: str | None = None,
        gate: tuple[int, str] | None = None,
        **columns: Any,
    ) -> int:
        """Change several dates as `move_date` does; returns how many were changed."""
        if not days:
            return 0
        expected_dates = and_(
            run_dates.c.run_id == run_id,
            run_dates.c.day.in_(list(days)),
            run_dates.c.state == expect.value,
            *([run_dates.c.lease_owner == owner] if owner is not None else []),
            *([exists().where(window_leased_by(run_id, gate))] if gate is not None else []),
        )
        change, values = update(run_dates).where(expected_dates), date_transition(expect, to, columns)
        if to is not DateState.QUEUED:
            durable = to is not DateState.PUBLISHED  # its checkpoint follows, and is durable
            with self._write_one(durable=durable) as connection:
                return connection.execute(change.values(values)).rowcount
        with self._write() as connection:
            if lock_run_state(connection, run_id) is RunState.CANCELLING:
                values |= cancelled_columns(cancellation_reason(connection, run_id))
            return connection.execute(change.values(values)).rowcount

    def fail_remaining_dates(self, run_id: str, kind: str, error: str, job_place: str | None = None) -> int:
        """Fail every pending or queued date of the run and close its pending windows, where no retry can help.

        `job_place`: the file and line of the job that raised the error.
        """
        unclaimed = [DateState.PENDING.value, DateState.QUEUED.value]
        columns = failure_columns(kind, error, f"{kind}: {error}", job_place)
        with self._write() as connection:
            connection.execute(
                update(windows)
                .where(windows.c.run_id == run_id, windows.c.state == WindowState.PENDING.value)
                .values(state=WindowState.CLOSED.value, closed_at=utcnow())
            )
            return connection.execute(
                update(run_dates)
                .where(run_dates.c.run_id == run_id, run_dates.c.state.in_(unclaimed))
                .values(date_transition(DateState.PENDING, DateState.FAILED, columns))
            ).rowcount

    def last_activity(self, run_id: str) -> datetime | None:
        """Return when a date of the run was last queued, claimed or ended; None while one is being processed."""
        query = select(
            func.max(run_dates.c.queued_at).label("queued"),
            func.max(run_dates.c.started_at).label("started"),
            func.max(run_dates.c.ended_at).label("ended"),
            func.count().filter(run_dates.c.state == DateState.PROCESSING.value).label("processing"),
        ).where(run_dates.c.run_id == run_id)
        with self._read() as connection:
            row = connection.execute(query).one()
        moments = [moment for moment in (row.queued, row.started, row.ended) if moment is not None]
        return max(moments) if moments and not row.processing else None

    def median_seconds_per_date(self, run: Run, window: int) -> float | None:
        """Estimate the seconds of work for one date from recently built dates.

        They are the dates of the run's windows before `window`, or else those of earlier runs of the same job version.
        None when no date was built. The median ignores a worker's first date, which includes its warm-up.
        """
        from statistics import median  # imported here to keep start-up fast

        recent = and_(run_dates.c.run_id == run.id, run_dates.c.window.between(window - PACE_WINDOWS, window))
        earlier_runs = (
            select(runs.c.id)
            .where(runs.c.job == run.job, runs.c.job_version == run.job_version, runs.c.id != run.id)
            .order_by(runs.c.created_at.desc())
            .limit(PACE_RUNS)
        )
        with self._read() as connection:
            if seconds := _sample_seconds(connection, recent):
                return median(seconds)
            for run_id in connection.execute(earlier_runs).scalars().all():
                if seconds := _sample_seconds(connection, run_dates.c.run_id == run_id):
                    return median(seconds)
        return None

    def record_verdicts(
        self, run_id: str, columns: Mapping[date, DateColumns], *, gate: tuple[int, str] | None = None
    ) -> None:
        """Write a gate's recounts and verdicts of staged dates, only while `gate` (if given) has the window's lease.

        The write is durable, so that after a power cut the ledger still has the verdict of every published date.
        """
        has_lease = true() if gate is None else exists().where(window_leased_by(run_id, gate))
        is_staged = run_dates.c.state == DateState.STAGED.value
        rows = [{"of_run": run_id, "of_day": day, **values} for day, values in columns.items()]
        with self._write() as connection:
            for group in group_by_columns(rows):
                connection.execute(update_date_statement(group[0]).where(is_staged, has_lease), group)

    def latest_date_outcomes(self, job: str, start: date, through: date) -> dict[date, DateRow]:
        """Return, by day, the date row of the run that ended the date last; cancelled dates do not count."""
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


def _sample_seconds(connection: Connection, condition: ColumnElement[bool]) -> list[float]:
    """Return the processing times of some built dates."""
    is_built = (run_dates.c.checksum.is_not(None), run_dates.c.seconds.is_not(None))
    query = select(run_dates.c.seconds).where(condition, *is_built).limit(PACE_DATES)
    return list(connection.execute(query).scalars())
