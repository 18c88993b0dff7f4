"""Publishing to a local warehouse: prepared partitions become visible at once; the replaced ones are kept for `undo`.

`<root>/<dataset>/<table>/.loading/` has the prepared partitions; a file `COMMITTED` in it publishes them for good.
`<root>/.undo/<run>/<dataset>/<table>/` has a note for each window, and by date the replaced rows.
"""

from __future__ import annotations

import json
import os
import shutil
from abc import abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import date, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from gated_backfill.common.errors import BackupMissing, OutsideRoot, StagedFileLost
from gated_backfill.common.model.dates import DateRange
from gated_backfill.common.model.publication import KeptRows, Publication, PublishResult, StagedFile, WarehouseLimits
from gated_backfill.common.model.tables import TableName
from gated_backfill.common.process.clock import utcnow
from gated_backfill.common.process.file_lock import locked
from gated_backfill.common.storage.files import checked_path, read_regular_file, sync_all, sync_folder, write_atomically
from gated_backfill.common.storage.staged_files import check_checksum, read_staged_bytes
from gated_backfill.common.warehouse.local.backups import LocalBackups
from gated_backfill.common.warehouse.local.partition_files import FileSchema
from gated_backfill.common.warehouse.local.partitions import (
    LOADING,
    PUBLICATION_FILE,
    ROWS_FILE,
    file_exists,
    file_fingerprint,
    hard_link,
    partition_folders,
    translate_file_errors,
)
from gated_backfill.common.warehouse.local.table_schema import TableSchema, declarable_types
from gated_backfill.common.warehouse.protocol import ABSENT, ReplacedPartition, TableInfo, check_same_columns

COMMITTED = "COMMITTED"  #: once LOADING holds it, the partitions in it are published even after a crash
UNDO = ".undo"  #: in the root: by run and table, the rows that the first publication of a date replaced
REPLACED = "replaced.json"  #: a note for one date, in the format of earlier versions


class LocalPublications(LocalBackups):
    """Publishing and undo of a local warehouse; see `Warehouse`."""

    _limits: WarehouseLimits

    @abstractmethod
    def _find_schema(self, table: TableName) -> TableSchema | None: ...

    @abstractmethod
    def _declare_schema(self, table: TableName, date_column: str, columns: Mapping[str, str]) -> None: ...

    def publish(
        self,
        target: TableName,
        date_column: str,
        files: Sequence[StagedFile],
        *,
        fingerprints_when_staged: Mapping[date, str],
        publication: Publication,
    ) -> PublishResult:
        folder = self._folder(target)
        unreadable: set[date] = set()
        prepared: dict[date, str] = {}
        columns: Mapping[str, str] | None = None  # of the files
        parquet_schema: pq.ParquetSchema | None = None  # of the latest file
        with translate_file_errors(target), locked(self._lock(folder)):
            self._start_loading(folder)
            paths = self._places(target, date_column, [staged.day for staged in files])
            current = {day: self._parts.fingerprint_uncached(path) for day, path in paths.items()}
            done = {staged.day for staged in files if current[staged.day] == staged.checksum}
            changed = {
                day
                for day, path in paths.items()
                if day not in done and self._parts.rows_fingerprint(path, current[day]) != fingerprints_when_staged[day]
            }
            for staged in files:
                if staged.day in done or staged.day in changed:
                    continue
                partition = f"{folder}/{LOADING}/{date_column}={staged.day.isoformat()}"
                try:
                    data = _prepare_partition(partition, staged, publication.name)
                except StagedFileLost:
                    unreadable.add(staged.day)
                else:
                    file_schema = FileSchema.of_file(pq.ParquetFile(pa.BufferReader(data)))
                    if parquet_schema is None or not file_schema.parquet.equals(parquet_schema):
                        columns = self._check_publishable_columns(target, date_column, file_schema, columns)
                        parquet_schema = file_schema.parquet
                    prepared[staged.day] = staged.checksum if staged.rows else ABSENT
            if columns is not None:
                self._declare_schema(target, date_column, columns)
            undo_files = self._keep_replaced(target, date_column, publication, before=current, published=prepared)
            self._commit_loading(folder, undo_files)
        published = frozenset(current) - changed - unreadable
        return PublishResult(published=published, conflicting=frozenset(changed), lost=frozenset(unreadable))

    def _check_publishable_columns(
        self, target: TableName, date_column: str, schema: FileSchema, earlier: Mapping[str, str] | None
    ) -> Mapping[str, str]:
        """Return the columns of a staged file. Raises `SchemaMismatch` unless they are the table's and `earlier`."""
        columns = declarable_types(schema.read_arrow())
        if columns == earlier:
            return columns
        known = self._find_schema(target)
        check_same_columns(None if known is None else known.info, date_column, columns)
        if earlier is not None:
            info = TableInfo(table=target, columns=earlier, partitioned_by=date_column)
            check_same_columns(info, date_column, columns)
        return columns

    # -- replaced partitions ----------------------------------------------------------------------------------

    def _keep_replaced(
        self,
        target: TableName,
        date_column: str,
        publication: Publication,
        *,
        before: Mapping[date, str],
        published: Mapping[date, str],
    ) -> list[Path]:
        """Keep the rows from before the run's first publication of each date, and note the fingerprints.

        Returns the files and folders to sync before the publication is committed. The note is first written to the
        loading folder, which is cleared after a crash; the undo folder is not.
        """
        if not published:
            return []
        run, window = publication.run, str(publication.window)
        folder = self._undo_folder(run, target)
        note = folder / f"{window}.json"  # a run publishes a date in one window only
        earlier_entries = _read_notes([note])
        earlier = _replaced_by_date(folder, earlier_entries, date_column, published)
        written: list[Path] = []
        entries: _NoteEntries = {}
        for day, checksum in published.items():
            first = earlier[day].before if day in earlier else before[day]
            if day not in earlier and first != ABSENT:
                backup = self._undo_partition(run, target, date_column, day)
                backup.mkdir(parents=True, exist_ok=True)
                (backup / ROWS_FILE).unlink(missing_ok=True)
                hard_link(self._part(target, date_column, day), backup / ROWS_FILE)
                written += [backup / ROWS_FILE, backup]
            entries[day.isoformat()] = asdict(ReplacedPartition(before=first, published=checksum))
        prepared = self._loading(self._folder(target)) / REPLACED
        write_atomically(prepared, json.dumps(earlier_entries | entries).encode(), durable=False)
        folder.mkdir(parents=True, exist_ok=True)
        prepared.replace(note)
        return [*written, note, folder, folder.parent, folder.parent.parent]

    def _undo_folder(self, run: str, table: TableName) -> Path:
        return checked_path(self.root, self.root / UNDO / run / table.dataset / table.table)

    def _undo_partition(self, run: str, table: TableName, date_column: str, day: date) -> Path:
        """Return the undo folder of the date's replaced rows."""
        return checked_path(self.root, self._undo_folder(run, table) / f"{date_column}={day.isoformat()}")

    def replaced_partitions(
        self, target: TableName, date_column: str, run: str, days: Collection[date]
    ) -> dict[date, ReplacedPartition]:
        with translate_file_errors(target):
            folder = self._undo_folder(run, target)
            return _replaced_by_date(folder, _read_notes(sorted(folder.glob("*.json"))), date_column, days)

    def check_restorable(
        self, target: TableName, date_column: str, run: str, replaced: Mapping[date, ReplacedPartition]
    ) -> None:
        changed = [day for day, partition in replaced.items() if partition.before not in (ABSENT, partition.published)]
        backups = {day: self._undo_partition(run, target, date_column, day) / ROWS_FILE for day in changed}
        if expired := [day for day in changed if file_fingerprint(backups[day]) != replaced[day].before]:
            raise BackupMissing(
                f"what run {run} replaced on {len(expired)} date(s) is not kept any more (BACKFILL_UNDO_DAYS)",
                table=str(target),
                day=min(expired),
            )

    def restore(
        self,
        target: TableName,
        date_column: str,
        run: str,
        replaced: Mapping[date, ReplacedPartition],
        *,
        generation: int,
    ) -> frozenset[date]:
        folder = self._folder(target)
        with translate_file_errors(target), locked(self._lock(folder)):
            self._roll_forward(folder)
            files = {day: self._part(target, date_column, day) for day in replaced}
            self._check_no_other_files(files.values())
            waiting = [
                day
                for day, partition in replaced.items()
                if self._parts.rows_fingerprint(str(files[day]), file_fingerprint(files[day])) == partition.published
            ]
            self.check_restorable(target, date_column, run, {day: replaced[day] for day in waiting})
            for day in waiting:
                _restore_partition(
                    files[day], self._undo_partition(run, target, date_column, day) / ROWS_FILE, replaced[day]
                )
            sync_folder(folder)
            return frozenset(
                day for day, partition in replaced.items() if file_fingerprint(files[day]) == partition.before
            )

    def list_kept(self, table: TableName, date_column: str, dates: DateRange) -> list[KeptRows]:
        return []

    def restore_kept(self, table: TableName, date_column: str, kept: KeptRows, *, current: str) -> bool:
        raise BackupMissing(f"the rows {kept.id} are not kept", table=str(table), day=kept.day)

    def delete_expired_undo(self) -> None:
        before = (utcnow() - timedelta(days=self._limits.undo_days)).timestamp()
        for run in checked_path(self.root, self.root / UNDO).glob("*"):
            if not run.is_symlink() and run.stat().st_mtime < before:
                for file in run.rglob(ROWS_FILE):  # the notes stay, as a record of the replaced dates
                    file.unlink(missing_ok=True)

    # -- preparing and committing -----------------------------------------------------------------

    def _lock(self, folder: Path) -> Path:
        return checked_path(self.root, folder / ".lock")

    def _loading(self, folder: Path) -> Path:
        return checked_path(self.root, folder / LOADING)

    def _start_loading(self, folder: Path) -> None:
        self._roll_forward(folder)
        shutil.rmtree(self._loading(folder), ignore_errors=True)

    def _commit_loading(self, folder: Path, undo_files: Sequence[Path] = ()) -> None:
        """Publish the prepared partitions. Once the mark COMMITTED exists, a crash no longer prevents it.

        The prepared rows and `undo_files` are synced first. The note on the publisher is not: a power cut may lose it,
        and a partition without one is recognised by its checksum.
        """
        loading = folder / LOADING
        if loading.exists():
            partitions = partition_folders(self.root, loading)
            paths = (path for partition in partitions for path in (f"{partition}/{ROWS_FILE}", partition))
            sync_all([*paths, *undo_files, loading])
            write_atomically(loading / COMMITTED, b"")
            self._roll_forward(folder)

    def _roll_forward(self, folder: Path) -> None:
        loading = self._loading(folder)
        if not (loading / COMMITTED).exists():
            return
        replaced: list[Path] = []
        for new in sorted(partition_folders(self.root, loading), key=str):
            try:
                os.rename(new, f"{folder}/{new.name}")  # noqa: PTH104
                continue
            except OSError:
                if not file_exists(f"{folder}/{new.name}"):
                    raise
            partition = folder / new.name
            (new / ROWS_FILE).replace(partition / ROWS_FILE)
            if (new / PUBLICATION_FILE).exists():
                (new / PUBLICATION_FILE).replace(partition / PUBLICATION_FILE)
            else:
                (partition / PUBLICATION_FILE).unlink(missing_ok=True)
            replaced.append(partition)
        sync_all([*replaced, folder])
        (loading / COMMITTED).unlink()
        shutil.rmtree(loading)

    def _finish_load(self, folder: str) -> None:
        """Finish a load into the table's folder that was committed by a process that died before finishing it."""
        if file_exists(f"{folder}/{LOADING}/{COMMITTED}"):
            with locked(self._lock(Path(folder))):
                self._roll_forward(Path(folder))


_NoteEntries = dict[str, dict[str, str]]


def _read_notes(notes: Iterable[Path]) -> _NoteEntries:
    """Read the entries of the notes that exist, by date."""
    entries: _NoteEntries = {}
    for note in notes:
        if note.exists():
            entries |= json.loads(note.read_text())
    return entries


def _replaced_by_date(
    folder: Path, entries: _NoteEntries, date_column: str, days: Collection[date]
) -> dict[date, ReplacedPartition]:
    """Return the replaced partitions by date, from the notes or from the date's note of an earlier version."""
    replaced: dict[date, ReplacedPartition] = {}
    for day in days:
        entry = entries.get(day.isoformat()) or _read_note(f"{folder}/{date_column}={day.isoformat()}/{REPLACED}")
        if entry is not None:
            replaced[day] = ReplacedPartition(**entry)
    return replaced


def _read_note(note: str) -> dict[str, str] | None:
    return json.loads(Path(note).read_text()) if file_exists(note) else None


def _prepare_partition(partition: str, staged: StagedFile, publication: str) -> bytes:
    """Write the partition's folder: the staged rows and a note on their publication. Raises `StagedFileLost`.

    Returns the bytes of the rows' file.

    On the same disk the staged file itself is linked, as nothing writes to it again.
    """
    try:
        os.mkdir(partition)  # noqa: PTH102 - here and below: much faster than `Path`, for every published file
    except FileNotFoundError:
        os.makedirs(partition)  # noqa: PTH103
    rows_file = f"{partition}/{ROWS_FILE}"
    try:
        try:
            os.link(staged.location, rows_file, follow_symlinks=False)
            data = read_regular_file(rows_file)
            check_checksum(staged, data)
        except OSError:  # on another disk, or in an object store
            data = read_staged_bytes(staged)
            write_atomically(rows_file, data, durable=False)
    except (StagedFileLost, OutsideRoot) as exc:
        shutil.rmtree(partition)
        raise StagedFileLost(str(exc), day=staged.day) from exc
    note = {"publication": publication, "attempt": staged.attempt, "checksum": staged.checksum, "rows": staged.rows}
    with open(f"{partition}/{PUBLICATION_FILE}", "wb") as file:  # noqa: PTH123 - not read before the commit
        file.write(json.dumps(note).encode())
    return data


def _restore_partition(rows_file: Path, backup: Path, replaced: ReplacedPartition) -> None:
    if replaced.before == replaced.published:
        return
    if replaced.before == ABSENT:
        rows_file.unlink()
        shutil.rmtree(rows_file.parent)
        return
    temporary = rows_file.with_name(f".{ROWS_FILE}.undo.tmp")
    temporary.unlink(missing_ok=True)
    hard_link(backup, temporary)
    temporary.replace(rows_file)
    sync_folder(rows_file.parent)
