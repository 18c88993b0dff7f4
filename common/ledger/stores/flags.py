"""Flagged dates: what an audit found not to be as it should be, until a run repairs it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date, datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, func, select, update
from sqlalchemy.dialects import sqlite

from gated_backfill.common.ledger.database import LedgerStore
from gated_backfill.common.ledger.tables import checkpoints, flagged_dates, run_dates
from gated_backfill.common.process.clock import utcnow


@dataclass(frozen=True, kw_only=True)
class NewFlag:
    """A date to flag."""

    day: date
    finding: str  #: incomplete, missing, duplicated or changed
    reason: str
    expected: int | None = None
    matched: int | None = None


@dataclass(frozen=True, kw_only=True)
class Flag:
    """A flagged date; a cleared one is kept to tell who repaired it."""

    job: str
    day: date
    finding: str
    reason: str
    expected: int | None
    matched: int | None
    flagged_at: datetime
    flagged_by: str
    cleared_at: datetime | None
    cleared_by: str | None  #: the run whose checkpoint did, or an audit that found nothing wrong any more


class FlagStore(LedgerStore):
    """At most one flag a job and date."""

    def flag_dates(self, job: str, findings: Sequence[NewFlag], by: str) -> None:
        """Flag the dates; one that is flagged, or was once, is flagged anew with what was found now."""
        if not findings:
            return
        now = utcnow()
        fresh: dict[str, Any] = {"flagged_at": now, "flagged_by": by, "cleared_at": None, "cleared_by": None}
        rows = [{"job": job, **asdict(one), **fresh} for one in sorted(findings, key=lambda one: one.day)]
        with self._write() as connection:
            _upsert(connection, rows)

    def list_open_flags(self, job: str) -> dict[date, Flag]:
        """The job's open flags by day, oldest day first."""
        return self._flags(and_(flagged_dates.c.job == job, flagged_dates.c.cleared_at.is_(None)))

    def list_flags(self, job: str) -> dict[date, Flag]:
        """All of the job's flags by day, the cleared ones included."""
        return self._flags(flagged_dates.c.job == job)

    def clear_flags(self, job: str, days: Collection[date], by: str) -> list[date]:
        """Clear the open flags of the days; returns the days that had one."""
        if not days:
            return []
        with self._write() as connection:
            return clear_open_flags(connection, job, days, by, utcnow())

    def earliest_day(self, job: str) -> date | None:
        """The earliest date that any run of the job dealt with; None when none ever did."""
        queries = [select(func.min(table.c.day)).where(table.c.job == job) for table in (run_dates, checkpoints)]
        with self._read() as connection:
            found = [connection.execute(query).scalar() for query in queries]
        return min((day for day in found if day is not None), default=None)

    def _flags(self, which: ColumnElement[bool]) -> dict[date, Flag]:
        query = select(flagged_dates).where(which).order_by(flagged_dates.c.day)
        with self._read() as connection:
            return {row["day"]: _flag_of(row) for row in connection.execute(query).mappings()}


def clear_open_flags(connection: Connection, job: str, days: Collection[date], by: str, now: datetime) -> list[date]:
    """Clear the open flags of the days within a transaction; returns the days that had one."""
    query = (
        update(flagged_dates)
        .where(flagged_dates.c.job == job, flagged_dates.c.day.in_(list(days)), flagged_dates.c.cleared_at.is_(None))
        .values(cleared_at=now, cleared_by=by)
        .returning(flagged_dates.c.day)
    )
    return sorted(connection.execute(query).scalars())


def reopen_flags(connection: Connection, job: str, days: Collection[date], run_id: str) -> None:
    """Open again, within a transaction, the flags that the run's checkpoints of the days had cleared."""
    connection.execute(
        update(flagged_dates)
        .where(flagged_dates.c.job == job, flagged_dates.c.day.in_(list(days)), flagged_dates.c.cleared_by == run_id)
        .values(cleared_at=None, cleared_by=None)
    )


def _upsert(connection: Connection, rows: list[dict[str, Any]]) -> None:
    if connection.dialect.name == "postgresql":  # whose dialect takes longer to import than most commands to run
        from sqlalchemy.dialects import postgresql

        statement = postgresql.insert(flagged_dates)
    else:
        statement = sqlite.insert(flagged_dates)
    keys = [column.name for column in flagged_dates.primary_key]
    renewed = {name: statement.excluded[name] for name in rows[0] if name not in keys}
    connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=renewed), rows)


def _flag_of(row: Mapping[Any, Any]) -> Flag:
    values: dict[str, Any] = {**row}
    return Flag(**values)
