"""Publishing to a local warehouse: what is prepared takes effect at once, and what it replaces is kept for `undo`.

`<root>/<dataset>/<table>/.loading/` holds what is prepared; with a `COMMITTED` in it, it takes effect whatever dies.
`<root>/.undo/<run>/<dataset>/<table>/` holds a note for each window, and by date the part that was replaced.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import date, timedelta
from pathlib import Path

from gated_backfill.common.errors import BackupMissing, OutsideRoot, StagedFileLost
from gated_backfill.common.model.publication import PublishResult, StagedFile, WarehouseLimits
from gated_backfill.common.model.tables import TableName
from gated_backfill.common.process.clock import utcnow
from gated_backfill.common.process.file_lock import locked
from gated_backfill.common.storage.files import checked_path, read_regular_file, sync_all, sync_folder, write_atomically
from gated_backfill.common.storage.staged_files import check_checksum, read_staged_bytes
from gated_backfill.common.warehouse.local.backups import LocalBackups
from gated_backfill.common.warehouse.local.partition_files import PartitionFiles
from gated_backfill.common.warehouse.local.partitions import (
    PUBLICATION_FILE,
    ROWS_FILE,
    file_exists,
    file_fingerprint,
    hard_link,
    partition_folders,
    translate_file_errors,
)
from gated_backfill.common.warehouse.protocol import ABSENT, ReplacedPartition

LOADING = ".loading"  #: partitions in preparation; once it holds COMMITTED they will take effect whatever dies
COMMITTED = "COMMITTED"
UNDO = ".undo"  #: in the root: by run and table, what a run's first publication of a date replaced
REPLACED = "replaced.json"  #: beside a kept part, a note of its own: as versions before this one wrote it


class LocalPublications(LocalBackups):
    """See `Warehouse` for what it promises."""

    _limits: WarehouseLimits
    _parts: PartitionFiles

    def publish(
        self,
        target: TableName,
        date_column: str,
        files: Sequence[StagedFile],
        *,
        fingerprints_when_staged: Mapping[date, str],
        publication: str,
    ) -> PublishResult:
        folder = self._folder(target)
        lost: set[date] = set()
        with translate_file_errors(target), locked(self._lock(folder)):
            self._start_loading(folder)
            places = self._places(target, date_column, [staged.day for staged in files])
            now = {day: self._parts.fingerprint_uncached(place) for day, place in places.items()}
            there = {staged.day for staged in files if now[staged.day] == staged.checksum}
            changed = {day for day in now if day not in there and now[day] != fingerprints_when_staged[day]}
            prepared: dict[date, str] = {}
            loading = f"{folder}/{LOADING}"
            for staged in files:
                if staged.day in there or staged.day in changed:
                    continue
                place = f"{loading}/{date_column}={staged.day.isoformat()}"
                try:
                    _prepare(place, staged, publication)
                except StagedFileLost:
                    lost.add(staged.day)
                else:
                    prepared[staged.day] = staged.checksum
            kept = self._keep(target, date_column, publication, before=now, published=prepared)
            self._commit_loading(folder, kept)
        published = frozenset(now) - changed - lost
        return PublishResult(published=published, conflicting=frozenset(changed), lost=frozenset(lost))

    # -- what was replaced ----------------------------------------------------------------------------------

    def _keep(
        self,
        target: TableName,
        date_column: str,
        publication: str,
        *,
        before: Mapping[date, str],
        published: Mapping[date, str],
    ) -> list[Path]:
        """Keep what the dates held before the run's first publication, and note what they are about to hold.

        Returns the files and folders that must be durable before that takes effect. The note is prepared where the
        load is, which is cleared should the process die: nobody clears what is kept.
        """
        if not published:
            return []
        run, _, window = publication.partition("/")
        folder = self._undo_folder(run, target)
        note = folder / f"{window}.json"  # a run publishes a date in one window only
        others = _noted([note])
        known = _replaced(folder, others, date_column, published)
        written: list[Path] = []
        noted: _Noted = {}
        for day, checksum in published.items():
            first = known[day].before if day in known else before[day]
            if day not in known and first != ABSENT:
                kept = self._kept(run, target, date_column, day)
                kept.mkdir(parents=True, exist_ok=True)
                (kept / ROWS_FILE).unlink(missing_ok=True)
                hard_link(self._part(target, date_column, day), kept / ROWS_FILE)
                written += [kept / ROWS_FILE, kept]
            noted[day.isoformat()] = asdict(ReplacedPartition(before=first, published=checksum))
        prepared = self._loading(self._folder(target)) / REPLACED
        write_atomically(prepared, json.dumps(others | noted).encode(), durable=False)
        folder.mkdir(parents=True, exist_ok=True)
        prepared.replace(note)
        return [*written, note, folder, folder.parent, folder.parent.parent]

    def _undo_folder(self, run: str, table: TableName) -> Path:
        return checked_path(self.root, self.root / UNDO / run / table.dataset / table.table)

    def _kept(self, run: str, table: TableName, date_column: str, day: date) -> Path:
        """The folder of what the run replaced on the date."""
        return checked_path(self.root, self._undo_folder(run, table) / f"{date_column}={day.isoformat()}")

    def replaced_partitions(
        self, target: TableName, date_column: str, run: str, days: Collection[date]
    ) -> dict[date, ReplacedPartition]:
        with translate_file_errors(target):
            folder = self._undo_folder(run, target)
            return _replaced(folder, _noted(sorted(folder.glob("*.json"))), date_column, days)

    def check_restorable(
        self, target: TableName, date_column: str, run: str, replaced: Mapping[date, ReplacedPartition]
    ) -> None:
        held = [day for day, one in replaced.items() if one.before not in (ABSENT, one.published)]
        kept = {day: self._kept(run, target, date_column, day) / ROWS_FILE for day in held}
        if gone := [day for day in held if file_fingerprint(kept[day]) != replaced[day].before]:
            raise BackupMissing(
                f"what run {run} replaced on {len(gone)} date(s) is not kept any more (BACKFILL_UNDO_DAYS)",
                table=str(target),
                day=min(gone),
            )

    def restore(
        self, target: TableName, date_column: str, run: str, replaced: Mapping[date, ReplacedPartition]
    ) -> frozenset[date]:
        folder = self._folder(target)
        with translate_file_errors(target), locked(self._lock(folder)):
            self._roll_forward(folder)
            parts = {day: self._part(target, date_column, day) for day in replaced}
            waiting = [day for day, one in replaced.items() if file_fingerprint(parts[day]) == one.published]
            self.check_restorable(target, date_column, run, {day: replaced[day] for day in waiting})
            for day in waiting:
                _put_back(parts[day], self._kept(run, target, date_column, day) / ROWS_FILE, replaced[day])
            sync_folder(folder)
            return frozenset(day for day, one in replaced.items() if file_fingerprint(parts[day]) == one.before)

    def delete_expired_undo(self) -> None:
        before = (utcnow() - timedelta(days=self._limits.undo_days)).timestamp()
        for run in checked_path(self.root, self.root / UNDO).glob("*"):
            if not run.is_symlink() and run.stat().st_mtime < before:
                for kept in run.rglob(ROWS_FILE):  # the notes stay: they tell that something was replaced
                    kept.unlink(missing_ok=True)

    # -- preparing, and putting into effect -----------------------------------------------------------------

    def _lock(self, folder: Path) -> Path:
        return checked_path(self.root, folder / ".lock")

    def _loading(self, folder: Path) -> Path:
        return checked_path(self.root, folder / LOADING)

    def _start_loading(self, folder: Path) -> None:
        self._roll_forward(folder)
        shutil.rmtree(self._loading(folder), ignore_errors=True)

    def _commit_loading(self, folder: Path, kept: Sequence[Path] = ()) -> None:
        """Put what was prepared into effect: from the mark on it will take effect whatever dies.

        `kept` has to be durable before, as the rows that are prepared have. That a power cut loses the note on who
        published them is no loss: a part without one is told by its bytes.
        """
        loading = folder / LOADING
        if loading.exists():
            parts = (place for one in partition_folders(self.root, loading) for place in (f"{one}/{ROWS_FILE}", one))
            sync_all([*parts, *kept, loading])
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
            place = folder / new.name
            (new / ROWS_FILE).replace(place / ROWS_FILE)
            if (new / PUBLICATION_FILE).exists():
                (new / PUBLICATION_FILE).replace(place / PUBLICATION_FILE)
            else:
                (place / PUBLICATION_FILE).unlink(missing_ok=True)
            replaced.append(place)
        sync_all([*replaced, folder])
        (loading / COMMITTED).unlink()
        shutil.rmtree(loading)

    def _finish_load(self, table: TableName) -> None:
        """Carry out a load that was committed by a process which then died."""
        mark = f"{self.root}/{table.dataset}/{table.table}/{LOADING}/{COMMITTED}"
        if file_exists(mark):
            folder = self._folder(table)
            with locked(self._lock(folder)):
                self._roll_forward(folder)


_Noted = dict[str, dict[str, str]]


def _noted(notes: Iterable[Path]) -> _Noted:
    """What the notes that there are tell of each date."""
    found: _Noted = {}
    for note in notes:
        if note.exists():
            found |= json.loads(note.read_text())
    return found


def _replaced(folder: Path, noted: _Noted, date_column: str, days: Collection[date]) -> dict[date, ReplacedPartition]:
    """By date, what the notes tell, or else a note of the date's own."""
    found: dict[date, ReplacedPartition] = {}
    for day in days:
        told = noted.get(day.isoformat()) or _noted_alone(f"{folder}/{date_column}={day.isoformat()}/{REPLACED}")
        if told is not None:
            found[day] = ReplacedPartition(**told)
    return found


def _noted_alone(note: str) -> dict[str, str] | None:
    return json.loads(Path(note).read_text()) if file_exists(note) else None


def _prepare(place: str, staged: StagedFile, publication: str) -> None:
    """Put the staged rows, and who publishes them, where a load is prepared. Raises `StagedFileLost`.

    A staged file is never written to again: on the same disk, it becomes the published one.
    """
    try:
        os.mkdir(place)  # noqa: PTH102 - here and below: by far the quicker, for every file that is published
    except FileNotFoundError:
        os.makedirs(place)  # noqa: PTH103
    part = f"{place}/{ROWS_FILE}"
    try:
        try:
            os.link(staged.location, part, follow_symlinks=False)
            check_checksum(staged, read_regular_file(part))
        except OSError:  # it is on another disk, or no file of a disk at all
            write_atomically(part, read_staged_bytes(staged), durable=False)
    except (StagedFileLost, OutsideRoot) as exc:
        shutil.rmtree(place)
        raise StagedFileLost(str(exc), day=staged.day) from exc
    note = {"publication": publication, "attempt": staged.attempt, "checksum": staged.checksum, "rows": staged.rows}
    with open(f"{place}/{PUBLICATION_FILE}", "wb") as file:  # noqa: PTH123 - nobody reads it before the load takes effect
        file.write(json.dumps(note).encode())


def _put_back(part: Path, kept: Path, replaced: ReplacedPartition) -> None:
    if replaced.before == replaced.published:
        return
    if replaced.before == ABSENT:
        part.unlink()
        shutil.rmtree(part.parent)
        return
    temporary = part.with_name(f".{ROWS_FILE}.undo.tmp")
    temporary.unlink(missing_ok=True)
    hard_link(kept, temporary)
    temporary.replace(part)
    sync_folder(part.parent)
