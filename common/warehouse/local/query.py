"""SQL over the rows of partitions, by DuckDB. There is no database file, which would lock other processes out.

A separate module, as DuckDB and sqlglot take long to import, and many commands do not need them.
"""

from __future__ import annotations

import glob
import tempfile
import threading
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, LiteralString, NamedTuple
from uuid import uuid4

import duckdb
import pyarrow as pa
from sqlglot.errors import SqlglotError

from gated_backfill.common.errors import QueryFailed, WarehouseUnavailable
from gated_backfill.common.model.tables import ColumnType, ColumnTypes, TableName, validate_identifier
from gated_backfill.common.storage.staged_files import check_staged
from gated_backfill.common.warehouse.protocol import Scan, StagedScan
from gated_backfill.common.warehouse.sql import is_query, parameter_names, table_names, to_duckdb, with_googlesql_types

OUT_OF_MEMORY = "Out of Memory Error"  #: begins DuckDB's message
#: DuckDB's types whose values it writes unchanged as a column of the type. Whole numbers are cast, which is exact or an
#: error. Others, as those of NUMERIC, are left to the cast that refuses a value which it would change.
WRITTEN_TYPES: Mapping[ColumnType, Collection[str]] = {
    "STRING": ("VARCHAR",),
    "INT64": ("BIGINT", "HUGEINT", "INTEGER"),
    "FLOAT64": ("DOUBLE",),
    "NUMERIC": (),
    "BOOL": ("BOOLEAN",),
    "BYTES": ("BLOB",),
    "DATE": ("DATE",),
    "DATETIME": ("TIMESTAMP",),
    "TIMESTAMP": ("TIMESTAMP WITH TIME ZONE",),
}
BATCH_ROWS = 100_000  #: of a result that is read in parts
Scans = Mapping[str, Scan | StagedScan]


class QueriedFiles(NamedTuple):
    """Parquet files that DuckDB reads itself, with the columns to read by the names to give them."""

    paths: list[str]
    columns: Mapping[str, str] | None  #: None: all as they are


class DuckDbQueries:
    """Answers queries over scans. Safe for several threads at once."""

    def __init__(
        self,
        read: Callable[[Scan | StagedScan], pa.Table],
        find_files: Callable[[Scan], QueriedFiles | None],
        *,
        memory_mb: int,
    ) -> None:
        """`read` returns the rows of a scan, so that a query sees what every other reader of a table sees.

        `find_files` returns the files to query in its place, None if they are small, or would be read differently.
        `memory_mb`: beyond it, a query uses temporary files, or fails.
        """
        self._read = read
        self._find_files = find_files
        self._memory_mb = memory_mb
        self._local = threading.local()

    def query(self, sql: LiteralString, scans: Scans, params: Mapping[str, Any]) -> pa.Table:
        """See `Warehouse.query`."""
        with self._translate_errors(scans):
            _check_query(sql, scans)
            connection = self._connection()
            try:
                return with_googlesql_types(self._relation(connection, sql, scans, params).to_arrow_table())
            finally:
                for name in scans:
                    connection.unregister(name)

    def query_in_order(
        self, sql: LiteralString, scans: Scans, params: Mapping[str, Any], order: Sequence[str]
    ) -> Generator[pa.Table]:
        """See `Warehouse.query_in_order`. The connection is its own, as others may be used before all rows are read."""
        with self._translate_errors(scans), self._open() as connection:
            _check_query(sql, scans)
            ordered = self._relation(connection, sql, scans, params).sort(*_sort_keys(order))
            for batch in ordered.to_arrow_reader(BATCH_ROWS):
                yield with_googlesql_types(pa.Table.from_batches([batch]))

    @contextmanager
    def writable_query(
        self, sql: LiteralString, scans: Scans, params: Mapping[str, Any], columns: ColumnTypes, order: Sequence[str]
    ) -> Generator[Callable[[str], None] | None]:
        """See `QueryFiles.writable_query`."""
        with self._translate_errors(scans), self._open() as connection:
            _check_query(sql, scans)
            rows = _as_columns(self._relation(connection, sql, scans, params), columns)
            if rows is None:
                yield None
                return
            ordered = rows.sort(*_sort_keys(order))
            yield lambda path: ordered.write_parquet(path, compression="zstd")

    @contextmanager
    def _translate_errors(self, scans: Scans) -> Generator[None]:
        tables = ", ".join(str(s.table) if isinstance(s, Scan) else "staged files" for s in scans.values())
        try:
            yield
        except RecursionError as exc:
            raise QueryFailed("the query is nested too deeply", table=tables) from exc
        except RuntimeError as exc:  # DuckDB raises it for any error of a signal's handler during the query
            raise WarehouseUnavailable(f"the query was cut off: {exc}", table=tables) from exc
        except (duckdb.Error, SqlglotError, pa.ArrowInvalid, OSError) as exc:  # OSError: of DuckDB, while rows are read
            _check_staged_files(scans)  # one that was removed meanwhile is the cause
            if OUT_OF_MEMORY in str(exc):
                limit = f"more memory than BACKFILL_QUERY_MEMORY_MB ({self._memory_mb})"
                raise QueryFailed(f"the query needs {limit}: {exc}", table=tables) from exc
            raise QueryFailed(str(exc), table=tables) from exc

    def _relation(
        self, connection: duckdb.DuckDBPyConnection, sql: LiteralString, scans: Scans, params: Mapping[str, Any]
    ) -> duckdb.DuckDBPyRelation:
        """The result of the query, which is not read yet."""
        for name, scan in scans.items():
            validate_identifier(name, "scan name")
            files = _staged_paths(scan) if isinstance(scan, StagedScan) else self._find_files(scan)
            if files is None:
                connection.register(name, self._read(scan))
            else:
                _check_staged_files({name: scan})
                _read_files(connection, files).create_view(name)
        bound = {key: value for key, value in params.items() if key in parameter_names(sql)}
        return connection.sql(to_duckdb(sql), params=bound)

    def _connection(self) -> duckdb.DuckDBPyConnection:
        """Return the connection of this thread. Threads cannot share one."""
        connection = getattr(self._local, "connection", None)
        if connection is None:
            self._local.connection = connection = self._open()
        return connection

    def _open(self) -> duckdb.DuckDBPyConnection:
        return duckdb.connect(
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


@dataclass(frozen=True)
class LocalQueryFiles:
    """Files written by DuckDB; see `QueryFiles`."""

    queries: DuckDbQueries
    is_big_file: Callable[[TableName, str, date], bool]

    def is_big(self, table: TableName, date_column: str, day: date) -> bool:
        return self.is_big_file(table, date_column, day)

    def writable_query(
        self, sql: LiteralString, *, scans: Scans, params: Mapping[str, Any], columns: ColumnTypes, order: Sequence[str]
    ) -> AbstractContextManager[Callable[[str], None] | None]:
        return self.queries.writable_query(sql, scans, params, columns, order)


def _sort_keys(order: Sequence[str]) -> list[duckdb.Expression]:
    return [duckdb.ColumnExpression(name).asc().nulls_last() for name in order]


def _as_columns(rows: duckdb.DuckDBPyRelation, columns: ColumnTypes) -> duckdb.DuckDBPyRelation | None:
    """The rows in these columns and types; None if they have others, or values that a cast might change."""
    types = {name: str(kind) for name, kind in zip(rows.columns, rows.types, strict=True)}
    if any(types.get(name) not in WRITTEN_TYPES[kind] for name, kind in columns.items()):
        return None
    return rows.select(*(_as_column(name, kind) for name, kind in columns.items()))


def _as_column(name: str, kind: ColumnType) -> duckdb.Expression:
    column = duckdb.ColumnExpression(name)
    return column.cast("BIGINT").alias(name) if kind == "INT64" else column


def _staged_paths(scan: StagedScan) -> QueriedFiles | None:
    if not scan.files or any("://" in staged.location for staged in scan.files):
        return None
    return QueriedFiles([staged.location for staged in scan.files], scan.columns)


def _check_staged_files(scans: Scans) -> None:
    """Raise `StagedFileLost` for a staged file that is gone or has changed."""
    for scan in scans.values():
        if isinstance(scan, StagedScan):
            for staged in scan.files:
                check_staged(staged)


def _read_files(connection: duckdb.DuckDBPyConnection, files: QueriedFiles) -> duckdb.DuckDBPyRelation:
    literal_paths = [glob.escape(path) for path in files.paths]  # DuckDB takes them for patterns
    rows = connection.read_parquet(literal_paths, hive_partitioning=False)
    if files.columns is None:
        return rows
    return rows.select(*(duckdb.ColumnExpression(own).alias(name) for name, own in files.columns.items()))


def _check_query(sql: LiteralString, scans: Scans) -> None:
    """Check that it is a query of the scans only. Raises `QueryFailed` or the parser's errors."""
    if not is_query(sql):
        raise QueryFailed("it is not a query: a warehouse accepts only SELECT statements")
    if unknown := table_names(sql) - set(scans):
        raise QueryFailed(f"the query reads {', '.join(sorted(unknown))}, but has no scan of that name")
