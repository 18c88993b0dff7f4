"""Table names, date columns, column types and table schemas: checked once, then trusted."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Context, Decimal
from typing import Literal

from gated_backfill.common.errors import UserError
from gated_backfill.common.model.field_checks import SHARE, check_fields

ColumnType = Literal["STRING", "INT64", "FLOAT64", "NUMERIC", "BOOL", "BYTES", "DATE", "DATETIME", "TIMESTAMP"]
ColumnTypes = Mapping[str, ColumnType]

#: Pairs of types: some values of the first fit the second. The number 5.0 fits INT64, and 5.5 does not.
FITTING_TYPES: frozenset[tuple[str, str]] = frozenset(
    {("INT64", "FLOAT64"), ("FLOAT64", "INT64"), ("INT64", "NUMERIC"), ("DATE", "DATETIME"), ("DATETIME", "DATE")}
)
BOUNDED_TYPES: tuple[ColumnType, ...] = (
    "INT64",
    "FLOAT64",
    "NUMERIC",
)  #: types of columns whose values may have bounds
MIN_INT64, MAX_INT64 = -(2**63), 2**63 - 1
NULL_TYPE = "null"  #: of a column that has only nulls in every file, which therefore do not say its type

NUMERIC_WHOLE_DIGITS = 29  #: of a NUMERIC, before the point
NUMERIC_DIGITS = 9  #: of a NUMERIC, behind the point

DEFAULT_DATE_COLUMN = "game_date"  #: for tables named without one
IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
PROJECT_ID = re.compile(r"[a-z][a-z0-9-]{4,28}[a-z0-9]")
MAX_NAME_LENGTH = 256  #: of a table's whole name, as the ledger stores it


def is_numeric(number: Decimal) -> bool:
    """Whether a NUMERIC holds the number exactly."""
    if not number.is_finite():
        return False
    _, digits, exponent = number.normalize(Context(prec=max(len(number.as_tuple().digits), 1))).as_tuple()
    assert isinstance(exponent, int), "of a finite number"
    return not any(digits) or (exponent >= -NUMERIC_DIGITS and len(digits) + exponent <= NUMERIC_WHOLE_DIGITS)


def validate_identifier(name: str, what: str) -> str:
    """Return the name if it is a plain identifier. Raises `UserError` for quotes, `;`, dots and the like."""
    if not IDENTIFIER.fullmatch(name):
        raise UserError(f"{name!r} is not a valid {what}: letters, digits and _ only, not starting with a digit")
    return name


def validate_project(name: str) -> str:
    """Return the name if it is the id of a Google Cloud project. Raises `UserError` for any other."""
    if not PROJECT_ID.fullmatch(name):
        raise UserError(
            f"{name!r} is not a valid project: 6 to 30 lower-case letters, digits and hyphens, beginning with a letter"
        )
    return name


@dataclass(frozen=True, order=True)
class TableName:
    """`dataset.table` or `project.dataset.table`: the only form in which a table's name reaches SQL or a path.

    A name without a project is of the warehouse's own project, and a table there has no other name: the warehouse
    refuses one that repeats its own project. So two names are equal exactly when they name the same table.
    """

    dataset: str
    table: str
    project: str = ""

    def __str__(self) -> str:
        return ".".join((*((self.project,) if self.project else ()), self.dataset, self.table))

    @classmethod
    def parse(cls, text: str) -> TableName:
        """Parse a name. Raises `UserError` for any other text."""
        *project, dataset, table = ("", *text.split("."))
        if len(project) not in (1, 2) or len(text) > MAX_NAME_LENGTH:
            raise UserError(
                f"{text!r} is not a table name: write it as dataset.table or project.dataset.table, with at most "
                f"{MAX_NAME_LENGTH} characters"
            )
        return cls(
            validate_identifier(dataset, "dataset name"),
            validate_identifier(table, "table name"),
            validate_project(project[1]) if len(project) == 2 else "",
        )


@dataclass(frozen=True, kw_only=True)
class DatedTable:
    name: TableName
    date_column: str = DEFAULT_DATE_COLUMN

    def __str__(self) -> str:
        return str(self.name)


def parse_dated_tables(text: str) -> tuple[DatedTable, ...]:
    """Parse `dataset.table,project.dataset.table:date_column`; an empty text names no table.

    Raises `UserError` for any other text, and for a repeated table.
    """
    if not text.strip():
        return ()
    tables = tuple(_parse_table(part.strip()) for part in text.split(","))
    names = [table.name for table in tables]
    if repeated := sorted({str(name) for name in names if names.count(name) > 1}):
        raise UserError(f"{', '.join(repeated)} is named twice")
    return tables


def _parse_table(text: str) -> DatedTable:
    name, colon, column = text.partition(":")
    table = TableName.parse(name)
    return DatedTable(
        name=table, date_column=validate_identifier(column, "column name") if colon else DEFAULT_DATE_COLUMN
    )


@dataclass(frozen=True, kw_only=True)
class Column:
    """One output column: its type, whether it may be null, and the bounds of its values (both included).

    NaN is null. With a bound, values must also be finite. Raises `UserError` for a value that is not allowed, such
    as a bound of a STRING column.
    """

    type: ColumnType
    nullable: bool = False  #: implied by `max_null_share`
    ge: float | None = None
    le: float | None = None
    max_null_share: float | None = None  #: of a date's rows; with more nulls the date is blocked; None: no limit

    def __post_init__(self) -> None:
        check_fields(self, "a Column", max_null_share=SHARE)
        for name, bound in (("ge", self.ge), ("le", self.le)):
            if bound is None:
                continue
            if self.type not in BOUNDED_TYPES:
                raise UserError(
                    f"a Column: {name} is {bound}, but only {', '.join(BOUNDED_TYPES[:-1])} and {BOUNDED_TYPES[-1]} "
                    f"may have bounds, not {self.type}"
                )
            if isinstance(bound, int) and not MIN_INT64 <= bound <= MAX_INT64:
                raise UserError(f"a Column: {name} is {bound}: it must be a number of at most 64 bits")
            if self.type == "NUMERIC" and not is_numeric(Decimal(str(bound))):
                raise UserError(
                    f"a Column: {name} is {bound}: it must be a number of at most {NUMERIC_WHOLE_DIGITS} digits before "
                    f"the point and {NUMERIC_DIGITS} behind it"
                )
        if self.ge is not None and self.le is not None and self.ge > self.le:
            raise UserError(f"a Column: ge is {self.ge}, above le, which is {self.le}: no value is allowed")

    @property
    def allows_nulls(self) -> bool:
        """Whether the column may hold a null at all."""
        return self.nullable or self.max_null_share is not None
