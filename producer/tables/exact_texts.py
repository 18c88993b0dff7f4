"""Texts as values of a type, if the values give every text back exactly; and the type of a column of texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from gated_backfill.common.model.tables import ColumnType

PLAIN_NUMBER = r"\A-?(0|[1-9][0-9]*)(\.[0-9]+)?\z"
EXPONENT = r"\A-?[1-9](\.[0-9]+)?e[+-][0-9]{2,3}\z"  #: as in the shortest text of a very large or small number
FIRST_DAY = -719_162  #: 0001-01-01, as days from 1970-01-01

#: Arrow arrays, of which `pyarrow.compute` takes more than its type stubs know.
Texts: TypeAlias = Any
Values: TypeAlias = Any
Exact: TypeAlias = "Callable[[Texts], Values | None]"


def exact_integers(texts: Texts) -> Values | None:
    """Return the INT64 values; None unless each gives its text back, as `007`, `+7`, `-0` and `7_000` do not."""
    return _exact_cast(texts, pa.int64())


def exact_dates(texts: Texts) -> Values | None:
    """Return the dates; None unless each text is a date of the calendar, written as YYYY-MM-DD."""
    days = _exact_cast(texts, pa.date32())
    if days is None or not _all(pc.greater_equal(days.cast(pa.int32()), pa.scalar(FIRST_DAY, pa.int32()))):
        return None
    return days


def exact_booleans(texts: Texts) -> Values | None:
    """Return the booleans; None unless each text is `true` or `false`."""
    return _exact_cast(texts, pa.bool_())


def exact_numbers(texts: Texts) -> Values | None:
    """Return the FLOAT64 values; None unless each gives its text back, but for zeros at the end of its decimals.

    So a text has no sign but `-`, no more digits than a FLOAT64 keeps, and digits around its point. It has an exponent
    only where Python (and pandas) writes one: `5e-07`, but not `12E5` or `1e3`.
    """
    is_plain = pc.match_substring_regex(texts, PLAIN_NUMBER)
    if not _all(is_plain):
        with_exponent = texts.filter(pc.invert(is_plain))
        if not _all(pc.match_substring_regex(with_exponent, EXPONENT)):
            return None
        if any(repr(float(text)) != text for text in with_exponent.to_pylist()):
            return None
        plain = exact_numbers(pc.if_else(is_plain, texts, pa.scalar(None, pa.string())))
        return None if plain is None else pc.if_else(is_plain, plain, texts.cast(pa.float64()))
    has_point = _has_point(texts)
    short = pc.if_else(has_point, pc.ascii_rtrim(pc.ascii_rtrim(texts, "0"), "."), texts)
    if pc.any(pc.and_(pc.equal(short, pa.scalar("-0")), pc.invert(has_point))).as_py():
        return None
    numbers = texts.cast(pa.float64())
    return numbers if _are_written_as(numbers, short) else None


def _are_written_as(numbers: Values, texts: Texts) -> bool:
    """Whether the shortest text of each number, without an exponent, is the given one."""
    differs = pc.not_equal(numbers.cast(pa.string()), texts)
    return all(
        format(Decimal(repr(number)), "f").removesuffix(".0") == text
        for number, text in zip(numbers.filter(differs).to_pylist(), texts.filter(differs).to_pylist(), strict=True)
    )


def _exact_cast(texts: Texts, arrow_type: pa.DataType) -> Values | None:
    try:
        values = texts.cast(arrow_type)
    except pa.ArrowInvalid:
        return None
    return values if values.cast(pa.string()).equals(texts) else None


def least_and_most(values: Values) -> tuple[Any, Any]:
    """Return the least and the greatest value; None for both without a value."""
    bounds: Any = pc.min_max(values).as_py()
    return bounds["min"], bounds["max"]


def _all(values: Any) -> bool:
    return pc.all(values).as_py() is not False  # None: no value but nulls


def _has_point(texts: Texts) -> Any:
    return pc.match_substring(texts, ".")


@dataclass
class DecimalStyles:
    """How the numbers of a column are written, which decides whether zeros at their end may be dropped.

    They may if the column's style gives them back: all with as many decimals (`1.50`, `2.00`), or none with needless
    ones, where whole numbers are either all `2` or all `2.0`. Otherwise the zeros may tell `1.1` from `1.10`.
    """

    whole: bool = False  #: some are written without a point
    with_exponent: bool = False
    whole_with_point: bool = False  #: some are written as `2.0`
    padded: bool = False  #: some have a zero at the end of several decimals
    fewest: int | None = None  #: decimals, of those with a point
    most: int | None = None

    def add(self, texts: Texts) -> None:
        """Add texts of `exact_numbers`, without nulls."""
        has_exponent = pc.match_substring(texts, "e")
        if pc.any(has_exponent).as_py():
            self.with_exponent = True
            texts = texts.filter(pc.invert(has_exponent))
        has_point = _has_point(texts)
        self.whole = self.whole or not _all(has_point)
        pointed = texts.filter(has_point)
        if not len(pointed):
            return
        decimals = pc.subtract(pc.subtract(pc.binary_length(pointed), pc.find_substring(pointed, ".")), 1)
        fewest, most = least_and_most(decimals)
        self.fewest = fewest if self.fewest is None else min(self.fewest, fewest)
        self.most = most if self.most is None else max(self.most, most)
        ends_in_zero = pc.ends_with(pointed, "0")
        single = pc.equal(decimals, pa.scalar(1))
        self.whole_with_point = self.whole_with_point or bool(pc.any(pc.and_(ends_in_zero, single)).as_py())
        self.padded = self.padded or bool(pc.any(pc.and_(ends_in_zero, pc.invert(single))).as_py())

    @property
    def are_one(self) -> bool:
        if self.fewest is None:
            return False  # whole numbers that no INT64 holds
        if not self.whole and not self.with_exponent and self.fewest == self.most:
            return True
        return not self.padded and not (self.whole and self.whole_with_point)


class ColumnGuess:
    """Finds the narrowest type that gives every text of a column back exactly, from the texts added so far."""

    def __init__(self, dates: Exact = exact_dates) -> None:
        self._exact: Mapping[ColumnType, Exact] = {
            "DATE": dates,  # first, as a format may consist of digits only
            "INT64": exact_integers,
            "FLOAT64": exact_numbers,
            "BOOL": exact_booleans,
        }
        self._possible: tuple[ColumnType, ...] = ()
        self._styles = DecimalStyles()
        self._has_values = False

    def add(self, texts: Texts) -> None:
        """Add texts; nulls fit any type."""
        values = texts.drop_null()
        if not len(values):
            return
        candidates = self._possible if self._has_values else tuple(self._exact)
        self._has_values = True
        self._possible = tuple(kind for kind in candidates if self._exact[kind](values) is not None)
        if "FLOAT64" in self._possible:
            self._styles.add(values)

    @property
    def type(self) -> ColumnType:
        """The type; STRING for a column without values."""
        for kind in self._possible:
            if kind != "FLOAT64" or self._styles.are_one:
                return kind
        return "STRING"
