"""Staging of a query's rows: one job makes a table of them, and counts what is in it."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date, timedelta
from typing import Any, LiteralString

from gated_backfill.common.errors import QueryFailed, SchemaMismatch, UserError
from gated_backfill.common.model.publication import StagedFile
from gated_backfill.common.model.tables import ColumnTypes, TableName, validate_identifier
from gated_backfill.common.process.clock import utcnow
from gated_backfill.common.warehouse.bigquery import statements as sql_of
from gated_backfill.common.warehouse.bigquery.client import (
    READ_PERMISSIONS,
    BigQueryConnection,
    job_name,
    translate_bigquery_errors,
)
from gated_backfill.common.warehouse.bigquery.parameters import date_parameters
from gated_backfill.common.warehouse.bigquery.schema import check_column_names
from gated_backfill.common.warehouse.bigquery.staging_tables import staged_days
from gated_backfill.common.warehouse.bigquery.statements import (
    QuotedSql,
    fill_placeholders,
    join_sql,
    quoted_column,
    quoted_columns,
)
from gated_backfill.common.warehouse.bigquery.tables import CREATE_PERMISSIONS, BigQueryTables
from gated_backfill.common.warehouse.protocol import Scan, StagedDay, StagedScan

BuildQuery = Callable[
    [LiteralString, Mapping[str, Scan | StagedScan], Mapping[str, Any], str], tuple[str, dict[str, Any]]
]

#: Make the table, whole or not at all, and count its rows by day. The table lives for a day, see `staging_tables`.
STAGE: LiteralString = """
    CREATE OR REPLACE TABLE {table}
    PARTITION BY {date}
    OPTIONS (expiration_timestamp = TIMESTAMP_ADD(CURRENT_TIMESTAMP(), INTERVAL 1 DAY))
    AS SELECT {values} FROM ({query}) AS result;
    SELECT day, {content}, COUNT(*) AS row_count, COUNT(DISTINCT key_hash) AS key_count
    FROM (SELECT {date} AS day, {hash}, {key_hash} FROM {table})
    GROUP BY day;
"""

STAGING_PERMISSIONS = f"{READ_PERMISSIONS}, {CREATE_PERMISSIONS}"
NOT_EXACT = "; cast it in the query"  #: ends the error of a value that its column's type would change

#: The casts that keep every value, or fail; by the type of the query's column and that of the target's.
EXACT_CASTS: Mapping[tuple[str, str], LiteralString] = {
    ("INT64", "FLOAT64"): """
        IF({column} IS NULL OR ABS({column}) <= 9007199254740992, CAST({column} AS FLOAT64), {error})""",
    ("FLOAT64", "INT64"): """
        IF(
            {column} IS NULL OR IS_NAN({column}), NULL,
            IF(
                ABS({column}) <= 9007199254740992 AND {column} = TRUNC({column}),
                CAST({column} AS INT64), {error}
            )
        )""",
    ("DATE", "DATETIME"): "CAST({column} AS DATETIME)",
    ("DATETIME", "DATE"): """
        IF({column} IS NULL OR {column} = DATETIME_TRUNC({column}, DAY), CAST({column} AS DATE), {error})""",
}
NULLS_ONLY: LiteralString = "IF({column} IS NULL, CAST(NULL AS {kind}), {error})"
ERROR: LiteralString = "ERROR(CONCAT({start}, CAST({column} AS STRING), '; cast it in the query'))"
ERROR_OF_TYPE: LiteralString = "ERROR(CONCAT({start}, '{own_kind}; cast it in the query'))"


class BigQueryQueryStaging:
    """Staging tables that queries fill; see `QueryStaging`."""

    def __init__(self, jobs: BigQueryConnection, tables: BigQueryTables, build_query: BuildQuery) -> None:
        self._jobs = jobs
        self._tables = tables
        self._build_query = build_query

    def stage_query(
        self,
        sql: LiteralString,
        *,
        scans: Mapping[str, Scan | StagedScan],
        params: Mapping[str, Any],
        columns: ColumnTypes,
        date_column: str,
        key: Sequence[str],
        name: Sequence[str],
    ) -> tuple[TableName, dict[date | None, StagedDay]]:
        check_column_names(date_column, *columns, *key)
        read_tables = ", ".join(str(scan.table) for scan in scans.values() if isinstance(scan, Scan))
        query, bound = self._build_query(sql, scans, params, read_tables)
        job = job_name("stage", *name, query)
        table = self._tables.own("staged_" + job.rpartition("-")[2])
        self._tables.create_own_dataset()
        with self._forgetting_descriptions(), _translate_query_errors(read_tables):
            own_types = self._jobs.result_types(query, bound)
            statement = self._stage_statement(table, query, own_types, columns, date_column, key)
            rows = self._jobs.run_query(job, statement, bound, has_effect=lambda: self._exists(table))
        contents = {
            row["day"]: StagedDay(content=row["content"], rows=row["row_count"], keys=row["key_count"])
            for row in rows.to_pylist()
        }
        return table, contents

    def read_staged_contents(self, staged: Sequence[StagedFile], columns: ColumnTypes) -> dict[date, str]:
        contents: dict[date, str] = {}
        for table, days in staged_days(staged).items():
            info = self._tables.describe_uncached(table)
            if info is None:
                continue
            if dict(info.columns) != dict(columns) or info.partitioned_by is None:
                actual = ", ".join(f"{name} {kind}" for name, kind in info.columns.items())
                raise SchemaMismatch(f"the columns are {actual}", table=str(table))
            statement = sql_of.partition_contents(self._tables.partitions(table, info.partitioned_by, columns))
            with _translate_query_errors(str(table)):
                rows = self._jobs.query(statement, date_parameters(days))
            contents |= {row["day"]: row["content"] for row in rows.to_pylist()}
        return contents

    def keep_staged(self, staged: StagedFile, period: timedelta) -> None:
        table = staged.table
        if table is not None and self._tables.describe_uncached(table) is not None:
            self._tables.postpone_expiration(table, utcnow() + period, slack=timedelta())

    @contextmanager
    def _forgetting_descriptions(self) -> Generator[None]:
        """Forget the tables' descriptions after an error: a table may have changed."""
        try:
            yield
        except UserError:
            self._tables.forget_descriptions()
            raise

    def _exists(self, table: TableName) -> bool:
        return self._tables.describe_uncached(table) is not None

    def _stage_statement(
        self,
        table: TableName,
        query: str,
        own_types: Mapping[str, str],
        columns: ColumnTypes,
        date_column: str,
        key: Sequence[str],
    ) -> QuotedSql:
        if missing := [name for name in columns if name not in own_types]:
            raise SchemaMismatch(f"the query returns no column {', '.join(missing)}")
        content_hash, key_hash = quoted_column("content_hash"), quoted_column("key_hash")
        key_columns = quoted_columns(dict.fromkeys((date_column, *key)))
        return fill_placeholders(
            STAGE,
            table=self._tables.quoted(table),
            date=quoted_column(date_column),
            values=join_sql(", ", [_typed_value(name, own_types[name], kind) for name, kind in columns.items()]),
            query=QuotedSql(query),  # a job's own text, which was checked when the job was loaded, over quoted tables
            content=fill_placeholders(sql_of.CONTENT, hash=content_hash, content=quoted_column("content")),
            hash=fill_placeholders(sql_of.ROW_HASH, columns=quoted_columns(sorted(columns)), hash=content_hash),
            key_hash=fill_placeholders(sql_of.ROW_HASH, columns=key_columns, hash=key_hash),
        )


def _typed_value(name: str, own_kind: str, kind: str) -> QuotedSql:
    """The value of a column of the query in exactly the target's type: an error if the type would change it."""
    column = quoted_column(name)
    names = {
        "column": column,
        "start": QuotedSql(f"'column {validate_identifier(name, 'column name')} is not {kind}: it holds '"),
        "own_kind": QuotedSql(re.sub(r"[^A-Z0-9<>_ ]", "", own_kind)),
        "kind": QuotedSql(kind),
    }
    if own_kind == kind:
        return column
    if (own_kind, kind) in EXACT_CASTS:
        value = fill_placeholders(EXACT_CASTS[own_kind, kind], **names, error=fill_placeholders(ERROR, **names))
    else:
        value = fill_placeholders(NULLS_ONLY, **names, error=fill_placeholders(ERROR_OF_TYPE, **names))
    return fill_placeholders(sql_of.RENAMED, own=value, name=column)


@contextmanager
def _translate_query_errors(tables: str) -> Generator[None]:
    try:
        with translate_bigquery_errors("the query", table=tables, needs=STAGING_PERMISSIONS):
            yield
    except QueryFailed as exc:
        _, is_inexact, problem = str(exc).partition("column ")
        if NOT_EXACT in problem:
            raise SchemaMismatch(f"{is_inexact}{problem.partition(NOT_EXACT)[0]}{NOT_EXACT}") from exc
        raise
