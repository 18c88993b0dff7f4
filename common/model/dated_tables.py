"""Tables with their date columns, as settings name them."""

from __future__ import annotations

from dataclasses import dataclass

from gated_backfill.common.errors import UserError
from gated_backfill.common.model.tables import TableName, validate_identifier

DEFAULT_DATE_COLUMN = "game_date"  #: of a table that is named without a date column


@dataclass(frozen=True, kw_only=True)
class DatedTable:
    """A table and its date column."""

    name: TableName
    date_column: str = DEFAULT_DATE_COLUMN

    def __str__(self) -> str:
        return str(self.name)


def parse_dated_tables(text: str) -> tuple[DatedTable, ...]:
    """Parse `dataset.table,dataset.table:date_column`; an empty text names no table.

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
