"""Counts of published rows by date, as the gate counts the rows that it judges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from functools import partial

from gated_backfill.common.errors import SchemaMismatch
from gated_backfill.common.model.dates import chunk_dates
from gated_backfill.common.model.job import Job
from gated_backfill.common.warehouse.counting import DAYS_PER_READ
from gated_backfill.common.warehouse.coverage_queries import target_scan
from gated_backfill.common.warehouse.protocol import TableInfo, Warehouse
from gated_backfill.common.warehouse.rule_counts import (
    CountedColumn,
    RowCounts,
    count_by_rules,
    counted_columns,
    has_rules,
)
from gated_backfill.common.warehouse.table_checks import target_types

NO_ROWS = RowCounts()


def count_published_rows(
    job: Job, days: Sequence[date], warehouse: Warehouse, target: TableInfo
) -> dict[date, RowCounts]:
    """Count the published rows of each day that has any, as the gate counts the rows that it judges.

    `target` describes the target table. Rows of a day that cannot be read in the job's types are counted only: that
    they cannot is their schema problem. Raises like `Warehouse.query`, and `UserError` for a target with too many
    columns.
    """
    counted = counted_columns(job, partial(_is_readable, job, target))
    rows_by_day: dict[date, RowCounts] = {}
    for chunk in chunk_dates(days, DAYS_PER_READ):  # bounds the memory, as a local table is read before the query
        rows_by_day |= _count_readable(job, chunk, warehouse, counted)
    return rows_by_day


def _count_readable(
    job: Job, days: Sequence[date], warehouse: Warehouse, counted: Sequence[CountedColumn]
) -> dict[date, RowCounts]:
    """Count by halves when a partition cannot be read, so that only its own day is not judged by its values."""
    try:
        return _query_rows(job, days, warehouse, counted)
    except SchemaMismatch as exc:
        if exc.partition is None:  # the whole table is refused
            raise
        if len(days) == 1:
            return _count_only(job, days, warehouse, problem=str(exc))
    half = len(days) // 2
    return _count_readable(job, days[:half], warehouse, counted) | _count_readable(job, days[half:], warehouse, counted)


def _count_only(job: Job, days: Sequence[date], warehouse: Warehouse, problem: str) -> dict[date, RowCounts]:
    """Count the rows by their dates, with the same problem. Raises `SchemaMismatch` if not even these can be read."""
    row_counts = warehouse.count_rows(target_scan(job, days).rows())
    return {day: RowCounts(rows=rows, schema_problem=problem) for day, rows in row_counts.items()}


def _query_rows(
    job: Job, days: Sequence[date], warehouse: Warehouse, counted: Sequence[CountedColumn]
) -> dict[date, RowCounts]:
    # Other programs may have written times at midnight, or whole floats: the rows are those of the job's types.
    return count_by_rules(warehouse, job, replace(target_scan(job, days).rows(), types=target_types(job)), counted)


def find_unchecked_columns(job: Job, target: TableInfo) -> list[str]:
    """Return the columns whose rules cannot be checked: the table lacks them or has them with another type."""
    return [name for name in job.target.columns if has_rules(job, name) and not _is_readable(job, target, name)]


def _is_readable(job: Job, target: TableInfo, name: str) -> bool:
    kind = job.target.columns[name].type
    return name in target.columns and not target.column_mismatches(job.target.date_column, {name: kind})
