"""The record of publications: what each operation published, what it kept, and the lease under which it worked."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import uuid4

from google.api_core.exceptions import NotFound

from gated_backfill.common.errors import UserError
from gated_backfill.common.model.publication import Backup, Publication
from gated_backfill.common.model.tables import ColumnTypes, TableName
from gated_backfill.common.warehouse.bigquery import transactions as sql_of
from gated_backfill.common.warehouse.bigquery.client import BigQueryConnection, job_name, translate_bigquery_errors
from gated_backfill.common.warehouse.bigquery.parameters import NO_DATES
from gated_backfill.common.warehouse.bigquery.staging_tables import WRITE_PERMISSIONS
from gated_backfill.common.warehouse.bigquery.statements import Partitions, QuotedSql
from gated_backfill.common.warehouse.bigquery.tables import BigQueryTables

PUBLICATION_COLUMNS: ColumnTypes = {
    "target": "STRING",
    "day": "DATE",
    "run": "STRING",
    "window_number": "STRING",
    "attempt": "INT64",
    "row_count": "INT64",
    "checksum": "STRING",
    "content": "STRING",
    "before": "STRING",
    "published_at": "TIMESTAMP",
    # Earlier versions have none of these.
    "work": "STRING",
    "generation": "INT64",
    "kept": "STRING",
}
UNDO = "undo"
RESTORE_OF_KEPT = "restore"
CLEANUP = "cleanup"


@dataclass(frozen=True, kw_only=True)
class WarehouseLease:
    """A lease on work on a table. It is lost when a higher generation of the same run and work is on record."""

    run: str | None  #: id of the run or of the cleanup operation; None for work without a lease
    work: str  #: "window N", or a constant of this module
    generation: int
    ended_by: str | None = None  #: other work of the run, whose record ends this lease, too

    def parameters(self, target: TableName) -> dict[str, Any]:
        """Return the parameters of `transactions.check_lease` and `transactions.record`."""
        return {
            "target": str(target),
            "run": self.run,
            "work": self.work,
            "generation": self.generation,
            "ended_by": self.ended_by,
        }


def publication_lease(publication: Publication) -> WarehouseLease:
    return WarehouseLease(
        run=publication.run, work=f"window {publication.window}", generation=publication.generation, ended_by=UNDO
    )


def undo_lease(run: str, generation: int) -> WarehouseLease:
    return WarehouseLease(run=run, work=UNDO, generation=generation)


def cleanup_lease(backup: Backup, generation: int) -> WarehouseLease:
    return WarehouseLease(run=backup.id, work=CLEANUP, generation=generation)


class PublicationRecord:
    """The table with the record. Rows are only ever added to it, so operations do not exclude each other by it."""

    def __init__(self, jobs: BigQueryConnection, tables: BigQueryTables) -> None:
        self._jobs = jobs
        self._tables = tables
        self._is_checked = False  #: whether this process has checked the table
        self.table = tables.own("publications")

    @property
    def quoted(self) -> QuotedSql:
        return self._tables.quoted(self.table)

    def exists(self) -> bool:
        return self._tables.describe(self.table) is not None

    def has_all_columns(self) -> bool:
        """Whether the table exists and has all columns; that of an earlier version lacks some."""
        info = self._tables.describe(self.table)
        return info is not None and info.columns.keys() >= PUBLICATION_COLUMNS.keys()

    def create(self) -> None:
        """Create the table, or add the columns that one of an earlier version lacks. Raises `UserError`.

        A table that exists is only looked at: many processes do that at once, and BigQuery allows few changes.
        """
        if self._is_checked:
            return
        expires, columns = self._look() or self._create()
        if expires is not None:
            raise UserError(
                f"{self.table} must not expire, but will at {expires:%Y-%m-%d} UTC: remove its expiration "
                f"and the default table expiration of the dataset {self._tables.own_dataset}"
            )
        if not columns >= PUBLICATION_COLUMNS.keys():
            self._tables.add_columns(self.table, PUBLICATION_COLUMNS)
        self._is_checked = True

    def _create(self) -> tuple[datetime | None, frozenset[str]]:
        self._tables.create_own_dataset()
        definition = self._tables.define(self.table, PUBLICATION_COLUMNS)
        definition.clustering_fields = ["target", "day"]  # no partitions: they might expire by the dataset's default
        self._tables.create(definition)
        created = self._look()
        assert created is not None, "it was created"
        return created

    def _look(self) -> tuple[datetime | None, frozenset[str]] | None:
        """Return when the table expires, and its columns; None if it does not exist."""
        with translate_bigquery_errors("looking at the record of publications", needs="bigquery.tables.get"):
            try:
                table = self._tables.get(self.table)
            except NotFound:
                return None
        return table.expires, frozenset(field.name for field in table.schema)

    def renew_lease(self, lease: WarehouseLease, target: TableName, exclusively: Partitions | None = None) -> None:
        """Record the lease of an operation that has nothing to change, so that an earlier one has no effect later.

        `exclusively` are the partitions of the target, to exclude transactions that are under way. Raises
        `LeaseTakenOver`.
        """
        self.create()
        params = lease.parameters(target)
        if exclusively is not None:
            first, through = NO_DATES
            params |= {"first": first, "last": through}
        statement = sql_of.renew_lease(self.quoted, exclusively)
        with translate_bigquery_errors("checking the lease", table=str(target), needs=WRITE_PERMISSIONS):
            self._jobs.run_script(job_name("lease", uuid4().hex), statement, params)
