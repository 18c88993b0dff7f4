"""Parquet files: read in small batches, in the types of their columns."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gated_backfill.common.errors import UserError
from gated_backfill.common.model.arrow.types import read_type_of
from gated_backfill.common.model.tables import ColumnType
from gated_backfill.producer.tables.row_file import Progress, RowChunk, RowFile, column_names

BATCH_BYTES = 4 * 1024 * 1024  #: of the rows that are read at once, about
MAX_BATCH_ROWS = 16_384
BUFFER_BYTES = 1024 * 1024  #: of each column
PANDAS_INDEX = re.compile(r"__index_level_\d+__")


@contextmanager
def parquet_rows(file: Path, renames: Mapping[str, str], progress: Progress) -> Generator[RowFile]:
    """Read the rows of a Parquet file. Raises `UserError` for a column whose values no table can hold."""
    with pq.ParquetFile(file, pre_buffer=False, buffer_size=BUFFER_BYTES) as parquet:
        reader = _ParquetReader(file, parquet, renames, progress)
        yield RowFile(
            file=file, place_word="row", rows=parquet.metadata.num_rows, types=reader.types(), chunks=reader.chunks
        )


class _ParquetReader:
    def __init__(self, file: Path, parquet: pq.ParquetFile, renames: Mapping[str, str], progress: Progress) -> None:
        self._file = file
        self._parquet = parquet
        self._progress = progress
        self._range_index = _range_index(file, parquet)
        header = [*parquet.schema_arrow.names, *self._range_index]
        names = column_names(file, header, renames)
        self._names = dict(zip(header, names, strict=True))
        self._indexes = [name for name in names if PANDAS_INDEX.fullmatch(name)]

    def types(self) -> dict[str, ColumnType]:
        types: dict[str, ColumnType] = {}
        for field in self._parquet.schema_arrow:
            name = self._names[field.name]
            kind = "STRING" if pa.types.is_null(field.type) else read_type_of(field.type)
            if kind is None:
                raise UserError(f"{self._file}: column {name} is {field.type}, which no table here can hold")
            if name not in self._indexes:
                types[name] = kind
        return {**types, **dict.fromkeys((self._names[name] for name in self._range_index), "INT64")}

    def chunks(self) -> Iterator[RowChunk]:
        done, total = 0, self._parquet.metadata.num_rows
        for batch in self._parquet.iter_batches(batch_size=self._batch_rows(), use_threads=False):
            restored = [_integers(values[done : done + batch.num_rows]) for values in self._range_index.values()]
            columns: dict[str, Any] = dict(zip(self._names.values(), [*batch.columns, *restored], strict=True))
            for name in self._indexes:
                self._check_counts_rows(name, columns.pop(name), done)
            for column in columns.values():
                column.validate(full=True)
            yield RowChunk(places=range(done + 1, done + batch.num_rows + 1), columns=columns)
            done += batch.num_rows
            self._progress("checking", done, total)

    def _batch_rows(self) -> int:
        metadata = self._parquet.metadata
        size = sum(metadata.row_group(n).total_byte_size for n in range(metadata.num_row_groups))
        return max(1, min(MAX_BATCH_ROWS, BATCH_BYTES * metadata.num_rows // max(size, 1)))

    def _check_counts_rows(self, name: str, values: Any, start: int) -> None:
        """Check that a stored index of pandas only counts the rows, so that nothing is lost without it."""
        row_numbers = _integers(range(start, start + len(values)))
        if not (pa.types.is_integer(values.type) and values.cast(pa.int64(), safe=False).equals(row_numbers)):
            raise UserError(
                f"{self._file}: column {name} is an index of pandas that does not count the rows: name it with "
                f"--rename {name}=NEW_NAME, or write the file with to_parquet(index=False)"
            )


def _range_index(file: Path, parquet: pq.ParquetFile) -> dict[str, range]:
    """Return the values, by name, of the index that pandas has kept in the file's metadata only; empty for none.

    An index without a name that counts the rows from 0 holds no data. Raises `UserError` for another one without a
    name, and for one of another number of rows, whose values are lost.
    """
    for name, values in _described_ranges(file, parquet):
        if name is None and (values.start, values.step) == (0, 1):
            continue
        advice = "write the file after reset_index(), or with to_parquet(index=False)"
        if name is None:
            raise UserError(f"{file}: its index of pandas has no name and does not count the rows: {advice}")
        if len(values) != parquet.metadata.num_rows:
            raise UserError(
                f"{file}: its index of pandas, {name}, was for {len(values)} row(s), not for these: {advice}"
            )
        return {name: values}
    return {}


def _described_ranges(file: Path, parquet: pq.ParquetFile) -> list[tuple[str | None, range]]:
    try:
        indexes: list[Any] = (parquet.schema_arrow.pandas_metadata or {}).get("index_columns", [])
        return [
            (index["name"], range(index["start"], index["stop"], index["step"]))
            for index in indexes
            if isinstance(index, dict)
        ]
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        raise UserError(f"{file}: its metadata of pandas can't be read: {exc}") from exc


def _integers(values: range) -> Any:
    return pa.array(np.arange(values.start, values.stop, values.step))
