"""Translation of GoogleSQL queries to DuckDB, with GoogleSQL's result types."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pyarrow as pa
import sqlglot
from sqlglot import exp
from sqlglot.errors import UnsupportedError

#: Functions that return a DATE in GoogleSQL and a TIMESTAMP in DuckDB.
DATE_FUNCTIONS = (exp.DateAdd, exp.DateSub, exp.DateTrunc)
HUGE_INTEGER = pa.decimal128(38, 0)  #: DuckDB's type of a sum or count that is INT64 in GoogleSQL


@lru_cache(maxsize=256)
def to_duckdb(sql: str) -> str:
    """Translate one GoogleSQL statement to DuckDB. Raises `sqlglot.errors.SqlglotError`."""
    statement = sqlglot.parse_one(sql, read="bigquery")
    for step in (_cast_to_date, _type_numbers, _keep_meaning):
        for node in reversed(list(statement.walk(bfs=True))):  # a node after its parts, as they become parts of another
            if (replacement := step(node)) is not node:
                node.replace(replacement)
    return statement.sql(dialect="duckdb", unsupported_level=sqlglot.ErrorLevel.RAISE)


def _cast_to_date(node: Any) -> Any:
    return exp.cast(node.copy(), "DATE") if isinstance(node, DATE_FUNCTIONS) else node


def _type_numbers(node: Any) -> Any:
    """A number with a point is FLOAT64, in DuckDB a DECIMAL. One without is INT64, in DuckDB it has 32 bits.

    NUMERIC has 9 digits behind the point, in DuckDB 3.
    """
    if isinstance(node, exp.Literal) and not node.is_string:
        if not node.name.isdigit():
            return exp.cast(node.copy(), "DOUBLE")
        if isinstance(node.parent, (exp.Add, exp.Sub, exp.Mul)):
            return exp.cast(node.copy(), "BIGINT")
    if isinstance(node, exp.DataType) and node.is_type("DECIMAL") and not node.expressions:
        return exp.DataType.build("DECIMAL(38, 9)")
    return node


def _keep_meaning(node: Any) -> Any:
    """Write what DuckDB has under the same name, with another result, as what it has with the same result."""
    if isinstance(node, exp.Div) and not _is_number_but_zero(node.expression):  # by zero: an error, in DuckDB infinity
        is_zero = exp.and_(
            exp.EQ(this=node.expression.copy(), expression=exp.Literal.number(0)),
            exp.not_(exp.Is(this=node.this.copy(), expression=exp.null())),
        )
        error = exp.Anonymous(this="ERROR", expressions=[exp.Literal.string("division by zero")])
        return exp.Paren(this=exp.Case().when(is_zero, error).else_(node.copy()))
    if isinstance(node, exp.Extract) and node.name.upper() == "DAYOFWEEK":  # from Sunday, which is 1, in DuckDB 0
        return exp.Paren(this=exp.Add(this=node.copy(), expression=exp.Literal.number(1)))
    if isinstance(node, exp.TimestampDiff):  # whole units, in DuckDB their boundaries
        unit = exp.Literal.string(node.text("unit") or "SECOND")
        return exp.Anonymous(this="DATE_SUB", expressions=[unit, node.expression.copy(), node.this.copy()])
    if isinstance(node, exp.Like) and "\\" in node.expression.name and not isinstance(node.parent, exp.Escape):
        return exp.Escape(this=node.copy(), expression=exp.Literal.string("\\"))
    if isinstance(node, exp.Extract) and node.name.upper() == "WEEK":
        raise UnsupportedError("EXTRACT(WEEK) is not supported on a local warehouse: use ISOWEEK")
    if isinstance(node, exp.Extract) and node.name.upper() == "ISOWEEK":
        return exp.Extract(this=exp.var("WEEK"), expression=node.expression.copy())
    if isinstance(node, (exp.TimeToStr, exp.StrToTime)) and node.args.get("zone"):
        raise UnsupportedError("a time zone in FORMAT_ or PARSE_TIMESTAMP is not supported on a local warehouse")
    if isinstance(node, exp.Format):
        raise UnsupportedError("FORMAT is not supported on a local warehouse: use CONCAT and CAST")
    return node


def _is_number_but_zero(node: Any) -> bool:
    """Whether the node is a number other than 0, perhaps with the type that it was given above."""
    number = node.this if isinstance(node, exp.Cast) else node
    return isinstance(number, exp.Literal) and not number.is_string and float(number.name) != 0


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
