"""GoogleSQL into DuckDB's dialect, with the types that GoogleSQL gives."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pyarrow as pa
import sqlglot
from sqlglot import exp

#: GoogleSQL gives a DATE for these; DuckDB gives a TIMESTAMP.
DATE_FUNCTIONS = (exp.DateAdd, exp.DateSub, exp.DateTrunc)
HUGE_INTEGER = pa.decimal128(38, 0)  #: what DuckDB gives for a sum or a count where GoogleSQL gives an INT64


@lru_cache(maxsize=256)
def to_duckdb(sql: str) -> str:
    """One GoogleSQL statement in DuckDB's words. Raises `sqlglot.errors.SqlglotError`."""

    def dated(node: Any) -> Any:
        return exp.cast(node, "DATE") if isinstance(node, DATE_FUNCTIONS) else node

    statement = sqlglot.parse_one(sql, read="bigquery").transform(dated)
    return statement.sql(dialect="duckdb", unsupported_level=sqlglot.ErrorLevel.RAISE)


@lru_cache(maxsize=256)
def is_query(sql: str) -> bool:
    """Whether the statement only asks: one that copies, attaches or installs could reach any file."""
    return isinstance(sqlglot.parse_one(sql, read="bigquery"), exp.Query)


@lru_cache(maxsize=256)
def parameter_names(sql: str) -> frozenset[str]:
    """The names of the statement's parameters: DuckDB refuses values for parameters that are not there."""
    return frozenset(found.name for found in sqlglot.parse_one(sql, read="bigquery").find_all(exp.Parameter))


@lru_cache(maxsize=256)
def table_names(sql: str) -> frozenset[str]:
    """The names of the tables the statement reads, without those it defines itself."""
    statement = sqlglot.parse_one(sql, read="bigquery")
    own = {found.alias for found in statement.find_all(exp.CTE)}
    return frozenset(found.name for found in statement.find_all(exp.Table)) - own


def with_googlesql_types(rows: pa.Table) -> pa.Table:
    """The result with its huge integers as INT64. Raises `pa.ArrowInvalid` for one that does not fit."""
    fields = [field.with_type(pa.int64()) if field.type.equals(HUGE_INTEGER) else field for field in rows.schema]
    return rows.cast(pa.schema(fields))
