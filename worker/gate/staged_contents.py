"""What a staged file holds: its columns, the number of its rows, and whether they are of its date."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gated_backfill.common.errors import StagedFileLost
from gated_backfill.common.ledger import DateRow
from gated_backfill.common.model.arrow.types import arrow_schema
from gated_backfill.common.model.job import Job
from gated_backfill.common.model.publication import StagedFile
from gated_backfill.common.storage.staging import Staging
from gated_backfill.common.warehouse.table_checks import target_types


@dataclass(frozen=True, kw_only=True)
class StagedContents:
    """What the file itself says of the rows that were staged for a date."""

    file: StagedFile
    rows: int
    problem: str | None = None  #: they have other columns than the target, or another date


def read_staged_contents(
    staged: Iterable[DateRow], job: Job, staging: Staging
) -> tuple[dict[date, StagedContents], frozenset[date]]:
    """The contents of the staged files by date, and the dates whose staged file is lost."""
    contents_by_date: dict[date, StagedContents] = {}
    lost_dates: set[date] = set()
    for row in staged:
        try:
            contents_by_date[row.day] = read_contents(row.staged_file(), job, staging)
        except StagedFileLost:
            lost_dates.add(row.day)
    return contents_by_date, frozenset(lost_dates)


def read_contents(staged: StagedFile, job: Job, staging: Staging) -> StagedContents:
    """Read the columns of the file, and the dates of its rows, a part at a time. Raises `StagedFileLost`."""
    with staging.open(staged) as file:
        return StagedContents(file=staged, rows=file.metadata.num_rows, problem=_find_problem(file, job, staged.day))


def _find_problem(file: pq.ParquetFile, job: Job, day: date) -> str | None:
    schema = file.schema_arrow
    if not schema.equals(arrow_schema(target_types(job))):
        return f"the columns are {', '.join(f'{field.name} {field.type}' for field in schema)}"
    own_date = pa.scalar(day, pa.date32())
    for batch in file.iter_batches(columns=[job.target.date_column], use_threads=False):
        if batch[0].null_count or not pc.all(pc.equal(batch[0], own_date), min_count=0).as_py():
            return "rows of another date"
    return None
