"""A warehouse of Parquet files, one per table and date, queried with DuckDB.

`<root>/<dataset>/<table>/<date_column>=YYYY-MM-DD/part.parquet`, beside the table's `schema.json`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import date
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, LiteralString, TypeVar

import pyarrow as pa

from gated_backfill.common.errors import HostError, QueryFailed, SchemaMismatch, TableNotFound, WarehouseUnavailable
from gated_backfill.common.model.dates import days_in
from gated_backfill.common.model.publication import PublishedDate, WarehouseLimits
from gated_backfill.common.model.tables import ColumnTypes, TableName, validate_identifier
from gated_backfill.common.storage.files import check_writable, joined_path, new_file, write_parquet
from gated_backfill.common.storage.staged_files import open_staged
from gated_backfill.common.warehouse.counting import count_by_reading
from gated_backfill.common.warehouse.entities import ROW_COUNT, day_entity_rows, group_entities, read_days
from gated_backfill.common.warehouse.local.content import column_digest, content_fingerprint
from gated_backfill.common.warehouse.local.date_runs import DateRuns
from gated_backfill.common.warehouse.local.partition_files import PartitionFiles, SchemaCheck
from gated_backfill.common.warehouse.local.partitions import (
    ROWS_FILE,
    names_in,
    partition_name,
    partition_names,
    refuse_damage,
    table_path,
    translate_file_errors,
)
from gated_backfill.common.warehouse.local.publications import LocalPublications, read_publication_note
from gated_backfill.common.warehouse.local.table_schema import (
    TableSchema,
    TableSchemas,
    UnknownPartitionSchema,
    UnreadableSchema,
    declarable_types,
)
from gated_backfill.common.warehouse.local.typed_rows import PartitionRows, TypedReader
from gated_backfill.common.warehouse.protocol import (
    ABSENT,
    ColumnSet,
    EntityCounts,
    EntityScan,
    QueryFiles,
    QueryStaging,
    Scan,
    StagedScan,
    TableInfo,
    check_dated,
    check_same_columns,
    missing_columns,
    require_table,
)
from gated_backfill.common.warehouse.rule_counts import ALIASES

if TYPE_CHECKING:
    from gated_backfill.common.warehouse.local.query import DuckDbQueries, QueriedFiles

SCHEMA_TRIES = 3  #: of reading a table whose partitions get other columns meanwhile
COUNTED_ROWS_PER_MB = 2_500  #: counted at once: four times as many fit, but take half as much again of time
BIG_SCAN_BYTES = 4 * 1024 * 1024  #: of files, compressed: from here on, a query reads them itself
GROUPED_TYPES = ("STRING", "INT64", "DATE")  #: of entities whose equal values have equal texts
MAX_DAYS_TO_PROBE = 1000  #: up to here, looking for each partition is cheaper than listing the folder

ReadFile = Callable[[str, list[str] | None, SchemaCheck], pa.Table | None]
T = TypeVar("T")


class LocalWarehouse(LocalPublications):
    """Tables of Parquet files; see `Warehouse`. Safe for several processes and threads at once."""

    bills_reads = False
    max_dates_per_publication: int | None = None
    publications_conflict: bool = False

    def __init__(self, root: Path, *, limits: WarehouseLimits | None = None) -> None:
        self.root = root
        self._limits = limits or WarehouseLimits()
        self.query_staging: QueryStaging | None = None  #: DuckDB's rows are staged as files
        self.max_rows_per_count: int | None = self._limits.query_memory_mb * COUNTED_ROWS_PER_MB
        self._parts = PartitionFiles(root)
        self._schemas = TableSchemas(self._parts)

    def __repr__(self) -> str:
        return f"LocalWarehouse({str(self.root)!r})"

    # -- reading --------------------------------------------------------------------------------------------

    def together(self, *reads: Callable[[], Any]) -> list[Any]:
        return [read() for read in reads]

    def describe(self, table: TableName) -> TableInfo | None:
        with translate_file_errors(table):
            schema = self._find_schema(table)
            return None if schema is None else schema.info

    def query(
        self, sql: LiteralString, *, scans: Mapping[str, Scan | StagedScan], params: Mapping[str, Any] | None = None
    ) -> pa.Table:
        return self._queries.query(sql, scans, params or {})

    @cached_property
    def _queries(self) -> DuckDbQueries:
        from gated_backfill.common.warehouse.local.query import DuckDbQueries

        return DuckDbQueries(self._rows_to_query, self._find_big_files, memory_mb=self._limits.query_memory_mb)

    @property
    def query_files(self) -> QueryFiles | None:
        from gated_backfill.common.warehouse.local.query import LocalQueryFiles

        return LocalQueryFiles(self._queries, self._is_big)

    def _is_big(self, table: TableName, date_column: str, day: date) -> bool:
        return self._parts.is_big(self._places(table, date_column, [day])[day])

    def _find_big_files(self, scan: Scan) -> QueriedFiles | None:
        """The files of a big scan, if DuckDB reads from them exactly the rows that `read` returns."""
        columns = None if scan.columns is None else scan.columns.values()
        return self._with_schema(scan, columns, lambda schema: self._files_as_they_are(scan, schema))

    def _files_as_they_are(self, scan: Scan, schema: TableSchema) -> QueriedFiles | None:
        reader = _typed_reader(scan, schema)
        candidates = _candidates(schema, days_in(scan.dates))
        if sum(self._parts.size(part) for _, part in candidates) < BIG_SCAN_BYTES:
            return None
        dates_only = _typed_reader(replace(scan, columns={"day": scan.date_column}), schema)
        paths: list[str] = []
        for day, part in candidates:
            columns = self._parts.schema(part)
            if columns is None or not columns.has_rows:
                continue
            if not reader.reads_as_it_is(columns.columns):
                return None
            for _ in self._batches(dates_only, day, part):  # checks them
                pass
            paths.append(part)
        from gated_backfill.common.warehouse.local.query import QueriedFiles

        return QueriedFiles(paths, reader.columns) if paths else None

    def query_in_order(
        self,
        sql: LiteralString,
        *,
        scans: Mapping[str, Scan | StagedScan],
        params: Mapping[str, Any] | None = None,
        order: Sequence[str],
    ) -> Generator[pa.Table]:
        yield from self._queries.query_in_order(sql, scans, params or {}, order)

    def _rows_to_query(self, scan: Scan | StagedScan) -> pa.Table:
        if isinstance(scan, Scan):
            return self.read(scan, once=True)
        if not scan.files:
            raise QueryFailed("no staged file was given to the query")
        tables: list[pa.Table] = []
        for staged in scan.files:
            with open_staged(staged) as file:
                tables.append(file.read(use_threads=False))
        rows = pa.concat_tables(tables)
        return rows if scan.columns is None else _renamed(rows, scan.columns)

    def count_entities(
        self, expected: EntityScan, sources: Mapping[str, EntityScan], groups: Collection[tuple[str, ...]]
    ) -> EntityCounts:
        return count_by_reading(lambda scan: self._entities(scan, once=True), expected, sources, groups)

    def read_entities(self, scan: EntityScan) -> pa.Table:
        if self._is_grouped_by_query(scan):
            return self._group_by_query(scan)
        return self._entities(scan, once=False)

    def _is_grouped_by_query(self, scan: EntityScan) -> bool:
        """Whether DuckDB counts the rows of each entity: of big files, in an eighth of the time of reading them.

        Not if rows are left out or added up, nor by columns whose equal values may differ as texts.
        """
        columns = scan.columns
        if columns.required or columns.sums or columns.date in columns.entity:
            return False
        places = self._places(scan.table, columns.date, days_in(scan.dates))
        schema = self._find_schema(scan.table) if any(map(self._parts.is_big, places.values())) else None
        if schema is None:
            return False
        types = schema.info.columns
        return types.get(columns.date) == "DATE" and all(types.get(name) in GROUPED_TYPES for name in columns.entity)

    def _group_by_query(self, scan: EntityScan) -> pa.Table:
        """Read the entities, grouped by the query. Callers have checked that it groups as `group_entities` does."""
        aliases = dict(zip(ALIASES, scan.columns.entity, strict=False))
        rows = self.query(
            _grouped_sql(list(aliases)),
            scans={"present": replace(scan.rows(), columns={"day": scan.columns.date, **aliases})},
        )
        named = rows.rename_columns([scan.columns.date, *scan.columns.entity, ROW_COUNT])
        return group_entities([day_entity_rows(named, scan.columns, table=str(scan.table))])

    def _entities(self, scan: EntityScan, *, once: bool) -> pa.Table:
        return self._with_schema(
            scan.rows(), scan.columns.names, lambda schema: self._group_big(scan, schema, once=once)
        )

    def _group_big(self, scan: EntityScan, schema: TableSchema, *, once: bool) -> pa.Table:
        """Read the entities; those of big files are grouped, so that not all of their rows are in memory."""
        reader = _typed_reader(scan.rows(), schema)
        table = str(scan.table)
        candidates = _candidates(schema, days_in(scan.dates))
        big = [(day, part) for day, part in candidates if self._parts.is_big(part)]
        small = [candidate for candidate in candidates if candidate not in big] if big else candidates
        entities = day_entity_rows(_stack(reader, small, self._read_file(once=once)), scan.columns, table=table)
        if not big:
            return entities
        batches = chain.from_iterable(self._batches(reader, day, part) for day, part in big)
        return group_entities(chain([entities], (day_entity_rows(rows, scan.columns, table=table) for rows in batches)))

    def _batches(self, reader: TypedReader, day: date, part: str) -> Iterator[pa.Table]:
        with refuse_damage(part):
            for rows in self._parts.batches(part, _file_columns(reader), reader.schema.check_partition):
                yield reader.stack([PartitionRows(day, part, rows)])

    def count_rows(self, scan: Scan) -> dict[date, int]:
        rows = self.read(replace(scan, columns={"day": scan.date_column}), once=True)
        counts = read_days(rows["day"], scan.time_zone).value_counts().to_pylist()
        return {count["values"]: count["counts"] for count in counts}

    def read(self, scan: Scan, *, once: bool = False) -> pa.Table:
        read_file = self._read_file(once=once)
        columns = None if scan.columns is None else scan.columns.values()
        return self._with_schema(
            scan,
            columns,
            lambda schema: _stack(_typed_reader(scan, schema), _candidates(schema, days_in(scan.dates)), read_file),
        )

    def _read_file(self, *, once: bool) -> ReadFile:
        return self._parts.rows_uncached if once else self._parts.rows

    def estimate_bytes(self, scan: Scan) -> int | None:
        return None

    def fingerprints(self, table: TableName, date_column: str, days: Collection[date]) -> dict[date, str]:
        with translate_file_errors(table):
            places = self._places(table, date_column, days)
            checksums = {day: self._parts.fingerprint(place) for day, place in places.items()}
            return {day: self._parts.rows_fingerprint(place, checksums[day]) for day, place in places.items()}

    def column_fingerprints(
        self,
        table: TableName,
        date_column: str,
        days: Collection[date],
        column_sets: Collection[ColumnSet],
        *,
        time_zone: str | None = None,
    ) -> dict[ColumnSet, dict[date, str]]:
        fingerprints: dict[ColumnSet, dict[date, str]] = {}
        named_sets = [columns for columns in column_sets if columns is not None]
        if len(named_sets) < len(column_sets):
            fingerprints[None] = self.fingerprints(table, date_column, days)
        if named_sets:
            names = frozenset[str]().union(*named_sets)
            dated = Scan(table=table, date_column=date_column, dates=(), time_zone=time_zone)
            try:
                digests = self._with_schema(dated, names, lambda schema: self._column_digests(schema, days, names))
            except TableNotFound:
                digests = {}
            for columns in named_sets:
                fingerprints[columns] = {
                    day: content_fingerprint({name: digests[day][name] for name in columns})
                    if day in digests
                    else ABSENT
                    for day in days
                }
        return fingerprints

    def _column_digests(
        self, schema: TableSchema, days: Collection[date], columns: Collection[str]
    ) -> dict[date, dict[str, bytes]]:
        """Return the digest of each column, for the days with rows. Of a big file, one column is read at a time."""
        digests: dict[date, dict[str, bytes]] = {}
        for day, part in _places_in(schema.folder, schema.date_column, days).items():
            is_big = self._parts.is_big(part)
            for names in [[name] for name in columns] if is_big else [[*columns]]:
                if digests_of_day := self._digests_of_day(schema, day, part, names):
                    digests.setdefault(day, {}).update(digests_of_day)
            if is_big:
                pa.default_memory_pool().release_unused()  # Arrow would keep it, and DuckDB needs as much again
        return digests

    def _digests_of_day(self, schema: TableSchema, day: date, part: str, columns: list[str]) -> dict[str, bytes]:
        """Return the digest of each column, none if the day has no rows."""
        rows = read_partition(part, columns, schema, self._parts.rows)
        if rows is None:
            return {}
        reader = TypedReader(schema=schema, columns={name: name for name in columns}, declared_types={})
        return {name: column_digest(values) for name, values in reader.columns_of(PartitionRows(day, part, rows))}

    def matching_dates(self, table: TableName, date_column: str, checksums: Mapping[date, str]) -> frozenset[date]:
        with translate_file_errors(table):
            places = self._places(table, date_column, checksums)
            now = {day: self._parts.fingerprint_uncached(place) for day, place in places.items()}
        return frozenset(day for day, checksum in checksums.items() if now[day] == checksum)

    def find_publications(
        self, table: TableName, date_column: str, days: Collection[date]
    ) -> dict[date, PublishedDate]:
        notes = {
            day: note
            for day, place in self._places(table, date_column, days).items()
            if (note := read_publication_note(place)) is not None
        }
        unchanged = self.matching_dates(table, date_column, {day: note.checksum for day, note in notes.items()})
        return {day: note for day, note in notes.items() if day in unchanged}

    # -- writing --------------------------------------------------------------------------------------------

    def create_table(
        self, table: TableName, columns: ColumnTypes, date_column: str, cluster_by: Sequence[str] = ()
    ) -> bool:
        for name in (date_column, *columns, *cluster_by):
            validate_identifier(name, "column name")
        if self.describe(table) is not None:
            return False
        check_same_columns(None, date_column, columns)
        with self._writing(table):
            if self._find_schema(table) is not None:
                return False
            self._schemas.declare(self._folder_path(table), date_column, columns)
        return True

    def add_columns(self, table: TableName, columns: ColumnTypes) -> None:
        require_table(self, table)
        with self._writing(table):
            schema = self._find_schema(table)
            if schema is None:
                raise SchemaMismatch("columns cannot be added to a table without partitions", table=str(table))
            if added := missing_columns(schema.info, columns):
                self._schemas.declare(schema.folder, schema.date_column, {**schema.info.columns, **added})

    def refresh_schema(self, table: TableName) -> TableInfo:
        with suppress(UnreadableSchema):  # it is written again
            require_table(self, table)
        with self._writing(table):
            self._schemas.refresh(table, self._folder_path(table))
        return require_table(self, table)

    def create_own_tables(self) -> None:
        return None

    def check_publishable(self, target: TableName) -> bool:
        check_writable(self._folder(target))
        return True

    def quick_fingerprints(self, table: TableName, date_column: str, days: Collection[date]) -> dict[date, str]:
        with translate_file_errors(table):
            places = self._places(table, date_column, days)
            return {day: self._parts.fingerprint(place) for day, place in places.items()}

    def now(self) -> None:
        return None

    def find_slow_reads(self) -> str | None:
        return None

    def check_host(self, *, has_tables: bool, publishes: bool) -> None:
        try:
            if not os.listdir(self.root) and has_tables:  # noqa: PTH208
                raise HostError(f"{self.root} has no tables: no folder is mounted there, or an empty one")
        except FileNotFoundError as exc:
            if has_tables:
                raise HostError(f"{self.root} does not exist: no folder is mounted there") from exc
        except OSError as exc:
            raise HostError(f"{self.root} can't be read: {exc.strerror or exc}") from exc
        if publishes:
            check_writable(self.root)

    def check_loadable(self, table: TableName, date_column: str, days: Collection[date] | None = None) -> None:
        with translate_file_errors(table):
            if days is None:
                folder = self._folder(table)
                names = sorted(partition_names(folder, date_column))
                self._check_no_other_files(folder / name / ROWS_FILE for name in names)
            else:
                self._check_no_other_files(self._part(table, date_column, day) for day in days)

    def load(self, table: TableName, date_column: str, rows: pa.Table | pa.RecordBatchReader) -> list[date]:
        batches = check_dated(table, date_column, rows)
        columns = declarable_types(rows.schema)
        check_same_columns(self.describe(table), date_column, columns)
        with self._writing(table) as loading:
            days = _write_partitions(loading.path, date_column, rows.schema, batches)
            self._check_no_other_files(self._part(table, date_column, day) for day in days)
            self._declare_schema(table, date_column, columns)
            if days:
                loading.replace_all([partition_name(date_column, day) for day in days])
        return days

    # -- paths and relations --------------------------------------------------------------------------------

    def _folder(self, table: TableName) -> Path:
        return Path(self._folder_path(table))

    def _folder_path(self, table: TableName) -> str:
        return joined_path(str(self.root), table_path(table))

    def _part(self, table: TableName, date_column: str, day: date) -> Path:
        return Path(joined_path(str(self.root), (*table_path(table), partition_name(date_column, day), ROWS_FILE)))

    def _places(self, table: TableName, date_column: str, days: Iterable[date]) -> dict[date, str]:
        """Return the path of each day's file, which need not exist, as `PartitionFiles` takes it."""
        return _places_in(self._folder_path(table), date_column, days)

    # -- schemas --------------------------------------------------------------------------------------------

    def _find_schema(self, table: TableName) -> TableSchema | None:
        return self._schemas.find(table, self._folder_path(table))

    def _declare_schema(self, table: TableName, date_column: str, columns: Mapping[str, str]) -> None:
        """Declare the schema of rows that are about to be written, unless the table has a declared one."""
        schema = self._find_schema(table)
        if schema is None or not schema.info.types_are_declared:
            self._schemas.declare(self._folder_path(table), date_column, columns)

    def _with_schema(self, scan: Scan, columns: Collection[str] | None, work: Callable[[TableSchema], T]) -> T:
        """Do the work, which reads these columns of partitions (None: all), with the schema of the scan's table.

        The schema is found again if a partition was replaced by one that it does not describe. Raises like `query`.
        """
        for _ in range(SCHEMA_TRIES):
            with translate_file_errors(scan.table):
                schema = self._find_schema(scan.table)
                if schema is None:
                    raise TableNotFound("no such table in the warehouse", table=str(scan.table))
                names = schema.info.columns.keys() if columns is None else columns
                schema.info.check_columns(scan.date_column, names, time_zone=scan.time_zone)
                try:
                    return work(schema)
                except UnknownPartitionSchema:
                    self._schemas.forget(schema.folder)
        raise WarehouseUnavailable("partitions with other columns were written meanwhile", table=str(scan.table))


def _grouped_sql(entity: Sequence[LiteralString]) -> LiteralString:
    """The query of how many rows of `present` each entity of a day has."""
    key: list[LiteralString] = ["day", *entity]
    keys = ", ".join(key)
    return f"SELECT {keys}, COUNT(*) AS row_count FROM present GROUP BY {keys}"  # noqa: S608 - made of literals only


def _places_in(folder: str, date_column: str, days: Iterable[date]) -> dict[date, str]:
    return {day: f"{folder}/{partition_name(date_column, day)}/{ROWS_FILE}" for day in days}


def _candidates(schema: TableSchema, days: Collection[date]) -> list[tuple[date, str]]:
    """List the days with their files; not all of them may exist."""
    places = _places_in(schema.folder, schema.date_column, days)
    if len(places) <= MAX_DAYS_TO_PROBE:
        return list(places.items())
    existing = set(names_in(schema.folder))  # which of them are partitions does not matter: the names are known
    return [(day, place) for day, place in places.items() if place.split("/")[-2] in existing]


def _typed_reader(scan: Scan, schema: TableSchema) -> TypedReader:
    return TypedReader(
        schema=schema,
        columns={name: name for name in schema.info.columns} if scan.columns is None else scan.columns,
        declared_types=scan.types or {},
        time_zone=scan.time_zone,
    )


def _file_columns(reader: TypedReader) -> list[str]:
    return list(dict.fromkeys((*reader.columns.values(), reader.schema.date_column)))


def _stack(reader: TypedReader, partitions: Iterable[tuple[date, str]], read_file: ReadFile) -> pa.Table:
    columns = _file_columns(reader)
    return reader.stack(
        PartitionRows(day, part, rows)
        for day, part in partitions
        if (rows := read_partition(part, columns, reader.schema, read_file)) is not None
    )


def read_partition(part: str, columns: list[str], schema: TableSchema, read_file: ReadFile) -> pa.Table | None:
    """Read the columns that the partition has, or more; None when it does not exist or has no rows.

    Raises `SchemaMismatch`.
    """
    with refuse_damage(part):
        return read_file(part, columns, schema.check_partition)


def _renamed(rows: pa.Table, columns: Mapping[str, str]) -> pa.Table:
    return rows.select(list(columns.values())).rename_columns(list(columns))


def _write_partitions(
    folder: Path, date_column: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]
) -> list[date]:
    with DateRuns(schema, date_column, folder.parent) as runs:
        runs.add_all(batches)
        for day, rows in runs.rows_by_date():
            _write_partition(folder / partition_name(date_column, day) / ROWS_FILE, schema, rows)
        return sorted(runs.row_counts)


def _write_partition(part: Path, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> None:
    with new_file(part, durable=False) as file:
        write_parquet(file, schema, batches)
