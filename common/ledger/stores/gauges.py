"""Numbers about the ledger for whoever watches it: each is one grouped query that an index keeps short.

Nothing here reads all dates that were ever built: what covers every date is counted from the checkpoints, and what
covers runs from the runs of some days or from the last one of each job.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Executable, and_, case, func, or_, select

from gated_backfill.common.ledger.database import LedgerStore
from gated_backfill.common.ledger.records import Run
from gated_backfill.common.ledger.rows import run_from_row
from gated_backfill.common.ledger.states import DateState
from gated_backfill.common.ledger.tables import (
    alerts,
    checkpoints,
    cleanup_operations,
    flagged_dates,
    maintenance,
    run_dates,
    runs,
)

Counts = dict[tuple[str, ...], int]  #: how many, by what the query groups by


@dataclass(frozen=True, kw_only=True)
class DateMetrics:
    """What is counted of one ended date of a run."""

    state: DateState
    source: str | None
    expected: int | None
    matched: int | None
    seconds: float | None


class GaugeStore(LedgerStore):
    """How the ledger stands."""

    def checkpoint_counts(self) -> Counts:
        """Dates that are checkpointed, by job and verdict."""
        return self._counts(
            select(checkpoints.c.job, checkpoints.c.verdict, func.count()).group_by(
                checkpoints.c.job, checkpoints.c.verdict
            )
        )

    def ended_date_counts(self, since: datetime) -> Counts:
        """Dates of the runs that ended since then, by job and state."""
        query = select(run_dates.c.job, run_dates.c.state, func.count()).join(runs, runs.c.id == run_dates.c.run_id)
        return self._counts(query.where(runs.c.finished_at >= since).group_by(run_dates.c.job, run_dates.c.state))

    def built_counts_by_source(self, since: datetime) -> Counts:
        """Checkpointed dates of the runs that ended since then, by job and the source they were built from."""
        dates = func.count(run_dates.c.day.distinct())  # a date that was built twice is one
        query = select(run_dates.c.job, run_dates.c.source, dates).join(runs, runs.c.id == run_dates.c.run_id)
        built = and_(runs.c.finished_at >= since, run_dates.c.state == DateState.CHECKPOINTED.value)
        query = query.where(built, run_dates.c.source.is_not(None))
        return self._counts(query.group_by(run_dates.c.job, run_dates.c.source))

    def active_run_counts(self) -> Counts:
        """Runs that have not ended, by job and state."""
        query = select(runs.c.job, runs.c.state, func.count()).where(runs.c.finished_at.is_(None))
        return self._counts(query.group_by(runs.c.job, runs.c.state))

    def oldest_waiting_since(self) -> dict[str, datetime]:
        """For each job with dates that are still to be built, since when the oldest of them has waited."""
        asked = func.min(runs.c.created_at)
        query = select(run_dates.c.job, asked).join(runs, runs.c.id == run_dates.c.run_id)
        query = query.where(run_dates.c.active, runs.c.finished_at.is_(None)).group_by(run_dates.c.job)
        return self._moments(query)

    def last_ended_runs(self) -> list[Run]:
        """Of each job, the run that ended last."""
        last = select(runs.c.job, func.max(runs.c.finished_at).label("at")).group_by(runs.c.job).subquery()
        query = select(runs).join(last, and_(runs.c.job == last.c.job, runs.c.finished_at == last.c.at))
        with self._read() as connection:
            found = [run_from_row(row) for row in connection.execute(query.order_by(runs.c.id)).mappings()]
        return list({run.job: run for run in found}.values())  # two may have ended in the same microsecond

    def list_date_metrics(self, run_id: str) -> list[DateMetrics]:
        """What is counted of each date of a run, without the names and texts."""
        c = run_dates.c
        query = select(c.state, c.source, c.expected, c.matched, c.seconds).where(c.run_id == run_id)
        with self._read() as connection:
            return [
                DateMetrics(
                    state=DateState(row.state),
                    source=row.source,
                    expected=row.expected,
                    matched=row.matched,
                    seconds=row.seconds,
                )
                for row in connection.execute(query)
            ]

    def flagged_counts(self) -> Counts:
        """Dates flagged by an audit and not repaired yet, by job and finding."""
        query = select(flagged_dates.c.job, flagged_dates.c.finding, func.count())
        query = query.where(flagged_dates.c.cleared_at.is_(None))
        return self._counts(query.group_by(flagged_dates.c.job, flagged_dates.c.finding))

    def alert_counts(self, since: datetime) -> Counts:
        """Alerts that were written down since then, by state."""
        recent = alerts.c.created_at >= since
        return self._counts(select(alerts.c.state, func.count()).where(recent).group_by(alerts.c.state))

    def maintenance_last_done(self) -> dict[str, datetime]:
        """For each kind of maintenance, when it was last done; the moment that was due where it failed since."""
        c = maintenance.c
        done = case((c.error.is_(None), c.finished_at), (c.outcome.is_not(None), c.done_slot))
        return self._moments(select(c.name, done).where(done.is_not(None)))

    def maintenance_failed(self) -> dict[str, bool]:
        """For each kind of maintenance that was tried, whether the last try failed."""
        c = maintenance.c
        query = select(c.name, c.error.is_not(None)).where(or_(c.finished_at.is_not(None), c.error.is_not(None)))
        with self._read() as connection:
            return {str(row[0]): bool(row[1]) for row in connection.execute(query)}

    def last_cleanups(self) -> dict[str, datetime]:
        """For each table that was cleaned of stale rows, when that was last."""
        done = cleanup_operations.c.deleted_at
        query = select(cleanup_operations.c.table_name, func.max(done)).where(done.is_not(None))
        return self._moments(query.group_by(cleanup_operations.c.table_name))

    def check_readable(self) -> None:
        """Raises `LedgerUnavailable` or `LedgerUnusable` unless the ledger can be read."""
        with self._read() as connection:
            connection.execute(select(runs.c.id).limit(1)).all()

    def _counts(self, query: Executable) -> Counts:
        with self._read() as connection:
            return {tuple(map(str, row[:-1])): int(row[-1]) for row in connection.execute(query)}

    def _moments(self, query: Executable) -> dict[str, datetime]:
        with self._read() as connection:
            return {str(row[0]): row[1] for row in connection.execute(query)}
