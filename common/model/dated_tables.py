"""Tables by name with the column that dates their rows, as settings write them."""

from __future__ import annotations

from dataclasses import dataclass

from gated_backfill.common.errors import UserError
from gated_backfill.common.model.tables import TableName, validate_identifier

DEFAULT_DATE_COLUMN = "game_date"  #: of a table that is written without one


@dataclass(frozen=True, kw_only=True)
class DatedTable:
    """A table and its date column."""

    name: TableName
    date_column: str = DEFAULT_DATE_COLUMN

    def __str__(self) -> str:
        return str(self.name)


def parse_dated_tables(text: str) -> tuple[DatedTable, ...]:
    """The tables in `dataset.table,dataset.table:date_column`; none of an empty text.

    Raises `UserError` for anything else, and for a table that stands there twice.
    """
    if not text.strip():
        return ()
    found = tuple(_parsed(one.strip()) for one in text.split(","))
    names = [one.name for one in found]
    if repeated := sorted({str(name) for name in names if names.count(name) > 1}):
        raise UserError(f"{', '.join(repeated)} stands there twice")
    return found


def _parsed(text: str) -> DatedTable:
    name, colon, column = text.partition(":")
    table = TableName.parse(name)
    return DatedTable(
        name=table, date_column=validate_identifier(column, "column name") if colon else DEFAULT_DATE_COLUMN
    )
