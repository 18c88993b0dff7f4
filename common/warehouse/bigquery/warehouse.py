"""A warehouse in BigQuery: one load job and one transaction per window, which replaces whole partitions.

Staged rows are loaded into a staging table with an expiration; one multi-statement transaction then replaces the
partitions and records the publication.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import date
from pathlib import Path
from uuid import uuid4

import pyarrow as pa
from google.api_core.exceptions import MethodNotAllowed, MethodNotImplemented, NotFound

from gated_backfill.common.errors import NotAllowed, UserError
from gated_backfill.common.model.publication import METADATA_TABLE
from gated_backfill.common.model.tables import ColumnTypes, TableName
from gated_backfill.common.storage.files import write_row_groups
from gated_backfill.common.warehouse.bigquery import transactions as sql_of
from gated_backfill.common.warehouse.bigquery.client import job_name, translate_bigquery_errors
from gated_backfill.common.warehouse.bigquery.parameters import check_partition_limit, date_parameters
from gated_backfill.common.warehouse.bigquery.publications import BigQueryPublications
from gated_backfill.common.warehouse.bigquery.schema import types_of
from gated_backfill.common.warehouse.bigquery.staging_tables import WRITE_PERMISSIONS
from gated_backfill.common.warehouse.protocol import check_dated, check_same_columns


class BigQueryWarehouse(BigQueryPublications):
    """Tables in BigQuery; see `Warehouse`. Safe for several processes and threads at once."""

    def __repr__(self) -> str:
        return f"BigQueryWarehouse({self._jobs.address.project!r})"

    def create_table(
        self, table: TableName, columns: ColumnTypes, date_column: str, cluster_by: Sequence[str] = ()
    ) -> bool:
        return self._tables.create_partitioned(table, columns, date_column, cluster_by)

    def refresh_schema(self, table: TableName) -> None:
        return None

    def add_columns(self, table: TableName, columns: ColumnTypes) -> None:
        self._tables.add_columns(table, columns)

    def create_own_tables(self) -> bool:
        is_new = not self._record.exists()
        self._record.create()
        return is_new

    def check_publishable(self, target: TableName) -> bool:
        info = self.describe(target)
        if info is None:
            return False  # the first publication creates it
        with translate_bigquery_errors("asking for permissions", table=str(target), needs="bigquery.tables.updateData"):
            needed = ["bigquery.tables.getData", "bigquery.tables.updateData"]
            try:
                answer = self._jobs.client.test_iam_permissions(
                    self._tables.reference(target), needed, **self._jobs.deadline
                )
            except (NotFound, MethodNotAllowed, MethodNotImplemented):
                if self._jobs.address.endpoint is None:
                    raise
                return False  # an emulator does not know permissions
        if missing := [name for name in needed if name not in answer.get("permissions", [])]:
            raise NotAllowed(f"nothing can be published to it: {', '.join(missing)} is missing", table=str(target))
        return True

    def find_slow_reads(self) -> str | None:
        with translate_bigquery_errors("checking the Storage Read API", needs="bigquery.jobs.create"):
            problem = self._jobs.find_storage_problem()
        return problem and f"rows are read by REST, as the Storage Read API is not usable: {problem}"

    def check_host(self, *, has_tables: bool, publishes: bool) -> None:
        self.now()

    def check_loadable(self, table: TableName, date_column: str, days: Collection[date] | None = None) -> None:
        self._check_not_own(table)
        check_partition_limit(table, days or ())

    def _check_not_own(self, table: TableName) -> None:
        if self._tables.is_own(table) and table.table != METADATA_TABLE:
            raise UserError(f"{table} is one of the tool's own tables: nothing can be loaded into it")

    def load(self, table: TableName, date_column: str, rows: pa.Table | pa.RecordBatchReader) -> list[date]:
        batches = check_dated(table, date_column, rows)
        self._check_not_own(table)
        columns = types_of(rows.schema)
        counted_batches = CountedBatches(batches, date_column)
        with tempfile.NamedTemporaryFile(suffix=".parquet") as file:
            write_row_groups(file.name, rows.schema, counted_batches)
            days = sorted(counted_batches.days)
            check_partition_limit(table, days)
            check_same_columns(self.describe(table), date_column, columns)
            self._tables.create_partitioned(table, columns, date_column)
            source = self._tables.own(f"load_{uuid4().hex}")
            self._tables.create_own_dataset()
            self._staged.load(source, rows.schema, Path(file.name), counted_batches.rows, str(table))
        statement = sql_of.load(self._tables.partitions(table, date_column, columns), self._tables.quoted(source))
        with translate_bigquery_errors("the load", table=str(table), needs=WRITE_PERMISSIONS):
            self._jobs.run_script(job_name("replace", source), statement, date_parameters(days))
        return days


class CountedBatches:
    """Batches, with the number of their rows and their dates once they have been read."""

    def __init__(self, batches: Iterable[pa.RecordBatch], date_column: str) -> None:
        self._batches = batches
        self._date_column = date_column
        self.rows = 0
        self.days: set[date] = set()

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        for batch in self._batches:
            self.rows += batch.num_rows
            self.days.update(batch[self._date_column].unique().to_pylist())  # pyright: ignore[reportArgumentType]
            yield batch
