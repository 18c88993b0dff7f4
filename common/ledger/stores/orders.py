"""Orders to a run: pause, resume, cancel. The order and its action are written in one transaction.

An order takes effect before new work: dates are claimed and windows opened only while the run is running, which the
ledger checks. A worker that has claimed dates asks for the order between its steps.
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
    failure_columns,
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

CLAIMED_DAYS = select(run_dates.c.day, runs.c.state).join(runs, runs.c.id == run_dates.c.run_id).where(CLAIMED_BY_OWNER)
UNCLAIMED_STATES = (DateState.PENDING, DateState.QUEUED)
UNPUBLISHED_STATES = (*UNCLAIMED_STATES, DateState.PROCESSING, DateState.STAGED)
CHANGED_BEFORE_CHECKPOINT = (
    "its rows were published, but another writer changed them before they were checkpointed, and its run has ended"
)


@dataclass(frozen=True, kw_only=True)
class Cancellation:
    """Dates that a cancellation affected. All other dates of the run have ended or will be finished."""

    not_started: int  #: cancelled before a worker claimed them
    interrupted: int  #: cancelled while being processed
    discarded: tuple[date, ...]  #: cancelled after they were staged


class Instruction(Enum):
    """What a worker does next with a date it has claimed."""

    CONTINUE = "continue"
    REQUEUE = "requeue"  #: build it after the run is resumed
    CANCEL = "cancel"  #: do not build it in this run


def decide_instruction(run: RunState, *, has_begun: bool, discard: bool) -> Instruction:
    """Return what a worker does with a claimed date of a run in state `run`.

    `has_begun`: expensive work was done for the date. `discard`: the run was cancelled with `--discard`.
    """
    if run is RunState.RUNNING:
        return Instruction.CONTINUE
    if run is RunState.PAUSED:
        return Instruction.CONTINUE if has_begun else Instruction.REQUEUE
    if run is RunState.CANCELLING:
        return Instruction.CANCEL if discard else Instruction.CONTINUE
    return Instruction.CANCEL


class OrderStore(LedgerStore):
    """Orders to runs, and the check of them by workers."""

    def pause_run(self, run_id: str, *, by: str, reason: str | None = None) -> bool:
        """Start no further dates until the run is resumed; returns False if it is neither planned nor running."""
        with self._write() as connection:
            is_paused = change_run_state(connection, run_id, [RunState.PLANNED, RunState.RUNNING], RunState.PAUSED)
            if is_paused:
                record_action(connection, run_id, RunAction.PAUSED, by=by, reason=reason)
        return is_paused

    def resume_run(self, run_id: str, *, by: str, reason: str | None = None) -> bool:
        """Resume a paused run; returns False if it is not paused. Messages consumed in the pause must be sent again."""
        with self._write() as connection:
            is_resumed = change_run_state(connection, run_id, [RunState.PAUSED], RunState.RUNNING)
            if is_resumed:
                record_action(connection, run_id, RunAction.RESUMED, by=by, reason=reason)
        return is_resumed

    def cancel_run(
        self, run_id: str, *, by: str, reason: str | None = None, discard: bool = False, now: bool = False
    ) -> Cancellation | None:
        """Cancel a run: dates that no worker has claimed are cancelled and released at once, others are finished.

        `now`: cancel dates that are being processed too. `discard`: cancel staged dates without a verdict too.
        Windows without unfinished dates are closed; once all are closed, `finish_run` ends the run. May be repeated,
        also with more options. Returns None, and changes nothing, if the run has ended.
        """
        cancelled_for = describe_cancellation(by, reason)
        with self._write() as connection:
            if lock_run_state(connection, run_id) in ENDED_RUNS:
                return None
            connection.execute(update(runs).where(runs.c.id == run_id).values(state=RunState.CANCELLING.value))
            _close_windows(connection, run_id, WindowState.PENDING)
            discarded = _discard_staged(connection, run_id, cancelled_for) if discard else ()
            cancellation = Cancellation(
                not_started=_cancel_dates(connection, run_id, UNCLAIMED_STATES, cancelled_for),
                interrupted=_cancel_dates(connection, run_id, [DateState.PROCESSING], cancelled_for) if now else 0,
                discarded=discarded,
            )
            _close_windows(connection, run_id, WindowState.OPEN)
            details = {"discard": discard, "now": now}
            record_action(connection, run_id, RunAction.CANCELLED, by=by, reason=reason, details=details)
        return cancellation

    def abandon_run(self, run_id: str, *, by: str, reason: str) -> bool:
        """End a run without workers as cancelled, and release all its dates; returns False if it has ended already.

        Dates that are not published yet are cancelled. A date that is published but not checkpointed fails: its caller
        has checkpointed those whose rows are still in the target.
        """
        with self._write() as connection:
            if lock_run_state(connection, run_id) in ENDED_RUNS:
                return False
            _cancel_dates(connection, run_id, UNPUBLISHED_STATES, describe_cancellation(by, reason))
            _fail_published(connection, run_id)
            active = [state for state in RunState if state not in ENDED_RUNS]
            change_run_state(connection, run_id, active, RunState.CANCELLED)
            record_action(connection, run_id, RunAction.CANCELLED, by=by, reason=reason)
        return True

    def confirm_claims(self, run_id: str, days: Collection[date], owner: str) -> frozenset[date]:
        """Return which of the claimed days a worker may start; it loses its claim on the others.

        Dates of a paused run are requeued and this attempt is not counted. Dates of a cancelled run are cancelled.
        `ClaimStore.release_dates` obeys orders given after the start.
        """
        key = {"run": run_id, "days": list(days), "owner": owner}
        with self._read() as connection:  # blocks no writer; there is rarely an order
            rows = connection.execute(CLAIMED_DAYS, key).all()
        if all(row.state == RunState.RUNNING.value for row in rows):
            return frozenset(row.day for row in rows)
        with self._write() as connection:
            # The lock makes a concurrent resume wait, so it finds the dates either requeued or still claimed.
            run_state = lock_run_state(connection, run_id)
            instruction = decide_instruction(
                run_state, has_begun=False, discard=has_discard_request(connection, run_id)
            )
            if instruction is Instruction.CONTINUE:
                return frozenset(row.day for row in connection.execute(CLAIMED_DAYS, key))
            if instruction is Instruction.REQUEUE:
                values = date_transition(DateState.PROCESSING, DateState.QUEUED, {"attempt": run_dates.c.attempt - 1})
            else:
                values = cancelled_columns(cancellation_reason(connection, run_id))
            connection.execute(update(run_dates).where(CLAIMED_BY_OWNER).values(values), key)
        return frozenset()


def _cancel_dates(connection: Connection, run_id: str, states: Sequence[DateState], reason: str) -> int:
    in_states = and_(run_dates.c.run_id == run_id, run_dates.c.state.in_([state.value for state in states]))
    return connection.execute(update(run_dates).where(in_states).values(cancelled_columns(reason))).rowcount


def _fail_published(connection: Connection, run_id: str) -> None:
    """Fail the published dates of a run that ends: no gate will checkpoint them any more."""
    is_published = and_(run_dates.c.run_id == run_id, run_dates.c.state == DateState.PUBLISHED.value)
    columns = failure_columns("TargetChanged", CHANGED_BEFORE_CHECKPOINT, CHANGED_BEFORE_CHECKPOINT)
    values = date_transition(DateState.PUBLISHED, DateState.FAILED, columns)
    connection.execute(update(run_dates).where(is_published).values(values))


def _discard_staged(connection: Connection, run_id: str, reason: str) -> tuple[date, ...]:
    """Cancel staged dates without a verdict, in windows that no gate has claimed.

    A gate may have published the dates it gave a verdict before it stopped: they are left to the next gate.
    """
    is_open = (windows.c.run_id == run_id, windows.c.state == WindowState.OPEN.value)
    query = select(windows.c.number).where(*is_open).order_by(windows.c.number).with_for_update()
    is_discarded = and_(
        run_dates.c.run_id == run_id,
        run_dates.c.window.in_(connection.execute(query).scalars().all()),
        run_dates.c.state == DateState.STAGED.value,
        run_dates.c.verdict.is_(None),
    )
    days = connection.execute(select(run_dates.c.day).where(is_discarded).order_by(run_dates.c.day).with_for_update())
    discarded_days = tuple(days.scalars())
    connection.execute(update(run_dates).where(is_discarded).values(cancelled_columns(reason)))
    return discarded_days


def _close_windows(connection: Connection, run_id: str, state: WindowState) -> None:
    """Close the windows in a state: pending ones all, open ones only without unfinished dates."""
    in_state = and_(windows.c.run_id == run_id, windows.c.state == state.value)
    if state is WindowState.OPEN:
        ended = [date_state.value for date_state in ENDED_DATES]
        unfinished = select(run_dates.c.window).where(run_dates.c.run_id == run_id, run_dates.c.state.not_in(ended))
        in_state = and_(in_state, windows.c.number.not_in(unfinished))
    connection.execute(update(windows).where(in_state).values(state=WindowState.CLOSED.value, closed_at=utcnow()))
