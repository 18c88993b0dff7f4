"""A warehouse of Parquet files, one per table and date, queried with DuckDB.

`<root>/<dataset>/<table>/<date_column>=YYYY-MM-DD/part.parquet`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, LiteralString

import pyarrow as pa
import pyarrow.parquet as pq

from gated_backfill.common.errors import StagedFileLost
from gated_backfill.common.model.arrow_types import column_type_of
from gated_backfill.common.model.publication import StagedFile, WarehouseLimits
from gated_backfill.common.model.tables import ColumnTypes, TableName
from gated_backfill.common.process.file_lock import locked
from gated_backfill.common.storage.files import (
    ROW_GROUP_BYTES,
    check_writable,
    joined_path,
    parquet_bytes,
    write_atomically,
    write_row_groups,
)
from gated_backfill.common.warehouse.counting import count_by_reading
from gated_backfill.common.warehouse.entities import day_entity_rows, read_days
from gated_backfill.common.warehouse.local.date_runs import DateRuns
from gated_backfill.common.warehouse.local.partition_files import FileStamp, PartitionFiles, file_stamp
from gated_backfill.common.warehouse.local.partitions import (
    PUBLICATION_FILE,
    ROWS_FILE,
    existing_parts,
    file_fingerprint,
    partition_folders,
    translate_file_errors,
)
from gated_backfill.common.warehouse.local.publications import LOADING, LocalPublications
from gated_backfill.common.warehouse.protocol import (
    EntityCounts,
    EntityScan,
    Scan,
    StagedScan,
    TableInfo,
    check_dated,
    check_same_columns,
    require_table,
)

if TYPE_CHECKING:
    from gated_backfill.common.warehouse.local.query import DuckDbQueries

ReadPart = Callable[[str, list[str] | None], pa.Table | None]  #: reads columns of a file; None when it does not exist
MAX_DAYS_TO_PROBE = 1000  #: up to here, looking for each partition is cheaper than listing the folder


class LocalWarehouse(LocalPublications):
    """Tables of Parquet files; see `Warehouse`. Safe for several processes and threads at once."""

    def __init__(self, root: Path, *, limits: WarehouseLimits | None = None) -> None:
        self.root = root
        self._limits = limits or WarehouseLimits()
        self._parts = PartitionFiles(root)
        self._descriptions: dict[TableName, tuple[Path, FileStamp | None, TableInfo]] = {}

    def __repr__(self) -> str:
        return f"LocalWarehouse({str(self.root)!r})"

    # -- reading --------------------------------------------------------------------------------------------

    def describe(self, table: TableName) -> TableInfo | None:
        with translate_file_errors(table):
            self._finish_load(table)
            cached = self._descriptions.get(table)
            if cached is not None and file_stamp(cached[0]) == cached[1]:  # the file it was read from is unchanged
                return cached[2]
            folder = self._folder(table)
            first = next(partition_folders(self.root, folder), None)
            if first is None:
                return self._unpartitioned(table)
            stamp = file_stamp(first / ROWS_FILE)
            schema = pq.read_schema(first / ROWS_FILE)
        columns = {field.name: column_type_of(field.type) or str(field.type) for field in schema}
        info = TableInfo(table=table, columns=columns, partitioned_by=first.name.partition("=")[0])
        self._descriptions[table] = (first / ROWS_FILE, stamp, info)
        return info

    def query(
        self, sql: LiteralString, *, scans: Mapping[str, Scan | StagedScan], params: Mapping[str, Any] | None = None
    ) -> pa.Table:
        return self._queries.query(sql, scans, params or {})

    @cached_property
    def _queries(self) -> DuckDbQueries:
        from gated_backfill.common.warehouse.local.query import DuckDbQueries

        return DuckDbQueries(self._paths, self._schema)

    def count_entities(
        self, expected: EntityScan, sources: Mapping[str, EntityScan], groups: Collection[tuple[str, ...]]
    ) -> EntityCounts:
        def read(scan: EntityScan) -> pa.Table:
            return self._entities(scan, self._parts.rows_uncached)

        return count_by_reading(read, expected, sources, groups)

    def read_entities(self, scan: EntityScan) -> pa.Table:
        return self._entities(scan, self._parts.rows)

    def _entities(self, scan: EntityScan, rows_of: ReadPart) -> pa.Table:
        rows = self._read(scan.rows(), rows_of)
        with translate_file_errors(scan.table):
            return day_entity_rows(rows, scan.columns, table=str(scan.table))

    def count_rows(self, scan: Scan) -> dict[date, int]:
        rows = self._read(replace(scan, columns={"day": scan.date_column}), self._parts.rows_uncached)
        counts = read_days(rows["day"], scan.time_zone).value_counts().to_pylist()
        return {count["values"]: count["counts"] for count in counts}

    def read(self, scan: Scan, *, once: bool = False) -> pa.Table:
        return self._read(scan, self._parts.rows_uncached if once else self._parts.rows)

    def _read(self, scan: Scan, rows_of: ReadPart) -> pa.Table:
        self._check_columns(scan)
        columns = None if scan.columns is None else list(scan.columns.values())
        with translate_file_errors(scan.table):
            tables = [rows for part in self._candidates(scan) if (rows := rows_of(part, columns)) is not None]
            tables = tables or [self._schema(scan.table).empty_table()]
            rows = _concatenate(tables, columns or tables[0].column_names)
        if scan.columns is None or columns is None:
            return rows
        return rows.select(columns).rename_columns(list(scan.columns))

    def estimate_bytes(self, scan: Scan) -> int | None:
        return None

    def fingerprints(
        self,
        table: TableName,
        date_column: str,
        days: Collection[date],
        *,
        columns: Collection[str] | None = None,
        time_zone: str | None = None,
    ) -> dict[date, str]:
        with translate_file_errors(table):
            self._finish_load(table)
            places = self._places(table, date_column, days)
            return {day: self._parts.fingerprint(place) for day, place in places.items()}

    def matching_dates(self, table: TableName, date_column: str, checksums: Mapping[date, str]) -> frozenset[date]:
        with translate_file_errors(table):
            self._finish_load(table)
            places = self._places(table, date_column, checksums)
            now = {day: self._parts.fingerprint_uncached(place) for day, place in places.items()}
        return frozenset(day for day, checksum in checksums.items() if now[day] == checksum)

    def publication(self, table: TableName, date_column: str, day: date) -> dict[str, Any] | None:
        """Read which run and attempt wrote the partition; None if no run wrote its present rows."""
        part = self._part(table, date_column, day)
        try:
            note = json.loads((part.parent / PUBLICATION_FILE).read_text())
        except FileNotFoundError:
            return None
        return note if note["checksum"] == file_fingerprint(part) else None

    # -- writing --------------------------------------------------------------------------------------------

    def create_table(
        self, table: TableName, columns: ColumnTypes, date_column: str, cluster_by: Sequence[str] = ()
    ) -> bool:
        return False  # a folder becomes a table with its first partition

    def create_own_tables(self) -> None:
        return None

    def check_publishable(self, target: TableName) -> bool:
        check_writable(self._folder(target))
        return True

    def now(self) -> None:
        return None

    def load(self, table: TableName, date_column: str, rows: pa.Table | pa.RecordBatchReader) -> list[date]:
        batches = check_dated(table, date_column, rows)
        columns = {field.name: column_type_of(field.type) or str(field.type) for field in rows.schema}
        check_same_columns(self.describe(table), date_column, columns)
        folder = self._folder(table)
        with translate_file_errors(table), locked(self._lock(folder)):
            self._start_loading(folder)
            days = _write_partitions(folder / LOADING, date_column, rows.schema, batches)
            self._commit_loading(folder)
        return days

    # -- paths and relations --------------------------------------------------------------------------------

    def _folder(self, table: TableName) -> Path:
        return Path(joined_path(str(self.root), (table.dataset, table.table)))

    def _part(self, table: TableName, date_column: str, day: date) -> Path:
        return Path(
            joined_path(str(self.root), (table.dataset, table.table, f"{date_column}={day.isoformat()}", ROWS_FILE))
        )

    def _places(self, table: TableName, date_column: str, days: Iterable[date]) -> dict[date, str]:
        """Return the path of each day's file, which need not exist, as `PartitionFiles` takes it."""
        folder = self._folder(table)
        return {day: f"{folder}/{date_column}={day.isoformat()}/{ROWS_FILE}" for day in days}

    def _unpartitioned(self, table: TableName) -> TableInfo | None:
        if next(self._folder(table).glob("*.parquet"), None) is None:
            return None
        return TableInfo(table=table, columns={}, partitioned_by=None)

    def _candidates(self, scan: Scan) -> list[str]:
        """List the files of the scan's days; not all of them may exist."""
        days = [day for span in scan.dates for day in span.days()]
        places = self._places(scan.table, scan.date_column, days)
        if len(places) <= MAX_DAYS_TO_PROBE:
            return list(places.values())
        existing = {f"{folder}/{ROWS_FILE}" for folder in partition_folders(self.root, self._folder(scan.table))}
        return [place for place in places.values() if place in existing]

    def _paths(self, scan: Scan | StagedScan) -> list[str]:
        if isinstance(scan, StagedScan):
            return _staged_paths(scan.files)
        self._check_columns(scan)
        with translate_file_errors(scan.table):
            return existing_parts(self.root, self._candidates(scan))

    def _check_columns(self, scan: Scan) -> None:
        """Check that the table has the scan's columns. Raises `TableNotFound` or `SchemaMismatch`."""
        columns = tuple((scan.columns or {}).values())
        require_table(self, scan.table).check_columns(scan.date_column, columns, time_zone=scan.time_zone)

    def _schema(self, table: TableName) -> pa.Schema:
        return pq.read_schema(next(partition_folders(self.root, self._folder(table))) / ROWS_FILE)


def _concatenate(tables: Sequence[pa.Table], names: list[str]) -> pa.Table:
    """Append the tables' rows, with these columns, matched by name as in a query."""
    for table in tables:
        if missing := set(names) - set(table.column_names):
            raise pa.ArrowInvalid(f"one of them lacks {', '.join(sorted(missing))}")
    if len(tables) == 1:
        return tables[0].select(names)
    return pa.concat_tables([table.select(names) for table in tables], promote_options="permissive")


def _staged_paths(files: Sequence[StagedFile]) -> list[str]:
    """Return the paths of the staged files. Raises `StagedFileLost` for a link, which may lead to other rows."""
    for staged in files:
        if Path(staged.location).is_symlink():
            raise StagedFileLost("the staged file is a link", day=staged.day)
    return [staged.location for staged in files]


def _write_partitions(
    folder: Path, date_column: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]
) -> list[date]:
    with DateRuns(schema, date_column, folder.parent) as runs:
        runs.add_all(batches)
        for day, rows in runs.rows_by_date():
            _write_partition(folder / f"{date_column}={day.isoformat()}" / ROWS_FILE, schema, rows)
        return sorted(runs.row_counts)


def _write_partition(part: Path, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> None:
    """Write the file at once, or in parts if the rows are many."""
    first: list[pa.RecordBatch] = []
    size = 0
    while size < ROW_GROUP_BYTES:
        batch = next(batches, None)
        if batch is None:
            write_atomically(part, parquet_bytes(pa.Table.from_batches(first, schema)), durable=False)
            return
        first.append(batch)
        size += batch.nbytes
    part.parent.mkdir(parents=True, exist_ok=True)
    write_row_groups(part, schema, chain(first, batches))
