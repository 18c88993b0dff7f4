"""Starts the BigQuery emulator, repaired where it does not do as BigQuery does.

Run by the interpreter of the emulator's own virtual environment, with the emulator's own command line. It reaches into
version 1.4.0, which `requirements.lock` pins. `docs/bigquery.md` says what it proves and what it does not.
"""

from __future__ import annotations

import json
import os
import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

from bqemulator.api.routes import jobs, upload
from bqemulator.catalog import ddl_sync
from bqemulator.catalog.duckdb_repository import DuckDBCatalogRepository
from bqemulator.catalog.memory_repository import MemoryCatalogRepository
from bqemulator.cli import main
from bqemulator.domain.errors import AlreadyExistsError
from bqemulator.domain.result import Ok
from bqemulator.jobs import executor
from bqemulator.scripting import interpreter
from bqemulator.scripting.interpreter import ScriptInterpreter
from bqemulator.sql import inner_query
from bqemulator.sql.parameters import _extract_value
from bqemulator.sql.translator import SQLTranslator
from bqemulator.storage import engine, partition_state
from bqemulator.storage.sql_identifiers import quoted_table_ref, schema_name
from bqemulator.storage.type_map import bq_schema_to_duckdb_columns
from sqlglot.dialects.dialect import Dialect
from sqlglot.expressions.core import POSITION_META_KEYS

PARAMETER = re.compile(r"""('(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|`[^`]*`|--[^\n]*|/\*.*?\*/|@@\w+)|@(\w+)""", re.DOTALL)
RANDOM_NAME = re.compile(r"(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
GRANULARITIES = {"DAY": "%Y%m%d", "HOUR": "%Y%m%d%H", "MONTH": "%Y%m", "YEAR": "%Y"}
BOUND_AS_IT_IS = ("INT64", "INTEGER", "BOOL", "BOOLEAN", "STRING")


def leave_out_what_nobody_uses() -> None:
    """Each statement is parsed once more for each feature that it might use."""
    inner_query.rewrite_for_row_access = lambda sql, **_: sql
    executor._reject_dml_on_immutable = lambda *_: None

    async def capture_no_snapshot(*_: Any) -> None:
        """For time travel."""

    executor._capture_dml_snapshots = capture_no_snapshot

    def only_for(word: str, detect: Any, otherwise: Any) -> Any:
        return lambda sql, *more: detect(sql, *more) if word in sql.upper() else otherwise

    for module, name, word, otherwise in (
        (ddl_sync, "_detect_plain_create_table", "CREATE", None),
        (ddl_sync, "_detect_plain_create_view", "CREATE", (None, None)),
        (ddl_sync, "_detect_create_schema", "CREATE", None),
        (ddl_sync, "_detect_catalog_drop", "DROP", None),
        (executor, "detect_drop_routine", "DROP", None),
    ):
        setattr(module, name, only_for(word, getattr(module, name), otherwise))


def start_offline() -> None:
    """Extensions, for GEOGRAPHY and Avro, would be downloaded, and nothing here needs them."""
    os.environ.setdefault("BQEMU_ENABLE_FORMAT_EXTENSIONS", "false")
    engine.DuckDBEngine._load_spatial = lambda self: None


def parse_each_statement_once() -> None:
    """It parses a statement again in each of some twenty steps, which is most of its work."""
    parse = Dialect.parse

    @lru_cache(maxsize=200)
    def parse_once(dialect: type[Dialect], sql: str, **options: Any) -> list[Any]:
        trees = parse(dialect(), sql, **options)
        for node in (node for tree in trees if tree is not None for node in tree.walk()):
            # Without the places in the text, which nobody needs: to copy them would take most of the time of a copy.
            kept = {name: value for name, value in (node._meta or {}).items() if name not in POSITION_META_KEYS}
            node._meta = kept or None
        return trees

    def parsed(self: Dialect, sql: str, **options: Any) -> list[Any]:
        trees = parse_once(type(self), sql, **options)
        return [None if tree is None else tree.copy() for tree in trees]  # steps change it

    Dialect.parse = parsed


def take_uploads_of_any_type() -> None:
    """The client sends the media part of a multipart upload as `*/*`."""
    for name, value in list(vars(upload).items()):
        if isinstance(value, tuple) and "application/octet-stream" in value:
            setattr(upload, name, (*value, "*/*"))


def match_parquet_columns_by_name() -> None:
    def insert(path: str, table: str, context: Any) -> None:
        context.engine.execute(f"INSERT INTO {table} BY NAME SELECT * FROM read_parquet(?)", [path])

    executor._LOAD_FORMAT_HANDLERS["PARQUET"] = insert


def translate_each_text_once() -> None:
    """It translates every statement anew, a third of its work. Only the names of staged tables are new each time."""
    translate, qualify = SQLTranslator.translate, interpreter.rewrite_table_refs
    translator = SQLTranslator()

    @lru_cache(maxsize=2000)
    def translate_once(sql: str, schema: str, caller: Any) -> Any:
        return translate(translator, sql, schema=json.loads(schema), caller=caller)

    def translated(self: SQLTranslator, bq_sql: str, *, schema: Any = None, caller: Any = None) -> Any:
        renamed, names = with_common_names(f"{json.dumps(schema)}\n{bq_sql}")
        schema_json, _, sql = renamed.partition("\n")
        result = translate_once(sql, schema_json, caller)
        if isinstance(result, Ok):
            return Ok(with_own_names(result.value, names))
        return translate(self, bq_sql, schema=schema, caller=caller)  # its error has the name that was asked for

    qualify_once = lru_cache(maxsize=2000)(qualify)

    def qualified(duckdb_sql: str, project_id: str) -> str:
        renamed, names = with_common_names(duckdb_sql)
        return with_own_names(qualify_once(renamed, project_id), names)

    SQLTranslator.translate = translated
    interpreter.rewrite_table_refs = executor.rewrite_table_refs = qualified


def with_common_names(text: str) -> tuple[str, list[str]]:
    """The text with its first random name as 0...01, its second as 0...02, and these names."""
    names = list(dict.fromkeys(RANDOM_NAME.findall(text)))
    return RANDOM_NAME.sub(lambda match: f"{names.index(match[0]) + 1:032x}", text), names


def with_own_names(text: str, names: list[str]) -> str:
    return RANDOM_NAME.sub(lambda match: names[int(match[0], 16) - 1], text)


def bind_parameters_in_scripts() -> None:
    """Parameters of a statement are bound; those of a script are dropped: make them variables of the script."""
    run = executor._run_query_body

    async def with_variables(*, bq_sql: str, query_params: Any, is_scripted: bool, **more: Any) -> Any:
        if not (is_scripted and query_params):
            return await run(bq_sql=bq_sql, query_params=query_params, is_scripted=is_scripted, **more)
        script = ScriptInterpreter(more["ctx"], more["project_id"], caller=more["effective_caller"])
        references = {}
        for parameter in query_params:
            name, kind = f"parameter_{parameter['name']}", type_name(parameter["parameterType"])
            script._frames.declare(name, kind, _extract_value(parameter))
            references[parameter["name"]] = name if kind in BOUND_AS_IT_IS else f"CAST({name} AS {kind})"
        with_names = PARAMETER.sub(lambda match: match[1] or references.get(match[2], match[0]), bq_sql)
        return await executor._run_script(script, with_names, more["ctx"])

    executor._run_query_body = with_variables


def type_name(kind: dict[str, Any]) -> str:
    name = kind["type"].upper()
    return f"ARRAY<{kind['arrayType']['type']}>" if name == "ARRAY" else name


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

    def adding(update: Any) -> Any:
        def updated(self: Any, table: Any) -> Any:
            before = self.get_table(table.project_id, table.dataset_id, table.table_id)
            present = {field.name for field in before.schema_.fields} if before is not None else set()
            added = [{"name": one.name, "type": one.type} for one in table.schema_.fields if one.name not in present]
            target = quoted_table_ref(table.project_id, table.dataset_id, table.table_id)
            if present and self._engine is not None:  # the other catalog keeps one without an engine
                for name, kind in bq_schema_to_duckdb_columns(added):
                    self._engine.execute(f'ALTER TABLE {target} ADD COLUMN "{name}" {kind}')
            return update(self, table)

        return updated

    for catalog in (DuckDBCatalogRepository, MemoryCatalogRepository):
        catalog.update_table = adding(catalog.update_table)


def tell_when_partitions_changed() -> None:
    """It gives every partition the time at which its table was made: give it one that changes when its rows do."""
    list_partitions = partition_state._list_time_partitions

    def listed(database: Any, table: Any, reference: str) -> Any:
        partitions = list_partitions(database, table, reference)
        column, form = table.time_partitioning.field, GRANULARITIES[table.time_partitioning.type]
        if column is None:
            return partitions
        contents = database.execute(
            f"""SELECT strftime("{column}", '{form}'), CAST(SUM(CAST(hash(t) % 1000000000 AS BIGINT)) AS BIGINT)"""
            f" FROM {reference} AS t GROUP BY 1"
        ).fetchall()
        moments = {day: EPOCH + timedelta(milliseconds=content % 10**12) for day, content in contents}
        return tuple(
            one.model_copy(update={"last_modified_time": moments.get(one.partition_id, EPOCH)}) for one in partitions
        )

    partition_state._list_time_partitions = listed


def read_sums_in_rows_as_integers() -> None:
    """A sum of integers is an integer, also as a field of a row within a row."""
    decimal = executor._decimal_bq_type

    def kind(arrow_type: Any) -> str:
        return "INTEGER" if arrow_type.scale == 0 and arrow_type.precision == 38 else decimal(arrow_type)

    executor._ARROW_TO_BQ_RULES = tuple(
        (predicate, kind if name is decimal else name) for predicate, name in executor._ARROW_TO_BQ_RULES
    )


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
    leave_out_what_nobody_uses()
    parse_each_statement_once()
    translate_each_text_once()
    take_uploads_of_any_type()
    match_parquet_columns_by_name()
    bind_parameters_in_scripts()
    refuse_a_job_id_that_was_used()
    forget_tables_made_by_half()
    read_sums_in_rows_as_integers()
    add_columns_to_the_rows_too()
    tell_when_partitions_changed()
    main()
