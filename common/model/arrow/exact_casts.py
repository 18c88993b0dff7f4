"""Casts of columns to the column types. A cast keeps every value exactly, or it is refused."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from gated_backfill.common.model.arrow.types import ARROW_TYPES, nan_as_null, read_type_of
from gated_backfill.common.model.tables import FITTING_TYPES, ColumnType

TYPE_WORDS: dict[str, str] = {
    "STRING": "text",
    "INT64": "whole numbers",
    "FLOAT64": "numbers",
    "NUMERIC": "decimal numbers",
    "BOOL": "booleans",
    "BYTES": "bytes",
    "DATE": "dates",
    "DATETIME": "times without a zone",
    "TIMESTAMP": "times in a zone",
}


def cast_exactly(values: pa.ChunkedArray[Any], kind: ColumnType) -> pa.ChunkedArray[Any]:
    """Cast the values to the type. Raises `ValueError`, worded as the end of a sentence about the column.

    A column of nulls fits every type. NaN is null, unless the type is FLOAT64. A float fits INT64 if it is whole and at
    most 2**53, beyond which a float may stand for several integers; an integer fits FLOAT64 within the same bounds. A
    decimal number, and an integer, fits NUMERIC with at most 29 digits before the point and 9 behind it; a float does
    not, as it is hardly ever the decimal number that it is written as. A DATETIME fits DATE at midnight. Text fits
    STRING only.
    """
    arrow_type = ARROW_TYPES[kind]
    if values.type.equals(arrow_type):
        return values
    if values.null_count == len(values):
        return null_column(len(values), arrow_type)
    if kind == "NUMERIC" and pa.types.is_decimal(values.type):
        return _cast(values, arrow_type)
    source = read_type_of(values.type)
    if source is None:
        raise ValueError(f"holds {values.type}")
    standard = _cast(values, ARROW_TYPES[source])
    if source == "FLOAT64" and kind != "FLOAT64":
        standard = nan_as_null(standard)
    if source == kind:
        return standard
    if standard.null_count == len(standard):
        return null_column(len(standard), arrow_type)
    if (source, kind) not in FITTING_TYPES:
        raise ValueError(f"holds {TYPE_WORDS[source]}")
    return _cast(standard, arrow_type)


def null_column(length: int, arrow_type: Any) -> pa.ChunkedArray[Any]:
    """Return a column of nulls of the Arrow type."""
    return pa.chunked_array([pa.nulls(length, arrow_type)])


def _cast(values: pa.ChunkedArray[Any], arrow_type: pa.DataType) -> pa.ChunkedArray[Any]:
    """Cast the values, and compare them with the values cast back. Raises `ValueError` for one that would change."""
    if values.type.equals(arrow_type):
        return values
    if (cast := _cast_if_exact(values, arrow_type)) is None:
        raise ValueError(f"holds {_first_inexact(values, arrow_type)}")
    return cast


def _cast_if_exact(values: pa.ChunkedArray[Any], arrow_type: pa.DataType) -> pa.ChunkedArray[Any] | None:
    """Cast the values; None when one would change. Casts within a type are exact or raise; those back are checked."""
    try:
        cast = values.cast(arrow_type)
        if pa.types.is_decimal(values.type) or read_type_of(values.type) == read_type_of(arrow_type):
            return cast
        return cast if cast.cast(values.type).equals(values) else None
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None


def _first_inexact(values: pa.ChunkedArray[Any], arrow_type: pa.DataType) -> str:
    """Find, by bisection, a value that cannot be cast, as text for a message."""
    start, length = 0, len(values)
    while length > 1:
        half = length // 2
        if _cast_if_exact(values.slice(start, half), arrow_type) is None:
            length = half
        else:
            start, length = start + half, length - half
    return str(values[start].as_py())
