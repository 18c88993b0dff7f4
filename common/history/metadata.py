"""Every date of every run as a row: what analysts read in the warehouse, and what `history --csv` writes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import date
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from gated_backfill.common.config.settings import Settings
from gated_backfill.common.errors import UserError
from gated_backfill.common.history.figures import coverage_of, outcome_of, primary_of, used_fallback, wall_seconds
from gated_backfill.common.ledger import DateRow, Ledger, Run, RunWithDates
from gated_backfill.common.model.arrow_types import arrow_schema
from gated_backfill.common.model.dates import ONE_DAY
from gated_backfill.common.model.tables import ColumnTypes
from gated_backfill.common.process.clock import midnight
from gated_backfill.common.warehouse.protocol import Warehouse

RUN_ENDED_ON = "run_ended_on"  #: partitions the table

COLUMNS: ColumnTypes = {
    "run_id": "STRING",
    "job": "STRING",
    "job_version": "STRING",
    "run_state": "STRING",
    "day": "DATE",
    "outcome": "STRING",
    "state": "STRING",
    "verdict": "STRING",
    "reason": "STRING",
    "expected": "INT64",
    "matched": "INT64",
    "coverage": "FLOAT64",
    "source": "STRING",
    "source_reason": "STRING",
    "primary_source": "STRING",
    "fell_back": "BOOL",
    "forced": "BOOL",
    "missing": "STRING",
    "missing_count": "INT64",
    "rows": "INT64",
    "attempt": "INT64",
    "seconds": "FLOAT64",
    "error_kind": "STRING",
    "error": "STRING",
    "started_at": "TIMESTAMP",
    "ended_at": "TIMESTAMP",
    "requested": "STRING",
    "requested_by": "STRING",
    "run_created_at": "TIMESTAMP",
    "run_started_at": "TIMESTAMP",
    "run_finished_at": "TIMESTAMP",
    "run_seconds": "FLOAT64",
    "undone_at": "TIMESTAMP",
    RUN_ENDED_ON: "DATE",
}
NAMES_KEPT = 20  #: of missing entities
ROWS_A_BATCH = 1000


def rows_of(facts: Iterable[RunWithDates]) -> list[dict[str, Any]]:
    """One row for each run and date, with exactly the columns of `COLUMNS`."""
    return [_row(one.run, row) for one in facts for row in one.dates]


def _row(run: Run, row: DateRow) -> dict[str, Any]:
    outcome = outcome_of(row).value
    lacking = max(row.expected - row.matched, 0) if row.expected is not None and row.matched is not None else None
    return {
        "run_id": run.id,
        "job": run.job,
        "job_version": run.job_version,
        "run_state": run.state.value,
        "day": row.day,
        "outcome": outcome,
        "state": row.state.value,
        "verdict": row.verdict.value if row.verdict else None,
        "reason": row.reason,
        "expected": row.expected,
        "matched": row.matched,
        "coverage": coverage_of(row),
        "source": row.source,
        "source_reason": row.source_reason,
        "primary_source": primary_of(row),
        "fell_back": used_fallback(row),
        "forced": outcome == "forced",
        "missing": ", ".join(row.missing[:NAMES_KEPT]) or None,
        "missing_count": lacking,
        "rows": row.rows,
        "attempt": row.attempt,
        "seconds": row.seconds,
        "error_kind": row.error_kind,
        "error": row.error,
        "started_at": row.started_at,
        "ended_at": row.ended_at,
        "requested": run.requested,
        "requested_by": run.requested_by,
        "run_created_at": run.created_at,
        "run_started_at": run.started_at,
        "run_finished_at": run.finished_at,
        "run_seconds": wall_seconds(run),
        "undone_at": run.undone_at,
        RUN_ENDED_ON: run.finished_at.date() if run.finished_at else None,
    }


def write_metadata(ledger: Ledger, warehouse: Warehouse, settings: Settings, run_id: str) -> str:
    """Write the rows of an ended run to the warehouse's history; returns the outcome in words.

    The partition of the day on which the run ended is written anew, from the ledger, with all runs that ended on that
    day: repeating this is harmless. Raises `UserError` while the run goes on, and what `Warehouse.load` raises.
    """
    run = ledger.runs.get_run(run_id)
    if run.finished_at is None:
        raise UserError(f"run {run_id} is still {run.state.value}: its history is written at its end")
    return write_day(ledger, warehouse, settings, run.finished_at.date())


def write_day(ledger: Ledger, warehouse: Warehouse, settings: Settings, day: date) -> str:
    """Write the history of the runs that ended on the day; returns the outcome in words."""
    table = settings.history_table
    if table is None:
        return "no history is written to the warehouse: BACKFILL_METADATA_TABLE is none"
    written: pa.Table | None = None
    rows = _ended_on(ledger, day)
    # A run that ends while this loads is written by its own writer, but that one may be faster, and then this load
    # would take its rows away again. So each writer looks again once its load is done, and repeats it if the ledger
    # has changed: whoever loads last has compared what it loaded with the ledger after that.
    while written is None or not rows.equals(written):
        if not rows.num_rows:
            return f"{table}: no run ended on {day}"
        warehouse.load(table, RUN_ENDED_ON, rows)
        written, rows = rows, _ended_on(ledger, day)
    runs = pc.count_distinct(rows["run_id"]).as_py()
    return f"{table}: {rows.num_rows} row(s) of {runs} run(s) that ended on {day}"


def _ended_on(ledger: Ledger, day: date) -> pa.Table:
    """A row for each date of every run that ended on the day: made of a few at a time, for they may be many."""
    schema = arrow_schema(COLUMNS)
    batches = [
        pa.RecordBatch.from_pylist([_row(run, row) for row in some], schema)
        for run in ledger.history.list_ended_runs(midnight(day), midnight(day + ONE_DAY))
        for some in _in_batches(ledger.history.iter_dates(run.id))
    ]
    return pa.Table.from_batches(batches, schema)


def _in_batches(dates: Iterator[DateRow]) -> Iterator[list[DateRow]]:
    while some := list(islice(dates, ROWS_A_BATCH)):
        yield some
