"""BigQuery's quick fingerprints: what they prove, and when they say nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from structlog.testing import capture_logs

from gated_backfill.common.errors import WarehouseUnavailable
from gated_backfill.common.model.tables import TableName
from gated_backfill.common.storage.staging import Staging
from gated_backfill.common.warehouse.bigquery.tables import BigQueryTables
from gated_backfill.common.warehouse.bigquery.warehouse import BigQueryWarehouse
from gated_backfill.common.warehouse.protocol import ABSENT
from tests.builders import FEB_23, FEB_24, TABLE, rows_of, staged
from tests.rest_double import RestDouble
from tests.rest_lab import TYPES, opened, publish

KEY = (TABLE.dataset, TABLE.table)
DAYS = [FEB_23, FEB_24]


@pytest.fixture
def warehouse(double: RestDouble) -> BigQueryWarehouse:
    """A warehouse with a table that has rows on the first day."""
    made = opened(double, retry_seconds=0.1)
    made.load(TABLE, "day", rows_of(FEB_23))
    return made


def quick(warehouse: BigQueryWarehouse) -> dict[Any, str]:
    """As another process sees them, which has not described the table yet."""
    warehouse._tables.forget_descriptions()
    return warehouse.quick_fingerprints(TABLE, "day", DAYS)


def test_they_read_no_rows_and_start_one_job(warehouse: BigQueryWarehouse, double: RestDouble) -> None:
    double.log.clear()
    assert quick(warehouse).keys() == set(DAYS)
    calls = [one.call for one in double.log]
    assert calls == ["tables.get", "rowAccessPolicies.list", "jobs.query", "jobs.get"]
    (statement,) = double.statements()
    assert "INFORMATION_SCHEMA.PARTITIONS" in statement
    assert TABLE.table not in statement
    assert warehouse.quick_fingerprints(TABLE, "day", DAYS).keys() == set(DAYS)
    assert [one.call for one in double.log][4:] == ["jobs.query", "jobs.get"]


def test_they_stay_the_same_until_the_partition_is_written(warehouse: BigQueryWarehouse, double: RestDouble) -> None:
    before = quick(warehouse)
    assert quick(warehouse) == before

    double.dates.held["nba.factors"][FEB_24] = "somebody's rows"
    after = quick(warehouse)
    assert after[FEB_23] == before[FEB_23]
    assert after[FEB_24] != before[FEB_24]

    double.dates.rewrite("nba.factors", FEB_23)  # the same rows: a needless read, and no more
    assert quick(warehouse)[FEB_23] != before[FEB_23]


def add_column(double: RestDouble) -> None:
    double.tables[KEY]["schema"]["fields"].append({"name": "team", "type": "STRING", "mode": "NULLABLE"})


def make_again(double: RestDouble) -> None:
    double.tables[KEY]["creationTime"] = str(int(double.tables[KEY]["creationTime"]) + 1)


@pytest.mark.parametrize("change", [add_column, make_again])
def test_they_change_with_the_table(
    warehouse: BigQueryWarehouse, double: RestDouble, change: Callable[[RestDouble], None]
) -> None:
    before = quick(warehouse)
    change(double)
    after = quick(warehouse)
    assert all(after[day] != before[day] for day in DAYS)


def test_a_table_that_does_not_exist_has_no_rows(double: RestDouble) -> None:
    double.datasets[TABLE.dataset] = {}
    assert quick(opened(double)) == dict.fromkeys(DAYS, ABSENT)


def be(**changed: Any) -> Callable[[RestDouble], None]:
    def change(double: RestDouble) -> None:
        double.tables[KEY] |= changed

    return change


def dated_by(kind: str) -> Callable[[RestDouble], None]:
    def change(double: RestDouble) -> None:
        (field,) = (one for one in double.tables[KEY]["schema"]["fields"] if one["name"] == "day")
        field["type"] = kind

    return change


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(be(type="VIEW"), id="a-view"),
        pytest.param(be(type="EXTERNAL"), id="files"),
        pytest.param(be(type="MATERIALIZED_VIEW"), id="a-materialized-view"),
        pytest.param(be(timePartitioning={"type": "MONTH", "field": "day"}), id="by-month"),
        pytest.param(be(timePartitioning={"type": "HOUR", "field": "day"}), id="by-hour"),
        pytest.param(be(timePartitioning={"type": "DAY", "field": "other"}), id="by-another-column"),
        pytest.param(be(timePartitioning={"type": "DAY"}), id="by-the-time-of-loading"),
        pytest.param(lambda double: double.tables[KEY].pop("timePartitioning"), id="not-partitioned"),
        pytest.param(dated_by("TIMESTAMP"), id="times-in-a-zone"),
        pytest.param(be(streamingBuffer={"estimatedRows": "1"}), id="a-streaming-buffer"),
        pytest.param(lambda double: double.streamed.update({KEY: 1}), id="rows-in-no-partition"),
        pytest.param(be(maxStaleness="0-0 0 4:0:0"), id="read-as-it-was-earlier"),
        pytest.param(lambda double: double.policies.update({KEY: [{"filterPredicate": "TRUE"}]}), id="a-row-policy"),
        pytest.param(be(creationTime=None), id="no-time-of-creation"),
    ],
)
def test_nothing_is_told_where_rows_may_change_unseen(
    warehouse: BigQueryWarehouse, double: RestDouble, change: Callable[[RestDouble], None]
) -> None:
    assert quick(warehouse)
    change(double)
    assert quick(warehouse) == {}


def test_a_datetime_has_the_days_of_its_partitions(warehouse: BigQueryWarehouse, double: RestDouble) -> None:
    dated_by("DATETIME")(double)
    assert quick(warehouse).keys() == set(DAYS)


def test_nothing_is_told_of_partitions_that_may_have_expired(warehouse: BigQueryWarehouse, double: RestDouble) -> None:
    be(timePartitioning={"type": "DAY", "field": "day", "expirationMs": str(30 * 24 * 3600 * 1000)})(double)
    assert quick(warehouse) == {}
    be(timePartitioning={"type": "DAY", "field": "day", "expirationMs": str(36_500 * 24 * 3600 * 1000)})(double)
    assert quick(warehouse).keys() == set(DAYS)


def test_a_table_of_another_project_is_looked_up_there(
    warehouse: BigQueryWarehouse, double: RestDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BigQueryTables, "get", lambda self, _: self._jobs.client.get_table(self.reference(TABLE)))
    there = TableName(TABLE.dataset, TABLE.table, "other-project")
    assert warehouse.quick_fingerprints(there, "day", DAYS).keys() == set(DAYS)
    assert "`other-project.nba.INFORMATION_SCHEMA.PARTITIONS`" in double.statements()[-1]


@pytest.mark.parametrize("call", ["rowAccessPolicies.list", "jobs.query"])
def test_who_may_not_look_is_told_nothing_and_it_is_logged(
    warehouse: BigQueryWarehouse, double: RestDouble, call: str
) -> None:
    double.fail(call, status=403, reason="accessDenied", message="Permission bigquery.rowAccessPolicies.list denied")
    with capture_logs() as logged:
        assert quick(warehouse) == {}
    (event,) = logged
    assert (event["event"], event["table"]) == ("quick_fingerprints_not_allowed", str(TABLE))
    assert "bigquery.rowAccessPolicies.list" in event["error"]


def test_a_service_that_does_not_answer_is_no_answer(warehouse: BigQueryWarehouse, double: RestDouble) -> None:
    double.fail("rowAccessPolicies.list", status=503, reason="backendError", times=float("inf"))
    with pytest.raises(WarehouseUnavailable):
        quick(warehouse)


def test_a_publication_returns_those_from_before_its_rows_were_confirmed(double: RestDouble, staging: Staging) -> None:
    warehouse = opened(double)
    warehouse.create_table(TABLE, TYPES, "day")
    files = [staged(staging, day, players=5) for day in DAYS]

    result = publish(warehouse, files)

    assert result.quick_fingerprints == quick(warehouse)
    statements = double.statements()
    looked = next(n for n, text in enumerate(statements) if "INFORMATION_SCHEMA" in text)
    confirmed = max(n for n, text in enumerate(statements) if "FARM_FINGERPRINT" in text)
    published = next(n for n, text in enumerate(statements) if "BEGIN TRANSACTION" in text)
    assert published < looked < confirmed


def test_a_date_that_somebody_writes_during_the_check_has_none(
    double: RestDouble, staging: Staging, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the transaction and the look, or between the look and the confirmation."""
    warehouse = opened(double)
    warehouse.create_table(TABLE, TYPES, "day")
    look = warehouse.quick_fingerprints

    def look_and_be_late(*arguments: Any) -> dict[Any, str]:
        double.dates.held["nba.factors"][FEB_23] = "before the look"
        found = look(*arguments)
        double.dates.held["nba.factors"][FEB_24] = "after the look"
        return found

    monkeypatch.setattr(warehouse, "quick_fingerprints", look_and_be_late)
    result = publish(warehouse, [staged(staging, day, players=5) for day in DAYS])
    assert (result.published, result.quick_fingerprints) == (frozenset(), {})
