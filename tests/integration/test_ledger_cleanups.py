"""What every ledger promises of cleanup operations."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, timedelta
from typing import Any

import pytest
from sqlalchemy import event

from gated_backfill.common.errors import TableInUse, UserError
from gated_backfill.common.ledger import Ledger, open_ledger
from gated_backfill.common.ledger.stores.cleanups import CLEANUP_TRANSITIONS, CleanupOperation, CleanupState, NewCleanup
from gated_backfill.common.model.publication import BackupDate
from gated_backfill.common.process.clock import utcnow
from tests.builders import LEASE, at_once, everyone_is_dead, everyone_lives

ME, OTHER = "host:1:1", "host:2:2"
DAY = date(2024, 1, 1)


def new(name: str = "op-1", table: str = "nba.upcoming") -> NewCleanup:
    values: dict[str, Any] = {"date_column": "day", "backup": "somewhere", "requested_by": "a test"}
    values |= {"cutoff": date(2024, 1, 8), "oldest": DAY, "newest": DAY, "expires_at": utcnow() + timedelta(days=30)}
    return NewCleanup(id=name, table_name=table, rows=10, dates=1, table_rows=100, **values)


def opened(ledger: Ledger, name: str = "op-1", *, lease: timedelta = LEASE, **more: Any) -> None:
    ledger.cleanups.open_cleanup(new(name, **more), ME, utcnow() + lease)


def moved(ledger: Ledger, *states: CleanupState, name: str = "op-1", owner: str = ME, **more: Any) -> CleanupOperation:
    """The operation after these moves of its owner."""
    for to in states:
        at, until = ledger.cleanups.get_cleanup(name).state, utcnow() + LEASE
        assert ledger.cleanups.move_cleanup(name, expect=at, to=to, owner=owner, lease_until=until, **more)
    return ledger.cleanups.get_cleanup(name)


def test_an_operation_reads_back_as_it_was_opened(ledger: Ledger) -> None:
    opened(ledger)
    found = ledger.cleanups.get_cleanup("op-1")
    assert (found.state, found.active, found.owner, found.rows) == (CleanupState.PLANNED, True, ME, 10)
    assert (found.oldest, found.newest, found.cutoff, found.backup) == (DAY, DAY, date(2024, 1, 8), "somewhere")
    assert ledger.cleanups.list_unfinished_cleanups() == ledger.cleanups.list_cleanups() == [found]
    with pytest.raises(UserError, match="no cleanup 'nope'"):
        ledger.cleanups.get_cleanup("nope")


def test_what_is_opened_or_claimed_is_returned_as_it_was_then(ledger: Ledger, ledger_url: str) -> None:
    """A process may be suspended behind its transaction, while another one changes the operation."""
    other = open_ledger(ledger_url, create=False)
    acts: list[Callable[[], object]] = []
    event.listen(ledger.cleanups._engine, "checkin", lambda *_: acts.pop(0)() if acts else None)

    acts.append(lambda: other.cleanups.release_cleanup("op-1", ME, "taken over"))
    operation = ledger.cleanups.open_cleanup(new(), ME, utcnow() + LEASE)

    assert (operation.state, operation.owner, operation.error) == (CleanupState.PLANNED, ME, None)
    assert ledger.cleanups.get_cleanup("op-1").owner is None

    abandoned: dict[str, Any] = {"expect": CleanupState.PLANNED, "to": CleanupState.ABANDONED, "owner": OTHER}
    acts += [lambda: None, lambda: other.cleanups.move_cleanup("op-1", **abandoned)]  # a claim reads, then writes
    claimed = ledger.cleanups.claim_cleanup("op-1", OTHER, utcnow() + LEASE, is_dead=everyone_lives)

    assert claimed is not None
    assert (claimed.state, claimed.owner) == (CleanupState.PLANNED, OTHER)
    assert ledger.cleanups.get_cleanup("op-1").state is CleanupState.ABANDONED
    other.close()


def test_of_many_that_open_one_on_a_table_at_once_one_does(ledger: Ledger) -> None:
    def attempt(number: int) -> str:
        try:
            opened(ledger, f"op-{number}")
        except TableInUse as exc:
            return str(exc)
        return "opened"

    answers = at_once(4, attempt)
    assert answers.count("opened") == 1
    refusals = [answer for answer in answers if answer != "opened"]
    assert all("nba.upcoming: is being cleaned or restored already" in refusal for refusal in refusals)
    opened(ledger, "another", table="nba.teams")


def test_an_operation_that_ended_gives_its_table_free_and_takes_it_to_be_restored(ledger: Ledger) -> None:
    opened(ledger)
    ended = moved(ledger, CleanupState.BACKED_UP, CleanupState.DELETED)
    assert (ended.active, ended.owner, ended.lease_until) == (False, None, None)
    assert ended.backed_up_at is not None
    assert ended.deleted_at is not None
    opened(ledger, "op-2")
    with pytest.raises(TableInUse, match="operation op-2"):
        moved(ledger, CleanupState.RESTORING)
    moved(ledger, CleanupState.ABANDONED, name="op-2")
    assert moved(ledger, CleanupState.RESTORING).active
    assert moved(ledger, CleanupState.RESTORED).restored_at is not None


@pytest.mark.parametrize("to", CleanupState)
def test_only_moves_of_the_table_are_made(ledger: Ledger, to: CleanupState) -> None:
    opened(ledger)
    if to in CLEANUP_TRANSITIONS[CleanupState.PLANNED]:
        assert moved(ledger, to).state is to
        assert not ledger.cleanups.move_cleanup("op-1", expect=CleanupState.PLANNED, to=to, owner=ME)
    else:
        with pytest.raises(ValueError, match="never moves"):
            ledger.cleanups.move_cleanup("op-1", expect=CleanupState.PLANNED, to=to, owner=ME)


def test_only_its_owner_moves_an_unfinished_operation(ledger: Ledger) -> None:
    opened(ledger)
    assert not ledger.cleanups.move_cleanup("op-1", expect=CleanupState.PLANNED, to=CleanupState.BACKED_UP, owner=OTHER)
    assert ledger.cleanups.get_cleanup("op-1").state is CleanupState.PLANNED


def test_an_operation_is_taken_from_the_dead_and_the_late_only(ledger: Ledger) -> None:
    until = utcnow() + LEASE
    opened(ledger)
    assert ledger.cleanups.claim_cleanup("op-1", OTHER, until, is_dead=everyone_lives) is None
    taken = ledger.cleanups.claim_cleanup("op-1", OTHER, until, is_dead=everyone_is_dead)
    assert taken is not None
    assert (taken.owner, taken.state) == (OTHER, CleanupState.PLANNED)
    opened(ledger, "late", table="nba.teams", lease=timedelta(seconds=-1))
    assert ledger.cleanups.claim_cleanup("late", OTHER, until, is_dead=everyone_lives) is not None
    ledger.cleanups.release_cleanup("late", OTHER, "the warehouse is away")
    assert ledger.cleanups.get_cleanup("late").error == "the warehouse is away"
    assert ledger.cleanups.claim_cleanup("late", ME, until, is_dead=everyone_lives) is not None
    moved(ledger, CleanupState.ABANDONED, owner=OTHER)
    assert ledger.cleanups.claim_cleanup("op-1", ME, until, is_dead=everyone_is_dead) is None


def test_backups_are_due_once_their_time_is_over_and_dropped_once(ledger: Ledger) -> None:
    opened(ledger)
    moved(ledger, CleanupState.BACKED_UP, CleanupState.DELETED)
    later = utcnow() + timedelta(days=31)
    assert ledger.cleanups.list_backups_to_expire(utcnow()) == []
    assert [one.id for one in ledger.cleanups.list_backups_to_expire(later)] == ["op-1"]
    ledger.cleanups.mark_backup_dropped("op-1")
    assert ledger.cleanups.get_cleanup("op-1").backup == "somewhere"  # it is still kept
    moved(ledger, CleanupState.EXPIRED)
    assert [one.id for one in ledger.cleanups.list_backups_to_drop()] == ["op-1"]
    ledger.cleanups.mark_backup_dropped("op-1")
    assert ledger.cleanups.list_backups_to_drop() == ledger.cleanups.list_backups_to_expire(later) == []


def test_what_was_backed_up_is_known_by_date_and_how_it_is_to_be_restored_too(ledger: Ledger) -> None:
    opened(ledger)
    kept = {DAY: BackupDate(fingerprint="f", rows=3), DAY + timedelta(days=1): BackupDate(fingerprint="g", rows=7)}
    assert ledger.cleanups.get_cleanup("op-1").kept == {}
    moved(ledger, CleanupState.BACKED_UP, kept=kept)
    moved(ledger, CleanupState.DELETED)
    operation = moved(ledger, CleanupState.RESTORING, leave_written=True, intact_only=True)
    assert (operation.kept, operation.leave_written, operation.intact_only) == (kept, True, True)


def test_only_its_owner_goes_on_holding_an_operation_and_only_where_it_was(ledger: Ledger) -> None:
    opened(ledger, lease=timedelta(seconds=-1))
    at, until = CleanupState.PLANNED, utcnow() + LEASE
    assert not ledger.cleanups.renew_cleanup("op-1", expect=at, owner=OTHER, lease_until=until)
    assert not ledger.cleanups.renew_cleanup("op-1", expect=CleanupState.BACKED_UP, owner=ME, lease_until=until)
    assert ledger.cleanups.renew_cleanup("op-1", expect=at, owner=ME, lease_until=until)
    assert ledger.cleanups.get_cleanup("op-1").lease_until == until
    moved(ledger, CleanupState.BACKED_UP, CleanupState.DELETED)
    assert not ledger.cleanups.renew_cleanup("op-1", expect=CleanupState.DELETED, owner=ME, lease_until=until)


def test_a_damaged_backup_is_kept_until_it_expires(ledger: Ledger) -> None:
    opened(ledger)
    moved(ledger, CleanupState.BACKED_UP, CleanupState.DAMAGED)
    assert ledger.cleanups.list_unfinished_cleanups() == ledger.cleanups.list_backups_to_drop() == []
    assert [one.id for one in ledger.cleanups.list_backups_to_expire(utcnow() + timedelta(days=31))] == ["op-1"]


def test_every_lease_has_a_higher_generation_than_the_one_before(ledger: Ledger) -> None:
    opened(ledger)
    generations = [ledger.cleanups.get_cleanup("op-1").generation]
    for owner in (OTHER, ME):
        taken = ledger.cleanups.claim_cleanup("op-1", owner, utcnow() + LEASE, is_dead=everyone_is_dead)
        assert taken is not None
        generations.append(taken.generation)
    finished = moved(ledger, CleanupState.BACKED_UP, CleanupState.DELETED)
    assert finished.generation == generations[-1]
    generations += [moved(ledger, CleanupState.RESTORING).generation]
    moved(ledger, CleanupState.RESTORED)
    generations += [moved(ledger, CleanupState.RESTORING).generation]
    assert generations[0] > 0
    assert generations == sorted(set(generations))


def test_restored_dates_are_known_and_the_others_are_still_restorable(ledger: Ledger) -> None:
    later = DAY + timedelta(days=1)
    kept = {DAY: BackupDate(fingerprint="f", rows=3), later: BackupDate(fingerprint="g", rows=7)}
    opened(ledger)
    moved(ledger, CleanupState.BACKED_UP, kept=kept)
    assert moved(ledger, CleanupState.DELETED).is_restorable
    moved(ledger, CleanupState.RESTORING)
    first = moved(ledger, CleanupState.RESTORED, restored_days={later})
    assert (first.restored_days, first.is_restorable, first.kept) == ({later}, True, kept)
    moved(ledger, CleanupState.RESTORING)
    second = moved(ledger, CleanupState.RESTORED, restored_days={DAY, later})
    assert (second.restored_days, second.is_restorable) == (kept.keys(), False)
    assert (second.deleted_at, second.restored_at) == (first.deleted_at, first.restored_at)


def test_what_an_earlier_version_restored_counts_as_restored(ledger: Ledger) -> None:
    """It kept the restored dates only, and had no column for them."""
    opened(ledger)
    moved(ledger, CleanupState.BACKED_UP, kept={DAY: BackupDate(fingerprint="f", rows=3)})
    moved(ledger, CleanupState.DELETED, CleanupState.RESTORING)
    operation = moved(ledger, CleanupState.RESTORED)
    assert (operation.restored_days, operation.is_restorable) == ({DAY}, False)


def test_an_expiry_is_found_once_and_not_in_the_future(ledger: Ledger) -> None:
    opened(ledger)
    moved(ledger, CleanupState.BACKED_UP, CleanupState.DELETED)
    now = utcnow()
    month_ahead, next_day = now + timedelta(days=30), now + timedelta(days=1)
    for seen_at, recorded in ((month_ahead, month_ahead), (now, now), (next_day, now)):
        ledger.cleanups.record_found_expired("op-1", seen_at)
        assert ledger.cleanups.get_cleanup("op-1").found_expired_at == recorded
    ledger.cleanups.postpone_expiry("op-1", month_ahead)
    postponed = ledger.cleanups.get_cleanup("op-1")
    assert (postponed.expires_at, postponed.found_expired_at) == (month_ahead, None)
