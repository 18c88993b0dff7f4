"""Random schedules of cleanups and restores: kills, freezes, other writers, old copies of the ledger, a wrong clock.

Rows that the tool removed are in the table or in a backup that can be put back; nothing has an effect after its lease
was taken over; repeating ends. Tools that are broken on purpose are noticed.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest

from gated_backfill.common.cleanup import expiry, restore, unrecorded
from gated_backfill.common.cleanup.cleanup import clean
from gated_backfill.common.cleanup.operation import CleanupContext, verify_backup
from gated_backfill.common.cleanup.stale_rows import local_today
from gated_backfill.common.config.settings import Settings
from gated_backfill.common.errors import BackfillError
from gated_backfill.common.ledger.stores.cleanups import STATES_WITH_BACKUP, CleanupOperation
from gated_backfill.common.model.tables import DatedTable, TableName
from gated_backfill.common.process.clock import utcnow
from gated_backfill.common.warehouse.local.warehouse import LocalWarehouse
from tests.lab import UPCOMING, Lab, LocalTables, made_lab, players

TABLE = DatedTable(name=TableName.parse(UPCOMING))
TODAY = local_today(Settings())  # pyright: ignore[reportCallIssue]
STALE = [TODAY - timedelta(days=n) for n in (30, 9, 8)]
SEEDS = range(16)
MOST_SEEDS = 60  #: in which a mutant must be noticed
ACTIONS = 7  #: of a schedule

LEDGER_CALLS = ("open_cleanup", "move_cleanup", "renew_cleanup", "claim_cleanup", "mark_backup_dropped")
WAREHOUSE_CALLS = ("back_up", "read_backup", "delete_backed_up", "restore_backup", "drop_backup", "_remove_folder")


class Killed(BaseException):
    """What nothing catches, as nothing catches a kill."""


class Violation(Exception):
    pass


@dataclass
class World:
    """A table with stale rows, and what the tool has removed from it."""

    lab: Lab
    random: Random
    removed: dict[tuple[date, str], None] = field(default_factory=dict)  #: day and fingerprint, oldest first
    written: int = 10  #: so many rows the next other writer writes: no two write the same
    story: list[str] = field(default_factory=list)

    def context(self, owner: str = "") -> CleanupContext:
        named = {"owner": owner} if owner else {}
        return CleanupContext(
            settings=self.lab.settings, ledger=self.lab.ledger, warehouse=self.lab.context.warehouse, by="x", **named
        )

    def contents(self) -> dict[date, str]:
        return self.lab.context.warehouse.fingerprints(TABLE.name, TABLE.date_column, STALE)

    def operations(self) -> list[CleanupOperation]:
        return self.lab.ledger.cleanups.list_cleanups()

    def clean(self, owner: str = "") -> None:
        clean(self.context(owner), [TABLE], today=TODAY, days=7, max_share=1.0)

    def restore(self, owner: str = "") -> None:
        operations = [operation for operation in self.operations() if operation.state in STATES_WITH_BACKUP]
        if operations:
            restore.restore(self.random.choice(operations).id, self.context(owner), leave_written=True)

    def expire_with_wrong_clock(self) -> None:
        ahead = timedelta(days=self.random.choice([0, 40]))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(expiry, "utcnow", lambda: utcnow() + ahead)
            expiry.remove_expired_backups(self.context(), [])

    @contextmanager
    def watching(self) -> Generator[None]:
        """Note what the tool removes in the block, in which nobody else writes."""
        before = self.contents()
        yield
        after = self.contents()
        self.removed |= {(day, before[day]): None for day in STALE if before[day] not in ("absent", after[day])}


# -- actions --------------------------------------------------------------------------------------------------------


def cleanup(world: World) -> None:
    with world.watching(), suppress(BackfillError):
        world.clean()


def put_back(world: World) -> None:
    with world.watching(), suppress(BackfillError):
        world.restore()


def expire(world: World) -> None:
    with world.watching():
        world.expire_with_wrong_clock()


def killed(world: World) -> None:
    """One of the operations dies before or after one of its calls."""
    action = world.random.choice([world.clean, world.clean, world.restore, world.expire_with_wrong_clock])
    ledger, warehouse = world.lab.ledger.cleanups, world.lab.context.warehouse
    owner, name = world.random.choice(
        [(ledger, name) for name in LEDGER_CALLS] + [(warehouse, name) for name in WAREHOUSE_CALLS]
    )
    real, left, after = getattr(owner, name), [world.random.randint(1, 3)], world.random.random() < 0.5

    def dies(*arguments: Any, **named: Any) -> Any:
        left[0] -= 1
        answer = real(*arguments, **named) if left[0] or after else None
        if not left[0]:
            raise Killed
        return answer

    world.story.append(f"  {action.__name__} dies {'after' if after else 'before'} {name}")
    with world.watching(), pytest.MonkeyPatch.context() as patch, suppress(Killed, BackfillError):
        patch.setattr(owner, name, dies)
        action()


def frozen(world: World) -> None:
    """A cleanup or restore is frozen in the call that changes rows, for longer than its lease."""
    warehouse = world.lab.context.warehouse
    action, name = world.random.choice([(world.clean, "delete_backed_up"), (world.restore, "restore_backup")])
    real = getattr(warehouse, name)

    def sleeps(backup: Any, *arguments: Any, **named: Any) -> Any:
        patch.undo()
        world.lab.end_cleanup_leases()
        for _ in range(world.random.randint(1, 3)):
            act(world, world.random.choice([cleanup, cleanup, put_back, others_delete]))
        before, (operation,) = world.contents(), [one for one in world.operations() if one.id == backup.id]
        try:
            with world.watching():
                return real(backup, *arguments, **named)
        finally:
            if operation.generation > named["generation"] and world.contents() != before:
                raise Violation("a late effect")

    world.story.append(f"  {action.__name__} is frozen")
    with pytest.MonkeyPatch.context() as patch, suppress(BackfillError):
        patch.setattr(warehouse, name, sleeps)
        action("elsewhere:1:1")


def others_write(world: World) -> None:
    world.written += 1
    world.lab.upcoming(world.random.choice(STALE), players(world.written))


def others_delete(world: World) -> None:
    day = world.random.choice(STALE)
    folder = world.lab.home / "warehouse" / "nba_analytics" / TABLE.name.table
    shutil.rmtree(folder / f"{TABLE.date_column}={day}", ignore_errors=True)


def copy_ledger(world: World) -> None:
    _copy(world.lab.home / "ledger.db", world.lab.home / "ledger.copy")


def put_ledger_back(world: World) -> None:
    if (world.lab.home / "ledger.copy").exists():
        _copy(world.lab.home / "ledger.copy", world.lab.home / "ledger.db")


def _copy(source: Path, target: Path) -> None:
    with closing(sqlite3.connect(source)) as opened, closing(sqlite3.connect(target)) as written:
        opened.backup(written)


def ledger_copied_in_between(world: World) -> None:
    """The nightly copy is made in the middle of a cleanup, and is put back later."""
    warehouse = world.lab.context.warehouse
    name = world.random.choice(["back_up", "read_backup", "delete_backed_up"])
    real = getattr(warehouse, name)

    def copied(*arguments: Any, **named: Any) -> Any:
        copy_ledger(world)
        return real(*arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(warehouse, name, copied)
        cleanup(world)


WEIGHTS: dict[Callable[[World], None], int] = {
    cleanup: 3,
    put_back: 3,
    expire: 2,
    killed: 5,
    frozen: 3,
    others_write: 3,
    others_delete: 1,
    copy_ledger: 1,
    put_ledger_back: 3,
    ledger_copied_in_between: 2,
}


def act(world: World, action: Callable[[World], None]) -> None:
    world.story.append(action.__name__)
    action(world)


# -- what must hold -------------------------------------------------------------------------------------------------


def check(world: World) -> None:
    """Raise `Violation` if removed rows are nowhere, or an operation does not end."""
    for _ in range(3):
        act(world, cleanup)
    if unfinished := world.lab.ledger.cleanups.list_unfinished_cleanups():
        raise Violation(f"{unfinished[0].id} does not end")
    for backup in unrecorded.list_unknown_backups(world.context()):
        unrecorded.find_operation(backup.id, world.context())
    contents = world.contents()
    for day, fingerprint in world.removed:
        if contents[day] != fingerprint:
            _check_restorable(world, day, fingerprint)


def _check_restorable(world: World, day: date, fingerprint: str) -> None:
    folder = world.lab.home / "warehouse" / "nba_analytics" / TABLE.name.table
    for operation in world.operations():
        backup_date = operation.kept.get(day)
        if operation.state in STATES_WITH_BACKUP and backup_date and backup_date.fingerprint == fingerprint:
            shutil.rmtree(folder / f"{TABLE.date_column}={day}", ignore_errors=True)
            with suppress(BackfillError):
                verify_backup(operation, world.context())
                restore.restore(operation.id, world.context(), leave_written=True)
            if world.contents()[day] == fingerprint:
                return
    raise Violation(f"rows of {day} that were removed are nowhere")


def run_schedule(seed: int, folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        labs = made_lab(folder, patch, LocalTables(folder / "home" / "warehouse"))
        world = World(lab=next(labs), random=Random(seed))
        try:
            for number, day in enumerate(STALE):
                world.lab.upcoming(day, players(3 + number))
            for action in world.random.choices(list(WEIGHTS), weights=list(WEIGHTS.values()), k=ACTIONS):
                act(world, action)
            check(world)
        except Violation as exc:
            story = "\n".join(world.story)
            raise Violation(f"seed {seed}: {exc}\n{story}") from exc
        finally:
            next(labs, None)


@pytest.mark.parametrize("seed", SEEDS)
def test_no_rows_are_lost_and_all_ends(tmp_path: Path, seed: int) -> None:
    run_schedule(seed, tmp_path)


# -- mutants --------------------------------------------------------------------------------------------------------


def believe_the_ledger(patch: pytest.MonkeyPatch) -> None:
    """What the ledger has as planned has deleted nothing."""
    patch.setattr(unrecorded, "_read_any_backup", lambda *_: ({}, False))


def ignore_the_fencing_token(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(LocalWarehouse, "_fence", lambda *_: None)


def believe_the_clock(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(expiry, "is_confirmed_expired", lambda *_: True)


def restore_once(patch: pytest.MonkeyPatch) -> None:
    """What was restored once, also in part, is not restored again."""
    real = restore.check_restorable

    def check_restorable(operation: CleanupOperation, *arguments: Any, **named: Any) -> None:
        if operation.restored_at is not None:
            raise BackfillError("was restored already")
        real(operation, *arguments, **named)

    patch.setattr(restore, "check_restorable", check_restorable)


@pytest.mark.parametrize(
    ("break_tool", "first_seed"),
    [(believe_the_ledger, 2), (ignore_the_fencing_token, 3), (believe_the_clock, 14), (restore_once, 0)],
)
def test_a_cleanup_that_is_broken_on_purpose_is_noticed(
    tmp_path: Path, break_tool: Callable[[pytest.MonkeyPatch], None], first_seed: int
) -> None:
    for seed in range(first_seed, first_seed + MOST_SEEDS):
        with pytest.MonkeyPatch.context() as patch:
            break_tool(patch)
            try:
                run_schedule(seed, tmp_path / str(seed))
            except Violation:
                return
    pytest.fail(f"not noticed in {MOST_SEEDS} schedules")
