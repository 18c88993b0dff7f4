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
from gated_backfill.common.model.registry import find_job, job_names
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

    def describe(self) -> str:
        return f"{self.table}: {self.rows} row(s) on {len(self.days)} date(s) loaded: {format_dates(self.days)}"


@dataclass(frozen=True, kw_only=True)
class _Raw:
    """A file's columns as read, and for each row the line (CSV) or row number (Parquet) to name it by."""

    columns: dict[str, list[Any]]
    places: list[int]
    place_word: str
    types: dict[str, ColumnType]  #: types declared by the file; empty for CSV


def load_file(warehouse: Warehouse, table: str, file: Path, date_column: str | None) -> LoadResult:
    """Load the file into the table, replacing the dates it holds.

    Types come from the table if it exists, else from the installed jobs that read it, else from the file. Raises
    `UserError` naming the bad rows, and loads nothing, when a value does not fit or a date is missing.
    """
    name = TableName.parse(table)
    known, dated_by = _known(warehouse, name)
    raw = _read(file)
    for column in raw.columns:
        validate_identifier(column, "column name")
    dated = _date_column(name, date_column or dated_by, known, raw)
    types: dict[str, ColumnType] = {**_inferred(raw), **known, dated: "DATE"}
    lacking = [column for column in known if column not in raw.columns]
    if lacking:
        raise SchemaMismatch(f"{file} lacks the column(s) {', '.join(lacking)}", table=table)
    rows = _typed(raw, types, dated, file)
    return LoadResult(table=name, rows=rows.num_rows, days=tuple(warehouse.load(name, dated, rows)))


def _known(warehouse: Warehouse, table: TableName) -> tuple[dict[str, ColumnType], str | None]:
    """The columns' types and the date column as the table has them, or as the jobs that read it declare them."""
    info = warehouse.describe(table)
    if info is not None:
        return {c: kind for c, kind in info.columns.items() if kind in ARROW_TYPES}, info.partitioned_by  # pyright: ignore
    declared: dict[str, ColumnType] = {}
    dated: str | None = None
    for job in (find_job(one) for one in job_names()):
        declared |= job.declared_types().get(str(table), {})
        dated = dated or job.date_column_of(str(table))
    return declared, dated


def _date_column(table: TableName, named: str | None, known: dict[str, ColumnType], raw: _Raw) -> str:
    if named is not None:
        if named not in raw.columns:
            raise SchemaMismatch(
                f"the file has no date column {named}; its columns are {', '.join(raw.columns)}",
                table=str(table),
            )
        return named
    types = {**_inferred(raw), **known}
    candidates = [column for column, kind in types.items() if kind == "DATE" and column in raw.columns]
    if len(candidates) != 1:
        found = f"it has {len(candidates)}: {', '.join(candidates)}" if candidates else "it has none"
        raise UserError(f"say which column dates the rows with --date-column: {found}", table=str(table))
    return candidates[0]


# -- reading --------------------------------------------------------------------------------------------------


def _read(file: Path) -> _Raw:
    readers: dict[str, Callable[[Path], _Raw]] = {".csv": _read_csv, ".parquet": _read_parquet}
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


def _read_csv(file: Path) -> _Raw:
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
        start = lines.line_num + 1
        for fields in lines:
            if fields and len(fields) != len(header):
                ragged.append(f"line {start}: {len(fields)} fields, the header has {len(header)}")
            elif fields:
                values.append(fields)
                places.append(start)
            start = lines.line_num + 1
    _refuse(file, ragged)
    columns = {name: [row[at] or None for row in values] for at, name in enumerate(header)}
    return _Raw(columns=columns, places=places, place_word="line", types={})


def _read_parquet(file: Path) -> _Raw:
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
    return _Raw(columns=columns, places=places, place_word="row", types=types)


def _plain_type(kind: pa.DataType) -> ColumnType | None:
    if pa.types.is_integer(kind):
        return "INT64"
    if pa.types.is_floating(kind):
        return "FLOAT64"
    if pa.types.is_dictionary(kind):
        return _plain_type(kind.value_type)
    return column_type_of(kind)


# -- types ----------------------------------------------------------------------------------------------------


def _inferred(raw: _Raw) -> dict[str, ColumnType]:
    return {name: raw.types.get(name) or _infer(values) for name, values in raw.columns.items()}


def _infer(values: Sequence[Any]) -> ColumnType:
    """The narrowest type that keeps every value exactly; `0042` is text, because a number would lose its zeros."""
    given = [value for value in values if value is not None]
    order: tuple[ColumnType, ...] = ("INT64", "FLOAT64", "DATE", "BOOL")
    for kind in order if given else ():
        if all(_fits(value, kind) for value in given):
            return kind
    return "STRING"


def _fits(value: str, kind: ColumnType) -> bool:
    if kind == "BOOL":
        return value.lower() in ("true", "false")
    if kind == "FLOAT64" and (re.match(r"[+-]?0\d", value) or DIGITS_ONLY.fullmatch(value)):
        return _fits(value, "INT64")  # more digits than an INT64 holds are an identifier, no measurement
    try:
        CONVERTERS[kind](value)
    except (ValueError, UserError):
        return False
    return True


def _integer(value: Any) -> int:
    if isinstance(value, str):
        if not INTEGER.fullmatch(value):
            raise ValueError("is not a whole number")
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("is not a whole number")
    if not -INT64_BOUND <= value < INT64_BOUND:
        raise ValueError("does not fit in 64 bits")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or (isinstance(value, str) and not NUMBER.fullmatch(value)):
        raise ValueError("is not a number")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError("is not a finite number")
    return number


def _boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if not isinstance(value, str) or value.lower() not in BOOLEANS:
        raise ValueError("is neither true nor false")
    return BOOLEANS[value.lower()]


def _date(value: Any) -> date:
    if isinstance(value, datetime):
        raise ValueError("has a time of day")
    return value if isinstance(value, date) else parse_date(str(value))


def _timestamp(value: Any) -> datetime:
    found = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
    if found.tzinfo is None:
        raise ValueError("has no zone: write it as 2023-02-23T19:30:00Z")
    return found.astimezone(UTC)  # Arrow takes the wall time of any zone as it stands


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("is not text")
    return value


CONVERTERS: dict[ColumnType, Callable[[Any], Any]] = {
    "INT64": _integer,
    "FLOAT64": _number,
    "BOOL": _boolean,
    "DATE": _date,
    "TIMESTAMP": _timestamp,
    "STRING": _text,
}


def _typed(raw: _Raw, types: dict[str, ColumnType], dated: str, file: Path) -> pa.Table:
    problems: list[tuple[int, str]] = []
    columns: dict[str, list[Any]] = {}
    for name, values in raw.columns.items():
        columns[name] = list(_converted(name, values, types[name], raw, problems, required=name == dated))
    _refuse(file, [text for _, text in sorted(problems)])
    order: dict[str, ColumnType] = {name: types[name] for name in raw.columns}
    return pa.table(columns, schema=arrow_schema(order))


def _converted(
    name: str,
    values: Sequence[Any],
    kind: ColumnType,
    raw: _Raw,
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


def _refuse(file: Path, problems: list[str]) -> None:
    if problems:
        more = f" and {len(problems) - PROBLEMS_SHOWN} more" if len(problems) > PROBLEMS_SHOWN else ""
        raise UserError(f"{file}: nothing was loaded: {'; '.join(problems[:PROBLEMS_SHOWN])}{more}")
