"""Table names, column types and the exactness of what is stored."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gated_backfill.common.errors import SchemaMismatch, UserError
from gated_backfill.common.model.arrow.frames import to_arrow
from gated_backfill.common.model.arrow.types import ARROW_TYPES, column_type_of
from gated_backfill.common.model.tables import Column, ColumnType, TableName

NOON = pd.Timestamp("2023-02-23 12:00")
IN_BERLIN = pd.Timestamp("2023-02-23 00:30", tz="Europe/Berlin")
MOMENT = datetime(2023, 2, 23, 19, 30, 0, 123456, tzinfo=UTC)


def test_a_table_name_is_a_dataset_and_a_table() -> None:
    assert TableName.parse("nba_analytics.player_game_summary") == TableName("nba_analytics", "player_game_summary")
    assert str(TableName.parse("a._b1")) == "a._b1"


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("players", id="one-part"),
        pytest.param("nba.", id="empty-table"),
        pytest.param(".players", id="empty-dataset"),
        pytest.param("", id="empty"),
        pytest.param("..", id="two-dots"),
        pytest.param("nba...", id="dots"),
        pytest.param("../etc.passwd", id="path"),
        pytest.param("nba/../x.players", id="path-inside"),
        pytest.param("nba.pla'yers", id="quote"),
        pytest.param('nba."players"', id="double-quotes"),
        pytest.param("nba.`players`", id="backquotes"),
        pytest.param("nba.players;", id="semicolon"),
        pytest.param("nba.players; DROP TABLE x", id="statement"),
        pytest.param("nba.pla yers", id="space"),
        pytest.param(" nba.players", id="leading-space"),
        pytest.param("nba.players\n", id="newline"),
        pytest.param("nba.1players", id="leading-digit"),
        pytest.param("nba.spieler_ä", id="umlaut"),
        pytest.param("nba.players--", id="comment"),
        pytest.param("nba." + "p" * 129, id="too-long"),
    ],
)
def test_what_is_no_plain_table_name_is_refused(text: str) -> None:
    with pytest.raises(UserError):
        TableName.parse(text)


@given(st.text(max_size=20))
def test_a_name_that_is_accepted_reads_back_as_it_was(text: str) -> None:
    try:
        found = TableName.parse(text)
    except UserError:
        return
    assert str(found) == text
    assert text.replace("_", "").replace(".", "").isalnum()


@pytest.mark.parametrize("kind", [pytest.param(kind, id=kind) for kind in ARROW_TYPES])
def test_every_type_of_ours_is_known_by_its_arrow_type(kind: ColumnType) -> None:
    assert column_type_of(ARROW_TYPES[kind]) == kind


def test_a_type_that_is_not_ours_has_no_name() -> None:
    assert column_type_of(pa.int32()) is None
    assert column_type_of(pa.large_string()) == "STRING"


# -- to_arrow -----------------------------------------------------------------------------------------------------


def converted(values: Any, kind: ColumnType) -> list[Any]:
    made = to_arrow(pd.DataFrame({"c": values}), {"c": Column(type=kind)}, "the rows")
    assert made.schema.field("c").type == ARROW_TYPES[kind]
    return made["c"].to_pylist()


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        pytest.param([1.0, 2.0], "INT64", [1, 2], id="whole-floats"),
        pytest.param([1.0, np.nan], "INT64", [1, None], id="whole-floats-and-a-gap"),
        pytest.param(pd.array([1, None], dtype="Int64"), "INT64", [1, None], id="nullable-integers"),
        pytest.param([1, 2], "FLOAT64", [1.0, 2.0], id="integers-as-floats"),
        pytest.param([True, None], "BOOL", [True, None], id="booleans"),
        pytest.param(["0042", None], "STRING", ["0042", None], id="text"),
        pytest.param(pd.to_datetime(["2023-02-23"]), "DATE", [date(2023, 2, 23)], id="timestamps-at-midnight"),
        pytest.param([date(2023, 2, 23), None], "DATE", [date(2023, 2, 23), None], id="dates"),
        pytest.param([MOMENT, None], "TIMESTAMP", [MOMENT, None], id="moments"),
        pytest.param([IN_BERLIN], "TIMESTAMP", [datetime(2023, 2, 22, 23, 30, tzinfo=UTC)], id="moments-in-a-zone"),
        pytest.param([IN_BERLIN.normalize()], "DATE", [date(2023, 2, 23)], id="midnights-in-a-zone"),
        pytest.param([NOON], "DATETIME", [NOON.to_pydatetime()], id="times-without-a-zone"),
        pytest.param(pd.Categorical(["a", None]), "STRING", ["a", None], id="categories"),
        *[pytest.param([None, None], kind, [None, None], id=f"all-null-{kind}") for kind in ARROW_TYPES],
        *[pytest.param([np.nan], kind, [None], id=f"not-a-number-{kind}") for kind in ARROW_TYPES],
        *[pytest.param([], kind, [], id=f"no-rows-{kind}") for kind in ARROW_TYPES],
    ],
)
def test_values_that_fit_are_stored_exactly(values: Any, kind: ColumnType, expected: list[Any]) -> None:
    assert converted(values, kind) == expected


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        pytest.param([1.5], "INT64", id="a-fraction-into-an-integer"),
        pytest.param([float("inf")], "INT64", id="infinity-into-an-integer"),
        pytest.param(["many"], "INT64", id="text-into-an-integer"),
        pytest.param(pd.Series([2**70], dtype=object), "INT64", id="an-integer-of-more-than-64-bits"),
        pytest.param([2**60 + 1], "FLOAT64", id="an-integer-no-float-can-hold"),
        pytest.param(["many"], "FLOAT64", id="text-into-a-float"),
        pytest.param([7], "BOOL", id="a-seven-into-a-boolean"),
        pytest.param(["2023-02-30"], "DATE", id="no-such-date"),
        pytest.param([pd.Timestamp("2023-02-23 12:30")], "DATE", id="a-time-of-day-into-a-date"),
        pytest.param([1, "a"], "STRING", id="a-mixture"),
        pytest.param([b"\xff"], "STRING", id="bytes-that-are-no-text"),
        pytest.param([{"a": 1}], "STRING", id="a-structure"),
        pytest.param(["007"], "INT64", id="digits-into-an-integer"),
        pytest.param(["2.5"], "FLOAT64", id="digits-into-a-float"),
        pytest.param(["2023-02-23"], "DATE", id="text-into-a-date"),
        pytest.param(["true"], "BOOL", id="text-into-a-boolean"),
        pytest.param([True], "INT64", id="a-boolean-into-an-integer"),
        pytest.param([7], "STRING", id="an-integer-into-text"),
        pytest.param([7.5], "STRING", id="a-float-into-text"),
        pytest.param([Decimal("7.5")], "FLOAT64", id="a-decimal-into-a-float"),
        pytest.param([NOON], "INT64", id="a-time-into-an-integer"),
        pytest.param([NOON], "TIMESTAMP", id="a-time-without-a-zone-into-a-moment"),
        pytest.param([IN_BERLIN], "DATETIME", id="a-moment-into-a-time-without-a-zone"),
        pytest.param([IN_BERLIN], "DATE", id="a-moment-after-midnight-into-a-date"),
        pytest.param([pd.Timedelta(hours=1)], "INT64", id="a-duration-into-an-integer"),
        pytest.param([pd.Timestamp("2023-02-23 12:30:00.000000001")], "DATETIME", id="digits-beyond-microseconds"),
    ],
)
def test_a_value_that_would_lose_something_is_refused(values: Any, kind: ColumnType) -> None:
    with pytest.raises(SchemaMismatch, match=f"the rows: column c is not {kind}"):
        converted(values, kind)


@pytest.mark.parametrize(
    ("values", "kind", "problem"),
    [
        pytest.param(
            [None, "007"],
            "INT64",
            "it holds text, such as '007'; convert it in `process`, or declare the column as STRING",
            id="text",
        ),
        pytest.param(
            [1.0, 1.5],
            "INT64",
            "it holds 1.5; convert it in `process`, or declare the column as FLOAT64",
            id="fraction",
        ),
        pytest.param(
            [IN_BERLIN],
            "DATETIME",
            "it holds times in a zone, such as 2023-02-23 00:30:00+01:00; convert it in `process`, or declare the "
            "column as TIMESTAMP",
            id="zone",
        ),
        pytest.param(
            [Decimal("7.5")],
            "FLOAT64",
            "it holds decimal numbers, such as 7.5; convert it in `process`, or declare the column as NUMERIC",
            id="decimal",
        ),
    ],
)
def test_the_error_has_the_date_the_column_an_example_and_the_next_step(
    values: Any, kind: ColumnType, problem: str
) -> None:
    with pytest.raises(SchemaMismatch) as refused:
        to_arrow(pd.DataFrame({"c": values}), {"c": Column(type=kind)}, "the rows", day=date(2023, 2, 23))
    assert str(refused.value) == f"2023-02-23: the rows: column c is not {kind}: {problem}"


COLUMNS = {"player": Column(type="STRING"), "score": Column(type="FLOAT64")}


def test_columns_come_in_the_declared_order() -> None:
    made = to_arrow(pd.DataFrame({"score": [1.0], "player": ["a"]}), COLUMNS, "the rows")
    assert made.column_names == ["player", "score"]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        pytest.param(["player"], r"missing columns \['score'\]", id="missing"),
        pytest.param(["player", "score", "extra"], r"unknown columns \['extra'\]", id="unknown"),
        pytest.param(["player", "score", 7], r"unknown columns \['7'\]", id="unnamed"),
        pytest.param(["player", "score", "score"], "score", id="twice"),
    ],
)
def test_exactly_the_declared_columns_are_taken(names: list[Any], said: str) -> None:
    with pytest.raises(SchemaMismatch, match=said):
        to_arrow(pd.DataFrame([["a"] * len(names)], columns=names), COLUMNS, "the rows")


@given(st.lists(st.none() | st.integers(-(2**63), 2**63 - 1), max_size=20))
def test_integers_come_back_as_they_were(values: list[int | None]) -> None:
    assert converted(pd.array(values, dtype="Int64"), "INT64") == values


@given(st.lists(st.floats(allow_nan=False), max_size=20))
def test_floats_are_stored_as_integers_only_if_they_are_whole(values: list[float]) -> None:
    whole = all(value.is_integer() and abs(value) < 2**53 for value in values)
    try:
        assert converted(pd.Series(values, dtype="float64"), "INT64") == values
    except SchemaMismatch:
        assert not whole
