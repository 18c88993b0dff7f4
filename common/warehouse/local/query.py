"""SQL over Parquet files, by DuckDB. There is no database file, which would lock other processes out.

A separate module, as DuckDB and sqlglot take long to import, and many commands do not need them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, LiteralString

import duckdb
import pyarrow as pa
from sqlglot.errors import SqlglotError

from gated_backfill.common.errors import QueryFailed, WarehouseUnavailable
from gated_backfill.common.model.tables import TableName, validate_identifier
from gated_backfill.common.warehouse.local.partition_files import FileStamp, file_stamp
from gated_backfill.common.warehouse.protocol import Scan, StagedScan
from gated_backfill.common.warehouse.sql import is_query, parameter_names, table_names, to_duckdb, with_googlesql_types

MAX_TRIES = 50  #: of a query whose files are replaced while it reads them

Scans = Mapping[str, Scan | StagedScan]


class DuckDbQueries:
    """Answers queries over files. Safe for several threads at once.

    DuckDB gets an explicit list of the files for a query's dates: a glob over all files takes ten times as long.
    """

    def __init__(
        self, files: Callable[[Scan | StagedScan], list[str]], schema: Callable[[TableName], pa.Schema]
    ) -> None:
        self._files = files
        self._schema = schema
        self._local = threading.local()

    def query(self, sql: LiteralString, scans: Scans, params: Mapping[str, Any]) -> pa.Table:
        """See `Warehouse.query`."""
        tables = ", ".join(str(s.table) if isinstance(s, Scan) else "staged files" for s in scans.values())
        for _ in range(MAX_TRIES):
            files = {name: self._files(scan) for name, scan in scans.items()}
            before = _stamps(files)
            try:
                result: pa.Table | duckdb.Error = self._run(sql, scans, files, params)
            except duckdb.Error as exc:
                result = exc
            except RuntimeError as exc:  # DuckDB raises it for any error of a signal's handler during the query
                raise WarehouseUnavailable(f"the query was cut off: {exc}", table=tables) from exc
            except (SqlglotError, pa.ArrowInvalid) as exc:
                raise QueryFailed(str(exc), table=tables) from exc
            if _stamps(files) != before:
                continue  # DuckDB opens a file twice, and one was replaced in between: the result is wrong
            if isinstance(result, pa.Table):
                return result
            if isinstance(result, duckdb.IOException):
                raise WarehouseUnavailable(str(result), table=tables) from result
            raise QueryFailed(str(result), table=tables) from result
        raise WarehouseUnavailable(f"was written to during each of {MAX_TRIES} reads", table=tables)

    def _run(
        self, sql: LiteralString, scans: Scans, files: Mapping[str, list[str]], params: Mapping[str, Any]
    ) -> pa.Table:
        if not is_query(sql):
            raise QueryFailed("it is not a query: a warehouse accepts only SELECT statements")
        unknown = table_names(sql) - set(scans)
        if unknown:
            raise QueryFailed(f"the query reads {', '.join(sorted(unknown))}, but has no scan of that name")
        connection = self._connection()
        for name, scan in scans.items():
            relation = self._relation(connection, scan, files[name])
            relation.create_view(validate_identifier(name, "scan name"), replace=True)
        bound = {key: value for key, value in params.items() if key in parameter_names(sql)}
        return with_googlesql_types(connection.sql(to_duckdb(sql), params=bound).to_arrow_table())

    def _relation(
        self, connection: duckdb.DuckDBPyConnection, scan: Scan | StagedScan, files: list[str]
    ) -> duckdb.DuckDBPyRelation:
        relation = connection.read_parquet(files, hive_partitioning=False) if files else self._empty(connection, scan)
        if scan.columns is None:
            return relation
        return relation.select(*(duckdb.ColumnExpression(own).alias(name) for name, own in scan.columns.items()))

    def _empty(self, connection: duckdb.DuckDBPyConnection, scan: Scan | StagedScan) -> duckdb.DuckDBPyRelation:
        if isinstance(scan, StagedScan):
            raise QueryFailed("no staged file was given to the query")
        return connection.from_arrow(self._schema(scan.table).empty_table())

    def _connection(self) -> duckdb.DuckDBPyConnection:
        """Return the connection of this thread. Threads cannot share one."""
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = duckdb.connect(
                config={
                    "threads": 1,  # callers with many queries run them in parallel
                    "autoinstall_known_extensions": False,
                    "python_enable_replacements": False,
                    "enable_external_file_cache": False,
                }
            )
            self._local.connection = connection
        return connection


def _stamps(files: Mapping[str, list[str]]) -> list[FileStamp | None]:
    return [file_stamp(path) for paths in files.values() for path in paths]
