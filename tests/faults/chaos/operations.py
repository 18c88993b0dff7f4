"""What a user does after the run, under faults: undo, cleanup and restore, each again until it says that it is done."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.faults.chaos.faults import shift_clock
from tests.faults.chaos.invariants import (
    Violation,
    checkpointed_by,
    late_effects,
    late_effects_on_old_rows,
    not_cleaned,
    not_undone,
    removed_old_rows,
)
from tests.faults.chaos.kept import list_restorable, list_unfinished, lost_old_rows
from tests.faults.chaos.points import NONE, OPERATIONS
from tests.faults.chaos.processes import prepare, producer_process
from tests.faults.chaos.schedule import CLEANUP, PRODUCER, UNDO
from tests.faults.chaos.shapes import Day

if TYPE_CHECKING:
    from tests.faults.chaos.run import Attempt
    from tests.faults.chaos.stack import Stack

OLD_TABLE = "chaos.old"
CLEAN = ["cleanup", "--table", OLD_TABLE, "--allow-large", "--yes"]
PATIENCE_SECONDS = 3.0  #: after which a user gives a command again that has not ended
LONGEST_SECONDS = {"local": 45.0, "bigquery": 120.0}  #: within which an operation must be done
AGAIN_SECONDS = 0.3
LATE_SECONDS = 1.5  #: that a process may need for its late effects
MONTH_SECONDS = 40 * 24 * 3600.0
DONE = ("was undone already", "was restored already", "has deleted nothing", "was abandoned")
LEAVE = "--leave-written"
FINISH = "the next `backfill cleanup` finishes it"
UNFINISHED = "ends the undo without them"  #: that is, the same command again


class Answer(NamedTuple):
    """What a command has answered so far."""

    code: int | None  #: None if it has not ended
    text: str

    @property
    def names_others(self) -> bool:
        """Whether other programs have written dates since, which can be left as they are."""
        return "written" in self.text or "hold other rows" in self.text

    @property
    def is_done(self) -> bool:
        if UNFINISHED in self.text:
            return False
        return self.code in (0, 3) or (self.code is not None and any(words in self.text for words in DONE))


class Operations:
    """The operations of one schedule. Each ends as soon as something does not hold."""

    def __init__(self, attempt: Attempt, stack: Stack) -> None:
        self._attempt = attempt
        self._stack = stack
        self._schedule = attempt.schedule
        self._launched = 0

    def carry_out(self) -> None:
        self._attempt.counters.arm(OPERATIONS)
        if self._schedule.a_month_later:
            self._retention()
        if self._schedule.undo and self._goes_on:
            self._undo()
        if self._schedule.cleanup and self._goes_on:
            self._clean()
        self._attempt.counters.arm(NONE)
        self._stack.thaw()

    @property
    def _goes_on(self) -> bool:
        return not self._attempt.result.violations

    # -- undo --

    def _undo(self) -> None:
        before = self._attempt.looks[-1]
        runs = sorted({checkpoint["run_id"] for checkpoint in before.checkpoints.values()})
        if not runs:
            return
        days = checkpointed_by(runs[-1], self._schedule, before)
        self._until_done(UNDO, ["undo", runs[-1], "--yes"])
        self._check_undone(runs[-1], days)
        if self._schedule.rebuild and self._goes_on:
            self._rebuild(days)
        if self._goes_on and self._stack.thaw():
            self._check_late_effects(runs[-1], days)

    def _check_undone(self, run: str, days: Sequence[Day]) -> None:
        seen = self._attempt.settled(self._stack, final=None)
        self._attempt.violated(list(not_undone(run, days, self._schedule, seen)))

    def _rebuild(self, days: Sequence[Day]) -> None:
        """An ordinary run leaves undone dates alone; one that is told to builds them."""
        undone = self._attempt.looks[-1]
        self._run("ordinary", [])
        seen = self._attempt.settled(self._stack, final=None)
        self._attempt.violated(list(late_effects(days, undone, seen, "an ordinary run rebuilt undone dates")))
        if self._goes_on:
            self._run("rebuild", ["--reprocess", "undone"])
            self._attempt.settled(self._stack, final=True)

    def _run(self, name: str, more: list[str]) -> None:
        self._attempt.await_restarts(self._stack)
        self._launch(name, self._attempt.command() + more, PRODUCER)
        self._attempt.ended(self._stack, name)

    def _check_late_effects(self, run: str, days: Sequence[Day]) -> None:
        """What was frozen all the time goes on: it must have no effect."""
        earlier = self._attempt.looks[-1]
        self._attempt.wait(self._stack, LATE_SECONDS)
        self._attempt.await_restarts(self._stack)
        if not self._schedule.rebuild:
            self._check_undone(run, days)
        seen = self._attempt.settled(self._stack, final=True if self._schedule.rebuild else None)
        effects = late_effects(days, earlier, seen, "what was frozen beyond its lease had an effect")
        self._attempt.violated(list(effects))

    # -- cleanup --

    def _clean(self) -> None:
        self._clean_until_finished()
        if self._schedule.put_back == CLEANUP and self._goes_on and put_ledger_back(self._attempt, self._stack):
            self._clean_until_finished()
        if self._schedule.a_month_later and self._goes_on:
            self._retention()
        for operation in self._attempt.call(lambda: list_restorable(self._attempt.settings())):
            if self._goes_on:
                self._until_done(CLEANUP, ["cleanup", "restore", operation, "--yes"])
        earlier = self._attempt.settled(self._stack, final=None)
        if self._goes_on and self._stack.thaw():
            self._attempt.wait(self._stack, LATE_SECONDS)
            self._attempt.await_restarts(self._stack)
            seen = self._attempt.settled(self._stack, final=None)
            self._attempt.violated(list(late_effects_on_old_rows(earlier, seen)))
        if self._goes_on:
            self._check_nothing_lost()

    def _clean_until_finished(self) -> None:
        """Clean up until no operation is left that another process has begun: its lease has to end first."""
        deadline = time.monotonic() + LONGEST_SECONDS[self._schedule.warehouse]
        self._until_done(CLEANUP, CLEAN)
        while unfinished := self._attempt.call(lambda: list_unfinished(self._attempt.settings())):
            if time.monotonic() > deadline or not self._goes_on:
                facts = ", ".join(unfinished)
                self._attempt.violated([Violation(invariant="a cleanup, repeated, does not end", facts=facts)])
                return
            self._attempt.wait(self._stack, AGAIN_SECONDS)
            self._until_done(CLEANUP, CLEAN)
        seen = self._attempt.settled(self._stack, final=None)
        self._attempt.violated(list(not_cleaned(seen)))

    def _check_nothing_lost(self) -> None:
        removed = removed_old_rows(self._attempt.looks[-1])
        for day, rows in self._attempt.call(lambda: lost_old_rows(self._attempt.settings(), removed)):
            facts = f"{OLD_TABLE}, {day}: {len(rows)} row(s) {rows[:2]}"
            self._attempt.violated([Violation(invariant="removed rows can't be put back", facts=facts)])

    def _retention(self) -> None:
        """Retention by a clock that is set ahead by more than everything is kept: it must remove nothing."""
        self._stack.launch(
            name := self._name("retention"),
            partial(_retention_process, *self._prepared(faults=False)),
            self._attempt.folder / f"{name}.log",
        )
        self._attempt.await_restarts(self._stack)
        if self._stack.code(name) != 0:
            text = (self._attempt.folder / f"{name}.log").read_text()[-500:]
            self._attempt.violated([Violation(invariant="retention fails", facts=text)])

    # -- commands --

    def _until_done(self, role: str, words: list[str]) -> None:
        """Give the command again until it says that it is done, as its user does."""
        deadline = time.monotonic() + LONGEST_SECONDS[self._schedule.warehouse]
        at_once = 2 if self._schedule.twice else 1
        answers: list[Answer] = []
        while time.monotonic() < deadline:
            answers = self._give(words, role, at_once)
            at_once = 1
            if any(answer.is_done for answer in answers):
                self._attempt.await_restarts(self._stack)
                return
            if any(FINISH in answer.text for answer in answers):
                self._give(CLEAN, CLEANUP, 1)
            if words != CLEAN and LEAVE not in words and any(answer.names_others for answer in answers):
                words = [*words, LEAVE]
            self._attempt.wait(self._stack, AGAIN_SECONDS)
        facts = f"backfill {' '.join(words)}: {'; '.join(f'{answer.code}: {answer.text[-400:]}' for answer in answers)}"
        self._attempt.violated([Violation(invariant="an operation, repeated, does not end", facts=facts)])

    def _give(self, words: list[str], role: str, at_once: int) -> list[Answer]:
        """Give the command, so many times at once; return what is answered before patience ends."""
        names = [self._name("-".join([role, *words[1:2]] if "restore" in words else [role])) for _ in range(at_once)]
        for name in names:
            self._launch(name, words, role)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while set(names) & set(self._stack.at_work) and time.monotonic() < deadline:
            self._stack.tick()
        return [Answer(self._stack.code(name), (self._attempt.folder / f"{name}.log").read_text()) for name in names]

    def _launch(self, name: str, words: list[str], role: str) -> None:
        body = partial(producer_process, words, *self._prepared(faults=role != PRODUCER), role=role)
        self._stack.launch(name, body, self._attempt.folder / f"{name}.log")

    def _prepared(self, *, faults: bool) -> tuple[Any, ...]:
        schedule, place, environment, *others = self._attempt.prepared
        environment = environment | {"BACKFILL_CLEANUP_TABLES": f"{OLD_TABLE}:day"}
        return (schedule if faults else replace(schedule, faults=()), place, environment, *others)

    def _name(self, words: str) -> str:
        self._launched += 1
        return f"{words}-{self._launched}"


def put_ledger_back(attempt: Attempt, stack: Stack) -> bool:
    """Put the older copy of the ledger in its place while everything is stopped; return whether there is one."""
    place = attempt.place
    if not place.ledger_copy.exists():
        return False
    with stack.stopped():
        for suffix in ("-wal", "-shm"):
            place.ledger.with_name(place.ledger.name + suffix).unlink(missing_ok=True)
        shutil.copy(place.ledger_copy, place.ledger)
    attempt.await_restarts(stack)
    return True


def _retention_process(*prepared: Any) -> None:
    prepare(PRODUCER, *prepared)
    shift_clock(MONTH_SECONDS)
    from gated_backfill.common.config.settings import read_settings
    from gated_backfill.worker.dependencies import open_deps
    from gated_backfill.worker.inline import InlineDispatcher
    from gated_backfill.worker.maintenance.cleanup import expire_backups
    from gated_backfill.worker.maintenance.retention import remove_old_undo_data

    deps = open_deps(read_settings(), InlineDispatcher())
    remove_old_undo_data(deps)
    expire_backups(deps)
