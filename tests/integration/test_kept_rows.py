"""No rows are lost in a local table: whatever is removed is kept, whoever writes or dies at whatever moment."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from gated_backfill.common.errors import BackupMissing
from gated_backfill.common.model.publication import Backup, Publication, PublishResult, StagedFile
from gated_backfill.common.process.clock import utcnow
from gated_backfill.common.storage.files import checksum_of, parquet_bytes
from gated_backfill.common.storage.staging import Staging
from gated_backfill.common.warehouse.local.loading import Keeper, LoadingFolder, PartitionChange
from gated_backfill.common.warehouse.local.warehouse import LocalWarehouse
from gated_backfill.common.warehouse.protocol import ABSENT, ReplacedPartition
from tests.builders import DAYS, FEB_23, FEB_24, FEB_25, TABLE, age_kept_rows, counts, rows_of, span, staged
from tests.interleaving import before_system_calls, system_calls

OLD, NEW, THEIRS = (parquet_bytes(rows_of(FEB_23, players=n)) for n in (3, 5, 7))
BACKUP = Backup(id="op-1", table=TABLE, date_column="day")


def part_of(warehouse: LocalWarehouse) -> Path:
    return warehouse.root / f"nba/factors/day={FEB_23}/part.parquet"


def publish(warehouse: LocalWarehouse, *files: StagedFile, run: str = "run-1", generation: int = 1) -> PublishResult:
    """Publish against the partitions as they are now."""
    now = warehouse.fingerprints(TABLE, "day", [file.day for file in files])
    return publish_since(warehouse, now, *files, run=run, generation=generation)


def publish_since(
    warehouse: LocalWarehouse, now: Mapping[date, str], *files: StagedFile, run: str = "run-1", generation: int = 1
) -> PublishResult:
    publication = Publication(run=run, window=1, generation=generation)
    return warehouse.publish(TABLE, "day", files, fingerprints_when_staged=now, publication=publication)


def undo(warehouse: LocalWarehouse, run: str = "run-1", generation: int = 2) -> frozenset[date]:
    replaced = warehouse.replaced_partitions(TABLE, "day", run, DAYS)
    return warehouse.restore(TABLE, "day", run, replaced, generation=generation)


def staged_as(root: Path, content: bytes) -> StagedFile:
    """A staged file of the first date, beside the warehouse."""
    file = root.parent / f"{checksum_of(content)}.parquet"
    file.write_bytes(content)
    return StagedFile(day=FEB_23, attempt=1, location=str(file), checksum=checksum_of(content), rows=5)


# -- the operations, each on a warehouse of its own ---------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Operation:
    """What removes or adds the rows of a date."""

    prepare: Callable[[LocalWarehouse], object]
    carry_out: Callable[[LocalWarehouse], object]
    before: bytes | None  #: what the date holds
    after: bytes | None


def prepared_with(
    content: bytes | None, then: Callable[[LocalWarehouse], object] = lambda _: None
) -> Callable[[LocalWarehouse], None]:
    def prepare(warehouse: LocalWarehouse) -> None:
        warehouse.load(TABLE, "day", rows_of(FEB_24))
        if content is not None:
            part_of(warehouse).parent.mkdir()
            part_of(warehouse).write_bytes(content)
        then(warehouse)

    return prepare


def publish_new(warehouse: LocalWarehouse) -> PublishResult:
    return publish_since(warehouse, {FEB_23: checksum_of(OLD)}, staged_as(warehouse.root, NEW))


def publish_first(warehouse: LocalWarehouse) -> PublishResult:
    return publish_since(warehouse, {FEB_23: ABSENT}, staged_as(warehouse.root, NEW))


def back_up(warehouse: LocalWarehouse) -> None:
    warehouse.back_up(BACKUP, [FEB_23], until=utcnow())


def delete(warehouse: LocalWarehouse) -> None:
    warehouse.delete_backed_up(BACKUP, warehouse.read_backup(BACKUP), generation=1)


def restore_backup(warehouse: LocalWarehouse) -> frozenset[date]:
    kept = warehouse.read_backup(BACKUP)
    return warehouse.restore_backup(BACKUP, kept, generation=2, leave_written=True)


def restore_new(warehouse: LocalWarehouse) -> bool:
    (kept,) = (kept for kept in warehouse.list_kept(TABLE, "day", span(FEB_23)) if kept.fingerprint == checksum_of(NEW))
    return warehouse.restore_kept(TABLE, "day", kept, current=checksum_of(OLD))


def restore_old(warehouse: LocalWarehouse) -> bool:
    (*_, kept) = [kept for kept in warehouse.list_kept(TABLE, "day", span(FEB_23)) if kept.removed_by == "run run-1"]
    return warehouse.restore_kept(TABLE, "day", kept, current=checksum_of(NEW))


OPERATIONS = {
    "publish": Operation(prepare=prepared_with(OLD), carry_out=publish_new, before=OLD, after=NEW),
    "publish-a-new-date": Operation(prepare=prepared_with(None), carry_out=publish_first, before=None, after=NEW),
    "undo": Operation(prepare=prepared_with(OLD, publish_new), carry_out=undo, before=NEW, after=OLD),
    "undo-of-a-new-date": Operation(prepare=prepared_with(None, publish_first), carry_out=undo, before=NEW, after=None),
    "restore-kept": Operation(prepare=prepared_with(OLD, publish_new), carry_out=restore_old, before=NEW, after=OLD),
    "delete": Operation(prepare=prepared_with(OLD, back_up), carry_out=delete, before=OLD, after=None),
    "restore-backup": Operation(
        prepare=prepared_with(OLD, lambda w: (back_up(w), delete(w))), carry_out=restore_backup, before=None, after=OLD
    ),
}


@pytest.fixture(autouse=True)
def _no_power_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill loses nothing that was not synced yet."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture(params=OPERATIONS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def prepared(tmp_path: Path, name: str) -> Path:
    """A folder with a warehouse in which the operation comes next, and files that it needs."""
    warehouse = LocalWarehouse(tmp_path / "prepared" / "warehouse")
    OPERATIONS[name].prepare(warehouse)
    assert content_of(warehouse) == OPERATIONS[name].before
    return tmp_path / "prepared"


def content_of(warehouse: LocalWarehouse) -> bytes | None:
    return part_of(warehouse).read_bytes() if part_of(warehouse).exists() else None


class AnotherProgram:
    """Writes the date, once, as a daily job does."""

    def __init__(self, warehouse: LocalWarehouse) -> None:
        self._part = part_of(warehouse)
        self.has_written = False
        self.overwrote: bytes | None = None  #: that date's rows

    def __call__(self) -> None:
        self.has_written = True
        self._part.parent.mkdir(exist_ok=True)
        temporary = self._part.with_name(".theirs")
        temporary.write_bytes(THEIRS)
        with suppress(FileNotFoundError):
            self.overwrote = self._part.read_bytes()
        temporary.replace(self._part)


def is_in(warehouse: LocalWarehouse, content: bytes) -> bool:
    """Whether the table or a copy that a command can put back holds these rows."""
    kept = {kept.fingerprint for kept in warehouse.list_kept(TABLE, "day", span(FEB_23))}
    with suppress(BackupMissing):
        kept |= {date.fingerprint for date in warehouse.read_backup(BACKUP).values()}
    return content_of(warehouse) == content or checksum_of(content) in kept


def assert_nothing_is_left_over(warehouse: LocalWarehouse) -> None:
    assert not list(warehouse.root.rglob("*.tmp"))
    assert not list(warehouse.root.rglob(".loading"))


def test_another_programs_write_at_any_moment_is_not_lost(tmp_path: Path, prepared: Path, name: str) -> None:
    operation = OPERATIONS[name]
    counted = LocalWarehouse(Path(shutil.copytree(prepared, tmp_path / "counted")) / "warehouse")
    calls = system_calls(lambda: operation.carry_out(counted))
    assert content_of(counted) == operation.after
    for number in range(1, calls + 1):
        warehouse = LocalWarehouse(Path(shutil.copytree(prepared, tmp_path / str(number))) / "warehouse")
        other = AnotherProgram(warehouse)
        with before_system_calls({number: other}):
            result = operation.carry_out(warehouse)
        if not other.has_written:  # the first time took some calls more
            break
        assert content_of(warehouse) == THEIRS, f"call {number}: theirs is the last write"
        for content in filter(None, {operation.before, operation.after} - {other.overwrote, NEW}):
            assert is_in(warehouse, content), number
        if isinstance(result, PublishResult):
            assert bool(result.published) == (other.overwrote == NEW), number
            assert bool(result.conflicting) == (other.overwrote != NEW), number
        assert_nothing_is_left_over(warehouse)
        shutil.rmtree(tmp_path / str(number))


def killed_in_turn(tmp_path: Path, prepared: Path, name: str) -> Iterator[Path]:
    """Folders with warehouses in which the operation was killed, before each of its changes of a name."""
    for number in count(1):
        folder = Path(shutil.copytree(prepared, tmp_path / f"killed-{number}"))
        child = os.fork()
        if child == 0:
            with before_system_calls({number: lambda: os.kill(os.getpid(), signal.SIGKILL)}, changes_only=True):
                OPERATIONS[name].carry_out(LocalWarehouse(folder / "warehouse"))
            os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != -signal.SIGKILL:
            assert number > 5
            return
        yield folder
        shutil.rmtree(folder)


def test_an_operation_that_was_killed_is_completed_by_repeating_it(tmp_path: Path, prepared: Path, name: str) -> None:
    operation = OPERATIONS[name]
    for folder in killed_in_turn(tmp_path, prepared, name):
        warehouse = LocalWarehouse(folder / "warehouse")
        assert content_of(warehouse) in (operation.before, operation.after)
        if name != "restore-kept" or content_of(warehouse) != OLD:
            operation.carry_out(warehouse)
        warehouse.load(TABLE, "day", rows_of(FEB_24))  # the next one that writes to the table
        assert content_of(warehouse) == operation.after, folder
        assert operation.before is None or is_in(warehouse, operation.before), folder
        assert_nothing_is_left_over(warehouse)


def test_rows_written_after_a_death_are_not_lost(tmp_path: Path, prepared: Path, name: str) -> None:
    operation = OPERATIONS[name]
    for folder in killed_in_turn(tmp_path, prepared, name):
        warehouse = LocalWarehouse(folder / "warehouse")
        other = AnotherProgram(warehouse)
        other()
        warehouse.describe(TABLE)
        assert content_of(warehouse) == THEIRS, f"{folder}: reading changes nothing"
        if name != "restore-kept":
            operation.carry_out(warehouse)
        warehouse.load(TABLE, "day", rows_of(FEB_24))
        assert content_of(warehouse) == THEIRS, folder
        for content in filter(None, {operation.before} - {other.overwrote}):
            assert is_in(warehouse, content), folder
        assert_nothing_is_left_over(warehouse)


@pytest.mark.parametrize("name", ["publish", "undo", "restore-kept"])
def test_a_removed_folder_for_copies_is_created_again_after_a_death(tmp_path: Path, prepared: Path, name: str) -> None:
    operation = OPERATIONS[name]
    for folder in killed_in_turn(tmp_path, prepared, name):
        warehouse = LocalWarehouse(folder / "warehouse")
        for copies_folder in (warehouse.root / ".undo").rglob("rows-*"):
            with suppress(OSError):  # holds copies
                copies_folder.rmdir()
        warehouse.load(TABLE, "day", rows_of(FEB_24))  # the next one that writes to the table
        assert content_of(warehouse) in (operation.before, operation.after), folder
        assert operation.before is not None
        assert is_in(warehouse, operation.before), folder
        assert_nothing_is_left_over(warehouse)


@pytest.mark.parametrize("name", ["publish", "undo", "restore-kept"])
def test_a_table_can_be_written_after_a_death_and_the_expiry_of_what_was_removed(
    tmp_path: Path, prepared: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    operation = OPERATIONS[name]
    for folder in killed_in_turn(tmp_path, prepared, name):
        warehouse = LocalWarehouse(folder / "warehouse")
        for days in (31, 32.1):
            at(monkeypatch, days=days)
            warehouse.delete_expired_undo()
        assert copies(warehouse) == 0
        warehouse.load(TABLE, "day", rows_of(FEB_24))
        assert content_of(warehouse) in (operation.before, operation.after), folder
        assert_nothing_is_left_over(warehouse)


@pytest.mark.parametrize("name", ["undo", "restore-kept", "restore-backup"])
def test_rows_whose_copy_is_removed_at_any_moment_are_restored_or_said_to_be_missing(
    tmp_path: Path, prepared: Path, name: str
) -> None:
    operation = OPERATIONS[name]
    refusals = 0
    for number in count(1):
        warehouse = LocalWarehouse(Path(shutil.copytree(prepared, tmp_path / str(number))) / "warehouse")
        folder = warehouse.root / (".cleanup" if name == "restore-backup" else ".undo")
        (copy,) = (file for file in folder.rglob("*.parquet") if file.read_bytes() == operation.after)
        with before_system_calls({number: copy.unlink}):
            try:
                operation.carry_out(warehouse)
            except (BackupMissing, ValueError):  # the second if `restore_old` is listed none
                assert content_of(warehouse) == operation.before, number
                refusals += 1
            else:
                assert content_of(warehouse) == operation.after, number
        if copy.exists():  # the operation took fewer calls
            break
    assert refusals > 5


def test_only_the_date_that_another_program_wrote_conflicts(
    local_warehouse: LocalWarehouse, staging: Staging, monkeypatch: pytest.MonkeyPatch
) -> None:
    local_warehouse.load(TABLE, "day", rows_of(FEB_23, FEB_24))
    make = LoadingFolder._make  # pyright: ignore[reportPrivateUsage]

    def written_before(folder: LoadingFolder, change: PartitionChange, keeper: Keeper) -> bool:
        if change.day == FEB_23:
            AnotherProgram(local_warehouse)()
        return make(folder, change, keeper)

    monkeypatch.setattr(LoadingFolder, "_make", written_before)
    result = publish(local_warehouse, *(staged(staging, day, players=9) for day in DAYS))

    assert result == PublishResult(published=frozenset({FEB_24, FEB_25}), conflicting=frozenset({FEB_23}))
    assert counts(local_warehouse, *DAYS) == {FEB_23: 7, FEB_24: 9, FEB_25: 9}
    assert set(local_warehouse.replaced_partitions(TABLE, "day", "run-1", DAYS)) == {FEB_24, FEB_25}
    assert undo(local_warehouse) == {FEB_24, FEB_25}
    assert counts(local_warehouse, *DAYS) == {FEB_23: 7, FEB_24: 3}


# -- retention ----------------------------------------------------------------------------------------------------


def copies(warehouse: LocalWarehouse) -> int:
    return len(list((warehouse.root / ".undo").rglob("*.parquet")))


def is_locked(warehouse: LocalWarehouse) -> bool:
    """Whether somebody holds the table's lock."""
    with (warehouse.root / "nba/factors/.lock").open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def empties_under_lock(warehouse: LocalWarehouse, folder: str, work: Callable[[], object]) -> bool:
    """Whether the table is locked when the work removes the last file with rows from the folder."""
    locked: list[bool] = []  # before each change, while there was such a file

    def look() -> None:
        if list((warehouse.root / folder).rglob("*.parquet")):
            locked.append(is_locked(warehouse))

    with before_system_calls(dict.fromkeys(range(1, 100), look), changes_only=True):
        work()
    assert not list((warehouse.root / folder).rglob("*.parquet"))
    return locked[-1]


def test_retention_removes_copies_under_the_lock_of_their_table(
    local_warehouse: LocalWarehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    OPERATIONS["publish"].prepare(local_warehouse)
    publish_new(local_warehouse)
    at(monkeypatch, days=31)
    local_warehouse.delete_expired_undo()
    at(monkeypatch, days=32.1)
    assert empties_under_lock(local_warehouse, ".undo", local_warehouse.delete_expired_undo)


def test_a_backup_is_dropped_under_the_lock_of_its_table(local_warehouse: LocalWarehouse) -> None:
    OPERATIONS["delete"].prepare(local_warehouse)
    assert empties_under_lock(local_warehouse, ".cleanup", lambda: local_warehouse.drop_backup(BACKUP))


@pytest.mark.parametrize("name", ["delete", "restore-backup"])
def test_a_table_can_be_written_after_a_death_and_the_end_of_its_backup(
    tmp_path: Path, prepared: Path, name: str
) -> None:
    operation = OPERATIONS[name]
    for folder in killed_in_turn(tmp_path, prepared, name):
        warehouse = LocalWarehouse(folder / "warehouse")
        warehouse.drop_backup(BACKUP)
        assert not list((warehouse.root / ".cleanup").iterdir())
        warehouse.load(TABLE, "day", rows_of(FEB_24))
        assert content_of(warehouse) in (operation.before, operation.after), folder
        assert not list((warehouse.root / ".cleanup").iterdir())
        assert_nothing_is_left_over(warehouse)


def at(monkeypatch: pytest.MonkeyPatch, *, days: float) -> None:
    """Set the clock, as retention reads it, so many days ahead."""
    now = utcnow() + timedelta(days=days)
    monkeypatch.setattr("gated_backfill.common.warehouse.local.undo_folder.utcnow", lambda: now)


def test_what_a_run_replaced_expires_together_by_the_time_of_its_latest_publication(
    local_warehouse: LocalWarehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    OPERATIONS["publish"].prepare(local_warehouse)
    publish_new(local_warehouse)
    age_kept_rows(local_warehouse.root, days=40)
    local_warehouse.delete_expired_undo()  # while the run goes on
    age_kept_rows(local_warehouse.root, days=2)
    again = staged_as(local_warehouse.root, THEIRS)
    publish(local_warehouse, again)  # the same run, some weeks later
    for folder in (local_warehouse.root / ".undo").rglob("*"):
        os.utime(folder, (0, 0))
    assert copies(local_warehouse) == 2
    for days, left in ((0, 2), (9, 2), (10.1, 2), (11.2, 2), (29, 2), (30.1, 2), (31.2, 0)):
        at(monkeypatch, days=days)
        local_warehouse.delete_expired_undo()
        assert copies(local_warehouse) == left, days
    assert local_warehouse.list_kept(TABLE, "day", span(FEB_23)) == []
    replaced = local_warehouse.replaced_partitions(TABLE, "day", "run-1", [FEB_23])
    assert replaced[FEB_23].before == checksum_of(OLD)
    with pytest.raises(BackupMissing, match="have expired"):
        local_warehouse.check_restorable(TABLE, "day", "run-1", replaced)
    assert not list(local_warehouse.root.rglob("expired.json"))


def test_what_undos_and_restores_removed_expires_by_the_time_at_which_it_was_kept(
    local_warehouse: LocalWarehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    OPERATIONS["publish"].prepare(local_warehouse)
    publish_new(local_warehouse)
    undo(local_warehouse)  # keeps the run's rows
    age_kept_rows(local_warehouse.root, days=10)
    assert restore_new(local_warehouse)  # keeps the earlier rows
    age_kept_rows(local_warehouse.root, days=10)
    assert restore_old(local_warehouse)  # keeps the run's rows again
    assert copies(local_warehouse) == 4
    for days, left in ((9, 4), (10.1, 4), (11.2, 2), (19, 2), (20.1, 2), (21.2, 1), (29, 1), (30.1, 1), (31.2, 0)):
        at(monkeypatch, days=days)
        local_warehouse.delete_expired_undo()
        assert copies(local_warehouse) == left, days


def test_a_clock_that_is_set_ahead_expires_nothing_at_once(
    local_warehouse: LocalWarehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    OPERATIONS["publish"].prepare(local_warehouse)
    publish_new(local_warehouse)
    at(monkeypatch, days=40)
    for _ in range(3):
        local_warehouse.delete_expired_undo()
    at(monkeypatch, days=0)
    local_warehouse.delete_expired_undo()
    assert not list(local_warehouse.root.rglob("expired.json"))
    at(monkeypatch, days=60)  # ahead again: what was found then counts no more
    local_warehouse.delete_expired_undo()
    at(monkeypatch, days=50)
    local_warehouse.delete_expired_undo()
    assert copies(local_warehouse) == 1
    assert undo(local_warehouse) == {FEB_23}


# -- notes and copies of earlier versions -------------------------------------------------------------------------


@pytest.mark.parametrize("by_window", [True, False])
def test_what_an_earlier_version_kept_can_be_undone_listed_and_forgotten(
    local_warehouse: LocalWarehouse, monkeypatch: pytest.MonkeyPatch, by_window: bool
) -> None:
    prepared_with(NEW)(local_warehouse)
    folder = local_warehouse.root / ".undo/run-1/nba/factors"
    (folder / f"day={FEB_23}").mkdir(parents=True)
    (folder / f"day={FEB_23}/part.parquet").write_bytes(OLD)
    entry = {"before": checksum_of(OLD), "published": checksum_of(NEW)}
    if by_window:
        (folder / "1.json").write_text(json.dumps({str(FEB_23): entry}))
    else:
        (folder / f"day={FEB_23}/replaced.json").write_text(json.dumps(entry))

    (kept,) = local_warehouse.list_kept(TABLE, "day", span(FEB_23))
    assert (kept.fingerprint, kept.rows, kept.removed_by) == (checksum_of(OLD), 3, "run run-1")
    assert abs(kept.kept_at - utcnow()) < timedelta(minutes=5)
    publish(local_warehouse, staged_as(local_warehouse.root, THEIRS), generation=3)  # continued by this version
    replaced = local_warehouse.replaced_partitions(TABLE, "day", "run-1", DAYS)
    assert replaced == {FEB_23: ReplacedPartition(before=checksum_of(OLD), published=checksum_of(THEIRS))}
    assert undo(local_warehouse, generation=4) == {FEB_23}
    assert content_of(local_warehouse) == OLD
    assert local_warehouse.restore_kept(TABLE, "day", kept, current=checksum_of(OLD))

    for days in (31, 32.1):
        at(monkeypatch, days=days)
        local_warehouse.delete_expired_undo()
    assert copies(local_warehouse) == 0


# -- other programs' files ----------------------------------------------------------------------------------------


def test_undo_and_cleanup_leave_other_programs_files(local_warehouse: LocalWarehouse) -> None:
    prepared_with(None)(local_warehouse)
    part_of(local_warehouse).parent.mkdir()
    others = [part_of(local_warehouse).with_name(name) for name in ("_SUCCESS", ".part.parquet.crc")]
    for other in others:
        other.write_text("theirs")
    for remove in (undo, lambda warehouse: (back_up(warehouse), delete(warehouse))):
        publish(local_warehouse, staged_as(local_warehouse.root, NEW), run="run-1" if remove is undo else "run-2")
        remove(local_warehouse)
        assert content_of(local_warehouse) is None
        assert [other.read_text() for other in others] == ["theirs"] * 2
        assert sorted(part_of(local_warehouse).parent.iterdir()) == sorted(others)


def test_no_copy_is_a_link_to_a_file_of_a_table(local_warehouse: LocalWarehouse) -> None:
    for operation in OPERATIONS.values():
        warehouse = LocalWarehouse(local_warehouse.root / str(id(operation)))
        operation.prepare(warehouse)
        operation.carry_out(warehouse)
        inodes = [file.stat().st_ino for file in warehouse.root.rglob("*.parquet")]
        assert len(inodes) == len(set(inodes))


# -- power cuts ---------------------------------------------------------------------------------------------------


class NewFolders:
    """The folders below a root that were made, without those whose entry was synced since."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.unsynced: set[str] = set()
        self._root = root
        mkdir, rename = os.mkdir, os.rename

        def made(path: Any, *more: Any, **named: Any) -> None:
            mkdir(path, *more, **named)
            self._add(str(path))

        def renamed(path: Any, new: Any) -> None:
            rename(path, new)
            if Path(new).is_dir():
                self._add(str(new))

        monkeypatch.setattr(os, "mkdir", made)
        monkeypatch.setattr(os, "rename", renamed)
        monkeypatch.setattr(os, "fsync", self._synced)

    def _add(self, folder: str) -> None:
        if folder.startswith(f"{self._root}/") and "/.loading" not in folder:
            self.unsynced.add(folder)

    def _synced(self, handle: int) -> None:
        path = os.readlink(f"/proc/self/fd/{handle}")  # noqa: PTH115
        self.unsynced = {folder for folder in self.unsynced if os.path.dirname(folder) != path}  # noqa: PTH120


def test_new_folders_are_durable_before_anything_depends_on_them(
    prepared: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    warehouse = LocalWarehouse(prepared / "warehouse")
    if name == "publish-a-new-date":  # to a new table
        shutil.rmtree(warehouse.root / "nba")
    folders = NewFolders(warehouse.root, monkeypatch)
    OPERATIONS[name].carry_out(warehouse)
    assert folders.unsynced == set()


def test_a_backup_is_durable_before_its_rows_are_deleted(
    local_warehouse: LocalWarehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared_with(OLD)(local_warehouse)
    folders = NewFolders(local_warehouse.root, monkeypatch)
    back_up(local_warehouse)
    assert folders.unsynced == set()
    assert (local_warehouse.root / ".cleanup/op-1/manifest.json").exists()


class Disk:
    """A folder as a power cut would leave it.

    A file has the content of its last sync. A folder has the entries of its last sync, or, on a file system that
    journals names in their order, those of any later moment.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._contents: dict[int, bytes] = {}
        self._entries: dict[int, dict[str, tuple[int, bool]]] = {}
        for path in (root, *root.rglob("*")):
            self._sync(path)

    def _sync(self, path: Path) -> None:
        number = path.stat().st_ino
        if path.is_dir():
            self._entries[number] = {entry.name: (entry.inode(), entry.is_dir()) for entry in os.scandir(path)}
        else:
            self._contents[number] = path.read_bytes()

    def synced(self, handle: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))  # noqa: PTH115
        if path.is_relative_to(self._root):
            self._sync(path)

    def with_synced_names(self, folder: Path) -> Path:
        """Write to a new folder what is durable on every file system."""
        self._write(self._root.stat().st_ino, folder)
        return folder

    def with_all_names(self, folder: Path) -> Path:
        """Write to a new folder what is left if every change of a name so far is durable."""
        for path in (self._root, *self._root.rglob("*")):
            copy = folder / path.relative_to(self._root)
            if path.is_dir():
                copy.mkdir()
            else:
                copy.write_bytes(self._contents.get(path.stat().st_ino, b""))
        return folder

    def _write(self, number: int, folder: Path) -> None:
        folder.mkdir()
        for name, (child, is_folder) in self._entries.get(number, {}).items():
            if is_folder:
                self._write(child, folder / name)
            else:
                (folder / name).write_bytes(self._contents.get(child, b""))


def power_cuts(
    work: Callable[[], object], disk: Disk, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> list[LocalWarehouse]:
    """What a power cut would leave of the warehouse before each change of a name, and after each sync."""
    numbers = count()
    cuts: list[Path] = []

    def before_change() -> None:
        cuts.append(disk.with_all_names(folder / f"cut-{next(numbers)}"))

    def sync(handle: int) -> None:
        disk.synced(handle)
        cuts.append(disk.with_synced_names(folder / f"cut-{next(numbers)}"))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", sync)
        patch.setattr("gated_backfill.common.storage.files.SYNC_THREADS", 1)
        with before_system_calls(dict.fromkeys(range(1, 10_000), before_change), changes_only=True) as changes:
            work()
    assert changes.count > 5
    cuts.append(disk.with_all_names(folder / "end"))
    return [LocalWarehouse(cut / "warehouse") for cut in cuts]


def test_no_power_cut_loses_rows(tmp_path: Path, prepared: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    operation = OPERATIONS[name]
    warehouse = LocalWarehouse(prepared / "warehouse")
    disk = Disk(prepared)
    for cut in power_cuts(lambda: operation.carry_out(warehouse), disk, tmp_path, monkeypatch):
        assert content_of(cut) in (operation.before, operation.after), cut
        cut.load(TABLE, "day", rows_of(FEB_24))  # the next one that writes to the table
        assert operation.before is None or is_in(cut, operation.before), cut
    finished = LocalWarehouse(disk.with_synced_names(tmp_path / "finished") / "warehouse")
    assert content_of(finished) == operation.after


def test_no_power_cut_during_a_cleanup_leaves_neither_rows_nor_a_backup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prepared").mkdir()
    warehouse = LocalWarehouse(tmp_path / "prepared/warehouse")
    prepared_with(OLD)(warehouse)

    def clean_up() -> None:
        back_up(warehouse)
        delete(warehouse)

    for cut in power_cuts(clean_up, Disk(tmp_path / "prepared"), tmp_path, monkeypatch):
        assert is_in(cut, OLD), cut
