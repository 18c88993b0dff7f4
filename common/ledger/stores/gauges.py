"""Counts and times for metrics: each is one grouped query that an index keeps short.

No query reads all dates ever built: totals of dates come from the checkpoints, totals of runs from recent runs or from
the last run of each job.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Executable, and_, case, false, func, or_, select

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

Counts = dict[tuple[str, ...], int]  #: count by the grouping columns


@dataclass(frozen=True, kw_only=True)
class DateMetrics:
    """The figures of one date of an ended run."""

    state: DateState
    source: str | None
    expected: int | None
    matched: int | None
    seconds: float | None


class GaugeStore(LedgerStore):
    """Read-only figures for metrics."""

    def checkpoint_counts(self) -> Counts:
        """Count checkpointed dates by job and verdict."""
        return self._counts(
            select(checkpoints.c.job, checkpoints.c.verdict, func.count()).group_by(
                checkpoints.c.job, checkpoints.c.verdict
            )
        )

    def ended_date_counts(self, since: datetime) -> Counts:
        """Count the dates of runs that ended since the moment, by job and state."""
        query = select(run_dates.c.job, run_dates.c.state, func.count()).join(runs, runs.c.id == run_dates.c.run_id)
        return self._counts(query.where(runs.c.finished_at >= since).group_by(run_dates.c.job, run_dates.c.state))

    def built_counts_by_source(self, since: datetime) -> Counts:
        """Count the checkpointed dates of runs that ended since the moment, by job and chosen source.

        Without runs that rebuilt checkpoints: they built no dates.
        """
        dates = func.count(run_dates.c.day.distinct())  # a date built by two runs counts once
        query = select(run_dates.c.job, run_dates.c.source, dates).join(runs, runs.c.id == run_dates.c.run_id)
        is_built = and_(runs.c.finished_at >= since, run_dates.c.state == DateState.CHECKPOINTED.value)
        is_rebuilt = func.coalesce(runs.c.options["rebuilt"].as_boolean(), false())
        query = query.where(is_built, run_dates.c.source.is_not(None), ~is_rebuilt)
        return self._counts(query.group_by(run_dates.c.job, run_dates.c.source))

    def active_run_counts(self) -> Counts:
        """Count active runs by job and state."""
        query = select(runs.c.job, runs.c.state, func.count()).where(runs.c.finished_at.is_(None))
        return self._counts(query.group_by(runs.c.job, runs.c.state))

    def oldest_waiting_since(self) -> dict[str, datetime]:
        """Return, by job with unfinished dates, the launch time of the oldest run that has them."""
        launched_at = func.min(runs.c.created_at)
        query = select(run_dates.c.job, launched_at).join(runs, runs.c.id == run_dates.c.run_id)
        query = query.where(run_dates.c.active, runs.c.finished_at.is_(None)).group_by(run_dates.c.job)
        return self._moments(query)

    def last_ended_runs(self) -> list[Run]:
        """Return the run that ended last, for each job."""
        last_end = select(runs.c.job, func.max(runs.c.finished_at).label("at")).group_by(runs.c.job).subquery()
        query = select(runs).join(last_end, and_(runs.c.job == last_end.c.job, runs.c.finished_at == last_end.c.at))
        with self._read() as connection:
            last_runs = [run_from_row(row) for row in connection.execute(query.order_by(runs.c.id)).mappings()]
        return list({run.job: run for run in last_runs}.values())  # two runs may end in the same microsecond

    def list_date_metrics(self, run_id: str) -> list[DateMetrics]:
        """Return the figures of each date of a run, without the names and texts that make rows large."""
        c = run_dates.c
        query = select(c.state, c.source, c.expected, c.matched, c.seconds).where(c.run_id == run_id)
        with self._read() as connection:
            rows = connection.execute(query).mappings().all()
        dates: list[dict[str, Any]] = [{**row, "state": DateState(row["state"])} for row in rows]
        return [DateMetrics(**values) for values in dates]

    def flagged_counts(self) -> Counts:
        """Count dates with an open flag, by job and finding."""
        query = select(flagged_dates.c.job, flagged_dates.c.finding, func.count())
        query = query.where(flagged_dates.c.cleared_at.is_(None))
        return self._counts(query.group_by(flagged_dates.c.job, flagged_dates.c.finding))

    def alert_counts(self, since: datetime) -> Counts:
        """Count the alerts recorded since the moment, by state."""
        recent = alerts.c.created_at >= since
        return self._counts(select(alerts.c.state, func.count()).where(recent).group_by(alerts.c.state))

    def maintenance_last_done(self) -> dict[str, datetime]:
        """Return, by maintenance task, its last successful end; the slot of that success if it has failed since."""
        c = maintenance.c
        last_done = case((c.error.is_(None), c.finished_at), (c.outcome.is_not(None), c.done_slot))
        return self._moments(select(c.name, last_done).where(last_done.is_not(None)))

    def maintenance_failed(self) -> dict[str, bool]:
        """Return, by maintenance task that ran, whether its last attempt failed."""
        c = maintenance.c
        query = select(c.name, c.error.is_not(None)).where(or_(c.finished_at.is_not(None), c.error.is_not(None)))
        with self._read() as connection:
            return {str(row[0]): bool(row[1]) for row in connection.execute(query)}

    def last_cleanups(self) -> dict[str, datetime]:
        """Return, by table, when stale rows were last deleted from it."""
        deleted_at = cleanup_operations.c.deleted_at
        query = select(cleanup_operations.c.table_name, func.max(deleted_at)).where(deleted_at.is_not(None))
        return self._moments(query.group_by(cleanup_operations.c.table_name))

    def check_readable(self) -> None:
        """Raise `LedgerUnavailable` or `LedgerUnusable` unless the ledger can be read."""
        with self._read() as connection:
            connection.execute(select(runs.c.id).limit(1)).all()

    def _counts(self, query: Executable) -> Counts:
        with self._read() as connection:
            return {tuple(map(str, row[:-1])): int(row[-1]) for row in connection.execute(query)}

    def _moments(self, query: Executable) -> dict[str, datetime]:
        with self._read() as connection:
            return {str(row[0]): row[1] for row in connection.execute(query)}
