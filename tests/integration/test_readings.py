"""What a job declares about entities, rows, sums, required columns and derived sources, in whole runs."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from math import inf, nan
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gated_backfill.common.audit.audit import audit_dates
from gated_backfill.common.audit.findings import AuditFinding
from gated_backfill.common.errors import SchemaMismatch
from gated_backfill.common.ledger import DateState, RunState
from gated_backfill.common.model.arrow.types import ARROW_TYPES
from gated_backfill.common.model.dates import DateRange
from gated_backfill.common.model.entities import EntityColumns, PresenceRule
from gated_backfill.common.model.registry import find_job
from gated_backfill.common.model.tables import TableName
from gated_backfill.common.warehouse.protocol import EntityScan, Scan
from gated_backfill.producer.planning.plan import PlanAction
from gated_backfill.producer.runs.undo import plan_undo, undo_run
from tests.builders import DAYS, FEB_23, FEB_24, FEB_25, files_below
from tests.emulator import Emulator
from tests.lab import PACKAGES, Lab, players

PACKAGE_PATHS = str(PACKAGES / "reading_jobs")
ALL_DAYS = (DateRange(start=DAYS[0], through=DAYS[-1]),)
VALUES = {"day": "DATE", "name": "STRING", "value": "FLOAT64"}
QUARTERS = {**VALUES, "quarter": "INT64"}


@pytest.fixture(autouse=True)
def _reading_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(PACKAGES / "reading_jobs"))


def load(lab: Lab, table: str, rows: Sequence[Mapping[str, Any]], types: Mapping[str, Any] = VALUES) -> None:
    schema = pa.schema([(name, ARROW_TYPES[kind]) for name, kind in types.items()])
    lab.context.warehouse.load(
        TableName("reading", table), "day", pa.Table.from_pylist([dict(row) for row in rows], schema=schema)
    )


def values(names: Sequence[str], *days: date, value: float | None = 1.0) -> list[dict[str, Any]]:
    return [{"day": day, "name": name, "value": value} for day in days for name in names]


def command(lab: Lab, *arguments: str) -> subprocess.CompletedProcess[str]:
    return lab.inside(*arguments, PYTHONPATH=PACKAGE_PATHS)


def published(lab: Lab, job: str, day: date) -> list[dict[str, Any]]:
    return lab.published(f"reading.{job}", day, "day")


@pytest.mark.parametrize("dates_per_task", [1, 3])
def test_a_derived_date_is_computed_from_its_own_history(any_lab: Lab, dates_per_task: int) -> None:
    load(any_lab, "expected", values(["ann"], *DAYS))
    load(any_lab, "first", [{"day": day, "name": "ann", "value": 10.0**n} for n, day in enumerate(DAYS)])

    any_lab.run(DAYS, "rolling", dates_per_task=dates_per_task)

    means = [published(any_lab, "rolling", day)[0]["value"] for day in DAYS]
    assert means == [1.0, 5.5, 37.0]


def test_a_derive_function_that_takes_several_dates_gets_them_together(lab: Lab) -> None:
    load(lab, "expected", values(["ann"], *DAYS))
    load(lab, "first", [{"day": day, "name": "ann", "value": 10.0**n} for n, day in enumerate(DAYS)])

    lab.run(DAYS, "rolling_together", dates_per_task=3)

    assert {published(lab, "rolling_together", day)[0]["value"] for day in DAYS} == {37.0}


def test_missing_entities_are_filled_from_a_derived_source_with_python_dates(any_lab: Lab) -> None:
    names = players(20)
    load(any_lab, "expected", values(names, FEB_23))
    load(any_lab, "first", values(names[:2], FEB_23, value=1.0))
    load(any_lab, "second", values(names, FEB_23, value=2.0))

    progress = any_lab.run([FEB_23], "filled_by_derived")

    assert any_lab.outcome(FEB_23, progress).state is DateState.CHECKPOINTED
    rows = published(any_lab, "filled_by_derived", FEB_23)
    assert sorted(row["value"] for row in rows) == [1.0] * 2 + [2.0] * 18


@pytest.mark.parametrize(
    ("job", "kind", "ids"),
    [
        pytest.param("filled_numbers", "INT64", [7, 11, -3, 0], id="numbers"),
        pytest.param("filled_dates", "DATE", [date(2024, 3, n) for n in range(1, 5)], id="dates"),
    ],
)
@pytest.mark.parametrize("dates_per_task", [1, 3])
def test_an_entity_is_filled_from_a_source_that_writes_it_as_text(
    any_lab: Lab, job: str, kind: str, ids: list[Any], dates_per_task: int
) -> None:
    types = {"day": "DATE", "id": kind, "value": "FLOAT64"}

    def rows(entities: list[Any], value: float) -> list[dict[str, Any]]:
        return [{"day": day, "id": entity, "value": value} for day in DAYS for entity in entities]

    load(any_lab, f"{job}_expected", rows(ids, 0.0), types)
    load(any_lab, f"{job}_first", rows(ids[:1], 1.0), types)
    load(any_lab, f"{job}_second", rows([str(entity) for entity in ids], 2.0), types | {"id": "STRING"})

    progress = any_lab.run(DAYS, job, preflight=True, dates_per_task=dates_per_task)

    assert progress.run.state is RunState.SUCCEEDED
    for day in DAYS:
        values_by_id = {row["id"]: row["value"] for row in published(any_lab, job, day)}
        assert values_by_id == {entity: 1.0 if entity == ids[0] else 2.0 for entity in ids}


@pytest.mark.parametrize("dates_per_task", [1, 3])
def test_every_entity_is_filled_where_the_primary_has_no_table(any_lab: Lab, dates_per_task: int) -> None:
    load(any_lab, "expected", values(["ann"], *DAYS))
    load(any_lab, "second", values(["ann"], *DAYS, value=2.0))

    progress = any_lab.run(DAYS, "filled_by_derived", preflight=True, dates_per_task=dates_per_task)

    assert progress.run.state is RunState.SUCCEEDED
    assert [published(any_lab, "filled_by_derived", day)[0]["value"] for day in DAYS] == [2.0, 2.0, 2.0]


@pytest.mark.parametrize("job", ["derives_none", "derives_no_date"])
def test_a_derive_function_that_returns_no_dated_rows_fails_its_dates(lab: Lab, job: str) -> None:
    load(lab, "expected", values(["ann"], *DAYS))
    load(lab, "first", values(["ann"], *DAYS))

    progress = lab.run(DAYS, job, dates_per_task=3)

    row = lab.outcome(FEB_23, progress)
    assert (row.state, row.error_kind) == (DateState.FAILED, "ProcessFailed")
    assert "derive of source derived returned" in str(row.error)


def quarters(names: Sequence[str], count: int, *, value: float = 1.0) -> list[dict[str, Any]]:
    return [{**row, "quarter": n} for row in values(names, FEB_23, value=value) for n in range(count)]


@pytest.mark.parametrize("job", ["quarters", "filled_quarters"])
def test_a_source_with_one_of_four_rows_an_entity_is_incomplete(any_lab: Lab, job: str) -> None:
    names = players(20)
    load(any_lab, "expected_quarters", quarters(names, 4), QUARTERS)
    load(any_lab, "first_quarters", quarters(names, 1, value=5.0), QUARTERS)
    load(any_lab, "second_quarters", quarters(names, 4), QUARTERS)

    progress = any_lab.run([FEB_23], job, preflight=True)

    row = any_lab.outcome(FEB_23, progress)
    assert (row.state, row.found) == (DateState.CHECKPOINTED, {"first": 0, "second": 20})
    rows = published(any_lab, job, FEB_23)
    assert len(rows) == 80
    assert {published_row["value"] for published_row in rows} == {1.0}  # no part of an entity is mixed


def test_the_gate_and_the_audit_see_rows_that_are_missing(any_lab: Lab) -> None:
    names = players(20)
    load(any_lab, "expected_quarters", quarters(names, 4), QUARTERS)
    load(any_lab, "first_quarters", quarters(names, 1), QUARTERS)

    progress = any_lab.run([FEB_23], "quarters")

    row = any_lab.outcome(FEB_23, progress)
    assert (row.state, row.matched, row.missing) == (DateState.BLOCKED, 0, tuple(names))

    load(any_lab, "quarters", quarters(names, 3), QUARTERS)  # as if somebody had published three of four
    (audited,) = audit_dates(find_job("quarters"), [FEB_23], any_lab.context.warehouse, any_lab.ledger).dates
    assert (audited.finding, audited.observed.matched) == (AuditFinding.INCOMPLETE, 0)


ROUTES = {"day": "DATE", "origin": "STRING", "dest": "STRING", "seats": "INT64"}
FLOWN = {"day": "DATE", "a": "STRING", "b": "STRING", "seats": "INT64"}


def test_entities_of_two_columns_with_a_sum_are_measured_in_differently_named_columns(any_lab: Lab) -> None:
    pairs = [("EWR", "LAX"), ("EWR|LAX", ""), ("JFK", "SFO"), ("LGA", "ORD")]
    load(any_lab, "planned", [{"day": FEB_23, "origin": a, "dest": b, "seats": 100} for a, b in pairs], ROUTES)
    load(
        any_lab, "flown", [{"day": FEB_23, "a": a, "b": b, "seats": 80 if a == "LGA" else 95} for a, b in pairs], FLOWN
    )

    progress = any_lab.run([FEB_23], "routes")

    row = any_lab.outcome(FEB_23, progress)
    assert (row.state, row.matched, row.missing) == (DateState.BLOCKED, 3, ("LGA|ORD",))
    assert row.unexpected == ()


def test_sums_of_the_same_values_in_another_order_agree(any_lab: Lab) -> None:
    """0.1 + 0.2 - 0.3 is not 0.3 - 0.2 - 0.1 in floats."""
    amounts = {"bookings": [0.1, 0.2, -0.3], "same": [0.3, -0.2, -0.1], "other": [0.3, -0.2, -0.2]}
    reordered = {"bookings": [-0.3, 0.1, 0.2], "same": [-0.1, 0.3, -0.2], "other": [0.1, 0.2, -0.3]}
    for table, amounts_by_name in (("expected", amounts), ("first", reordered)):
        rows = [{"day": FEB_23, "name": n, "value": v} for n, values in amounts_by_name.items() for v in values]
        load(any_lab, table, rows)
    rule = PresenceRule(rows="equal", tolerances=(0.0,))
    columns = EntityColumns(date="day", entity=("name",), sums=("value",), rule=rule)
    scans = [
        EntityScan(table=TableName("reading", name), columns=columns, dates=ALL_DAYS) for name in ("expected", "first")
    ]

    counts = any_lab.context.warehouse.count_entities(scans[0], {"first": scans[1]}, [("first",)])

    assert (counts.expected, counts.present["first",]) == ({FEB_23: 3}, {FEB_23: 2})


def test_placeholder_rows_do_not_count_and_the_fallback_is_taken(any_lab: Lab) -> None:
    names = players(20)
    load(any_lab, "expected", values(names, FEB_23))
    load(any_lab, "first", values(names, FEB_23, value=None))
    load(any_lab, "second", values(names, FEB_23, value=5.0))

    progress = any_lab.run([FEB_23], "with_payload", preflight=True)

    assert any_lab.outcome(FEB_23, progress).source == "second"
    assert {row["value"] for row in published(any_lab, "with_payload", FEB_23)} == {5.0}


@pytest.mark.parametrize("dates_per_task", [1, 2])
def test_rows_without_readable_entities_block_their_own_date_only(any_lab: Lab, dates_per_task: int) -> None:
    types = {"day": "DATE", "id": "FLOAT64", "value": "FLOAT64"}
    rows = [{"day": day, "id": number, "value": 1.0} for day in (FEB_23, FEB_24) for number in range(7, 11)]
    for role in ("expected", "first", "second"):
        load(any_lab, f"halved_{role}", rows, types)

    progress = any_lab.run([FEB_23, FEB_24], "halved", dates_per_task=dates_per_task)

    outcome = any_lab.outcome(FEB_23, progress)
    assert outcome.state is DateState.BLOCKED
    assert outcome.reason is not None
    assert outcome.reason.startswith(
        "output schema: column id holds 7.5 on 2023-02-23: a FLOAT64 names an entity only if"
    )
    assert any_lab.outcome(FEB_24, progress).state is DateState.CHECKPOINTED


@pytest.mark.parametrize(
    ("job", "source", "count", "reason"),
    [
        pytest.param("with_payload", "first", 19, "primary at 95.0 %", id="accept_ratio"),
        pytest.param("best_source", "second", 20, "primary below 100% at 95.0 %", id="fallback_below"),
    ],
)
def test_a_primary_with_gaps_gives_way_to_a_complete_fallback_only_where_the_job_says_so(
    any_lab: Lab, job: str, source: str, count: int, reason: str
) -> None:
    names = players(20)
    load(any_lab, "expected", values(names, FEB_23))
    load(any_lab, "first", values(names[:19], FEB_23))
    load(any_lab, "second", values(names, FEB_23))

    (step,) = any_lab.plan([FEB_23], job).steps
    progress = any_lab.run([FEB_23], job, preflight=True)

    row = any_lab.outcome(FEB_23, progress)
    assert (row.state, row.source, row.matched) == (DateState.CHECKPOINTED, source, count)
    assert (step.action, step.source, step.supplied, step.reason) == (PlanAction.BUILD, source, count, reason)
    assert len(published(any_lab, job, FEB_23)) == count


def test_names_that_only_look_alike_are_said_to(lab: Lab) -> None:
    load(lab, "expected", values(["Muñoz"], FEB_23))
    load(lab, "first", values(["Mun\u0303oz"], FEB_23))

    progress = lab.run([FEB_23], "with_payload")

    assert "'Mu\\xf1oz' is missing and 'Mun\\u0303oz' is unexpected: they only look alike" in str(
        lab.outcome(FEB_23, progress).reason
    )


@pytest.mark.parametrize(
    ("job", "exit_code", "says"),
    [
        pytest.param("rolling", 0, "3 date(s) have the same rows alone and together", id="independent"),
        pytest.param("rolling_together", 3, "differs in value", id="dependent"),
    ],
)
def test_the_doctor_finds_rows_that_depend_on_the_other_dates(lab: Lab, job: str, exit_code: int, says: str) -> None:
    load(lab, "expected", values(["ann"], *DAYS))
    load(lab, "first", [{"day": day, "name": "ann", "value": 10.0**n} for n, day in enumerate(DAYS)])
    before = files_below(lab.home)

    report = lab.inside("doctor", "--job", job, "--sample", "3", "--json")

    (check,) = [result for result in json.loads(report.stdout)["checks"] if result["check"] == f"{job}: sample"]
    assert (report.returncode, check["level"]) == (exit_code, "FAIL" if exit_code else "OK")
    assert says in check["found"]
    assert files_below(lab.home).keys() - before.keys() == set()


FLOATS = {"day": "DATE", "name": "STRING", "any_value": "FLOAT64", "positive": "FLOAT64", "filled": "FLOAT64"}


def test_nan_is_published_as_null_and_a_bound_takes_finite_numbers_only(any_lab: Lab) -> None:
    names = ["ann", "ben", "cid"]
    load(any_lab, "expected", values(names, *DAYS))
    plain, special = [1.0, 2.0, 3.0], [nan, inf, -inf]
    columns_by_date = {
        FEB_23: (special, [nan, 0.0, 1.5], plain),
        FEB_24: (plain, [1.0, 2.0, inf], plain),
        FEB_25: (plain, plain, [1.0, 2.0, nan]),
    }
    rows = [
        {"day": day, "name": name, "any_value": any_value, "positive": positive, "filled": filled}
        for day, columns in columns_by_date.items()
        for name, any_value, positive, filled in zip(names, *columns, strict=True)
    ]
    load(any_lab, "first_floats", rows, FLOATS)

    progress = any_lab.run(DAYS, "floats", preflight=True)

    outcomes = [any_lab.outcome(day, progress) for day in DAYS]
    assert [(row.state, row.reason) for row in outcomes] == [
        (DateState.CHECKPOINTED, "3 of 3 expected entities (100.0 %)"),
        (DateState.BLOCKED, "output schema: positive fails is_finite in 1 row(s), e.g. inf"),
        (DateState.BLOCKED, "output schema: filled fails not_nullable in 1 row(s), e.g. <NA>"),
    ]
    rows_by_name = {row["name"]: (row["any_value"], row["positive"]) for row in published(any_lab, "floats", FEB_23)}
    assert rows_by_name == {"ann": (None, None), "ben": (inf, 0.0), "cid": (-inf, 1.5)}
    assert published(any_lab, "floats", FEB_24) == published(any_lab, "floats", FEB_25) == []
    (audited,) = audit_dates(find_job("floats"), [FEB_23], any_lab.context.warehouse, any_lab.ledger).dates
    assert audited.finding is AuditFinding.COMPLETE


# -- tables that other programs wrote -------------------------------------------------------------------------------


def folder_of(lab: Lab, table: str) -> Path:
    return lab.home / "warehouse" / "reading" / table


@pytest.mark.parametrize("table", ["expected", "first"])
@pytest.mark.parametrize(
    "name",
    ["day={day} 00%3A00%3A00", "day={compact}", "day=__HIVE_DEFAULT_PARTITION__", "other={day}", "{day}.parquet"],
)
def test_a_plan_refuses_a_table_with_rows_that_no_reader_would_see(lab: Lab, table: str, name: str) -> None:
    load(lab, "expected", values(["ann"], FEB_23))
    load(lab, "first", values(["ann"], FEB_23))
    partition = folder_of(lab, table) / f"day={FEB_23}"
    odd = name.format(day=FEB_23, compact=FEB_23.strftime("%Y%m%d"))
    if odd.endswith(".parquet"):
        (partition / "part.parquet").rename(partition.with_name(odd))
    else:
        partition.rename(partition.with_name(odd))

    plan = command(lab, "plan", "--job", "rolling", "--dates", str(FEB_23))

    assert (plan.returncode, plan.stdout, len(plan.stderr.splitlines())) == (2, "", 1)
    assert f"reading.{table}: holds {odd}, which is no partition of a date" in plan.stderr


def write_foreign(lab: Lab, table: str, day: date, /, **columns: Any) -> None:
    """Write one partition with nothing of ours."""
    file = folder_of(lab, table) / f"day={day}" / "part.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), file)


def midnights(*days: date) -> list[datetime]:
    return [datetime(day.year, day.month, day.day) for day in days]  # noqa: DTZ001 - a DATETIME has no zone


def test_the_audit_counts_rows_of_a_target_whose_dates_are_written_as_times(lab: Lab) -> None:
    load(lab, "expected", values(["ann", "ben"], FEB_23))
    load(lab, "first", values(["ann", "ben"], FEB_23))
    lab.run([FEB_23], "with_payload")
    (folder_of(lab, "with_payload") / "schema.json").unlink()
    columns = {"day": pa.array(midnights(*[FEB_23] * 3), pa.timestamp("ns")), "value": pa.array([1.0] * 3)}
    write_foreign(lab, "with_payload", FEB_23, name=pa.array(["ann", "ben", "ben"]), **columns)

    (audited,) = audit_dates(find_job("with_payload"), [FEB_23], lab.context.warehouse, lab.ledger).dates

    assert (audited.observed.rows, audited.observed.duplicates, audited.observed.matched) == (3, 1, 2)
    assert audited.finding is not AuditFinding.MISSING


@pytest.mark.parametrize("dates_per_task", [1, 3])
def test_process_gets_the_declared_integers_however_many_dates_share_a_task(lab: Lab, dates_per_task: int) -> None:
    load(lab, "expected", values(["ann", "ben"], *DAYS))
    names = pa.array(["ann", "ben"])
    for day, numbers in zip(DAYS, ([1, 2], [5.0, None], [3, None]), strict=True):  # pandas writes such floats
        write_foreign(lab, "first", day, day=pa.array([day, day]), name=names, number=pa.array(numbers))

    progress = lab.run(DAYS, "numbers", preflight=True, dates_per_task=dates_per_task)

    assert progress.run.state is RunState.SUCCEEDED
    rows = [row for day in DAYS for row in published(lab, "numbers", day)]
    assert [row["number"] for row in rows] == [1, 2, 5, None, 3, None]
    assert {row["type"] for row in rows} == {"Int64"}


def test_a_bigquery_table_that_no_longer_has_the_declared_types_is_not_read(bigquery_lab: Lab) -> None:
    load(bigquery_lab, "changed", values(["ann"], FEB_23))
    scan = Scan(table=TableName("reading", "changed"), date_column="day", dates=ALL_DAYS, types={"value": "INT64"})

    with pytest.raises(SchemaMismatch, match=r"reading.changed: column value is FLOAT64, not INT64"):
        bigquery_lab.context.warehouse.read(scan)


@pytest.mark.parametrize("kind", ["DATETIME", "TIMESTAMP"])
def test_a_bigquery_target_whose_dates_are_times_is_refused(bigquery_lab: Lab, emulator: Emulator, kind: str) -> None:
    lab = bigquery_lab
    load(lab, "expected", values(["ann"], FEB_23))
    load(lab, "first", values(["ann"], FEB_23))
    emulator.run(f"CREATE TABLE reading.with_payload (day {kind}, name STRING, value FLOAT64)")

    for arguments in (["coverage"], ["plan"]):
        refused = command(lab, *arguments, "--job", "with_payload", "--dates", str(FEB_23))

        assert (refused.returncode, refused.stdout, len(refused.stderr.splitlines())) == (2, "", 1)
        assert f"column day is {'a ' if kind == 'TIMESTAMP' else ''}{kind}" in refused.stderr


def test_rows_that_do_not_count_contradict_nothing_for_plan_worker_and_audit_alike(any_lab: Lab) -> None:
    load(any_lab, "expected", values(["ann"], FEB_24))
    load(any_lab, "first", values(["ann"], FEB_23, value=None) + values(["ann"], FEB_24))
    load(any_lab, "second", values(["ann"], FEB_24))
    days = [FEB_23, FEB_24]

    assert [step.action for step in any_lab.plan(days, "with_payload").steps] == [PlanAction.SKIP, PlanAction.BUILD]
    progress = any_lab.run(days, "with_payload")
    assert any_lab.outcome(FEB_23, progress).state is DateState.SKIPPED
    audited = audit_dates(find_job("with_payload"), days, any_lab.context.warehouse, any_lab.ledger).dates
    assert [date_.finding for date_ in audited] == [AuditFinding.SKIPPED, AuditFinding.COMPLETE]


def test_an_empty_file_of_the_target_blocks_nothing(lab: Lab) -> None:
    load(lab, "expected", values(["ann"], FEB_24))
    load(lab, "first", values(["ann"], FEB_24))
    for day in (FEB_23, FEB_24):
        types = {"day": pa.date32(), "name": pa.string(), "value": pa.float64()}
        write_foreign(lab, "with_payload", day, **{name: pa.array([], kind) for name, kind in types.items()})
    days = [FEB_23, FEB_24]

    assert [step.action for step in lab.plan(days, "with_payload").steps] == [PlanAction.SKIP, PlanAction.BUILD]
    progress = lab.run(days, "with_payload")

    states = [lab.outcome(day, progress).state for day in days]
    assert states == [DateState.SKIPPED, DateState.CHECKPOINTED]
    audited = audit_dates(find_job("with_payload"), days, lab.context.warehouse, lab.ledger).dates
    assert [date_.finding for date_ in audited] == [AuditFinding.SKIPPED, AuditFinding.COMPLETE]
    assert undo_run(plan_undo(progress.run.id, lab.context), lab.context, "a test") == []
    assert published(lab, "with_payload", FEB_24) == []


def test_a_local_target_without_the_columns_of_a_new_version_is_refused_before_anything_is_built(lab: Lab) -> None:
    days = [FEB_23, FEB_24]
    load(lab, "expected", values(["ann"], *DAYS))
    load(lab, "first", values(["ann"], *DAYS))
    lab.run(days, "grown")

    def newer(*arguments: str, dates: Sequence[date] = ()) -> subprocess.CompletedProcess[str]:
        chosen = ["--dates", ",".join(map(str, dates))] if dates else []
        return lab.command(*arguments, "--job", "grown", *chosen, PYTHONPATH=PACKAGE_PATHS, READING_VERSION="2")

    refused = newer("plan", dates=DAYS)
    assert (refused.returncode, refused.stdout, len(refused.stderr.splitlines())) == (2, "", 1)
    assert "it lacks the column(s) grade" in refused.stderr
    assert "`backfill tables create --job grown --add-columns`" in refused.stderr
    assert newer("tables", "create", "--add-columns").returncode == 0

    steps = json.loads(newer("plan", "--json", dates=DAYS).stdout)["steps"]
    assert [step["action"] for step in steps] == ["stale", "stale", "build"]
    assert newer("run", "--sequential", "--yes", dates=DAYS).returncode == 0
    audit = json.loads(newer("coverage", "--json", dates=DAYS).stdout)
    assert {audited["finding"] for audited in audit["dates"]} == {"complete"}
    rows = lab.context.warehouse.read(Scan(table=TableName("reading", "grown"), date_column="day", dates=ALL_DAYS))
    assert rows.sort_by("day")["grade"].to_pylist() == [None, None, "A"]
