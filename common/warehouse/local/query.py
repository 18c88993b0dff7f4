"""SQL over the rows of partitions, by DuckDB. There is no database file, which would lock other processes out.

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
from gated_backfill.common.model.tables import validate_identifier
from gated_backfill.common.warehouse.protocol import Scan, StagedScan
from gated_backfill.common.warehouse.sql import is_query, parameter_names, table_names, to_duckdb, with_googlesql_types

Scans = Mapping[str, Scan | StagedScan]


class DuckDbQueries:
    """Answers queries over scans. Safe for several threads at once.

    `read` returns the rows of a scan, so that a query sees what every other reader of a table sees.
    """

    def __init__(self, read: Callable[[Scan | StagedScan], pa.Table]) -> None:
        self._read = read
        self._local = threading.local()

    def query(self, sql: LiteralString, scans: Scans, params: Mapping[str, Any]) -> pa.Table:
        """See `Warehouse.query`."""
        tables = ", ".join(str(s.table) if isinstance(s, Scan) else "staged files" for s in scans.values())
        try:
            _check_query(sql, scans)
            rows = {validate_identifier(name, "scan name"): self._read(scan) for name, scan in scans.items()}
            return self._run(sql, rows, params)
        except RecursionError as exc:
            raise QueryFailed("the query is nested too deeply", table=tables) from exc
        except RuntimeError as exc:  # DuckDB raises it for any error of a signal's handler during the query
            raise WarehouseUnavailable(f"the query was cut off: {exc}", table=tables) from exc
        except (duckdb.Error, SqlglotError, pa.ArrowInvalid) as exc:
            raise QueryFailed(str(exc), table=tables) from exc

    def _run(self, sql: LiteralString, rows: Mapping[str, pa.Table], params: Mapping[str, Any]) -> pa.Table:
        connection = self._connection()
        bound = {key: value for key, value in params.items() if key in parameter_names(sql)}
        try:
            for name, table in rows.items():
                connection.register(name, table)
            return with_googlesql_types(connection.sql(to_duckdb(sql), params=bound).to_arrow_table())
        finally:
            for name in rows:
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
                }
            )
            self._local.connection = connection
        return connection


def _check_query(sql: LiteralString, scans: Scans) -> None:
    """Check that it is a query of the scans only. Raises `QueryFailed` or the parser's errors."""
    if not is_query(sql):
        raise QueryFailed("it is not a query: a warehouse accepts only SELECT statements")
    if unknown := table_names(sql) - set(scans):
        raise QueryFailed(f"the query reads {', '.join(sorted(unknown))}, but has no scan of that name")
