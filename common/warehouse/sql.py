"""GoogleSQL into DuckDB's dialect."""

from __future__ import annotations

from functools import lru_cache

import sqlglot
from sqlglot import exp


@lru_cache(maxsize=256)
def to_duckdb(sql: str) -> str:
    """One GoogleSQL statement in DuckDB's words. Raises `sqlglot.errors.SqlglotError`."""
    statement = sqlglot.parse_one(sql, read="bigquery")
    return statement.sql(dialect="duckdb", unsupported_level=sqlglot.ErrorLevel.RAISE)


@lru_cache(maxsize=256)
def parameter_names(sql: str) -> frozenset[str]:
    """The names of the statement's parameters: DuckDB refuses values for parameters that are not there."""
    return frozenset(found.name for found in sqlglot.parse_one(sql, read="bigquery").find_all(exp.Parameter))
