"""The protocol of a warehouse; the contract tests check every implementation against it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Any, LiteralString, Protocol, TypeVar

from gated_backfill.common.errors import SchemaMismatch, TableNotFound
from gated_backfill.common.model.dates import DateRange
from gated_backfill.common.model.entities import DATE_TYPES, EntityColumns
from gated_backfill.common.model.publication import KeptRows, Publication, PublishedDate, PublishResult, StagedFile
from gated_backfill.common.model.tables import (
    FITTING_TYPES,
    NULL_TYPE,
    ColumnType,
    ColumnTypes,
    TableName,
    validate_identifier,
)
from gated_backfill.common.warehouse.backups import Backups

if TYPE_CHECKING:
    import pyarrow as pa

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class TableInfo:
    """A table as the warehouse describes it: columns with their types, and the partitioning column."""

    table: TableName
    columns: Mapping[str, str]
    partitioned_by: str | None
    expires_after_days: int | None = None  #: the warehouse drops partitions older than this
    types_are_declared: bool = True  #: whether all rows have exactly these types, or types were found in files
    #: By column whose types differ too much between files to be read as one type: the difference, after the name.
    mixed_columns: Mapping[str, str] = field(default_factory=dict[str, str])
    _passed_checks: set[object] = field(default_factory=set[object], init=False, compare=False, repr=False)

    def check_columns(
        self, date_column: str, columns: ColumnTypes | Collection[str] = (), *, time_zone: str | None = None
    ) -> None:
        """Check the date column and the columns, with their types if given. Raises `SchemaMismatch`.

        A table without partitions passes; one partitioned by another column does not.
        """
        check = (date_column, tuple(columns.items() if isinstance(columns, Mapping) else columns), time_zone)
        if check in self._passed_checks:  # a worker repeats them for every date
            return
        if mismatches := self.column_mismatches(date_column, columns, time_zone=time_zone):
            raise SchemaMismatch("; ".join(mismatches), table=str(self.table))
        self._passed_checks.add(check)

    def find_date_column(self) -> str | None:
        """Return the column of dates: that of its partitions, or else the first one; None for a table without one."""
        first = (name for name, kind in self.columns.items() if kind == "DATE")
        return self.partitioned_by or next(first, None)

    def check_dates(self, date_column: str) -> None:
        """Check that the table is dated by this column of dates. Raises `SchemaMismatch`."""
        self.check_columns(date_column, {date_column: "DATE"})

    def column_mismatches(
        self, date_column: str, columns: ColumnTypes | Collection[str] = (), *, time_zone: str | None = None
    ) -> list[str]:
        """List what `check_columns` raises, each difference worded as the end of a sentence about the table."""
        date_type = self.columns.get(date_column)
        if self.partitioned_by != date_column and (self.partitioned_by is not None or date_type is None):
            return [
                f"has no date column {date_column}: it is partitioned by {self.partitioned_by or 'nothing'}; "
                f"its columns are {', '.join(self.columns)}"
            ]
        names = dict.fromkeys((date_column, *columns))
        missing = [name for name in names if name not in self.columns]
        mismatches = [f"lacks the column(s) {', '.join(missing)}"] if missing else []
        if ambiguous_names := _names_that_differ_by_case(self.columns):
            mismatches.append(f"has columns that differ only by case: {', '.join(ambiguous_names)}")
        mixed = [name for name in names if name in self.mixed_columns]
        mismatches += [f"column {name} {self.mixed_columns[name]}" for name in mixed]
        mismatches += _date_type_mismatches(date_column, date_type, time_zone)
        types = columns if isinstance(columns, Mapping) else {}
        wrong = [name for name, kind in types.items() if name not in mixed and not self._fits(name, kind)]
        return mismatches + [f"column {name} is {self.columns[name]}, not {types[name]}" for name in wrong]

    def write_mismatches(self, date_column: str, columns: Mapping[str, str]) -> list[str]:
        """List what prevents writing rows with these columns to the table, worded as by `column_mismatches`."""
        mismatches = self.column_mismatches(date_column, columns)
        if unwritten := [name for name in self.columns if name not in columns]:
            mismatches.append(f"has the column(s) {', '.join(unwritten)}, which the job does not write")
        return mismatches

    def _fits(self, column: str, kind: str) -> bool:
        """Whether the column, if the table has it, may be read as the type.

        Types that were found in files are those of some rows, and whether the others fit is decided by value.
        """
        own = self.columns.get(column, kind)
        return own == kind or (not self.types_are_declared and (own == NULL_TYPE or (own, kind) in FITTING_TYPES))


def _names_that_differ_by_case(names: Collection[str]) -> list[str]:
    by_lower_case: dict[str, list[str]] = {}
    for name in names:
        by_lower_case.setdefault(name.lower(), []).append(name)
    return [name for spellings in by_lower_case.values() if len(spellings) > 1 for name in spellings]


def _date_type_mismatches(name: str, kind: str | None, time_zone: str | None) -> list[str]:
    if kind == "TIMESTAMP" and time_zone is None:
        return [f"column {name} is a TIMESTAMP, which has a date only in a time zone: declare time_zone"]
    if kind is None or kind in DATE_TYPES:
        return []
    return [f"column {name} is {kind}: a date column must be DATE, DATETIME, or TIMESTAMP with a declared time_zone"]


def check_same_columns(info: TableInfo | None, date_column: str, columns: Mapping[str, str]) -> None:
    """Check that rows with these columns can be written to the table, if it exists. Raises `SchemaMismatch`."""
    if ambiguous_names := _names_that_differ_by_case(columns):
        raise SchemaMismatch(f"the rows to load have columns that differ only by case: {', '.join(ambiguous_names)}")
    if info is None:
        return
    info.check_columns(date_column, [name for name in columns if name in info.columns])
    if info.write_mismatches(date_column, columns):
        differing = sorted(set(columns.items()) ^ set(info.columns.items()))
        raise SchemaMismatch(
            f"the rows to load do not have its columns; differing: {', '.join(f'{n} {t}' for n, t in differing)}",
            table=str(info.table),
        )


def missing_columns(info: TableInfo, columns: ColumnTypes) -> dict[str, ColumnType]:
    """Return the columns that the table lacks. Raises `SchemaMismatch` if they cannot be added to it."""
    names = {name.lower(): name for name in info.columns}
    for name, kind in columns.items():
        spelling = names.setdefault(validate_identifier(name, "column name").lower(), name)
        if spelling != name:
            raise SchemaMismatch(
                f"has the column {spelling}: {name} differs from it by case only", table=str(info.table)
            )
        if info.columns.get(name, kind) != kind:
            raise SchemaMismatch(f"column {name} is {info.columns[name]}, not {kind}", table=str(info.table))
    return {name: kind for name, kind in columns.items() if name not in info.columns}


def check_dated(table: TableName, date_column: str, rows: pa.Table | pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
    """Return the batches of the rows to load into the table, each checked when it is read: every row has a date.

    Raises `SchemaMismatch`, at once if there is no column of dates.
    """
    import pyarrow as pa

    validate_identifier(date_column, "column name")
    error = SchemaMismatch(f"every row to load needs a date in {date_column}", table=str(table))
    if date_column not in rows.schema.names:
        raise error

    def checked() -> Iterator[pa.RecordBatch]:
        for batch in rows.to_reader() if isinstance(rows, pa.Table) else rows:
            if batch[date_column].null_count:
                raise error
            yield batch

    return checked()


ColumnSet = frozenset[str] | None  #: names of a table's columns; None: all of them


@dataclass(frozen=True, kw_only=True)
class Scan:
    """The rows of a table on some dates. Queries read tables through scans only, so partitions are always pruned.

    `columns` maps the names used in the query to the table's columns; None keeps all of them as they are.
    """

    table: TableName
    date_column: str
    dates: tuple[DateRange, ...]
    columns: Mapping[str, str] | None = None
    time_zone: str | None = None  #: IANA name of the zone in which a TIMESTAMP has its date
    #: Types of some of the columns, as the job declares them. A warehouse of files reads the columns as these; one that
    #: keeps types itself refuses to `read` a table with others.
    types: ColumnTypes | None = None


@dataclass(frozen=True, kw_only=True)
class EntityScan:
    """The entities of a table on some dates, see `entities`."""

    table: TableName
    columns: EntityColumns
    dates: tuple[DateRange, ...]

    def rows(self) -> Scan:
        """Return the scan of the columns that are read as entities."""
        return Scan(
            table=self.table,
            date_column=self.columns.date,
            dates=self.dates,
            columns={name: name for name in self.columns.names},
            time_zone=self.columns.time_zone,
        )


@dataclass(frozen=True, kw_only=True)
class StagedScan:
    """Staged rows, as one table of a query."""

    files: tuple[StagedFile, ...]
    columns: Mapping[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class ReplacedPartition:
    """The fingerprints of a partition that a run replaced, before and after.

    `before` is of the rows that an undo brings back: those that the run's last publication of the date replaced; if
    they were the run's own, those that its publication before replaced, and so on.
    """

    before: str
    published: str  #: by the run's last publication


@dataclass(frozen=True, kw_only=True)
class EntityCounts:
    """Numbers of distinct entities by day, without days that have none."""

    expected: Mapping[date, int]
    present: Mapping[tuple[str, ...], Mapping[date, int]]  #: of the expected: by group, present in any source of it
    null_entities: Mapping[date, int]  #: rows of the expectation without an entity
    rows: Mapping[str, Mapping[date, int]]  #: by source: its rows on days without expected entities


ABSENT = "absent"  #: the fingerprint of a partition that does not exist


@dataclass(frozen=True, kw_only=True)
class StagedDay:
    """The rows of one day in a staging table, as the warehouse counts them."""

    content: str  #: changes exactly when the rows do
    rows: int
    keys: int  #: distinct values of the target's key


class QueryStaging(Protocol):
    """Staging of a query's rows in a table of the warehouse, so that none of them reaches this process."""

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
        """Run one query as `Warehouse.query` does, into a staging table with these columns; count its rows by day.

        Rows without a date are those of None. The table is made anew, whole or not at all. `name` identifies the
        staging: repeated, also by another process, it waits for the first one's job.
        Raises like `query`, and `SchemaMismatch` for a value that its column's type would change.
        """
        ...

    def read_staged_contents(self, staged: Sequence[StagedFile], columns: ColumnTypes) -> dict[date, str]:
        """Return the content of the rows in staging tables, without days that have none, or whose table has expired.

        Raises `SchemaMismatch` for a table with other columns, and like `query`.
        """
        ...

    def keep_staged(self, staged: StagedFile, period: timedelta) -> None:
        """Let the staging table expire after the period, or later. Do nothing if it has expired already."""
        ...


class QueryFiles(Protocol):
    """Files that the warehouse itself writes with a query's rows, so that none of them is read."""

    def is_big(self, table: TableName, date_column: str, day: date) -> bool:
        """Whether the table has so many rows on the day that a query is better run for this day alone."""
        ...

    def writable_query(
        self,
        sql: LiteralString,
        *,
        scans: Mapping[str, Scan | StagedScan],
        params: Mapping[str, Any],
        columns: ColumnTypes,
        order: Sequence[str],
    ) -> AbstractContextManager[Callable[[str], None] | None]:
        """Prepare a query; yield what writes its rows to the path of a Parquet file, with these columns and in `order`.

        The same rows in another order of the source give the same bytes. Yields None if a column has another type, so
        that a value might change. Raises like `query_in_order`, inside the context as well.
        """
        ...


class Warehouse(Backups, Protocol):
    """Tables with one partition per date."""

    @property
    def query_files(self) -> QueryFiles | None:
        """What writes a query's rows to files; None where they are staged in tables, or read."""
        ...

    @property
    def query_staging(self) -> QueryStaging | None:
        """The staging of rows in the warehouse; None where they are read, and staged as files."""
        ...

    @property
    def bills_reads(self) -> bool:
        """Whether reading rows costs money, so that it is avoided where quick fingerprints tell enough."""
        ...

    @property
    def max_dates_per_publication(self) -> int | None:
        """How many dates `publish` takes at once; None for any number."""
        ...

    @property
    def publications_conflict(self) -> bool:
        """Whether publications to one table at the same time abort each other, so that gates should take turns.

        An aborted one is retried, and changes nothing before: taking turns only saves its time.
        """
        ...

    @property
    def max_rows_per_count(self) -> int | None:
        """How many staged rows, of several dates, one query should count at most; None for any number."""
        ...

    def together(self, *reads: Callable[[], Any]) -> list[Any]:
        """Return the results of reads that do not depend on each other, in order: where jobs are slow, by few of them.

        A read is a function that calls this warehouse to read, and has no other effect: it may be called several times.
        Raises what a read raises.
        """
        ...

    def describe(self, table: TableName) -> TableInfo | None:
        """Describe the table; None when it does not exist."""
        ...

    def query(
        self, sql: LiteralString, *, scans: Mapping[str, Scan | StagedScan], params: Mapping[str, Any] | None = None
    ) -> pa.Table:
        """Run one GoogleSQL query whose tables are the names of `scans`, with bound parameters.

        Raises `TableNotFound`, `SchemaMismatch` or `QueryFailed` (permanent), `WarehouseUnavailable` (transient).
        """
        ...

    def query_in_order(
        self,
        sql: LiteralString,
        *,
        scans: Mapping[str, Scan | StagedScan],
        params: Mapping[str, Any] | None = None,
        order: Sequence[str],
    ) -> Generator[pa.Table]:
        """Run one query as `query` does; yield its rows in the order of these columns, nulls last, some at a time.

        Where the rows are files, neither those of the scans nor the result need fit into memory. Raises like `query`,
        from the first rows on.
        """
        ...

    def count_entities(
        self, expected: EntityScan, sources: Mapping[str, EntityScan], groups: Collection[tuple[str, ...]]
    ) -> EntityCounts:
        """Count, by day, the expected entities, and how many of them at least one source of each group has.

        A source has an entity if its rows meet the scan's rule. All scans cover the same dates. Raises like `query`,
        and `SchemaMismatch` for a column that cannot be read as an entity.
        """
        ...

    def read_entities(self, scan: EntityScan) -> pa.Table:
        """Read the rows of the scan as `entities.day_entity_rows` returns them, unordered, possibly grouped.

        Raises like `count_entities`.
        """
        ...

    def count_rows(self, scan: Scan) -> dict[date, int]:
        """Count the rows of the scan by day, without days that have none. Raises like `query`."""
        ...

    def read(self, scan: Scan, *, once: bool = False) -> pa.Table:
        """Read the rows of the scan, unordered, cheaper than a `SELECT *` over it. Raises like `query`.

        `once` says that no other read of these dates follows, so nothing is cached.
        """
        ...

    def estimate_bytes(self, scan: Scan) -> int | None:
        """Return the bytes billed for reading the scan, without reading it; None when reads are free."""
        ...

    def fingerprints(self, table: TableName, date_column: str, days: Collection[date]) -> dict[date, str]:
        """Return, for each day, a value that changes exactly when the partition's rows do; `ABSENT` without rows."""
        ...

    def column_fingerprints(
        self,
        table: TableName,
        date_column: str,
        days: Collection[date],
        column_sets: Collection[ColumnSet],
        *,
        time_zone: str | None = None,
    ) -> dict[ColumnSet, dict[date, str]]:
        """Return, for each set of columns and each day, a value that changes exactly when values of these columns do.

        The value is `ABSENT` without rows. A warehouse that bills by bytes reads all sets at once, and no other columns
        but that of the date.
        """
        ...

    def matching_dates(self, table: TableName, date_column: str, checksums: Mapping[date, str]) -> frozenset[date]:
        """Return the days whose partitions hold exactly the rows published from the file with that checksum."""
        ...

    def find_publications(
        self, table: TableName, date_column: str, days: Collection[date]
    ) -> dict[date, PublishedDate]:
        """Return the latest publication that wrote exactly the rows which each day has now.

        Without days whose rows something else wrote or changed since, and those that cannot be read. `matching_dates`
        confirms the checksums.
        """
        ...

    def publish(
        self,
        target: TableName,
        date_column: str,
        files: Sequence[StagedFile],
        *,
        fingerprints_when_staged: Mapping[date, str],
        publication: Publication,
    ) -> PublishResult:
        """Replace the partitions of the files' dates, each completely or not at all.

        Readers see a date's old rows or its new ones, never a mixture. A partition whose fingerprint differs from
        `fingerprints_when_staged` stays as it is and is reported, unless it already holds the staged rows: publishing
        again changes nothing, and completes a publication that was interrupted. All rows that are replaced are kept,
        as they are at that moment, for `restore` and `restore_kept`.

        Raises `LeaseTakenOver`, and changes nothing, when the warehouse has seen a higher generation of the same window
        of the run for this target, or an undo of the run; `WarehouseUnavailable`, `NotAllowed`, `SchemaMismatch`.
        """
        ...

    def raise_fence(self, target: TableName, run: str, *, window: int | None, generation: int) -> None:
        """Refuse what earlier leases on the same work may still do: publish the window of the run, or undo the run.

        For a process that has taken over or ended the work, even if it has nothing to publish or restore itself.
        `generation` is that of its lease, `window` None for an undo. When this returns, a publication or restore of an
        earlier lease is complete or will never take effect. Raises `LeaseTakenOver`, and changes nothing, when the
        warehouse has seen a higher generation of the same work; `WarehouseUnavailable`, `NotAllowed`.
        """
        ...

    def replaced_partitions(
        self, target: TableName, date_column: str, run: str, days: Collection[date]
    ) -> dict[date, ReplacedPartition]:
        """Return the replaced partition of each day that the run published, or started to publish."""
        ...

    def check_restorable(
        self, target: TableName, date_column: str, run: str, replaced: Mapping[date, ReplacedPartition]
    ) -> None:
        """Check that the replaced rows of all days are still kept. Raises `BackupMissing`; changes nothing."""
        ...

    def restore(
        self,
        target: TableName,
        date_column: str,
        run: str,
        replaced: Mapping[date, ReplacedPartition],
        *,
        generation: int,
    ) -> frozenset[date]:
        """Restore the rows that the run replaced; return the days that have them now.

        A day with other rows than the run published stays as it is. Restoring again changes nothing, and completes a
        restore that was interrupted. The removed rows, those of the run, are kept for `restore_kept`. From then on
        the run can publish nothing to this target.

        `generation` is that of the undo's lease. Raises `LeaseTakenOver`, and changes nothing, when the warehouse has
        seen a higher one of an undo of the run; `BackupMissing`, and changes nothing, when the replaced rows of a day
        are not kept any more.
        """
        ...

    def list_kept(self, table: TableName, date_column: str, dates: DateRange) -> list[KeptRows]:
        """List the rows of these dates that publications and restores removed and that are still kept, newest first."""
        ...

    def check_kept_restorable(self, table: TableName, date_column: str, kept: KeptRows) -> None:
        """Check that the rows are still kept, and that the table can hold them; changes nothing.

        Raises `BackupMissing`, `SchemaMismatch`.
        """
        ...

    def restore_kept(self, table: TableName, date_column: str, kept: KeptRows, *, current: str) -> bool:
        """Replace the present rows of the date by kept ones, if their fingerprint is still `current` (`ABSENT`: none).

        Returns whether the date holds the kept rows now. The replaced rows are kept as well, and so are the restored
        ones. Raises the errors of `check_kept_restorable`, and changes nothing then.
        """
        ...

    def delete_expired_undo(self) -> None:
        """Delete each copy of removed rows that was kept for longer than `WarehouseLimits.undo_days`.

        The time of all that a run replaced counts from its latest publication. A clock that is set ahead deletes
        nothing at once.
        """
        ...

    def create_table(
        self, table: TableName, columns: ColumnTypes, date_column: str, cluster_by: Sequence[str] = ()
    ) -> bool:
        """Create the table, empty, unless it exists; return whether it was created."""
        ...

    def refresh_schema(self, table: TableName) -> TableInfo | None:
        """Read the table's columns and types from its partitions again, and keep them; return the table.

        None for a warehouse that keeps the schemas of its tables itself. Raises `TableNotFound`, `SchemaMismatch`.
        """
        ...

    def add_columns(self, table: TableName, columns: ColumnTypes) -> None:
        """Add columns to the table, which are null in its rows. One that it has already stays as it is.

        Raises `TableNotFound`, and `SchemaMismatch`, adding nothing, for a name that differs by case only from another,
        or a column that the table has with another type.
        """
        ...

    def create_own_tables(self) -> bool | None:
        """Create the warehouse's bookkeeping tables, so that workers need no permission to; return whether any was new.

        None for a warehouse without such tables.
        """
        ...

    def check_publishable(self, target: TableName) -> bool:
        """Check the permission to publish to the table. Raises `NotAllowed`; changes nothing.

        Returns False when the warehouse cannot say in advance.
        """
        ...

    def quick_fingerprints(self, table: TableName, date_column: str, days: Collection[date]) -> dict[date, str]:
        """Return, without reading rows, a value for each day that stays the same only while the partition's rows do.

        It may change although no row does. A day is left out when nothing can be told about it, and so are all days of
        a table whose rows may change unseen. Raises like `query`.
        """
        ...

    def now(self) -> datetime | None:
        """Read the warehouse's clock; None when it is this machine's. Raises like `query`."""
        ...

    def find_slow_reads(self) -> str | None:
        """Return why reading many rows is slower than it could be; None if it is not. Raises like `query`."""
        ...

    def check_host(self, *, has_tables: bool, publishes: bool) -> None:
        """Check that this host reaches the warehouse, and can write to it if it `publishes`; changes nothing.

        `has_tables`: it is known to have some. Raises `HostError`, `NotAllowed`, `WarehouseUnavailable`.
        """
        ...

    def check_loadable(self, table: TableName, date_column: str, days: Collection[date] | None = None) -> None:
        """Check that rows of these days could be loaded into the table, as far as it can be told; changes nothing.

        None: of any day that the table has. Raises what `load` would.
        """
        ...

    def load(self, table: TableName, date_column: str, rows: pa.Table | pa.RecordBatchReader) -> list[date]:
        """Replace the partitions of all dates in `rows`, each completely or not at all, and return the dates.

        Rows that are refused replace none. A process that is killed meanwhile may leave some dates replaced; loading
        again completes it. The rows of a reader may be in any order and need not fit into memory. Raises
        `SchemaMismatch` when the table exists with other columns, types or date column.
        """
        ...


def read_unless_absent(
    describe: Callable[[TableName], TableInfo | None], table: TableName, read: Callable[[], T]
) -> T | None:
    """Return what `read` returns; None if the table does not exist.

    Raises `TableNotFound` if the table exists: it may be a view of a table that is gone.
    """
    try:
        return read()
    except TableNotFound:
        if describe(table) is not None:
            raise
        return None


def require_table(warehouse: Warehouse, table: TableName) -> TableInfo:
    """Describe the table. Raises `TableNotFound` when it does not exist."""
    info = warehouse.describe(table)
    if info is None:
        raise TableNotFound("no such table in the warehouse", table=str(table))
    return info
