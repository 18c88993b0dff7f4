"""Rows in any order come back by date, in their order within a date, from runs of any size."""

from __future__ import annotations

import os
from datetime import date, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gated_backfill.common.storage.batch_spool import BatchSpool
from gated_backfill.common.warehouse.local import date_runs
from gated_backfill.common.warehouse.local.date_runs import DateRuns

FIRST = date(1969, 12, 30)  #: so that the days' numbers have both signs
SCHEMA = pa.schema([("day", pa.date32()), ("n", pa.int64())])


def batches_of(days: list[int], size: int) -> list[pa.RecordBatch]:
    rows = [(FIRST + timedelta(day), n) for n, day in enumerate(days)]
    parts = [rows[at : at + size] for at in range(0, len(rows), size)]
    return [
        pa.record_batch([[day for day, _ in part], [n for _, n in part]], schema=SCHEMA)  # pyright: ignore
        for part in parts
    ]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    days=st.lists(st.integers(0, 5), max_size=60),
    size=st.integers(1, 20),
    run_bytes=st.integers(1, 400),
    batch_bytes=st.integers(1, 100),
)
def test_rows_by_date(tmp_path: Path, days: list[int], size: int, run_bytes: int, batch_bytes: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(date_runs, "RUN_BYTES", run_bytes)
        patch.setattr(date_runs, "BATCH_BYTES", batch_bytes)
        with DateRuns(SCHEMA, "day", tmp_path) as runs:
            runs.add_all(batches_of(days, size))
            rows = {day: [n for batch in part for n in batch["n"].to_pylist()] for day, part in runs.rows_by_date()}
            counts = runs.row_counts
    expected = {
        FIRST + timedelta(day): [n for n, other in enumerate(days) if other == day] for day in sorted(set(days))
    }
    assert list(rows) == list(expected)
    assert rows == expected
    assert counts == {day: len(numbers) for day, numbers in expected.items()}


def test_batches_of_a_spool_are_read_in_any_order_and_leave_no_file(tmp_path: Path) -> None:
    batches = batches_of([1, 2, 3], 1)
    with BatchSpool(SCHEMA, tmp_path) as spool:
        spool.extend(batches)
        assert [spool.read(number).equals(batches[number]) for number in (2, 0, 1)] == [True] * 3
        assert spool.reader().read_all() == pa.Table.from_batches(batches)
        assert (len(spool), spool.rows) == (3, 3)
        assert os.listdir(tmp_path) == []  # noqa: PTH208
