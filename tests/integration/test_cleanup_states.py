"""Every state of a cleanup has a way out: whatever interrupts it, repeating it ends, and no row is lost on the way."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import pytest

from gated_backfill.common.cleanup.cleanup import clean
from gated_backfill.common.cleanup.expiry import remove_expired_backups
from gated_backfill.common.cleanup.restore import restore
from gated_backfill.common.errors import BackfillError, UserError, WarehouseUnavailable
from gated_backfill.common.ledger.stores.cleanups import CleanupState
from gated_backfill.common.process.clock import utcnow
from tests.integration.test_cleanup import STALE, TABLE, TODAY, backup_part, cleaned, filled, site_of
from tests.integration.test_cleanup import _clean_upcoming_tables as _clean_upcoming_tables
from tests.lab import UPCOMING, Lab, players

BETWEEN = STALE[1]
ENDED = {CleanupState.EXPIRED, CleanupState.ABANDONED}
MOST_REPETITIONS = 4


class Killed(BaseException):
    """What nothing catches, as nothing catches a kill."""


@contextmanager
def killed_at(owner: Any, name: str, number: int = 1) -> Generator[None]:
    """The process dies at the beginning of that call."""
    real = getattr(owner, name)
    calls = 0

    def dies(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            raise Killed
        return real(*arguments, **named)

    with pytest.MonkeyPatch.context() as patch, suppress(Killed):
        patch.setattr(owner, name, dies)
        yield


def operation_id(lab: Lab) -> str:
    return lab.ledger.cleanups.list_cleanups()[0].id


# -- the states: what the first attempt left ------------------------------------------------------------------------


def planned(lab: Lab) -> None:
    with killed_at(lab.context.warehouse, "back_up"):
        cleaned(lab)


def planned_with_backup(lab: Lab) -> None:
    with killed_at(lab.ledger.cleanups, "move_cleanup"):
        cleaned(lab)


def backed_up(lab: Lab) -> None:
    with killed_at(lab.context.warehouse, "delete_backed_up"):
        cleaned(lab)


def backed_up_and_deleted(lab: Lab) -> None:
    with killed_at(lab.ledger.cleanups, "move_cleanup", 2):
        cleaned(lab)


def deleted(lab: Lab) -> None:
    cleaned(lab)


def restoring(lab: Lab) -> None:
    cleaned(lab)
    with killed_at(lab.context.warehouse, "restore_backup"):
        restore(operation_id(lab), site_of(lab))


def restoring_and_restored(lab: Lab) -> None:
    cleaned(lab)
    with killed_at(lab.ledger.cleanups, "move_cleanup", 2):
        restore(operation_id(lab), site_of(lab))


def damaged(lab: Lab) -> None:
    backed_up_and_deleted(lab)
    backup_part(lab, lab.ledger.cleanups.list_cleanups()[0]).unlink()
    cleaned(lab)


def restored(lab: Lab) -> None:
    cleaned(lab)
    restore(operation_id(lab), site_of(lab))


def restored_in_part(lab: Lab) -> None:
    cleaned(lab)
    lab.upcoming(BETWEEN, players(1))
    restore(operation_id(lab), site_of(lab), leave_written=True)


STATES: dict[Callable[[Lab], None], CleanupState] = {
    planned: CleanupState.PLANNED,
    planned_with_backup: CleanupState.PLANNED,
    backed_up: CleanupState.BACKED_UP,
    backed_up_and_deleted: CleanupState.BACKED_UP,
    deleted: CleanupState.DELETED,
    restoring: CleanupState.RESTORING,
    restoring_and_restored: CleanupState.RESTORING,
    damaged: CleanupState.DAMAGED,
    restored: CleanupState.RESTORED,
    restored_in_part: CleanupState.RESTORED,
}


# -- the interruptions: what happens before the next attempt ---------------------------------------------------------


def nothing(_: Lab) -> None:
    pass


def table_is_dropped(lab: Lab) -> None:
    lab.drop(UPCOMING)


def table_gets_another_date_column(lab: Lab) -> None:
    lab.drop(UPCOMING)
    lab.load(UPCOMING, STALE[0], [{"team": "x"}], {"team": "STRING", "played_on": "DATE"})


def backup_is_gone(lab: Lab) -> None:
    shutil.rmtree(lab.home / "warehouse" / ".cleanup", ignore_errors=True)


def backup_is_damaged(lab: Lab) -> None:
    for part in (lab.home / "warehouse" / ".cleanup").rglob(f"*={BETWEEN}/part.parquet"):
        part.unlink()
        part.write_bytes(b"something else")


def all_dates_are_written(lab: Lab) -> None:
    for day in STALE:
        lab.upcoming(day, players(2))


def warehouse_does_not_answer_once(lab: Lab) -> None:
    """Each call that the next attempt may begin with fails."""
    deletion = ("read_backup", "fingerprints", "row_counts", "delete_backed_up", "restored_days")
    for name in (*deletion, "restore_backup", "drop_backup"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(lab.context.warehouse, name, _does_not_answer)
            repeat(lab)


def _does_not_answer(*_: Any, **__: Any) -> Any:
    raise WarehouseUnavailable("does not answer")


INTERRUPTIONS = (
    nothing,
    table_is_dropped,
    table_gets_another_date_column,
    backup_is_gone,
    backup_is_damaged,
    all_dates_are_written,
    warehouse_does_not_answer_once,
)


def repeat(lab: Lab) -> None:
    """What beat does every day. Errors are its report's, or the operation's."""
    clean(site_of(lab), [TABLE], today=TODAY, days=7, max_share=1.0, skip_restored=True)


def restore_all(lab: Lab) -> None:
    """What a person does about all that can be restored."""
    for operation in lab.ledger.cleanups.list_cleanups():
        if operation.is_restorable:
            with suppress(BackfillError):
                restore(operation.id, site_of(lab), leave_written=True, intact_only=True)


def expire_all(lab: Lab) -> None:
    """What beat does once the retention is over, on two days."""
    for days in (40, 42):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("gated_backfill.common.cleanup.expiry.utcnow", lambda days=days: utcnow() + timedelta(days))
            errors: list[str] = []
            remove_expired_backups(site_of(lab), errors)
            assert errors == []


@pytest.mark.parametrize("interrupt", INTERRUPTIONS, ids=lambda interrupt: interrupt.__name__)
@pytest.mark.parametrize("prepare", STATES, ids=lambda prepare: prepare.__name__)
def test_whatever_interrupts_it_in_any_state_repeating_ends(
    lab: Lab, prepare: Callable[[Lab], None], interrupt: Callable[[Lab], None]
) -> None:
    filled(lab)
    prepare(lab)
    (operation,) = lab.ledger.cleanups.list_cleanups()
    assert operation.state is STATES[prepare]

    interrupt(lab)
    for _ in range(MOST_REPETITIONS):
        repeat(lab)

    assert lab.ledger.cleanups.list_unfinished_cleanups() == []
    restore_all(lab)
    expire_all(lab)
    assert {operation.state for operation in lab.ledger.cleanups.list_cleanups()} <= ENDED
    assert {operation.backup for operation in lab.ledger.cleanups.list_cleanups()} == {None}
    assert not list((lab.home / "warehouse").glob(".cleanup/*"))


@pytest.mark.parametrize("prepare", STATES, ids=lambda prepare: prepare.__name__)
def test_in_every_state_all_rows_are_in_the_table_or_can_be_put_back(lab: Lab, prepare: Callable[[Lab], None]) -> None:
    before = filled(lab)
    prepare(lab)
    lost = {BETWEEN} if prepare is damaged else set()

    if len(lab.published(UPCOMING, BETWEEN)) == 1:  # written by another since
        shutil.rmtree(lab.home / "warehouse" / "nba_analytics" / TABLE.name.table / f"game_date={BETWEEN}")

    repeat(lab)
    restore_all(lab)

    after = lab.table_bytes(UPCOMING)
    assert after == {name: rows for name, rows in before.items() if not any(str(day) in name for day in lost)}


def test_every_state_is_tried() -> None:
    assert set(STATES.values()) | ENDED == set(CleanupState)


def test_what_has_ended_for_good_is_not_restored(lab: Lab) -> None:
    filled(lab)
    cleaned(lab)
    expire_all(lab)

    with pytest.raises(UserError, match="has expired"):
        restore(operation_id(lab), site_of(lab))
