"""The rules of the output columns, nulls and bounds, and what is said of rows that break one. Pure.

The gate applies them to rows, the audit to counts of rows.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass

from gated_backfill.common.model.coverage import format_percent
from gated_backfill.common.model.tables import Column

IS_FINITE = "is_finite"  #: the check on the side without a bound, if the column has a bound on the other side
NOT_NULLABLE = "not_nullable"
NULL_EXAMPLE = "<NA>"


@dataclass(frozen=True, kw_only=True)
class ValueBound:
    """The least or greatest value that a column may hold."""

    limit: float
    check: str  #: its name in messages


def lower_bound(column: Column) -> ValueBound | None:
    """Return the least value, which is finite if the column has any bound."""
    if column.ge is not None:
        return ValueBound(limit=column.ge, check=f"greater_than_or_equal_to({column.ge})")
    return ValueBound(limit=-sys.float_info.max, check=IS_FINITE) if _must_be_finite(column) else None


def upper_bound(column: Column) -> ValueBound | None:
    """Return the greatest value, which is finite if the column has any bound."""
    if column.le is not None:
        return ValueBound(limit=column.le, check=f"less_than_or_equal_to({column.le})")
    return ValueBound(limit=sys.float_info.max, check=IS_FINITE) if _must_be_finite(column) else None


def _must_be_finite(column: Column) -> bool:
    return column.type == "FLOAT64" and (column.ge is not None or column.le is not None)


@dataclass(frozen=True, kw_only=True)
class ColumnCounts:
    """How many of a date's rows have a null in a column, or a value beyond a bound, and its extreme values."""

    nulls: int = 0  #: NaN is null
    below: int = 0  #: values less than the lower bound
    above: int = 0  #: values greater than the upper bound
    lowest: float | None = None
    highest: float | None = None


def find_schema_problem(columns: Mapping[str, Column], counts: Mapping[str, ColumnCounts], rows: int) -> str | None:
    """Return the first rule that a date's rows break, in the order in which the gate reports them, or None."""
    for name, count in counts.items():
        if problem := null_share_problem(name, columns[name], count.nulls, rows):
            return problem
    for name, count in counts.items():
        if problem := _broken_check(name, columns[name], count):
            return problem
    return None


def null_share_problem(name: str, column: Column, nulls: int, rows: int) -> str | None:
    """Return what is said of more nulls than the column's `max_null_share` allows, or None."""
    limit = column.max_null_share
    if limit is None or not nulls or nulls / rows <= limit:
        return None
    share = format_percent(nulls, rows)
    return f"{name} is null in {nulls} of {rows} row(s) ({share}), more than its max_null_share of {limit * 100:g} %"


def _broken_check(name: str, column: Column, count: ColumnCounts) -> str | None:
    if count.nulls and not column.allows_nulls:
        return describe_failure(name, NOT_NULLABLE, count.nulls, NULL_EXAMPLE)
    if count.below and (bound := lower_bound(column)) is not None:
        return describe_failure(name, bound.check, count.below, count.lowest)
    if count.above and (bound := upper_bound(column)) is not None:
        return describe_failure(name, bound.check, count.above, count.highest)
    return None


def describe_failure(name: str, check: object, rows: int, example: object) -> str:
    """Say that values of a column fail a check."""
    return f"{name} fails {check} in {rows} row(s), e.g. {example}"
