"""Backups of a local warehouse: hard links to the partitions' files, and a manifest of their checksums.

`<root>/.cleanup/<id>/<dataset>/<table>/<date_column>=YYYY-MM-DD/...` beside `<root>/.cleanup/<id>/manifest.json`,
which is written last: a backup without it is not complete.
"""

from __future__ import annotations

import json
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import date, datetime
from pathlib import Path

import pyarrow.parquet as pq

from gated_backfill.common.errors import BackupMissing
from gated_backfill.common.model.dates import DateRange
from gated_backfill.common.model.publication import Backup, BackupDate
from gated_backfill.common.model.tables import TableName
from gated_backfill.common.process.file_lock import locked
from gated_backfill.common.storage.files import checked_path, sync_folder, write_atomically
from gated_backfill.common.warehouse.backups import changed_dates_error
from gated_backfill.common.warehouse.local.partition_files import PartitionFiles
from gated_backfill.common.warehouse.local.partitions import (
    PUBLICATION_FILE,
    ROWS_FILE,
    file_fingerprint,
    hard_link,
    partition_names,
    translate_file_errors,
)
from gated_backfill.common.warehouse.protocol import ABSENT, TableInfo

CLEANUP = ".cleanup"  #: in the root: by operation and table, the files that a cleanup deleted
MANIFEST = "manifest.json"


class LocalBackups(ABC):
    """Backups in the warehouse's folder; see `Backups`."""

    root: Path
    _parts: PartitionFiles

    @abstractmethod
    def describe(self, table: TableName) -> TableInfo | None: ...

    @abstractmethod
    def _folder(self, table: TableName) -> Path: ...

    @abstractmethod
    def _part(self, table: TableName, date_column: str, day: date) -> Path: ...

    @abstractmethod
    def _places(self, table: TableName, date_column: str, days: Iterable[date]) -> dict[date, str]: ...

    @abstractmethod
    def _finish_load(self, folder: str) -> None: ...

    @abstractmethod
    def _lock(self, folder: Path) -> Path: ...

    @abstractmethod
    def _loading(self, folder: Path) -> Path: ...

    @abstractmethod
    def _start_loading(self, folder: Path) -> None: ...

    @abstractmethod
    def _commit_loading(self, folder: Path, undo_files: Sequence[Path] = ()) -> None: ...

    def row_counts(self, table: TableName, date_column: str, dates: DateRange) -> dict[date, int]:
        info = self.describe(table)
        if info is None:
            return {}
        info.check_columns(date_column)
        with translate_file_errors(table):
            files = {
                day: file
                for day, file in _rows_files_by_date(self._folder(table), date_column)
                if dates.start <= day <= dates.through
            }
            self._check_no_other_files(files.values())
            counts = {day: _count_rows(file) for day, file in files.items()}
        return {day: rows for day, rows in sorted(counts.items()) if rows}

    def _check_no_other_files(self, parts: Iterable[Path]) -> None:
        """Check that the partitions of these files have no rows in other files. Raises `SchemaMismatch`."""
        for part in parts:
            self._parts.check_no_other_files(str(part))

    def backup_location(self, backup: Backup) -> str:
        return str(self._backup_folder(backup))

    def back_up(self, backup: Backup, days: Collection[date], *, until: datetime) -> None:
        folder = self._folder(backup.table)
        with translate_file_errors(backup.table), locked(self._lock(folder)):
            self._start_loading(folder)
            self._check_no_other_files(self._part(backup.table, backup.date_column, day) for day in days)
            shutil.rmtree(self._backup_folder(backup), ignore_errors=True)
            entries = {day.isoformat(): self._back_up_date(backup, day) for day in sorted(days)}
            about = {"table": str(backup.table), "date_column": backup.date_column, "until": until.isoformat()}
            manifest = json.dumps({**about, "dates": entries}, indent=1)
            write_atomically(self._backup_folder(backup) / MANIFEST, manifest.encode())

    def _back_up_date(self, backup: Backup, day: date) -> dict[str, str | int]:
        """Link the files of the date's partition; return the date's entry in the manifest."""
        part = self._part(backup.table, backup.date_column, day)
        copy = self._backup_file(backup, day)
        copy.parent.mkdir(parents=True)
        for name in (ROWS_FILE, PUBLICATION_FILE):
            with suppress(FileNotFoundError):
                hard_link(part.with_name(name), copy.with_name(name))
        sync_folder(copy.parent)
        return {
            "checksum": file_fingerprint(copy),
            "publication": file_fingerprint(copy.with_name(PUBLICATION_FILE)),
            "rows": _count_rows(copy),
        }

    def read_backup(self, backup: Backup, *, intact_only: bool = False) -> dict[date, BackupDate]:
        try:
            dates = json.loads((self._backup_folder(backup) / MANIFEST).read_text())["dates"]
        except FileNotFoundError as exc:
            raise BackupMissing(f"the backup {backup.id} is not there", table=str(backup.table)) from exc
        backup_dates: dict[date, BackupDate] = {}
        with translate_file_errors(backup.table):
            for name, entry in dates.items():
                day = date.fromisoformat(name)
                part = self._backup_file(backup, day)
                if (file_fingerprint(part), file_fingerprint(part.with_name(PUBLICATION_FILE))) != (
                    entry["checksum"],
                    entry["publication"],
                ):
                    if intact_only:
                        continue
                    raise BackupMissing(f"the backup {backup.id} is damaged", table=str(backup.table), day=day)
                backup_dates[day] = BackupDate(fingerprint=entry["checksum"], rows=entry["rows"])
        return backup_dates

    def delete_backed_up(self, backup: Backup, kept: Mapping[date, BackupDate], *, generation: int = 0) -> None:
        folder = self._folder(backup.table)
        with translate_file_errors(backup.table), locked(self._lock(folder)):
            self._start_loading(folder)
            for day, backup_date in kept.items():
                part = self._part(backup.table, backup.date_column, day)
                if (
                    file_fingerprint(part)
                    == file_fingerprint(self._backup_file(backup, day))
                    == backup_date.fingerprint
                    != ABSENT
                ):
                    part.unlink()  # from here on, readers see no rows of the date
                if not part.exists():
                    self._remove_folder(backup, day)
            sync_folder(folder)

    def _remove_folder(self, backup: Backup, day: date) -> None:
        """Remove the note and folder of a deleted partition, but no file that the backup lacks."""
        part = self._part(backup.table, backup.date_column, day)
        note = part.with_name(PUBLICATION_FILE)
        if file_fingerprint(note) == file_fingerprint(self._backup_file(backup, day).with_name(PUBLICATION_FILE)):
            note.unlink(missing_ok=True)
        with suppress(OSError):  # holds other files, or is removed already
            part.parent.rmdir()

    def deleted_at(self, backup: Backup) -> datetime | None:
        return None

    def restore_backup(
        self, backup: Backup, kept: Mapping[date, BackupDate], *, generation: int = 0, leave_written: bool = False
    ) -> frozenset[date]:
        folder = self._folder(backup.table)
        with translate_file_errors(backup.table), locked(self._lock(folder)):
            self._start_loading(folder)
            files = {day: self._part(backup.table, backup.date_column, day) for day in kept}
            self._check_no_other_files(files.values())
            current = {day: file_fingerprint(file) for day, file in files.items()}
            written = [day for day in kept if current[day] not in (ABSENT, kept[day].fingerprint)]
            if written and not leave_written:
                raise changed_dates_error(backup, written)
            for day in kept:
                if current[day] == ABSENT:
                    self._prepare_restore(self._loading(folder) / files[day].parent.name, backup, day, kept[day])
            self._commit_loading(folder)
            return frozenset(day for day, file in files.items() if file_fingerprint(file) == kept[day].fingerprint)

    def _prepare_restore(self, partition: Path, backup: Backup, day: date, kept: BackupDate) -> None:
        """Copy the backup's files to the loading folder; the backup keeps its own."""
        part = self._backup_file(backup, day)
        if file_fingerprint(part) != kept.fingerprint:
            raise BackupMissing(f"the backup {backup.id} is damaged", table=str(backup.table), day=day)
        partition.mkdir(parents=True)
        for name in (ROWS_FILE, PUBLICATION_FILE):
            with suppress(FileNotFoundError):
                shutil.copyfile(part.with_name(name), partition / name)
                with (partition / name).open("rb+") as file:
                    os.fsync(file.fileno())
        sync_folder(partition)

    def drop_backup(self, backup: Backup) -> None:
        folder = self._backup_folder(backup)
        with translate_file_errors(backup.table):
            (folder / MANIFEST).unlink(missing_ok=True)  # first: without it, a half-deleted folder is no backup
            if folder.exists():
                shutil.rmtree(folder)

    def _backup_folder(self, backup: Backup) -> Path:
        return checked_path(self.root, self.root / CLEANUP / backup.id)

    def _backup_file(self, backup: Backup, day: date) -> Path:
        part = self._part(backup.table, backup.date_column, day)
        return checked_path(self.root, self._backup_folder(backup) / part.relative_to(self.root))


def _rows_files_by_date(folder: Path, date_column: str) -> Iterator[tuple[date, Path]]:
    """Yield the rows' file of each partition, which need not exist."""
    for partition in partition_names(folder, date_column):
        yield date.fromisoformat(partition.partition("=")[2]), folder / partition / ROWS_FILE


def _count_rows(part: Path) -> int:
    try:
        return pq.read_metadata(part).num_rows
    except FileNotFoundError:
        return 0
