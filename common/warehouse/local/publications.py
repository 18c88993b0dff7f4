"""Publishing to a local warehouse, and undo: each partition is exchanged by itself, and what it held is kept."""

from __future__ import annotations

import json
import os
import shutil
from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path

import pyarrow.parquet as pq

from gated_backfill.common.errors import StagedFileLost
from gated_backfill.common.model.dates import DateRange
from gated_backfill.common.model.publication import (
    KeptRows,
    Publication,
    PublishedDate,
    PublishResult,
    StagedFile,
    WarehouseLimits,
)
from gated_backfill.common.model.tables import TableName
from gated_backfill.common.process.clock import utcnow
from gated_backfill.common.storage.files import checked_path
from gated_backfill.common.storage.staged_files import open_staged, open_staged_bytes
from gated_backfill.common.warehouse.backups import kept_rows_missing, replaced_rows_missing
from gated_backfill.common.warehouse.local.backups import LocalBackups
from gated_backfill.common.warehouse.local.exchange import FileSnapshot
from gated_backfill.common.warehouse.local.loading import Keeper, LoadingFolder, PartitionChange
from gated_backfill.common.warehouse.local.partition_files import FileSchema
from gated_backfill.common.warehouse.local.partitions import (
    PUBLICATION_FILE,
    ROWS_FILE,
    file_fingerprint,
    partition_name,
    translate_file_errors,
)
from gated_backfill.common.warehouse.local.table_schema import TableSchema, declarable_types
from gated_backfill.common.warehouse.local.undo_folder import (
    UNDO,
    Change,
    ChangeNote,
    UndoFolder,
    read_json,
    undo_folders,
)
from gated_backfill.common.warehouse.protocol import ABSENT, ReplacedPartition, TableInfo, check_same_columns

KEPT_RESTORES = "_restored"  #: in place of a run: what a restore of kept rows removed


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
        with self._writing(target) as loading:
            undo = UndoFolder(self.root, publication.run, target)
            undo.fence_publication(publication)
            paths = self._places(target, date_column, [staged.day for staged in files])
            current = {day: self._parts.snapshot(path) for day, path in paths.items()}
            done = {staged.day for staged in files if current[staged.day].checksum == staged.checksum}
            changed = {
                day
                for day, path in paths.items()
                if day not in done
                and self._parts.rows_fingerprint(path, current[day].checksum) != fingerprints_when_staged[day]
            }
            waiting = [staged for staged in files if staged.day not in done and staged.day not in changed]
            prepared = self._prepare_files(loading, target, date_column, waiting, publication)
            changed |= self._exchange_prepared(loading, undo, date_column, publication, prepared, current)
        unreadable = frozenset(staged.day for staged in waiting) - {staged.day for staged in prepared}
        published = frozenset(current) - changed - unreadable
        return PublishResult(published=published, conflicting=frozenset(changed), lost=unreadable)

    def raise_fence(self, target: TableName, run: str, *, window: int | None, generation: int) -> None:
        undo = UndoFolder(self.root, run, target)
        with self._writing(target):  # what is under way has the lock
            if window is None:
                undo.fence_undo(generation, durable=True)
            else:
                undo.fence_window(window, generation, durable=True)

    def _prepare_files(
        self,
        loading: LoadingFolder,
        target: TableName,
        date_column: str,
        files: Sequence[StagedFile],
        publication: Publication,
    ) -> list[StagedFile]:
        """Prepare the partitions of the files, and declare the table's schema; return the intact files."""
        prepared: list[StagedFile] = []
        columns: Mapping[str, str] | None = None  # of the files
        parquet_schema: pq.ParquetSchema | None = None  # of the latest file
        for staged in files:
            partition = loading.partition(partition_name(date_column, staged.day))
            try:
                file_schema = _prepare_partition(partition, staged, publication.name)
            except StagedFileLost:
                continue
            if parquet_schema is None or not file_schema.parquet.equals(parquet_schema):
                columns = self._check_publishable_columns(target, date_column, file_schema, columns)
                parquet_schema = file_schema.parquet
            prepared.append(staged)
        if columns is not None:
            self._declare_schema(target, date_column, columns)
        return prepared

    def _exchange_prepared(
        self,
        loading: LoadingFolder,
        undo: UndoFolder,
        date_column: str,
        publication: Publication,
        files: Sequence[StagedFile],
        current: Mapping[date, FileSnapshot],
    ) -> frozenset[date]:
        """Replace the partitions; return the days that another program wrote meanwhile, which are left alone."""
        number = undo.next_number()
        changes = {
            staged.day: Change(
                before=current[staged.day].checksum,
                published=staged.checksum if staged.rows else ABSENT,
                written=staged.checksum,
            )
            for staged in files
        }
        note = ChangeNote(
            removed_by=f"run {publication.run}", window=publication.window, kept_at=utcnow(), changes=changes
        )
        return loading.carry_out(
            [_change(undo, number, date_column, day, current[day], change.written) for day, change in changes.items()],
            Keeper(undo=undo, removed_by=note.removed_by, number=number, note=note),
        )

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

    def replaced_partitions(
        self, target: TableName, date_column: str, run: str, days: Collection[date]
    ) -> dict[date, ReplacedPartition]:
        undo = UndoFolder(self.root, run, target)
        self._finish_interrupted(target)
        with translate_file_errors(target):
            return undo.replaced(date_column, days)

    def _finish_interrupted(self, table: TableName) -> None:
        """Have the notes say what a process that died has changed."""
        if LoadingFolder(self.root, table).has_journal():
            with self._writing(table):
                pass

    def check_restorable(
        self, target: TableName, date_column: str, run: str, replaced: Mapping[date, ReplacedPartition]
    ) -> None:
        self._find_copies(target, date_column, run, replaced)

    def _find_copies(
        self, target: TableName, date_column: str, run: str, replaced: Mapping[date, ReplacedPartition]
    ) -> dict[date, Path]:
        """Return the kept files of the replaced rows, where there were any. Raises `BackupMissing`."""
        changed = {day: part.before for day, part in replaced.items() if part.before not in (ABSENT, part.published)}
        copies = UndoFolder(self.root, run, target).find_copies(date_column, changed)
        if expired := changed.keys() - copies.keys():
            raise replaced_rows_missing(target, run, expired)
        return copies

    def restore(
        self,
        target: TableName,
        date_column: str,
        run: str,
        replaced: Mapping[date, ReplacedPartition],
        *,
        generation: int,
    ) -> frozenset[date]:
        undo = UndoFolder(self.root, run, target)
        with self._writing(target) as loading:
            undo.fence_undo(generation)
            paths = self._places(target, date_column, replaced)
            self._check_no_other_files(map(Path, paths.values()))
            current = {day: self._parts.snapshot(path) for day, path in paths.items()}
            waiting = {
                day: partition
                for day, partition in replaced.items()
                if partition.before != partition.published
                and self._parts.rows_fingerprint(paths[day], current[day].checksum) == partition.published
            }
            copies = self._find_copies(target, date_column, run, waiting)
            checksums = {day: partition.before for day, partition in waiting.items()}
            if missing := _prepare_copies(loading, date_column, copies, checksums):
                raise replaced_rows_missing(target, run, missing)
            self._put_in_place(loading, undo, f"undo of run {run}", date_column, checksums, current)
            return frozenset(day for day, path in paths.items() if file_fingerprint(path) == replaced[day].before)

    def _put_in_place(
        self,
        loading: LoadingFolder,
        undo: UndoFolder,
        removed_by: str,
        date_column: str,
        checksums: Mapping[date, str],
        current: Mapping[date, FileSnapshot],
    ) -> None:
        """Replace the files of dates by prepared copies with these checksums, or remove them (`ABSENT`).

        Only files that are still the current ones are replaced. What they held is kept, and so is what was copied.
        """
        number = undo.next_number()
        changes = {
            day: Change(before=current[day].checksum, published=checksum, written=checksum)
            for day, checksum in checksums.items()
        }
        note = ChangeNote(removed_by=removed_by, window=None, kept_at=utcnow(), changes=changes)
        loading.carry_out(
            [_change(undo, number, date_column, day, current[day], change.written) for day, change in changes.items()],
            Keeper(undo=undo, removed_by=removed_by, number=number, note=note),
        )

    def list_kept(self, table: TableName, date_column: str, dates: DateRange) -> list[KeptRows]:
        self._finish_interrupted(table)
        with translate_file_errors(table):
            undo_of_table = (undo for undo in undo_folders(self.root) if undo.table == table)
            listed = [kept for undo in undo_of_table for kept, _ in undo.kept(date_column, dates)]
        return sorted(listed, key=lambda kept: (kept.kept_at, kept.id), reverse=True)

    def check_kept_restorable(self, table: TableName, date_column: str, kept: KeptRows) -> None:
        with translate_file_errors(table):
            self._find_kept_copy(table, date_column, kept)

    def _find_kept_copy(self, table: TableName, date_column: str, kept: KeptRows) -> Path:
        """Return the file of the kept rows. Raises `BackupMissing`, `SchemaMismatch`."""
        owner = UndoFolder(self.root, kept.id.partition("/")[0], table)
        one_day = DateRange(start=kept.day, through=kept.day)
        copies = [copy for rows, copy in owner.kept(date_column, one_day) if rows.id == kept.id]
        if not copies or file_fingerprint(copies[0]) != kept.fingerprint:
            raise kept_rows_missing(table, kept)
        self._check_no_other_files([self._part(table, date_column, kept.day)])
        return copies[0]

    def restore_kept(self, table: TableName, date_column: str, kept: KeptRows, *, current: str) -> bool:
        with self._writing(table) as loading:
            copy = self._find_kept_copy(table, date_column, kept)
            path = self._part(table, date_column, kept.day)
            snapshot = self._parts.snapshot(str(path))
            if snapshot.checksum != kept.fingerprint and (
                self._parts.rows_fingerprint(str(path), snapshot.checksum) == current
            ):
                undo = UndoFolder(self.root, KEPT_RESTORES, table)
                checksums = {kept.day: kept.fingerprint}
                if _prepare_copies(loading, date_column, {kept.day: copy}, checksums):
                    raise kept_rows_missing(table, kept)
                removed_by = "restore of kept rows"
                self._put_in_place(loading, undo, removed_by, date_column, checksums, {kept.day: snapshot})
            return file_fingerprint(path) == kept.fingerprint

    def delete_expired_undo(self) -> None:
        checked_path(self.root, self.root / UNDO)
        period = timedelta(days=self._limits.undo_days)
        for undo in undo_folders(self.root):
            if undo.has_expired(period):
                with self._writing(undo.table):
                    undo.delete_expired(period)


def _change(
    undo: UndoFolder, number: int, date_column: str, day: date, expected: FileSnapshot, written: str
) -> PartitionChange:
    """Return the change of a date's file from the expected to the written one (`ABSENT` removes it)."""
    return PartitionChange(
        day=day,
        partition=partition_name(date_column, day),
        expected=expected,
        prepared=None if written == ABSENT else written,
        kept=None if expected.identity is None else undo.copy_of(number, day),
    )


def _prepare_copies(
    loading: LoadingFolder, date_column: str, copies: Mapping[date, Path], checksums: Mapping[date, str]
) -> list[date]:
    """Prepare partitions with copies of kept files; return the days whose copy was removed or damaged meanwhile."""
    return [
        day
        for day, copy in copies.items()
        if not loading.prepare_copy(copy, partition_name(date_column, day), checksums[day])
    ]


def _prepare_partition(partition: str, staged: StagedFile, publication: str) -> FileSchema:
    """Write the partition's folder: the staged rows and a note on their publication. Raises `StagedFileLost`.

    Returns the schema of the rows' file.

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
        except OSError:  # on another disk, or in an object store
            with open_staged_bytes(staged) as source, open(rows_file, "wb") as copy:  # noqa: PTH123
                shutil.copyfileobj(source, copy)
        with open_staged(replace(staged, location=rows_file)) as rows:
            schema = FileSchema.of_file(rows)
    except StagedFileLost:
        shutil.rmtree(partition)
        raise
    note = {"publication": publication, "attempt": staged.attempt, "checksum": staged.checksum, "rows": staged.rows}
    with open(f"{partition}/{PUBLICATION_FILE}", "wb") as file:  # noqa: PTH123 - not read before the commit
        file.write(json.dumps(note).encode())
    return schema


def read_publication_note(part: str) -> PublishedDate | None:
    """Read the note on the publication of the partition of that file; None without a readable one."""
    note = read_json(Path(part).with_name(PUBLICATION_FILE))
    if note is None:
        return None
    run, _, _ = note["publication"].rpartition("/")
    return PublishedDate(run=run, attempt=note["attempt"], checksum=note["checksum"])
