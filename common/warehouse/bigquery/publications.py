"""Publishing to BigQuery: one transaction per window, which replaces partitions and records the publication.

A repeated publication finds its record and changes nothing. Undo tables hold the replaced rows until they expire.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import date

from gated_backfill.common.errors import SchemaMismatch, StagedFileLost
from gated_backfill.common.model.publication import Publication, PublishResult, StagedFile
from gated_backfill.common.model.tables import TableName
from gated_backfill.common.warehouse.bigquery import transactions as sql_of
from gated_backfill.common.warehouse.bigquery.client import job_name, translate_bigquery_errors
from gated_backfill.common.warehouse.bigquery.parameters import (
    MAX_PARTITIONS_PER_JOB,
    check_partition_limit,
    date_parameters,
    publication_request,
    requested_dates,
)
from gated_backfill.common.warehouse.bigquery.publication_record import publication_lease, undo_lease
from gated_backfill.common.warehouse.bigquery.schema import check_column_names
from gated_backfill.common.warehouse.bigquery.staging_tables import WRITE_PERMISSIONS, staged_days
from gated_backfill.common.warehouse.bigquery.statements import in_parentheses
from gated_backfill.common.warehouse.bigquery.undo import BigQueryUndo, new_copy
from gated_backfill.common.warehouse.protocol import ABSENT, check_same_columns


class BigQueryPublications(BigQueryUndo):
    """Publishing of a BigQuery warehouse; see `Warehouse`."""

    max_dates_per_publication: int | None = MAX_PARTITIONS_PER_JOB
    publications_conflict: bool = True
    max_rows_per_count: int | None = None

    def publish(
        self,
        target: TableName,
        date_column: str,
        files: Sequence[StagedFile],
        *,
        fingerprints_when_staged: Mapping[date, str],
        publication: Publication,
    ) -> PublishResult:
        days = frozenset(staged.day for staged in files)
        check_column_names(date_column)
        check_partition_limit(target, days)
        checksums = {staged.day: staged.checksum for staged in files}
        published = self._published_as_staged(target, date_column, checksums)
        quick: dict[date, str] = {}
        unreadable: frozenset[date] = frozenset()
        replaced = False
        for is_table in (False, True):  # a window has rows of one kind, unless its job was changed meanwhile
            of_kind = [rows for rows in files if (rows.table is not None) is is_table and rows.day not in published]
            source, lost = self._stage_intact_files(of_kind)
            unreadable |= lost
            if source:
                intact = [rows for rows in of_kind if rows.day not in lost]
                self._replace_partitions(target, date_column, intact, source, fingerprints_when_staged, publication)
                replaced = True
        if replaced:
            quick = self.quick_fingerprints(target, date_column, days)  # first: they may only be older than the rows
            published = self._published_as_staged(target, date_column, checksums)
        elif files:
            self._record.renew_lease(publication_lease(publication), target)
        return PublishResult(
            published=published,
            conflicting=days - published - unreadable,
            lost=unreadable - published,
            quick_fingerprints={day: quick[day] for day in published & quick.keys()},
        )

    def raise_fence(self, target: TableName, run: str, *, window: int | None, generation: int) -> None:
        if window is None:
            lease = undo_lease(run, generation)
        else:
            publication = Publication(run=run, window=window, generation=generation)
            lease = replace(publication_lease(publication), ended_by=None)  # after an undo, there is nothing to refuse
        info = self.describe(target)
        date_column = None if info is None else info.find_date_column()
        if date_column is None:  # nothing can have been published
            self._record.renew_lease(lease, target)
        else:
            self._renew_lease(lease, target, date_column)

    def _stage_intact_files(
        self, files: Sequence[StagedFile]
    ) -> tuple[Mapping[TableName, Sequence[date] | None], frozenset[date]]:
        """Load the intact files; return the tables with the staged rows, and the days of lost or damaged ones."""
        tables = staged_days(files)
        unreadable = {day for table, days in tables.items() if self.describe(table) is None for day in days}
        while intact := [staged for staged in files if staged.day not in unreadable]:
            try:
                return self._staged.find_tables(intact), frozenset(unreadable)
            except StagedFileLost as exc:
                unreadable.add(exc.file_day)
        return {}, frozenset(unreadable)

    def _replace_partitions(
        self,
        target: TableName,
        date_column: str,
        files: Sequence[StagedFile],
        source: Mapping[TableName, Sequence[date] | None],
        before: Mapping[date, str],
        publication: Publication,
    ) -> None:
        """Replace, in one transaction, the partitions that are unchanged since their rows were staged."""
        columns = self._shared_columns(target, date_column, source)
        self._record.create()
        replaces = any(before[staged.day] != ABSENT for staged in files)
        undo_table = self._undo_table(publication.run, target)
        staged_rows, staged_params = self._staged_rows("staged", {name: name for name in columns}, source)
        statement = sql_of.publish(
            self._tables.partitions(target, date_column, columns),
            in_parentheses(staged_rows),
            self._record.quoted,
            self._prepare_undo_table(undo_table, target, date_column) if replaces else None,
            compares_content=all(staged.table is not None for staged in files),
        )
        lease = publication_lease(publication)
        request = requested_dates({staged.day: publication_request(staged, before[staged.day]) for staged in files})
        params = date_parameters([staged.day for staged in files]) | lease.parameters(target)
        params |= staged_params | {
            "window_number": str(publication.window),
            "copy": f"{new_copy()}-",
            "wanted": request,
        }

        def has_effect() -> bool:
            if self._published_as_staged(target, date_column, {staged.day: staged.checksum for staged in files}):
                return True
            now = self.fingerprints(target, date_column, [staged.day for staged in files])
            return all(now[staged.day] != before[staged.day] for staged in files)

        with translate_bigquery_errors("the publication", table=str(target), needs=WRITE_PERMISSIONS):
            name = job_name("publish", target, publication.name, publication.generation, *request)
            self._jobs.run_script(name, statement, params, has_effect=has_effect)

    def _published_as_staged(
        self, target: TableName, date_column: str, checksums: Mapping[date, str]
    ) -> frozenset[date]:
        """Return the days that hold the staged rows, in the columns of the target as they are now."""
        info = self.describe(target)
        return frozenset() if info is None else self._exactly_matching(target, date_column, checksums, info.columns)

    def _shared_columns(self, target: TableName, date_column: str, sources: Collection[TableName]) -> list[str]:
        """Return the columns of the target, created if missing. Raises `SchemaMismatch` if those of a source differ."""
        columns, *others = [dict(self._tables.require(source).columns) for source in sources]
        if any(other != columns for other in others):
            raise SchemaMismatch("the staging tables have different columns", table=str(target))
        self._tables.create_partitioned(target, columns, date_column)
        # As they are now: values of a column that was added just now would be replaced without being kept.
        check_same_columns(self._tables.require(target), date_column, columns)
        return sorted(columns)
