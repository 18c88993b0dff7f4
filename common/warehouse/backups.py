"""What a warehouse promises of backups: rows of a table that are copied aside before they are deleted."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import date, datetime
from typing import Protocol

from gated_backfill.common.errors import DatesWritten
from gated_backfill.common.model.backup import Backup, KeptDate
from gated_backfill.common.model.dates import DateRange, describe
from gated_backfill.common.model.tables import TableName


class Backups(Protocol):
    """A part of `Warehouse`."""

    def row_counts(self, table: TableName, date_column: str, dates: DateRange) -> dict[date, int]:
        """The number of rows of each date in the range that has some; none of a table that does not exist.

        Raises `SchemaMismatch` when another column dates the table.
        """
        ...

    def backup_place(self, backup: Backup) -> str:
        """Where the backup is kept, for people to read."""
        ...

    def back_up(self, backup: Backup, days: Collection[date], *, until: datetime) -> None:
        """Copy the rows of the days aside, all or none, to be kept at least until then. May be repeated."""
        ...

    def backed_up(self, backup: Backup, *, intact_only: bool = False) -> dict[date, KeptDate]:
        """What the backup holds, found out by reading it. Raises `NothingKept` when it is gone or damaged.

        With `intact_only`, dates that are seen to be damaged are left out instead.
        """
        ...

    def delete_backed_up(self, backup: Backup, kept: Mapping[date, KeptDate]) -> None:
        """Delete the rows of the dates, each date only while the backup and the table hold exactly the kept rows.

        A date that was written since is left alone. Repeating it, also after a death in the middle, completes it.
        """
        ...

    def restore_backup(
        self, backup: Backup, kept: Mapping[date, KeptDate], *, leave_written: bool = False
    ) -> frozenset[date]:
        """Put the kept rows back; returns the dates that hold them now. Repeating it changes nothing.

        Raises `DatesWritten`, and changes nothing, when a date holds other rows by now, unless such are to be left
        alone; `NothingKept` when the backup is gone or damaged. A date that is written to while it is at work may
        end with those rows besides the kept ones or instead of them, which raises `DatesWritten`, too.
        """
        ...

    def drop_backup(self, backup: Backup) -> None:
        """Remove the backup, if it is there."""
        ...


def refused_as_written(backup: Backup, written: Collection[date]) -> DatesWritten:
    return DatesWritten(
        f"{len(written)} date(s) hold other rows by now and would have to be replaced: {describe(written)}; "
        f"nothing was restored",
        table=str(backup.table),
    )


def refused_as_mixed(backup: Backup, mixed: Collection[date]) -> DatesWritten:
    return DatesWritten(
        f"{len(mixed)} date(s) were written to meanwhile and hold rows besides the restored ones, or instead of them: "
        f"{describe(mixed)}; the others are restored",
        table=str(backup.table),
    )
