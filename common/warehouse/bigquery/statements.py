"""Statements of the BigQuery warehouse. Values are bound parameters; only checked names are formatted in."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import LiteralString, NamedTuple

from gated_backfill.common.errors import UserError
from gated_backfill.common.model.tables import TableName, validate_identifier

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


def quoted_table(project: str, table: TableName) -> QuotedSql:
    dataset = validate_identifier(table.dataset, "dataset name")
    return QuotedSql(f"`{checked_project(project)}.{dataset}.{validate_identifier(table.table, 'table name')}`")


def quoted_column(name: str) -> QuotedSql:
    return QuotedSql(f"`{validate_identifier(name, 'column name')}`")


def quoted_columns(names: Iterable[str]) -> QuotedSql:
    return QuotedSql(", ".join(quoted_column(name) for name in names))


def fill_placeholders(statement: LiteralString, **names: QuotedSql) -> QuotedSql:
    """Replace each `{placeholder}` by its name. Raises `KeyError` for one without a name."""
    return QuotedSql(PLACEHOLDER.sub(lambda match: names[match[1]], statement))


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
DAY_OF_DATETIME: LiteralString = "DATE({column})"
DAY_IN_ZONE: LiteralString = "DATE({column}, {zone})"
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

#: The requested dates whose rows are those published from the requested file.
HOLDS: LiteralString = """
    SELECT DISTINCT c.day AS day
    FROM ({content}) AS c
    JOIN ({wanted}) AS w ON w.day = c.day
    JOIN {publications} AS p ON p.day = c.day AND p.content = c.content AND p.checksum = w.checksum
    WHERE p.target = @target AND p.day BETWEEN @first AND @last
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


# -- replacing partitions -------------------------------------------------------------------------------------

WANTED: LiteralString = """
    SELECT
        CAST(JSON_VALUE(one, '$.day') AS DATE) AS day,
        JSON_VALUE(one, '$.before') AS before,
        JSON_VALUE(one, '$.published') AS published,
        JSON_VALUE(one, '$.checksum') AS checksum,
        CAST(JSON_VALUE(one, '$.attempt') AS INT64) AS attempt,
        CAST(JSON_VALUE(one, '$.row_count') AS INT64) AS row_count
    FROM UNNEST(@wanted) AS one
"""

BEGIN: LiteralString = """
    DECLARE backfill_days ARRAY<DATE>;
    BEGIN TRANSACTION;
"""

COMMIT: LiteralString = """
    COMMIT TRANSACTION;
"""

CHOOSE_ALL: LiteralString = """
    SET backfill_days = @days;
"""

#: Choose the requested dates to publish: all rows are staged, and the target is unchanged since.
CHOOSE_UNCHANGED: LiteralString = """
    SET backfill_days = (
        SELECT ARRAY_AGG(w.day)
        FROM ({wanted}) AS w
        JOIN (SELECT {date} AS day, COUNT(*) AS row_count FROM {source} GROUP BY {date}) AS s
            ON s.day = w.day AND s.row_count = w.row_count
        LEFT JOIN ({now}) AS n ON n.day = w.day
        WHERE IFNULL(n.content, 'absent') = w.before
    );
"""

#: Choose the requested dates to restore: they hold the published rows, and the undo table all earlier ones.
CHOOSE_KEPT: LiteralString = """
    SET backfill_days = (
        SELECT ARRAY_AGG(w.day)
        FROM ({wanted}) AS w
        JOIN ({now}) AS n ON n.day = w.day AND n.content = w.published
        LEFT JOIN ({kept}) AS k ON k.day = w.day
        WHERE IFNULL(k.content, 'absent') = w.before
    );
"""

#: The same without an undo table: the dates that had no rows before.
CHOOSE_ABSENT: LiteralString = """
    SET backfill_days = (
        SELECT ARRAY_AGG(w.day)
        FROM ({wanted}) AS w
        JOIN ({now}) AS n ON n.day = w.day AND n.content = w.published
        WHERE w.before = 'absent'
    );
"""

#: Keep the rows that a date had before the run's first publication of it.
KEEP: LiteralString = """
    INSERT INTO {kept} ({columns})
    SELECT {columns} FROM {target}
    WHERE {date} BETWEEN @first AND @last AND {date} IN UNNEST(backfill_days) AND {date} NOT IN (
        SELECT day FROM {publications} WHERE target = @target AND run = @run AND day BETWEEN @first AND @last
    );
"""

REMOVE: LiteralString = """
    DELETE FROM {target} WHERE {date} BETWEEN @first AND @last AND {date} IN UNNEST(backfill_days);
"""

INSERT: LiteralString = """
    INSERT INTO {target} ({columns})
    SELECT {columns} FROM {source} WHERE {date} BETWEEN @first AND @last AND {date} IN UNNEST(backfill_days);
"""

RECORD: LiteralString = """
    INSERT INTO {publications}
        (target, day, run, window_number, attempt, row_count, checksum, content, before, published_at)
    SELECT
        @target, w.day, @run, @window_number, w.attempt, w.row_count, w.checksum, c.content, w.before,
        CURRENT_TIMESTAMP()
    FROM ({wanted}) AS w
    JOIN ({content}) AS c ON c.day = w.day
    WHERE w.day IN UNNEST(backfill_days);
"""

#: For each date, the contents before the run's first publication and after its last.
REPLACED: LiteralString = """
    SELECT
        day,
        ANY_VALUE(before HAVING MIN published_at) AS before,
        ANY_VALUE(content HAVING MAX published_at) AS published
    FROM {publications}
    WHERE target = @target AND run = @run AND day BETWEEN @first AND @last
    GROUP BY day
"""


def publish(target: Partitions, source: QuotedSql, publications: QuotedSql, undo_table: QuotedSql | None) -> QuotedSql:
    """Build one transaction: keep the replaced rows, insert the source's rows, and record the publication.

    Parameters: days, first, last, target, run, window_number, wanted.
    """
    names = _names(target, source) | {"publications": publications}
    chosen = {"wanted": fill_placeholders(WANTED), "now": partition_contents(target)}
    recorded = {"wanted": fill_placeholders(WANTED), "content": partition_contents(target._replace(table=source))}
    return transaction(
        fill_placeholders(CHOOSE_UNCHANGED, **names, **chosen),
        *([fill_placeholders(KEEP, **names, kept=undo_table)] if undo_table else []),
        fill_placeholders(REMOVE, **names),
        fill_placeholders(INSERT, **names),
        fill_placeholders(RECORD, **names, **recorded),
    )


def load(target: Partitions, source: QuotedSql) -> QuotedSql:
    """Build one transaction that replaces the days' rows by the source's. Parameters: days, first, last."""
    names = _names(target, source)
    return transaction(
        fill_placeholders(CHOOSE_ALL), fill_placeholders(REMOVE, **names), fill_placeholders(INSERT, **names)
    )


def restore(target: Partitions, undo_table: Partitions | None) -> QuotedSql:
    """Build one transaction that restores the days' replaced rows, or deletes their rows without an undo table.

    Parameters: days, first, last, wanted.
    """
    names = {"wanted": fill_placeholders(WANTED), "now": partition_contents(target)}
    if undo_table is None:
        return transaction(
            fill_placeholders(CHOOSE_ABSENT, **names), fill_placeholders(REMOVE, **_names(target, target.table))
        )
    places = _names(undo_table, undo_table.table) | {"target": target.table}  # a column added since gets no values
    return transaction(
        fill_placeholders(CHOOSE_KEPT, **names, kept=partition_contents(undo_table)),
        fill_placeholders(REMOVE, **places),
        fill_placeholders(INSERT, **places),
    )


def replaced_partitions(publications: QuotedSql) -> QuotedSql:
    """Build the query of a run's replaced partitions by day. Parameters: target, run, first, last."""
    return fill_placeholders(REPLACED, publications=publications)


def _names(target: Partitions, source: QuotedSql) -> dict[str, QuotedSql]:
    return {"target": target.table, "date": target.date, "columns": target.columns, "source": source}


def transaction(*steps: QuotedSql) -> QuotedSql:
    return join_sql("", [fill_placeholders(BEGIN), *steps, fill_placeholders(COMMIT)])
