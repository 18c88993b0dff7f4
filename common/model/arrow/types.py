"""The column types as Arrow types."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from gated_backfill.common.model.tables import NUMERIC_DIGITS, NUMERIC_WHOLE_DIGITS, ColumnType, ColumnTypes

ARROW_TYPES: dict[ColumnType, pa.DataType] = {
    "STRING": pa.string(),
    "INT64": pa.int64(),
    "FLOAT64": pa.float64(),
    "NUMERIC": pa.decimal128(NUMERIC_WHOLE_DIGITS + NUMERIC_DIGITS, NUMERIC_DIGITS),
    "BOOL": pa.bool_(),
    "BYTES": pa.binary(),
    "DATE": pa.date32(),
    "DATETIME": pa.timestamp("us"),
    "TIMESTAMP": pa.timestamp("us", tz="UTC"),
}


def column_type_of(arrow: pa.DataType) -> ColumnType | None:
    """Return the column type of an Arrow type, or None for an unsupported type."""
    for name, arrow_type in ARROW_TYPES.items():
        if arrow_type.equals(arrow):
            return name
    if pa.types.is_large_binary(arrow) or pa.types.is_binary_view(arrow):
        return "BYTES"
    return "STRING" if pa.types.is_large_string(arrow) or pa.types.is_string_view(arrow) else None


def read_type_of(arrow: pa.DataType) -> ColumnType | None:
    """Return the column type as which values of an Arrow type are read, or None for an unsupported type.

    Wider than `column_type_of`: other programs write integers, times and text in several widths, units and encodings.
    """
    types = pa.types
    if types.is_dictionary(arrow):
        return read_type_of(arrow.value_type)
    if types.is_integer(arrow) or (types.is_decimal(arrow) and arrow.scale == 0):
        return "INT64"
    if types.is_decimal(arrow) and 0 < arrow.scale <= NUMERIC_DIGITS:
        return "NUMERIC"
    if types.is_floating(arrow):
        return "FLOAT64"
    if types.is_date(arrow):
        return "DATE"
    if types.is_timestamp(arrow):
        return "DATETIME" if arrow.tz is None else "TIMESTAMP"
    return column_type_of(arrow)


def parse_value(text: str, kind: str) -> Any:
    """Return the value of the column type that the text stands for. Raises `ValueError` for any other text or type."""
    if kind not in ARROW_TYPES:
        raise ValueError(f"{kind} is no column type")
    return pa.scalar(text).cast(ARROW_TYPES[kind]).as_py()


def arrow_schema(types: ColumnTypes) -> pa.Schema:
    return pa.schema([(name, ARROW_TYPES[kind]) for name, kind in types.items()])


def nan_as_null(values: Any) -> Any:
    """Return the array with null for NaN; an array without NaN, or of a type that has none, as it is."""
    import pyarrow.compute as pc

    if not pa.types.is_floating(values.type):
        return values
    is_nan = pc.is_nan(values)
    return pc.if_else(is_nan, None, values) if pc.any(is_nan).as_py() else values


def comparable(values: Any) -> Any:
    """Return the array with floats that SQL groups together made equal: 0.0 for -0.0, and null for NaN."""
    import pyarrow.compute as pc

    return pc.add(nan_as_null(values), 0.0) if pa.types.is_floating(values.type) else values
