"""Tables of staged rows: filled once, used for recounting and publishing, and dropped by their expiration."""

from __future__ import annotations

import tempfile
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from datetime import date, timedelta
from pathlib import Path

import pyarrow as pa

from gated_backfill.common.errors import SchemaMismatch
from gated_backfill.common.model.publication import StagedFile
from gated_backfill.common.model.tables import TableName
from gated_backfill.common.process.clock import utcnow
from gated_backfill.common.storage.files import write_row_groups
from gated_backfill.common.storage.staged_files import open_staged
from gated_backfill.common.warehouse.bigquery.client import BigQueryConnection, job_name, translate_bigquery_errors
from gated_backfill.common.warehouse.bigquery.schema import types_of
from gated_backfill.common.warehouse.bigquery.tables import CREATE_PERMISSIONS, BigQueryTables

STAGING_TABLE_LIFETIME = timedelta(days=1)  #: from its creation to its expiration
#: After loading, a table is reused without checking that it exists.
STAGING_TABLE_CACHE_SECONDS = STAGING_TABLE_LIFETIME.total_seconds() / 2
MAX_STAGING_TABLES = 8  #: that one process remembers
WRITE_PERMISSIONS = "bigquery.jobs.create, bigquery.tables.updateData"


class StagingTables:
    """Loads rows into tables with an expiration, and remembers the tables of staged files."""

    def __init__(self, jobs: BigQueryConnection, tables: BigQueryTables) -> None:
        self._jobs = jobs
        self._tables = tables
        self._loaded: OrderedDict[frozenset[str], tuple[TableName, float]] = OrderedDict()

    def find_tables(self, staged: Sequence[StagedFile]) -> dict[TableName, tuple[date, ...] | None]:
        """Return the tables with the staged rows, each with the dates to take from it; None for all that it holds.

        Files are loaded first. Raises like `load_files`.
        """
        tables: dict[TableName, tuple[date, ...] | None] = dict(staged_days(staged))
        if files := [rows for rows in staged if rows.table is None]:
            tables[self.load_files(files)] = None
        return tables

    def load_files(self, files: Sequence[StagedFile]) -> TableName:
        """Return a table with at least the rows of these files, loaded by one job. Raises `StagedFileLost`."""
        keys = frozenset(f"{staged.day} {staged.attempt} {staged.checksum}" for staged in files)
        for staged_keys, (table, since) in list(self._loaded.items()):  # other threads may add to it
            if keys <= staged_keys and time.monotonic() - since < STAGING_TABLE_CACHE_SECONDS:
                return table
        name = job_name("load", *sorted(keys))
        table = self._tables.own("staged_" + name.rpartition("-")[2])
        self._tables.create_own_dataset()
        remote = [staged.location for staged in files if staged.location.startswith("gs://")]
        with tempfile.NamedTemporaryFile(suffix=".parquet") as combined:
            schema, rows = _combine(files, combined.name)  # also of remote files, to check their checksums
            source = remote if len(remote) == len(files) else Path(combined.name)
            self.load(table, schema, source, rows, "staged files", name=name)
        self._loaded[keys] = (table, time.monotonic())
        while len(self._loaded) > MAX_STAGING_TABLES:
            self._loaded.popitem(last=False)
        return table

    def forget(self) -> None:
        """Forget the tables: one of them may have expired."""
        self._loaded.clear()

    def load(
        self,
        table: TableName,
        schema: pa.Schema,
        source: Path | Sequence[str],
        rows: int,
        label: str,
        *,
        name: str | None = None,
    ) -> None:
        """Load the rows into a staging table: of a Parquet file, or of those at gs:// URIs.

        `label` names them in errors.
        """
        definition = self._tables.define(table, types_of(schema))
        definition.expires = utcnow() + STAGING_TABLE_LIFETIME
        if not self._tables.create(definition):  # made by an earlier gate: this one needs it for longer
            with translate_bigquery_errors(
                "keeping the staging table", table=str(table), needs="bigquery.tables.update"
            ):
                self._jobs.client.update_table(definition, ["expires"], **self._jobs.deadline)

        def is_whole() -> bool:
            return self._tables.get(table).num_rows == rows

        with translate_bigquery_errors(
            "loading staged rows", table=label, needs=f"{WRITE_PERMISSIONS}, {CREATE_PERMISSIONS}"
        ):
            self._jobs.load_parquet(name or job_name("load", table), definition, source, is_whole=is_whole)


def staged_days(staged: Sequence[StagedFile]) -> dict[TableName, tuple[date, ...]]:
    """Return the staging tables that queries have filled, each with the dates whose rows are staged there."""
    days_by_table: dict[TableName, list[date]] = {}
    for rows in staged:
        if (table := rows.table) is not None:
            days_by_table.setdefault(table, []).append(rows.day)
    return {table: tuple(days) for table, days in days_by_table.items()}


def _combine(files: Sequence[StagedFile], path: str) -> tuple[pa.Schema, int]:
    """Write the rows of all files into one, a part at a time; return their columns and their number.

    Raises `StagedFileLost`, and `SchemaMismatch` for files with different columns.
    """
    with open_staged(files[0]) as first:
        schema = first.schema_arrow.remove_metadata()
    rows = 0

    def batches() -> Iterator[pa.RecordBatch]:
        nonlocal rows
        for staged in files:
            with open_staged(staged) as file:
                if not file.schema_arrow.equals(schema):
                    raise SchemaMismatch("the staged file has other columns than those before it", day=staged.day)
                rows += file.metadata.num_rows
                yield from file.iter_batches()

    write_row_groups(path, schema, batches())
    return schema, rows
