"""History rows: every date of every run, for a table in the warehouse and for `history --csv`."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator
from datetime import date
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from gated_backfill.common.config.settings import Settings
from gated_backfill.common.errors import UserError
from gated_backfill.common.history.figures import (
    DateOutcome,
    coverage_of,
    outcome_of,
    primary_of,
    used_fallback,
    wall_seconds,
)
from gated_backfill.common.ledger import DateRow, Ledger, Run, RunWithDates
from gated_backfill.common.model.arrow.types import arrow_schema
from gated_backfill.common.model.dates import ONE_DAY, DateRange
from gated_backfill.common.model.tables import ColumnTypes, TableName
from gated_backfill.common.process.clock import midnight
from gated_backfill.common.warehouse.protocol import Scan, Warehouse, missing_columns

RUN_ENDED_ON = "run_ended_on"  #: the partition column

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
    "target_matched": "INT64",
    "target_rows": "INT64",
    "lost_count": "INT64",
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
    # What the date's checkpoint proves: `ledger rebuild` makes it again from these.
    "checksum": "STRING",
    "inputs": "STRING",
    "input_parts": "STRING",
    RUN_ENDED_ON: "DATE",
}
_DATE_FIELDS = frozenset(DateRow.__dataclass_fields__)
NAMES_KEPT = 20  #: missing entities named in a row
ROWS_PER_BATCH = 1000


def rows_of(facts: Iterable[RunWithDates]) -> list[dict[str, Any]]:
    """One row for each run and date, with exactly the columns of `COLUMNS`."""
    return [_row(run_dates.run, row) for run_dates in facts for row in run_dates.dates]


def _row(run: Run, row: DateRow) -> dict[str, Any]:
    missing_count = max(row.expected - row.matched, 0) if row.expected is not None and row.matched is not None else None
    values: dict[str, Any] = {
        "run_state": run.state.value,
        "outcome": outcome_of(row).value,
        "state": row.state.value,
        "verdict": row.verdict.value if row.verdict else None,
        "coverage": coverage_of(row),
        "primary_source": primary_of(row),
        "fell_back": used_fallback(row),
        "forced": outcome_of(row) is DateOutcome.FORCED,
        "missing": ", ".join(row.missing[:NAMES_KEPT]) or None,
        "missing_count": missing_count,
        "run_created_at": run.created_at,
        "run_started_at": run.started_at,
        "run_finished_at": run.finished_at,
        "run_seconds": wall_seconds(run),
        "undone_at": row.undone_at or run.undone_at,
        "input_parts": None if row.input_parts is None else json.dumps(dict(row.input_parts), sort_keys=True),
        RUN_ENDED_ON: run.finished_at.date() if run.finished_at else None,
    }
    # The other columns are fields of the date or, if it has no field of that name, of the run.
    others = {name: getattr(row if name in _DATE_FIELDS else run, name) for name in COLUMNS.keys() - values.keys()}
    return values | others


def write_metadata(ledger: Ledger, warehouse: Warehouse, settings: Settings, run_id: str) -> str:
    """Write the rows of an ended run to the warehouse's history, and return a summary.

    The partition of the day on which the run ended is replaced, with the rows of all runs that ended on that day, so
    this may be repeated. Raises `UserError` while the run is active, and the errors of `Warehouse.load`.
    """
    run = ledger.runs.get_run(run_id)
    if run.finished_at is None:
        raise UserError(f"run {run_id} is still {run.state.value}: its history is written at its end")
    return write_day(ledger, warehouse, settings, run.finished_at.date())


def write_day(ledger: Ledger, warehouse: Warehouse, settings: Settings, day: date) -> str:
    """Write the history of the runs that ended on the day, and return a summary.

    Rows of runs that this ledger does not have are kept: they may be all that is left of a ledger that was lost.
    """
    table = settings.history_table
    if table is None:
        return "no history is written to the warehouse: BACKFILL_METADATA_TABLE is none"
    written: pa.Table | None = None
    rows = _read_rows(ledger, warehouse, table, day)
    # A run that ends during this load is written by another process. If that one is faster, this load removes its rows
    # again. So each process reads the ledger after its load, and loads again if the rows have changed: the last load
    # was always compared with the ledger.
    while written is None or not rows.equals(written):
        if not rows.num_rows:
            return f"{table}: no run ended on {day}"
        _add_new_columns(warehouse, table)
        warehouse.load(table, RUN_ENDED_ON, rows)
        written, rows = rows, _read_rows(ledger, warehouse, table, day)
    runs = pc.count_distinct(rows["run_id"]).as_py()
    return f"{table}: {rows.num_rows} row(s) of {runs} run(s) that ended on {day}"


def _add_new_columns(warehouse: Warehouse, table: TableName) -> None:
    """Add the columns that the history of an earlier version does not have."""
    info = warehouse.describe(table)
    if info is not None and missing_columns(info, COLUMNS):
        warehouse.add_columns(table, COLUMNS)


def _read_rows(ledger: Ledger, warehouse: Warehouse, table: TableName, day: date) -> pa.Table:
    """The rows of all runs that ended on the day, converted in batches, because they may be many."""
    schema = arrow_schema(COLUMNS)
    ended_runs = ledger.history.list_ended_runs(midnight(day), midnight(day + ONE_DAY))
    batches = [
        pa.RecordBatch.from_pylist([_row(run, row) for row in dates], schema)
        for run in ended_runs
        for dates in _in_batches(ledger.history.iter_dates(run.id))
    ]
    others = _read_rows_of_others(warehouse, table, day, {run.id for run in ended_runs})
    return pa.concat_tables([pa.Table.from_batches(batches, schema), others]).combine_chunks()


def _read_rows_of_others(warehouse: Warehouse, table: TableName, day: date, run_ids: Collection[str]) -> pa.Table:
    """The rows that the table has of other runs, in a fixed order."""
    rows = read_metadata(warehouse, table, (DateRange(start=day, through=day),))
    rows = rows.filter(pc.invert(pc.is_in(rows["run_id"], value_set=pa.array(sorted(run_ids), pa.string()))))
    return rows.sort_by([("run_id", "ascending"), ("day", "ascending")])


def read_metadata(warehouse: Warehouse, table: TableName, ended_on: tuple[DateRange, ...]) -> pa.Table:
    """Read the rows of the runs that ended on these days; no rows without the table.

    A column that the table of an earlier version lacks is null.
    """
    schema = arrow_schema(COLUMNS)
    info = warehouse.describe(table)
    if info is None:
        return schema.empty_table()
    names = {name: name for name in COLUMNS if name in info.columns}
    scan = Scan(table=table, date_column=RUN_ENDED_ON, dates=ended_on, columns=names)
    rows = warehouse.read(scan, once=True)
    columns = [
        rows[field.name].cast(field.type) if field.name in names else pa.nulls(rows.num_rows, field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _in_batches(dates: Iterator[DateRow]) -> Iterator[list[DateRow]]:
    while batch := list(islice(dates, ROWS_PER_BATCH)):
        yield batch
