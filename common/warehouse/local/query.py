"""SQL over the rows of partitions, by DuckDB. There is no database file, which would lock other processes out.

A separate module, as DuckDB and sqlglot take long to import, and many commands do not need them.
"""

from __future__ import annotations

import glob
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, LiteralString
from uuid import uuid4

import duckdb
import pyarrow as pa
from sqlglot.errors import SqlglotError

from gated_backfill.common.errors import QueryFailed, WarehouseUnavailable
from gated_backfill.common.model.tables import validate_identifier
from gated_backfill.common.storage.staged_files import check_staged
from gated_backfill.common.warehouse.protocol import Scan, StagedScan
from gated_backfill.common.warehouse.sql import is_query, parameter_names, table_names, to_duckdb, with_googlesql_types

Scans = Mapping[str, Scan | StagedScan]


class DuckDbQueries:
    """Answers queries over scans. Safe for several threads at once.

    `read` returns the rows of a scan, so that a query sees what every other reader of a table sees.
    """

    def __init__(self, read: Callable[[Scan | StagedScan], pa.Table], *, memory_mb: int) -> None:
        """`memory_mb`: beyond it, a query uses files, or fails."""
        self._read = read
        self._memory_mb = memory_mb
        self._local = threading.local()

    def query(self, sql: LiteralString, scans: Scans, params: Mapping[str, Any]) -> pa.Table:
        """See `Warehouse.query`."""
        tables = ", ".join(str(s.table) if isinstance(s, Scan) else "staged files" for s in scans.values())
        try:
            _check_query(sql, scans)
            for name in scans:
                validate_identifier(name, "scan name")
            return self._run(sql, scans, params)
        except RecursionError as exc:
            raise QueryFailed("the query is nested too deeply", table=tables) from exc
        except RuntimeError as exc:  # DuckDB raises it for any error of a signal's handler during the query
            raise WarehouseUnavailable(f"the query was cut off: {exc}", table=tables) from exc
        except duckdb.OutOfMemoryException as exc:
            limit = f"more memory than BACKFILL_QUERY_MEMORY_MB ({self._memory_mb})"
            raise QueryFailed(f"the query needs {limit}: {exc}", table=tables) from exc
        except (duckdb.Error, SqlglotError, pa.ArrowInvalid) as exc:
            _check_staged_files(scans)  # one that was removed meanwhile is the cause
            raise QueryFailed(str(exc), table=tables) from exc

    def _run(self, sql: LiteralString, scans: Scans, params: Mapping[str, Any]) -> pa.Table:
        connection = self._connection()
        bound = {key: value for key, value in params.items() if key in parameter_names(sql)}
        try:
            for name, scan in scans.items():
                paths = _paths(scan)
                if paths is None:
                    connection.register(name, self._read(scan))
                else:
                    _check_staged_files({name: scan})
                    _read_files(connection, paths, scan.columns).create_view(name)
            return with_googlesql_types(connection.sql(to_duckdb(sql), params=bound).to_arrow_table())
        finally:
            for name in scans:
                connection.unregister(name)

    def _connection(self) -> duckdb.DuckDBPyConnection:
        """Return the connection of this thread. Threads cannot share one."""
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = duckdb.connect(
                config={
                    "threads": 1,  # callers with many queries run them in parallel
                    "TimeZone": "UTC",  # as in GoogleSQL: that of the machine would change dates and texts of times
                    "autoinstall_known_extensions": False,
                    "python_enable_replacements": False,
                    "enable_external_file_cache": False,
                    "memory_limit": f"{self._memory_mb}MB",
                    "temp_directory": str(Path(tempfile.gettempdir(), f"backfill-duckdb-{uuid4().hex}")),
                }
            )
            self._local.connection = connection
        return connection


def _paths(scan: Scan | StagedScan) -> list[str] | None:
    """The staged files that DuckDB reads itself, whatever they hold; None for rows that are read before the query."""
    if isinstance(scan, Scan) or not scan.files or any("://" in staged.location for staged in scan.files):
        return None
    return [staged.location for staged in scan.files]


def _check_staged_files(scans: Scans) -> None:
    """Raise `StagedFileLost` for a staged file that is gone or has changed."""
    for scan in scans.values():
        if isinstance(scan, StagedScan):
            for staged in scan.files:
                check_staged(staged)


def _read_files(
    connection: duckdb.DuckDBPyConnection, paths: Sequence[str], columns: Mapping[str, str] | None
) -> duckdb.DuckDBPyRelation:
    literal_paths = [glob.escape(path) for path in paths]  # DuckDB takes them for patterns
    rows = connection.read_parquet(literal_paths, hive_partitioning=False)
    if columns is None:
        return rows
    return rows.select(*(duckdb.ColumnExpression(own).alias(name) for name, own in columns.items()))


def _check_query(sql: LiteralString, scans: Scans) -> None:
    """Check that it is a query of the scans only. Raises `QueryFailed` or the parser's errors."""
    if not is_query(sql):
        raise QueryFailed("it is not a query: a warehouse accepts only SELECT statements")
    if unknown := table_names(sql) - set(scans):
        raise QueryFailed(f"the query reads {', '.join(sorted(unknown))}, but has no scan of that name")
