"""What somebody orders of a run on its way: to pause, to go on, to stop. An order and its record are one transaction.

An order is obeyed where work is begun: no date is claimed and no window opened unless the run is running, which the
ledger itself checks. Whoever holds a date asks between its steps.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import date
from enum import Enum

from sqlalchemy import Connection, and_, select, update

from gated_backfill.common.ledger.database import LedgerStore
from gated_backfill.common.ledger.rows import (
    CLAIMED_BY_OWNER,
    cancelled_columns,
    change_run_state,
    date_transition,
    lock_run_state,
)
from gated_backfill.common.ledger.states import ENDED_DATES, ENDED_RUNS, DateState, RunAction, RunState, WindowState
from gated_backfill.common.ledger.stores.actions import (
    cancellation_reason,
    describe_cancellation,
    has_discard_request,
    record_action,
)
from gated_backfill.common.ledger.tables import run_dates, runs, windows
from gated_backfill.common.process.clock import utcnow

HELD = select(run_dates.c.day, runs.c.state).join(runs, runs.c.id == run_dates.c.run_id).where(CLAIMED_BY_OWNER)
UNBEGUN = (DateState.PENDING, DateState.QUEUED)
UNPUBLISHED_STATES = (*UNBEGUN, DateState.PROCESSING, DateState.STAGED)


@dataclass(frozen=True, kw_only=True)
class Cancellation:
    """What an order to stop did with the dates of its run. What is in none of these is finished."""

    not_started: int  #: no worker had taken them up
    interrupted: int  #: were being processed
    discarded: tuple[date, ...]  #: were staged


class Instruction(Enum):
    """What the worker that holds a date is to do next."""

    CONTINUE = "go on"
    REQUEUE = "give back"  #: to be built once the run goes on
    CANCEL = "drop"  #: not to be built by this run


def decide_instruction(run: RunState, *, has_begun: bool, discard: bool) -> Instruction:
    """What to do with a date in hand. `begun`: something costly was done for it, which would have to be done again."""
    if run is RunState.RUNNING:
        return Instruction.CONTINUE
    if run is RunState.PAUSED:
        return Instruction.CONTINUE if has_begun else Instruction.REQUEUE
    if run is RunState.CANCELLING:
        return Instruction.CANCEL if discard else Instruction.CONTINUE
    return Instruction.CANCEL


class OrderStore(LedgerStore):
    """Orders to runs, and what those who work for a run are to do."""

    def pause_run(self, run_id: str, *, by: str, reason: str | None = None) -> bool:
        """Have nothing begun any more until the run is resumed; False when it is neither planned nor running."""
        with self._write() as connection:
            paused = change_run_state(connection, run_id, [RunState.PLANNED, RunState.RUNNING], RunState.PAUSED)
            if paused:
                record_action(connection, run_id, RunAction.PAUSED, by=by, reason=reason)
        return paused

    def resume_run(self, run_id: str, *, by: str, reason: str | None = None) -> bool:
        """Let a paused run go on; False when it is not paused. What was consumed meanwhile has to be sent again."""
        with self._write() as connection:
            resumed = change_run_state(connection, run_id, [RunState.PAUSED], RunState.RUNNING)
            if resumed:
                record_action(connection, run_id, RunAction.RESUMED, by=by, reason=reason)
        return resumed

    def cancel_run(
        self, run_id: str, *, by: str, reason: str | None = None, discard: bool = False, now: bool = False
    ) -> Cancellation | None:
        """Stop a run for good: dates that nobody has begun are cancelled and free for other runs at once.

        What was begun is finished. With `now`, dates that are being processed are cancelled too; with `discard`, dates
        that are staged and that no gate has judged. A window is closed when that leaves nothing of it to finish; when
        none is left open, `finish_run` ends the run. Returns None, and changes nothing, for a run that has ended. May
        be repeated, also to stop more than before.
        """
        why = describe_cancellation(by, reason)
        with self._write() as connection:
            if lock_run_state(connection, run_id) in ENDED_RUNS:
                return None
            connection.execute(update(runs).where(runs.c.id == run_id).values(state=RunState.CANCELLING.value))
            _close(connection, run_id, WindowState.PENDING)
            discarded = _discard(connection, run_id, why) if discard else ()
            stopped = Cancellation(
                not_started=_drop(connection, run_id, UNBEGUN, why),
                interrupted=_drop(connection, run_id, [DateState.PROCESSING], why) if now else 0,
                discarded=discarded,
            )
            _close(connection, run_id, WindowState.OPEN)
            details = {"discard": discard, "now": now}
            record_action(connection, run_id, RunAction.CANCELLED, by=by, reason=reason, details=details)
        return stopped

    def abandon_run(self, run_id: str, *, by: str, reason: str) -> bool:
        """End a run whose workers are gone, or told to stop, as cancelled; False when it has ended already.

        Every date whose rows nobody sees yet is cancelled with it, and all its dates are free.
        """
        with self._write() as connection:
            if lock_run_state(connection, run_id) in ENDED_RUNS:
                return False
            _drop(connection, run_id, UNPUBLISHED_STATES, describe_cancellation(by, reason))
            active = [state for state in RunState if state not in ENDED_RUNS]
            change_run_state(connection, run_id, active, RunState.CANCELLED)
            record_action(connection, run_id, RunAction.CANCELLED, by=by, reason=reason)
        return True

    def confirm_claims(self, run_id: str, days: Collection[date], owner: str) -> frozenset[date]:
        """With which of the dates that it holds a worker is to begin; it holds the others no longer.

        Those of a paused run are queued again, as if this attempt had not been. See `leave_dates` for what was begun.
        """
        which = {"run": run_id, "days": list(days), "owner": owner}
        with self._read() as connection:  # which keeps nobody from writing; most of the time there is no order
            found = connection.execute(HELD, which).all()
        if all(row.state == RunState.RUNNING.value for row in found):
            return frozenset(row.day for row in found)
        with self._write() as connection:
            # A run that is resumed meanwhile waits for this: it finds the dates either given back, or in hand.
            run = lock_run_state(connection, run_id)
            order = decide_instruction(run, has_begun=False, discard=has_discard_request(connection, run_id))
            if order is Instruction.CONTINUE:
                return frozenset(row.day for row in connection.execute(HELD, which))
            if order is Instruction.REQUEUE:
                values = date_transition(DateState.PROCESSING, DateState.QUEUED, {"attempt": run_dates.c.attempt - 1})
            else:
                values = cancelled_columns(cancellation_reason(connection, run_id))
            connection.execute(update(run_dates).where(CLAIMED_BY_OWNER).values(values), which)
        return frozenset()


def _drop(connection: Connection, run_id: str, states: Sequence[DateState], why: str) -> int:
    these = and_(run_dates.c.run_id == run_id, run_dates.c.state.in_([state.value for state in states]))
    return connection.execute(update(run_dates).where(these).values(cancelled_columns(why))).rowcount


def _discard(connection: Connection, run_id: str, why: str) -> tuple[date, ...]:
    """Cancel what is staged in windows that no gate holds.

    What a gate has judged is left to the next one: that gate may have published it before something stopped it.
    """
    open_ones = select(windows.c.number).where(windows.c.run_id == run_id, windows.c.state == WindowState.OPEN.value)
    numbers = connection.execute(open_ones.order_by(windows.c.number).with_for_update()).scalars().all()
    these = and_(
        run_dates.c.run_id == run_id,
        run_dates.c.window.in_(numbers),
        run_dates.c.state == DateState.STAGED.value,
        run_dates.c.verdict.is_(None),
    )
    days = connection.execute(select(run_dates.c.day).where(these).order_by(run_dates.c.day).with_for_update())
    found = tuple(days.scalars())
    connection.execute(update(run_dates).where(these).values(cancelled_columns(why)))
    return found


def _close(connection: Connection, run_id: str, state: WindowState) -> None:
    """Close the windows of that state of which nothing is to be finished; of those not opened, all."""
    these = and_(windows.c.run_id == run_id, windows.c.state == state.value)
    if state is WindowState.OPEN:
        unfinished = select(run_dates.c.window).where(
            run_dates.c.run_id == run_id, run_dates.c.state.not_in([one.value for one in ENDED_DATES])
        )
        these = and_(these, windows.c.number.not_in(unfinished))
    connection.execute(update(windows).where(these).values(state=WindowState.CLOSED.value, closed_at=utcnow()))
