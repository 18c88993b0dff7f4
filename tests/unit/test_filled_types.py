"""The type of a column that is filled from another source, whether or not the date has rows of its own."""

from __future__ import annotations

from datetime import date
from typing import Any

import pandas as pd
import pytest

from gated_backfill.common.errors import SchemaMismatch
from gated_backfill.common.model.entities import EntityColumns
from gated_backfill.worker.dates.frames import fill_entities

DAY = date(2024, 5, 1)
COLUMNS = EntityColumns(date="day", entity=("name",))


def frame(name: str, values: pd.Series[Any] | None) -> pd.DataFrame:
    rows = pd.DataFrame({"day": pd.to_datetime([DAY]), "name": pd.Series([name], dtype="str")})
    return rows if values is None else rows.assign(value=values)


def fill(own: pd.DataFrame, values: pd.Series[Any] | None) -> pd.Series[Any]:
    return fill_entities(own, COLUMNS, frame("ben", values), None, {(DAY, "ben")}, ["STRING"])["value"]


def series(value: Any, kind: str) -> pd.Series[Any]:
    return pd.Series([value], dtype=kind)


@pytest.mark.parametrize(
    ("own", "other", "kind", "filled"),
    [
        pytest.param(series(1, "int64"), None, "Int64", None, id="integers and no column"),
        pytest.param(series(1, "int64"), series(float("nan"), "float64"), "Int64", None, id="integers and NaN"),
        pytest.param(series(1, "int64"), series(2, "int64"), "int64", 2, id="integers without nulls"),
        pytest.param(series(1, "int32"), series(2.0, "float64"), "Int64", 2, id="short integers and floats"),
        pytest.param(series(2**64 - 1, "uint64"), series(2, "int64"), "UInt64", 2, id="unsigned integers"),
        pytest.param(series(True, "bool"), None, "boolean", None, id="booleans and no column"),
        pytest.param(series(0.5, "float32"), series(0.1, "float64"), "float64", 0.1, id="short floats and floats"),
        pytest.param(series("x", "category"), series("y", "str"), "str", "y", id="categories and text"),
        pytest.param(series(1, "category"), None, "Int64", None, id="categories of integers and no column"),
        pytest.param(series(1, "category"), series(2, "int64"), "Int64", 2, id="categories of integers and integers"),
        pytest.param(series(True, "category"), None, "boolean", None, id="categories of booleans and no column"),
        pytest.param(series("x", "object"), series(2, "int64"), "object", 2, id="objects and integers"),
    ],
)
def test_a_filled_column_has_the_type_of_the_primary(
    own: pd.Series[Any], other: pd.Series[Any] | None, kind: str, filled: Any
) -> None:
    rows = frame("ann", own)
    for primary in (rows, rows.iloc[:0]):
        values = fill(primary, other)

        assert str(values.dtype) == kind
        assert [None if pd.isna(value) else value for value in values] == [*own.head(len(primary)), filled]


@pytest.mark.parametrize(
    ("own", "other", "error"),
    [
        (series(1, "int64"), series(2.5, "float64"), "holds 2.5, but in the primary it is INT64"),
        (
            series(1, "uint64"),
            series(-1, "int64"),
            "holds values that do not fit UInt64, but in the primary it is INT64",
        ),
        (
            series(1, "UInt64"),
            series(-1.0, "float64"),
            "holds values that do not fit UInt64, but in the primary it is INT64",
        ),
        (
            series(1, "uint8"),
            series(-1, "int64"),
            "holds values that do not fit UInt64, but in the primary it is INT64",
        ),
        (series("x", "str"), series(2, "Int64"), "holds whole numbers, but in the primary it is STRING"),
        (series(True, "bool"), series(1, "Int64"), "holds whole numbers, but in the primary it is BOOL"),
        (series(DAY, "datetime64[ms]"), series("2024-05-01 10:00", "datetime64[us]"), "but in the primary it is DATE"),
    ],
)
def test_a_value_that_the_type_of_the_primary_lacks_is_refused(
    own: pd.Series[Any], other: pd.Series[Any], error: str
) -> None:
    rows = frame("ann", own)
    for primary in (rows, rows.iloc[:0]):
        with pytest.raises(SchemaMismatch, match="column value ") as refusal:
            fill(primary, other)
        assert str(refusal.value).endswith(error)


def test_categories_of_integers_with_nulls_are_filled() -> None:
    rows = pd.concat([frame("ann", None), frame("cleo", None)], ignore_index=True)
    own = rows.assign(value=pd.Series([1, None], dtype="Int64").astype("category"))

    values = fill(own, series(2, "int64"))

    assert str(values.dtype) == "Int64"
    assert [None if pd.isna(value) else value for value in values] == [1, None, 2]
