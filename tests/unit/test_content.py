"""Fingerprints of what columns hold: the same for the same values, however they are stored."""

from __future__ import annotations

import io
import math
from datetime import UTC, date, datetime
from decimal import Decimal
from itertools import combinations
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gated_backfill.common.model.arrow.types import ARROW_TYPES
from gated_backfill.common.warehouse.local.content import column_digest, content_fingerprint

DAY = date(2024, 5, 1)
MIDNIGHT = datetime(2024, 5, 1)  # noqa: DTZ001 - a DATETIME has no zone
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "STRING": st.text(max_size=3),
    "INT64": st.integers(-(2**63), 2**63 - 1),
    "FLOAT64": st.floats(allow_nan=False) | st.integers(-3, 3).map(float),
    "NUMERIC": st.decimals(-(10**29) + 1, 10**29 - 1, places=9),
    "BOOL": st.booleans(),
    "BYTES": st.binary(max_size=3),
    "DATE": st.dates(),
    "DATETIME": st.datetimes() | st.just(MIDNIGHT),
    "TIMESTAMP": st.datetimes(timezones=st.just(UTC)),
}
COLUMNS = st.sampled_from(sorted(ARROW_TYPES)).flatmap(
    lambda kind: st.tuples(st.just(kind), st.lists(st.none() | VALUES[kind], max_size=9))
)


def fingerprint(values: list[Any], kind: pa.DataType, name: str = "c") -> str:
    return content_fingerprint({name: column_digest(pa.chunked_array([pa.array(values, kind)]))})


@given(COLUMNS, st.integers(1, 4), st.sampled_from(["none", "zstd"]), st.booleans())
def test_a_fingerprint_does_not_depend_on_row_groups_compression_or_slices(
    column: tuple[Any, list[Any]], group: int, compression: Literal["none", "zstd"], dictionary: bool
) -> None:
    kind, values = column
    arrow: Any = ARROW_TYPES[kind]
    sink = io.BytesIO()
    table = pa.table({"c": pa.array(values, arrow)})
    pq.write_table(table, sink, row_group_size=group, compression=compression, use_dictionary=dictionary)
    sliced = pa.array([None, *values, *values], arrow).slice(1, len(values))
    expected = fingerprint(values, arrow)
    assert content_fingerprint({"c": column_digest(pq.ParquetFile(sink).read()["c"])}) == expected
    assert content_fingerprint({"c": column_digest(pa.chunked_array([sliced[:1], sliced[1:]], arrow))}) == expected


@given(COLUMNS, st.integers(0, 8), st.data())
def test_another_value_at_any_place_gives_another_fingerprint(
    column: tuple[Any, list[Any]], place: int, data: st.DataObject
) -> None:
    kind, values = column
    other = data.draw(st.none() | VALUES[kind])
    if place < len(values) and values[place] != other:
        changed = [*values[:place], other, *values[place + 1 :]]
        assert fingerprint(changed, ARROW_TYPES[kind]) != fingerprint(values, ARROW_TYPES[kind])


@pytest.mark.parametrize(
    ("values", "kind", "others", "other_kind"),
    [
        pytest.param([1, None], "INT64", [1.0, math.nan], "FLOAT64", id="whole-floats"),
        pytest.param([DAY, None], "DATE", [MIDNIGHT, None], "DATETIME", id="midnights"),
        pytest.param([None, None], "STRING", [None, None], "INT64", id="nulls"),
    ],
)
def test_a_widened_type_changes_nothing(values: Any, kind: Any, others: Any, other_kind: Any) -> None:
    assert fingerprint(values, ARROW_TYPES[kind]) == fingerprint(others, ARROW_TYPES[other_kind])


def test_columns_that_hold_something_else_differ() -> None:
    prints = [
        fingerprint(["1"], pa.string()),
        fingerprint([1], pa.int64()),
        fingerprint([1.5], pa.float64()),
        fingerprint([True], pa.bool_()),
        fingerprint([b"1"], pa.binary()),
        fingerprint([Decimal(1)], ARROW_TYPES["NUMERIC"]),
        fingerprint([Decimal("1.5")], ARROW_TYPES["NUMERIC"]),
        fingerprint([MIDNIGHT.replace(tzinfo=UTC)], ARROW_TYPES["TIMESTAMP"]),
        fingerprint([DAY], pa.date32()),
        fingerprint([None], pa.string()),
        fingerprint([], pa.string()),
        fingerprint([1], pa.int64(), "other name"),
        fingerprint(["a", "bc"], pa.string()),
        fingerprint(["ab", "c"], pa.string()),
        fingerprint(["abc"], pa.string()),
    ]
    assert all(one != other for one, other in combinations(prints, 2))


def test_the_order_of_columns_does_not_matter() -> None:
    assert content_fingerprint({"a": b"1", "b": b"2"}) == content_fingerprint({"b": b"2", "a": b"1"})
