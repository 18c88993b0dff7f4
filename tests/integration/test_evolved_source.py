"""A source that another program writes, and that got a column some day: its dates are the same alone and together."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gated_backfill.common.ledger import RunState
from gated_backfill.common.model.job import Batch, Source
from gated_backfill.common.model.registry import find_job
from gated_backfill.worker.dates import process as processing
from gated_backfill.worker.gate import gate
from tests.builders import FEB_23, FEB_24
from tests.lab import Lab

DAYS = [FEB_23, FEB_24]
NAMES = ["a", "b"]


def weighted(batch: Batch) -> pd.DataFrame:
    weights = batch.rows["weight"].fillna(1.0) if "weight" in batch.rows else 1.0
    return batch.rows.assign(value=batch.rows["value"] * weights, source="first")[["day", "name", "value", "source"]]


@pytest.mark.parametrize("dates_per_task", [1, 2])
def test_a_column_that_was_added_some_day_is_read_however_many_dates_share_a_task(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, dates_per_task: int
) -> None:
    source = Source(name="first", table="probe.first", date_column="day")
    job = replace(find_job("probe"), sources=(source,), process=weighted)
    for module in (processing, gate):
        monkeypatch.setattr(module, "find_job", lambda name: job)
    lab.probe_all(DAYS, NAMES)
    first = lab.home / "warehouse" / "probe" / "first"
    (first / "schema.json").unlink()  # as if another program had written the table
    rows = pq.ParquetFile(first / f"day={FEB_24}" / "part.parquet").read()
    pq.write_table(
        rows.append_column("weight", pa.array([10.0] * len(NAMES))), first / f"day={FEB_24}" / "part.parquet"
    )

    progress = lab.run(DAYS, "probe", dates_per_task=dates_per_task)

    assert progress.run.state is RunState.SUCCEEDED
    plain = sorted(row["value"] for row in lab.published("probe.probe", FEB_23, "day"))
    values = sorted(row["value"] for row in lab.published("probe.probe", FEB_24, "day"))
    assert values == [10 * value for value in plain]
