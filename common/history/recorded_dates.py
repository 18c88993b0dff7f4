"""The checkpointed dates that the warehouse's table of runs records, for a ledger that was lost."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from gated_backfill.common.history.metadata import RUN_ENDED_ON, read_metadata
from gated_backfill.common.ledger.states import DateState
from gated_backfill.common.model.coverage import Verdict
from gated_backfill.common.model.dates import chunk_dates, consecutive_ranges
from gated_backfill.common.model.tables import TableName
from gated_backfill.common.warehouse.protocol import Warehouse

PARTITIONS_AT_ONCE = 100  #: days on which runs ended; bounds the memory
NEEDED = ("run_id", "job", "day", "state", "verdict", "expected", "matched", "ended_at", "undone_at")


@dataclass(frozen=True, kw_only=True)
class RecordedDate:
    """A date that a run has checkpointed, as it was recorded when the run ended. None: it was not recorded."""

    run_id: str
    day: date
    attempt: int | None
    job_version: str | None
    verdict: Verdict
    reason: str
    expected: int
    matched: int
    rows: int
    source: str | None
    checksum: str | None
    inputs: str | None
    input_parts: Mapping[str, str] | None
    ended_at: datetime


def read_recorded_dates(warehouse: Warehouse, table: TableName, job: str) -> list[RecordedDate]:
    """Read the dates of the job that runs have checkpointed and that were not undone, those checkpointed last first.

    `table` is the table of runs; without it, nothing is recorded. Raises like `Warehouse.read`.
    """
    info = warehouse.describe(table)
    if info is None:
        return []
    info.check_columns(RUN_ENDED_ON, NEEDED)
    recorded: list[RecordedDate] = []
    for days in chunk_dates(warehouse.list_dates(table, RUN_ENDED_ON), PARTITIONS_AT_ONCE):
        recorded += _checkpointed(read_metadata(warehouse, table, tuple(consecutive_ranges(days))), job)
    return sorted(recorded, key=lambda recorded_date: recorded_date.ended_at, reverse=True)


def _checkpointed(rows: pa.Table, job: str) -> Iterator[RecordedDate]:
    is_checkpointed = pc.field("state") == DateState.CHECKPOINTED.value
    of_job = rows.filter((pc.field("job") == job) & is_checkpointed & pc.field("undone_at").is_null())
    return map(_recorded_date, of_job.to_pylist())


def _recorded_date(row: Mapping[str, Any]) -> RecordedDate:
    parts = row["input_parts"]
    return RecordedDate(
        run_id=row["run_id"],
        day=row["day"],
        attempt=row["attempt"],
        job_version=row["job_version"],
        verdict=Verdict(row["verdict"]),
        reason=row["reason"] or "",
        expected=row["expected"] or 0,
        matched=row["matched"] or 0,
        rows=row["rows"] or 0,
        source=row["source"],
        checksum=row["checksum"],
        inputs=row["inputs"],
        input_parts=None if parts is None else json.loads(parts),
        ended_at=row["ended_at"],
    )
