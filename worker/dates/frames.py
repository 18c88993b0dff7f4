"""Rows of sources as pandas frames: their entities, and the filling of missing entities from another source."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import date
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from gated_backfill.common.errors import SchemaMismatch
from gated_backfill.common.model.arrow.exact_casts import cast_exactly
from gated_backfill.common.model.arrow.types import ARROW_TYPES, arrow_schema, read_type_of
from gated_backfill.common.model.entities import EntityColumns
from gated_backfill.common.model.tables import ColumnType
from gated_backfill.common.warehouse.entities import day_entity_rows, entity_texts

MAX_SINGLE_THREADED_ROWS = 20_000  #: up to here, a thread per column costs more than it saves
PANDAS_TYPES: dict[pa.DataType, Any] = {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}
#: By kind of a NumPy type: the widest type of such values that has nulls as well.
WIDEST_TYPES: dict[str, Any] = {
    "i": pd.Int64Dtype(),
    "u": pd.UInt64Dtype(),
    "b": pd.BooleanDtype(),
    "f": np.dtype("float64"),
}
ENTITY_SCHEMA = pa.schema([("day", pa.date32()), ("entity", pa.string())])


def to_frame(rows: pa.Table) -> pd.DataFrame:
    """Return a frame of the columns; pandas metadata that a file may carry is ignored."""
    threads = rows.num_rows > MAX_SINGLE_THREADED_ROWS
    return rows.to_pandas(
        types_mapper=PANDAS_TYPES.get, date_as_object=False, ignore_metadata=True, use_threads=threads
    )


@cache
def column_types() -> dict[Any, ColumnType]:
    """Return the column types by their types in a frame, without those that are Python objects there.

    No constant, as importing this must allocate nothing.
    """
    frame = to_frame(arrow_schema({kind: kind for kind in ARROW_TYPES}).empty_table())
    return {frame[kind].dtype: kind for kind in ARROW_TYPES if frame[kind].dtype != object}


def frame_entities(rows: pd.DataFrame, columns: EntityColumns) -> pa.Table:
    """Read the day and the entity of each row, as columns `day` and `entity`.

    Raises `SchemaMismatch` for a date column without dates, and for a column that holds no entities.
    """
    if rows.empty:  # its columns may have any type
        return ENTITY_SCHEMA.empty_table()
    arrays = {columns.date: pa.array(rows[columns.date], from_pandas=True)}
    arrays |= {name: _as_entities(pa.array(rows[name], from_pandas=True)) for name in columns.entity}
    return day_entity_rows(pa.table(arrays), columns)


def _as_entities(values: Any) -> Any:
    """Return dates as dates: pandas holds them as midnights."""
    is_moment = pa.types.is_timestamp(values.type) and values.type.tz is None
    if is_moment and pc.all(pc.equal(pc.floor_temporal(values, unit="day"), values)).as_py() is not False:
        return values.cast(pa.date32())
    return values


def has_only_days(rows: pd.DataFrame, columns: EntityColumns, days: Collection[date]) -> bool:
    """Whether every row has one of these dates. Raises `SchemaMismatch` as `frame_entities` does."""
    return all(day in days for day in frame_entities(rows, columns)["day"].unique().to_pylist())


def sort_by_entity(rows: pd.DataFrame, columns: EntityColumns) -> pd.DataFrame:
    """Sort the rows by day and entity, and keep the order of rows of the same entity."""
    read = frame_entities(rows, columns)
    keys = pd.DataFrame({"day": read["day"].to_numpy(), "entity": read["entity"].to_pylist()})
    order = keys.sort_values(["day", "entity"], kind="stable").index
    return rows.iloc[order].reset_index(drop=True)


def concat_equal_types(
    frames: Mapping[tuple[date, ...], tuple[pd.DataFrame, ...]],
) -> dict[tuple[date, ...], tuple[pd.DataFrame, ...]]:
    """Put frames with equal columns and types together, under the dates of all of them; no column changes its type.

    Where dates have several frames, one of each source, they are put together if these are equal source by source.
    """
    if len(frames) == 1:
        return dict(frames)
    groups: dict[tuple[Any, ...], list[tuple[date, ...]]] = {}
    for days, parts in frames.items():
        groups.setdefault(tuple(_exact_types(part) for part in parts), []).append(days)
    return {
        tuple(sorted(day for days in group for day in days)): tuple(
            pd.concat(parts, ignore_index=True) for parts in zip(*(frames[days] for days in group), strict=True)
        )
        for group in groups.values()
    }


def _exact_types(frame: pd.DataFrame) -> tuple[Any, ...]:
    return tuple((name, _exact_type(kind)) for name, kind in frame.dtypes.items())


def _exact_type(kind: Any) -> object:
    """The type, such that categories in another order are another type."""
    return (tuple(kind.categories), kind) if isinstance(kind, pd.CategoricalDtype) else kind


def rename_entity_columns(rows: pd.DataFrame, columns: EntityColumns, other: EntityColumns) -> pd.DataFrame:
    """Name the date and the entity as another source does; a column that has such a name already is dropped."""
    names = {columns.date: other.date} | dict(zip(columns.entity, other.entity, strict=True))
    replaced = [name for name in names.values() if name in rows.columns and name not in names]
    return rows.drop(columns=replaced).rename(columns=names)


def fill_entities(
    rows: pd.DataFrame,
    columns: EntityColumns,
    fill_rows: pd.DataFrame,
    fill_time_zone: str | None,
    missing: Collection[tuple[date, str]],
    entity_types: Sequence[ColumnType],
) -> pd.DataFrame:
    """Take the missing entities (day and text) from another source, each as a whole.

    Both frames name their date and entity alike. The columns and types of the result depend on those of the frames,
    never on their values. If the date columns differ in type or time zone, both become days. Entity columns that differ
    in type become columns of the `entity_types`, those of the target. Any other column keeps its type in `rows`, and is
    null where a source lacks it. Raises `SchemaMismatch` for a value of `fill_rows` that would change in that type.
    """
    fill_columns = replace(columns, time_zone=fill_time_zone)
    kept_rows = rows[~_is_among(rows, columns, missing)]
    added_rows = fill_rows[_is_among(fill_rows, fill_columns, missing)]
    if kept_rows[columns.date].dtype != added_rows[columns.date].dtype or columns.time_zone != fill_time_zone:
        kept_rows, added_rows = _with_days(kept_rows, columns), _with_days(added_rows, fill_columns)
    for name, kind in zip(columns.entity, entity_types, strict=True):
        if kept_rows[name].dtype != added_rows[name].dtype:
            kept_rows, added_rows = _with_type(kept_rows, name, kind), _with_type(added_rows, name, kind)
    types = {name: kept_rows[name].dtype for name in (columns.date, *columns.entity)}
    for name in (*kept_rows.columns, *added_rows.columns):
        if name not in types:
            types[name] = _common_type(kept_rows, added_rows, name)
    return pd.concat([_with_types(kept_rows, types), _with_types(added_rows, types)], ignore_index=True)


def _common_type(rows: pd.DataFrame, fill_rows: pd.DataFrame, name: str) -> Any:
    """The type of the column in the first frame that has it, wide enough for the values and nulls of the other."""
    owners = [frame for frame in (rows, fill_rows) if name in frame.columns]
    kind = owners[0][name].dtype
    if len(owners) == 2 and kind == owners[1][name].dtype:
        return kind
    return _widest(kind)


def _widest(kind: Any) -> Any:
    """The type, but of categories that of their values, and of NumPy's numbers the widest one with nulls."""
    if isinstance(kind, pd.CategoricalDtype):
        return _widest(kind.categories.dtype)
    return WIDEST_TYPES.get(kind.kind, kind) if isinstance(kind, np.dtype) else kind


def _with_types(rows: pd.DataFrame, types: Mapping[str, Any]) -> pd.DataFrame:
    """The columns in these types; a missing one is null. Raises `SchemaMismatch` for a value that would change."""
    rows = rows.reset_index(drop=True)
    return pd.DataFrame({name: _typed(rows, name, kind) for name, kind in types.items()}, index=rows.index)


def _typed(rows: pd.DataFrame, name: str, kind: Any) -> pd.Series[Any]:
    if name not in rows.columns:
        return pd.Series([None] * len(rows), index=rows.index, dtype=kind)
    values: Any = rows[name]
    if kind in (values.dtype, _widest(values.dtype), object):
        return values.astype(kind)
    try:
        return _cast_exactly(values, kind)
    except (ValueError, TypeError, OverflowError, pa.ArrowException) as exc:
        words = _column_type(kind) or kind
        raise SchemaMismatch(f"column {name} {exc}, but in the primary it is {words}") from exc


def _cast_exactly(values: pd.Series[Any], kind: Any) -> pd.Series[Any]:
    """Cast the values to the type. Raises `ValueError` for one that would change, and for a type without a cast."""
    column_type = _column_type(kind)
    if column_type is None:
        raise ValueError(f"is {values.dtype}")
    arrays = pa.table({"values": pa.array(values, from_pandas=True)})
    exact_values: Any = cast_exactly(arrays["values"], column_type)
    exact = to_frame(pa.table({"values": exact_values}))["values"]
    is_negative = kind.kind == "u" and (exact < 0).any()  # a cast to 64 bits and back would give the same value
    cast = exact.astype(kind)
    if is_negative or not cast.astype(exact.dtype).equals(exact):
        raise ValueError(f"holds values that do not fit {kind}")
    return cast


def _column_type(kind: Any) -> ColumnType | None:
    """The column type of a pandas type; None for a type that has none."""
    if kind in column_types():
        return column_types()[kind]
    try:
        return read_type_of(pa.array(pd.Series(dtype=kind), from_pandas=True).type)
    except pa.ArrowException:
        return None


def _is_among(rows: pd.DataFrame, columns: EntityColumns, pairs: Collection[tuple[date, str]]) -> npt.NDArray[np.bool_]:
    read = frame_entities(rows, columns)
    row_pairs = zip(read["day"].to_pylist(), read["entity"].to_pylist(), strict=True)
    return np.fromiter((pair in pairs for pair in row_pairs), bool, len(rows))


def _with_days(rows: pd.DataFrame, columns: EntityColumns) -> pd.DataFrame:
    days = frame_entities(rows, columns)["day"].to_numpy().astype("datetime64[ms]")
    return rows.assign(**{columns.date: days})


def _with_type(rows: pd.DataFrame, name: str, kind: ColumnType) -> pd.DataFrame:
    """Write the entities of the column as text, and read the text as the type. Raises `SchemaMismatch`.

    An entity keeps its text: "0" would become "false" in a BOOL, and "007" would become "7" in an INT64.
    """
    texts = entity_texts(_as_entities(pa.array(rows[name], from_pandas=True)), name)
    try:
        typed: Any = texts.cast(ARROW_TYPES[kind])
    except pa.ArrowException as exc:
        raise SchemaMismatch(f"the entities of column {name} can't be filled in as {kind}: {exc}") from exc
    is_other: Any = pc.not_equal(entity_texts(typed, name), texts)
    if pc.any(is_other).as_py():
        text = texts.filter(is_other)[0].as_py()
        raise SchemaMismatch(f"the entities of column {name} can't be filled in as {kind}: {text!r} would change")
    return rows.assign(**{name: to_frame(pa.table({name: typed}))[name].set_axis(rows.index)})
