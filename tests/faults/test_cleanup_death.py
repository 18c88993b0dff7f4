"""A cleanup is killed with -9, or frozen, at each of its steps: the next one finishes it, and nothing is lost."""

from __future__ import annotations

import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta

import psutil
import pytest

from gated_backfill.common.cleanup.cleanup import CleanupReport, clean
from gated_backfill.common.cleanup.operation import CleanupContext
from gated_backfill.common.cleanup.restore import restore
from gated_backfill.common.cleanup.stale_rows import local_today
from gated_backfill.common.config.settings import Settings
from gated_backfill.common.ledger.stores.cleanups import CleanupState
from gated_backfill.common.model.tables import DatedTable, TableName
from tests.builders import NOON_ZONE
from tests.lab import UPCOMING, Lab, players, until
from tests.prepared import prepared_programs

TODAY = local_today(Settings(timezone=NOON_ZONE))  # pyright: ignore[reportCallIssue]
STALE = [TODAY - timedelta(days=n) for n in (30, 9, 8)]
FRESH = [TODAY, TODAY - timedelta(days=7)]
TABLE = DatedTable(name=TableName.parse(UPCOMING))

CLEANUP_THAT_DIES = """
import os, signal, sys
from pathlib import Path
from gated_backfill.common.ledger import ledger
from gated_backfill.common.config.settings import Settings
from gated_backfill.producer.cli.tables.cleanup import _open_cleanup_context

home, at, last, doing, sign = sys.argv[1:]
owner = ledger.CleanupStore
if at.startswith("Local"):
    from gated_backfill.common.warehouse.local.warehouse import LocalWarehouse as owner
if at.startswith("Loading"):
    from gated_backfill.common.warehouse.local.loading import LoadingFolder as owner
if at.startswith("BigQuery"):
    from gated_backfill.common.warehouse.bigquery.warehouse import BigQueryWarehouse as owner
calls, real = 0, getattr(owner, at.split(".")[1])

def counted(*arguments, **named):
    global calls
    calls += 1
    if calls == int(last):
        print(os.getpid(), flush=True)
        os.kill(os.getpid(), signal.Signals[sign])
    return real(*arguments, **named)

setattr(owner, at.split(".")[1], counted)
from gated_backfill.common.cleanup.cleanup import clean
from gated_backfill.common.cleanup.restore import restore
from gated_backfill.common.cleanup.stale_rows import local_today
from gated_backfill.common.model.tables import parse_dated_tables
site = _open_cleanup_context(Settings(home=Path(home)))
if doing == "clean":
    tables = parse_dated_tables("nba_analytics.upcoming_player_game_context")
    clean(site, tables, today=local_today(site.settings), days=7, max_share=1.0)
else:
    restore(doing, site)
"""


@pytest.fixture(autouse=True)
def _noon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKFILL_TIMEZONE", NOON_ZONE)


def environment(lab: Lab) -> dict[str, str]:
    """Those of a process for which it is the same day as here."""
    return {**lab.environment(), "BACKFILL_TIMEZONE": NOON_ZONE}


def die(lab: Lab, at: str, last: int, doing: str = "clean") -> None:
    command = [prepared_programs() / "python-c", CLEANUP_THAT_DIES, str(lab.home), at, str(last), doing, "SIGKILL"]
    died = subprocess.run(command, env=environment(lab), capture_output=True, check=False, text=True)
    assert died.returncode == -9, died.stdout + died.stderr


@contextmanager
def frozen(lab: Lab, at: str, last: int, doing: str = "clean") -> Generator[None]:
    """A process is frozen at that call, for longer than its lease, and wakes up at the end of the block."""
    command = [prepared_programs() / "python-c", CLEANUP_THAT_DIES, str(lab.home), at, str(last), doing, "SIGSTOP"]
    errors = lab.home / "frozen.txt"
    with errors.open("w") as output:
        process = subprocess.Popen(command, env=environment(lab), stdout=subprocess.PIPE, stderr=output, text=True)
    lab.running.append(process)
    assert process.stdout is not None
    pid = process.stdout.readline()
    assert pid, errors.read_text()
    program = psutil.Process(int(pid))
    until(lambda: program.status() == psutil.STATUS_STOPPED, "the program to be frozen")
    lab.end_cleanup_leases()
    yield
    program.resume()
    assert process.wait(60) == 0 or "has taken over operation" in errors.read_text()


def site_of(lab: Lab) -> CleanupContext:
    return CleanupContext(settings=lab.settings, ledger=lab.ledger, warehouse=lab.context.warehouse, by="the next")


def cleaned(lab: Lab) -> CleanupReport:
    report = clean(site_of(lab), [TABLE], today=TODAY, days=7, max_share=1.0)
    assert (report.failed, report.busy, report.refused) == ([], [], [])
    return report


def filled(lab: Lab) -> dict[str, bytes]:
    for n, day in enumerate([*STALE, *FRESH]):
        lab.upcoming(day, players(3 + n))
    return lab.table_bytes(UPCOMING)


def assert_finished_and_restorable(lab: Lab, before: dict[str, bytes]) -> None:
    """The next cleanup leaves no stale row and no unfinished operation, and what was deleted comes back whole."""
    cleaned(lab)
    ledger = lab.ledger
    assert ledger.cleanups.list_unfinished_cleanups() == []
    after = lab.table_bytes(UPCOMING)
    assert (len(after), after.items() <= before.items()) == (len(FRESH), True)
    (deleted,) = ledger.cleanups.list_cleanups(states=[CleanupState.DELETED])
    assert (deleted.rows, deleted.dates, deleted.error) == (3 + 4 + 5, 3, None)
    restore(deleted.id, site_of(lab))
    assert lab.table_bytes(UPCOMING) == before


@pytest.mark.parametrize(
    ("at", "last", "state", "left"),
    [
        pytest.param("LocalWarehouse.back_up", 1, CleanupState.PLANNED, 5, id="before-its-backup"),
        pytest.param("LocalWarehouse._back_up_date", 2, CleanupState.PLANNED, 5, id="in-the-middle-of-its-backup"),
        pytest.param("LocalWarehouse.read_backup", 1, CleanupState.PLANNED, 5, id="before-the-backup-is-verified"),
        pytest.param("CleanupStore.move_cleanup", 1, CleanupState.PLANNED, 5, id="before-the-backup-is-recorded"),
        pytest.param("LocalWarehouse.delete_backed_up", 1, CleanupState.BACKED_UP, 5, id="before-it-deletes"),
        pytest.param("LocalWarehouse._remove_folder", 2, CleanupState.BACKED_UP, 3, id="in-the-middle-of-deleting"),
        pytest.param("CleanupStore.move_cleanup", 2, CleanupState.BACKED_UP, 2, id="before-the-deletion-is-recorded"),
    ],
)
def test_the_next_cleanup_finishes_it(lab: Lab, at: str, last: int, state: CleanupState, left: int) -> None:
    before = filled(lab)
    die(lab, at, last)
    (unfinished,) = lab.ledger.cleanups.list_unfinished_cleanups()
    assert (unfinished.state, len(lab.table_bytes(UPCOMING))) == (state, left)

    assert_finished_and_restorable(lab, before)

    kept = [one.name for one in (lab.home / "warehouse" / ".cleanup").iterdir()]
    assert kept == [one.id for one in lab.ledger.cleanups.list_cleanups() if one.state is CleanupState.RESTORED]


@pytest.mark.parametrize(
    ("at", "last"),
    [
        pytest.param("BigQueryWarehouse.read_backup", 1, id="before-the-backup-is-verified"),
        pytest.param("CleanupStore.move_cleanup", 2, id="before-the-deletion-is-recorded"),
    ],
)
def test_the_next_cleanup_finishes_it_in_bigquery(bigquery_lab: Lab, at: str, last: int) -> None:
    before = filled(bigquery_lab)
    die(bigquery_lab, at, last)

    assert_finished_and_restorable(bigquery_lab, before)


def test_rows_written_after_the_death_survive_and_the_deleted_ones_are_kept(lab: Lab) -> None:
    before = filled(lab)
    die(lab, "LocalWarehouse._remove_folder", 2)
    gone = next(day for day in STALE if not lab.published(UPCOMING, day))
    lab.upcoming(gone, players(1))

    (operation,) = cleaned(lab).done[:1]

    assert f"1 date(s) were written by another program after their backup and were not deleted: {gone}" in str(
        operation.error
    )
    again = lab.ledger.cleanups.list_cleanups(states=[CleanupState.DELETED])
    assert sorted(one.dates for one in again) == [1, 2]  # the new rows are stale too, and an operation of their own
    for one in again:
        restore(one.id, site_of(lab), leave_written=one.dates == 2)
    put_back = lab.table_bytes(UPCOMING)
    assert {name: rows for name, rows in put_back.items() if str(gone) not in name} == {
        name: rows for name, rows in before.items() if str(gone) not in name
    }


@pytest.mark.parametrize(
    ("at", "last"),
    [
        pytest.param("LocalWarehouse._prepare_restore", 2, id="while-it-is-prepared"),
        pytest.param("LoadingFolder.carry_out", 1, id="before-it-takes-effect"),
        pytest.param("CleanupStore.move_cleanup", 2, id="before-it-is-recorded"),
    ],
)
def test_a_restoration_that_was_killed_is_completed_by_the_next_cleanup(lab: Lab, at: str, last: int) -> None:
    before = filled(lab)
    cleaned(lab)
    (operation,) = lab.ledger.cleanups.list_cleanups()
    die(lab, at, last, operation.id)

    clean(site_of(lab), [TABLE], today=TODAY, days=7, max_share=1.0, skip_restored=True)

    assert lab.table_bytes(UPCOMING) == before
    assert lab.ledger.cleanups.get_cleanup(operation.id).state is CleanupState.RESTORED


STEPS = [
    pytest.param("Warehouse.back_up", 1, id="before-its-backup"),
    pytest.param("Warehouse.read_backup", 1, id="before-the-backup-is-verified"),
    pytest.param("CleanupStore.move_cleanup", 1, id="before-the-backup-is-recorded"),
    pytest.param("CleanupStore.renew_cleanup", 1, id="before-it-renews-its-lease"),
    pytest.param("Warehouse.delete_backed_up", 1, id="before-it-deletes"),
    pytest.param("CleanupStore.move_cleanup", 2, id="before-the-deletion-is-recorded"),
]


@pytest.mark.parametrize(("at", "last"), STEPS)
def test_a_cleanup_that_was_frozen_deletes_nothing_that_was_restored_since(lab: Lab, at: str, last: int) -> None:
    before = filled(lab)

    with frozen(lab, at.replace("Warehouse", "LocalWarehouse"), last):
        assert_finished_and_restorable(lab, before)

    assert lab.table_bytes(UPCOMING) == before
    assert lab.ledger.cleanups.list_unfinished_cleanups() == []
    with_backup = {one.id for one in lab.ledger.cleanups.list_cleanups() if one.backup is not None}
    assert {folder.name for folder in (lab.home / "warehouse" / ".cleanup").iterdir()} <= with_backup


@pytest.mark.parametrize(("at", "last"), STEPS[-2:])
def test_in_bigquery_neither(bigquery_lab: Lab, at: str, last: int) -> None:
    before = filled(bigquery_lab)

    with frozen(bigquery_lab, at.replace("Warehouse", "BigQueryWarehouse"), last):
        assert_finished_and_restorable(bigquery_lab, before)

    assert bigquery_lab.table_bytes(UPCOMING) == before


@pytest.mark.parametrize(
    ("at", "last"),
    [
        pytest.param("CleanupStore.renew_cleanup", 1, id="before-it-renews-its-lease"),
        pytest.param("LocalWarehouse.restore_backup", 1, id="before-it-restores"),
        pytest.param("CleanupStore.move_cleanup", 2, id="before-it-is-recorded"),
    ],
)
def test_a_restore_that_was_frozen_brings_nothing_back_that_was_deleted_since(lab: Lab, at: str, last: int) -> None:
    filled(lab)
    cleaned(lab)
    after = lab.table_bytes(UPCOMING)
    (operation,) = lab.ledger.cleanups.list_cleanups()

    with frozen(lab, at, last, operation.id):
        restore(operation.id, site_of(lab))
        cleaned(lab)

    assert lab.table_bytes(UPCOMING) == after
    assert lab.ledger.cleanups.get_cleanup(operation.id).state is CleanupState.RESTORED
