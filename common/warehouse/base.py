"""What a warehouse promises: the sentences that every implementation's tests hold it to."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, LiteralString, Protocol

import pyarrow as pa

from common.dates import DateRange
from common.errors import SchemaMismatch, TableNotFound
from common.schema import TableName, Types


@dataclass(frozen=True, kw_only=True)
class TableInfo:
    """A table as it is: its columns with their types as the warehouse names them, and what partitions it."""

    table: TableName
    columns: Mapping[str, str]
    partitioned_by: str | None

    def require(self, date_column: str, columns: Types | Collection[str] = ()) -> None:
        """Raises `SchemaMismatch` unless it is partitioned by that date column and has these columns."""
        if self.partitioned_by != date_column:
            raise SchemaMismatch(
                f"has no date column {date_column}: it is partitioned by {self.partitioned_by or 'nothing'}; "
                f"its columns are {', '.join(self.columns)}",
                table=str(self.table),
            )
        lacking = [name for name in (date_column, *columns) if name not in self.columns]
        if lacking:
            raise SchemaMismatch(f"lacks the column(s) {', '.join(lacking)}", table=str(self.table))
        if not isinstance(columns, Mapping):
            return
        for name, kind in columns.items():
            if self.columns[name] != kind:
                raise SchemaMismatch(f"column {name} is {self.columns[name]}, not {kind}", table=str(self.table))


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
class StagedFile:
    """One date's rows as a file that waits for the gate."""

    day: date
    attempt: int
    path: Path
    checksum: str  #: SHA-256 of the file's bytes, in hex
    rows: int


@dataclass(frozen=True, kw_only=True)
class StagedScan:
    """The rows of staged files, seen by a query as one table."""

    files: tuple[StagedFile, ...]
    columns: Mapping[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What a publish did. Every date handed in is in exactly one of the two."""

    published: frozenset[date]  #: the target now holds exactly the staged bytes
    changed: frozenset[date]  #: left alone: somebody else wrote the partition since the date was staged


ABSENT = "absent"  #: the fingerprint of a partition that does not exist


class Warehouse(Protocol):
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

    def read(self, scan: Scan) -> pa.Table:
        """The rows of the scan, in no order: what `SELECT *` over it gives, for less. Raises as `query` does."""
        ...

    def fingerprints(self, table: TableName, date_column: str, days: Collection[date]) -> dict[date, str]:
        """For each day, a value that changes whenever the partition's rows do; `ABSENT` without a partition."""
        ...

    def publish(
        self,
        target: TableName,
        date_column: str,
        files: Sequence[StagedFile],
        *,
        unchanged_since: Mapping[date, str],
        publication: str,
    ) -> Receipt:
        """Replace the partitions of the files' dates, each wholly or not at all.

        Readers see a date's old rows or its new ones, never a mixture. A partition whose fingerprint is not the one
        in `unchanged_since` is left alone and reported, unless it already holds the staged bytes: so publishing
        twice changes nothing the second time. Raises `StagedFileLost`, `WarehouseUnavailable`.
        """
        ...

    def check_publishable(self, target: TableName) -> None:
        """Raises `NotAllowed` when nothing could be published to the table. Changes nothing."""
        ...

    def load(self, table: TableName, date_column: str, rows: pa.Table) -> list[date]:
        """Replace the partitions of all dates in `rows`: all of them or, whatever dies, none. Returns the dates.

        Raises `SchemaMismatch` when the table exists with other columns, types or date column.
        """
        ...


def need_table(warehouse: Warehouse, table: TableName) -> TableInfo:
    """The table. Raises `TableNotFound` when it does not exist."""
    found = warehouse.describe(table)
    if found is None:
        raise TableNotFound("no such table in the warehouse", table=str(table))
    return found
