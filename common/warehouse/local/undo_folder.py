"""Undo folders: what a run, or another operation, removed from a table, with notes and fencing tokens.

`<root>/.undo/<owner>/<dataset>/<table>/` has a note `note-N.json` for each change of the table, numbered from 1, and in
`rows-N/<date>.parquet` the files that it removed. Earlier versions wrote one note for each window, `<window>.json` or
`<date_column>=<date>/replaced.json`, and kept the files of a run's first publication of a date only, in
`<date_column>=<date>/part.parquet`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from gated_backfill.common.errors import LeaseTakenOver
from gated_backfill.common.model.dates import DateRange
from gated_backfill.common.model.publication import KeptRows, Publication, is_confirmed_expired
from gated_backfill.common.model.tables import TableName
from gated_backfill.common.process.clock import utcnow
from gated_backfill.common.storage.files import checked_path, make_folders, sync_all, sync_folder
from gated_backfill.common.warehouse.local.exchange import move_file
from gated_backfill.common.warehouse.local.partitions import (
    LOADING,
    ROWS_FILE,
    count_rows,
    file_fingerprint,
    names_in,
    partition_names,
    table_path,
    write_through,
)
from gated_backfill.common.warehouse.protocol import ABSENT, ReplacedPartition

UNDO = ".undo"  #: in the root
FENCE = "fence.json"  #: the highest generation of each window's gate, and of the run's undo
EXPIRED = "expired.json"  #: since when copies have been found to be expired
NOTE, ROWS = "note-", "rows-"
REPLACED = "replaced.json"


@dataclass(frozen=True, kw_only=True)
class Change:
    """One date of a change."""

    before: str  #: checksum of the removed file; `ABSENT` for none
    published: str  #: fingerprint of the new rows; `ABSENT` for none
    written: str  #: checksum of the new file, also of one without rows; `ABSENT` for none


@dataclass(frozen=True, kw_only=True)
class ChangeNote:
    """A change of a table. It is written before its effect, so a date in it may be unchanged after a crash."""

    removed_by: str  #: in words, see `KeptRows`
    window: int | None  #: of the run that published; None for another kind of change
    kept_at: datetime
    changes: Mapping[date, Change]

    def to_json(self) -> bytes:
        dates = {day.isoformat(): vars(change) for day, change in self.changes.items()}
        return json.dumps(
            {"removed_by": self.removed_by, "window": self.window, "kept_at": self.kept_at.isoformat(), "dates": dates}
        ).encode()

    @classmethod
    def of_json(cls, note: dict[str, Any]) -> ChangeNote:
        return cls(
            removed_by=note["removed_by"],
            window=note["window"],
            kept_at=datetime.fromisoformat(note["kept_at"]),
            changes={date.fromisoformat(name): Change(**change) for name, change in note["dates"].items()},
        )


class UndoFolder:
    """The undo folder of a run and a table. Callers that write hold the table's lock."""

    def __init__(self, root: Path, owner: str, table: TableName) -> None:
        self.owner = owner
        self.table = table
        self.path = checked_path(root, (root / UNDO / owner).joinpath(*table_path(table)))
        self._loading = checked_path(root, root.joinpath(*table_path(table)) / LOADING)

    # -- fencing ------------------------------------------------------------------------------------------------

    def fence_publication(self, publication: Publication) -> None:
        """Record the generation of the window. Raises `LeaseTakenOver` after a higher one or an undo of the run."""
        if self._read_fence()["undo"] is not None:
            raise LeaseTakenOver(f"run {publication.run} was undone meanwhile: nothing was published")
        self.fence_window(publication.window, publication.generation)

    def fence_window(self, window: int, generation: int, *, durable: bool = False) -> None:
        """Record the generation of the window. Raises `LeaseTakenOver` after a higher one."""
        fence = self._read_fence()
        if fence["windows"].get(str(window), generation) > generation:
            raise LeaseTakenOver(f"another gate has taken over window {self.owner}/{window}: nothing was published")
        fence["windows"][str(window)] = generation
        self._write_fence(fence, durable=durable)

    def fence_undo(self, generation: int, *, durable: bool = False) -> None:
        """Record the generation of the undo. Raises `LeaseTakenOver` after a higher one."""
        fence = self._read_fence()
        if fence["undo"] is not None and fence["undo"] > generation:
            raise LeaseTakenOver(f"another process has taken over the undo of run {self.owner}: nothing was restored")
        fence["undo"] = generation
        self._write_fence(fence, durable=durable)

    def _write_fence(self, fence: dict[str, Any], *, durable: bool) -> None:
        """Write the fencing tokens. Without `durable`, the change that follows syncs them, see `files_to_sync`."""
        self._write(FENCE, json.dumps(fence).encode(), durable=durable)
        if durable:
            sync_folder(self.path)

    def _read_fence(self) -> dict[str, Any]:
        return read_json(self.path / FENCE) or {"windows": {}, "undo": None}

    # -- notes --------------------------------------------------------------------------------------------------

    def next_number(self) -> int:
        """Return the number of the next change, which no note and no copy has."""
        return max((*self._numbers(NOTE), *self._numbers(ROWS)), default=0) + 1

    def write_note(self, number: int, note: ChangeNote) -> None:
        """Write the note, and create the folder for what the change removes. Sync `files_to_sync` afterwards."""
        self._write(self._note(number).name, note.to_json())
        if any(change.before != ABSENT for change in note.changes.values()):
            make_folders(self.copy_of(number, date.min).parent)

    def files_to_sync(self, number: int) -> list[Path]:
        """List the files and folders that make the note and the fencing tokens durable."""
        return [path for path in (self._note(number), self.path / FENCE, self.path) if path.exists()]

    def drop_dates(self, number: int, days: Collection[date]) -> None:
        """Remove dates from the note that were not changed after all."""
        note = self._read_note(number)
        if days and note is not None:
            changes = {day: change for day, change in note.changes.items() if day not in days}
            self._write(self._note(number).name, replace(note, changes=changes).to_json(), durable=True)
            sync_folder(self.path)

    def copy_of(self, number: int, day: date) -> Path:
        """Return the path of the rows that the change removed from the date."""
        return self.path / f"{ROWS}{number}" / f"{day.isoformat()}.parquet"

    def keep(self, file: str, day: date, removed_by: str) -> None:
        """Keep a file of another program, which could not be put back, as a change of its own."""
        number, checksum = self.next_number(), file_fingerprint(file)
        change = Change(before=checksum, published=checksum, written=checksum)
        self.write_note(number, ChangeNote(removed_by=removed_by, window=None, kept_at=utcnow(), changes={day: change}))
        copy = self.copy_of(number, day)
        move_file(file, str(copy))
        sync_all([copy, copy.parent, *self.files_to_sync(number)])

    def _notes(self) -> Iterator[tuple[int, ChangeNote]]:
        """Yield the changes with their numbers, in order."""
        for number in self._numbers(NOTE):
            note = self._read_note(number)
            if note is not None:
                yield number, note

    def _read_note(self, number: int) -> ChangeNote | None:
        note = read_json(self._note(number))
        return None if note is None else ChangeNote.of_json(note)

    def _note(self, number: int) -> Path:
        return self.path / f"{NOTE}{number}.json"

    def _numbers(self, prefix: str) -> list[int]:
        """List the numbers of the notes, or of the folders of copies, in order."""
        names = (name.removeprefix(prefix).removesuffix(".json") for name in names_in(self.path) if prefix in name)
        return sorted(int(name) for name in names if name.isdecimal())

    def _write(self, name: str, content: bytes, *, durable: bool = False) -> None:
        make_folders(self.path)
        write_through(self._loading, self.path / name, content, durable=durable)

    # -- what can be undone -------------------------------------------------------------------------------------

    def replaced(self, date_column: str, days: Collection[date]) -> dict[date, ReplacedPartition]:
        """Return the replaced partition of each day that the run published, or started to publish."""
        changes: dict[date, list[Change]] = {day: [] for day in days}
        for day, change in self._old_changes(date_column, days).items():
            changes[day].append(change)
        for _, note in self._notes():
            if note.window is not None:
                for day in note.changes.keys() & changes.keys():
                    changes[day].append(note.changes[day])
        return {day: _replaced_partition(history) for day, history in changes.items() if history}

    def _old_changes(self, date_column: str, days: Collection[date]) -> dict[date, Change]:
        """Return what earlier versions noted: the rows before the first publication of a date, and after the last."""
        entries: dict[str, dict[str, str]] = {}
        for name in sorted(names_in(self.path)):
            if name.removesuffix(".json").isdecimal():
                entries |= json.loads((self.path / name).read_text())
        changes: dict[date, Change] = {}
        for day in days:
            entry = entries.get(day.isoformat()) or read_json(self._old_copy(date_column, day).with_name(REPLACED))
            if entry:
                changes[day] = Change(**entry, written=entry["published"])
        return changes

    def find_copies(self, date_column: str, checksums: Mapping[date, str]) -> dict[date, Path]:
        """Return, by date, the kept file with that checksum, without dates of which none is kept any more."""
        copies = {day: [self._old_copy(date_column, day)] for day in checksums}
        for number, note in self._notes():
            for day in note.changes.keys() & checksums.keys():
                copies[day].append(self.copy_of(number, day))
        copy_by_date: dict[date, Path] = {}
        for day, checksum in checksums.items():
            for copy in reversed(copies[day]):
                if file_fingerprint(copy) == checksum:
                    copy_by_date[day] = copy
                    break
        return copy_by_date

    def _old_copy(self, date_column: str, day: date) -> Path:
        return self.path / f"{date_column}={day.isoformat()}" / ROWS_FILE

    # -- what is kept -------------------------------------------------------------------------------------------

    def kept(self, date_column: str, dates: DateRange) -> Iterator[tuple[KeptRows, Path]]:
        """Yield the kept rows of these dates with their files."""
        for number, note in self._notes():
            for day, change in note.changes.items():
                if dates.start <= day <= dates.through:
                    yield from self._kept(
                        number, day, self.copy_of(number, day), note.kept_at, note.removed_by, change.before
                    )
        for copy, kept_at in self._old_copies(date_column):
            day = date.fromisoformat(copy.parent.name.partition("=")[2])
            if dates.start <= day <= dates.through:
                yield from self._kept(0, day, copy, kept_at, f"run {self.owner}", file_fingerprint(copy))

    def _kept(
        self, number: int, day: date, copy: Path, kept_at: datetime, removed_by: str, checksum: str
    ) -> Iterator[tuple[KeptRows, Path]]:
        """Yield the copy, unless it is gone or has no rows."""
        rows = count_rows(copy)
        if rows:
            name = f"{self.owner}/{number}/{day.isoformat()}"
            kept = KeptRows(id=name, day=day, kept_at=kept_at, removed_by=removed_by, fingerprint=checksum, rows=rows)
            yield kept, copy

    def _old_copies(self, date_column: str | None) -> Iterator[tuple[Path, datetime]]:
        """Yield the copies of earlier versions, with the time of the last change of their links: of their removal."""
        for partition in partition_names(self.path, date_column):
            copy = self.path / partition / ROWS_FILE
            with suppress(FileNotFoundError):
                yield copy, datetime.fromtimestamp(copy.lstat().st_ctime, UTC)

    # -- retention ----------------------------------------------------------------------------------------------

    def has_expired(self, period: timedelta) -> bool:
        """Whether copies were kept for longer, or were found to be, so that `delete_expired` has something to do."""
        return (self.path / EXPIRED).exists() or bool(self._expired(period, utcnow()))

    def delete_expired(self, period: timedelta) -> None:
        """Delete the copies that were kept for longer, once that is confirmed, see `is_confirmed_expired`."""
        now = utcnow()
        expired = self._expired(period, now)
        recorded = {name: datetime.fromisoformat(time) for name, time in (read_json(self.path / EXPIRED) or {}).items()}
        # A time in the future was recorded under a clock that was ahead.
        expired_since = {name: time for name, time in recorded.items() if name in expired and time <= now}
        for name, time in expired_since.items():
            if is_confirmed_expired(time, now):
                self._delete_copies(name)
        remaining = {name: expired_since.get(name, now).isoformat() for name in expired if (self.path / name).exists()}
        if remaining:
            (self.path / EXPIRED).write_text(json.dumps(remaining))
        else:
            (self.path / EXPIRED).unlink(missing_ok=True)

    def _expired(self, period: timedelta, now: datetime) -> set[str]:
        """Return the names of the folders whose copies were kept for longer."""
        return {name for name, kept_at in self._copies() if kept_at + period <= now}

    def _copies(self) -> Iterator[tuple[str, datetime]]:
        """Yield the names of the folders with copies, and the time from which their retention counts.

        That is when they were kept. What the publications of a run replaced counts from its latest publication, as an
        undo of a long run needs the copies of all its windows.
        """
        numbers, old_copies = self._numbers(ROWS), list(self._old_copies(None))
        if not numbers and not old_copies:
            return  # most runs have replaced nothing
        notes = dict(self._notes())
        publications = [note.kept_at for note in notes.values() if note.window is not None]
        published_at = max([*publications, *(kept_at for _, kept_at in old_copies)], default=utcnow())
        for number in numbers:
            if number in notes:
                yield f"{ROWS}{number}", notes[number].kept_at if notes[number].window is None else published_at
        for copy, _ in old_copies:
            yield copy.parent.name, published_at

    def _delete_copies(self, name: str) -> None:
        """Delete the files of the folder; the notes stay, as a record of the replaced dates."""
        for file in (self.path / name).glob("*.parquet"):
            file.unlink(missing_ok=True)
        with suppress(OSError):  # holds a note of an earlier version
            (self.path / name).rmdir()


def undo_folders(root: Path) -> Iterator[UndoFolder]:
    """Yield all undo folders. No link is followed."""
    for owner in _folders(checked_path(root, root / UNDO)):
        for dataset in _folders(owner):
            for table in _folders(dataset):
                yield UndoFolder(root, owner.name, TableName(dataset.name, table.name))


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(Path(entry) for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return []


def _replaced_partition(history: list[Change]) -> ReplacedPartition:
    """Return the rows that an undo restores: those that the run's latest publication replaced.

    If these are the run's own rows, take those that the publication before it replaced, and so on.
    """
    last = len(history) - 1
    own = [{change.published, change.written} - {ABSENT} for change in history]
    while last and any(history[last].before in checksums for checksums in own[:last]):
        last -= 1
    return ReplacedPartition(before=history[last].before, published=history[-1].published)


def read_json(file: Path) -> dict[str, Any] | None:
    """Read the file; None if it does not exist, or is not readable after a power cut: it was not relied on yet."""
    try:
        return json.loads(file.read_text())
    except (FileNotFoundError, ValueError):
        return None
