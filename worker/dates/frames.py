"""Rows of sources as pandas frames: their entities, and the filling of missing entities from another source."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import date
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from gated_backfill.common.errors import SchemaMismatch
from gated_backfill.common.model.arrow.types import ARROW_TYPES
from gated_backfill.common.model.entities import EntityColumns
from gated_backfill.common.model.tables import ColumnType
from gated_backfill.common.warehouse.entities import day_entity_rows, entity_texts

MAX_SINGLE_THREADED_ROWS = 20_000  #: up to here, a thread per column costs more than it saves
PANDAS_TYPES: dict[pa.DataType, Any] = {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}
ENTITY_SCHEMA = pa.schema([("day", pa.date32()), ("entity", pa.string())])


def to_frame(rows: pa.Table) -> pd.DataFrame:
    """Return a frame of the columns; pandas metadata that a file may carry is ignored."""
    threads = rows.num_rows > MAX_SINGLE_THREADED_ROWS
    return rows.to_pandas(
        types_mapper=PANDAS_TYPES.get, date_as_object=False, ignore_metadata=True, use_threads=threads
    )


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


def sort_by_entity(rows: pd.DataFrame, columns: EntityColumns) -> pd.DataFrame:
    """Sort the rows by day and entity, and keep the order of rows of the same entity."""
    read = frame_entities(rows, columns)
    keys = pd.DataFrame({"day": read["day"].to_numpy(), "entity": read["entity"].to_pylist()})
    order = keys.sort_values(["day", "entity"], kind="stable").index
    return rows.iloc[order].reset_index(drop=True)


def fill_entities(
    rows: pd.DataFrame,
    columns: EntityColumns,
    fill_rows: pd.DataFrame,
    fill_columns: EntityColumns,
    missing: Collection[tuple[date, str]],
    entity_types: Sequence[ColumnType],
) -> pd.DataFrame:
    """Take the missing entities (day and text) from another source, each as a whole, in columns named as in `rows`.

    If the date columns differ in type or time zone, both become days. Entity columns that differ in type become columns
    of the `entity_types`, those of the target. Raises `SchemaMismatch` for an entity that has no such value.
    """
    kept_rows = rows[~_is_among(rows, columns, missing)]
    added_rows = fill_rows[_is_among(fill_rows, fill_columns, missing)]
    names = dict(zip(fill_columns.entity, columns.entity, strict=True)) | {fill_columns.date: columns.date}
    has_other_days = not added_rows.empty and _have_other_days(kept_rows, columns, added_rows, fill_columns)
    if has_other_days:
        added_rows = _with_days(added_rows, fill_columns)
    if kept_rows.empty:
        added_rows = added_rows.rename(columns=names)
        return added_rows.reindex(columns=list(dict.fromkeys([*rows.columns, *added_rows.columns])))
    if added_rows.empty:
        return kept_rows
    if has_other_days:
        kept_rows = _with_days(kept_rows, columns)
    for own, other, kind in zip(columns.entity, fill_columns.entity, entity_types, strict=True):
        if kept_rows[own].dtype != added_rows[other].dtype:
            kept_rows, added_rows = _with_type(kept_rows, own, kind), _with_type(added_rows, other, kind)
    return pd.concat([kept_rows, added_rows.rename(columns=names)])


def _have_other_days(
    rows: pd.DataFrame, columns: EntityColumns, fill_rows: pd.DataFrame, fill_columns: EntityColumns
) -> bool:
    """Whether the date columns differ in type or time zone. The frame of a table that does not exist may have none."""
    if columns.time_zone != fill_columns.time_zone:
        return True
    return columns.date in rows and rows[columns.date].dtype != fill_rows[fill_columns.date].dtype


def _is_among(rows: pd.DataFrame, columns: EntityColumns, pairs: Collection[tuple[date, str]]) -> npt.NDArray[np.bool_]:
    read = frame_entities(rows, columns)
    row_pairs = zip(read["day"].to_pylist(), read["entity"].to_pylist(), strict=True)
    return np.fromiter((pair in pairs for pair in row_pairs), bool, len(rows))


def _with_days(rows: pd.DataFrame, columns: EntityColumns) -> pd.DataFrame:
    days = frame_entities(rows, columns)["day"].to_numpy().astype("datetime64[ms]")
    return rows.assign(**{columns.date: days})


def _with_type(rows: pd.DataFrame, name: str, kind: ColumnType) -> pd.DataFrame:
    """Write the entities of the column as text, and read the text as the type."""
    texts = entity_texts(_as_entities(pa.array(rows[name], from_pandas=True)), name)
    try:
        typed: Any = texts.cast(ARROW_TYPES[kind])
    except pa.ArrowException as exc:
        raise SchemaMismatch(f"the entities of column {name} can't be filled in as {kind}: {exc}") from exc
    return rows.assign(**{name: to_frame(pa.table({name: typed}))[name].set_axis(rows.index)})
