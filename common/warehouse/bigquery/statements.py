"""Statements of the BigQuery warehouse. Values are bound parameters; only checked names are formatted in."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import LiteralString, NamedTuple

from gated_backfill.common.errors import UserError
from gated_backfill.common.model.tables import TableName, validate_identifier, validate_project

PROJECT = re.compile(r"(?:[a-z0-9][a-z0-9.-]*:)?[a-z][a-z0-9-]{4,28}[a-z0-9]")
PLACEHOLDER = re.compile(r"\{(\w+)\}")
LEADING_WITH = re.compile(r"\s*WITH\s+", re.IGNORECASE)


class QuotedSql(str):
    """Checked and quoted names: the only text that `fill_placeholders` writes into a statement."""

    __slots__ = ()


def checked_project(project: str) -> str:
    """Return the project. Raises `UserError` unless it is a project's id."""
    if not PROJECT.fullmatch(project):
        raise UserError(f"{project!r} is not a Google Cloud project: write the warehouse as bigquery://PROJECT")
    return project


def full_name(own_project: str, table: TableName) -> str:
    """Return `project.dataset.table`, checked.

    Raises `UserError` for a name with the warehouse's own project: a table would have two names, and two jobs could
    build it.
    """
    dataset, name = validate_identifier(table.dataset, "dataset name"), validate_identifier(table.table, "table name")
    if table.project == own_project:
        raise UserError(
            f"{own_project} is the warehouse's own project: write the table as {dataset}.{name}", table=str(table)
        )
    project = validate_project(table.project) if table.project else checked_project(own_project)
    return f"{project}.{dataset}.{name}"


def quoted_table(own_project: str, table: TableName) -> QuotedSql:
    return QuotedSql(f"`{full_name(own_project, table)}`")


def quoted_partitions_view(own_project: str, table: TableName) -> QuotedSql:
    """Return the view with what BigQuery knows of the partitions of the table's dataset."""
    dataset = full_name(own_project, table).removesuffix(f".{table.table}")
    return QuotedSql(f"`{dataset}.INFORMATION_SCHEMA.PARTITIONS`")


def quoted_column(name: str) -> QuotedSql:
    return QuotedSql(f"`{validate_identifier(name, 'column name')}`")


def quoted_columns(names: Iterable[str]) -> QuotedSql:
    return QuotedSql(", ".join(quoted_column(name) for name in names))


def fill_placeholders(statement: LiteralString, **names: QuotedSql) -> QuotedSql:
    """Replace each `{placeholder}` by its name. Raises `KeyError` for one without a name."""
    return QuotedSql(PLACEHOLDER.sub(lambda match: names[match[1]], statement))


def in_parentheses(query: QuotedSql) -> QuotedSql:
    """Return the query as a table of another one."""
    return QuotedSql(f"({query})")


def join_sql(separator: LiteralString, parts: Iterable[QuotedSql]) -> QuotedSql:
    return QuotedSql(separator.join(parts))


def with_scans(sql: str, scans: Mapping[str, QuotedSql]) -> str:
    """Add each scan to the query as a CTE of its name."""
    if not scans:
        return sql
    tables = ", ".join(f"{quoted_column(name)} AS ({scan})" for name, scan in scans.items())
    own = LEADING_WITH.match(sql)
    return f"WITH {tables}, {sql[own.end() :]}" if own else f"WITH {tables} {sql}"


# -- scans ----------------------------------------------------------------------------------------------------

SCAN: LiteralString = "SELECT {columns} FROM {table} WHERE {dates}"
ALL: LiteralString = "SELECT {columns} FROM {table}"
RENAMED: LiteralString = "{own} AS {name}"
BETWEEN: LiteralString = "{column} BETWEEN {start} AND {through}"
HALF_OPEN: LiteralString = "({column} >= {start} AND {column} < {through})"
AMONG: LiteralString = "{within} AND {day} IN UNNEST({days})"
ON_DAYS: LiteralString = "{column} IN UNNEST({days})"
DAY_OF_DATETIME: LiteralString = "DATE({column})"
DAY_IN_ZONE: LiteralString = "DATE({column}, {zone})"
TIME: LiteralString = "SELECT TIMESTAMP_ADD(CURRENT_TIMESTAMP(), INTERVAL @seconds SECOND) AS time"
EVERYTHING = QuotedSql("*")


def parameter(name: str) -> QuotedSql:
    return QuotedSql(f"@{validate_identifier(name, 'parameter name')}")


# -- fingerprints ---------------------------------------------------------------------------------------------

CONTENTS: LiteralString = """
    SELECT day, {contents}
    FROM (
        SELECT {day} AS day, {hashes}
        FROM {table}
        WHERE {within} AND {day} IN UNNEST(@days)
    )
    GROUP BY day
"""

ROW_HASH: LiteralString = "FARM_FINGERPRINT(TO_JSON_STRING(STRUCT({columns}))) AS {hash}"

#: A day's fingerprint, the same in any order of the rows: their number, and two sums over a hash of each.
CONTENT: LiteralString = """
        CONCAT(
            CAST(COUNT(*) AS STRING), '.', CAST(BIT_XOR({hash}) AS STRING), '.',
            CAST(SUM(MOD({hash}, 1000000007)) AS STRING)
        ) AS {content}
"""

#: The requested dates, each with the facts of its request.
WANTED: LiteralString = """
    SELECT
        CAST(JSON_VALUE(one, '$.day') AS DATE) AS day,
        JSON_VALUE(one, '$.before') AS before,
        JSON_VALUE(one, '$.staged') AS staged,
        JSON_VALUE(one, '$.published') AS published,
        JSON_VALUE(one, '$.copy') AS copy,
        JSON_VALUE(one, '$.checksum') AS checksum,
        CAST(JSON_VALUE(one, '$.attempt') AS INT64) AS attempt,
        CAST(JSON_VALUE(one, '$.row_count') AS INT64) AS row_count
    FROM UNNEST(@wanted) AS one
"""

#: The requested dates whose rows are those published from the requested file.
HOLDS: LiteralString = """
    SELECT DISTINCT c.day AS day
    FROM ({content}) AS c
    JOIN ({wanted}) AS w ON w.day = c.day
    JOIN {publications} AS p ON p.day = c.day AND p.content = c.content AND p.checksum = w.checksum
    WHERE p.target = @target AND p.day BETWEEN @first AND @last
"""

#: The latest publication of exactly the rows that each day has now.
PUBLISHED_BY: LiteralString = """
    SELECT day, run, attempt, checksum
    FROM (
        SELECT
            c.day AS day, p.run AS run, p.attempt AS attempt, p.checksum AS checksum,
            ROW_NUMBER() OVER (PARTITION BY c.day ORDER BY p.published_at DESC, p.run DESC, p.attempt DESC) AS place
        FROM ({content}) AS c
        JOIN {publications} AS p ON p.day = c.day AND p.content = c.content
        WHERE p.target = @target AND p.day BETWEEN @first AND @last AND p.checksum IS NOT NULL
    )
    WHERE place = 1
"""

#: The number of values in each column, by day.
VALUES: LiteralString = """
    SELECT {date} AS day, {counts} FROM {table} WHERE {within} AND {date} IN UNNEST(@days) GROUP BY {date}
"""

COUNT_COLUMN: LiteralString = "COUNT({column}) AS {name}"

IN_RANGE: LiteralString = "{date} BETWEEN @first AND @last"


class Partitions(NamedTuple):
    """The table, date column (a DATE) and columns of a statement's partitions."""

    table: QuotedSql
    date: QuotedSql
    columns: QuotedSql


def partition_contents(partitions: Partitions) -> QuotedSql:
    """Build the query of the content of each partition that has rows, by day. Parameters: days, first, last."""
    within = fill_placeholders(IN_RANGE, date=partitions.date)
    return day_contents(partitions.table, {"content": partitions.columns}, day=partitions.date, within=within)


def rows_of_content(content: str) -> int:
    """Return the number of rows from a content, which begins with it."""
    return int(content.partition(".")[0])


def content_name(number: int) -> str:
    """Return the name of the content of one of several sets of columns."""
    return f"content{number}"


def day_contents(
    table: QuotedSql, column_sets: Mapping[str, QuotedSql], *, day: QuotedSql, within: QuotedSql
) -> QuotedSql:
    """Build the query of the content of each day's rows, for each set of columns by the name of its content.

    Parameters: days, and those of the expressions.
    """
    hashes = {name: quoted_column(f"{name}_hash") for name in column_sets}
    return fill_placeholders(
        CONTENTS,
        table=table,
        day=day,
        within=within,
        hashes=join_sql(
            ", ",
            [fill_placeholders(ROW_HASH, columns=columns, hash=hashes[name]) for name, columns in column_sets.items()],
        ),
        contents=join_sql(
            ", ", [fill_placeholders(CONTENT, hash=hashes[name], content=quoted_column(name)) for name in column_sets]
        ),
    )


def count_values(partitions: Partitions, columns: Sequence[str], names: Sequence[str]) -> QuotedSql:
    """Build the query of the number of values in each column, by day. Parameters: days, first, last."""
    counts = [
        fill_placeholders(COUNT_COLUMN, column=quoted_column(column), name=quoted_column(name))
        for column, name in zip(columns, names, strict=True)
    ]
    within = fill_placeholders(IN_RANGE, date=partitions.date)
    return fill_placeholders(
        VALUES, table=partitions.table, date=partitions.date, counts=join_sql(", ", counts), within=within
    )


def matching_dates(partitions: Partitions, publications: QuotedSql) -> QuotedSql:
    """Build the query of requested days that hold published rows. Parameters: days, first, last, target, wanted."""
    return fill_placeholders(
        HOLDS, content=partition_contents(partitions), wanted=fill_placeholders(WANTED), publications=publications
    )


def publications_of_rows(partitions: Partitions, publications: QuotedSql) -> QuotedSql:
    """Build the query of the publications that wrote the days' rows. Parameters: days, first, last, target."""
    return fill_placeholders(PUBLISHED_BY, content=partition_contents(partitions), publications=publications)
