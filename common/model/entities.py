"""Entities: the columns by which a table's rows are read as entities on dates, and when an entity is present."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gated_backfill.common.model.tables import ColumnType

#: Types of columns that may hold entities.
ENTITY_TYPES: tuple[ColumnType, ...] = ("STRING", "INT64", "BOOL", "DATE", "FLOAT64")
DATE_TYPES: tuple[ColumnType, ...] = ("DATE", "DATETIME", "TIMESTAMP")  #: types of columns that may hold dates
SUM_TYPES: tuple[ColumnType, ...] = ("INT64", "FLOAT64")  #: types of columns whose sums may be compared
MAX_WHOLE_FLOAT = 2.0**53  #: larger floats stand for several whole numbers


@dataclass(frozen=True, kw_only=True)
class PresenceRule:
    """When an entity counts as present: it has a row, and by default nothing else is compared."""

    rows: Literal["equal"] | float | None = None  #: its rows: as many as expected, or at least this share of them
    tolerances: tuple[float, ...] = ()  #: of each sum, relative to the expected one

    @property
    def is_measured(self) -> bool:
        """Whether numbers of rows or sums are compared."""
        return self.rows is not None or bool(self.tolerances)


@dataclass(frozen=True, kw_only=True)
class EntityColumns:
    """The columns by which a table's rows are read as entities on dates."""

    date: str
    entity: tuple[str, ...]
    time_zone: str | None = None  #: in which a TIMESTAMP has its date
    required: tuple[str, ...] = ()  #: a row with a null in one of these does not count
    sums: tuple[str, ...] = ()  #: columns whose sums per entity are compared
    magnitudes: tuple[str, ...] = ()  #: of rows that were grouped: columns with the sums of their absolute values
    rule: PresenceRule = PresenceRule()

    @property
    def names(self) -> tuple[str, ...]:
        """Every column that is read, each once."""
        return tuple(dict.fromkeys((self.date, *self.entity, *self.required, *self.sums)))
