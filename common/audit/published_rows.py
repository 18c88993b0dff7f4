"""Counts of published rows by date: rows, keys that are null or appear repeatedly, nulls and values beyond bounds.

One query for all of it on some days, with the same text for every warehouse.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any, LiteralString

from gated_backfill.common.errors import SchemaMismatch, UserError
from gated_backfill.common.model.dates import chunk_dates
from gated_backfill.common.model.job import Job
from gated_backfill.common.model.output_schema import ColumnCounts, find_schema_problem, lower_bound, upper_bound
from gated_backfill.common.model.tables import Column
from gated_backfill.common.warehouse.counting import DAYS_PER_READ
from gated_backfill.common.warehouse.coverage_queries import target_scan
from gated_backfill.common.warehouse.protocol import TableInfo, Warehouse
from gated_backfill.common.warehouse.table_checks import target_types

DIGITS: tuple[LiteralString, ...] = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
#: Names of columns in the query, which contains literals only.
ALIASES: tuple[LiteralString, ...] = tuple(
    "c" + hundreds + tens + ones for hundreds in DIGITS for tens in DIGITS for ones in DIGITS
)


@dataclass(frozen=True, kw_only=True)
class PublishedRows:
    """The published rows of a date, in numbers."""

    rows: int = 0
    duplicates: int = 0  #: keys that more than one row has
    null_keys: int = 0  #: rows with a null in a column of the key
    schema_problem: str | None = None  #: the first rule of the output columns that the rows break, types included


NO_ROWS = PublishedRows()


@dataclass(frozen=True, kw_only=True)
class _CountedColumn:
    """A column of the target that the query reads, with its name in the query."""

    name: str
    alias: LiteralString
    column: Column
    is_key: bool
    has_rules: bool  #: whether its nulls and values are counted


def count_published_rows(
    job: Job, days: Sequence[date], warehouse: Warehouse, target: TableInfo
) -> dict[date, PublishedRows]:
    """Count the published rows of each day that has any, as the gate counts the rows that it judges.

    `target` describes the target table. Rows of a day that cannot be read in the job's types are counted only: that
    they cannot is their schema problem. Raises like `Warehouse.query`, and `UserError` for a target with too many
    columns.
    """
    counted = _counted_columns(job, target)
    rows_by_day: dict[date, PublishedRows] = {}
    for chunk in chunk_dates(days, DAYS_PER_READ):  # bounds the memory, as a local table is read before the query
        rows_by_day |= _count_readable(job, chunk, warehouse, counted)
    return rows_by_day


def _count_readable(
    job: Job, days: Sequence[date], warehouse: Warehouse, counted: Sequence[_CountedColumn]
) -> dict[date, PublishedRows]:
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


def _count_only(job: Job, days: Sequence[date], warehouse: Warehouse, problem: str) -> dict[date, PublishedRows]:
    """Count the rows by their dates, with the same problem. Raises `SchemaMismatch` if not even these can be read."""
    row_counts = warehouse.count_rows(target_scan(job, days).rows())
    return {day: PublishedRows(rows=rows, schema_problem=problem) for day, rows in row_counts.items()}


def _query_rows(
    job: Job, days: Sequence[date], warehouse: Warehouse, counted: Sequence[_CountedColumn]
) -> dict[date, PublishedRows]:
    columns = {"day": job.target.date_column, **{column.alias: column.name for column in counted}}
    # Other programs may have written times at midnight, or whole floats: the rows are those of the job's types.
    scan = replace(target_scan(job, days).rows(), columns=columns, types=target_types(job))
    sql, params = published_rows_sql(counted), _bounds(counted)
    rows = warehouse.query(sql, scans={"published": scan}, params=params).to_pylist()
    return {row["day"]: _published_rows(job, counted, row) for row in rows}


def find_unchecked_columns(job: Job, target: TableInfo) -> list[str]:
    """Return the columns whose rules cannot be checked: the table lacks them or has them with another type."""
    ruled = [name for name, column in job.target.columns.items() if _has_rules(job, name, column)]
    return [name for name in ruled if not _is_readable(job, name, target)]


def _has_rules(job: Job, name: str, column: Column) -> bool:
    is_bounded = lower_bound(column) is not None or upper_bound(column) is not None
    is_limited = not column.nullable or column.max_null_share is not None
    return name != job.target.date_column and (is_bounded or is_limited)


def _is_readable(job: Job, name: str, target: TableInfo) -> bool:
    kind = job.target.columns[name].type
    return name in target.columns and not target.column_mismatches(job.target.date_column, {name: kind})


def _counted_columns(job: Job, target: TableInfo) -> list[_CountedColumn]:
    key = [name for name in job.target.key if name != job.target.date_column]
    ruled = [
        name
        for name, column in job.target.columns.items()
        if _has_rules(job, name, column) and _is_readable(job, name, target)
    ]
    names = list(dict.fromkeys((*key, *ruled)))
    if len(names) > len(ALIASES):
        raise UserError(f"job {job.name}: an audit supports up to {len(ALIASES)} columns, its target has {len(names)}")
    return [
        _CountedColumn(
            name=name, alias=alias, column=job.target.columns[name], is_key=name in key, has_rules=name in ruled
        )
        for name, alias in zip(names, ALIASES, strict=False)
    ]


def _bounds(counted: Sequence[_CountedColumn]) -> dict[str, float]:
    """The parameters of the query."""
    bounds: dict[str, float] = {}
    for counted_column in counted:
        column, alias = counted_column.column, counted_column.alias
        for name, bound in (("lower", lower_bound(column)), ("upper", upper_bound(column))):
            if counted_column.has_rules and bound is not None:
                bounds[f"{name}_{alias}"] = float(bound.limit) if column.type == "FLOAT64" else bound.limit
    return bounds


def _published_rows(job: Job, counted: Sequence[_CountedColumn], row: Mapping[str, Any]) -> PublishedRows:
    counts = {
        column.name: ColumnCounts(
            nulls=row[f"nulls_{column.alias}"],
            below=row.get(f"below_{column.alias}", 0),
            above=row.get(f"above_{column.alias}", 0),
            lowest=row.get(f"lowest_{column.alias}"),
            highest=row.get(f"highest_{column.alias}"),
        )
        for column in counted
        if column.has_rules
    }
    in_order = {name: counts[name] for name in job.target.columns if name in counts}
    return PublishedRows(
        rows=row["row_count"],
        duplicates=row["duplicates"],
        null_keys=row["null_keys"],
        schema_problem=find_schema_problem(job.target.columns, in_order, row["row_count"]),
    )


def published_rows_sql(counted: Sequence[_CountedColumn]) -> LiteralString:
    """The query that counts, by day, the rows of `published`, its keys, and what breaks the rules of these columns.

    NaN is null, as in the gate.
    """
    key: list[LiteralString] = ["day", *(column.alias for column in counted if column.is_key)]
    null_tests: list[LiteralString] = [f"{name} IS NULL" for name in key]
    values: list[LiteralString] = ["day", *(_value(column) for column in counted)]
    counts: list[LiteralString] = ["COUNT(*) AS row_count", f"COUNTIF({' OR '.join(null_tests)}) AS null_keys"]
    for column in counted:
        if column.has_rules:
            counts.extend(_counts(column))
    rows: LiteralString = f"SELECT {', '.join(values)} FROM published"  # noqa: S608 - made of literals only, which
    keys = ", ".join(key)  # the type checker enforces
    return f"""
        SELECT by_day.*, by_key.duplicates
        FROM (SELECT day, {", ".join(counts)} FROM ({rows}) AS read_rows GROUP BY day) AS by_day
        JOIN (
            SELECT day, COUNTIF(n > 1) AS duplicates
            FROM (SELECT {keys}, COUNT(*) AS n FROM ({rows}) AS read_keys GROUP BY {keys}) AS keyed
            GROUP BY day
        ) AS by_key
        ON by_key.day = by_day.day
    """  # noqa: S608 - as above


def _value(column: _CountedColumn) -> LiteralString:
    alias = column.alias
    return f"IF(IS_NAN({alias}), NULL, {alias}) AS {alias}" if column.column.type == "FLOAT64" else alias


def _counts(column: _CountedColumn) -> Iterator[LiteralString]:
    alias = column.alias
    yield f"COUNTIF({alias} IS NULL) AS nulls_{alias}"
    if lower_bound(column.column) is not None:
        yield f"COUNTIF({alias} < @lower_{alias}) AS below_{alias}, MIN({alias}) AS lowest_{alias}"
    if upper_bound(column.column) is not None:
        yield f"COUNTIF({alias} > @upper_{alias}) AS above_{alias}, MAX({alias}) AS highest_{alias}"
