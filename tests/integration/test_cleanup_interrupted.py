"""Cleanups and restorations that were cut short, came too late, or have lost a part of their backup."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Generator
from contextlib import closing, contextmanager, suppress
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from gated_backfill.common.cleanup.restore import restore
from gated_backfill.common.errors import BackupMissing, TableInUse, UserError
from gated_backfill.common.ledger.stores.cleanups import CleanupOperation, CleanupState
from gated_backfill.common.process.clock import utcnow
from gated_backfill.worker.maintenance.cleanup import clean_stale_rows
from tests.integration.test_cleanup import (
    STALE,
    TABLE,
    TODAY,
    backup_part,
    cleaned,
    filled,
    one_operation,
    rows_by_stale_date,
    site_of,
    told,
)
from tests.integration.test_cleanup import _clean_upcoming_tables as _clean_upcoming_tables
from tests.interleaving import before_system_calls
from tests.lab import UPCOMING, Lab, players

BETWEEN = STALE[1]


class Killed(BaseException):
    """What nothing catches, as nothing catches a kill."""


def killed_before(lab: Lab, monkeypatch: pytest.MonkeyPatch, to: CleanupState) -> None:
    """The next move of an operation to that state dies; its process is seen to be dead."""
    ledger = lab.ledger
    move = ledger.cleanups.move_cleanup

    def dies(operation_id: str, **named: Any) -> bool:
        if named["to"] is to:
            monkeypatch.setattr(ledger.cleanups, "move_cleanup", move)
            raise Killed
        return move(operation_id, **named)

    monkeypatch.setattr(ledger.cleanups, "move_cleanup", dies)


def test_the_intact_dates_of_a_damaged_backup_are_restored(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(lab)
    killed_before(lab, monkeypatch, CleanupState.DELETED)
    with pytest.raises(Killed):
        cleaned(lab)
    (operation,) = lab.ledger.cleanups.list_unfinished_cleanups()
    backup_part(lab, operation).unlink()

    outcome = clean_stale_rows(lab.opened_again())

    assert f"the backup of operation {operation.id} is damaged, 12 rows on 3 date(s) are deleted" in outcome
    (alert,) = told(lab)
    assert f"backfill cleanup restore {operation.id} --intact" in alert["body"]
    damaged = lab.ledger.cleanups.get_cleanup(operation.id)
    assert (damaged.state, damaged.backup, damaged.rows) == (CleanupState.DAMAGED, operation.backup, 12)
    with pytest.raises(UserError, match="has a damaged backup: --intact restores"):
        restore(operation.id, site_of(lab))
    back = restore(operation.id, site_of(lab), intact_only=True)
    assert back.state is CleanupState.RESTORED
    assert back.error == f"1 date(s) are damaged in the backup and not restored: {BETWEEN}"
    assert rows_by_stale_date(lab) == [3, 0, 5]


def test_one_damaged_date_does_not_keep_the_others_from_being_restored(lab: Lab) -> None:
    filled(lab)
    operation = one_operation(cleaned(lab))
    backup_part(lab, operation).write_bytes(b"something else")

    with pytest.raises(BackupMissing, match=r"is damaged.*--intact restores"):
        restore(operation.id, site_of(lab))
    restore(operation.id, site_of(lab), intact_only=True)

    assert rows_by_stale_date(lab) == [3, 0, 5]


def test_of_a_backup_that_was_replaced_nothing_is_taken_for_intact(lab: Lab) -> None:
    """Its manifest agrees with its files: what they have to be is in the ledger."""
    filled(lab)
    first = one_operation(cleaned(lab))
    for day in STALE:
        lab.upcoming(day, players(1))
    second = one_operation(cleaned(lab))
    backups = lab.home / "warehouse" / ".cleanup"
    (backups / first.id).rename(backups / "aside")
    (backups / second.id).rename(backups / first.id)

    with pytest.raises(BackupMissing, match=r"no date of the backup .* is intact"):
        restore(first.id, site_of(lab), intact_only=True)

    assert rows_by_stale_date(lab) == [0, 0, 0]
    assert lab.ledger.cleanups.get_cleanup(first.id).state is CleanupState.DELETED


@pytest.mark.parametrize("intact_only", [False, True])
def test_a_dead_restoration_is_completed(lab: Lab, monkeypatch: pytest.MonkeyPatch, intact_only: bool) -> None:
    filled(lab)
    operation = one_operation(cleaned(lab))
    if intact_only:
        backup_part(lab, operation).unlink()
    else:
        lab.upcoming(BETWEEN, players(1))
    asked: dict[str, Any] = {"intact_only": True} if intact_only else {"leave_written": True}
    killed_before(lab, monkeypatch, CleanupState.RESTORED)
    with pytest.raises(Killed):
        restore(operation.id, site_of(lab), **asked)

    clean_stale_rows(lab.opened_again())

    completed = lab.ledger.cleanups.get_cleanup(operation.id)
    assert completed.state is CleanupState.RESTORED
    assert str(BETWEEN) in str(completed.error)
    # The rows of the date that was not restored are stale like any others.
    assert rows_by_stale_date(lab) == [3, 0, 5]


def test_whoever_comes_back_after_its_lease_deletes_nothing_that_was_restored_since(lab: Lab) -> None:
    before = filled(lab)
    late = "elsewhere:1:1"
    counts = lab.context.warehouse.row_counts
    others: list[CleanupOperation] = []

    def overtaken(*arguments: Any) -> Any:
        """Another process takes the operation over and ends it, and a person puts everything back."""
        row_counts = counts(*arguments)
        for operation in lab.ledger.cleanups.list_unfinished_cleanups():
            patch.undo()
            past = utcnow() - timedelta(seconds=1)
            lab.ledger.cleanups.renew_cleanup(operation.id, expect=operation.state, owner=late, lease_until=past)
            others.extend(cleaned(lab).done)
            restore(operation.id, site_of(lab))
        return row_counts

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lab.context.warehouse, "row_counts", overtaken)
        report = cleaned(lab, late)

    assert [other.state for other in others] == [CleanupState.DELETED]
    assert report.done == []
    assert "another process has taken over operation" in report.busy[0]
    assert lab.table_bytes(UPCOMING) == before


def test_dates_between_the_restored_ones_are_not_spared_and_the_preview_tells_which_are(lab: Lab) -> None:
    filled(lab, [STALE[0], STALE[2], TODAY])
    operation = one_operation(cleaned(lab))
    restore(operation.id, site_of(lab))
    lab.upcoming(BETWEEN, players(1))

    shown = lab.invoke("cleanup", "--dry-run").stdout
    clean_stale_rows(lab.opened_again())

    assert f"2 of these dates were restored, and the daily cleanup skips them: {STALE[0]}, {STALE[2]}" in shown
    assert rows_by_stale_date(lab) == [3, 0, 4]


@contextmanager
def ledger_copied_before(lab: Lab, name: str) -> Generator[Path]:
    """The nightly copy of the ledger is made just before this call of the warehouse."""
    warehouse, copy = lab.context.warehouse, lab.home / "ledger.backup.db"
    real = getattr(warehouse, name)

    def copied(*arguments: Any, **named: Any) -> Any:
        copy_database(lab.home / "ledger.db", copy)
        return real(*arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(warehouse, name, copied)
        yield copy


def copy_database(source: Path, target: Path) -> None:
    with closing(sqlite3.connect(source)) as opened, closing(sqlite3.connect(target)) as written:
        opened.backup(written)


def test_a_cleanup_that_only_the_warehouse_knows_is_listed_and_restored(any_lab: Lab) -> None:
    """The ledger was restored from a copy that is older than the whole cleanup."""
    before = filled(any_lab)
    copy = any_lab.home / "ledger.backup.db"
    copy_database(any_lab.home / "ledger.db", copy)
    operation = one_operation(cleaned(any_lab))
    copy_database(copy, any_lab.home / "ledger.db")
    assert any_lab.ledger.cleanups.list_cleanups() == []
    assert f"this ledger does not know cleanup {operation.id}" in any_lab.invoke("cleanup", "list").stdout
    (listed,) = json.loads(any_lab.invoke("cleanup", "list", "--json").stdout)
    assert (listed["state"], listed["id"], listed["table_name"]) == ("unknown", operation.id, UPCOMING)

    restored = any_lab.invoke("cleanup", "restore", operation.id, "--yes")

    assert restored.exit_code == 0, restored.exception
    assert any_lab.table_bytes(UPCOMING) == before
    known = any_lab.ledger.cleanups.get_cleanup(operation.id)
    assert (known.state, known.rows, known.kept) == (CleanupState.RESTORED, 12, operation.kept)
    with pytest.raises(UserError, match="there is no cleanup 'nope'"):
        restore("nope", site_of(any_lab))


def test_a_restore_of_such_a_cleanup_that_died_names_the_command_that_finishes_it(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = filled(lab)
    copy = lab.home / "ledger.backup.db"
    copy_database(lab.home / "ledger.db", copy)
    operation = one_operation(cleaned(lab))
    copy_database(copy, lab.home / "ledger.db")
    killed_before(lab, monkeypatch, CleanupState.DELETED)
    with pytest.raises(Killed):
        restore(operation.id, site_of(lab, owner="gone:1:1"))

    with pytest.raises(UserError, match="is not finished: the next `backfill cleanup` finishes it"):
        restore(operation.id, site_of(lab))

    past = utcnow() - timedelta(seconds=1)
    lab.ledger.cleanups.renew_cleanup(operation.id, expect=CleanupState.PLANNED, owner="gone:1:1", lease_until=past)
    cleaned(lab)
    restore(operation.id, site_of(lab))
    assert lab.table_bytes(UPCOMING) == before


@pytest.mark.parametrize("name", ["back_up", "read_backup", "delete_backed_up"])
def test_a_ledger_that_was_restored_from_an_older_copy_costs_no_row(any_lab: Lab, name: str) -> None:
    """It says that nothing was deleted; the backup has the only copy."""
    before = filled(any_lab)
    with ledger_copied_before(any_lab, name) as copy:
        operation = one_operation(cleaned(any_lab))
    copy_database(copy, any_lab.home / "ledger.db")
    assert any_lab.ledger.cleanups.get_cleanup(operation.id).active

    outcome = clean_stale_rows(any_lab.opened_again())

    assert f"12 rows on 3 date(s) deleted, operation {operation.id}" in outcome
    known = any_lab.ledger.cleanups.get_cleanup(operation.id)
    assert (known.state, known.rows, known.dates, known.is_restorable) == (CleanupState.DELETED, 12, 3, True)
    assert known.expires_at is not None
    assert known.expires_at - utcnow() > timedelta(days=29.9)
    restore(operation.id, site_of(any_lab))
    assert any_lab.table_bytes(UPCOMING) == before


@pytest.mark.parametrize("name", ["back_up", "read_backup", "delete_backed_up"])
def test_an_older_copy_of_the_ledger_deletes_no_restored_row_again(any_lab: Lab, name: str) -> None:
    """It says that the deletion is not finished; the rows were deleted and restored since."""
    before = filled(any_lab)
    with ledger_copied_before(any_lab, name) as copy:
        operation = one_operation(cleaned(any_lab))
    restore(operation.id, site_of(any_lab))
    copy_database(copy, any_lab.home / "ledger.db")
    assert any_lab.ledger.cleanups.get_cleanup(operation.id).active

    for _ in range(2):
        clean_stale_rows(any_lab.opened_again())

    assert any_lab.table_bytes(UPCOMING) == before
    known = any_lab.ledger.cleanups.get_cleanup(operation.id)
    assert (known.state, known.dates, known.restored_days) == (CleanupState.DELETED, 0, {*STALE})
    assert "3 date(s) were restored" in str(known.error)
    with pytest.raises(UserError, match="was restored already"):
        restore(operation.id, site_of(any_lab))
    again = one_operation(cleaned(any_lab))  # a person asks for it
    assert (again.rows, again.id != operation.id) == (12, True)


def test_a_ledger_that_was_restored_while_the_cleanup_ran_costs_no_row(any_lab: Lab) -> None:
    """The cleanup deletes its rows while its own record goes back to a state before the backup."""
    before = filled(any_lab)
    warehouse = any_lab.context.warehouse
    delete = warehouse.delete_backed_up

    def restored_meanwhile(*arguments: Any, **named: Any) -> None:
        delete(*arguments, **named)
        copy_database(copy, any_lab.home / "ledger.db")

    with ledger_copied_before(any_lab, "back_up") as copy, pytest.MonkeyPatch.context() as patch:
        patch.setattr(warehouse, "delete_backed_up", restored_meanwhile)
        report = cleaned(any_lab)
    assert "another process has taken over operation" in report.busy[0]

    operation = one_operation(cleaned(any_lab))

    assert (operation.state, operation.rows) == (CleanupState.DELETED, 12)
    restore(operation.id, site_of(any_lab))
    assert any_lab.table_bytes(UPCOMING) == before


def test_a_backup_that_is_whole_is_dropped_only_if_its_rows_are_in_the_table(lab: Lab) -> None:
    """Two processes died before they recorded their backup. Of one, another process replaced a date since."""
    filled(lab)
    killed_before_it_is_recorded(lab)
    (first,) = lab.ledger.cleanups.list_unfinished_cleanups()
    killed_before_it_is_recorded(lab)
    assert lab.ledger.cleanups.get_cleanup(first.id).state is CleanupState.ABANDONED
    (second,) = lab.ledger.cleanups.list_unfinished_cleanups()
    lab.upcoming(BETWEEN, players(1))

    clean_stale_rows(lab.opened_again())

    kept = lab.ledger.cleanups.get_cleanup(second.id)
    assert (kept.state, kept.dates) == (CleanupState.DELETED, 0)
    assert kept.error == (
        "the ledger has no record of a deletion, but 1 date(s) of the backup are not in the table: " + str(BETWEEN)
    )


def test_a_date_that_is_written_at_any_moment_of_the_deletion_is_reported_and_stays(lab: Lab) -> None:
    """Another program replaces the file, before each of the calls by which the deletion changes names, in turn."""
    theirs = lab.home / "theirs.parquet"
    part = lab.home / "warehouse" / "nba_analytics" / TABLE.name.table / f"game_date={BETWEEN}" / "part.parquet"
    lab.upcoming(BETWEEN, players(9))
    shutil.copyfile(part, theirs)
    delete = lab.context.warehouse.delete_backed_up

    def write() -> None:
        part.parent.mkdir(exist_ok=True)
        shutil.copyfile(theirs, part.with_name(".tmp"))
        part.with_name(".tmp").replace(part)

    number = 0
    for number in count(1):
        before = filled(lab)
        calls: list[int] = []

        def written_meanwhile(*arguments: Any, number: int = number, calls: list[int] = calls, **named: Any) -> None:
            with before_system_calls({number: write}, changes_only=True) as counted:
                delete(*arguments, **named)
            calls.append(counted.count)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(lab.context.warehouse, "delete_backed_up", written_meanwhile)
            operation = one_operation(cleaned(lab))
        if calls[0] < number:
            break
        assert f"1 date(s) were written by another program after their backup and were not deleted: {BETWEEN}" in str(
            operation.error
        ), number
        assert rows_by_stale_date(lab) == [0, 9, 0], number
        part.unlink()
        restore(operation.id, site_of(lab))
        assert lab.table_bytes(UPCOMING) == before, number
    assert number > 3


def killed_before_it_is_recorded(lab: Lab) -> None:
    with pytest.MonkeyPatch.context() as patch:
        killed_before(lab, patch, CleanupState.BACKED_UP)
        with pytest.raises(Killed):
            cleaned(lab)


def test_a_frozen_cleanup_deletes_nothing_that_was_restored_since(any_lab: Lab) -> None:
    """It is frozen in the warehouse's call itself, for longer than its lease."""
    before = filled(any_lab)
    warehouse = any_lab.context.warehouse
    delete = warehouse.delete_backed_up
    late = "elsewhere:1:1"

    def frozen(*arguments: Any, **named: Any) -> None:
        patch.undo()
        (operation,) = any_lab.ledger.cleanups.list_unfinished_cleanups()
        past = utcnow() - timedelta(seconds=1)
        any_lab.ledger.cleanups.renew_cleanup(operation.id, expect=operation.state, owner=late, lease_until=past)
        assert one_operation(cleaned(any_lab)).id == operation.id
        restore(operation.id, site_of(any_lab))
        delete(*arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(warehouse, "delete_backed_up", frozen)
        report = cleaned(any_lab, late)

    assert "another process has taken over operation" in report.busy[0]
    assert any_lab.table_bytes(UPCOMING) == before


def test_a_cleanup_that_was_frozen_while_it_finished_another_deletes_no_restored_rows(lab: Lab) -> None:
    before = filled(lab)
    warehouse = lab.context.warehouse
    delete = warehouse.delete_backed_up
    with pytest.MonkeyPatch.context() as patch, suppress(Killed):
        killed_before(lab, patch, CleanupState.DELETED)
        cleaned(lab, "elsewhere:1:1")
    lab.end_cleanup_leases()

    def frozen(*arguments: Any, **named: Any) -> None:
        patch.undo()
        lab.end_cleanup_leases()
        restore(one_operation(cleaned(lab)).id, site_of(lab))
        delete(*arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(warehouse, "delete_backed_up", frozen)
        report = cleaned(lab, "elsewhere:2:2")

    assert "another process has taken over operation" in report.busy[0]
    assert "3 date(s) were restored after this cleanup began" in report.busy[1]
    assert report.done == []
    assert lab.table_bytes(UPCOMING) == before


@pytest.mark.parametrize("call", ["row_counts", "describe"])
def test_a_cleanup_that_was_frozen_before_it_began_to_delete_deletes_no_restored_rows(lab: Lab, call: str) -> None:
    before = filled(lab)
    warehouse = lab.context.warehouse
    real = getattr(warehouse, call)

    def frozen(*arguments: Any) -> Any:
        patch.undo()
        restore(one_operation(cleaned(lab)).id, site_of(lab))
        return real(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(warehouse, call, frozen)
        report = cleaned(lab)

    assert "3 date(s) were restored after this cleanup began" in report.busy[0]
    assert report.done == []
    assert lab.table_bytes(UPCOMING) == before
    assert len(one_operation(cleaned(lab)).kept) == 3, "repeated, it deletes them"


def test_a_cleanup_that_was_frozen_does_not_begin_again_although_its_dates_were_written(lab: Lab) -> None:
    filled(lab)
    late = "elsewhere:1:1"
    fingerprints = lab.context.warehouse.fingerprints

    def frozen(*arguments: Any) -> Any:
        patch.undo()
        (operation,) = lab.ledger.cleanups.list_unfinished_cleanups()
        past = utcnow() - timedelta(seconds=1)
        lab.ledger.cleanups.renew_cleanup(operation.id, expect=operation.state, owner=late, lease_until=past)
        finished = cleaned(lab).done
        restore(finished[-1].id, site_of(lab))
        lab.upcoming(BETWEEN, players(9))
        return fingerprints(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lab.context.warehouse, "fingerprints", frozen)
        report = cleaned(lab, late)

    assert "another process has taken over operation" in report.busy[0]
    assert report.done == []
    assert 9 in rows_by_stale_date(lab)
    assert 0 not in rows_by_stale_date(lab)


def test_a_cleanup_of_dates_that_another_one_has_deleted_meanwhile_can_be_restored(lab: Lab) -> None:
    before = filled(lab)
    open_cleanup = lab.ledger.cleanups.open_cleanup

    def late(*arguments: Any) -> CleanupOperation:
        patch.undo()
        cleaned(lab)
        return open_cleanup(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lab.ledger.cleanups, "open_cleanup", late)
        empty = one_operation(cleaned(lab))

    assert empty.rows == 0
    assert restore(empty.id, site_of(lab)).state is CleanupState.RESTORED
    (other,) = [one for one in lab.ledger.cleanups.list_cleanups() if one.id != empty.id]
    restore(other.id, site_of(lab))
    assert lab.table_bytes(UPCOMING) == before


def test_a_frozen_restore_brings_nothing_back_that_was_deleted_since(any_lab: Lab) -> None:
    filled(any_lab)
    operation = one_operation(cleaned(any_lab))
    warehouse = any_lab.context.warehouse
    put_back = warehouse.restore_backup
    late = "elsewhere:1:1"

    def frozen(*arguments: Any, **named: Any) -> Any:
        patch.undo()
        past = utcnow() - timedelta(seconds=1)
        any_lab.ledger.cleanups.renew_cleanup(operation.id, expect=CleanupState.RESTORING, owner=late, lease_until=past)
        restore(operation.id, site_of(any_lab))
        cleaned(any_lab)
        return put_back(*arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(warehouse, "restore_backup", frozen)
        with pytest.raises(TableInUse, match="has taken over operation"):
            restore(operation.id, site_of(any_lab, late))

    assert rows_by_stale_date(any_lab) == [0, 0, 0]
