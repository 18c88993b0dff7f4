"""The one reading of entities and dates, case by case."""

from __future__ import annotations

from datetime import UTC, date, datetime
from itertools import permutations
from typing import Any

import pyarrow as pa
import pytest

from gated_backfill.common.errors import SchemaMismatch
from gated_backfill.common.model.entities import EntityColumns, PresenceRule
from gated_backfill.common.warehouse.entities import ExpectedEntities, day_entity_rows, find_lookalikes
from tests.builders import FEB_23, FEB_24

BY_NAME = EntityColumns(date="day", entity=("name",))
UTC_TIME, NEW_YORK = "UTC", "America/New_York"
BEFORE_1970 = datetime.fromisoformat("1969-12-31T01:00")
LAST_MOMENT = datetime.fromisoformat("2023-02-23T23:59:59.999999")
MIDNIGHT_UTC = datetime(2023, 2, 23, tzinfo=UTC)


def entity_of(value: Any, kind: pa.DataType) -> str | None:
    rows = pa.table({"day": [FEB_23], "name": pa.array([value], kind)})
    return day_entity_rows(rows, BY_NAME)["entity"].to_pylist()[0]


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        pytest.param("ann", pa.string(), "ann", id="text"),
        pytest.param("ann", pa.large_string(), "ann", id="large text"),
        pytest.param("ann ", pa.string(), "ann ", id="a trailing blank counts"),
        pytest.param("", pa.string(), "", id="empty text is an entity"),
        pytest.param("Mun\u0303oz", pa.string(), "Mun\u0303oz", id="the Unicode form counts"),
        pytest.param("007", pa.string(), "007", id="leading zeros count"),
        pytest.param(7, pa.int64(), "7", id="integer"),
        pytest.param(7, pa.int8(), "7", id="small integer"),
        pytest.param(2**53 + 1, pa.int64(), "9007199254740993", id="large integer"),
        pytest.param(7.0, pa.float64(), "7", id="whole float"),
        pytest.param(7.0, pa.float32(), "7", id="whole small float"),
        pytest.param(-0.0, pa.float64(), "0", id="minus zero"),
        pytest.param(float("nan"), pa.float64(), None, id="NaN"),
        pytest.param(True, pa.bool_(), "true", id="boolean"),
        pytest.param(FEB_23, pa.date32(), "2023-02-23", id="date"),
        pytest.param(None, pa.string(), None, id="null"),
        pytest.param(None, pa.null(), None, id="nothing but nulls"),
    ],
)
def test_an_entity_is_compared_as_this_text(value: Any, kind: pa.DataType, text: str | None) -> None:
    assert entity_of(value, kind) == text


@pytest.mark.parametrize("value", [1.5, float("inf"), -float("inf"), 2.0**60, -(2.0**54)])
def test_a_float_that_is_no_whole_number_is_refused_by_table_column_and_date(value: float) -> None:
    rows = pa.table({"day": [FEB_24, FEB_23], "name": [1.0, value]})
    with pytest.raises(SchemaMismatch, match=r"nba\.x: column name holds .* on 2023-02-23: .* whole number"):
        day_entity_rows(rows, BY_NAME, table="nba.x")


@pytest.mark.parametrize("kind", [pa.timestamp("us"), pa.timestamp("us", tz="UTC"), pa.binary(), pa.list_(pa.int64())])
def test_a_column_of_another_type_holds_no_entities(kind: pa.DataType) -> None:
    rows = pa.table({"day": pa.array([], pa.date32()), "name": pa.array([], kind)})
    with pytest.raises(SchemaMismatch, match="an entity must be STRING or INT64 or BOOL or DATE or FLOAT64"):
        day_entity_rows(rows, BY_NAME)


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        pytest.param(("EWR", "LAX"), "EWR|LAX", id="plain"),
        pytest.param(("a|b", "c"), "a\\|b|c", id="a separator in a part"),
        pytest.param(("a", "b|c"), "a|b\\|c", id="a separator in the other part"),
        pytest.param(("a\\", "b"), "a\\\\|b", id="a backslash"),
        pytest.param(("", ""), "|", id="empty parts"),
        pytest.param(("a", None), None, id="a null part"),
    ],
)
def test_an_entity_of_several_columns_is_their_texts(parts: tuple[str, str | None], text: str | None) -> None:
    rows = pa.table({"day": [FEB_23], "a": [parts[0]], "b": pa.array([parts[1]], pa.string())})
    columns = EntityColumns(date="day", entity=("a", "b"))
    assert day_entity_rows(rows, columns)["entity"].to_pylist() == [text]


@pytest.mark.parametrize(
    ("value", "kind", "time_zone", "day"),
    [
        pytest.param(FEB_23, pa.date32(), None, FEB_23, id="date"),
        pytest.param(FEB_23, pa.date64(), None, FEB_23, id="date in milliseconds"),
        pytest.param(datetime.fromisoformat("2023-02-23"), pa.timestamp("ns"), None, FEB_23, id="midnight"),
        pytest.param(LAST_MOMENT, pa.timestamp("us"), None, FEB_23, id="last moment"),
        pytest.param(BEFORE_1970, pa.timestamp("us"), None, date(1969, 12, 31), id="before 1970"),
        pytest.param(MIDNIGHT_UTC, pa.timestamp("us", tz="UTC"), UTC_TIME, FEB_23, id="in UTC"),
        pytest.param(MIDNIGHT_UTC, pa.timestamp("us", tz="UTC"), NEW_YORK, date(2023, 2, 22), id="in New York"),
        pytest.param(MIDNIGHT_UTC, pa.timestamp("us", tz="Asia/Tokyo"), NEW_YORK, date(2023, 2, 22), id="by a zone"),
    ],
)
def test_the_day_of_a_row(value: Any, kind: pa.DataType, time_zone: str | None, day: date) -> None:
    rows = pa.table({"day": pa.array([value], kind), "name": ["ann"]})
    columns = EntityColumns(date="day", entity=("name",), time_zone=time_zone)
    assert day_entity_rows(rows, columns)["day"].to_pylist() == [day]


@pytest.mark.parametrize("kind", [pa.string(), pa.int64(), pa.timestamp("us", tz="UTC"), pa.time64("us")])
def test_a_column_without_dates_is_refused(kind: pa.DataType) -> None:
    rows = pa.table({"day": pa.array([], kind), "name": pa.array([], pa.string())})
    with pytest.raises(SchemaMismatch, match="cannot read day as a date"):
        day_entity_rows(rows, BY_NAME)


def measured(*counts: tuple[str, int, float], rule: PresenceRule) -> pa.Table:
    """Rows of FEB_23: of each entity so many, whose amounts add up to a sum."""
    rows = [(name, total / count) for name, count, total in counts for _ in range(count)]
    columns = {"day": [FEB_23] * len(rows), "name": [name for name, _ in rows], "amount": [sum_ for _, sum_ in rows]}
    read = EntityColumns(date="day", entity=("name",), sums=("amount",) if rule.tolerances else (), rule=rule)
    return day_entity_rows(pa.table(columns), read)


@pytest.mark.parametrize(
    ("rule", "actual", "is_present"),
    [
        pytest.param(PresenceRule(), ("ann", 1, 0.0), True, id="nothing compared"),
        pytest.param(PresenceRule(rows="equal"), ("ann", 4, 0.0), True, id="as many rows"),
        pytest.param(PresenceRule(rows="equal"), ("ann", 1, 0.0), False, id="one of four rows"),
        pytest.param(PresenceRule(rows="equal"), ("ann", 5, 0.0), False, id="more rows"),
        pytest.param(PresenceRule(rows=0.75), ("ann", 3, 0.0), True, id="three quarters of the rows"),
        pytest.param(PresenceRule(rows=0.75), ("ann", 2, 0.0), False, id="half of the rows"),
        pytest.param(PresenceRule(rows=0.75), ("ann", 9, 0.0), True, id="more rows than expected"),
        pytest.param(PresenceRule(tolerances=(0.0,)), ("ann", 1, 100.0), True, id="the same sum"),
        pytest.param(PresenceRule(tolerances=(0.0,)), ("ann", 1, 100.1), False, id="another sum"),
        pytest.param(PresenceRule(tolerances=(0.05,)), ("ann", 1, 104.9), True, id="a sum within the tolerance"),
        pytest.param(PresenceRule(tolerances=(0.05,)), ("ann", 1, 105.1), False, id="a sum beyond the tolerance"),
        pytest.param(PresenceRule(tolerances=(0.05,)), ("ann", 1, float("inf")), False, id="an infinite sum"),
    ],
)
def test_an_entity_is_present_by_the_rule(rule: PresenceRule, actual: tuple[str, int, float], is_present: bool) -> None:
    expected = ExpectedEntities(measured(("ann", 4, 100.0), rule=rule), is_measured=rule.is_measured)
    present = expected.present_in(measured(actual, rule=rule), rule)
    assert expected.names_by_day(present) == ({FEB_23: ["ann"]} if is_present else {})
    assert expected.names_by_day(~present) == ({} if is_present else {FEB_23: ["ann"]})


@pytest.mark.parametrize(
    ("actual", "is_present"), [(float("inf"), True), (-float("inf"), False), (3.0, False), (float("nan"), False)]
)
def test_an_infinite_sum_agrees_with_itself_only(actual: float, is_present: bool) -> None:
    rule = PresenceRule(tolerances=(0.5,))
    expected = ExpectedEntities(measured(("ann", 1, float("inf")), rule=rule), is_measured=True)
    assert expected.present_in(measured(("ann", 1, actual), rule=rule), rule).tolist() == [is_present]


@pytest.mark.parametrize("kind", [pa.string(), pa.bool_(), pa.date32()])
def test_a_column_of_another_type_has_no_sums(kind: pa.DataType) -> None:
    rows = pa.table({"day": pa.array([], pa.date32()), "name": pa.array([], pa.string()), "amount": pa.array([], kind)})
    read = EntityColumns(date="day", entity=("name",), sums=("amount",))
    with pytest.raises(
        SchemaMismatch, match=r"nba\.x: column amount is .*: a column whose sums are .* INT64 or FLOAT64"
    ):
        day_entity_rows(rows, read, table="nba.x")


@pytest.mark.parametrize(
    "values", [[1e9, 0.1, -1e9], [0.1, 0.2, -0.3], [1.0, 2.5, 3.0]], ids=["cancelled", "to zero", "plain"]
)
def test_sums_of_the_same_values_agree_in_any_order(values: list[float]) -> None:
    rule = PresenceRule(rows="equal", tolerances=(0.0,))
    expected = ExpectedEntities(measured(*(("ann", 1, value) for value in values), rule=rule), is_measured=True)
    for order in permutations(values):
        rows = measured(*(("ann", 1, value) for value in order), rule=rule)
        assert expected.present_in(rows, rule).all()
    other = measured(*(("ann", 1, value) for value in (*values[:-1], values[-1] + 10)), rule=rule)
    assert not expected.present_in(other, rule).any()


def test_a_table_whose_sums_are_not_compared_needs_only_its_rows() -> None:
    with_sums = PresenceRule(rows="equal", tolerances=(0.0,))
    expected = ExpectedEntities(measured(("ann", 2, 100.0), rule=with_sums), is_measured=True)
    rows_only = PresenceRule(rows="equal")
    assert expected.present_in(measured(("ann", 2, 1.0), rule=rows_only), rows_only).all()


def test_a_row_with_a_null_in_a_required_column_does_not_count() -> None:
    rows = pa.table({"day": [FEB_23] * 3, "name": ["ann", "bob", "cid"], "value": [1.0, None, float("nan")]})
    columns = EntityColumns(date="day", entity=("name",), required=("value",))
    assert day_entity_rows(rows, columns)["entity"].to_pylist() == ["ann"]


def test_names_that_only_look_alike_are_paired() -> None:
    missing = ["Muñoz", "ann", "bob"]
    unexpected = ["Mun\u0303oz", "Ann ", "robert", "\u212bngstrom"]
    assert find_lookalikes(missing, unexpected) == [("Muñoz", "Mun\u0303oz"), ("ann", "Ann ")]
