"""Casts that keep every value exactly, or are refused."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gated_backfill.common.model.arrow.exact_casts import cast_exactly
from gated_backfill.common.model.arrow.types import ARROW_TYPES, read_type_of
from gated_backfill.common.model.tables import ColumnType

DAY = date(2024, 5, 1)
MIDNIGHT = datetime(2024, 5, 1)  # noqa: DTZ001 - a DATETIME has no zone
BERLIN = pa.timestamp("ns", tz="Europe/Berlin")


def column(values: Any, kind: pa.DataType) -> pa.ChunkedArray[Any]:
    return pa.chunked_array([pa.array(values, kind)])


@pytest.mark.parametrize(
    ("arrow", "kind"),
    [
        *[pytest.param(t, "INT64", id=str(t)) for t in (pa.int8(), pa.uint16(), pa.int32(), pa.uint64())],
        pytest.param(pa.decimal128(20, 0), "INT64", id="whole-decimal"),
        pytest.param(pa.decimal128(20, 2), "NUMERIC", id="decimal"),
        pytest.param(pa.decimal256(50, 9), "NUMERIC", id="wide-decimal"),
        pytest.param(pa.decimal128(38, 10), None, id="decimal-of-10-digits"),
        *[pytest.param(t, "FLOAT64", id=str(t)) for t in (pa.float16(), pa.float32())],
        *[pytest.param(t, "STRING", id=str(t)) for t in (pa.large_string(), pa.string_view())],
        pytest.param(pa.dictionary(pa.int8(), pa.string()), "STRING", id="categories"),
        pytest.param(pa.date64(), "DATE", id="date64"),
        *[pytest.param(pa.timestamp(unit), "DATETIME", id=unit) for unit in ("s", "ms", "us", "ns")],
        pytest.param(BERLIN, "TIMESTAMP", id="zone"),
        *[pytest.param(t, "BYTES", id=str(t)) for t in (pa.binary(), pa.large_binary(), pa.binary_view())],
        pytest.param(pa.null(), None, id="null"),
        pytest.param(pa.list_(pa.int64()), None, id="list"),
    ],
)
def test_arrow_types_of_other_programs_are_read_as_the_column_type_that_holds_them(
    arrow: pa.DataType, kind: ColumnType | None
) -> None:
    assert read_type_of(arrow) == kind


EXACT = [
    pytest.param([1, None], pa.int8(), "INT64", [1, None], id="narrow-integer"),
    pytest.param([2**63 - 1], pa.uint64(), "INT64", [2**63 - 1], id="unsigned"),
    pytest.param([Decimal(7)], pa.decimal128(20, 0), "INT64", [7], id="whole-decimal"),
    pytest.param([Decimal("1.50")], pa.decimal128(9, 2), "NUMERIC", [Decimal("1.5")], id="decimal"),
    pytest.param([Decimal(7)], pa.decimal128(20, 0), "NUMERIC", [Decimal(7)], id="whole-decimal-as-numeric"),
    pytest.param([Decimal(10) ** 28], pa.decimal128(38, 0), "NUMERIC", [Decimal(10) ** 28], id="29-digits"),
    pytest.param([Decimal("0.5")], pa.decimal128(38, 18), "NUMERIC", [Decimal("0.5")], id="product-of-decimals"),
    pytest.param([2**63 - 1, None], pa.int64(), "NUMERIC", [Decimal(2**63 - 1), None], id="integer-as-numeric"),
    pytest.param([b"\x00\xff", None], pa.large_binary(), "BYTES", [b"\x00\xff", None], id="large-bytes"),
    pytest.param([5.0, -0.0, math.nan, None], pa.float64(), "INT64", [5, 0, None, None], id="whole-floats"),
    pytest.param([50_000_000.0], pa.float32(), "INT64", [50_000_000], id="whole-narrow-float"),
    pytest.param([2.0**53], pa.float64(), "INT64", [2**53], id="greatest-whole-float"),
    pytest.param([1.5], pa.float16(), "FLOAT64", [1.5], id="narrow-float"),
    pytest.param([3, None], pa.int32(), "FLOAT64", [3.0, None], id="integer-as-float"),
    pytest.param(["a", None], pa.dictionary(pa.int8(), pa.string()), "STRING", ["a", None], id="categories"),
    pytest.param(["a"], pa.string_view(), "STRING", ["a"], id="string-view"),
    pytest.param([MIDNIGHT, None], pa.timestamp("ns"), "DATE", [DAY, None], id="midnight"),
    pytest.param([DAY], pa.date64(), "DATE", [DAY], id="date64"),
    pytest.param([DAY], pa.date32(), "DATETIME", [MIDNIGHT], id="date-as-datetime"),
    pytest.param([MIDNIGHT], pa.timestamp("s"), "DATETIME", [MIDNIGHT], id="seconds"),
    pytest.param([MIDNIGHT], BERLIN, "TIMESTAMP", [MIDNIGHT.replace(tzinfo=UTC)], id="zone"),
]


@pytest.mark.parametrize(("values", "arrow", "kind", "expected"), EXACT)
def test_values_that_fit_are_cast(values: Any, arrow: pa.DataType, kind: ColumnType, expected: list[Any]) -> None:
    made = cast_exactly(column(values, arrow), kind)
    assert made.type == ARROW_TYPES[kind]
    assert made.to_pylist() == expected


@pytest.mark.parametrize("kind", ARROW_TYPES)
@pytest.mark.parametrize("arrow", [pa.null(), pa.float64(), pa.string(), pa.int32(), pa.timestamp("ns")])
def test_nulls_fit_every_type(kind: ColumnType, arrow: pa.DataType) -> None:
    made = cast_exactly(column([None, None], arrow), kind)
    assert (made.type, made.to_pylist()) == (ARROW_TYPES[kind], [None, None])
    assert cast_exactly(column([], arrow), kind).type == ARROW_TYPES[kind]


def test_nan_is_null_except_in_a_float_column() -> None:
    assert cast_exactly(column([math.nan], pa.float64()), "STRING").to_pylist() == [None]
    assert repr(cast_exactly(column([math.nan], pa.float32()), "FLOAT64").to_pylist()) == "[nan]"


REFUSED = [
    pytest.param([5.0, 5.5], pa.float64(), "INT64", "holds 5.5", id="fraction"),
    pytest.param([2.0**53 + 2], pa.float64(), "INT64", "holds 9007199254740994.0", id="float-beyond-2**53"),
    pytest.param([math.inf], pa.float64(), "INT64", "holds inf", id="infinity"),
    pytest.param([2**63], pa.uint64(), "INT64", f"holds {2**63}", id="unsigned-beyond-int64"),
    pytest.param([Decimal(2**70)], pa.decimal128(38, 0), "INT64", f"holds {2**70}", id="huge-decimal"),
    pytest.param([1, 2**53 + 1], pa.int64(), "FLOAT64", "holds 9007199254740993", id="integer-no-float-holds"),
    pytest.param([MIDNIGHT, MIDNIGHT + timedelta(hours=1)], pa.timestamp("us"), "DATE", "01:00:00", id="time-of-day"),
    pytest.param([1], pa.timestamp("ns"), "DATETIME", "000000001", id="nanosecond"),
    pytest.param(["5"], pa.string(), "INT64", "holds text", id="text-as-integer"),
    pytest.param([5], pa.int64(), "STRING", "holds whole numbers", id="integer-as-text"),
    pytest.param([5], pa.int64(), "BOOL", "holds whole numbers", id="integer-as-boolean"),
    pytest.param([MIDNIGHT], pa.timestamp("us"), "TIMESTAMP", "holds times without a zone", id="no-zone"),
    pytest.param([DAY], pa.date32(), "TIMESTAMP", "holds dates", id="date-as-timestamp"),
    pytest.param([[1]], pa.list_(pa.int64()), "INT64", "holds list", id="list"),
    pytest.param([b"x"], pa.binary(), "STRING", "holds bytes", id="bytes"),
    pytest.param(["x"], pa.string(), "BYTES", "holds text", id="text-as-bytes"),
    pytest.param([1.5], pa.float64(), "NUMERIC", "holds numbers", id="float-as-decimal"),
    pytest.param([Decimal("1.5")], pa.decimal128(9, 1), "FLOAT64", "holds decimal numbers", id="decimal-as-float"),
    pytest.param([Decimal("1.5")], pa.decimal128(9, 1), "INT64", "holds decimal numbers", id="decimal-as-integer"),
    pytest.param([Decimal("0.1234567891")], pa.decimal128(38, 10), "NUMERIC", "holds 0.1234567891", id="10-digits"),
    pytest.param([Decimal(10) ** 29], pa.decimal128(38, 0), "NUMERIC", f"holds {10**29}", id="30-digits"),
]


@pytest.mark.parametrize(("values", "arrow", "kind", "error"), REFUSED)
def test_values_that_would_change_are_refused(values: Any, arrow: pa.DataType, kind: ColumnType, error: str) -> None:
    with pytest.raises(ValueError, match=error.replace("*", r"\*")):
        cast_exactly(column(values, arrow), kind)


NUMBERS = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.integers(-5, 5).map(float),
    st.decimals(-(10**12), 10**12, places=12),
)
TIMES = st.datetimes(datetime(1700, 1, 1), datetime(2200, 1, 1)) | st.dates(date(1700, 1, 1), date(2200, 1, 1))  # noqa: DTZ001


@given(st.lists(NUMBERS | TIMES, max_size=4), st.sampled_from(sorted(ARROW_TYPES)), st.integers(0, 4))
def test_a_cast_keeps_each_value_or_is_refused_however_values_are_grouped(
    values: list[Any], kind: ColumnType, cut: int
) -> None:
    groups: dict[type, list[Any]] = {}
    for value in values:
        groups.setdefault(type(value), []).append(value)
    for of_one_type in groups.values():
        array = pa.array(of_one_type)
        single = [_cast_or_none(array.slice(n, 1), kind) for n in range(len(array))]
        together = _cast_or_none(pa.chunked_array([array[:cut], array[cut:]]), kind)
        assert (together is None) == (None in single)
        if together is not None:
            assert [value for one in single if one for value in one] == together
            assert list(map(_comparable, together)) == list(map(_comparable, of_one_type))


def _cast_or_none(values: Any, kind: ColumnType) -> list[Any] | None:
    chunked = values if isinstance(values, pa.ChunkedArray) else pa.chunked_array([values])
    try:
        return cast_exactly(chunked, kind).to_pylist()
    except ValueError:
        return None


def _comparable(value: Any) -> Any:
    is_plain_date = isinstance(value, date) and not isinstance(value, datetime)
    return datetime(value.year, value.month, value.day) if is_plain_date else value  # noqa: DTZ001
