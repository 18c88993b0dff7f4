"""Flags: dates in which an audit found something wrong, until a run repairs them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date, datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, select, update
from sqlalchemy.dialects import sqlite

from gated_backfill.common.ledger.database import LedgerStore
from gated_backfill.common.ledger.tables import flagged_dates
from gated_backfill.common.process.clock import utcnow


@dataclass(frozen=True, kw_only=True)
class NewFlag:
    day: date
    finding: str  #: incomplete, missing, duplicated, invalid or changed
    reason: str
    expected: int | None = None
    matched: int | None = None


@dataclass(frozen=True, kw_only=True)
class Flag:
    """A flagged date. A cleared flag is kept to show which run repaired the date."""

    job: str
    day: date
    finding: str
    reason: str
    expected: int | None
    matched: int | None
    flagged_at: datetime
    flagged_by: str
    cleared_at: datetime | None
    cleared_by: str | None  #: the run that checkpointed the date, or an audit that found it correct


class FlagStore(LedgerStore):
    """At most one flag for each job and date."""

    def flag_dates(self, job: str, findings: Sequence[NewFlag], by: str) -> None:
        """Flag the dates with the findings; an earlier flag of a date is overwritten."""
        if not findings:
            return
        now = utcnow()
        opened: dict[str, Any] = {"flagged_at": now, "flagged_by": by, "cleared_at": None, "cleared_by": None}
        rows = [{"job": job, **asdict(flag), **opened} for flag in sorted(findings, key=lambda flag: flag.day)]
        with self._write() as connection:
            _upsert(connection, rows)

    def list_open_flags(self, job: str) -> dict[date, Flag]:
        """Return the job's open flags by day, oldest day first."""
        return self._select(and_(flagged_dates.c.job == job, flagged_dates.c.cleared_at.is_(None)))

    def list_flags(self, job: str) -> dict[date, Flag]:
        """Return all flags of the job by day, including cleared ones."""
        return self._select(flagged_dates.c.job == job)

    def clear_flags(self, job: str, days: Collection[date], by: str) -> list[date]:
        """Clear the open flags of the days; returns the days that had one."""
        if not days:
            return []
        with self._write() as connection:
            return clear_open_flags(connection, job, days, by, utcnow())

    def _select(self, condition: ColumnElement[bool]) -> dict[date, Flag]:
        query = select(flagged_dates).where(condition).order_by(flagged_dates.c.day)
        with self._read() as connection:
            return {row["day"]: _flag_from_row(row) for row in connection.execute(query).mappings()}


def clear_open_flags(connection: Connection, job: str, days: Collection[date], by: str, now: datetime) -> list[date]:
    """Clear the open flags of the days within the transaction; returns the days that had one."""
    query = (
        update(flagged_dates)
        .where(flagged_dates.c.job == job, flagged_dates.c.day.in_(list(days)), flagged_dates.c.cleared_at.is_(None))
        .values(cleared_at=now, cleared_by=by)
        .returning(flagged_dates.c.day)
    )
    return sorted(connection.execute(query).scalars())


def reopen_flags(connection: Connection, job: str, days: Collection[date], run_id: str) -> None:
    """Reopen, within the transaction, the flags that the run's checkpoints of the days had cleared."""
    connection.execute(
        update(flagged_dates)
        .where(flagged_dates.c.job == job, flagged_dates.c.day.in_(list(days)), flagged_dates.c.cleared_by == run_id)
        .values(cleared_at=None, cleared_by=None)
    )


def _upsert(connection: Connection, rows: list[dict[str, Any]]) -> None:
    if connection.dialect.name == "postgresql":  # imported only when needed: the import takes longer than most commands
        from sqlalchemy.dialects import postgresql

        statement = postgresql.insert(flagged_dates)
    else:
        statement = sqlite.insert(flagged_dates)
    keys = [column.name for column in flagged_dates.primary_key]
    overwritten = {name: statement.excluded[name] for name in rows[0] if name not in keys}
    connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=overwritten), rows)


def _flag_from_row(row: Mapping[Any, Any]) -> Flag:
    values: dict[str, Any] = {**row}
    return Flag(**values)
