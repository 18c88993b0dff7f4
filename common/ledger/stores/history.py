"""What runs did, for history: the runs of a span of time with every fact of every date of theirs."""

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
    """The past, as it was written down."""

    def list_runs_with_dates(self, start: datetime, until: datetime, *, job: str | None = None) -> list[RunWithDates]:
        """The runs that ended in the span, and those of it that have no end yet, newest first, with their dates.

        `start` is of the span, `until` is not. A run is of the span in which it ended; one that has not ended is of the
        span in which it was created. Two indexed queries, however many runs there are.
        """
        going_on = and_(runs.c.finished_at.is_(None), runs.c.created_at >= start, runs.c.created_at < until)
        return self._facts_of(or_(_ended_in(start, until), going_on), job)

    def list_ended_runs_with_dates(self, start: datetime, until: datetime) -> list[RunWithDates]:
        """The runs of every job that ended in the span, newest first, with their dates; `until` is not of it."""
        return self._facts_of(_ended_in(start, until), None)

    def list_ended_runs(self, start: datetime, until: datetime) -> list[Run]:
        """The runs of every job that ended in the span, newest first; `until` is not of it."""
        with self._read() as connection:
            return _newest_first(connection, _ended_in(start, until))

    def iter_dates(self, run_id: str) -> Iterator[DateRow]:
        """The dates of a run, oldest first, read some at a time: never more than these are in memory."""
        last = date.min
        while True:
            query = select(run_dates).where(run_dates.c.run_id == run_id, run_dates.c.day > last)
            with self._read() as connection:
                found = connection.execute(query.order_by(run_dates.c.day).limit(DATES_PER_QUERY)).mappings().all()
            yield from map(date_from_row, found)
            if len(found) < DATES_PER_QUERY:
                return
            last = found[-1]["day"]

    def _facts_of(self, chosen: ColumnElement[bool], job: str | None) -> list[RunWithDates]:
        where = chosen if job is None else and_(chosen, runs.c.job == job)
        of_dates = select(run_dates).where(run_dates.c.run_id.in_(select(runs.c.id).where(where)))
        with self._read() as connection:
            # The runs are read first: the dates of one that had ended by then are as they were at its end.
            found = _newest_first(connection, where)
            dates: dict[str, list[DateRow]] = {run.id: [] for run in found}
            for row in connection.execute(of_dates.order_by(run_dates.c.run_id, run_dates.c.day)).mappings():
                if row["run_id"] in dates:
                    dates[row["run_id"]].append(date_from_row(row))
        return [RunWithDates(run=run, dates=tuple(dates[run.id])) for run in found]


def _ended_in(start: datetime, until: datetime) -> ColumnElement[bool]:
    return and_(runs.c.finished_at >= start, runs.c.finished_at < until)


def _newest_first(connection: Connection, which: ColumnElement[bool]) -> list[Run]:
    query = select(runs).where(which).order_by(runs.c.created_at.desc(), runs.c.id)
    return [run_from_row(row) for row in connection.execute(query).mappings()]
