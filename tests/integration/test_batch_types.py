"""The columns and types of a date's rows, as `process` gets them, do not depend on the other dates of the batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

import pyarrow as pa
import pytest

from gated_backfill.common.ledger import DateState, RunState
from gated_backfill.common.model.arrow.types import ARROW_TYPES
from gated_backfill.common.model.tables import TableName
from tests.builders import DAYS, FEB_23, FEB_24, FEB_25
from tests.lab import PACKAGES, Lab

PACKAGE_PATHS = str(PACKAGES / "batch_jobs")
FEB_22 = date(2023, 2, 22)
NAMES = {"day": "DATE", "name": "STRING"}
NUMBERS = {**NAMES, "value": "INT64"}


@pytest.fixture(autouse=True)
def _batch_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(PACKAGES / "batch_jobs"))


def load(lab: Lab, table: str, types: Mapping[str, Any], rows: Sequence[tuple[Any, ...]]) -> None:
    schema = pa.schema([(name, ARROW_TYPES[kind]) for name, kind in types.items()])
    dicts = [dict(zip(types, row, strict=True)) for row in rows]
    lab.context.warehouse.load(TableName("batch", table), "day", pa.Table.from_pylist(dicts, schema=schema))


def published(lab: Lab, job: str, day: date) -> list[tuple[str, str, str]]:
    """Name, text and source of the rows of a date."""
    rows = lab.published(f"batch.{job}", day, "day")
    return sorted((row["name"], row["text"], row["source"]) for row in rows)


def types_of(lab: Lab, job: str, day: date) -> str:
    (types,) = {row["types"] for row in lab.published(f"batch.{job}", day, "day")}
    return types


both = pytest.mark.parametrize("dates_per_task", [1, 3])


@both
def test_a_gap_in_one_derived_date_changes_no_type_of_another(any_lab: Lab, dates_per_task: int) -> None:
    rows = [(day, name) for day in DAYS for name in ("ann", "ben")] + [(FEB_24, "new")]
    load(any_lab, "expected", NAMES, rows)
    load(any_lab, "first", NUMBERS, [(day, name, 5) for day, name in [(FEB_22, "ann"), (FEB_22, "ben"), *rows]])

    progress = any_lab.run(DAYS, "day_before", dates_per_task=dates_per_task)

    assert progress.run.state is RunState.SUCCEEDED
    whole = [("ann", "5", "derived"), ("ben", "5", "derived")]
    assert published(any_lab, "day_before", FEB_23) == published(any_lab, "day_before", FEB_25) == whole
    assert [text for _, text, _ in published(any_lab, "day_before", FEB_24)] == ["5.0", "5.0", "nan"]


FIRST = {**NAMES, "value": "FLOAT64", "note": "STRING", "born": "DATE", "won": "BOOL"}
FIRST_TYPES = "day datetime64[ms], name str, value float64, note str, born datetime64[ms], won boolean, _source str"


@pytest.mark.parametrize("has_primary", [True, False], ids=["a date without rows", "no table"])
@both
def test_filled_rows_have_the_columns_and_types_of_the_primary(
    any_lab: Lab, dates_per_task: int, has_primary: bool
) -> None:
    names = ("ann", "ben")
    load(any_lab, "expected", NAMES, [(day, name) for day in DAYS for name in names])
    load(any_lab, "second", NUMBERS, [(day, name, 7) for day in DAYS for name in names])
    if has_primary:
        load(any_lab, "first", FIRST, [(day, "ann", 1.0, "x", FEB_23, True) for day in (FEB_23, FEB_25)])

    progress = any_lab.run(DAYS, "filled", preflight=True, dates_per_task=dates_per_task)

    assert progress.run.state is RunState.SUCCEEDED
    for day in DAYS:
        has_row = has_primary and day != FEB_24
        first_row = ("ann", "1.0", "first") if has_row else ("ann", "7.0", "second")
        assert published(any_lab, "filled", day) == [first_row, ("ben", "7.0", "second")]
        # a column that another warehouse lists elsewhere is the same column
        assert sorted(types_of(any_lab, "filled", day).split(", ")) == sorted(FIRST_TYPES.split(", "))


@both
def test_a_fallback_with_more_columns_passes_them_on_for_its_rows(lab: Lab, dates_per_task: int) -> None:
    load(lab, "expected", NAMES, [(day, "ann") for day in DAYS])
    load(lab, "second", {**NUMBERS, "rank": "INT64"}, [(day, "ann", 7, 1) for day in DAYS])
    load(lab, "first", FIRST, [(FEB_23, "other", 1.0, "x", FEB_23, True)])

    lab.run(DAYS, "filled", dates_per_task=dates_per_task)

    assert {types_of(lab, "filled", day) for day in DAYS} == {f"{FIRST_TYPES}, rank Int64"}


@both
def test_only_a_date_whose_fallback_has_values_of_another_type_fails(lab: Lab, dates_per_task: int) -> None:
    load(lab, "expected", NAMES, [(day, "ann") for day in DAYS])
    load(lab, "first", FIRST, [(FEB_23, "other", 1.0, "x", FEB_23, True)])
    values = {FEB_23: 2**53, FEB_24: 2**53 + 1, FEB_25: None}
    load(lab, "second", NUMBERS, [(day, "ann", value) for day, value in values.items()])

    progress = lab.run(DAYS, "filled", dates_per_task=dates_per_task)

    rows = [lab.outcome(day, progress) for day in DAYS]
    assert [row.state for row in rows] == [DateState.CHECKPOINTED, DateState.FAILED, DateState.CHECKPOINTED]
    assert rows[1].error == (
        "can't fill 2023-02-24 from source second: column value holds 9007199254740993, "
        "but in the primary it is FLOAT64"
    )


@both
def test_each_date_of_a_derived_primary_is_filled_by_itself(any_lab: Lab, dates_per_task: int) -> None:
    load(any_lab, "expected", NAMES, [(day, name) for day in DAYS for name in ("ann", "ben")])
    load(any_lab, "first", NUMBERS, [(day, "ann", 5) for day in (FEB_22, FEB_23, FEB_25)])
    load(any_lab, "second", {**NAMES, "value": "FLOAT64"}, [(day, "ben", 7.0) for day in DAYS])

    progress = any_lab.run(DAYS, "filled_derived", allow_partial=True, dates_per_task=dates_per_task)

    states = [any_lab.outcome(day, progress).state for day in DAYS]
    assert states == [DateState.CHECKPOINTED, DateState.BLOCKED, DateState.CHECKPOINTED]
    assert published(any_lab, "filled_derived", FEB_23) == [("ann", "5", "derived"), ("ben", "7", "second")]
    assert published(any_lab, "filled_derived", FEB_25) == [("ann", "nan", "derived"), ("ben", "7.0", "second")]


@both
def test_a_refused_value_fails_only_its_date_of_a_derived_primary(lab: Lab, dates_per_task: int) -> None:
    load(lab, "expected", NAMES, [(day, name) for day in DAYS for name in ("ann", "ben")])
    load(lab, "first", NUMBERS, [(day, "ann", 5) for day in (FEB_22, *DAYS)])
    values = {FEB_23: 7.0, FEB_24: 7.5, FEB_25: 7.0}
    load(lab, "second", {**NAMES, "value": "FLOAT64"}, [(day, "ben", value) for day, value in values.items()])

    progress = lab.run(DAYS, "filled_derived", dates_per_task=dates_per_task)

    rows = [lab.outcome(day, progress) for day in DAYS]
    assert [row.state for row in rows] == [DateState.CHECKPOINTED, DateState.FAILED, DateState.CHECKPOINTED]
    assert rows[1].error == (
        "can't fill 2023-02-24 from source second: column value holds 7.5, but in the primary it is INT64"
    )
    for day in (FEB_23, FEB_25):
        assert published(lab, "filled_derived", day) == [("ann", "5", "derived"), ("ben", "7", "second")]


@both
def test_a_date_is_filled_only_from_the_rows_derived_for_it(lab: Lab, dates_per_task: int) -> None:
    load(lab, "expected", NAMES, [(day, name) for day in DAYS for name in ("ann", "ben")])
    for table, name, value in (("first", "ann", 5), ("second", "ben", 7)):
        load(lab, table, NUMBERS, [(day, name, value) for day in (FEB_22, *DAYS)])

    progress = lab.run(DAYS, "filled_with_history", dates_per_task=dates_per_task)

    assert progress.run.state is RunState.SUCCEEDED
    for day in DAYS:
        assert published(lab, "filled_with_history", day) == [("ann", "5", "derived"), ("ben", "7", "recent")]


@both
def test_a_fallback_may_have_a_column_named_as_the_primary_s_entity(any_lab: Lab, dates_per_task: int) -> None:
    load(any_lab, "expected", NAMES, [(day, name) for day in DAYS for name in ("ann", "ben")])
    load(any_lab, "first", NUMBERS, [(day, "ann", 1) for day in DAYS])
    own_name = {"day": "DATE", "lookup": "STRING", "name": "STRING", "value": "INT64"}
    load(any_lab, "second", own_name, [(day, name, "Mx", 2) for day in DAYS for name in ("ann", "ben")])

    progress = any_lab.run(DAYS, "looked_up", preflight=True, dates_per_task=dates_per_task)

    assert progress.run.state is RunState.SUCCEEDED
    for day in DAYS:
        assert published(any_lab, "looked_up", day) == [("ann", "1", "first"), ("ben", "2", "second")]


@both
def test_a_column_source_of_a_table_is_not_in_the_batch(any_lab: Lab, dates_per_task: int) -> None:
    load(any_lab, "expected", NAMES, [(day, "ann") for day in DAYS])
    load(any_lab, "first", {**NUMBERS, "_source": "STRING"}, [(day, "ann", 1, "till") for day in DAYS])

    any_lab.run(DAYS, "with_source", dates_per_task=dates_per_task)

    assert {types_of(any_lab, "with_source", day).count("_source") for day in DAYS} == {1}
    assert published(any_lab, "with_source", FEB_24) == [("ann", "1", "first")]


@pytest.mark.parametrize("command", ["plan", "run", "doctor"])
def test_a_declared_column_source_is_refused_in_one_line(lab: Lab, command: str) -> None:
    dates = [] if command == "doctor" else ["--dates", str(FEB_23)]
    refused = lab.command(
        command, "--job", "with_source", *dates, PYTHONPATH=PACKAGE_PATHS, BATCH_DECLARES_SOURCE="yes"
    )

    lines = [line for line in (refused.stdout + refused.stderr).splitlines() if "_source" in line]
    assert len(lines) == 1
    assert "source first reads a column _source, the name that a batch has for the source of each row" in lines[0]
    assert refused.returncode == 2
