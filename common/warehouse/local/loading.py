"""The loading folder of a table: prepared partitions, and a journal of the changes that are under way.

`<root>/<dataset>/<table>/.loading/` exists while the table's lock is held. Partitions are replaced one at a time: if
the process dies, the same operation, repeated, replaces the rest. The journal lets the next process that
writes to the table finish the bookkeeping: a file that was taken out of the table is kept, or put back.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

from gated_backfill.common.model.tables import TableName
from gated_backfill.common.storage.files import checked_path, make_folders, sync_all, sync_folder, write_atomically
from gated_backfill.common.warehouse.local.exchange import (
    FileSnapshot,
    file_identity,
    finish_replacement,
    move_file,
    put_back,
    rename_to_new,
    replace_file,
    take_file,
)
from gated_backfill.common.warehouse.local.partitions import (
    LOADING,
    PUBLICATION_FILE,
    ROWS_FILE,
    file_exists,
    file_fingerprint,
    table_path,
)
from gated_backfill.common.warehouse.local.undo_folder import ChangeNote, UndoFolder, read_json
from gated_backfill.common.warehouse.protocol import ABSENT

JOURNAL = "journal.json"


@dataclass(frozen=True, kw_only=True)
class PartitionChange:
    """A partition to add, replace or remove. Its new files, if any, are in the loading folder."""

    day: date
    partition: str  #: the name of its folder
    expected: FileSnapshot  #: what has to be there; the change is not made to another file
    prepared: str | None  #: the checksum of the new file; None to remove the rows
    kept: Path | None = None  #: where the removed file is kept; None to add a file


@dataclass(frozen=True, kw_only=True)
class Keeper:
    """Where a change notes what it removes."""

    undo: UndoFolder  #: also keeps files of other programs that cannot be put back
    removed_by: str
    number: int | None = None  #: of the change's note, if it has one
    note: ChangeNote | None = None


class LoadingFolder:
    """The loading folder of one table. All methods need the table's lock."""

    def __init__(self, root: Path, table: TableName) -> None:
        self._root = root
        self._table = table
        self._folder = root.joinpath(*table_path(table))
        self.path = checked_path(root, self._folder / LOADING)

    def start(self) -> None:
        """Finish what a process that died has left, and clear the folder."""
        self.finish_interrupted()
        shutil.rmtree(self.path, ignore_errors=True)

    def has_journal(self) -> bool:
        return file_exists(self.path / JOURNAL)

    def partition(self, name: str) -> str:
        """Return the path of the folder in which the partition is prepared."""
        return f"{self.path}/{name}"

    def prepare_copy(self, copy: Path, name: str, checksum: str) -> bool:
        """Prepare a partition with copies of a kept file and its note; return whether the file has that checksum."""
        partition = self.partition(name)
        os.makedirs(partition)  # noqa: PTH103
        for source, prepared in ((copy, ROWS_FILE), (copy.with_name(PUBLICATION_FILE), PUBLICATION_FILE)):
            with suppress(FileNotFoundError):
                shutil.copyfile(source, f"{partition}/{prepared}")
        return file_fingerprint(f"{partition}/{ROWS_FILE}") == checksum

    # -- making changes -----------------------------------------------------------------------------------------

    def carry_out(
        self,
        changes: Sequence[PartitionChange],
        keeper: Keeper,
        after_each: Callable[[PartitionChange], None] = lambda _: None,
    ) -> frozenset[date]:
        """Make the changes, one at a time, and clear the folder.

        Return the days that were not changed, because another file than the expected one was there.

        The prepared files, the journal and the note are durable before the first change, the changes at the end. The
        note on the publisher is not: a power cut may lose it, and a partition without one is recognised by its
        checksum.
        """
        if not changes:
            return frozenset()
        self._prepare(changes, keeper)
        not_made: set[date] = set()
        for change in changes:
            if self._make(change, keeper):
                after_each(change)
            else:
                not_made.add(change.day)
        self._complete([change for change in changes if change.day not in not_made], not_made, keeper)
        return frozenset(not_made)

    def _prepare(self, changes: Sequence[PartitionChange], keeper: Keeper) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        to_sync = [path for change in changes if change.prepared for path in self._files_of(change)]
        taking = [change for change in changes if change.kept is not None]
        if taking:
            self._write_journal(taking, keeper)
            to_sync.append(f"{self.path}/{JOURNAL}")
        if keeper.note is not None and keeper.number is not None:
            keeper.undo.write_note(keeper.number, keeper.note)
            to_sync += map(str, keeper.undo.files_to_sync(keeper.number))
        sync_all([*to_sync, self.path])

    def _files_of(self, change: PartitionChange) -> tuple[str, str]:
        partition = self.partition(change.partition)
        return f"{partition}/{ROWS_FILE}", partition

    def _write_journal(self, changes: Sequence[PartitionChange], keeper: Keeper) -> None:
        entries: list[dict[str, Any]] = []
        for change in changes:
            prepared = self._files_of(change)[0]
            entries.append(
                asdict(change)
                | {
                    "day": change.day.isoformat(),
                    "kept": str(change.kept.relative_to(self._root)) if change.kept else None,
                    "ours": file_identity(os.lstat(prepared)) if change.prepared else None,
                }
            )
        journal = {
            "owner": keeper.undo.owner,
            "removed_by": keeper.removed_by,
            "number": keeper.number,
            "changes": entries,
        }
        write_atomically(f"{self.path}/{JOURNAL}", json.dumps(journal).encode(), durable=False)

    def _make(self, change: PartitionChange, keeper: Keeper) -> bool:
        """Make the change; return whether the expected file was there."""
        prepared, new = self._files_of(change)
        rows_file = f"{self._folder}/{change.partition}/{ROWS_FILE}"
        if change.kept is None:
            return self._add(change)
        if change.prepared is None:
            os.makedirs(new, exist_ok=True)  # noqa: PTH103
            made = take_file(rows_file, prepared, change.expected)
        else:
            made = replace_file(rows_file, prepared, change.expected)
        if made:
            self._keep(change, change.kept)
        elif os.path.lexists(prepared) and file_fingerprint(prepared) != change.prepared:
            keeper.undo.keep(prepared, change.day, keeper.removed_by)
        return made

    def _add(self, change: PartitionChange) -> bool:
        prepared, new = self._files_of(change)
        partition = f"{self._folder}/{change.partition}"
        try:
            os.rename(new, partition)  # noqa: PTH104 - which replaces no folder but an empty one
        except OSError:
            if not file_exists(partition):
                raise
        else:
            return True
        try:
            rename_to_new(prepared, f"{partition}/{ROWS_FILE}")
        except FileExistsError:
            return False
        self._move_note(change.partition)
        sync_folder(partition)
        return True

    def _keep(self, change: PartitionChange, kept: Path) -> None:
        """Keep the file that was taken out of the table. A folder without rows goes, unless others have files in it."""
        make_folders(kept.parent)  # retention may have removed it since the process died
        move_file(self._files_of(change)[0], str(kept))
        self._move_note(change.partition)
        if change.prepared is None:
            with suppress(OSError):
                os.rmdir(f"{self._folder}/{change.partition}")  # noqa: PTH106

    def _move_note(self, partition: str) -> None:
        """Replace the note on the publisher of the earlier rows by that of the new ones, if they have one."""
        note = f"{self._folder}/{partition}/{PUBLICATION_FILE}"
        try:
            os.replace(f"{self.partition(partition)}/{PUBLICATION_FILE}", note)  # noqa: PTH105
        except FileNotFoundError:
            with suppress(FileNotFoundError):
                os.unlink(note)  # noqa: PTH108

    def replace_all(self, partitions: Sequence[str]) -> None:
        """Replace partitions by the prepared ones, whatever they hold, and keep nothing. Clear the folder."""
        new = [self.partition(name) for name in partitions]
        sync_all([path for folder in new for path in (f"{folder}/{ROWS_FILE}", folder)])
        replaced: list[str] = []
        for name, folder in zip(partitions, new, strict=True):
            partition = f"{self._folder}/{name}"
            try:
                os.rename(folder, partition)  # noqa: PTH104
            except OSError:
                if not file_exists(partition):
                    raise
                os.replace(f"{folder}/{ROWS_FILE}", f"{partition}/{ROWS_FILE}")  # noqa: PTH105
                self._move_note(name)
                replaced.append(partition)
        sync_all([*replaced, self._folder])
        shutil.rmtree(self.path)

    def _complete(self, made: Sequence[PartitionChange], not_made: Collection[date], keeper: Keeper) -> None:
        """Sync the changes and clear the folder."""
        if keeper.number is not None:
            keeper.undo.drop_dates(keeper.number, not_made)
        self._sync(made)
        shutil.rmtree(self.path)

    def _sync(self, changes: Sequence[PartitionChange]) -> None:
        """Sync what was kept of the partitions, and then the partitions, so that a power cut loses nothing."""
        kept = [change.kept for change in changes if change.kept is not None and change.kept.exists()]
        folders = dict.fromkeys(file.parent for file in kept)
        partitions = [f"{self._folder}/{change.partition}" for change in changes if change.kept is not None]
        if kept:
            sync_all([*kept, *folders])
        sync_all([*filter(file_exists, partitions), self._folder])

    # -- recovery -----------------------------------------------------------------------------------------------

    def finish_interrupted(self) -> None:
        """Finish the bookkeeping of changes that were under way when their process died.

        What was taken out of the table is kept if it was what the process expected, and put back otherwise.
        """
        journal = read_json(self.path / JOURNAL)
        if journal is None:
            return
        undo = UndoFolder(self._root, journal["owner"], self._table)
        keeper = Keeper(undo=undo, removed_by=journal["removed_by"], number=journal["number"])
        changes = [(self._change_of(entry), entry["ours"]) for entry in journal["changes"]]
        not_made = {change.day for change, ours in changes if not self._finish(change, ours, keeper)}
        if keeper.number is not None:
            undo.drop_dates(keeper.number, not_made)
        self._sync([change for change, _ in changes])

    def _change_of(self, entry: dict[str, Any]) -> PartitionChange:
        checksum, identity = entry["expected"]
        return PartitionChange(
            day=date.fromisoformat(entry["day"]),
            partition=entry["partition"],
            expected=FileSnapshot(checksum, tuple(identity)),
            prepared=entry["prepared"],
            kept=checked_path(self._root, self._root / entry["kept"]),
        )

    def _finish(self, change: PartitionChange, ours: list[int] | None, keeper: Keeper) -> bool:
        """Finish the change; return whether it was made."""
        taken = self._files_of(change)[0]
        rows_file = f"{self._folder}/{change.partition}/{ROWS_FILE}"
        finish_replacement(rows_file, taken)
        assert change.kept is not None
        checksum = file_fingerprint(taken)
        if checksum in (ABSENT, change.prepared):
            return change.kept.exists()  # a power cut may have undone the end of the move only
        if checksum == change.expected.checksum:
            self._keep(change, change.kept)
            return True
        if ours is None:
            with suppress(FileExistsError, FileNotFoundError):  # written or removed by another program since
                rename_to_new(taken, rows_file)
        else:
            put_back(rows_file, taken, (ours[0], ours[1], ours[2]))
        if os.path.lexists(taken) and file_fingerprint(taken) != change.prepared:
            keeper.undo.keep(taken, change.day, keeper.removed_by)
        return False
