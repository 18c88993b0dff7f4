"""What was staged for a date: the columns, the number of rows, whether they are of its date, and still the same."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gated_backfill.common.errors import SchemaMismatch, StagedFileLost
from gated_backfill.common.ledger import DateRow
from gated_backfill.common.model.arrow.types import arrow_schema
from gated_backfill.common.model.job import Job
from gated_backfill.common.model.publication import StagedFile
from gated_backfill.common.storage.staging import Staging
from gated_backfill.common.warehouse.protocol import ABSENT, QueryStaging
from gated_backfill.common.warehouse.table_checks import target_types


@dataclass(frozen=True, kw_only=True)
class StagedContents:
    """What the file or the table itself says of the rows that were staged for a date."""

    file: StagedFile
    rows: int
    problem: str | None = None  #: they have other columns than the target, or another date


def read_staged_contents(
    dates: Iterable[DateRow], job: Job, staging: Staging, query_staging: QueryStaging | None
) -> tuple[dict[date, StagedContents], frozenset[date]]:
    """The contents of the staged rows by date, and the dates whose staged rows are lost or were changed.

    Raises like `Warehouse.query`.
    """
    staged = [row.staged_file() for row in dates]
    in_tables = [rows for rows in staged if rows.table is not None]
    contents_by_date = _read_tables(in_tables, job, query_staging) if query_staging is not None else {}
    for rows in staged:
        if rows.table is None:
            with suppress(StagedFileLost):
                contents_by_date[rows.day] = read_contents(rows, job, staging)
    return contents_by_date, frozenset(rows.day for rows in staged if rows.day not in contents_by_date)


def _read_tables(staged: Sequence[StagedFile], job: Job, query_staging: QueryStaging) -> dict[date, StagedContents]:
    """The contents of rows that were staged in tables, unless they are not those that the worker has counted."""
    contents: dict[date, str] = {}
    problem: str | None = None
    try:
        contents = query_staging.read_staged_contents(staged, target_types(job))
    except SchemaMismatch as exc:
        contents, problem = {rows.day: rows.checksum for rows in staged}, str(exc)
    return {
        rows.day: StagedContents(file=rows, rows=rows.rows, problem=problem)
        for rows in staged
        if contents.get(rows.day, ABSENT) == rows.checksum
    }


def read_contents(staged: StagedFile, job: Job, staging: Staging) -> StagedContents:
    """Read the columns of the file, and the dates of its rows, a part at a time. Raises `StagedFileLost`."""
    with staging.open(staged) as file:
        return StagedContents(file=staged, rows=file.metadata.num_rows, problem=_find_problem(file, job, staged.day))


def _find_problem(file: pq.ParquetFile, job: Job, day: date) -> str | None:
    schema = file.schema_arrow
    if not _nullable(schema).equals(arrow_schema(target_types(job))):
        return f"the columns are {', '.join(f'{field.name} {field.type}' for field in schema)}"
    own_date = pa.scalar(day, pa.date32())
    for batch in file.iter_batches(columns=[job.target.date_column], use_threads=False):
        if batch[0].null_count or not pc.all(pc.equal(batch[0], own_date), min_count=0).as_py():
            return "rows of another date"
    return None


def _nullable(schema: pa.Schema) -> pa.Schema:
    """The schema with nullable fields: DuckDB writes a column without nulls as one that must not be null."""
    return pa.schema([field.with_nullable(True) for field in schema])
