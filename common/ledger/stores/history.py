"""History: the runs of a time span with all their dates."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime

from sqlalchemy import ColumnElement, Connection, and_, or_, select

from gated_backfill.common.ledger.database import LedgerStore
from gated_backfill.common.ledger.records import DateRow, Run, RunWithDates
from gated_backfill.common.ledger.rows import date_from_row, run_from_row
from gated_backfill.common.ledger.tables import run_dates, runs

DATES_PER_QUERY = 1000  #: dates


class HistoryStore(LedgerStore):
    """Read-only queries over past runs. A span includes `start` and excludes `until`."""

    def list_runs_with_dates(self, start: datetime, until: datetime, *, job: str | None = None) -> list[RunWithDates]:
        """Return the runs that ended in the span, and active runs created in it, newest first, with their dates.

        `job` limits them to one job. Takes two indexed queries, for any number of runs.
        """
        is_active = and_(runs.c.finished_at.is_(None), runs.c.created_at >= start, runs.c.created_at < until)
        return self._runs_with_dates(or_(_ended_in(start, until), is_active), job)

    def list_ended_runs_with_dates(self, start: datetime, until: datetime) -> list[RunWithDates]:
        """Return the runs of all jobs that ended in the span, newest first, with their dates."""
        return self._runs_with_dates(_ended_in(start, until), None)

    def list_ended_runs(self, start: datetime, until: datetime) -> list[Run]:
        """Return the runs of all jobs that ended in the span, newest first."""
        with self._read() as connection:
            return _newest_first(connection, _ended_in(start, until))

    def iter_dates(self, run_id: str) -> Iterator[DateRow]:
        """Yield the dates of a run, oldest first, with at most `DATES_PER_QUERY` of them in memory."""
        last_day = date.min
        while True:
            query = select(run_dates).where(run_dates.c.run_id == run_id, run_dates.c.day > last_day)
            with self._read() as connection:
                rows = connection.execute(query.order_by(run_dates.c.day).limit(DATES_PER_QUERY)).mappings().all()
            yield from map(date_from_row, rows)
            if len(rows) < DATES_PER_QUERY:
                return
            last_day = rows[-1]["day"]

    def _runs_with_dates(self, condition: ColumnElement[bool], job: str | None) -> list[RunWithDates]:
        is_selected = condition if job is None else and_(condition, runs.c.job == job)
        dates_query = select(run_dates).where(run_dates.c.run_id.in_(select(runs.c.id).where(is_selected)))
        with self._read() as connection:
            # Runs are read before dates: the dates of a run that was read as ended no longer change.
            selected_runs = _newest_first(connection, is_selected)
            dates: dict[str, list[DateRow]] = {run.id: [] for run in selected_runs}
            for row in connection.execute(dates_query.order_by(run_dates.c.run_id, run_dates.c.day)).mappings():
                if row["run_id"] in dates:
                    dates[row["run_id"]].append(date_from_row(row))
        return [RunWithDates(run=run, dates=tuple(dates[run.id])) for run in selected_runs]


def _ended_in(start: datetime, until: datetime) -> ColumnElement[bool]:
    return and_(runs.c.finished_at >= start, runs.c.finished_at < until)


def _newest_first(connection: Connection, condition: ColumnElement[bool]) -> list[Run]:
    query = select(runs).where(condition).order_by(runs.c.created_at.desc(), runs.c.id)
    return [run_from_row(row) for row in connection.execute(query).mappings()]
