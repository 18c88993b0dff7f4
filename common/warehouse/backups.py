"""The part of the warehouse protocol for backups: copies of rows, made before the rows are deleted."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import date, datetime
from typing import Protocol

from gated_backfill.common.errors import BackupMissing, RestoreConflict
from gated_backfill.common.model.dates import DateRange, format_dates
from gated_backfill.common.model.publication import Backup, BackupDate, KeptRows
from gated_backfill.common.model.tables import TableName


class Backups(Protocol):
    """The methods of `Warehouse` for backups."""

    def row_counts(self, table: TableName, date_column: str, dates: DateRange) -> dict[date, int]:
        """Count the rows of each date in the range that has rows; none for a table that does not exist.

        Raises `SchemaMismatch` for a table with another date column.
        """
        ...

    def list_dates(self, table: TableName, date_column: str) -> list[date]:
        """List the dates on which the table may have rows, oldest first, also those whose rows cannot be read.

        Raises `SchemaMismatch` for a table with another date column.
        """
        ...

    def backup_location(self, backup: Backup) -> str:
        """Return the path or table of the backup, for messages."""
        ...

    def back_up(self, backup: Backup, days: Collection[date], *, until: datetime) -> None:
        """Copy the rows of the days, all or none, and keep them at least until that time.

        May be repeated until rows are deleted.
        """
        ...

    def read_backup(self, backup: Backup, *, intact_only: bool = False) -> dict[date, BackupDate]:
        """Read and verify the backup's dates. Raises `BackupMissing` when it is gone or damaged.

        With `intact_only`, damaged dates are left out instead.
        """
        ...

    def list_backup_ids(self) -> list[str]:
        """List the ids of all backups in the warehouse, newest first."""
        ...

    def find_backup(self, backup_id: str) -> Backup | None:
        """Return the complete backup of that id; None without one, or if it does not say of which table it is."""
        ...

    def delete_backed_up(self, backup: Backup, kept: Mapping[date, BackupDate], *, generation: int) -> None:
        """Delete the rows of each date whose rows, in table and backup, are exactly those in `kept`.

        A date written since then stays as it is, also one that is written during the call, and so does one that
        `restore_backup` has put back. A repeated call completes an interrupted one. `generation` is that of the lease
        of the backup's operation. Raises `LeaseTakenOver`, and changes nothing, when a call for this backup had a
        higher one.
        """
        ...

    def deleted_at(self, backup: Backup) -> datetime | None:
        """Return when rows of the backup were last deleted from the table, as recorded beside the backup itself.

        None if none ever were, or the backup is gone. The record is written before the rows are deleted.
        """
        ...

    def restored_days(self, backup: Backup) -> frozenset[date]:
        """Return the dates that `restore_backup` has put back, as recorded beside the backup itself."""
        ...

    def restore_backup(
        self, backup: Backup, kept: Mapping[date, BackupDate], *, generation: int, leave_written: bool = False
    ) -> frozenset[date]:
        """Restore the kept rows; return the dates that hold them now.

        Restoring again changes nothing, and completes a restore that was interrupted. Raises `RestoreConflict`, and
        changes nothing, when a date has other rows by now, unless `leave_written` skips such dates; `BackupMissing`
        when the backup is gone or damaged; `LeaseTakenOver` like `delete_backed_up`. A date written during the restore
        may end with the new rows, with or without the restored ones, which raises `RestoreConflict` as well.
        """
        ...

    def drop_backup(self, backup: Backup) -> None:
        """Delete the backup, if it exists."""
        ...


def changed_dates_error(backup: Backup, written: Collection[date]) -> RestoreConflict:
    return RestoreConflict(
        f"{len(written)} date(s) hold other rows by now and would have to be replaced: {format_dates(written)}; "
        f"nothing was restored; --leave-written restores the other dates",
        table=str(backup.table),
    )


def mixed_dates_error(backup: Backup, mixed: Collection[date]) -> RestoreConflict:
    return RestoreConflict(
        f"{len(mixed)} date(s) were written during the restore and hold other rows: "
        f"{format_dates(mixed)}; the other dates are restored; check these dates, then repeat the restore with "
        "--leave-written",
        table=str(backup.table),
    )


def replaced_rows_missing(target: TableName, run: str, days: Collection[date]) -> BackupMissing:
    """Return the error for dates of an undo whose replaced rows are not kept any more."""
    error = BackupMissing(
        f"the rows that run {run} replaced on {len(days)} date(s) were deleted or have expired (BACKFILL_UNDO_DAYS), "
        "so these dates can't be undone: build them again with `backfill run --reprocess all`",
        table=str(target),
        day=min(days),
    )
    error.days = frozenset(days)
    return error


def kept_rows_missing(table: TableName, kept: KeptRows) -> BackupMissing:
    """Return the error for kept rows that were deleted or have expired."""
    return BackupMissing(
        f"the kept rows {kept.id} were deleted or have expired: `backfill kept list {table}` shows the others",
        table=str(table),
        day=kept.day,
    )
