"""SQL jobs on BigQuery: their rows are staged in a table, which the gate counts, checks and publishes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from gated_backfill.common.errors import SchemaMismatch
from gated_backfill.common.ledger import DateRow, DateState
from gated_backfill.common.model.publication import StagedFile, table_location
from gated_backfill.common.model.tables import ColumnTypes, TableName
from gated_backfill.common.warehouse.bigquery.warehouse import BigQueryWarehouse
from gated_backfill.common.warehouse.protocol import QueryStaging, StagedDay
from gated_backfill.worker.dates.process import process_dates
from gated_backfill.worker.gate.gate import GateOutcome, close_window
from tests.builders import FEB_23, FEB_24, FEB_25
from tests.emulator import Emulator
from tests.integration.test_sql_jobs import SALES, STORES, load, load_shop, published
from tests.lab import PACKAGES, Lab

DAYS = (FEB_23, FEB_24, FEB_25)
TILLS = TableName("shop", "tills")


@pytest.fixture(autouse=True)
def _sql_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(PACKAGES / "sql_jobs"))


def staged_rows(lab: Lab, run_id: str) -> dict[date, DateRow]:
    return {row.day: row for row in lab.ledger.dates.list_dates(run_id)}


def staged_tables(lab: Lab, run_id: str) -> set[str]:
    return {str(row.staged_file().table) for row in staged_rows(lab, run_id).values()}


# -- what a worker stages, and a gate publishes -------------------------------------------------------------------


def test_the_dates_of_a_task_are_staged_in_a_table_for_each_choice_of_sources(bigquery_lab: Lab) -> None:
    load_shop(bigquery_lab, notes=False)
    run, deps, _ = bigquery_lab.opened(DAYS, "revenue")

    process_dates(run.id, DAYS, deps)

    tables = {day: row.staged_file().table for day, row in staged_rows(bigquery_lab, run.id).items()}
    assert tables[FEB_23] == tables[FEB_25] != tables[FEB_24]  # on which the tills lack stores
    assert None not in tables.values()
    assert deps.staging.staged_runs() == []
    assert close_window(run.id, 1, deps) is GateOutcome.CLOSED
    for day in DAYS:
        assert len(published(bigquery_lab, "revenue", day)) == len(STORES)
    assert bigquery_lab.states(run.id) == ["checkpointed"] * 3


@pytest.mark.parametrize(
    "change",
    ["DROP TABLE {}", "DELETE FROM {} WHERE store = 'north'", "UPDATE {} SET revenue = revenue + 1 WHERE TRUE"],
    ids=["expired", "lost rows", "changed values"],
)
def test_rows_that_are_not_those_that_were_staged_are_built_again(
    bigquery_lab: Lab, emulator: Emulator, change: str
) -> None:
    load_shop(bigquery_lab, notes=False)
    run, deps, _ = bigquery_lab.opened([FEB_23], "revenue")
    process_dates(run.id, [FEB_23], deps)
    (table,) = staged_tables(bigquery_lab, run.id)
    emulator.run(change.format(table))

    assert close_window(run.id, 1, bigquery_lab.opened_again()) is GateOutcome.REQUEUED

    process_dates(run.id, [FEB_23], deps)
    assert close_window(run.id, 1, deps) is GateOutcome.CLOSED
    assert bigquery_lab.states(run.id) == ["checkpointed"]
    assert staged_tables(bigquery_lab, run.id) != {table}
    bigquery_lab.run([FEB_23], "revenue_python")
    assert published(bigquery_lab, "revenue", FEB_23) == published(bigquery_lab, "revenue_python", FEB_23)


def test_rows_that_change_after_they_were_counted_are_not_published(
    bigquery_lab: Lab, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_shop(bigquery_lab, notes=False)
    run, deps, _ = bigquery_lab.opened([FEB_23], "revenue")
    process_dates(run.id, [FEB_23], deps)
    (table,) = staged_tables(bigquery_lab, run.id)
    publish = BigQueryWarehouse.publish

    def change_and_publish(self: BigQueryWarehouse, *arguments: Any, **more: Any) -> Any:
        emulator.run(f"UPDATE {table} SET sales = 99 WHERE store = 'north'")
        return publish(self, *arguments, **more)

    monkeypatch.setattr(BigQueryWarehouse, "publish", change_and_publish)

    assert close_window(run.id, 1, deps) is GateOutcome.REQUEUED
    assert bigquery_lab.ledger.checkpoints.list_checkpoints("revenue", FEB_23, FEB_23) == {}
    assert published(bigquery_lab, "revenue", FEB_23) == []


def test_refused_rows_stay_in_their_table_for_inspection(bigquery_lab: Lab, emulator: Emulator) -> None:
    load_shop(bigquery_lab, notes=False)
    bigquery_lab.drop("shop.open_stores")
    expected = [(FEB_23, store) for store in (*STORES, "east")]
    load(bigquery_lab, "open_stores", {"day": "DATE", "store": "STRING"}, expected)

    progress = bigquery_lab.run([FEB_23], "revenue")

    outcome = bigquery_lab.outcome(FEB_23, progress)
    assert outcome.state is DateState.BLOCKED
    assert outcome.staged_path is not None
    kept = emulator.rows(outcome.staged_path.removeprefix("table:"))
    assert sorted(row["store"] for row in kept) == sorted(STORES)


# -- the table itself ---------------------------------------------------------------------------------------------


@pytest.fixture
def query_staging(bigquery_warehouse: BigQueryWarehouse) -> QueryStaging:
    bigquery_warehouse.create_table(TILLS, SALES, "day")
    staging = bigquery_warehouse.query_staging
    assert staging is not None
    return staging


def stage(
    query_staging: QueryStaging, values: str, columns: ColumnTypes, *, name: Sequence[str] = ("one",)
) -> tuple[TableName, Mapping[date | None, StagedDay]]:
    return query_staging.stage_query(
        f"SELECT DATE '2023-02-23' AS day, {values} FROM UNNEST([1])",  # type: ignore[arg-type]
        scans={},
        params={},
        columns={"day": "DATE", **columns},
        date_column="day",
        key=("day",),
        name=name,
    )


@pytest.mark.parametrize(
    ("value", "kind", "staged"),
    [
        ("7", "FLOAT64", 7.0),
        ("9007199254740992", "FLOAT64", 9007199254740992.0),
        ("7.0", "INT64", 7),
        ("CAST('NaN' AS FLOAT64)", "INT64", None),
        ("CAST(NULL AS INT64)", "STRING", None),
        ("DATE '2023-01-02'", "DATETIME", datetime(2023, 1, 2)),  # noqa: DTZ001 - a DATETIME has no zone
        ("DATETIME '2023-01-02 00:00:00'", "DATE", date(2023, 1, 2)),
        ("TIMESTAMP '2023-01-02 00:00:00+00'", "TIMESTAMP", datetime(2023, 1, 2, tzinfo=UTC)),
    ],
)
def test_values_get_the_type_of_their_column(
    query_staging: QueryStaging, emulator: Emulator, value: str, kind: Any, staged: object
) -> None:
    table, days = stage(query_staging, f"{value} AS value", {"value": kind})
    assert [row["value"] for row in emulator.rows(str(table))] == [staged]
    assert [rows.rows for rows in days.values()] == [1]


@pytest.mark.parametrize(
    ("value", "kind", "problem"),
    [
        ("9007199254740993", "FLOAT64", "holds 9007199254740993"),
        ("7.5", "INT64", "holds 7.5"),
        ("1e300", "INT64", "holds 1"),
        ("'7'", "INT64", "holds STRING"),
        ("7", "STRING", "holds INT64"),
        ("DATETIME '2023-01-02 00:00:01'", "DATE", "holds 2023-01-02"),
    ],
)
def test_a_value_that_would_change_fails_the_statement(
    query_staging: QueryStaging, value: str, kind: Any, problem: str
) -> None:
    with pytest.raises(SchemaMismatch, match=f"^column value is not {kind}: it {problem}.*; cast it in the query$"):
        stage(query_staging, f"{value} AS value", {"value": kind})


def test_a_repeated_staging_finds_its_table_and_another_one_has_a_table_of_its_own(
    query_staging: QueryStaging, bigquery_warehouse: BigQueryWarehouse, emulator: Emulator
) -> None:
    columns: ColumnTypes = {"value": "INT64"}
    first = stage(query_staging, "1 AS value", columns)
    assert stage(query_staging, "1 AS value", columns) == first
    assert stage(query_staging, "1 AS value", columns, name=("two",))[0] != first[0]

    emulator.run(f"DROP TABLE {first[0]}")
    assert stage(query_staging, "1 AS value", columns) == first
    assert len(emulator.rows(str(first[0]))) == 1


def test_the_content_is_that_of_the_rows_when_they_are_published(
    query_staging: QueryStaging, bigquery_warehouse: BigQueryWarehouse, emulator: Emulator
) -> None:
    columns: ColumnTypes = {"day": "DATE", "value": "INT64"}
    table, days = stage(query_staging, "1 AS value", {"value": "INT64"})
    staged = StagedFile(
        day=FEB_23, attempt=1, location=table_location(table), checksum=days[FEB_23].content, rows=days[FEB_23].rows
    )
    assert query_staging.read_staged_contents([staged], columns) == {FEB_23: staged.checksum}
    emulator.run(f"CREATE TABLE shop.copied AS SELECT * FROM {table}")
    copied = bigquery_warehouse.fingerprints(TableName("shop", "copied"), "day", [FEB_23])
    assert copied == {FEB_23: staged.checksum}

    emulator.run(f"UPDATE {table} SET value = 2 WHERE TRUE")
    assert query_staging.read_staged_contents([staged], columns) != {FEB_23: staged.checksum}
    with pytest.raises(SchemaMismatch, match="the columns are day DATE, value INT64"):
        query_staging.read_staged_contents([staged], {"day": "DATE", "other": "INT64"})
    emulator.run(f"DROP TABLE {table}")
    assert query_staging.read_staged_contents([staged], columns) == {}
    query_staging.keep_staged(staged, timedelta(days=30))  # nothing is there to keep
