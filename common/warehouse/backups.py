"""What a warehouse promises of backups: rows of a table that are copied aside before they are deleted."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import date, datetime
from typing import Protocol

from gated_backfill.common.errors import RestoreConflict
from gated_backfill.common.model.backup import Backup, BackupDate
from gated_backfill.common.model.dates import DateRange, format_dates
from gated_backfill.common.model.tables import TableName


class Backups(Protocol):
    """A part of `Warehouse`."""

    def row_counts(self, table: TableName, date_column: str, dates: DateRange) -> dict[date, int]:
        """The number of rows of each date in the range that has some; none of a table that does not exist.

        Raises `SchemaMismatch` when another column dates the table.
        """
        ...

    def backup_location(self, backup: Backup) -> str:
        """Where the backup is kept, for people to read."""
        ...

    def back_up(self, backup: Backup, days: Collection[date], *, until: datetime) -> None:
        """Copy the rows of the days aside, all or none, to be kept at least until then. May be repeated."""
        ...

    def read_backup(self, backup: Backup, *, intact_only: bool = False) -> dict[date, BackupDate]:
        """What the backup holds, found out by reading it. Raises `NothingKept` when it is gone or damaged.

        With `intact_only`, dates that are seen to be damaged are left out instead.
        """
        ...

    def delete_backed_up(self, backup: Backup, kept: Mapping[date, BackupDate]) -> None:
        """Delete the rows of the dates, each date only while the backup and the table hold exactly the kept rows.

        A date that was written since is left alone. Repeating it, also after a death in the middle, completes it.
        """
        ...

    def restore_backup(
        self, backup: Backup, kept: Mapping[date, BackupDate], *, leave_written: bool = False
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


def changed_dates_error(backup: Backup, written: Collection[date]) -> RestoreConflict:
    return RestoreConflict(
        f"{len(written)} date(s) hold other rows by now and would have to be replaced: {format_dates(written)}; "
        f"nothing was restored",
        table=str(backup.table),
    )


def mixed_dates_error(backup: Backup, mixed: Collection[date]) -> RestoreConflict:
    return RestoreConflict(
        f"{len(mixed)} date(s) were written to meanwhile and hold rows besides the restored ones, or instead of them: "
        f"{format_dates(mixed)}; the others are restored",
        table=str(backup.table),
    )
