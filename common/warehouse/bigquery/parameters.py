"""Query parameters: dates, requests by date, and the date conditions of a scan."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from typing import Any

from gated_backfill.common.model.dates import DateRange, enclosing_range
from gated_backfill.common.model.publication import StagedFile
from gated_backfill.common.warehouse.bigquery import statements as sql_of
from gated_backfill.common.warehouse.bigquery.schema import check_column_names
from gated_backfill.common.warehouse.bigquery.statements import QuotedSql, fill_placeholders, quoted_column
from gated_backfill.common.warehouse.protocol import Scan

MAX_RANGES = 100  #: written as conditions; more are bound as one array


def date_parameters(days: Iterable[date]) -> dict[str, Any]:
    """Return the parameters for the days: the array, and its bounds, by which partitions are pruned."""
    listed = sorted(days)
    return {"days": listed, "first": listed[0], "last": listed[-1]}


def requested_dates(days: Mapping[date, Mapping[str, Any]]) -> list[str]:
    """Return the parameter with one JSON object per day."""
    return [json.dumps({"day": day.isoformat(), **facts}) for day, facts in days.items()]


def publication_request(staged: StagedFile, before: str) -> dict[str, Any]:
    """Describe the file's publication: the fingerprint before it, and the rows that replace the partition."""
    return {"before": before, "checksum": staged.checksum, "attempt": staged.attempt, "row_count": staged.rows}


def scan_statement(name: str, scan: Scan, table: QuotedSql) -> tuple[QuotedSql, dict[str, Any]]:
    """Build the query of the scan, and its parameters, whose names begin with the scan's."""
    check_column_names(scan.date_column, *(scan.columns or {}), *(scan.columns or {}).values())
    condition, bound = _date_filter(name, scan.date_column, scan.dates)
    return fill_placeholders(sql_of.SCAN, columns=_selected(scan.columns), table=table, dates=condition), bound


def full_table_statement(columns: Mapping[str, str] | None, table: QuotedSql) -> QuotedSql:
    """Build the query of all rows of a bookkeeping table."""
    return fill_placeholders(sql_of.ALL, columns=_selected(columns), table=table)


def _date_filter(name: str, column: str, dates: Sequence[DateRange]) -> tuple[QuotedSql, dict[str, Any]]:
    """Build the condition on the date column, compared with parameters only, so that partitions are pruned."""
    if len(dates) > MAX_RANGES:
        return _date_list_filter(name, column, dates)
    bound: dict[str, Any] = {}
    conditions: list[QuotedSql] = []
    # Without dates the condition is false; tables may require a filter on the column.
    bounds = [(span.start, span.through) for span in dates] or [(date.max, date.min)]
    for n, (first, last) in enumerate(bounds):
        start, through = f"{name}__start_{n}", f"{name}__through_{n}"
        bound |= {start: first, through: last}
        places = {"start": sql_of.parameter(start), "through": sql_of.parameter(through)}
        conditions.append(fill_placeholders(sql_of.BETWEEN, column=quoted_column(column), **places))
    return sql_of.join_sql(" OR ", conditions), bound


def _date_list_filter(name: str, column: str, dates: Sequence[DateRange]) -> tuple[QuotedSql, dict[str, Any]]:
    """Build the condition for many ranges with an array, as a query takes at most 10,000 parameters."""
    enclosing = enclosing_range(day for span in dates for day in (span.start, span.through))
    values = {
        "start": enclosing.start,
        "through": enclosing.through,
        "days": [day for span in dates for day in span.days()],
    }
    places = {place: sql_of.parameter(f"{name}__{place}") for place in values}
    bound = {f"{name}__{place}": value for place, value in values.items()}
    return fill_placeholders(sql_of.AMONG, column=quoted_column(column), **places), bound


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
