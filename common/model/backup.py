"""Backups of dates whose rows a cleanup deletes."""

from __future__ import annotations

import re
from dataclasses import dataclass

from gated_backfill.common.errors import UserError
from gated_backfill.common.model.tables import TableName, validate_identifier

BACKUP_ID = re.compile(r"[0-9a-z]+(?:-[0-9a-z]+)*")


@dataclass(frozen=True, kw_only=True)
class Backup:
    """A copy of some dates of a table, identified by the operation that made it."""

    id: str
    table: TableName
    date_column: str

    def __post_init__(self) -> None:
        if not BACKUP_ID.fullmatch(self.id):
            raise UserError(f"{self.id!r} is not the id of a backup")
        validate_identifier(self.date_column, "column name")


@dataclass(frozen=True, kw_only=True)
class BackupDate:
    fingerprint: str  #: of its rows, from `Warehouse.fingerprints`
    rows: int
