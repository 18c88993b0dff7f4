"""Many rows are read by BigQuery's Storage Read API, and by REST where it is not possible: the same rows."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

import grpc
import pyarrow as pa
import pytest
from structlog.testing import capture_logs

from gated_backfill.common.errors import NotAllowed
from gated_backfill.common.warehouse.bigquery import results
from gated_backfill.common.warehouse.bigquery.address import BigQueryAddress
from gated_backfill.common.warehouse.bigquery.warehouse import BigQueryWarehouse
from gated_backfill.producer.doctor.results import CheckLevel
from gated_backfill.producer.doctor.warehouse import check_reads
from tests.builders import FEB_23, TABLE, rows_of, scan, span
from tests.rest_double import RestDouble
from tests.rest_lab import TYPES, URL
from tests.rest_service import Rows
from tests.storage_double import StorageDouble

MANY = 5_000
DENIED = "Permission 'bigquery.readsessions.create' denied on resource 'projects/test-project'"


def answer(sql: str, params: Mapping[str, Any]) -> Rows:
    """As many rows as the query asks for, of several types."""
    columns = {"player": "STRING", "day": "DATE", "score": "FLOAT64", "n": "INT64", "sure": "BOOL"}
    if "AS x" in sql:
        return {"x": "INT64"}, [(1,)]
    rows = [(f"ä{n}", FEB_23 + timedelta(days=n % 3), n / 7, 2**53 + n, n % 2 == 0) for n in range(MANY)]
    return columns, [*rows[: 10 if "LIMIT 10" in sql else MANY - 1], (None,) * 5]


@pytest.fixture
def double() -> RestDouble:
    made = RestDouble(answer=answer, page_rows=2_000)
    made.tables[TABLE.dataset, TABLE.table] = {
        "tableReference": {"projectId": "test-project", "datasetId": TABLE.dataset, "tableId": TABLE.table},
        "schema": {"fields": [{"name": name, "type": kind} for name, kind in TYPES.items()]},
        "timePartitioning": {"type": "DAY", "field": "day"},
    }
    return made


@pytest.fixture
def storage(double: RestDouble, monkeypatch: pytest.MonkeyPatch) -> Iterator[StorageDouble]:
    monkeypatch.setattr(results, "MIN_STORAGE_ROWS", 1_000)
    with StorageDouble(double) as made:
        yield made


@pytest.fixture
def warehouse(double: RestDouble, storage: StorageDouble) -> BigQueryWarehouse:
    return BigQueryWarehouse(BigQueryAddress.parse(URL), http=double, open_storage=storage.open_client)


def read(warehouse: BigQueryWarehouse, sql: Any = "SELECT * FROM t") -> pa.Table:
    return warehouse.query(sql, scans={"t": scan(span(FEB_23))})


def pages(double: RestDouble) -> int:
    """How many further pages were read by REST."""
    return sum("pageToken" in request.query for request in double.log)


def test_many_rows_are_read_by_the_api_as_they_are_by_rest(
    double: RestDouble, storage: StorageDouble, warehouse: BigQueryWarehouse
) -> None:
    by_api = read(warehouse)
    assert (len(storage.sessions), pages(double)) == (1, 0)
    by_rest = read(BigQueryWarehouse(BigQueryAddress.parse(URL), http=double))
    assert (len(storage.sessions), pages(double)) == (1, 2)
    assert by_api.schema.equals(by_rest.schema)
    assert by_api.sort_by("n").equals(by_rest.sort_by("n"))
    assert by_api.num_rows == MANY


def test_rows_that_have_an_order_keep_it(warehouse: BigQueryWarehouse) -> None:
    assert read(warehouse, "SELECT * FROM t ORDER BY n")["n"].to_pylist()[:-1] == [2**53 + n for n in range(MANY - 1)]


def test_few_rows_are_read_by_rest(double: RestDouble, storage: StorageDouble, warehouse: BigQueryWarehouse) -> None:
    assert read(warehouse, "SELECT * FROM t LIMIT 10").num_rows == 11
    assert storage.opened == 0


def test_without_the_permission_rows_are_read_by_rest_and_it_is_logged_once(
    double: RestDouble, storage: StorageDouble, warehouse: BigQueryWarehouse
) -> None:
    storage.fail("CreateReadSession", grpc.StatusCode.PERMISSION_DENIED, DENIED)
    with capture_logs() as logs:
        assert [read(warehouse).num_rows for _ in range(3)] == [MANY] * 3
    assert [(one["event"], one["log_level"], DENIED in one["error"]) for one in logs] == [
        ("storage_read_failed", "warning", True)
    ]
    assert (storage.opened, storage.sessions, pages(double)) == (1, [], 6)


@pytest.mark.parametrize("method", ["CreateReadSession", "ReadRows"])
def test_after_an_error_rows_are_read_by_rest_for_a_while(
    storage: StorageDouble, warehouse: BigQueryWarehouse, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error after some of the rows, too: none is missing, none is there twice."""
    storage.fail(method, grpc.StatusCode.INVALID_ARGUMENT, "it does not want to")
    monkeypatch.setattr(results, "PAUSE_SECONDS", 0.0)
    numbers = read(warehouse)["n"].to_pylist()
    assert (len(numbers), len(set(numbers))) == (MANY, MANY)
    assert read(warehouse).num_rows == MANY
    assert storage.opened == 2


def test_a_forked_process_reads_by_rest(
    storage: StorageDouble, warehouse: BigQueryWarehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its copy of gRPC's threads is dead."""
    read(warehouse)
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert read(warehouse).num_rows == MANY
    assert storage.opened == 1


def test_doctor_says_that_the_permission_is_missing(storage: StorageDouble, warehouse: BigQueryWarehouse) -> None:
    assert check_reads(warehouse, "it answers").level is CheckLevel.OK
    assert len(storage.sessions) == 1
    storage.fail("CreateReadSession", grpc.StatusCode.PERMISSION_DENIED, DENIED)
    found = check_reads(warehouse, "it answers")
    assert found.level is CheckLevel.WARN
    assert found.message.startswith("it answers, but rows are read by REST, as the Storage Read API is not usable: 403")
    assert DENIED in found.message
    assert found.next_step == "grant the role BigQuery Read Session User in that project"


def test_doctor_does_not_fail_when_reads_can_not_be_checked(double: RestDouble, warehouse: BigQueryWarehouse) -> None:
    double.fail("jobs.insert", status=403, reason="accessDenied", message="no jobs here")
    with pytest.raises(NotAllowed):
        warehouse.find_slow_reads()
    double.fail("jobs.insert", status=403, reason="accessDenied", message="no jobs here")
    found = check_reads(warehouse, "it answers")
    assert found.level is CheckLevel.WARN
    assert "how rows are read could not be checked" in found.message


def test_an_emulator_is_asked_by_rest_only(
    bigquery_warehouse: BigQueryWarehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "MIN_STORAGE_ROWS", 0)
    bigquery_warehouse.load(TABLE, "day", rows_of(FEB_23))
    with capture_logs() as logs:
        assert read(bigquery_warehouse).num_rows == 3
        assert bigquery_warehouse.find_slow_reads() is None
    assert logs == []
