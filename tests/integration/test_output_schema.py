"""What the gate says of rows with nulls, NaN and infinities, as `process` may return them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from math import inf, nan
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from gated_backfill.common.audit.audit import audit_dates
from gated_backfill.common.ledger import Ledger
from gated_backfill.common.model.arrow.frames import to_arrow
from gated_backfill.common.model.arrow.types import ARROW_TYPES, arrow_schema
from gated_backfill.common.model.coverage import Recount, Verdict, judge_date
from gated_backfill.common.model.job import Job
from gated_backfill.common.model.registry import find_job
from gated_backfill.common.model.tables import Column, ColumnType, TableName
from gated_backfill.common.storage.staging import Staging
from gated_backfill.common.warehouse.local.warehouse import LocalWarehouse
from gated_backfill.worker.dates.separation import has_duplicate_keys
from tests.builders import recount_rows
from tests.lab import PACKAGES, players

DAY = date(2023, 2, 23)
NEXT_DAY = DAY + timedelta(days=1)
NAMES = players(20)
TYPES: dict[str, ColumnType] = {"name": "STRING", "day": "DATE"}


@pytest.fixture
def warehouse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalWarehouse:
    """Twenty players are expected on each of two days."""
    monkeypatch.syspath_prepend(str(PACKAGES / "probe_jobs"))
    made = LocalWarehouse(tmp_path)
    rows = [(name, day) for day in (DAY, NEXT_DAY) for name in NAMES]
    columns = {"name": [name for name, _ in rows], "day": [day for _, day in rows]}
    made.load(TableName("probe", "expected"), "day", pa.table(columns, schema=arrow_schema(TYPES)))
    return made


def recounted(warehouse: LocalWarehouse, job: Job, rows: Mapping[date, pa.Table]) -> dict[date, Recount]:
    return recount_rows(warehouse, job, rows, Staging(warehouse.root / "staging"))


def job_with(value: Column) -> Job:
    probe = find_job("probe")
    columns = {"name": Column(type="STRING"), "day": Column(type="DATE"), "value": value}
    return replace(probe, target=replace(probe.target, columns=columns))


def built(job: Job, values: Any, day: date = DAY) -> pa.Table:
    """The rows as the worker stages them."""
    frame = pd.DataFrame({"name": NAMES, "day": pd.Timestamp(day)}).assign(value=values)
    return to_arrow(frame, job.target.columns, "the rows")


def schema_problem(warehouse: LocalWarehouse, job: Job, values: Any) -> str | None:
    """The problem that the gate finds. A whole date beside it has none."""
    staged = {DAY: built(job, values), NEXT_DAY: built(job, np.ones(20), NEXT_DAY)}
    counts = recounted(warehouse, job, staged)
    assert counts[NEXT_DAY].schema_problem is None
    assert judge_date(counts[NEXT_DAY], policy=job.policy).verdict is Verdict.COMPLETE
    passes = judge_date(counts[DAY], policy=job.policy).verdict.is_passing
    assert passes is (counts[DAY].schema_problem is None)
    return counts[DAY].schema_problem


def some_null(count: int, null: object = None) -> list[object]:
    return [null] * count + [1.0] * (20 - count)


def arrow_floats(values: list[object]) -> pd.Series:
    return pd.Series(pd.arrays.ArrowExtensionArray(pa.array(values, pa.float64())))


@pytest.mark.parametrize("null", [pytest.param(None, id="null"), pytest.param(float("nan"), id="nan")])
@pytest.mark.parametrize(
    ("limit", "nulls", "problem"),
    [
        pytest.param(
            0.05, 20, "value is null in 20 of 20 row(s) (100.0 %), more than its max_null_share of 5 %", id="all"
        ),
        pytest.param(
            0.05, 2, "value is null in 2 of 20 row(s) (10.0 %), more than its max_null_share of 5 %", id="two"
        ),
        pytest.param(0.05, 1, None, id="at-the-limit"),
        pytest.param(0.05, 0, None, id="none"),
        pytest.param(0.0, 1, "value is null in 1 of 20 row(s) (5.0 %), more than its max_null_share of 0 %", id="zero"),
        pytest.param(1.0, 20, None, id="any"),
    ],
)
def test_a_date_with_too_many_nulls_is_blocked(
    warehouse: LocalWarehouse, limit: float, nulls: int, problem: str | None, null: object
) -> None:
    job = job_with(Column(type="FLOAT64", max_null_share=limit))
    assert schema_problem(warehouse, job, some_null(nulls, null)) == problem
    assert schema_problem(warehouse, job, arrow_floats(some_null(nulls, null))) == problem


@pytest.mark.parametrize(
    ("kind", "value"), [pytest.param("STRING", "x", id="text"), pytest.param("BOOL", True, id="flag")]
)
def test_nulls_of_every_type_count(warehouse: LocalWarehouse, kind: ColumnType, value: object) -> None:
    job = job_with(Column(type=kind, max_null_share=0.5))
    rows = {day: built(job, pd.Series([None] * count + [value] * (20 - count)), day) for day, count in NULLS.items()}
    problems = {day: count.schema_problem for day, count in recounted(warehouse, job, rows).items()}
    assert problems == {
        DAY: "value is null in 11 of 20 row(s) (55.0 %), more than its max_null_share of 50 %",
        NEXT_DAY: None,
    }


NULLS = {DAY: 11, NEXT_DAY: 10}


@pytest.mark.parametrize(
    "values", [pytest.param(np.full(20, np.nan), id="numpy"), pytest.param(arrow_floats([np.nan] * 20), id="arrow")]
)
@pytest.mark.parametrize("bounds", [pytest.param({}, id="unbounded"), pytest.param({"ge": 0, "le": 1}, id="bounded")])
def test_nan_is_null(warehouse: LocalWarehouse, values: Any, bounds: dict[str, Any]) -> None:
    strict, lenient = Column(type="FLOAT64", **bounds), Column(type="FLOAT64", nullable=True, **bounds)
    assert "value fails not_nullable in 20 row(s)" in (schema_problem(warehouse, job_with(strict), values) or "")
    assert schema_problem(warehouse, job_with(lenient), values) is None
    assert built(job_with(lenient), values)["value"].null_count == 20


def test_nan_in_a_staged_file_is_null_to_the_gate(warehouse: LocalWarehouse) -> None:
    job = job_with(Column(type="FLOAT64"))
    rows = built(job, np.ones(20)).set_column(2, "value", pa.array([float("nan")] * 20))
    problem = recounted(warehouse, job, {DAY: rows})[DAY].schema_problem
    assert problem is not None
    assert problem.startswith("value fails not_nullable in 20 row(s)")


@pytest.mark.parametrize(
    ("bounds", "value", "problem"),
    [
        pytest.param({}, np.inf, None, id="unbounded"),
        pytest.param({}, -np.inf, None, id="unbounded-negative"),
        pytest.param(
            {"ge": 0, "le": 1}, np.inf, "value fails less_than_or_equal_to(1) in 1 row(s), e.g. inf", id="both"
        ),
        pytest.param({"le": 1}, np.inf, "value fails less_than_or_equal_to(1) in 1 row(s), e.g. inf", id="le"),
        pytest.param({"ge": 0}, -np.inf, "value fails greater_than_or_equal_to(0) in 1 row(s), e.g. -inf", id="ge"),
        pytest.param({"ge": 0}, np.inf, "value fails is_finite in 1 row(s), e.g. inf", id="no-upper-bound"),
        pytest.param({"le": 1}, -np.inf, "value fails is_finite in 1 row(s), e.g. -inf", id="no-lower-bound"),
    ],
)
def test_a_bound_takes_finite_numbers_only(
    warehouse: LocalWarehouse, bounds: dict[str, Any], value: float, problem: str | None
) -> None:
    job = job_with(Column(type="FLOAT64", nullable=True, **bounds))
    assert schema_problem(warehouse, job, [value, np.nan] + [1.0] * 18) == problem


def rows_with(kind: ColumnType, values: list[object]) -> pa.Table:
    """Rows of the date as any program may write them: NaN stays NaN."""
    columns = {"name": NAMES, "day": [DAY] * 20, "value": pa.array(values, ARROW_TYPES[kind])}
    return pa.table(columns, schema=arrow_schema({**TYPES, "value": kind}))


def rule(name: str, column: Column, values: list[object], problem: str | None, key: tuple[str, ...] = ("name",)) -> Any:
    return pytest.param(column, values + [GOOD[column.type]] * (20 - len(values)), key, problem, id=name)


GOOD: dict[ColumnType, object] = {
    "STRING": "x",
    "INT64": 1,
    "FLOAT64": 1.0,
    "NUMERIC": Decimal("0.5"),
    "BOOL": True,
    "BYTES": b"\x00",
    "DATE": DAY,
    "DATETIME": datetime(2023, 2, 23, 12),  # noqa: DTZ001 - a DATETIME has no zone
    "TIMESTAMP": datetime(2023, 2, 23, 12, tzinfo=UTC),
}
FLOAT = Column(type="FLOAT64", nullable=True, ge=0, le=1)
PRICE = Column(type="NUMERIC", nullable=True, ge=0.1, le=10**6)
PAIR = ("name", "value")


@pytest.mark.parametrize(
    ("column", "values", "key", "problem"),
    [
        *[
            rule(f"null-{kind}", Column(type=kind), [None], "output schema: value fails not_nullable in 1 row(s)")
            for kind in GOOD
        ],
        *[rule(f"allowed-{kind}", Column(type=kind, nullable=True), [None] * 20, None) for kind in GOOD],
        rule("nan", Column(type="FLOAT64"), [nan, nan], "output schema: value fails not_nullable in 2 row(s)"),
        rule("nan-allowed", FLOAT, [nan], None),
        rule("share-at-the-limit", Column(type="FLOAT64", max_null_share=0.1), [None, nan], None),
        rule(
            "share",
            Column(type="FLOAT64", max_null_share=0.1),
            [None, nan, None],
            "output schema: value is null in 3 of 20 row(s) (15.0 %), more than its max_null_share of 10 %",
        ),
        rule(
            "share-before-bounds",
            Column(type="INT64", max_null_share=0.0, ge=0),
            [None, -1],
            "output schema: value is null in 1 of 20 row(s) (5.0 %), more than its max_null_share of 0 %",
        ),
        rule("at-the-bounds", FLOAT, [0.0, -0.0, 1.0], None),
        rule(
            "below", FLOAT, [-0.5, nan], "output schema: value fails greater_than_or_equal_to(0) in 1 row(s), e.g. -0.5"
        ),
        rule("above", FLOAT, [1.5], "output schema: value fails less_than_or_equal_to(1) in 1 row(s), e.g. 1.5"),
        rule("decimals-at-the-bounds", PRICE, [Decimal("0.1"), Decimal(10) ** 6, None], None),
        rule(
            "decimal-below",
            PRICE,
            [Decimal("0.099999999")],
            "output schema: value fails greater_than_or_equal_to(0.1) in 1 row(s), e.g. 0.099999999",
        ),
        rule("infinite-unbounded", Column(type="FLOAT64"), [inf, -inf], None),
        rule(
            "infinite",
            Column(type="FLOAT64", ge=0),
            [inf, inf],
            "output schema: value fails is_finite in 2 row(s), e.g. inf",
        ),
        rule(
            "infinite-negative",
            Column(type="FLOAT64", le=1),
            [-inf],
            "output schema: value fails is_finite in 1 row(s), e.g. -inf",
        ),
        rule("great", Column(type="FLOAT64", ge=0), [1.7e308], None),
        rule(
            "integer-below",
            Column(type="INT64", ge=0.5),
            [0],
            "output schema: value fails greater_than_or_equal_to(0.5) in 1 row(s), e.g. 0",
        ),
        rule("integer-above", Column(type="INT64", le=1), [2, 2], "value fails less_than_or_equal_to(1) in 2 row(s)"),
        rule("null-key", Column(type="INT64", nullable=True), [None, None], "2 row(s) with a null key", PAIR),
        rule("nan-key", Column(type="FLOAT64"), [nan], "1 row(s) with a null key", PAIR),
        rule("bounded-key", FLOAT, [2.0], "output schema: value fails less_than_or_equal_to(1) in 1 row(s)", PAIR),
        rule("same-key", Column(type="FLOAT64"), [0.0, -0.0], "1 key(s) appear more than once", ("value",)),
    ],
)
def test_gate_and_audit_judge_rows_alike(
    warehouse: LocalWarehouse, ledger: Ledger, column: Column, values: list[object], key: tuple[str, ...], problem: Any
) -> None:
    job = job_with(column)
    job = replace(job, target=replace(job.target, key=key))
    rows = rows_with(column.type, [*values[:2], *distinct(values[2:])] if key == ("value",) else values)
    judgement = judge_date(recounted(warehouse, job, {DAY: rows})[DAY], policy=job.policy)
    warehouse.load(TableName("probe", "probe"), "day", rows)
    (audited,) = audit_dates(job, [DAY], warehouse, ledger).dates
    assert audited.finding.is_fine is judgement.verdict.is_passing is (problem is None), (audited, judgement)
    if problem is not None:
        assert problem in judgement.reason
        assert problem in audited.reason


def distinct(values: list[object]) -> list[object]:
    return [float(number) for number, _ in enumerate(values, start=1)]


@pytest.mark.parametrize("order", [["name", "value"], ["value", "name"]])
def test_zeros_of_either_sign_are_one_key(warehouse: LocalWarehouse, order: list[str]) -> None:
    job = job_with(Column(type="FLOAT64"))
    job = replace(job, target=replace(job.target, key=tuple(order)))
    rows = pa.concat_tables([built(job, np.zeros(20)), built(job, np.full(20, -0.0)), built(job, np.ones(20))])
    assert recounted(warehouse, job, {DAY: rows})[DAY].duplicate_keys == 20
    assert has_duplicate_keys(rows.sort_by([(name, "ascending") for name in order]), order)
    sql = "SELECT COUNT(*) AS n FROM (SELECT value FROM (SELECT 0.0 AS value UNION ALL SELECT -0.0) GROUP BY value)"
    assert warehouse.query(sql, scans={}).to_pylist() == [{"n": 1}]
