"""Which rows of a table are stale, and what speaks against deleting them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from gated_backfill.common.config.operations import MAX_DAYS
from gated_backfill.common.config.settings import Settings
from gated_backfill.common.errors import UserError
from gated_backfill.common.model.coverage import format_percent
from gated_backfill.common.model.dated_tables import DatedTable
from gated_backfill.common.model.dates import DateRange
from gated_backfill.common.model.registry import find_job, job_names
from gated_backfill.common.process.clock import utcnow
from gated_backfill.common.warehouse.protocol import Warehouse

ALL_DATES = DateRange(start=date.min, through=date.max)


def local_today(settings: Settings, now: datetime | None = None) -> date:
    """Today's date where the settings' clock stands."""
    return (now or utcnow()).astimezone(ZoneInfo(settings.timezone)).date()


def cutoff_of(today: date, days: int) -> date:
    """Rows of dates before it are more than so many days old. Raises `UserError` where that may not be deleted."""
    if days < 1:
        raise UserError(f"rows dated today or later are never deleted: {days} days is less than 1")
    if days > MAX_DAYS:
        raise UserError(f"nothing is that old: {days} days is more than {MAX_DAYS}")
    return today - timedelta(days=days)


@dataclass(frozen=True, kw_only=True)
class StaleRows:
    """What a cleanup would delete from a table."""

    table: DatedTable
    cutoff: date
    exists: bool  #: whether the table exists
    rows_by_date: Mapping[date, int]  #: of the stale dates
    table_rows: int
    restored: tuple[date, ...] = ()  #: old dates that somebody restored: the daily cleanup leaves them alone

    @property
    def rows(self) -> int:
        return sum(self.rows_by_date.values())

    @property
    def share(self) -> float:
        """Of the table's rows."""
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
    """The stale ones among a table's rows by date; `counts` is None where there is no table.

    Dates that somebody restored are stale, too, unless they are to be spared.
    """
    old = {day: rows for day, rows in (counts or {}).items() if day < cutoff and rows}
    back = tuple(sorted(old.keys() & set(restored)))
    return StaleRows(
        table=table,
        cutoff=cutoff,
        exists=counts is not None,
        rows_by_date={day: rows for day, rows in sorted(old.items()) if not (skip_restored and day in back)},
        table_rows=sum((counts or {}).values()),
        restored=back,
    )


def deletion_objection(stale: StaleRows, max_share: float) -> str | None:
    """Why it is not to be deleted unless somebody says so; None where nothing speaks against it."""
    if stale.share <= max_share:
        return None
    share = format_percent(stale.rows, stale.table_rows)
    return (
        f"{stale.table}: {stale.rows} of its {stale.table_rows} rows ({share}) are dated before {stale.cutoff}, "
        f"more than the share of {max_share:g} that one cleanup may delete"
    )


# -- looking --------------------------------------------------------------------------------------------------


def check_no_job_targets(tables: Collection[DatedTable]) -> None:
    """Raises `UserError` when a job builds one of the tables: its checkpoints would stand without their rows."""
    names = {str(one) for one in tables}
    for job in map(find_job, job_names()):
        if job.target.table in names:
            raise UserError(
                f"{job.target.table} is built by job {job.name}: its rows are not to be cleaned up, take it out of "
                f"BACKFILL_CLEANUP_TABLES"
            )


def find_stale_rows(
    table: DatedTable,
    warehouse: Warehouse,
    cutoff: date,
    restored: Collection[date] = (),
    *,
    skip_restored: bool = False,
) -> StaleRows:
    """What is stale in the table. Changes nothing."""
    if warehouse.describe(table.name) is None:
        return select_stale_rows(table, None, cutoff)
    counts = warehouse.row_counts(table.name, table.date_column, ALL_DATES)
    return select_stale_rows(table, counts, cutoff, restored, skip_restored=skip_restored)
