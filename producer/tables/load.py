"""Load a CSV or Parquet file into a warehouse table: check every value, then load all rows or none."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from gated_backfill.common.errors import SchemaMismatch, UserError
from gated_backfill.common.model.arrow.types import ARROW_TYPES, arrow_schema
from gated_backfill.common.model.dates import format_dates
from gated_backfill.common.model.registry import load_jobs
from gated_backfill.common.model.tables import ColumnType, TableName
from gated_backfill.common.storage.batch_spool import BatchSpool
from gated_backfill.common.warehouse.protocol import TableInfo, Warehouse, check_same_columns, missing_columns
from gated_backfill.producer.tables.conversion import DateFormat, convert
from gated_backfill.producer.tables.csv_file import CsvFormat, csv_rows
from gated_backfill.producer.tables.parquet_file import parquet_rows
from gated_backfill.producer.tables.row_file import Problems, Progress, RowChunk, RowFile, no_progress

NO_DATES = "it has none; if its dates are not written as YYYY-MM-DD, say how with --date-format"


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """How a file is read."""

    renames: Mapping[str, str] = field(default_factory=dict[str, str])  #: new names of columns by old ones
    date_format: str | None = None  #: of `strptime`, for the columns of dates; None for YYYY-MM-DD
    encoding: str | None = None  #: of a CSV file; None for UTF-8
    delimiter: str | None = None  #: of a CSV file; None for a comma
    add_columns: bool = False  #: add the columns that the table lacks to it


@dataclass(frozen=True, kw_only=True)
class LoadResult:
    """The result of a load."""

    table: TableName
    rows: int
    days: tuple[date, ...]
    is_new: bool = False  #: the table was created
    new_columns: Mapping[str, ColumnType] = field(default_factory=dict[str, ColumnType])
    unloadable_jobs: tuple[str, ...] = ()  #: jobs whose column types could not be used

    def describe(self) -> str:
        loaded = f"{self.table}: {self.rows} row(s) on {len(self.days)} date(s) loaded: {format_dates(self.days)}"
        names = ", ".join(self.unloadable_jobs)
        return f"{loaded}; without the column types of jobs that can't be loaded: {names}" if names else loaded


@dataclass(frozen=True, kw_only=True)
class _Declared:
    """What is known of a table before the file is read."""

    info: TableInfo | None = None  #: of the table, if it exists
    types: Mapping[str, ColumnType]
    date_column: str | None
    unloadable_jobs: tuple[str, ...] = ()

    @property
    def exists(self) -> bool:
        return self.info is not None

    @property
    def columns(self) -> Collection[str]:
        """The columns of the table, of whatever type."""
        return () if self.info is None else self.info.columns


def load_file(
    warehouse: Warehouse,
    table: str,
    file: Path,
    date_column: str | None = None,
    options: LoadOptions = LoadOptions(),
    *,
    spool_folder: Path | None = None,
    progress: Progress = no_progress,
) -> LoadResult:
    """Load the file into the table, replacing the dates in the file.

    Types come from the table if it exists, else from the installed jobs that read it, else from the file. The rows
    need not fit into memory: they are spooled to temporary files in `spool_folder`. Raises `UserError` naming the bad
    rows, and loads nothing, when a value does not fit or a date is missing.
    """
    name = TableName.parse(table)
    declared = _declared_by_table_or_jobs(warehouse, name)
    dates = DateFormat(options.date_format)
    with ExitStack() as stack:
        with _read_file(file, options, dates, spool_folder, progress) as rows:
            date_column, types = _choose_columns(name, date_column, declared, rows, add_columns=options.add_columns)
            spool = stack.enter_context(BatchSpool(arrow_schema(types), spool_folder))
            spool.extend(_convert_rows(rows, types, date_column, dates, progress))
        new_columns: dict[str, ColumnType] = {
            column: kind for column, kind in types.items() if column not in declared.columns
        }
        if declared.info is not None and new_columns:
            _check_before_adding(warehouse, declared.info, date_column, types, spool)
            warehouse.add_columns(name, new_columns)
        days = tuple(warehouse.load(name, date_column, spool.reader()))
        return LoadResult(
            table=name,
            rows=spool.rows,
            days=days,
            is_new=not declared.exists,
            new_columns=new_columns,
            unloadable_jobs=declared.unloadable_jobs,
        )


def _declared_by_table_or_jobs(warehouse: Warehouse, table: TableName) -> _Declared:
    """Return the column types and the date column of the table or, if it does not exist, of the jobs that read it."""
    info = warehouse.describe(table)
    if info is not None:
        types: dict[str, ColumnType] = {name: kind for name, kind in info.columns.items() if kind in ARROW_TYPES}  # pyright: ignore[reportAssignmentType]
        return _Declared(info=info, types=types, date_column=info.partitioned_by)
    declared_types: dict[str, ColumnType] = {}
    date_column: str | None = None
    jobs, errors = load_jobs()
    for job in jobs:
        declared_types |= job.declared_types().get(str(table), {})
        date_column = date_column or job.date_column_of(str(table))
    return _Declared(types=declared_types, date_column=date_column, unloadable_jobs=tuple(errors))


def _check_before_adding(
    warehouse: Warehouse, info: TableInfo, date_column: str, types: Mapping[str, ColumnType], spool: BatchSpool
) -> None:
    """Check that the rows can be loaded once the table has their columns, so that none is added for nothing."""
    with_new_columns = replace(info, columns={**types, **info.columns})
    missing_columns(info, {column: kind for column, kind in types.items() if column not in info.columns})
    check_same_columns(with_new_columns, date_column, types)
    days: set[Any] = {day for batch in spool for day in pc.unique(batch[date_column]).to_pylist()}
    warehouse.check_loadable(info.table, date_column, days)


# -- reading --------------------------------------------------------------------------------------------------


@contextmanager
def _read_file(
    file: Path, options: LoadOptions, dates: DateFormat, spool_folder: Path | None, progress: Progress
) -> Generator[RowFile]:
    suffix = file.suffix.lower()
    if suffix not in (".csv", ".parquet"):
        raise UserError(f"{file} is neither .csv nor .parquet")
    csv_format = CsvFormat(
        encoding="utf-8" if options.encoding is None else options.encoding,
        delimiter="," if options.delimiter is None else options.delimiter,
    )
    if suffix == ".parquet" and not (options.encoding is None and options.delimiter is None):
        raise UserError(f"{file}: --encoding and --delimiter are for CSV files")
    with ExitStack() as stack:
        with _naming_file(file):
            if suffix == ".csv":
                reading = csv_rows(file, csv_format, options.renames, dates, spool_folder, progress)
            else:
                reading = parquet_rows(file, options.renames, progress)
            rows = stack.enter_context(reading)
        yield rows


@contextmanager
def _naming_file(file: Path) -> Generator[None]:
    try:
        yield
    except OSError as exc:
        raise UserError(f"{file} can't be read: {exc.strerror or exc}") from exc
    except pa.ArrowException as exc:
        raise UserError(f"{file} can't be read: {exc}") from exc


def _chunks(rows: RowFile) -> Iterator[RowChunk]:
    chunks = rows.chunks()
    while True:
        with _naming_file(rows.file):
            chunk = next(chunks, None)
        if chunk is None:
            return
        yield chunk


# -- columns --------------------------------------------------------------------------------------------------


def _choose_columns(
    table: TableName, date_column: str | None, declared: _Declared, rows: RowFile, *, add_columns: bool
) -> tuple[str, dict[str, ColumnType]]:
    """Choose the date column and the type of each column. Raises `UserError` for a file that does not fit the table."""
    if not rows.rows:
        raise UserError(f"{rows.file} holds no rows")
    date_column = _choose_date_column(table, date_column or declared.date_column, declared, rows)
    _check_columns(table, declared, rows, add_columns=add_columns)
    types: dict[str, ColumnType] = {**rows.types, **declared.types, date_column: "DATE"}
    return date_column, {column: types[column] for column in rows.types}


def _choose_date_column(table: TableName, requested: str | None, declared: _Declared, rows: RowFile) -> str:
    """The requested date column, or else the file's only column of dates. Raises `UserError` when there is none."""
    if requested is not None:
        if requested not in rows.types:
            raise SchemaMismatch(
                f"the file has no date column {requested}; its columns are {', '.join(rows.types)}", table=str(table)
            )
        return requested
    types: dict[str, ColumnType] = {**rows.types, **declared.types}
    candidates = [column for column in rows.types if types[column] == "DATE"] or _midnight_columns(rows, types)
    if len(candidates) != 1:
        count = f"it has {len(candidates)}: {', '.join(candidates)}" if candidates else NO_DATES
        raise UserError(f"say which column dates the rows with --date-column: {count}", table=str(table))
    return candidates[0]


def _midnight_columns(rows: RowFile, types: Mapping[str, ColumnType]) -> list[str]:
    """Return the columns of times that are all at midnight: pandas writes dates so."""
    candidates = [column for column in rows.types if rows.types[column] == types[column] == "DATETIME"]
    if not candidates:
        return []
    for chunk in _chunks(rows):
        dates = {column: convert(chunk.columns[column], "DATE") for column in candidates}
        candidates = [
            column for column in candidates if not dates[column].problems and not dates[column].values.null_count
        ]
    return candidates


def _check_columns(table: TableName, declared: _Declared, rows: RowFile, *, add_columns: bool) -> None:
    """Check that the file has the table's columns and, unless they may be added, no others. Raises `SchemaMismatch`."""
    missing = [column for column in declared.types if column not in rows.types]
    if missing:
        raise SchemaMismatch(
            f"{rows.file} lacks the column(s) {', '.join(missing)}: name columns as the table does with --rename",
            table=str(table),
        )
    further = {column: kind for column, kind in rows.types.items() if column not in declared.columns}
    if declared.exists and further and not add_columns:
        listed = ", ".join(f"{column} {kind}" for column, kind in further.items())
        raise SchemaMismatch(
            f"{rows.file} does not have the table's columns; differing: {listed}: add them to the table, null in its "
            f"other rows, with --add-columns",
            table=str(table),
        )


# -- values ---------------------------------------------------------------------------------------------------


def _convert_rows(
    rows: RowFile, types: Mapping[str, ColumnType], date_column: str, dates: DateFormat, progress: Progress
) -> Iterator[pa.RecordBatch]:
    """Yield the converted rows. Raises `UserError`, after the last of them, if there are problems in any."""
    problems = Problems(file=rows.file, place_word=rows.place_word)
    schema = arrow_schema(types)
    done = 0
    for chunk in _chunks(rows):
        converted = {name: convert(chunk.columns[name], kind, dates) for name, kind in types.items()}
        for name, column in converted.items():
            for index, text in column.problems.items():
                problems.add(chunk.place(index), f"{name} {text}")
        days = converted[date_column]
        if days.values.null_count > len(days.problems):
            for index, day in enumerate(days.values):
                if not day.is_valid and index not in days.problems:
                    problems.add(chunk.place(index), f"{date_column} is empty")
        done += len(chunk.places)
        progress("checking", done, rows.rows)
        if not problems.count:
            yield pa.record_batch([column.values for column in converted.values()], schema=schema)
    problems.check()
