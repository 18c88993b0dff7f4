"""Counts of rows by date: rows, keys that are null or appear repeatedly, nulls and values beyond bounds.

One query for all of it on some days, with the same text for every warehouse. The gate counts staged rows by it, the
audit published ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from decimal import Decimal
from typing import Any, LiteralString

from gated_backfill.common.errors import UserError
from gated_backfill.common.model.job import Job
from gated_backfill.common.model.output_schema import ColumnCounts, find_schema_problem, lower_bound, upper_bound
from gated_backfill.common.model.tables import Column
from gated_backfill.common.warehouse.protocol import Scan, StagedScan, Warehouse

#: By type of a column with bounds: makes the bound as a parameter of that type.
BOUND_TYPES: Mapping[str, Callable[[float], float | Decimal]] = {
    "INT64": lambda bound: bound,
    "FLOAT64": float,
    "NUMERIC": lambda bound: Decimal(str(bound)),
}
DIGITS: tuple[LiteralString, ...] = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
#: Names of columns in the query, which contains literals only: as many as a table of BigQuery may have columns.
ALIASES: tuple[LiteralString, ...] = tuple(
    "c" + thousands + hundreds + tens + ones
    for thousands in DIGITS
    for hundreds in DIGITS
    for tens in DIGITS
    for ones in DIGITS
)


@dataclass(frozen=True, kw_only=True)
class RowCounts:
    """The rows of a date, in numbers."""

    rows: int = 0
    duplicates: int = 0  #: keys that more than one row has
    null_keys: int = 0  #: rows with a null in a column of the key
    schema_problem: str | None = None  #: the first rule of the output columns that the rows break, types included


@dataclass(frozen=True, kw_only=True)
class CountedColumn:
    """A column of the target that the query reads, with its name in the query."""

    name: str
    alias: LiteralString
    column: Column
    is_key: bool
    has_rules: bool  #: whether its nulls and values are counted


def has_rules(job: Job, name: str) -> bool:
    """Whether the nulls or values of this column of the target are limited. Each row has a date anyway."""
    column = job.target.columns[name]
    is_bounded = lower_bound(column) is not None or upper_bound(column) is not None
    is_limited = not column.nullable or column.max_null_share is not None
    return name != job.target.date_column and (is_bounded or is_limited)


def counted_columns(job: Job, is_readable: Callable[[str], bool] = lambda name: True) -> list[CountedColumn]:
    """Return the columns of the key, and those with rules that are readable. Raises `UserError` for too many."""
    key = [name for name in job.target.key if name != job.target.date_column]
    ruled = [name for name in job.target.columns if has_rules(job, name) and is_readable(name)]
    names = list(dict.fromkeys((*key, *ruled)))
    if len(names) > len(ALIASES):
        raise UserError(
            f"job {job.name}: up to {len(ALIASES)} columns with rules are supported, its target has {len(names)}"
        )
    return [
        CountedColumn(
            name=name, alias=alias, column=job.target.columns[name], is_key=name in key, has_rules=name in ruled
        )
        for name, alias in zip(names, ALIASES, strict=False)
    ]


def count_by_rules(
    warehouse: Warehouse, job: Job, rows: Scan | StagedScan, counted: Sequence[CountedColumn]
) -> dict[date, RowCounts]:
    """Count the rows of the scan by day, without days that have none; the columns of the scan are set here.

    Raises like `Warehouse.query`.
    """
    columns = {"day": job.target.date_column, **{column.alias: column.name for column in counted}}
    result = warehouse.query(
        rule_counts_sql(counted), scans={"counted": replace(rows, columns=columns)}, params=_bounds(counted)
    )
    return {row["day"]: _row_counts(job, counted, row) for row in result.to_pylist()}


def _bounds(counted: Sequence[CountedColumn]) -> dict[str, float | Decimal]:
    """The parameters of the query."""
    bounds: dict[str, float | Decimal] = {}
    for counted_column in counted:
        column, alias = counted_column.column, counted_column.alias
        for name, bound in (("lower", lower_bound(column)), ("upper", upper_bound(column))):
            if counted_column.has_rules and bound is not None:
                bounds[f"{name}_{alias}"] = BOUND_TYPES[column.type](bound.limit)
    return bounds


def _row_counts(job: Job, counted: Sequence[CountedColumn], row: Mapping[str, Any]) -> RowCounts:
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
    return RowCounts(
        rows=row["row_count"],
        duplicates=row["duplicates"],
        null_keys=row["null_keys"],
        schema_problem=find_schema_problem(job.target.columns, in_order, row["row_count"]),
    )


def rule_counts_sql(counted: Sequence[CountedColumn]) -> LiteralString:
    """The query that counts, by day, the rows of `counted`, its keys, and what breaks the rules of these columns.

    NaN is null, as in the gate.
    """
    key: list[LiteralString] = ["day", *(column.alias for column in counted if column.is_key)]
    null_tests: list[LiteralString] = [f"{name} IS NULL" for name in key]
    values: list[LiteralString] = ["day", *(_value(column) for column in counted)]
    counts: list[LiteralString] = ["COUNT(*) AS row_count", f"COUNTIF({' OR '.join(null_tests)}) AS null_keys"]
    for column in counted:
        if column.has_rules:
            counts.extend(_counts(column))
    rows: LiteralString = f"SELECT {', '.join(values)} FROM counted"  # noqa: S608 - made of literals only, which
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


def _value(column: CountedColumn) -> LiteralString:
    alias = column.alias
    return f"IF(IS_NAN({alias}), NULL, {alias}) AS {alias}" if column.column.type == "FLOAT64" else alias


def _counts(column: CountedColumn) -> Iterator[LiteralString]:
    alias = column.alias
    yield f"COUNTIF({alias} IS NULL) AS nulls_{alias}"
    if lower_bound(column.column) is not None:
        yield f"COUNTIF({alias} < @lower_{alias}) AS below_{alias}, MIN({alias}) AS lowest_{alias}"
    if upper_bound(column.column) is not None:
        yield f"COUNTIF({alias} > @upper_{alias}) AS above_{alias}, MAX({alias}) AS highest_{alias}"
