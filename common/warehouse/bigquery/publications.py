"""Publishing to BigQuery: one transaction per window, which replaces partitions and records the publication.

A repeated publication finds its record and changes nothing. Undo tables hold the replaced rows until they expire.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import date, timedelta
from uuid import uuid4

from gated_backfill.common.errors import BackupMissing, StagedFileLost, UserError
from gated_backfill.common.model.dates import DateRange, enclosing_range
from gated_backfill.common.model.publication import KeptRows, Publication, PublishResult, StagedFile
from gated_backfill.common.model.tables import TableName
from gated_backfill.common.process.clock import utcnow
from gated_backfill.common.warehouse.bigquery import statements as sql_of
from gated_backfill.common.warehouse.bigquery.backups import BigQueryBackups
from gated_backfill.common.warehouse.bigquery.client import job_name, translate_bigquery_errors
from gated_backfill.common.warehouse.bigquery.parameters import date_parameters, publication_request, requested_dates
from gated_backfill.common.warehouse.bigquery.schema import check_column_names
from gated_backfill.common.warehouse.bigquery.staging_tables import WRITE_PERMISSIONS
from gated_backfill.common.warehouse.protocol import ABSENT, ReplacedPartition, check_same_columns

MAX_PARTITIONS_PER_JOB = 4000  #: partitions that one job may touch, by BigQuery's quota
PUBLICATION_COLUMNS: Mapping[str, str] = {
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
}


class BigQueryPublications(BigQueryBackups):
    """Publishing and undo of a BigQuery warehouse; see `Warehouse`."""

    _has_own_tables = False  #: whether this process has checked them

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
        source, unreadable = self._stage_intact_files([staged for staged in files if staged.day not in published])
        intact = [staged for staged in files if staged.day not in published | unreadable]
        if source is not None:
            self._replace_partitions(target, date_column, intact, source, fingerprints_when_staged, publication)
            published = self._published_as_staged(target, date_column, checksums)
        return PublishResult(
            published=published, conflicting=days - published - unreadable, lost=unreadable - published
        )

    def _stage_intact_files(self, files: Sequence[StagedFile]) -> tuple[TableName | None, frozenset[date]]:
        """Stage the intact files; return the table, None without such files, and the days of lost or damaged ones."""
        unreadable: set[date] = set()
        while intact := [staged for staged in files if staged.day not in unreadable]:
            try:
                return self._staged.load_files(intact), frozenset(unreadable)
            except StagedFileLost as exc:
                unreadable.add(exc.file_day)
        return None, frozenset(unreadable)

    def _replace_partitions(
        self,
        target: TableName,
        date_column: str,
        files: Sequence[StagedFile],
        source: TableName,
        before: Mapping[date, str],
        publication: Publication,
    ) -> None:
        """Replace, in one transaction, the partitions that are unchanged since their rows were staged."""
        run, window = publication.run, str(publication.window)
        columns = self._shared_columns(target, date_column, source)
        self._create_publications()
        request = requested_dates({staged.day: publication_request(staged, before[staged.day]) for staged in files})
        replaces = any(before[staged.day] != ABSENT for staged in files)
        undo_table = self._tables.quoted(self._create_undo_table(run, target, date_column)) if replaces else None
        statement = sql_of.publish(
            self._tables.partitions(target, date_column, columns),
            self._tables.quoted(source),
            self._tables.quoted(self._publications),
            undo_table,
        )
        params = date_parameters([staged.day for staged in files]) | {
            "target": str(target),
            "run": run,
            "window_number": window,
            "wanted": request,
        }

        def has_effect() -> bool:
            if self._published_as_staged(target, date_column, {staged.day: staged.checksum for staged in files}):
                return True
            now = self.fingerprints(target, date_column, [staged.day for staged in files])
            return all(now[staged.day] != before[staged.day] for staged in files)

        with translate_bigquery_errors("the publication", table=str(target), needs=WRITE_PERMISSIONS):
            name = job_name("publish", target, publication.name, *request)
            self._jobs.run_script(name, statement, params, has_effect=has_effect)

    def _published_as_staged(
        self, target: TableName, date_column: str, checksums: Mapping[date, str]
    ) -> frozenset[date]:
        """Return the days that hold the staged rows, in the columns of the target as they are now."""
        info = self.describe(target)
        return frozenset() if info is None else self._exactly_matching(target, date_column, checksums, info.columns)

    def _shared_columns(self, target: TableName, date_column: str, source: TableName) -> list[str]:
        """Return the columns of the target, created if missing. Raises `SchemaMismatch` if the source's differ."""
        columns = dict(self._tables.require(source).columns)
        self._tables.create_partitioned(target, columns, date_column)
        check_same_columns(self.describe(target), date_column, columns)
        return sorted(columns)

    def replaced_partitions(
        self, target: TableName, date_column: str, run: str, days: Collection[date]
    ) -> dict[date, ReplacedPartition]:
        if not days or self.describe(self._publications) is None:
            return {}
        span = enclosing_range(days)
        params = {"target": str(target), "run": run, "first": span.start, "last": span.through}
        statement = sql_of.replaced_partitions(self._tables.quoted(self._publications))
        rows = self._rows(statement, params, str(self._publications)).to_pylist()
        replaced = {row["day"]: ReplacedPartition(before=row["before"], published=row["published"]) for row in rows}
        return self._with_added_columns(target, date_column, {day: replaced[day] for day in days if day in replaced})

    def _with_added_columns(
        self, target: TableName, date_column: str, replaced: Mapping[date, ReplacedPartition]
    ) -> dict[date, ReplacedPartition]:
        """Write what was published as the target's present fingerprint where only columns were added since."""
        now = self.fingerprints(target, date_column, list(replaced))
        current = dict(replaced)
        changed_days = [
            day for day, partition in replaced.items() if now[day] not in (partition.published, partition.before)
        ]
        for columns, days in self._columns_before(target, date_column, changed_days):
            contents = self._contents(target, date_column, days, columns)
            for day in days:
                if contents[day] == replaced[day].published:
                    current[day] = replace(replaced[day], published=now[day])
        return current

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
        waiting = {
            day: partition for day, partition in replaced.items() if now[day] == partition.published != partition.before
        }
        if waiting:
            self.check_restorable(target, date_column, run, waiting)
            self._restore(target, date_column, run, waiting)
            now = self._contents(target, date_column, list(replaced), self._undo_columns(target, run))
        return frozenset(day for day in replaced if now[day] == replaced[day].before)

    def _undo_columns(self, target: TableName, run: str) -> list[str]:
        """Return the columns that the target had when the run first replaced rows; now, if it replaced none."""
        info = self.describe(self._undo_table(run, target)) or self._tables.require(target)
        return list(info.columns)

    def check_restorable(
        self, target: TableName, date_column: str, run: str, replaced: Mapping[date, ReplacedPartition]
    ) -> None:
        changed = [day for day, partition in replaced.items() if partition.before not in (ABSENT, partition.published)]
        if not changed:
            return
        undo_table = self._undo_table(run, target)
        contents: dict[date, str] = {}
        if self.describe(undo_table) is not None:
            contents = self._contents(undo_table, date_column, changed, self._undo_columns(target, run))
        if expired := [day for day in changed if contents.get(day) != replaced[day].before]:
            raise BackupMissing(
                f"what run {run} replaced on {len(expired)} date(s) is not kept any more (BACKFILL_UNDO_DAYS)",
                table=str(target),
                day=min(expired),
            )

    def _restore(
        self, target: TableName, date_column: str, run: str, replaced: Mapping[date, ReplacedPartition]
    ) -> None:
        undo_table = self._undo_table(run, target)
        statement = sql_of.restore(
            self._tables.partitions(target, date_column, self._tables.require(target).columns),
            None
            if self.describe(undo_table) is None
            else self._tables.partitions(undo_table, date_column, self._undo_columns(target, run)),
        )
        request = requested_dates({day: asdict(partition) for day, partition in replaced.items()})
        with translate_bigquery_errors("the restoration", table=str(target), needs=WRITE_PERMISSIONS):
            self._jobs.run_script(
                job_name("restore", uuid4().hex), statement, date_parameters(replaced) | {"wanted": request}
            )

    def list_kept(self, table: TableName, date_column: str, dates: DateRange) -> list[KeptRows]:
        return []

    def restore_kept(self, table: TableName, date_column: str, kept: KeptRows, *, current: str) -> bool:
        raise BackupMissing(f"the rows {kept.id} are not kept", table=str(table), day=kept.day)

    def delete_expired_undo(self) -> None:
        """Do nothing: undo tables have an expiration."""

    # -- bookkeeping tables ----------------------------------------------------------------------------------

    def _create_publications(self) -> None:
        if self._has_own_tables:
            return
        self._tables.create_own_dataset()
        definition = self._tables.define(self._publications, PUBLICATION_COLUMNS)
        definition.clustering_fields = ["target", "day"]  # no partitions: they might expire by the dataset's default
        self._tables.create(definition)
        with translate_bigquery_errors("looking at the record of publications", needs="bigquery.tables.get"):
            expires = self._tables.get(self._publications).expires
        if expires is not None:
            raise UserError(
                f"{self._publications} must not expire, but will at {expires:%Y-%m-%d} UTC: remove its expiration "
                f"and the default table expiration of the dataset {self._tables.own_dataset}"
            )
        self._has_own_tables = True

    def _undo_table(self, run: str, target: TableName) -> TableName:
        digest = hashlib.sha256(str(target).encode()).hexdigest()[:12]
        return self._tables.own(f"undo_{run.replace('-', '_')}_{digest}")

    def _create_undo_table(self, run: str, target: TableName, date_column: str) -> TableName:
        """Create the table for the rows that the run replaces, unless it exists, and return its name."""
        undo_table = self._undo_table(run, target)
        if self.describe(undo_table) is not None:
            return undo_table
        definition = self._tables.define(undo_table, self._tables.require(target).columns)
        # No partitions: those of past dates might expire at once, by the dataset's default.
        definition.clustering_fields = [date_column]
        definition.expires = utcnow() + timedelta(days=self._jobs.limits.undo_days)
        self._tables.create(definition)
        return undo_table


def check_partition_limit(table: TableName, days: Collection[date]) -> None:
    """Check that one job may write so many partitions. Raises `UserError`."""
    if len(days) > MAX_PARTITIONS_PER_JOB:
        raise UserError(
            f"{table}: {len(days)} dates at once; one job of BigQuery may touch {MAX_PARTITIONS_PER_JOB} partitions"
        )
