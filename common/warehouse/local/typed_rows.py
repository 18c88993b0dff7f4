"""Rows of partitions, brought to the types of their table before they are put together.

Other programs write a column in another type on some days: as floats on a day with a gap, or not at all before it was
added. Every partition is brought to the same types, or is refused by name because a value would change.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gated_backfill.common.errors import SchemaMismatch
from gated_backfill.common.model.arrow.exact_casts import cast_exactly, null_column
from gated_backfill.common.model.arrow.types import ARROW_TYPES
from gated_backfill.common.model.tables import ColumnTypes
from gated_backfill.common.warehouse.entities import day_numbers, read_days
from gated_backfill.common.warehouse.local.partitions import partition_mismatch
from gated_backfill.common.warehouse.local.table_schema import TableSchema

EPOCH_ORDINAL = date(1970, 1, 1).toordinal()


class PartitionRows(NamedTuple):
    """The rows of one date, with columns and types as they are in the file at `part`."""

    day: date
    part: str
    rows: pa.Table


@dataclass(frozen=True, kw_only=True)
class TypedReader:
    """Brings rows of a table to the types of the table, or to those that a job declares."""

    schema: TableSchema
    columns: Mapping[str, str]  #: the table's columns to read, by the names to give them
    declared_types: ColumnTypes  #: replace the table's types of these columns
    time_zone: str | None = None  #: in which a TIMESTAMP has its date

    def stack(self, partitions: Iterable[PartitionRows]) -> pa.Table:
        """Return the rows of all partitions in one table. Raises `SchemaMismatch` for a partition that does not fit.

        That includes a partition with rows of another date than its own.
        """
        groups: list[list[PartitionRows]] = []  # with equal columns and types
        for partition in partitions:
            schema = partition.rows.schema
            for group in groups:
                if group[0].rows.schema.equals(schema):
                    group.append(partition)
                    break
            else:
                groups.append([partition])
        tables = [self._typed_rows(group) for group in groups]
        if not tables:
            return self._arrow_schema.empty_table()
        return tables[0] if len(tables) == 1 else pa.concat_tables(tables)

    def columns_of(self, partition: PartitionRows) -> list[tuple[str, pa.ChunkedArray[Any]]]:
        """Return the columns of one partition, with their names. Raises `SchemaMismatch`."""
        return [(name, self._typed_column([partition], partition.rows, own)) for name, own in self.columns.items()]

    def reads_as_it_is(self, schema: pa.Schema) -> bool:
        """Whether a file with this schema has all columns that are read, in the types in which they are read."""
        names = {*self.columns.values(), self.schema.date_column}
        return all(name in schema.names and schema.field(name).type.equals(self._arrow_type(name)) for name in names)

    def _typed_rows(self, group: Sequence[PartitionRows]) -> pa.Table:
        rows = group[0].rows if len(group) == 1 else pa.concat_tables([partition.rows for partition in group])
        self._check_dates(group, self._typed_column(group, rows, self.schema.date_column))
        arrays = [self._typed_column(group, rows, own) for own in self.columns.values()]
        return pa.Table.from_arrays(arrays, schema=self._arrow_schema)

    @cached_property
    def _arrow_schema(self) -> pa.Schema:
        return pa.schema([(name, self._arrow_type(own)) for name, own in self.columns.items()])

    def _arrow_type(self, column: str) -> pa.DataType:
        declared = self.declared_types.get(column)
        return ARROW_TYPES[declared] if declared else self.schema.arrow_types[column]

    def _typed_column(self, group: Sequence[PartitionRows], rows: pa.Table, name: str) -> pa.ChunkedArray[Any]:
        """Bring a column of the rows, which are those of the group, to its type. A missing column is null."""
        arrow_type = self._arrow_type(name)
        index = rows.schema.get_field_index(name)
        if index < 0:
            return null_column(rows.num_rows, arrow_type)
        values = rows.column(index)
        if values.type.equals(arrow_type):
            return values
        try:
            return self._cast(values, name)
        except ValueError as exc:
            if len(group) == 1:
                raise partition_mismatch(group[0].part, f"column {name} {exc}, {self._expectation(name)}") from exc
        for partition in group:
            self._typed_column([partition], partition.rows, name)  # raises for the first that does not fit
        raise AssertionError(f"each partition fits the type of {name}, but not all together")

    def _cast(self, values: pa.ChunkedArray[Any], name: str) -> pa.ChunkedArray[Any]:
        kind: Any = self.declared_types.get(name, self.schema.info.columns[name])
        if kind in ARROW_TYPES:
            return cast_exactly(values, kind)
        if values.null_count < len(values):
            raise ValueError(f"holds {values.type}")
        return null_column(len(values), self._arrow_type(name))

    def _expectation(self, name: str) -> str:
        if name in self.declared_types:
            return f"the job declares it as {self.declared_types[name]}"
        return f"the table's column is {self.schema.info.columns[name]}"

    def _check_dates(self, group: Sequence[PartitionRows], values: pa.ChunkedArray[Any]) -> None:
        """Check that the date of each row is that of its partition."""
        try:
            dates = read_days(values, self.time_zone)
        except pa.ArrowInvalid as exc:
            column, info = self.schema.date_column, self.schema.info
            raise SchemaMismatch(f"cannot read column {column} as a date: {exc}", table=str(info.table)) from exc
        if dates.null_count:
            self._raise_misdated(group, int(pc.index(pc.is_null(dates), True).as_py()), values)
        days: Any = [partition.day.toordinal() - EPOCH_ORDINAL for partition in group]
        if len(group) > 1:
            days = np.repeat(days, [partition.rows.num_rows for partition in group])
        differs = day_numbers(dates) != days
        if np.count_nonzero(differs):
            self._raise_misdated(group, int(differs.argmax()), values)

    def _raise_misdated(self, group: Sequence[PartitionRows], row: int, values: pa.ChunkedArray[Any]) -> None:
        """Raise `SchemaMismatch` for the row of the group with a null or another date."""
        ends = np.cumsum([partition.rows.num_rows for partition in group])
        partition = group[int(np.searchsorted(ends, row, side="right"))]
        value = values[row].as_py()
        held = "a null" if value is None else str(value)
        column = self.schema.date_column
        raise partition_mismatch(
            partition.part, f"column {column} holds {held}: the rows of a partition must have its date"
        )
