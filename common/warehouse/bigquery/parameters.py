"""Query parameters: dates, requests by date, and the date conditions of a scan."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from gated_backfill.common.errors import UserError
from gated_backfill.common.model.dates import ONE_DAY, DateRange, days_in, enclosing_range
from gated_backfill.common.model.publication import StagedFile
from gated_backfill.common.model.tables import TableName
from gated_backfill.common.warehouse.bigquery import statements as sql_of
from gated_backfill.common.warehouse.bigquery.statements import QuotedSql, fill_placeholders, quoted_column
from gated_backfill.common.warehouse.protocol import Scan

NO_DATES = (date(2, 1, 2), date(2, 1, 1))  #: bounds that contain no date
MAX_PARTITIONS_PER_JOB = 4000  #: partitions that one job may touch, by BigQuery's quota
MAX_RANGES = 100  #: written as conditions; more are bound as one array


def date_parameters(days: Iterable[date]) -> dict[str, Any]:
    """Return the parameters for the days: the array, and its bounds, by which partitions are pruned."""
    listed = sorted(days)
    return {"days": listed, "first": listed[0], "last": listed[-1]}


def check_partition_limit(table: TableName, days: Collection[date]) -> None:
    """Check that one job may write so many partitions. Raises `UserError`."""
    if len(days) > MAX_PARTITIONS_PER_JOB:
        raise UserError(
            f"{table}: {len(days)} dates at once; one job of BigQuery may touch {MAX_PARTITIONS_PER_JOB} partitions"
        )


def requested_dates(days: Mapping[date, Mapping[str, Any]]) -> list[str]:
    """Return the parameter with one JSON object per day."""
    return [json.dumps({"day": day.isoformat(), **facts}) for day, facts in days.items()]


class PartitionedTable(NamedTuple):
    """The quoted names of a table and of the column that it is partitioned by, None without partitions."""

    name: QuotedSql
    date: QuotedSql | None


def publication_request(staged: StagedFile, before: str) -> dict[str, Any]:
    """Describe the file's publication: the fingerprint before it, and the rows that replace the partition."""
    return {
        "before": before,
        "staged": str(staged.rows) if staged.table is None else staged.checksum,
        "checksum": staged.checksum,
        "attempt": staged.attempt,
        "row_count": staged.rows,
    }


@dataclass(frozen=True, kw_only=True)
class DateColumn:
    """A date column of a type that has a date: DATE, DATETIME, or TIMESTAMP in a time zone."""

    name: str
    kind: str
    time_zone: str | None = None

    @property
    def column(self) -> QuotedSql:
        """The column's quoted name."""
        return quoted_column(self.name)

    def day(self, zone_parameter: str) -> QuotedSql:
        """Return the expression of a row's day; `zone_parameter` names the parameter with the time zone."""
        if self.kind == "TIMESTAMP":
            return fill_placeholders(sql_of.DAY_IN_ZONE, column=self.column, zone=sql_of.parameter(zone_parameter))
        return fill_placeholders(sql_of.DAY_OF_DATETIME if self.kind == "DATETIME" else "{column}", column=self.column)

    def zone(self, zone_parameter: str) -> dict[str, Any]:
        """Return the parameter that `day` needs."""
        return {zone_parameter: self.time_zone} if self.kind == "TIMESTAMP" else {}

    def start_of(self, day: date) -> date | datetime:
        """Return the first value of the column's type that is on the day."""
        if self.kind == "DATE":
            return day
        midnight = datetime.combine(day, time.min)
        if self.kind == "DATETIME":
            return midnight
        return midnight.replace(tzinfo=ZoneInfo(self.time_zone or "UTC")).astimezone(UTC)


def scan_statement(name: str, scan: Scan, table: QuotedSql, kind: str) -> tuple[QuotedSql, dict[str, Any]]:
    """Build the query of the scan, and its parameters, whose names begin with the scan's.

    `kind` is the type of the date column.
    """
    column = DateColumn(name=scan.date_column, kind=kind, time_zone=scan.time_zone)
    condition, bound = date_filter(name, column, scan.dates)
    return fill_placeholders(sql_of.SCAN, columns=_selected(scan.columns), table=table, dates=condition), bound


def staged_rows_statement(
    name: str, columns: Mapping[str, str] | None, tables: Mapping[PartitionedTable, Sequence[date] | None]
) -> tuple[QuotedSql, dict[str, Any]]:
    """Build the query of the rows in staging tables, and its parameters, whose names begin with the scan's.

    Of a table with dates, only their rows are read.
    """
    selected, selects = _selected(columns), list[QuotedSql]()
    bound: dict[str, Any] = {}
    for number, (table, days) in enumerate(tables.items()):
        if days is None or table.date is None:
            selects.append(fill_placeholders(sql_of.ALL, columns=selected, table=table.name))
            continue
        parameter = f"{name}__days_{number}"
        bound[parameter] = sorted(days)
        condition = fill_placeholders(sql_of.ON_DAYS, column=table.date, days=sql_of.parameter(parameter))
        selects.append(fill_placeholders(sql_of.SCAN, columns=selected, table=table.name, dates=condition))
    return sql_of.join_sql(" UNION ALL ", selects), bound


def date_filter(name: str, column: DateColumn, dates: Sequence[DateRange]) -> tuple[QuotedSql, dict[str, Any]]:
    """Build the condition on the date column, compared with parameters only, so that partitions are pruned."""
    if len(dates) > MAX_RANGES:
        return _date_list_filter(name, column, dates)
    bounds = [(span.start, span.through) for span in dates] or [NO_DATES]  # tables may require a filter on the column
    bound: dict[str, Any] = {}
    conditions: list[QuotedSql] = []
    for number, (first, last) in enumerate(bounds):
        condition, values = _within(f"{name}__start_{number}", f"{name}__through_{number}", column, first, last)
        conditions.append(condition)
        bound |= values
    return sql_of.join_sql(" OR ", conditions), bound


def _within(start: str, through: str, column: DateColumn, first: date, last: date) -> tuple[QuotedSql, dict[str, Any]]:
    """Build the condition on one range; a time is compared with half-open bounds."""
    places = {"start": sql_of.parameter(start), "through": sql_of.parameter(through)}
    if column.kind == "DATE":
        values: dict[str, Any] = {start: first, through: last}
        return fill_placeholders(sql_of.BETWEEN, column=column.column, **places), values
    values = {start: column.start_of(first), through: column.start_of(last + ONE_DAY)}
    return fill_placeholders(sql_of.HALF_OPEN, column=column.column, **places), values


def _date_list_filter(name: str, column: DateColumn, dates: Sequence[DateRange]) -> tuple[QuotedSql, dict[str, Any]]:
    """Build the condition for many ranges with an array, as a query takes at most 10,000 parameters."""
    enclosing = enclosing_range(day for span in dates for day in (span.start, span.through))
    within, bound = _within(f"{name}__start", f"{name}__through", column, enclosing.start, enclosing.through)
    zone, days = f"{name}__zone", f"{name}__days"
    bound |= column.zone(zone) | {days: days_in(dates)}
    listed = fill_placeholders(sql_of.AMONG, within=within, day=column.day(zone), days=sql_of.parameter(days))
    return listed, bound


def _selected(columns: Mapping[str, str] | None) -> QuotedSql:
    if columns is None:
        return sql_of.EVERYTHING
    return sql_of.join_sql(
        ", ",
        (
            fill_placeholders(sql_of.RENAMED, own=quoted_column(own), name=quoted_column(name))
            for name, own in columns.items()
        ),
    )
