"""Backups of a BigQuery warehouse: each is a table in the warehouse's own dataset, with an expiration.

One transaction deletes or puts back rows, after it has compared the table with the backup.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import date, datetime, timedelta
from typing import Any, LiteralString
from uuid import uuid4

from google.api_core.exceptions import NotFound
from google.cloud import bigquery

from gated_backfill.common.errors import BackupMissing, TableNotFound
from gated_backfill.common.model.dates import ALL_DATES, DateRange
from gated_backfill.common.model.publication import BACKUP_ID, Backup, BackupDate
from gated_backfill.common.model.tables import TableName, parse_dated_tables
from gated_backfill.common.process.clock import utcnow
from gated_backfill.common.warehouse.backups import changed_dates_error, mixed_dates_error
from gated_backfill.common.warehouse.bigquery import transactions as sql_of
from gated_backfill.common.warehouse.bigquery.client import job_name, translate_bigquery_errors
from gated_backfill.common.warehouse.bigquery.parameters import date_parameters, requested_dates
from gated_backfill.common.warehouse.bigquery.publication_record import CLEANUP, WarehouseLease, cleanup_lease
from gated_backfill.common.warehouse.bigquery.query import BigQueryQueries
from gated_backfill.common.warehouse.bigquery.schema import check_column_names
from gated_backfill.common.warehouse.bigquery.statements import (
    WANTED,
    Partitions,
    QuotedSql,
    fill_placeholders,
    partition_contents,
)
from gated_backfill.common.warehouse.protocol import ABSENT, Scan

BACKUP_TABLE_START = "cleanup_"
DESCRIPTION_START = "backup of "  #: of a backup's table, before its table and date column
BACKUP_GRACE = timedelta(days=2)  #: how much longer a backup's table lives than its entry in the ledger
COUNTS: LiteralString = "SELECT day, COUNT(*) AS n FROM t GROUP BY day"
DELETE_PERMISSIONS = "bigquery.jobs.create, bigquery.tables.updateData"

#: Choose the requested dates to delete: the table and the backup both have the rows that were backed up.
CHOOSE_BACKED_UP: LiteralString = """
    SET backfill_days = (
        SELECT ARRAY_AGG(w.day)
        FROM ({wanted}) AS w
        JOIN ({now}) AS n ON n.day = w.day AND n.content = w.published
        JOIN ({kept}) AS k ON k.day = w.day AND k.content = w.published
    );
"""

#: Choose the requested dates to put back: the table has no rows, and the backup has those backed up.
CHOOSE_DELETED: LiteralString = """
    SET backfill_days = (
        SELECT ARRAY_AGG(w.day)
        FROM ({wanted}) AS w
        JOIN ({kept}) AS k ON k.day = w.day AND k.content = w.published
        LEFT JOIN ({now}) AS n ON n.day = w.day
        WHERE n.day IS NULL
    );
"""


class BigQueryBackups(BigQueryQueries):
    """Backups as BigQuery tables; see `Backups`."""

    def row_counts(self, table: TableName, date_column: str, dates: DateRange) -> dict[date, int]:
        check_column_names(date_column)
        if self.describe(table) is None:
            return {}
        scan = Scan(table=table, date_column=date_column, dates=(dates,), columns={"day": date_column})
        counts = self.query(COUNTS, scans={"t": scan}).to_pylist()
        return {row["day"]: row["n"] for row in sorted(counts, key=lambda row: row["day"])}

    def list_dates(self, table: TableName, date_column: str) -> list[date]:
        return sorted(self.row_counts(table, date_column, ALL_DATES))

    def backup_location(self, backup: Backup) -> str:
        return f"{self._jobs.address.project}.{self._backup_table(backup.id)}"

    def back_up(self, backup: Backup, days: Collection[date], *, until: datetime) -> None:
        check_column_names(backup.date_column)
        info = self._tables.require_uncached(backup.table)
        info.check_columns(backup.date_column)
        backup_table = self._backup_table(backup.id)
        self._tables.create_own_dataset()
        self._tables.create(self._backup_definition(backup, until))
        statement = sql_of.load(
            self._tables.partitions(backup_table, backup.date_column, info.columns), self._tables.quoted(backup.table)
        )
        with translate_bigquery_errors("the backup", table=str(backup.table), needs=DELETE_PERMISSIONS):
            self._jobs.run_script(job_name("backup", uuid4().hex), statement, date_parameters(days))

    def _backup_definition(self, backup: Backup, until: datetime) -> bigquery.Table:
        """Define the backup's table, with all columns of the backed up one, also nested ones."""
        with translate_bigquery_errors("looking at the table", table=str(backup.table), needs="bigquery.tables.get"):
            schema = self._tables.get(backup.table).schema
        definition = bigquery.Table(self._tables.reference(self._backup_table(backup.id)), schema=schema)
        # No partitions: those of past dates might expire at once, by the dataset's default.
        definition.clustering_fields = [backup.date_column]
        # This machine's clock may be slow, and BigQuery's decides.
        definition.expires = max(until, self._time_after(until - utcnow())) + BACKUP_GRACE
        definition.description = f"{DESCRIPTION_START}{backup.table}:{backup.date_column}"  # for `find_backup`
        return definition

    def list_backup_ids(self) -> list[str]:
        names = self._tables.list_own(BACKUP_TABLE_START)
        ids = (name.removeprefix(BACKUP_TABLE_START).replace("_", "-") for name in names)
        return sorted(filter(BACKUP_ID.fullmatch, ids), reverse=True)

    def find_backup(self, backup_id: str) -> Backup | None:
        if not BACKUP_ID.fullmatch(backup_id):
            return None
        table = self._backup_table(backup_id)
        with translate_bigquery_errors("looking at the backup", table=str(table), needs="bigquery.tables.get"):
            try:
                description = self._tables.get(table).description or ""
            except NotFound:
                return None
        if not description.startswith(DESCRIPTION_START):
            return None  # of an earlier version
        (backed_up,) = parse_dated_tables(description.removeprefix(DESCRIPTION_START))
        return Backup(id=backup_id, table=backed_up.name, date_column=backed_up.date_column)

    def read_backup(self, backup: Backup, *, intact_only: bool = False) -> dict[date, BackupDate]:
        backup_table = self._backup_table(backup.id)
        try:
            info = self._tables.require_uncached(backup_table)
        except TableNotFound as exc:
            raise BackupMissing(f"the backup {backup.id} is not there", table=str(backup.table)) from exc
        rows = self.row_counts(backup_table, backup.date_column, ALL_DATES)
        if not rows:
            raise BackupMissing(f"the backup {backup.id} holds no rows", table=str(backup.table))
        contents = self._contents(backup_table, backup.date_column, list(rows), info.columns)
        return {day: BackupDate(fingerprint=contents[day], rows=rows[day]) for day in rows}

    def delete_backed_up(self, backup: Backup, kept: Mapping[date, BackupDate], *, generation: int) -> None:
        lease = cleanup_lease(backup, generation)
        info = self._tables.require_uncached(backup.table)  # with all columns, as the backup may lack new ones
        restored = self.restored_days(backup)
        kept = {day: backup_date for day, backup_date in kept.items() if day not in restored}
        now = self._contents(backup.table, backup.date_column, list(kept), info.columns) if kept else {}
        if all(content == ABSENT for content in now.values()):
            self._renew_lease(lease, backup.table, backup.date_column)
            return
        self._tables.restart_lifetime(self._backup_table(backup.id), self.now(), slack=BACKUP_GRACE / 2)
        target = self._tables.partitions(backup.table, backup.date_column, info.columns)
        places = {"target": target.table, "date": target.date}
        remove = fill_placeholders(sql_of.REMOVE, **places)
        deleted = fill_placeholders(sql_of.DELETED_ROWS, wanted=fill_placeholders(WANTED))
        record = sql_of.record(self._record.quoted, deleted)
        self._run_for_dates(backup, kept, "cleanup", lease, target, CHOOSE_BACKED_UP, remove, record)

    def deleted_at(self, backup: Backup) -> datetime | None:
        if not self._record.has_all_columns() or self.describe(self._backup_table(backup.id)) is None:
            return None
        (row,) = self._recorded(backup, sql_of.last_deletion(self._record.quoted))
        return row["deleted_at"]

    def restored_days(self, backup: Backup) -> frozenset[date]:
        if not self._record.has_all_columns():
            return frozenset()
        return frozenset(row["day"] for row in self._recorded(backup, sql_of.put_back_dates(self._record.quoted)))

    def _recorded(self, backup: Backup, statement: QuotedSql) -> list[dict[str, Any]]:
        """Run the query of the record of the backup's operation."""
        params = {"target": str(backup.table), "run": backup.id, "work": CLEANUP}
        return self._rows(statement, params, str(self._record.table)).to_pylist()

    def restore_backup(
        self, backup: Backup, kept: Mapping[date, BackupDate], *, generation: int, leave_written: bool = False
    ) -> frozenset[date]:
        lease = cleanup_lease(backup, generation)
        columns = self._tables.require_uncached(self._backup_table(backup.id)).columns
        self._tables.require_uncached(backup.table).check_columns(backup.date_column, columns)
        now = self._contents(backup.table, backup.date_column, list(kept), columns)
        written = [day for day in kept if now[day] not in (ABSENT, kept[day].fingerprint)]
        if written and not leave_written:
            raise changed_dates_error(backup, written)
        deleted = {day: backup_date for day, backup_date in kept.items() if now[day] == ABSENT}
        if deleted:
            target = self._tables.partitions(backup.table, backup.date_column, columns)
            places = {"target": target.table, "date": target.date, "columns": target.columns}
            insert = fill_placeholders(
                sql_of.INSERT, **places, source=self._tables.quoted(self._backup_table(backup.id))
            )
            # It removes no rows, but only transactions with such a statement exclude each other: without it, two
            # restores of the same rows, or a restore and a load, would both append theirs.
            remove = fill_placeholders(sql_of.REMOVE, **places)
            put_back = fill_placeholders(sql_of.PUT_BACK_ROWS, wanted=fill_placeholders(WANTED))
            record = sql_of.record(self._record.quoted, put_back)
            self._run_for_dates(backup, deleted, "putback", lease, target, CHOOSE_DELETED, remove, insert, record)
            now = self._contents(backup.table, backup.date_column, list(kept), columns)
            if mixed := [day for day in deleted if now[day] not in (ABSENT, kept[day].fingerprint)]:
                raise mixed_dates_error(backup, mixed)
        else:
            self._renew_lease(lease, backup.table, backup.date_column)
        return frozenset(day for day in kept if now[day] == kept[day].fingerprint)

    def _run_for_dates(
        self,
        backup: Backup,
        dates: Mapping[date, BackupDate],
        name: str,
        lease: WarehouseLease,
        target: Partitions,
        choose: LiteralString,
        *steps: QuotedSql,
    ) -> None:
        """Run the steps in one transaction, for those of the dates that `choose` chooses."""
        self._record.create()
        source = target._replace(table=self._tables.quoted(self._backup_table(backup.id)))
        contents = {"now": partition_contents(target), "kept": partition_contents(source)}
        chosen = fill_placeholders(choose, wanted=fill_placeholders(WANTED), **contents)
        statement = sql_of.transaction(sql_of.check_lease(self._record.quoted), chosen, *steps)
        request = requested_dates({day: {"published": dates[day].fingerprint} for day in dates})
        params = date_parameters(dates) | lease.parameters(backup.table) | {"wanted": request}
        with translate_bigquery_errors(f"the {name}", table=str(backup.table), needs=DELETE_PERMISSIONS):
            self._jobs.run_script(job_name(name, uuid4().hex), statement, params)

    def _renew_lease(self, lease: WarehouseLease, table: TableName, date_column: str) -> None:
        """Record the lease, and exclude transactions on the table that are under way. Raises `LeaseTakenOver`."""
        info = self.describe(table)
        partitions = None if info is None else self._tables.partitions(table, date_column, info.columns)
        self._record.renew_lease(lease, table, exclusively=partitions)

    def drop_backup(self, backup: Backup) -> None:
        table = self._backup_table(backup.id)
        with translate_bigquery_errors("removing the backup", table=str(table), needs="bigquery.tables.delete"):
            self._tables.drop(table)

    def _backup_table(self, backup_id: str) -> TableName:
        return self._tables.own(f"{BACKUP_TABLE_START}{backup_id.replace('-', '_')}")
