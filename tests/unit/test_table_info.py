"""What a table's description says about the columns that a job reads or writes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gated_backfill.common.errors import SchemaMismatch
from gated_backfill.common.model.tables import NULL_TYPE, TableName
from gated_backfill.common.warehouse.protocol import TableInfo, check_same_columns
from gated_backfill.common.warehouse.table_checks import TableRequirement

COLUMNS = {"day": "DATE", "n": "INT64", "x": "FLOAT64", "at": "DATETIME", "void": NULL_TYPE, "name": "STRING"}


def info(**more: Any) -> TableInfo:
    values: dict[str, Any] = {"table": TableName("src", "facts"), "columns": COLUMNS, "partitioned_by": "day"}
    return TableInfo(**values | more)


FITTING = [
    pytest.param({"n": "FLOAT64"}, id="integers-as-floats"),
    pytest.param({"x": "INT64"}, id="floats-as-integers"),
    pytest.param({"at": "DATE"}, id="datetimes-as-dates"),
    pytest.param({"void": "STRING"}, id="nulls"),
]


@pytest.mark.parametrize("types", FITTING)
def test_types_found_in_files_are_exact_only_where_values_cannot_decide(types: Any) -> None:
    assert info(types_are_declared=False).column_mismatches("day", types) == []
    assert info().column_mismatches("day", types) != []


@pytest.mark.parametrize("declared", [True, False])
def test_text_is_no_number_wherever_types_come_from(declared: bool) -> None:
    mismatches = info(types_are_declared=declared).column_mismatches("day", {"name": "INT64"})
    assert mismatches == ["column name is STRING, not INT64"]


def test_a_mixed_column_is_refused_once_it_is_asked_for() -> None:
    mixed = info(columns=COLUMNS | {"k": "mixed"}, mixed_columns={"k": "is INT64 here and STRING there"})
    mixed.check_columns("day", ["n"])
    for columns in (["n", "k"], {"k": "STRING"}):
        with pytest.raises(SchemaMismatch, match=r"src\.facts: column k is INT64 here and STRING there"):
            mixed.check_columns("day", columns)


def test_names_that_differ_only_by_case_are_refused_for_every_reader_and_writer() -> None:
    with pytest.raises(SchemaMismatch, match="differ only by case: name, Name"):
        info(columns=COLUMNS | {"Name": "STRING"}).check_columns("day", ["n"])
    with pytest.raises(SchemaMismatch, match="differ only by case: name, NAME"):
        check_same_columns(None, "day", {"day": "DATE", "name": "STRING", "NAME": "STRING"})


def test_rows_whose_types_fit_can_be_added_to_files_without_a_declared_schema() -> None:
    columns = COLUMNS | {"x": "INT64", "void": "STRING"}
    check_same_columns(info(types_are_declared=False), "day", columns)
    with pytest.raises(SchemaMismatch, match="differing: void STRING, void null, x FLOAT64, x INT64"):
        check_same_columns(info(), "day", columns)
    with pytest.raises(SchemaMismatch, match="differing: name STRING"):
        check_same_columns(info(types_are_declared=False), "day", {n: t for n, t in columns.items() if n != "name"})


def test_a_python_job_is_told_which_column_it_cannot_read() -> None:
    durations = info(columns=COLUMNS | {"took": "INTERVAL", "pauses": "ARRAY<INTERVAL>"})
    whole = TableRequirement(role="source", table=durations.table, date_column="day", reads_all_columns=True)
    assert whole.unreadable_columns(durations) == [
        "column took is INTERVAL, which no Python job can read: declare the columns to read",
        "column pauses is ARRAY<INTERVAL>, which no Python job can read: declare the columns to read",
    ]
    for readable in (replace(whole, reads_in_python=False), replace(whole, reads_all_columns=False)):
        assert readable.unreadable_columns(durations) == []
