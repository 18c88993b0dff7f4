"""Conversion of the frames that a job returns to tables of exactly the declared types."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import date
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from gated_backfill.common.errors import SchemaMismatch
from gated_backfill.common.model.arrow.exact_casts import cast_exactly
from gated_backfill.common.model.arrow.types import ARROW_TYPES, arrow_schema, nan_as_null, read_type_of
from gated_backfill.common.model.tables import FITTING_TYPES, Column, ColumnType

if TYPE_CHECKING:
    import pandas as pd


def to_arrow(
    frame: pd.DataFrame,
    columns: Mapping[str, Column],
    what: str,
    *,
    ignored_columns: Collection[str] = (),
    day: date | None = None,
) -> pa.Table:
    """Convert the frame to a table with exactly these columns, in this order and in exactly these types.

    `what` names the frame in errors, `day` is the date of all its rows, and `ignored_columns` are dropped. Raises
    `SchemaMismatch` for a missing, repeated or unknown column, and for a value that does not mean the same in the type.
    """
    names = list(frame.columns)
    missing = [name for name in columns if name not in names]
    unknown = [str(name) for name in names if name not in columns and name not in ignored_columns]
    if missing or unknown:
        raise SchemaMismatch(f"{what}: missing columns {missing}, unknown columns {unknown}", day=day)
    repeated = [name for name in columns if names.count(name) > 1]
    if repeated:
        raise SchemaMismatch(f"{what}: repeated columns {repeated}", day=day)
    series = dict(frame.items())  # faster than looking up each column
    arrays: list[Any] = []
    for name, column in columns.items():
        try:
            arrays.append(_typed(series[name], column.type))
        except (pa.ArrowException, OverflowError, ValueError) as exc:
            raise SchemaMismatch(f"{what}: column {name} is not {column.type}: {exc}", day=day) from exc
    return pa.Table.from_arrays(arrays, schema=arrow_schema({n: c.type for n, c in columns.items()}))


def _typed(series: Any, kind: ColumnType) -> Any:
    """Convert the series to exactly that type. Raises `ArrowException` or `ValueError` if a value would change."""
    array: Any = pa.array(series, from_pandas=True)
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    if hasattr(series.dtype, "pyarrow_dtype"):  # Arrow takes the NaN of other series as null, but not of its own
        array = nan_as_null(array)
    if array.type.equals(ARROW_TYPES[kind]):
        return array
    try:
        return cast_exactly(_local_midnights(array) if kind == "DATE" else array, kind)
    except ValueError as exc:
        raise ValueError(f"it {exc}{_example(array, kind)}; {_advice(array.type, kind)}") from exc


def _local_midnights(values: Any) -> Any:
    """Return times in a zone as pandas shows them, without the zone: a midnight there is the date that is shown."""
    import pyarrow.compute as pc

    is_zoned = pa.types.is_timestamp(values.type) and values.type.tz is not None
    return pc.local_timestamp(values) if is_zoned else values


def _example(values: Any, kind: ColumnType) -> str:
    """Return a value for the message, unless the error of the cast names one."""
    source = read_type_of(values.type)
    if source == kind or (source, kind) in FITTING_TYPES or (source, kind) == ("TIMESTAMP", "DATE"):
        return ""
    value = values.drop_null()[0].as_py()
    return f", such as {value!r}" if isinstance(value, str) else f", such as {value}"


def _advice(arrow_type: pa.DataType, kind: ColumnType) -> str:
    source = read_type_of(arrow_type)
    other = "" if source in (None, kind) else f", or declare the column as {source}"
    return f"convert it in `process`{other}"
