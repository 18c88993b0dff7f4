"""Backups of a local warehouse: copies of the partitions' files, and a manifest of their checksums.

`<root>/.cleanup/<id>/<dataset>/<table>/<date_column>=YYYY-MM-DD/...` beside `<root>/.cleanup/<id>/manifest.json`,
which is written last: a backup without it is not complete. `state.json` says whose turn it is, when rows were
deleted, and which dates were put back.
"""

from __future__ import annotations

import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import date, datetime
from pathlib import Path
from typing import Any

from gated_backfill.common.errors import BackupMissing, LeaseTakenOver, WarehouseUnavailable
from gated_backfill.common.model.dates import DateRange
from gated_backfill.common.model.publication import BACKUP_ID, Backup, BackupDate
from gated_backfill.common.model.tables import TableName
from gated_backfill.common.process.clock import utcnow
from gated_backfill.common.process.file_lock import LockNotFree, locked
from gated_backfill.common.storage.files import checked_path, make_folders, sync_all, sync_folder, write_atomically
from gated_backfill.common.warehouse.backups import changed_dates_error
from gated_backfill.common.warehouse.local.exchange import NO_FILE, take_snapshot
from gated_backfill.common.warehouse.local.loading import Keeper, LoadingFolder, PartitionChange
from gated_backfill.common.warehouse.local.partition_files import PartitionFiles
from gated_backfill.common.warehouse.local.partitions import (
    PUBLICATION_FILE,
    ROWS_FILE,
    count_rows,
    file_fingerprint,
    partition_names,
    translate_file_errors,
    write_through,
)
from gated_backfill.common.warehouse.local.undo_folder import UndoFolder, read_json
from gated_backfill.common.warehouse.protocol import ABSENT, TableInfo

CLEANUP = ".cleanup"  #: in the root: by operation and table, the files that a cleanup deleted
MANIFEST = "manifest.json"
LOCK_WAIT_SECONDS = 120.0  #: for a table's lock; less than a gate's lease
STATE = "state.json"  #: the highest generation of a call for the backup, when rows were last deleted, what came back


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

    @contextmanager
    def _writing(self, table: TableName) -> Generator[LoadingFolder]:
        """Hold the table's lock, with an empty loading folder. What a process that died has left is finished first.

        Raises `WarehouseUnavailable` if another process does not release the lock: it may be suspended.
        """
        with translate_file_errors(table), _translate_lock_errors(table):
            folder = self._folder(table)
            loading = LoadingFolder(self.root, table)
            lock = checked_path(self.root, folder / ".lock")
            make_folders(folder)
            with locked(lock, max_wait_seconds=LOCK_WAIT_SECONDS):
                loading.start()
                yield loading

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
            counts = {day: count_rows(file) for day, file in files.items()}
        return {day: rows for day, rows in sorted(counts.items()) if rows}

    def list_dates(self, table: TableName, date_column: str) -> list[date]:
        info = self.describe(table)
        if info is None:
            return []
        info.check_columns(date_column)
        with translate_file_errors(table):
            return sorted(day for day, file in _rows_files_by_date(self._folder(table), date_column) if file.exists())

    def _check_no_other_files(self, parts: Iterable[Path]) -> None:
        """Check that the partitions of these files have no rows in other files. Raises `SchemaMismatch`."""
        for part in parts:
            self._parts.check_no_other_files(str(part))

    def backup_location(self, backup: Backup) -> str:
        return str(self._backup_folder(backup))

    def back_up(self, backup: Backup, days: Collection[date], *, until: datetime) -> None:
        with self._writing(backup.table):
            self._check_no_other_files(self._part(backup.table, backup.date_column, day) for day in days)
            if self.deleted_at(backup) is not None:
                raise LeaseTakenOver(f"rows of the backup {backup.id} were deleted already", table=str(backup.table))
            shutil.rmtree(self._backup_folder(backup), ignore_errors=True)
            entries = {day.isoformat(): self._back_up_date(backup, day) for day in sorted(days)}
            copies = [self._backup_file(backup, day) for day in days]
            sync_all([path for copy in copies for path in (*copy.parent.iterdir(), copy.parent)])
            sync_all(dict.fromkeys(copy.parent.parent for copy in copies))
            about = {"table": str(backup.table), "date_column": backup.date_column, "until": until.isoformat()}
            manifest = json.dumps({**about, "dates": entries}, indent=1)
            write_atomically(self._backup_folder(backup) / MANIFEST, manifest.encode())

    def _back_up_date(self, backup: Backup, day: date) -> dict[str, str | int]:
        """Copy the files of the date's partition; return the date's entry in the manifest."""
        part = self._part(backup.table, backup.date_column, day)
        copy = self._backup_file(backup, day)
        make_folders(copy.parent.parent)
        copy.parent.mkdir()
        for name in (ROWS_FILE, PUBLICATION_FILE):
            with suppress(FileNotFoundError):
                shutil.copyfile(part.with_name(name), copy.with_name(name))
        return {
            "checksum": file_fingerprint(copy),
            "publication": file_fingerprint(copy.with_name(PUBLICATION_FILE)),
            "rows": count_rows(copy),
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

    def list_backup_ids(self) -> list[str]:
        folders = checked_path(self.root, self.root / CLEANUP).glob(f"*/{MANIFEST}")
        return sorted((file.parent.name for file in folders if BACKUP_ID.fullmatch(file.parent.name)), reverse=True)

    def find_backup(self, backup_id: str) -> Backup | None:
        if not BACKUP_ID.fullmatch(backup_id):
            return None
        manifest = read_json(checked_path(self.root, self.root / CLEANUP / backup_id / MANIFEST))
        if manifest is None:
            return None
        return Backup(id=backup_id, table=TableName.parse(manifest["table"]), date_column=manifest["date_column"])

    def delete_backed_up(self, backup: Backup, kept: Mapping[date, BackupDate], *, generation: int) -> None:
        with self._writing(backup.table) as loading:
            self._fence(loading, backup, generation)
            changes: list[PartitionChange] = []
            restored = self.restored_days(backup)
            for day, backup_date in kept.items():
                if day in restored:
                    continue
                part, copy = self._part(backup.table, backup.date_column, day), self._backup_file(backup, day)
                snapshot = take_snapshot(part)
                if snapshot.checksum == backup_date.fingerprint == file_fingerprint(copy) != ABSENT:
                    changes.append(
                        PartitionChange(
                            day=day, partition=part.parent.name, expected=snapshot, prepared=None, kept=copy
                        )
                    )
                elif not part.exists():
                    self._remove_folder(backup, day)
            if changes:
                self._write_state(loading, backup, self._read_state(backup) | {"deleted_at": utcnow().isoformat()})
            loading.carry_out(
                changes, self._keeper(backup), after_each=lambda change: self._remove_folder(backup, change.day)
            )

    def _keeper(self, backup: Backup) -> Keeper:
        """Return where files of other programs are kept that cannot be put back."""
        return Keeper(
            undo=UndoFolder(self.root, f"_cleanup-{backup.id}", backup.table), removed_by=f"cleanup {backup.id}"
        )

    def _remove_folder(self, backup: Backup, day: date) -> None:
        """Remove the note and folder of a deleted partition, but no file that the backup lacks."""
        part = self._part(backup.table, backup.date_column, day)
        note = part.with_name(PUBLICATION_FILE)
        if file_fingerprint(note) == file_fingerprint(self._backup_file(backup, day).with_name(PUBLICATION_FILE)):
            note.unlink(missing_ok=True)
        with suppress(OSError):  # holds other files, or is removed already
            part.parent.rmdir()

    def deleted_at(self, backup: Backup) -> datetime | None:
        with translate_file_errors(backup.table):
            deleted_at = self._read_state(backup)["deleted_at"]
        return None if deleted_at is None else datetime.fromisoformat(deleted_at)

    def restored_days(self, backup: Backup) -> frozenset[date]:
        with translate_file_errors(backup.table):
            return frozenset(map(date.fromisoformat, self._read_state(backup)["restored_days"]))

    def _fence(self, loading: LoadingFolder, backup: Backup, generation: int) -> None:
        """Record the generation of a call for the backup. Raises `LeaseTakenOver` after a higher one."""
        state = self._read_state(backup)
        if state["generation"] > generation:
            raise LeaseTakenOver(
                f"another process has taken over the operation {backup.id}: nothing was changed",
                table=str(backup.table),
            )
        self._write_state(loading, backup, state | {"generation": generation})

    def _read_state(self, backup: Backup) -> dict[str, Any]:
        return {"generation": 0, "deleted_at": None, "restored_days": []} | (
            read_json(self._backup_folder(backup) / STATE) or {}
        )

    def _write_state(self, loading: LoadingFolder, backup: Backup, state: dict[str, Any]) -> None:
        """Write the state durably, unless the backup is gone."""
        folder = self._backup_folder(backup)
        if folder.exists():
            write_through(loading.path, folder / STATE, json.dumps(state).encode(), durable=True)
            sync_folder(folder)

    def restore_backup(
        self, backup: Backup, kept: Mapping[date, BackupDate], *, generation: int, leave_written: bool = False
    ) -> frozenset[date]:
        with self._writing(backup.table) as loading:
            self._fence(loading, backup, generation)
            files = {day: self._part(backup.table, backup.date_column, day) for day in kept}
            self._check_no_other_files(files.values())
            current = {day: file_fingerprint(file) for day, file in files.items()}
            written = [day for day in kept if current[day] not in (ABSENT, kept[day].fingerprint)]
            if written and not leave_written:
                raise changed_dates_error(backup, written)
            deleted = [day for day in kept if current[day] == ABSENT != kept[day].fingerprint]
            changes = [self._prepare_restore(loading, backup, day, kept[day]) for day in deleted]
            if changes:  # recorded before they take effect, so that no deletion is due of what has come back
                restored = sorted(self.restored_days(backup).union(deleted))
                state = self._read_state(backup) | {"restored_days": [day.isoformat() for day in restored]}
                self._write_state(loading, backup, state)
            loading.carry_out(changes, self._keeper(backup))
            return frozenset(day for day, file in files.items() if file_fingerprint(file) == kept[day].fingerprint)

    def _prepare_restore(self, loading: LoadingFolder, backup: Backup, day: date, kept: BackupDate) -> PartitionChange:
        """Copy the backup's files to the loading folder; the backup keeps its own."""
        partition = self._part(backup.table, backup.date_column, day).parent.name
        if not loading.prepare_copy(self._backup_file(backup, day), partition, kept.fingerprint):
            raise BackupMissing(f"the backup {backup.id} is damaged", table=str(backup.table), day=day)
        return PartitionChange(day=day, partition=partition, expected=NO_FILE, prepared=kept.fingerprint)

    def drop_backup(self, backup: Backup) -> None:
        folder = self._backup_folder(backup)
        with self._writing(backup.table):  # a deletion that died may still have rows for the backup
            (folder / MANIFEST).unlink(missing_ok=True)  # first: without it, a half-deleted folder is no backup
            if folder.exists():
                shutil.rmtree(folder)

    def _backup_folder(self, backup: Backup) -> Path:
        return checked_path(self.root, self.root / CLEANUP / backup.id)

    def _backup_file(self, backup: Backup, day: date) -> Path:
        part = self._part(backup.table, backup.date_column, day)
        return checked_path(self.root, self._backup_folder(backup) / part.relative_to(self.root))


@contextmanager
def _translate_lock_errors(table: TableName) -> Generator[None]:
    try:
        yield
    except LockNotFree as exc:
        raise WarehouseUnavailable(
            f"{exc} has been writing to the table for {LOCK_WAIT_SECONDS:.0f} s: if it is suspended, continue it or "
            "end it",
            table=str(table),
        ) from exc


def _rows_files_by_date(folder: Path, date_column: str) -> Iterator[tuple[date, Path]]:
    """Yield the rows' file of each partition, which need not exist."""
    for partition in partition_names(folder, date_column):
        yield date.fromisoformat(partition.partition("=")[2]), folder / partition / ROWS_FILE
