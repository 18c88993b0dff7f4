"""The column types as Arrow types, and the conversion of rows to them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from gated_backfill.common.errors import SchemaMismatch
from gated_backfill.common.model.tables import Column, ColumnType, ColumnTypes

if TYPE_CHECKING:
    import pandas as pd
    import pandera.pandas as pandera

ARROW_TYPES: dict[ColumnType, pa.DataType] = {
    "STRING": pa.string(),
    "INT64": pa.int64(),
    "FLOAT64": pa.float64(),
    "BOOL": pa.bool_(),
    "DATE": pa.date32(),
    "DATETIME": pa.timestamp("us"),
    "TIMESTAMP": pa.timestamp("us", tz="UTC"),
}


def column_type_of(arrow: pa.DataType) -> ColumnType | None:
    """Return the column type of an Arrow type, or None for an unsupported type."""
    for name, arrow_type in ARROW_TYPES.items():
        if arrow_type.equals(arrow):
            return name
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
    if types.is_floating(arrow):
        return "FLOAT64"
    if types.is_date(arrow):
        return "DATE"
    if types.is_timestamp(arrow):
        return "DATETIME" if arrow.tz is None else "TIMESTAMP"
    return column_type_of(arrow)


def arrow_schema(types: ColumnTypes) -> pa.Schema:
    return pa.schema([(name, ARROW_TYPES[kind]) for name, kind in types.items()])


def to_arrow(
    frame: pd.DataFrame, columns: Mapping[str, Column], what: str, *, ignored_columns: Collection[str] = ()
) -> pa.Table:
    """Convert the frame to a table with exactly these columns, in this order and in exactly these types.

    `what` names the frame in errors, and `ignored_columns` are dropped. Raises `SchemaMismatch` for a missing, repeated
    or unknown column and for a value that does not fit its type.
    """
    names = list(frame.columns)
    missing = [name for name in columns if name not in names]
    unknown = [str(name) for name in names if name not in columns and name not in ignored_columns]
    if missing or unknown:
        raise SchemaMismatch(f"{what}: missing columns {missing}, unknown columns {unknown}")
    repeated = [name for name in columns if names.count(name) > 1]
    if repeated:
        raise SchemaMismatch(f"{what}: repeated columns {repeated}")
    series = dict(frame.items())  # faster than looking up each column
    arrays: list[pa.Array[Any]] = []
    for name, column in columns.items():
        try:
            arrays.append(_typed(series[name], ARROW_TYPES[column.type]))
        except (pa.ArrowException, OverflowError, ValueError) as exc:
            raise SchemaMismatch(f"{what}: column {name} is not {column.type}: {exc}") from exc
    return pa.Table.from_arrays(arrays, schema=arrow_schema({n: c.type for n, c in columns.items()}))


def _typed(series: Any, arrow_type: pa.DataType) -> pa.Array[Any]:
    """Convert the series to exactly that type. Raises `ArrowException` or `ValueError` if a value would change."""
    array: Any = pa.array(series, from_pandas=True)
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    if hasattr(series.dtype, "pyarrow_dtype"):  # Arrow takes the NaN of other series as null, but not of its own
        array = nan_as_null(array)
    if array.null_count == len(array):
        return pa.array([None] * len(array), arrow_type)
    if array.type.equals(arrow_type):
        return array
    cast = array.cast(arrow_type)
    if pa.types.is_temporal(array.type) and not cast.cast(array.type).equals(array):
        raise ValueError("it has a time of day")
    if pa.types.is_boolean(arrow_type):
        raise ValueError(f"it holds {array.type}")  # Arrow would cast any number to a boolean
    return cast


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


def pandera_schema(columns: Mapping[str, Column]) -> pandera.DataFrameSchema:
    """Return the pandera schema of exactly these columns: types, nulls and bounds."""
    import pandas as pd
    import pandera.pandas as pandera

    def checks(column: Column) -> Sequence[pandera.Check]:
        low = [pandera.Check.ge(column.ge)] if column.ge is not None else []
        high = [pandera.Check.le(column.le)] if column.le is not None else []
        if column.type == "FLOAT64" and low and not high:
            high = [pandera.Check.lt(math.inf, error="is_finite")]
        elif column.type == "FLOAT64" and high and not low:
            low = [pandera.Check.gt(-math.inf, error="is_finite")]
        return [*low, *high]

    return pandera.DataFrameSchema(
        {
            name: pandera.Column(
                pd.ArrowDtype(ARROW_TYPES[column.type]), checks=[*checks(column)], nullable=column.allows_nulls
            )
            for name, column in columns.items()
        },
        strict=True,
        ordered=True,
    )
