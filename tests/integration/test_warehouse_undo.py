"""What every warehouse promises of leases, undo and kept rows: one suite, each implementation."""

from __future__ import annotations

from datetime import date, timedelta

import pytest

from gated_backfill.common.errors import LeaseTakenOver
from gated_backfill.common.model.publication import Backup, KeptRows, PublishResult, StagedFile
from gated_backfill.common.process.clock import utcnow
from gated_backfill.common.storage.staging import Staging
from gated_backfill.common.warehouse.protocol import ABSENT, Warehouse
from tests.builders import DAYS, FEB_23, FEB_24, TABLE, counts, publication_of, rows_of, span, staged

BACKUP = Backup(id="op-1", table=TABLE, date_column="day")
ALL = span(DAYS[0], DAYS[-1])


def publish(warehouse: Warehouse, *files: StagedFile, name: str = "run-1/0", generation: int = 1) -> PublishResult:
    now = warehouse.fingerprints(TABLE, "day", [file.day for file in files])
    publication = publication_of(name, generation=generation)
    return warehouse.publish(TABLE, "day", files, fingerprints_when_staged=now, publication=publication)


def load(warehouse: Warehouse, day: date, players: int) -> None:
    warehouse.load(TABLE, "day", rows_of(day, players=players))


def undo(warehouse: Warehouse, run: str = "run-1", generation: int = 1) -> frozenset[date]:
    replaced = warehouse.replaced_partitions(TABLE, "day", run, DAYS)
    return warehouse.restore(TABLE, "day", run, replaced, generation=generation)


def kept(warehouse: Warehouse) -> list[tuple[date, str, int]]:
    return [(one.day, one.removed_by, one.rows) for one in warehouse.list_kept(TABLE, "day", ALL)]


def restore_kept(warehouse: Warehouse, rows: KeptRows) -> bool:
    current = warehouse.fingerprints(TABLE, "day", [rows.day])[rows.day]
    return warehouse.restore_kept(TABLE, "day", rows, current=current)


# -- fences -------------------------------------------------------------------------------------------------------


def test_a_gate_that_was_overtaken_publishes_nothing(warehouse: Warehouse, staging: Staging) -> None:
    load(warehouse, FEB_23, 3)
    publish(warehouse, staged(staging, FEB_23, players=5), generation=2)

    late = [staged(staging, FEB_23, players=7, attempt=2), staged(staging, FEB_24, players=7, attempt=2)]
    with pytest.raises(LeaseTakenOver):
        publish(warehouse, *late, generation=1)

    assert counts(warehouse, *DAYS) == {FEB_23: 5}
    assert publish(warehouse, *late, name="run-1/1").published == {FEB_23, FEB_24}  # another window
    assert publish(warehouse, *late, name="run-2/0").published == {FEB_23, FEB_24}  # another run


def test_a_gate_is_overtaken_by_one_that_had_nothing_to_change(warehouse: Warehouse, staging: Staging) -> None:
    file = staged(staging, FEB_23, players=5)
    assert publish(warehouse, file, generation=1).published == {FEB_23}
    assert publish(warehouse, file, generation=2).published == {FEB_23}
    load(warehouse, FEB_23, 3)

    for late in (staged(staging, FEB_23, players=7, attempt=2), file):
        with pytest.raises(LeaseTakenOver):
            publish(warehouse, late, generation=1)
    assert counts(warehouse, *DAYS) == {FEB_23: 3}


def test_a_gate_is_overtaken_by_one_that_publishes_nothing(warehouse: Warehouse, staging: Staging) -> None:
    file = staged(staging, FEB_23, players=5)
    warehouse.raise_fence(TABLE, "run-1", window=0, generation=2)  # before there is a table
    with pytest.raises(LeaseTakenOver):
        publish(warehouse, file, generation=1)
    assert publish(warehouse, file, generation=2).published == {FEB_23}
    warehouse.raise_fence(TABLE, "run-1", window=0, generation=3)
    with pytest.raises(LeaseTakenOver):
        publish(warehouse, staged(staging, FEB_23, players=7, attempt=2), generation=2)
    with pytest.raises(LeaseTakenOver):
        warehouse.raise_fence(TABLE, "run-1", window=0, generation=2)
    assert counts(warehouse, *DAYS) == {FEB_23: 5}
    assert publish(warehouse, file, name="run-1/1").published == {FEB_23}  # another window
    undo(warehouse)
    warehouse.raise_fence(TABLE, "run-1", window=0, generation=4)  # the run can publish nothing anyway


@pytest.mark.parametrize("replaces", [True, False])
def test_a_run_that_was_undone_publishes_nothing_more(warehouse: Warehouse, staging: Staging, replaces: bool) -> None:
    if replaces:
        load(warehouse, FEB_23, 3)
    before = counts(warehouse, *DAYS) if replaces else {}
    file = staged(staging, FEB_23, players=5)
    publish(warehouse, file)
    assert undo(warehouse) == {FEB_23}

    for name in ("run-1/0", "run-1/7"):
        with pytest.raises(LeaseTakenOver):
            publish(warehouse, file, name=name, generation=9)
    assert counts(warehouse, *DAYS) == before
    assert publish(warehouse, file, name="run-2/0").published == {FEB_23}


def test_an_undo_without_anything_to_restore_ends_the_run_as_well(warehouse: Warehouse, staging: Staging) -> None:
    load(warehouse, FEB_23, 3)
    assert undo(warehouse) == frozenset()
    with pytest.raises(LeaseTakenOver):
        publish(warehouse, staged(staging, FEB_23, players=5), generation=9)
    assert counts(warehouse, *DAYS) == {FEB_23: 3}


def test_an_undo_that_was_overtaken_removes_nothing(warehouse: Warehouse, staging: Staging) -> None:
    file = staged(staging, FEB_23, players=5)
    publish(warehouse, file)
    replaced = warehouse.replaced_partitions(TABLE, "day", "run-1", DAYS)
    assert undo(warehouse, generation=2) == {FEB_23}
    publish(warehouse, file, name="run-2/0")  # the same bytes again

    with pytest.raises(LeaseTakenOver):
        warehouse.restore(TABLE, "day", "run-1", replaced, generation=1)

    assert counts(warehouse, *DAYS) == {FEB_23: 5}
    with pytest.raises(LeaseTakenOver):  # also without anything to restore
        warehouse.restore(TABLE, "day", "run-1", {}, generation=1)


def test_an_undo_is_overtaken_by_one_that_restores_nothing(warehouse: Warehouse, staging: Staging) -> None:
    publish(warehouse, staged(staging, FEB_23, players=5))
    warehouse.raise_fence(TABLE, "run-1", window=None, generation=2)
    with pytest.raises(LeaseTakenOver):
        undo(warehouse, generation=1)
    with pytest.raises(LeaseTakenOver):
        warehouse.raise_fence(TABLE, "run-1", window=None, generation=1)
    with pytest.raises(LeaseTakenOver):
        publish(warehouse, staged(staging, FEB_23, players=7, attempt=2), generation=9)
    assert counts(warehouse, *DAYS) == {FEB_23: 5}
    assert undo(warehouse, generation=2) == {FEB_23}


def test_a_cleanup_that_was_overtaken_deletes_nothing(warehouse: Warehouse) -> None:
    load(warehouse, FEB_23, 3)
    warehouse.back_up(BACKUP, [FEB_23], until=utcnow() + timedelta(days=30))
    dates = warehouse.read_backup(BACKUP)
    assert warehouse.deleted_at(BACKUP) is None
    warehouse.delete_backed_up(BACKUP, dates, generation=2)
    deleted_at = warehouse.deleted_at(BACKUP)
    assert deleted_at is not None
    assert abs(deleted_at - utcnow()) < timedelta(minutes=5)
    with pytest.raises(LeaseTakenOver):
        warehouse.restore_backup(BACKUP, dates, generation=1)
    assert counts(warehouse, *DAYS) == {}
    assert warehouse.restore_backup(BACKUP, dates, generation=3) == {FEB_23}

    with pytest.raises(LeaseTakenOver, match=r"nba\.factors"):
        warehouse.delete_backed_up(BACKUP, dates, generation=2)

    assert counts(warehouse, *DAYS) == {FEB_23: 3}
    assert warehouse.deleted_at(BACKUP) == deleted_at
    warehouse.delete_backed_up(BACKUP, dates, generation=4)
    warehouse.delete_backed_up(BACKUP, dates, generation=5)
    with pytest.raises(LeaseTakenOver):
        warehouse.delete_backed_up(BACKUP, dates, generation=4)


def test_restored_rows_are_not_deleted_again_by_their_cleanup(warehouse: Warehouse) -> None:
    for day in (FEB_23, FEB_24):
        load(warehouse, day, 3)
    warehouse.back_up(BACKUP, [FEB_23, FEB_24], until=utcnow() + timedelta(days=30))
    dates = warehouse.read_backup(BACKUP)
    assert warehouse.restored_days(BACKUP) == frozenset()
    warehouse.delete_backed_up(BACKUP, {FEB_23: dates[FEB_23]}, generation=1)
    deleted_at = warehouse.deleted_at(BACKUP)
    assert warehouse.restored_days(BACKUP) == frozenset()
    assert warehouse.restore_backup(BACKUP, dates, generation=2) == {FEB_23, FEB_24}
    assert warehouse.restored_days(BACKUP) == {FEB_23}
    assert warehouse.deleted_at(BACKUP) == deleted_at

    warehouse.delete_backed_up(BACKUP, {FEB_23: dates[FEB_23]}, generation=3)
    assert warehouse.deleted_at(BACKUP) == deleted_at
    assert counts(warehouse, *DAYS) == {FEB_23: 3, FEB_24: 3}
    with pytest.raises(LeaseTakenOver):
        warehouse.restore_backup(BACKUP, dates, generation=2)
    warehouse.delete_backed_up(BACKUP, dates, generation=4)

    assert counts(warehouse, *DAYS) == {FEB_23: 3}


# -- kept rows ----------------------------------------------------------------------------------------------------


def test_every_replacement_is_kept_and_undo_gives_the_last_rows_of_others_back(
    warehouse: Warehouse, staging: Staging
) -> None:
    load(warehouse, FEB_23, 3)
    publish(warehouse, staged(staging, FEB_23, players=5))
    load(warehouse, FEB_23, 4)  # a daily job
    (daily,) = warehouse.fingerprints(TABLE, "day", [FEB_23]).values()
    publish(warehouse, staged(staging, FEB_23, players=6, attempt=2))
    publish(warehouse, staged(staging, FEB_23, players=7, attempt=3), staged(staging, FEB_24, players=2))

    replaced = warehouse.replaced_partitions(TABLE, "day", "run-1", DAYS)
    assert {day: partition.before for day, partition in replaced.items()} == {FEB_23: daily, FEB_24: ABSENT}
    assert kept(warehouse) == [(FEB_23, "run run-1", rows) for rows in (6, 4, 3)]
    assert undo(warehouse) == {FEB_23, FEB_24}
    assert counts(warehouse, *DAYS) == {FEB_23: 4}
    undone = "undo of run run-1"
    assert kept(warehouse)[:2] == [(FEB_24, undone, 2), (FEB_23, undone, 7)]
    assert len(kept(warehouse)) == 5


def test_kept_rows_are_put_back_and_what_they_replace_is_kept(warehouse: Warehouse, staging: Staging) -> None:
    load(warehouse, FEB_23, 3)
    (first,) = warehouse.fingerprints(TABLE, "day", [FEB_23]).values()
    publish(warehouse, staged(staging, FEB_23, players=5), staged(staging, FEB_24, players=2))
    (rows,) = warehouse.list_kept(TABLE, "day", ALL)
    assert (rows.fingerprint, rows.rows) == (first, 3)
    assert abs(rows.kept_at - utcnow()) < timedelta(minutes=5)

    assert restore_kept(warehouse, rows)

    assert warehouse.fingerprints(TABLE, "day", [FEB_23]) == {FEB_23: first}
    assert counts(warehouse, *DAYS) == {FEB_23: 3, FEB_24: 2}
    assert kept(warehouse) == [(FEB_23, "restore of kept rows", 5), (FEB_23, "run run-1", 3)]
    assert restore_kept(warehouse, rows)
    assert len(kept(warehouse)) == 2  # it held them already
    assert restore_kept(warehouse, warehouse.list_kept(TABLE, "day", ALL)[0])
    assert counts(warehouse, FEB_23) == {FEB_23: 5}
