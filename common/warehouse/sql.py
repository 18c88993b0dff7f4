"""Translation of GoogleSQL queries to DuckDB, with GoogleSQL's result types."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pyarrow as pa
import sqlglot
from sqlglot import exp

#: Functions that return a DATE in GoogleSQL and a TIMESTAMP in DuckDB.
DATE_FUNCTIONS = (exp.DateAdd, exp.DateSub, exp.DateTrunc)
HUGE_INTEGER = pa.decimal128(38, 0)  #: DuckDB's type of a sum or count that is INT64 in GoogleSQL


@lru_cache(maxsize=256)
def to_duckdb(sql: str) -> str:
    """Translate one GoogleSQL statement to DuckDB. Raises `sqlglot.errors.SqlglotError`."""

    def cast_to_date(node: Any) -> Any:
        return exp.cast(node, "DATE") if isinstance(node, DATE_FUNCTIONS) else node

    statement = sqlglot.parse_one(sql, read="bigquery").transform(cast_to_date)
    return statement.sql(dialect="duckdb", unsupported_level=sqlglot.ErrorLevel.RAISE)


@lru_cache(maxsize=256)
def is_query(sql: str) -> bool:
    """Whether the statement is a query; COPY, ATTACH or INSTALL could reach any file."""
    return isinstance(sqlglot.parse_one(sql, read="bigquery"), exp.Query)


@lru_cache(maxsize=256)
def parameter_names(sql: str) -> frozenset[str]:
    """Return the names of the statement's parameters, as DuckDB rejects values for any other."""
    return frozenset(parameter.name for parameter in sqlglot.parse_one(sql, read="bigquery").find_all(exp.Parameter))


@lru_cache(maxsize=256)
def table_names(sql: str) -> frozenset[str]:
    """Return the names of the tables the statement reads, without its own CTEs."""
    statement = sqlglot.parse_one(sql, read="bigquery")
    ctes = {cte.alias for cte in statement.find_all(exp.CTE)}
    return frozenset(table.name for table in statement.find_all(exp.Table)) - ctes


def with_googlesql_types(rows: pa.Table) -> pa.Table:
    """Cast huge integers to INT64. Raises `pa.ArrowInvalid` for a value that does not fit."""
    fields = [field.with_type(pa.int64()) if field.type.equals(HUGE_INTEGER) else field for field in rows.schema]
    return rows.cast(pa.schema(fields))
