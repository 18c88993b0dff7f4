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

from gated_backfill.common.ledger.database import Database
from gated_backfill.common.ledger.rows import IN_HAND, dropped, locked_state, moved, run_moved
from gated_backfill.common.ledger.states import ENDED_DATES, ENDED_RUNS, Action, DateState, RunState, WindowState
from gated_backfill.common.ledger.stores.actions import cancelled_because, discards, in_words, record_action
from gated_backfill.common.ledger.tables import run_dates, runs, windows
from gated_backfill.common.process.clock import utcnow

HELD = select(run_dates.c.day, runs.c.state).join(runs, runs.c.id == run_dates.c.run_id).where(IN_HAND)
UNBEGUN = (DateState.PENDING, DateState.QUEUED)
UNPUBLISHED = (*UNBEGUN, DateState.PROCESSING, DateState.STAGED)


@dataclass(frozen=True, kw_only=True)
class Stopped:
    """What an order to stop did with the dates of its run. What is in none of these is finished."""

    unbegun: int  #: no worker had taken them up
    stopped: int  #: were being processed
    discarded: tuple[date, ...]  #: were staged


class Order(Enum):
    """What the worker that holds a date is to do next."""

    GO_ON = "go on"
    GIVE_BACK = "give back"  #: to be built once the run goes on
    DROP = "drop"  #: not to be built by this run


def order_of(run: RunState, *, begun: bool, discard: bool) -> Order:
    """What to do with a date in hand. `begun`: something costly was done for it, which would have to be done again."""
    if run is RunState.RUNNING:
        return Order.GO_ON
    if run is RunState.PAUSED:
        return Order.GO_ON if begun else Order.GIVE_BACK
    if run is RunState.CANCELLING:
        return Order.DROP if discard else Order.GO_ON
    return Order.DROP


class Orders(Database):
    """Orders to runs, and what those who work for a run are to do."""

    def pause_run(self, run_id: str, *, by: str, reason: str | None = None) -> bool:
        """Have nothing begun any more until the run is resumed; False when it is neither planned nor running."""
        with self._write() as connection:
            paused = run_moved(connection, run_id, [RunState.PLANNED, RunState.RUNNING], RunState.PAUSED)
            if paused:
                record_action(connection, run_id, Action.PAUSED, by=by, reason=reason)
        return paused

    def resume_run(self, run_id: str, *, by: str, reason: str | None = None) -> bool:
        """Let a paused run go on; False when it is not paused. What was consumed meanwhile has to be sent again."""
        with self._write() as connection:
            resumed = run_moved(connection, run_id, [RunState.PAUSED], RunState.RUNNING)
            if resumed:
                record_action(connection, run_id, Action.RESUMED, by=by, reason=reason)
        return resumed

    def cancel_run(
        self, run_id: str, *, by: str, reason: str | None = None, discard: bool = False, now: bool = False
    ) -> Stopped | None:
        """Stop a run for good: dates that nobody has begun are cancelled and free for other runs at once.

        What was begun is finished. With `now`, dates that are being processed are cancelled too; with `discard`, dates
        that are staged and that no gate has judged. A window is closed when that leaves nothing of it to finish; when
        none is left open, `finish_run` ends the run. Returns None, and changes nothing, for a run that has ended. May
        be repeated, also to stop more than before.
        """
        why = in_words(by, reason)
        with self._write() as connection:
            if locked_state(connection, run_id) in ENDED_RUNS:
                return None
            connection.execute(update(runs).where(runs.c.id == run_id).values(state=RunState.CANCELLING.value))
            _close(connection, run_id, WindowState.PENDING)
            discarded = _discard(connection, run_id, why) if discard else ()
            stopped = Stopped(
                unbegun=_drop(connection, run_id, UNBEGUN, why),
                stopped=_drop(connection, run_id, [DateState.PROCESSING], why) if now else 0,
                discarded=discarded,
            )
            _close(connection, run_id, WindowState.OPEN)
            details = {"discard": discard, "now": now}
            record_action(connection, run_id, Action.CANCELLED, by=by, reason=reason, details=details)
        return stopped

    def end_run(self, run_id: str, *, by: str, reason: str) -> bool:
        """End a run whose workers are gone, or told to stop, as cancelled; False when it has ended already.

        Every date whose rows nobody sees yet is cancelled with it, and all its dates are free.
        """
        with self._write() as connection:
            if locked_state(connection, run_id) in ENDED_RUNS:
                return False
            _drop(connection, run_id, UNPUBLISHED, in_words(by, reason))
            active = [state for state in RunState if state not in ENDED_RUNS]
            run_moved(connection, run_id, active, RunState.CANCELLED)
            record_action(connection, run_id, Action.CANCELLED, by=by, reason=reason)
        return True

    def obey(self, run_id: str, days: Collection[date], owner: str) -> frozenset[date]:
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
            run = locked_state(connection, run_id)
            order = order_of(run, begun=False, discard=discards(connection, run_id))
            if order is Order.GO_ON:
                return frozenset(row.day for row in connection.execute(HELD, which))
            if order is Order.GIVE_BACK:
                values = moved(DateState.PROCESSING, DateState.QUEUED, {"attempt": run_dates.c.attempt - 1})
            else:
                values = dropped(cancelled_because(connection, run_id))
            connection.execute(update(run_dates).where(IN_HAND).values(values), which)
        return frozenset()


def _drop(connection: Connection, run_id: str, states: Sequence[DateState], why: str) -> int:
    these = and_(run_dates.c.run_id == run_id, run_dates.c.state.in_([state.value for state in states]))
    return connection.execute(update(run_dates).where(these).values(dropped(why))).rowcount


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
    connection.execute(update(run_dates).where(these).values(dropped(why)))
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
