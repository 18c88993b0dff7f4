"""GoogleSQL that DuckDB runs means what it means in GoogleSQL."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

import pyarrow as pa
import pytest

from gated_backfill.common.errors import QueryFailed
from gated_backfill.common.warehouse.local.query import DuckDbQueries


def no_table(scan: object) -> pa.Table:
    raise AssertionError("the query reads no table")


DUCKDB = DuckDbQueries(no_table, no_table, memory_mb=100)


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("2000000000 * 2", 4_000_000_000),
        ("2000000000 + 2000000000", 4_000_000_000),
        ("-2000000000 - 2000000000", -4_000_000_000),
        ("(SELECT SUM(n) FROM UNNEST([2000000000, 2000000000]) AS n)", 4_000_000_000),
        ("1 / 2", 0.5),
        ("DIV(7, 2)", 3),
        ("0.1 + 0.2", 0.1 + 0.2),
        ("ROUND(2.345, 2)", 2.35),
        ("1e3", 1000.0),
        ("CAST(CAST('0.123456789' AS NUMERIC) * 10 AS FLOAT64)", 1.23456789),
        ("SAFE_DIVIDE(1, 0)", None),
        ("IF(TRUE, 0.5, 1)", 0.5),
        ("DATE_SUB(DATE '2024-03-01', INTERVAL 1 DAY)", date(2024, 2, 29)),
        ("DATE_DIFF(DATE '2024-03-01', DATE '2024-02-28', DAY)", 2),
        ("DATE_TRUNC(DATE '2024-03-15', MONTH)", date(2024, 3, 1)),
        ("DATE(TIMESTAMP '2024-03-01 01:00:00+00', 'America/New_York')", date(2024, 2, 29)),
        ("DATETIME '2024-03-01 01:02:03'", datetime(2024, 3, 1, 1, 2, 3)),  # noqa: DTZ001 - a DATETIME has no zone
        ("TIMESTAMP '2024-03-01 01:02:03+01:00'", datetime(2024, 3, 1, 0, 2, 3, tzinfo=UTC)),
        ("EXTRACT(DAYOFWEEK FROM DATE '2024-03-03')", 1),
        ("DATE_TRUNC(DATE '2024-03-06', WEEK)", date(2024, 3, 3)),
        ("DATE_DIFF(DATE '2024-03-03', DATE '2024-03-02', WEEK)", 1),
        ("TIMESTAMP_DIFF(TIMESTAMP '2024-03-01 01:00:00+00', TIMESTAMP '2024-03-01 00:30:00+00', HOUR)", 0),
        ("TIMESTAMP_DIFF(TIMESTAMP '2024-03-01 01:30:00+00', TIMESTAMP '2024-03-01 00:30:00+00', HOUR)", 1),
        ("DATETIME_DIFF(DATETIME '2024-03-02 00:00:00', DATETIME '2024-03-01 23:00:00', DAY)", 1),
        ("(1 + 5) / (3 - 1) * 2", 6.0),
        ("NULL / 0", None),
        ("1024" + " / 2" * 10, 1.0),
        (r"'a_c' LIKE r'a\_c'", True),
        (r"'abc' LIKE r'a\_c'", False),
        ("EXTRACT(ISOWEEK FROM DATE '2024-03-03')", 9),
        ("16 / (4 / (1 / 2)) / 2", 1.0),
        ("DATE_SUB(DATE_TRUNC(DATE '2024-03-15', MONTH), INTERVAL 1 DAY)", date(2024, 2, 29)),
        ("CONCAT('a', 'b')", "ab"),
        ("STARTS_WITH('abc', 'ab')", True),
        ("REGEXP_CONTAINS('abc', r'^a.c$')", True),
        ("CAST(TRUE AS STRING)", "true"),
    ],
)
def test_an_expression_has_the_value_that_it_has_in_googlesql(expression: str, value: Any) -> None:
    (row,) = DUCKDB.query(f"SELECT {expression} AS value", {}, {}).to_pylist()  # type: ignore[arg-type]
    assert row["value"] == value
    assert type(row["value"]) is type(value)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("1 / 0", "division by zero"),
        ("2 / (1 / (3 / 0))", "division by zero"),
        ("FORMAT('%d', 5)", "FORMAT is not supported on a local warehouse: use CONCAT and CAST"),
        ("EXTRACT(WEEK FROM DATE '2024-03-03')", "EXTRACT.WEEK. is not supported on a local warehouse: use ISOWEEK"),
        ("FORMAT_TIMESTAMP('%F', TIMESTAMP '2024-03-01 00:00:00+00', 'America/New_York')", "a time zone in FORMAT_"),
        ("FARM_FINGERPRINT('a')", "farm_fingerprint does not exist"),
        ("CAST('x' AS INT64)", "Could not convert string 'x' to INT64"),
    ],
)
def test_an_expression_that_has_no_value_is_refused(expression: str, message: str) -> None:
    with pytest.raises(QueryFailed, match=message):
        DUCKDB.query(f"SELECT {expression} AS value", {}, {})  # type: ignore[arg-type]
