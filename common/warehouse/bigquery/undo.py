"""Undo tables: the rows that operations have removed from a BigQuery table, and how they come back.

Each run has an undo table for each target. It holds a copy of the rows of each date that the run has replaced, of every
publication, and of those that an undo has removed. It expires some time after the last of them was kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import date, timedelta
from typing import Any
from uuid import uuid4

from gated_backfill.common.errors import SchemaMismatch
from gated_backfill.common.model.dates import DateRange, enclosing_range
from gated_backfill.common.model.publication import KeptRows
from gated_backfill.common.model.tables import TableName
from gated_backfill.common.warehouse.backups import kept_rows_missing, replaced_rows_missing
from gated_backfill.common.warehouse.bigquery import transactions as sql_of
from gated_backfill.common.warehouse.bigquery.backups import BigQueryBackups
from gated_backfill.common.warehouse.bigquery.client import job_name, translate_bigquery_errors
from gated_backfill.common.warehouse.bigquery.parameters import check_partition_limit, date_parameters, requested_dates
from gated_backfill.common.warehouse.bigquery.publication_record import (
    RESTORE_OF_KEPT,
    UNDO,
    WarehouseLease,
    undo_lease,
)
from gated_backfill.common.warehouse.bigquery.schema import check_column_names
from gated_backfill.common.warehouse.bigquery.staging_tables import WRITE_PERMISSIONS
from gated_backfill.common.warehouse.bigquery.statements import rows_of_content
from gated_backfill.common.warehouse.bigquery.transactions import KEPT_COLUMN, UndoTable
from gated_backfill.common.warehouse.protocol import ABSENT, ReplacedPartition

UNDO_TABLE_SLACK = timedelta(hours=1)  #: added to an undo table's expiration: not every window has to update it

KEPT_TABLE = "kept-"  #: used instead of a run's id in the name of an undo table that a `kept restore` writes


@dataclass(frozen=True, kw_only=True)
class KeptCopy:
    """Kept rows and the undo table that holds them."""

    rows: KeptRows
    table: TableName


class BigQueryUndo(BigQueryBackups):
    """Undo of a BigQuery warehouse; see `Warehouse`."""

    def replaced_partitions(
        self, target: TableName, date_column: str, run: str, days: Collection[date]
    ) -> dict[date, ReplacedPartition]:
        if not days or not self._record.exists():
            return {}
        span = enclosing_range(days)
        params = {"target": str(target), "run": run, "first": span.start, "last": span.through}
        statement = sql_of.replaced_partitions(self._record.quoted, keeps_all=self._record.has_all_columns())
        rows = self._rows(statement, params, str(self._record.table)).to_pylist()
        replaced = {row["day"]: ReplacedPartition(before=row["before"], published=row["published"]) for row in rows}
        of_days = {day: replaced[day] for day in days if day in replaced}
        return self._with_added_columns(target, date_column, of_days, self.fingerprints(target, date_column, of_days))

    def _with_added_columns(
        self, target: TableName, date_column: str, replaced: Mapping[date, ReplacedPartition], now: Mapping[date, str]
    ) -> dict[date, ReplacedPartition]:
        """Return the partitions with `now`, the present fingerprints, for rows to which only columns were added since.

        A date that has its earlier rows again has them as `published`, too: there is nothing to restore.
        """
        current = dict(replaced)
        changed_days = [
            day for day, partition in replaced.items() if now[day] not in (partition.published, partition.before)
        ]
        for columns, days in self._columns_before(target, date_column, changed_days):
            contents = self._contents(target, date_column, days, columns)
            for day in days:
                if contents[day] == replaced[day].before:
                    current[day] = ReplacedPartition(before=now[day], published=now[day])
                elif contents[day] == replaced[day].published:
                    current[day] = replace(replaced[day], published=now[day])
        return current

    def check_restorable(
        self, target: TableName, date_column: str, run: str, replaced: Mapping[date, ReplacedPartition]
    ) -> None:
        self._copies_to_restore(target, date_column, run, replaced)

    def _copies_to_restore(
        self, target: TableName, date_column: str, run: str, replaced: Mapping[date, ReplacedPartition]
    ) -> dict[date, str]:
        """Return the keys of the copies of the replaced rows, by date. Raises `BackupMissing` if one is not kept."""
        changed = [day for day, partition in replaced.items() if partition.before not in (ABSENT, partition.published)]
        keys_by_content = self._copies(self._undo_table(run, target), date_column, changed)
        keys = {day: keys_by_content.get((day, replaced[day].before)) for day in changed}
        if missing := [day for day, key in keys.items() if key is None]:
            raise replaced_rows_missing(target, run, missing)
        return {day: key for day, key in keys.items() if key is not None}

    def _copies(self, table: TableName, date_column: str, days: Collection[date]) -> dict[tuple[date, str], str]:
        """Return the keys of the copies in an undo table, by date and content."""
        info = self.describe(table)
        if info is None or not days:
            return {}
        statement = sql_of.kept_contents(self._undo_places(table, date_column))
        rows = self._rows_of_existing(statement, date_parameters(days), table)
        return {(row["day"], row["content"]): row["copy"] for row in rows}

    def restore(
        self,
        target: TableName,
        date_column: str,
        run: str,
        replaced: Mapping[date, ReplacedPartition],
        *,
        generation: int,
    ) -> frozenset[date]:
        check_partition_limit(target, replaced)
        now = self.fingerprints(target, date_column, list(replaced))
        current = self._with_added_columns(target, date_column, replaced, now)
        waiting = {
            day: partition for day, partition in current.items() if now[day] == partition.published != partition.before
        }
        lease = undo_lease(run, generation)
        if not waiting:
            self._renew_lease(lease, target, date_column)
            return frozenset(day for day in current if now[day] == current[day].before)
        copies = self._copies_to_restore(target, date_column, run, waiting)
        self._tables.require_uncached(target)  # with all columns, as a value in a new one is a change
        undo_table = self._prepare_undo_table(self._undo_table(run, target), target, date_column)
        request = restore_requests(waiting, copies)
        self._put_back(target, date_column, request, undo_table, undo_table, lease, new_copy())
        now = self._contents(target, date_column, list(replaced), self._undo_columns(target, run))
        return frozenset(day for day in replaced if now[day] == replaced[day].before)

    def _put_back(
        self,
        target: TableName,
        date_column: str,
        requests: Mapping[date, Mapping[str, Any]],
        source: UndoTable,
        keep_in: UndoTable,
        lease: WarehouseLease,
        copy: str,
    ) -> None:
        """Replace the rows of the requested dates by kept ones, in one transaction, unless they changed meanwhile.

        `copy` is the id of the copies of the rows that are removed.
        """
        self._record.create()
        columns = self._tables.require(target).columns
        statement = sql_of.restore(
            self._tables.partitions(target, date_column, columns), source, self._record.quoted, keep_in
        )
        params = date_parameters(requests) | lease.parameters(target)
        params |= {"wanted": requested_dates(requests), "copy": f"{copy}-"}
        with translate_bigquery_errors("restoring the kept rows", table=str(target), needs=WRITE_PERMISSIONS):
            self._jobs.run_script(job_name("restore", uuid4().hex), statement, params)

    def delete_expired_undo(self) -> None:
        """Do nothing: undo tables have an expiration."""

    # -- kept rows -------------------------------------------------------------------------------------------

    def list_kept(self, table: TableName, date_column: str, dates: DateRange) -> list[KeptRows]:
        check_column_names(date_column)
        return [copy.rows for copy in self._kept_copies(table, dates)]

    def _kept_copies(self, table: TableName, dates: DateRange) -> list[KeptCopy]:
        """List the rows of these dates that are still kept, newest first, with the tables that hold them."""
        self._tables.reference(table)  # which checks the name
        if not self._record.has_all_columns():
            return []
        params = {"target": str(table), "first": dates.start, "last": dates.through}
        rows = self._rows(sql_of.kept_copies(self._record.quoted), params, str(self._record.table)).to_pylist()
        copies = [
            KeptCopy(
                rows=KeptRows(
                    id=row["kept"],
                    day=row["day"],
                    kept_at=row["published_at"],
                    removed_by=describe_removal(row["run"], row["work"]),
                    fingerprint=row["before"],
                    rows=rows_of_content(row["before"]),
                ),
                table=self._undo_table(row["run"] or kept_table_name(row["kept"], row["day"]), table),
            )
            for row in rows
        ]
        existing = {undo_table for undo_table in {copy.table for copy in copies} if self.describe(undo_table)}
        return [copy for copy in copies if copy.table in existing]

    def check_kept_restorable(self, table: TableName, date_column: str, kept: KeptRows) -> None:
        self._find_kept_table(table, date_column, kept)

    def _find_kept_table(self, table: TableName, date_column: str, kept: KeptRows) -> TableName:
        """Return the undo table that holds the kept rows. Raises `BackupMissing`, `SchemaMismatch`."""
        check_column_names(date_column)
        dates = DateRange(start=kept.day, through=kept.day)
        undo_tables = [copy.table for copy in self._kept_copies(table, dates) if copy.rows.id == kept.id]
        if not undo_tables:
            raise kept_rows_missing(table, kept)
        self._tables.require_uncached(table).check_columns(date_column, self._kept_columns(undo_tables[0]))
        return undo_tables[0]

    def restore_kept(self, table: TableName, date_column: str, kept: KeptRows, *, current: str) -> bool:
        kept_table = self._find_kept_table(table, date_column, kept)
        columns = self._kept_columns(kept_table)
        if self._contents(table, date_column, [kept.day], columns)[kept.day] == kept.fingerprint:
            return True
        copy = new_copy()
        source = self._undo_places(kept_table, date_column)
        keep_in = source  # which gets nothing when there are no rows to keep
        if current != ABSENT:
            keep_in = self._prepare_undo_table(self._undo_table(f"{KEPT_TABLE}{copy}", table), table, date_column)
        request = {kept.day: {"before": kept.fingerprint, "published": current, "copy": kept.id}}
        lease = WarehouseLease(run=None, work=RESTORE_OF_KEPT, generation=0)
        self._put_back(table, date_column, request, source, keep_in, lease, copy)
        return self._contents(table, date_column, [kept.day], columns)[kept.day] == kept.fingerprint

    # -- undo tables -----------------------------------------------------------------------------------------

    def _undo_table(self, run: str, target: TableName) -> TableName:
        digest = hashlib.sha256(str(target).encode()).hexdigest()[:12]
        return self._tables.own(f"undo_{run.replace('-', '_')}_{digest}")

    def _undo_columns(self, target: TableName, run: str) -> list[str]:
        """Return the columns that the target had when the run first replaced rows; now, if it replaced none."""
        undo_table = self._undo_table(run, target)
        return self._kept_columns(undo_table if self.describe(undo_table) else target)

    def _kept_columns(self, undo_table: TableName) -> list[str]:
        """Return the columns of the rows in an undo table."""
        return [column for column in self._tables.require(undo_table).columns if column != KEPT_COLUMN]

    def _undo_places(self, table: TableName, date_column: str) -> UndoTable:
        """Return the names that statements on an undo table need."""
        partitions = self._tables.partitions(table, date_column, self._kept_columns(table))
        return sql_of.undo_table(partitions, has_kept_column=KEPT_COLUMN in self._tables.require(table).columns)

    def _prepare_undo_table(self, table: TableName, target: TableName, date_column: str) -> UndoTable:
        """Create the undo table for rows of the target, or move the expiration of an existing one on."""
        columns = self._tables.require(target).columns
        if KEPT_COLUMN in columns:
            raise SchemaMismatch(f"the name of column {KEPT_COLUMN} is reserved", table=str(target))
        expires = self._time_after(timedelta(days=self._jobs.limits.undo_days))
        info = self.describe(table)
        if info is None:
            definition = self._tables.define(table, {**columns, KEPT_COLUMN: "STRING"})
            # No partitions: those of past dates might expire at once, by the dataset's default.
            definition.clustering_fields = [date_column]
            definition.expires = expires + UNDO_TABLE_SLACK
            self._tables.create(definition)
        else:
            if KEPT_COLUMN not in info.columns:  # made by an earlier version
                self._tables.add_columns(table, {KEPT_COLUMN: "STRING"})
            self._tables.postpone_expiration(table, expires, slack=UNDO_TABLE_SLACK)
        return self._undo_places(table, date_column)


def restore_requests(
    replaced: Mapping[date, ReplacedPartition], copies: Mapping[date, str]
) -> dict[date, dict[str, Any]]:
    """Describe what comes back: the fingerprint and the copy of the earlier rows, and the present fingerprint."""
    return {day: {**asdict(partition), "copy": copies.get(day)} for day, partition in replaced.items()}


def describe_removal(run: str | None, work: str) -> str:
    """Describe what removed rows that are kept."""
    if run is None:
        return "restore of kept rows"
    return f"undo of run {run}" if work == UNDO else f"run {run}"


def kept_table_name(key: str, day: date) -> str:
    """Return what names the undo table of a restore of kept rows, from the key of the copy that it kept."""
    return KEPT_TABLE + key.removesuffix(f"-{day}")


def new_copy() -> str:
    """Return a new id for the copies that one operation keeps."""
    return uuid4().hex[:16]
