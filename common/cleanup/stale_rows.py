"""Stale rows: which rows of a table are too old, and whether their share is small enough to delete."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from gated_backfill.common.config.maintenance import MAX_DAYS
from gated_backfill.common.config.settings import Settings
from gated_backfill.common.errors import UserError
from gated_backfill.common.ledger import Ledger
from gated_backfill.common.ledger.jobs_in_use import jobs_in_use
from gated_backfill.common.model.coverage import format_percent
from gated_backfill.common.model.dates import ALL_DATES
from gated_backfill.common.model.registry import load_jobs
from gated_backfill.common.model.tables import DatedTable
from gated_backfill.common.process.clock import utcnow
from gated_backfill.common.warehouse.protocol import Warehouse


def local_today(settings: Settings, now: datetime | None = None) -> date:
    """Today's date in the time zone of the settings."""
    return (now or utcnow()).astimezone(ZoneInfo(settings.timezone)).date()


def cutoff_of(today: date, days: int) -> date:
    """The date before which rows are more than `days` days old. Raises `UserError` unless 1 <= days <= `MAX_DAYS`."""
    if days < 1:
        raise UserError(f"rows dated today or later are never deleted: {days} days is less than 1")
    if days > MAX_DAYS:
        raise UserError(f"nothing is that old: {days} days is more than {MAX_DAYS}")
    return today - timedelta(days=days)


@dataclass(frozen=True, kw_only=True)
class StaleRows:
    """The rows that a cleanup would delete from a table."""

    table: DatedTable
    cutoff: date  #: rows of earlier dates are stale
    exists: bool  #: whether the table exists
    rows_by_date: Mapping[date, int]  #: stale dates only
    table_rows: int  #: all rows of the table
    restored: tuple[date, ...] = ()  #: stale dates that were restored: the daily cleanup does not delete them

    @property
    def rows(self) -> int:
        return sum(self.rows_by_date.values())

    @property
    def share(self) -> float:
        """The stale share of the table's rows, 0 to 1."""
        return self.rows / self.table_rows if self.table_rows else 0.0

    def as_json(self) -> dict[str, Any]:
        return {
            "table": str(self.table),
            "exists": self.exists,
            "cutoff": self.cutoff,
            "rows": self.rows,
            "dates": len(self.rows_by_date),
            "oldest": min(self.rows_by_date, default=None),
            "newest": max(self.rows_by_date, default=None),
            "table_rows": self.table_rows,
            "share": round(self.share, 4),
            "restored_dates": len(self.restored),
        }


def select_stale_rows(
    table: DatedTable,
    counts: Mapping[date, int] | None,
    cutoff: date,
    restored: Collection[date] = (),
    *,
    skip_restored: bool = False,
) -> StaleRows:
    """Select the rows dated before `cutoff`.

    `counts` has the table's number of rows by date, or is None if the table does not exist. Restored dates are reported
    as such, and left out of the rows to delete with `skip_restored`.
    """
    rows_by_date = {day: rows for day, rows in sorted((counts or {}).items()) if day < cutoff and rows}
    restored_days = tuple(day for day in rows_by_date if day in restored)
    return StaleRows(
        table=table,
        cutoff=cutoff,
        exists=counts is not None,
        rows_by_date={day: n for day, n in rows_by_date.items() if not (skip_restored and day in restored_days)},
        table_rows=sum((counts or {}).values()),
        restored=restored_days,
    )


def deletion_objection(stale: StaleRows, max_share: float) -> str | None:
    """The reason not to delete the rows: their share is above `max_share`. None if they may be deleted."""
    if stale.share <= max_share:
        return None
    share = format_percent(stale.rows, stale.table_rows)
    return (
        f"{stale.table}: {stale.rows} of its {stale.table_rows} rows ({share}) are dated before {stale.cutoff}, "
        f"more than the share of {max_share:g} that one cleanup may delete"
    )


def tables_to_clean(settings: Settings, ledger: Ledger | None, named: Collection[str] = ()) -> tuple[DatedTable, ...]:
    """The tables in BACKFILL_CLEANUP_TABLES, and the stale tables that the installed jobs declare.

    Those of the example job count only once it was run, or if they are `named`. `ledger` is None if there is none yet.
    """
    tables = {str(table): table for table in settings.tables_to_clean}
    names_in_use = jobs_in_use(ledger)
    for job in load_jobs()[0]:
        for stale_table in job.stale_tables:
            if job.name in names_in_use or stale_table.table in named:
                tables.setdefault(stale_table.table, stale_table.dated_table())
    return tuple(tables.values())


def check_no_job_targets(tables: Collection[DatedTable]) -> None:
    """Raise `UserError` if a job builds one of the tables: a cleanup would leave its checkpoints without their rows."""
    names = {str(table) for table in tables}
    for job in load_jobs()[0]:
        if job.target.table in names:
            raise UserError(
                f"{job.target.table} is built by job {job.name}, so its rows are not to be cleaned up: take it out of "
                f"BACKFILL_CLEANUP_TABLES and out of the stale tables of every job"
            )


def find_stale_rows(
    table: DatedTable,
    warehouse: Warehouse,
    cutoff: date,
    restored: Collection[date] = (),
    *,
    skip_restored: bool = False,
) -> StaleRows:
    """Count the table's rows by date and select the stale ones. Changes nothing.

    Raises `SchemaMismatch` for a date column that does not hold dates.
    """
    info = warehouse.describe(table.name)
    if info is None:
        return select_stale_rows(table, None, cutoff)
    info.check_dates(table.date_column)
    counts = warehouse.row_counts(table.name, table.date_column, ALL_DATES)
    return select_stale_rows(table, counts, cutoff, restored, skip_restored=skip_restored)
