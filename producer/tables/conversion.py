"""Conversion of columns to the types of a table: every value is kept exactly, or it is a problem."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from gated_backfill.common.errors import UserError
from gated_backfill.common.model.arrow.types import ARROW_TYPES, read_type_of
from gated_backfill.common.model.dates import ISO_DATE, parse_date
from gated_backfill.common.model.tables import ColumnType, is_numeric
from gated_backfill.producer.tables.exact_texts import (
    exact_booleans,
    exact_dates,
    exact_integers,
    exact_numbers,
    least_and_most,
)
from gated_backfill.producer.tables.row_file import shown

INTEGER = re.compile(r"[+-]?(0|[1-9]\d*)(\.0+)?", re.ASCII)
NUMBER = re.compile(r"(?i:[+-]?(nan|inf|infinity))|[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
MOMENT = re.compile(
    r"\d{4}-\d\d-\d\d([ Tt]\d\d:\d\d(:\d\d([.,]\d+)?)?( ?([Zz]|[+-]\d\d(:?\d\d(:?\d\d)?)?))?)?", re.ASCII
)
DECIMAL = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,5})?", re.ASCII)
INT64_BOUND = 2**63
FLOAT64_INTEGERS = 2**53  #: beyond, a FLOAT64 may stand for several whole numbers
FLOAT64_DIGITS = 17  #: that a FLOAT64 may give back
BOOLEANS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}
#: Pairs of types: values of the first are cast to the second, and back to see whether all of them are the same.
QUICK_CASTS = {("DATETIME", "DATE"), ("FLOAT64", "INT64"), ("INT64", "FLOAT64"), ("INT64", "NUMERIC")}
SAMPLE_DATES = (date(1987, 12, 31), date(2024, 2, 29))
YEARS = "is outside the years 1 to 9999"
FIRST_MICROSECOND, LAST_MICROSECOND = -62_135_596_800_000_000, 253_402_300_799_999_999  #: of years 1 to 9999


@dataclass(frozen=True)
class DateFormat:
    """How texts are read as dates: as YYYY-MM-DD, or by a format of `strptime`."""

    strptime: str | None = None

    def __post_init__(self) -> None:
        if self.strptime is None:
            return
        try:
            is_whole = all(self._read(day.strftime(self.strptime)) == day for day in SAMPLE_DATES)
        except (ValueError, UserError):
            is_whole = False
        except re.error as exc:  # of the regular expression that `strptime` makes: a group of a name that is taken
            repeated = _repeated_code(self.strptime) or "one of its codes"
            raise UserError(f"--date-format {self.strptime!r} gives the same part twice: use {repeated} once") from exc
        if not is_whole:
            raise UserError(
                f"--date-format {self.strptime!r} is no format of a date with day, month and year, such as %d.%m.%Y"
            )

    def read(self, text: str) -> date:
        """Read a date. Raises `ValueError` or `UserError` for a text that is none in this format."""
        if self.strptime is None:
            if text != text.strip():
                raise ValueError("has blanks around it")
            if not ISO_DATE.fullmatch(text):
                raise UserError(
                    f"{shown(text)} is not a date: write it as YYYY-MM-DD, or give its form with --date-format"
                )
            return parse_date(text)
        return _read_date(self.strptime, text)

    def _read(self, text: str) -> date:
        assert self.strptime is not None
        return _read_date(self.strptime, text)

    def exact_dates(self, texts: pa.Array[Any]) -> pa.Array[Any] | None:
        """Return the dates; None unless every text is one in this format."""
        if self.strptime is None:
            return exact_dates(texts)
        encoded: Any = texts.dictionary_encode()
        try:
            days = [None if text is None else self.read(text) for text in encoded.dictionary.to_pylist()]
        except (ValueError, UserError):
            return None
        return pa.array(days, pa.date32()).take(encoded.indices)


def _repeated_code(strptime: str) -> str | None:
    """Return the first code that the format has twice; None if a longer code, such as %c, stands for one of them."""
    codes = [code for code in re.findall("%.", strptime, re.DOTALL) if code != "%%"]
    return next((code for code in codes if codes.count(code) > 1), None)


@lru_cache(maxsize=50_000)
def _read_date(strptime: str, text: str) -> date:
    try:
        moment = datetime.strptime(text, strptime)  # noqa: DTZ007 - a date without a zone
    except ValueError as exc:
        raise ValueError(f"is not a date of the form {strptime}") from exc
    if moment.time() != datetime.min.time():
        raise ValueError("has a time of day")
    # `strptime` takes digits of any script, blanks, and any number of digits: 2024111 as 2024-11-1.
    if not text.isascii() or text != text.strip() or _numbers(text) != _numbers(moment.strftime(strptime)):
        raise ValueError(f"is not a date of the form {strptime}")
    return moment.date()


def _numbers(text: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", text)]


@dataclass(frozen=True)
class Converted:
    """The values of a column, and by index what is wrong with those that could not be converted."""

    values: pa.Array[Any]
    problems: Mapping[int, str] = field(default_factory=dict[int, str])


def convert(values: pa.Array[Any], kind: ColumnType, dates: DateFormat = DateFormat()) -> Converted:
    """Convert the values of a column to the type. What is not kept exactly is a problem, and null."""
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if pa.types.is_large_string(values.type) or pa.types.is_string_view(values.type):
        values = values.cast(pa.string())
    if pa.types.is_null(values.type):
        return Converted(pa.array([None] * len(values), ARROW_TYPES[kind]))
    is_text = pa.types.is_string(values.type)
    fast = _exact_texts(values, kind, dates) if is_text else _exact_values(values, kind)
    if fast is not None:
        return Converted(fast)
    return _convert_texts(values, kind, dates) if is_text else _convert_each(values, kind, dates)


def _exact_texts(texts: pa.Array[Any], kind: ColumnType, dates: DateFormat) -> pa.Array[Any] | None:
    exact: dict[ColumnType, Callable[[pa.Array[Any]], pa.Array[Any] | None]] = {
        "STRING": lambda texts: texts,
        "INT64": exact_integers,
        "FLOAT64": exact_numbers,
        "BOOL": exact_booleans,
        "DATE": dates.exact_dates,
    }
    return exact[kind](texts) if kind in exact else None


def _exact_values(values: pa.Array[Any], kind: ColumnType) -> pa.Array[Any] | None:
    """Cast values that are no texts; None unless all of them fit, or where each has to be looked at."""
    source = read_type_of(values.type)
    if source != kind and (source, kind) not in QUICK_CASTS:
        return None
    try:
        cast = values.cast(ARROW_TYPES[kind])
        if source != kind and not cast.cast(values.type).equals(values):
            return None
    except pa.ArrowInvalid:
        return None
    return cast if _is_in_range(cast, kind, whole_floats=source == "FLOAT64") else None


def _is_in_range(values: pa.Array[Any], kind: ColumnType, *, whole_floats: bool) -> bool:
    if kind == "FLOAT64":
        return pc.all(pc.is_finite(values)).as_py() is not False
    bounds: dict[ColumnType, tuple[int, int]] = {
        "DATE": (
            date.min.toordinal() - date(1970, 1, 1).toordinal(),
            date.max.toordinal() - date(1970, 1, 1).toordinal(),
        ),
        "DATETIME": (FIRST_MICROSECOND, LAST_MICROSECOND),
        "TIMESTAMP": (FIRST_MICROSECOND, LAST_MICROSECOND),
    }
    if whole_floats:
        bounds["INT64"] = (-FLOAT64_INTEGERS, FLOAT64_INTEGERS)
    if kind not in bounds:
        return True
    numbers = values.cast(pa.int32()) if kind == "DATE" else values.cast(pa.int64())
    low, high = least_and_most(numbers)
    return low is None or (low >= bounds[kind][0] and high <= bounds[kind][1])


def _convert_texts(texts: pa.Array[Any], kind: ColumnType, dates: DateFormat) -> Converted:
    """Convert each different text once."""
    encoded: Any = texts.dictionary_encode()
    different = _convert_each(encoded.dictionary, kind, dates)
    indices = encoded.indices
    problems: dict[int, str] = {}
    if different.problems:
        numbers = indices.to_pylist()
        problems = {at: different.problems[number] for at, number in enumerate(numbers) if number in different.problems}
    return Converted(different.values.take(indices), problems)


def _convert_each(values: pa.Array[Any], kind: ColumnType, dates: DateFormat) -> Converted:
    convert_value = converters(dates)[kind]
    converted: list[Any] = []
    problems: dict[int, str] = {}
    for index, scalar in enumerate(values):
        try:
            value = scalar.as_py()
        except (OverflowError, ValueError):  # Python cannot hold it
            problems[index] = YEARS
            converted.append(None)
            continue
        try:
            converted.append(None if value is None else convert_value(value))
        except (ValueError, UserError) as exc:
            problems[index] = f"{shown(value)} {exc}" if isinstance(exc, ValueError) else str(exc)
            converted.append(None)
    return Converted(pa.array(converted, ARROW_TYPES[kind]), problems)


# -- single values --------------------------------------------------------------------------------------------


def converters(dates: DateFormat) -> dict[ColumnType, Callable[[Any], Any]]:
    """Return the converter of one value for each type. They raise `ValueError`, which ends a sentence on the value."""

    def to_date(value: Any) -> date:
        if isinstance(value, datetime):
            return _date_of(value)
        return value if isinstance(value, date) else dates.read(str(value))

    return {
        "INT64": to_integer,
        "FLOAT64": to_number,
        "NUMERIC": to_decimal,
        "BOOL": to_boolean,
        "BYTES": to_bytes,
        "DATE": to_date,
        "DATETIME": to_datetime,
        "TIMESTAMP": to_timestamp,
        "STRING": to_text,
    }


def to_integer(value: Any) -> int:
    if isinstance(value, str):
        if not INTEGER.fullmatch(value):
            raise ValueError("is not a whole number")
        value = int(value.partition(".")[0])
    if isinstance(value, (float, Decimal)):
        value = _whole_number(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("is not a whole number")
    if not -INT64_BOUND <= value < INT64_BOUND:
        raise ValueError("does not fit in 64 bits")
    return value


def _whole_number(value: float | Decimal) -> int:
    if not math.isfinite(value) or value != int(value):
        raise ValueError("is not a whole number")
    if isinstance(value, float) and abs(value) > FLOAT64_INTEGERS:
        raise ValueError("is a FLOAT64 beyond 2**53, which may stand for several whole numbers")
    return int(value)


def to_number(value: Any) -> float:
    if isinstance(value, str):
        return _number_of(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError("is not a number")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError("is not a finite number")
    if number != value:
        raise ValueError("has more digits than a FLOAT64 keeps")
    return number


def _number_of(text: str) -> float:
    if not NUMBER.fullmatch(text):
        raise ValueError("is not a number")
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("is not a finite number")
    written, _, exponent = text.lower().partition("e")
    digits = written.lstrip("+-").replace(".", "").strip("0")
    if not digits:
        return number
    if not number or len(exponent) > 5:
        raise ValueError("is too small for a FLOAT64")
    is_short = len(digits) <= FLOAT64_DIGITS
    if Decimal(text) != Decimal(f"{number:.{len(digits) - 1}e}" if is_short else number):
        raise ValueError("has more digits than a FLOAT64 keeps")
    return number


def to_decimal(value: Any) -> Decimal:
    if isinstance(value, str):
        if not DECIMAL.fullmatch(value):
            raise ValueError("is not a decimal number")
        value = Decimal(value)
    if isinstance(value, float):
        raise ValueError("is a FLOAT64, which is no exact decimal number")
    if isinstance(value, bool) or not isinstance(value, (int, Decimal)):
        raise ValueError("is not a decimal number")
    number = Decimal(value)
    if not number.is_finite():
        raise ValueError("is not a finite number")
    if not is_numeric(number):
        raise ValueError("has more digits than a NUMERIC keeps: 29 before the point and 9 behind it")
    return number or Decimal(0)  # Arrow does not take 0e99


def to_bytes(value: Any) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("is not bytes: load them from a Parquet file")
    return value


def to_boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if not isinstance(value, str) or value.lower() not in BOOLEANS:
        raise ValueError("is neither true nor false")
    return BOOLEANS[value.lower()]


def _date_of(moment: datetime) -> date:
    if moment.time() != datetime.min.time() or getattr(moment, "nanosecond", 0):
        raise ValueError("has a time of day")
    if moment.utcoffset():
        raise ValueError("is a time in a zone, not a date")
    return moment.date()


def to_timestamp(value: Any) -> datetime:
    moment = _moment_of(value)
    if moment.tzinfo is None:
        raise ValueError("has no zone: write it as 2023-02-23T19:30:00Z")
    try:
        return moment.astimezone(UTC)  # Arrow would keep the wall time of another zone and drop the zone
    except OverflowError as exc:
        raise ValueError(f"{YEARS} in UTC") from exc


def to_datetime(value: Any) -> datetime:
    moment = _moment_of(value)
    if moment.tzinfo is not None:
        raise ValueError("has a zone: write it as 2023-02-23T19:30:00")
    return moment


def _moment_of(value: Any) -> datetime:
    if isinstance(value, datetime):
        if getattr(value, "nanosecond", 0):
            raise ValueError("has digits beyond microseconds")
        return value
    if not isinstance(value, str) or not MOMENT.fullmatch(value):
        raise ValueError("is not a time such as 2023-02-23T19:30:00Z")
    if any(digits.strip("0") for digits in re.findall(r"[.,]\d{6}(\d+)", value)):
        raise ValueError("has digits beyond microseconds")
    try:
        return datetime.fromisoformat(value.upper().replace(" +", "+").replace(" -", "-").replace(" Z", "Z"))
    except ValueError as exc:
        raise ValueError("is not a time of the calendar") from exc


def to_text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("is not text")
    return value
