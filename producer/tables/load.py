"""Load a CSV or Parquet file into a warehouse table: check every value, then load all rows or none."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gated_backfill.common.errors import SchemaMismatch, UserError
from gated_backfill.common.model.arrow_types import ARROW_TYPES, arrow_schema, column_type_of
from gated_backfill.common.model.dates import format_dates, parse_date
from gated_backfill.common.model.registry import load_jobs
from gated_backfill.common.model.tables import ColumnType, TableName, validate_identifier
from gated_backfill.common.warehouse.protocol import Warehouse

PROBLEMS_SHOWN = 5
INTEGER = re.compile(r"[+-]?(0|[1-9]\d*)", re.ASCII)
NUMBER = re.compile(r"(?i:[+-]?(nan|inf|infinity))|[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
DIGITS_ONLY = re.compile(r"[+-]?\d+")
INT64_BOUND = 2**63
BOOLEANS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}


@dataclass(frozen=True, kw_only=True)
class LoadResult:
    """The result of a load."""

    table: TableName
    rows: int
    days: tuple[date, ...]
    unloadable_jobs: tuple[str, ...] = ()  #: jobs whose column types could not be used

    def describe(self) -> str:
        loaded = f"{self.table}: {self.rows} row(s) on {len(self.days)} date(s) loaded: {format_dates(self.days)}"
        names = ", ".join(self.unloadable_jobs)
        return f"{loaded}; without the column types of jobs that can't be loaded: {names}" if names else loaded


@dataclass(frozen=True, kw_only=True)
class _RawFile:
    """A file's columns before conversion, and the line (CSV) or number (Parquet) of each row for error messages."""

    columns: dict[str, list[Any]]
    places: list[int]
    place_word: str
    types: dict[str, ColumnType]  #: types declared by the file; empty for CSV


def load_file(warehouse: Warehouse, table: str, file: Path, date_column: str | None) -> LoadResult:
    """Load the file into the table, replacing the dates in the file.

    Types come from the table if it exists, else from the installed jobs that read it, else from the file. Raises
    `UserError` naming the bad rows, and loads nothing, when a value does not fit or a date is missing.
    """
    name = TableName.parse(table)
    declared_types, declared_date_column, unloadable_jobs = _find_declared_types(warehouse, name)
    raw = _read_file(file)
    for column in raw.columns:
        validate_identifier(column, "column name")
    date_column = _choose_date_column(name, date_column or declared_date_column, declared_types, raw)
    types: dict[str, ColumnType] = {**_infer_types(raw), **declared_types, date_column: "DATE"}
    missing_columns = [column for column in declared_types if column not in raw.columns]
    if missing_columns:
        raise SchemaMismatch(f"{file} lacks the column(s) {', '.join(missing_columns)}", table=table)
    rows = _convert_rows(raw, types, date_column, file)
    days = tuple(warehouse.load(name, date_column, rows))
    return LoadResult(table=name, rows=rows.num_rows, days=days, unloadable_jobs=unloadable_jobs)


def _find_declared_types(
    warehouse: Warehouse, table: TableName
) -> tuple[dict[str, ColumnType], str | None, tuple[str, ...]]:
    """The column types and the date column of the table or, if it does not exist, of the jobs that read it.

    The third value names the jobs that cannot be loaded, if jobs were looked at.
    """
    info = warehouse.describe(table)
    if info is not None:
        types = {name: kind for name, kind in info.columns.items() if kind in ARROW_TYPES}
        return types, info.partitioned_by, ()  # pyright: ignore[reportReturnType]
    declared_types: dict[str, ColumnType] = {}
    date_column: str | None = None
    jobs, errors = load_jobs()
    for job in jobs:
        declared_types |= job.declared_types().get(str(table), {})
        date_column = date_column or job.date_column_of(str(table))
    return declared_types, date_column, tuple(errors)


def _choose_date_column(table: TableName, requested: str | None, declared: dict[str, ColumnType], raw: _RawFile) -> str:
    """The requested date column, or else the file's only DATE column. Raises `UserError` when there is none."""
    if requested is not None:
        if requested not in raw.columns:
            raise SchemaMismatch(
                f"the file has no date column {requested}; its columns are {', '.join(raw.columns)}", table=str(table)
            )
        return requested
    types = {**_infer_types(raw), **declared}
    candidates = [column for column, kind in types.items() if kind == "DATE" and column in raw.columns]
    if len(candidates) != 1:
        count = f"it has {len(candidates)}: {', '.join(candidates)}" if candidates else "it has none"
        raise UserError(f"say which column dates the rows with --date-column: {count}", table=str(table))
    return candidates[0]


# -- reading --------------------------------------------------------------------------------------------------


def _read_file(file: Path) -> _RawFile:
    readers: dict[str, Callable[[Path], _RawFile]] = {".csv": _read_csv, ".parquet": _read_parquet}
    reader = readers.get(file.suffix.lower())
    if reader is None:
        raise UserError(f"{file} is neither .csv nor .parquet")
    try:
        raw = reader(file)
    except OSError as exc:
        raise UserError(f"{file} can't be read: {exc.strerror or exc}") from exc
    except UnicodeDecodeError as exc:
        raise UserError(f"{file} is not UTF-8 text: {exc.reason} at byte {exc.start}") from exc
    except (csv.Error, pa.ArrowException, OverflowError) as exc:  # OverflowError: a date outside Python's range
        raise UserError(f"{file} can't be read: {exc}") from exc
    if not raw.places:
        raise UserError(f"{file} holds no rows")
    return raw


def _read_csv(file: Path) -> _RawFile:
    with file.open(encoding="utf-8-sig", newline="") as text:
        lines = csv.reader(text, strict=True)
        header = next(lines, None)
        if not header:
            raise UserError(f"{file} is empty")
        if len(set(header)) < len(header):
            raise UserError(f"{file}: two columns have the same name: {', '.join(header)}")
        values: list[list[str]] = []
        places: list[int] = []
        ragged: list[str] = []
        first_line = lines.line_num + 1
        for fields in lines:
            if fields and len(fields) != len(header):
                ragged.append(f"line {first_line}: {len(fields)} fields, the header has {len(header)}")
            elif fields:
                values.append(fields)
                places.append(first_line)
            first_line = lines.line_num + 1
    _check_no_problems(file, ragged)
    columns = {name: [row[index] or None for row in values] for index, name in enumerate(header)}
    return _RawFile(columns=columns, places=places, place_word="line", types={})


def _read_parquet(file: Path) -> _RawFile:
    schema = pq.read_schema(file)
    if len(set(schema.names)) < len(schema.names):
        raise UserError(f"{file}: two columns have the same name: {', '.join(schema.names)}")
    table = pq.ParquetFile(file).read()
    types: dict[str, ColumnType] = {}
    columns: dict[str, list[Any]] = {}
    for field in table.schema:
        kind = _plain_type(field.type)
        if kind is None:
            raise UserError(f"{file}: column {field.name} is {field.type}, which no table here can hold")
        types[field.name] = kind
        values: Any = table[field.name]
        columns[field.name] = values.to_pylist() if kind == "STRING" else values.cast(ARROW_TYPES[kind]).to_pylist()
    places = list(range(1, table.num_rows + 1))
    return _RawFile(columns=columns, places=places, place_word="row", types=types)


def _plain_type(kind: pa.DataType) -> ColumnType | None:
    if pa.types.is_integer(kind):
        return "INT64"
    if pa.types.is_floating(kind):
        return "FLOAT64"
    if pa.types.is_dictionary(kind):
        return _plain_type(kind.value_type)
    return column_type_of(kind)


# -- types ----------------------------------------------------------------------------------------------------


def _infer_types(raw: _RawFile) -> dict[str, ColumnType]:
    return {name: raw.types.get(name) or _infer_type(values) for name, values in raw.columns.items()}


def _infer_type(values: Sequence[Any]) -> ColumnType:
    """The narrowest type that keeps every value exactly; `0042` is text, because a number would lose its zeros."""
    non_empty = [value for value in values if value is not None]
    order: tuple[ColumnType, ...] = ("INT64", "FLOAT64", "DATE", "BOOL")
    for kind in order if non_empty else ():
        if all(_fits(value, kind) for value in non_empty):
            return kind
    return "STRING"


def _fits(value: str, kind: ColumnType) -> bool:
    if kind == "BOOL":
        return value.lower() in ("true", "false")
    if kind == "FLOAT64" and (re.match(r"[+-]?0\d", value) or DIGITS_ONLY.fullmatch(value)):
        return _fits(value, "INT64")  # more digits than an INT64 holds are an identifier, not a measurement
    try:
        CONVERTERS[kind](value)
    except (ValueError, UserError):
        return False
    return True


def _to_integer(value: Any) -> int:
    if isinstance(value, str):
        if not INTEGER.fullmatch(value):
            raise ValueError("is not a whole number")
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("is not a whole number")
    if not -INT64_BOUND <= value < INT64_BOUND:
        raise ValueError("does not fit in 64 bits")
    return value


def _to_number(value: Any) -> float:
    if isinstance(value, bool) or (isinstance(value, str) and not NUMBER.fullmatch(value)):
        raise ValueError("is not a number")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError("is not a finite number")
    return number


def _to_boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if not isinstance(value, str) or value.lower() not in BOOLEANS:
        raise ValueError("is neither true nor false")
    return BOOLEANS[value.lower()]


def _to_date(value: Any) -> date:
    if isinstance(value, datetime):
        raise ValueError("has a time of day")
    return value if isinstance(value, date) else parse_date(str(value))


def _to_timestamp(value: Any) -> datetime:
    moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
    if moment.tzinfo is None:
        raise ValueError("has no zone: write it as 2023-02-23T19:30:00Z")
    return moment.astimezone(UTC)  # Arrow would keep the wall time of another zone and drop the zone


def _check_text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("is not text")
    return value


CONVERTERS: dict[ColumnType, Callable[[Any], Any]] = {
    "INT64": _to_integer,
    "FLOAT64": _to_number,
    "BOOL": _to_boolean,
    "DATE": _to_date,
    "TIMESTAMP": _to_timestamp,
    "STRING": _check_text,
}


def _convert_rows(raw: _RawFile, types: dict[str, ColumnType], date_column: str, file: Path) -> pa.Table:
    problems: list[tuple[int, str]] = []
    columns: dict[str, list[Any]] = {}
    for name, values in raw.columns.items():
        columns[name] = list(_convert_values(name, values, types[name], raw, problems, required=name == date_column))
    _check_no_problems(file, [text for _, text in sorted(problems)])
    order: dict[str, ColumnType] = {name: types[name] for name in raw.columns}
    return pa.table(columns, schema=arrow_schema(order))


def _convert_values(
    name: str,
    values: Sequence[Any],
    kind: ColumnType,
    raw: _RawFile,
    problems: list[tuple[int, str]],
    *,
    required: bool,
) -> Iterator[Any]:
    convert = CONVERTERS[kind]
    for place, value in zip(raw.places, values, strict=True):
        if value is None:
            if required:
                problems.append((place, f"{raw.place_word} {place}: {name} is empty"))
            yield None
            continue
        try:
            yield convert(value)
        except ValueError as exc:
            problems.append((place, f"{raw.place_word} {place}: {name} {value!r} {exc}"))
        except UserError as exc:
            problems.append((place, f"{raw.place_word} {place}: {name} {exc}"))


def _check_no_problems(file: Path, problems: list[str]) -> None:
    if problems:
        suffix = f" and {len(problems) - PROBLEMS_SHOWN} more" if len(problems) > PROBLEMS_SHOWN else ""
        raise UserError(f"{file}: nothing was loaded: {'; '.join(problems[:PROBLEMS_SHOWN])}{suffix}")
