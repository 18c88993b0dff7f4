"""What a warehouse promises: the sentences that every implementation's tests hold it to."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import TYPE_CHECKING, Any, LiteralString, Protocol

from gated_backfill.common.errors import SchemaMismatch, TableNotFound
from gated_backfill.common.model.dates import DateRange
from gated_backfill.common.model.publication import PublishResult, StagedFile
from gated_backfill.common.model.tables import ColumnTypes, TableName, validate_identifier
from gated_backfill.common.warehouse.backups import Backups

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, kw_only=True)
class TableInfo:
    """A table as it is: its columns with their types as the warehouse names them, and what partitions it."""

    table: TableName
    columns: Mapping[str, str]
    partitioned_by: str | None
    expires_after_days: int | None = None  #: partitions older than so many days vanish by themselves

    def check_columns(self, date_column: str, columns: ColumnTypes | Collection[str] = ()) -> None:
        """Raises `SchemaMismatch` unless it is dated by that column and has these columns.

        A table without partitions will do where the warehouse has such; one partitioned by another column will not.
        """
        if found := self.column_mismatches(date_column, columns):
            raise SchemaMismatch("; ".join(found), table=str(self.table))

    def column_mismatches(self, date_column: str, columns: ColumnTypes | Collection[str] = ()) -> list[str]:
        """Everything that `require` objects to, each as the end of a sentence about the table."""
        unpartitioned = self.partitioned_by is None and self.columns.get(date_column) == "DATE"
        if self.partitioned_by != date_column and not unpartitioned:
            return [
                f"has no date column {date_column}: it is partitioned by {self.partitioned_by or 'nothing'}; "
                f"its columns are {', '.join(self.columns)}"
            ]
        lacking = dict.fromkeys(name for name in (date_column, *columns) if name not in self.columns)
        found = [f"lacks the column(s) {', '.join(lacking)}"] if lacking else []
        types = columns if isinstance(columns, Mapping) else {}
        wrong = [name for name, kind in types.items() if self.columns.get(name, kind) != kind]
        return found + [f"column {name} is {self.columns[name]}, not {types[name]}" for name in wrong]


def check_same_columns(known: TableInfo | None, date_column: str, given: Mapping[str, str]) -> None:
    """Raises `SchemaMismatch` unless rows with these columns may be written to the table, or it does not exist."""
    if known is None:
        return
    known.check_columns(date_column)
    if dict(given) != dict(known.columns):
        differing = sorted(set(given.items()) ^ set(known.columns.items()))
        raise SchemaMismatch(
            f"the rows to load do not have its columns; differing: {', '.join(f'{n} {t}' for n, t in differing)}",
            table=str(known.table),
        )


def check_dated(table: TableName, date_column: str, rows: pa.Table) -> None:
    """Raises `SchemaMismatch` unless every row to load into the table has a date."""
    validate_identifier(date_column, "column name")
    if date_column not in rows.column_names or rows[date_column].null_count:
        raise SchemaMismatch(f"every row to load needs a date in {date_column}", table=str(table))


@dataclass(frozen=True, kw_only=True)
class Scan:
    """The rows of a table on some dates: the only way a query sees a table, so it is always pruned.

    `columns` maps the names that the query uses to the table's own; None keeps all as they are.
    """

    table: TableName
    date_column: str
    dates: tuple[DateRange, ...]
    columns: Mapping[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class StagedScan:
    """The rows of staged files, seen by a query as one table."""

    files: tuple[StagedFile, ...]
    columns: Mapping[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class ReplacedPartition:
    """What a run did to one date: the partition's fingerprints before its first publication and after its last."""

    before: str
    published: str


@dataclass(frozen=True, kw_only=True)
class EntityCounts:
    """Numbers of entities by day; a day without any is not among them."""

    expected: Mapping[date, int]
    present: Mapping[tuple[str, ...], Mapping[date, int]]  #: of those that are wanted: what any of these sources has


ABSENT = "absent"  #: the fingerprint of a partition that does not exist


class Warehouse(Backups, Protocol):
    """Tables with one partition per date."""

    def describe(self, table: TableName) -> TableInfo | None:
        """The table, or None when it does not exist."""
        ...

    def query(
        self,
        sql: LiteralString,
        *,
        scans: Mapping[str, Scan | StagedScan],
        params: Mapping[str, Any] | None = None,
    ) -> pa.Table:
        """The result of one GoogleSQL statement whose tables are the names of `scans`.

        Values are bound, never formatted in. Raises `TableNotFound`, `SchemaMismatch` or `QueryFailed` (do not
        repeat), `WarehouseUnavailable` (repeat).
        """
        ...

    def count_entities(
        self, wanted: Scan, sources: Mapping[str, Scan], held_by: Collection[tuple[str, ...]]
    ) -> EntityCounts:
        """How many entities are wanted, and how many of those any of the named sources has, by day.

        All scans are of the same dates, and have the columns `day` and `entity`. An entity counts once on a day; one
        that is NULL is none. Each scan is read once. Raises as `query` does.
        """
        ...

    def read(self, scan: Scan, *, once: bool = False) -> pa.Table:
        """The rows of the scan, in no order: what `SELECT *` over it gives, for less. Raises as `query` does.

        `once`: nothing else of these dates will be asked for, so nothing more than this need be read.
        """
        ...

    def estimate_bytes(self, scan: Scan) -> int | None:
        """The bytes that are billed for reading the scan, found out without reading it; None where it is free."""
        ...

    def fingerprints(
        self, table: TableName, date_column: str, days: Collection[date], *, columns: Collection[str] | None = None
    ) -> dict[date, str]:
        """For each day, a value that changes whenever the partition's rows do, and only then; `ABSENT` without any.

        With `columns`, a warehouse that pays for what it reads looks at those only.
        """
        ...

    def matching_dates(self, table: TableName, date_column: str, checksums: Mapping[date, str]) -> frozenset[date]:
        """The days whose partitions hold exactly the rows that were published from a file of that checksum."""
        ...

    def publish(
        self,
        target: TableName,
        date_column: str,
        files: Sequence[StagedFile],
        *,
        fingerprints_when_staged: Mapping[date, str],
        publication: str,
    ) -> PublishResult:
        """Replace the partitions of the files' dates, each wholly or not at all.

        Readers see a date's old rows or its new ones, never a mixture. A partition whose fingerprint is not the one
        in `unchanged_since` is left alone and reported, unless it already holds the staged rows: so publishing
        twice changes nothing the second time. `publication` is RUN/WINDOW; what the run's first publication of a
        date replaces is kept for `restore`. Raises `WarehouseUnavailable`, `NotAllowed`, `SchemaMismatch`.
        """
        ...

    def replaced_partitions(
        self, target: TableName, date_column: str, run: str, days: Collection[date]
    ) -> dict[date, ReplacedPartition]:
        """What the run published over, for those of the days on which it changed the partition or set out to."""
        ...

    def check_restorable(
        self, target: TableName, date_column: str, run: str, replaced: Mapping[date, ReplacedPartition]
    ) -> None:
        """Raises `NothingKept` when what one of the days held before is not kept any more. Changes nothing."""
        ...

    def restore(
        self, target: TableName, date_column: str, run: str, replaced: Mapping[date, ReplacedPartition]
    ) -> frozenset[date]:
        """Give the days the rows they held before the run; returns those that hold them now.

        A day that holds anything but what the run published is left alone. Repeating it changes nothing. Raises
        `NothingKept`, and changes nothing, when what a day held is not kept any more.
        """
        ...

    def delete_expired_undo(self) -> None:
        """Remove what was kept for longer than `Limits.undo_days`."""
        ...

    def create_table(
        self, table: TableName, columns: ColumnTypes, date_column: str, cluster_by: Sequence[str] = ()
    ) -> bool:
        """Make the table, empty, unless it exists; returns whether it was made."""
        ...

    def create_own_tables(self) -> bool | None:
        """Make what the warehouse keeps for itself, so that no worker needs the right to; returns whether it was made.

        None when it keeps nothing that has to be made.
        """
        ...

    def check_publishable(self, target: TableName) -> bool:
        """Raises `NotAllowed` when nothing could be published to the table. Changes nothing.

        Returns False when nothing speaks against it, but the warehouse does not tell.
        """
        ...

    def now(self) -> datetime | None:
        """What the warehouse's clock says; None where it is this machine's. Raises as `query` does."""
        ...

    def load(self, table: TableName, date_column: str, rows: pa.Table) -> list[date]:
        """Replace the partitions of all dates in `rows`: all of them or, whatever dies, none. Returns the dates.

        Raises `SchemaMismatch` when the table exists with other columns, types or date column.
        """
        ...


def require_table(warehouse: Warehouse, table: TableName) -> TableInfo:
    """The table. Raises `TableNotFound` when it does not exist."""
    found = warehouse.describe(table)
    if found is None:
        raise TableNotFound("no such table in the warehouse", table=str(table))
    return found
