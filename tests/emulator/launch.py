"""Starts the BigQuery emulator, repaired where it does not do as BigQuery does.

Run by the interpreter of the emulator's own virtual environment, with the emulator's own command line. It reaches into
version 1.4.0, which `requirements.lock` pins. `docs/bigquery.md` says what it proves and what it does not.
"""

from __future__ import annotations

import os
import re
from functools import lru_cache
from typing import Any

import sqlglot
from bqemulator.api.routes import jobs, upload
from bqemulator.catalog.duckdb_repository import DuckDBCatalogRepository
from bqemulator.cli import main
from bqemulator.domain.errors import AlreadyExistsError
from bqemulator.jobs import executor
from bqemulator.storage import engine
from bqemulator.storage.sql_identifiers import quoted_table_ref, schema_name
from bqemulator.storage.type_map import bq_schema_to_duckdb_columns

PARAMETER = re.compile(r"""('(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|`[^`]*`|--[^\n]*|/\*.*?\*/|@@\w+)|@(\w+)""", re.DOTALL)
UNQUOTED = ("INT64", "INTEGER", "BOOL", "BOOLEAN")
CAST = ("FLOAT64", "NUMERIC", "BIGNUMERIC")


def start_offline() -> None:
    """Extensions, for GEOGRAPHY and Avro, would be downloaded, and nothing here needs them."""
    os.environ.setdefault("BQEMU_ENABLE_FORMAT_EXTENSIONS", "false")
    engine.DuckDBEngine._load_spatial = lambda self: None


def parse_each_statement_once() -> None:
    """It parses a statement again in each of some twenty steps, which is most of its work."""
    parse = lru_cache(maxsize=200)(sqlglot.parse_one)

    def parsed(sql: str, **more: Any) -> sqlglot.Expr:
        return parse(sql, **more).copy()  # steps change it

    sqlglot.parse_one = parsed


def take_uploads_of_any_type() -> None:
    """The client sends the media part of a multipart upload as `*/*`."""
    for name, value in list(vars(upload).items()):
        if isinstance(value, tuple) and "application/octet-stream" in value:
            setattr(upload, name, (*value, "*/*"))


def match_parquet_columns_by_name() -> None:
    def insert(path: str, table: str, context: Any) -> None:
        context.engine.execute(f"INSERT INTO {table} BY NAME SELECT * FROM read_parquet(?)", [path])

    executor._LOAD_FORMAT_HANDLERS["PARQUET"] = insert


def bind_parameters_in_scripts() -> None:
    """Parameters of a statement are bound; those of a script are dropped: write them in as literals."""
    run = executor._run_query_body

    async def with_literals(*, bq_sql: str, query_params: Any, is_scripted: bool, **more: Any) -> Any:
        if is_scripted and query_params:
            values = {p["name"]: literal(p["parameterType"], p["parameterValue"]) for p in query_params}
            bq_sql = PARAMETER.sub(lambda found: found[1] or values.get(found[2], found[0]), bq_sql)
        return await run(bq_sql=bq_sql, query_params=query_params, is_scripted=is_scripted, **more)

    executor._run_query_body = with_literals


def literal(kind: dict[str, Any], value: dict[str, Any]) -> str:
    name = kind["type"].upper()
    if name == "ARRAY":
        values = ", ".join(literal(kind["arrayType"], one) for one in value.get("arrayValues") or [])
        return f"CAST([{values}] AS ARRAY<{kind['arrayType']['type']}>)"
    text = value.get("value")
    if text is None:
        return f"CAST(NULL AS {name})"
    if name in UNQUOTED:
        return str(text)
    quoted = "'" + str(text).replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"
    if name == "STRING":
        return quoted
    return f"CAST({quoted} AS {name})" if name in CAST else f"{name} {quoted}"


def refuse_a_job_id_that_was_used() -> None:
    """Query jobs and loads from gs://; uploads ignore the id they are given."""

    def refusing(handle: Any) -> Any:
        async def handled(project_id: str, job_id: str, config: Any, *arguments: Any, **named: Any) -> Any:
            context = named.get("ctx") or arguments[-1]
            if context.catalog.get_job(project_id, job_id) is not None:
                raise AlreadyExistsError(f"Already Exists: Job {project_id}:US.{job_id}")
            return await handle(project_id, job_id, config, *arguments, **named)

        return handled

    jobs._handle_query_job = refusing(jobs._handle_query_job)
    jobs._handle_load_job_with_async_envelope = refusing(jobs._handle_load_job_with_async_envelope)


def add_columns_to_the_rows_too() -> None:
    """The update of a table's schema changes the description only."""
    update = DuckDBCatalogRepository.update_table

    def updated(self: Any, table: Any) -> Any:
        before = self._cache.get_table(table.project_id, table.dataset_id, table.table_id)
        present = {field.name for field in before.schema_.fields} if before is not None else set()
        added = [{"name": one.name, "type": one.type} for one in table.schema_.fields if one.name not in present]
        target = quoted_table_ref(table.project_id, table.dataset_id, table.table_id)
        for name, kind in bq_schema_to_duckdb_columns(added) if present else []:
            self._engine.execute(f'ALTER TABLE {target} ADD COLUMN "{name}" {kind}')
        return update(self, table)

    DuckDBCatalogRepository.update_table = updated


def forget_tables_made_by_half() -> None:
    """Killed while it makes a table, it would find one that it does not know, and fail whoever makes it again."""
    hydrate = DuckDBCatalogRepository._hydrate_tables

    def hydrated(self: Any) -> None:
        hydrate(self)
        schemas = [schema_name(*key) for key in self._cache._datasets]
        known = {quoted_table_ref(*key) for key in self._cache._tables}
        there = self._engine.execute("SELECT schema_name, table_name FROM duckdb_tables()").fetchall()
        for schema, table in there:
            if schema in schemas and f'"{schema}"."{table}"' not in known:
                self._engine.execute(f'DROP TABLE "{schema}"."{table}"')

    DuckDBCatalogRepository._hydrate_tables = hydrated


if __name__ == "__main__":
    start_offline()
    parse_each_statement_once()
    take_uploads_of_any_type()
    match_parquet_columns_by_name()
    bind_parameters_in_scripts()
    refuse_a_job_id_that_was_used()
    forget_tables_made_by_half()
    add_columns_to_the_rows_too()
    main()
