"""Tables of other programs that a job cannot read or publish to are refused before anything starts, and no others."""

from __future__ import annotations

import shutil
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gated_backfill.common.errors import SchemaMismatch
from gated_backfill.common.ledger import RunState
from gated_backfill.common.model.job import Batch, Input, Job
from gated_backfill.common.model.publication import StagedFile
from gated_backfill.common.model.registry import find_job
from gated_backfill.common.model.tables import TableName
from gated_backfill.common.storage.staging import Staging
from gated_backfill.common.warehouse.protocol import ABSENT
from gated_backfill.producer.doctor.results import CheckLevel
from gated_backfill.producer.doctor.tables import check_tables
from gated_backfill.producer.planning.plan import PlanAction, make_plan
from gated_backfill.worker.dates import process as processing
from gated_backfill.worker.gate import gate
from tests.builders import FEB_23, FEB_24, publication_of
from tests.lab import Lab

DAYS = [FEB_23, FEB_24]
NAMES = ["a", "b"]
LONG_AGO = date(2022, 5, 1)
COLUMNS: dict[str, Any] = {
    "name": pa.array(["a"]),
    "day": pa.array([LONG_AGO]),
    "value": pa.array([1.0]),
    "source": pa.array(["x"]),
}


def write_target(lab: Lab, columns: dict[str, Any]) -> None:
    """Write a partition of the job's target as another program does: without schema.json."""
    file = lab.home / "warehouse" / "probe" / "probe" / f"day={LONG_AGO}" / "part.parquet"
    file.parent.mkdir(parents=True)
    pq.write_table(pa.table(columns), file)


def staged_rows(staging: Staging) -> StagedFile:
    rows = pa.table(COLUMNS | {"day": pa.array([FEB_23])})
    return staging.write("run-1", FEB_23, 1, rows)


def publish(lab: Lab, file: StagedFile) -> None:
    lab.context.warehouse.publish(
        TableName("probe", "probe"),
        "day",
        [file],
        fingerprints_when_staged={FEB_23: ABSENT},
        publication=publication_of("run-1/1"),
    )


def without(*names: str) -> dict[str, Any]:
    return {name: values for name, values in COLUMNS.items() if name not in names}


@pytest.mark.parametrize(
    ("columns", "difference"),
    [
        pytest.param(COLUMNS | {"value": pa.array(["1"])}, "column value is STRING, not FLOAT64", id="text"),
        pytest.param(COLUMNS | {"name": pa.array([1])}, "column name is INT64, not STRING", id="number"),
        pytest.param(COLUMNS | {"source": pa.array([["x"]])}, "column source is list<.*>, not STRING", id="list"),
        pytest.param(COLUMNS | {"by": pa.array(["x"])}, r"it has the column\(s\) by", id="more"),
        pytest.param(without("source"), r"it lacks the column\(s\) source", id="fewer"),
        pytest.param(
            without("name") | {"Name": pa.array(["a"])}, r"it lacks the column\(s\) name; it has .* Name", id="case"
        ),
        pytest.param(
            COLUMNS | {"Name": pa.array(["a"])}, "it has columns that differ only by case: name, Name", id="both cases"
        ),
        pytest.param(
            COLUMNS | {"day": pa.array(["2022-05-01"])}, "column day is STRING: a date column must be", id="date"
        ),
    ],
)
def test_a_target_that_no_row_can_be_published_to_is_refused_before_anything_starts(
    lab: Lab, staging: Staging, columns: dict[str, Any], difference: str
) -> None:
    lab.probe_all(DAYS, NAMES)
    file = staged_rows(staging)
    write_target(lab, columns)

    with pytest.raises(SchemaMismatch, match=rf"^probe\.probe: the target is not as job probe .*{difference}"):
        lab.plan(DAYS, "probe")
    with pytest.raises(SchemaMismatch):
        lab.run(DAYS, "probe")
    with pytest.raises(SchemaMismatch):  # so the plan refuses nothing that could be published
        publish(lab, file)
    for command in (["plan"], ["run", "--sequential"]):
        refused = lab.inside(*command, "--job", "probe", "--start-date", str(FEB_23), "--end-date", str(FEB_24))
        assert refused.returncode == 2
        assert len(refused.stderr.splitlines()) == 1
    report = lab.inside("doctor", "--job", "probe")
    assert report.returncode == 3
    assert [line for line in report.stdout.splitlines() if line.startswith("FAIL  probe: target")]
    assert lab.ledger.runs.list_latest_runs(1) == []


def test_a_target_is_checked_without_pre_flight_as_well(lab: Lab) -> None:
    lab.probe_all(DAYS, NAMES, first=["a"])
    write_target(lab, COLUMNS | {"by": pa.array(["x"])})
    assert {step.action for step in lab.plan(DAYS, "probe").steps} == {PlanAction.BLOCKED}

    with pytest.raises(SchemaMismatch, match=r"the target is not as job probe declares it: it has the column\(s\) by"):
        lab.run(DAYS, "probe", preflight=False)


@pytest.mark.parametrize(
    "columns",
    [
        pytest.param(COLUMNS, id="same"),
        pytest.param(dict(reversed(COLUMNS.items())), id="order"),
        pytest.param(COLUMNS | {"value": pa.array([1])}, id="whole numbers"),
        pytest.param(COLUMNS | {"value": pa.nulls(1)}, id="nulls"),
        pytest.param(COLUMNS | {"day": pa.array([LONG_AGO]).cast(pa.timestamp("ns"))}, id="pandas"),
        pytest.param(COLUMNS | {"name": pa.array(["a"]).dictionary_encode()}, id="dictionary"),
    ],
)
def test_a_target_that_rows_can_be_published_to_is_not_refused(
    lab: Lab, staging: Staging, columns: dict[str, Any]
) -> None:
    lab.probe_all(DAYS, NAMES)
    file = staged_rows(staging)
    write_target(lab, columns)
    publish(lab, file)
    shutil.rmtree(lab.home / "warehouse" / "probe" / "probe")
    write_target(lab, columns)

    assert lab.run(DAYS, "probe").run.state is RunState.SUCCEEDED


# -- tables to read ---------------------------------------------------------------------------------------------------


def mix_column(lab: Lab, table: str) -> None:
    """Give the table a column that is a number on one date and text on another, as other programs may."""
    folder: Path = lab.home / "warehouse" / "probe" / table
    (folder / "schema.json").unlink()
    values: list[Any] = [1, "x"]
    for day, value in zip(DAYS, values, strict=True):
        file = folder / f"day={day}" / "part.parquet"
        rows = pq.ParquetFile(file).read()
        pq.write_table(rows.append_column("weight", pa.array([value] * rows.num_rows)), file)


def copy_rows(batch: Batch) -> Any:
    return batch.rows.assign(source="x")[["day", "name", "value", "source"]]


def probe_job() -> Job:
    """The job `probe`, which reads all columns of its sources."""
    job = find_job("probe")
    return replace(job, sources=tuple(replace(source, columns=None) for source in job.sources), process=copy_rows)


MIXED = rf"column weight is INT64 in partition day={FEB_23} and STRING in partition day={FEB_24}"


@pytest.mark.parametrize("table", ["source", "input"])
def test_a_mixed_column_that_would_be_read_is_refused_before_anything_starts(lab: Lab, table: str) -> None:
    lab.probe_all(DAYS, NAMES)
    for day in DAYS:
        lab.probe("more", day, NAMES)
    job = find_job("probe")
    if table == "source":
        mix_column(lab, "first")
        job = probe_job()
    else:
        mix_column(lab, "more")
        job = replace(job, inputs=(Input(name="more", table="probe.more", date_column="day"),))

    with pytest.raises(SchemaMismatch, match=rf"^probe\.(first|more): {MIXED}$"):
        make_plan(lab.request([FEB_23], "probe"), job, lab.context.warehouse, lab.ledger)


def test_a_mixed_column_of_a_source_that_is_not_chosen_is_no_reason_to_refuse(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = probe_job()
    for module in (processing, gate):
        monkeypatch.setattr(module, "find_job", lambda name: job)
    monkeypatch.setattr("tests.lab.find_job", lambda name: job)
    lab.probe_all(DAYS, NAMES)
    for day in DAYS:
        lab.probe("second", day, NAMES)
    mix_column(lab, "second")

    assert lab.run(DAYS, "probe").run.state is RunState.SUCCEEDED


def test_the_doctor_names_a_mixed_column_that_would_be_read(lab: Lab) -> None:
    lab.probe_all(DAYS, NAMES)
    mix_column(lab, "first")

    results = check_tables(lab.settings, lab.context.warehouse, probe_job())

    failed = [result for result in results if result.level is CheckLevel.FAIL]
    assert [result.check for result in failed] == ["probe: source first"]
