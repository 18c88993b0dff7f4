"""Bringing a run back on its way: what a chord would have called, called from the ledger's truth instead.

What was seen of a run is turned into steps, each with its reason, and only then is anything sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from gated_backfill.common.broker.celery_app import BrokerBacklog
from gated_backfill.common.config.recovery import RecoverySettings
from gated_backfill.common.ledger import DateRow, DateState, Run, RunState, WindowRow, WindowState
from gated_backfill.common.ledger.states import ENDED_RUNS, READY_FOR_GATE
from gated_backfill.common.model.job import Job
from gated_backfill.common.model.registry import find_job
from gated_backfill.common.model.run_options import RunOptions
from gated_backfill.common.process.clock import utcnow
from gated_backfill.common.process.identity import is_dead
from gated_backfill.common.runs.enqueue import requeue_lost_dates
from gated_backfill.worker.dependencies import Deps
from gated_backfill.worker.gate.gate import advance_run

log = structlog.get_logger()


# -- what is seen ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class WindowSnapshot:
    """An open window, as far as its way on depends on it."""

    number: int
    at_broker: bool = True  #: the broker has not lost what was sent of it
    sent_at: datetime | None = None  #: when it was first sent to the broker that is there now
    gated: bool = False  #: a gate that lives, or may live, works on it
    gate_died: bool = False
    queued: int = 0
    working: int = 0  #: dates with a worker that lives, or may live
    abandoned: int = 0  #: dates whose worker is dead or past its lease
    queued_at: datetime | None = None  #: when a date that still waits was last sent
    touched_at: datetime | None = None  #: when one of its dates was last taken up or ended

    @property
    def settled(self) -> bool:
        return not (self.queued or self.working or self.abandoned)


@dataclass(frozen=True, kw_only=True)
class RunSnapshot:
    """A run, as far as its way on depends on it."""

    state: RunState
    now: datetime
    created_at: datetime
    owned: bool = False  #: it lives and dies with a command, which starts it and looks after it
    quiet_since: datetime | None = None  #: the last time anything happened; None while a date is being processed
    lost_tasks: bool = False  #: somebody knows that the broker or a worker died
    dates_wait: bool = False  #: messages for dates lie in its queue at the broker, of whichever run
    gates_wait: bool = False  #: messages for gates lie at the broker, of whichever run
    windows: Sequence[WindowSnapshot] = ()


# -- what is to be done ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class StartRun:
    """Set a planned run going."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class RequeueDates:
    """Queue the lost dates of a window again and send them; the ledger knows what an order to the run makes of them."""

    window: int
    include_queued: bool  #: what was queued is lost as well
    ignore_deaths_before: (
        datetime | None
    )  #: what a worker took up before then is not what it died of: the broker was lost
    reason: str


@dataclass(frozen=True, kw_only=True)
class CallGate:
    """Have a window closed."""

    window: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class AdvanceRun:
    """Open the windows that may be open now, or end the run."""

    reason: str


RecoveryStep = StartRun | RequeueDates | CallGate | AdvanceRun


def decide_steps(seen: RunSnapshot, settings: RecoverySettings) -> list[RecoveryStep]:
    """What brings the run on. Every step may be repeated, and come too early, without harm."""
    if seen.state in ENDED_RUNS:
        return []
    if seen.state is RunState.PLANNED:
        late = not seen.owned and _late(seen, seen.created_at, settings.start_late_seconds)
        return [StartRun(reason="nobody started it")] if late else []
    if seen.state is not RunState.RUNNING:
        return _while_stopping(seen, settings)
    steps = [step for window in seen.windows if (step := _for_window(window, seen, settings)) is not None]
    return steps or [AdvanceRun(reason="nothing of it was lost")]


def _while_stopping(seen: RunSnapshot, settings: RecoverySettings) -> list[RecoveryStep]:
    """A run that is paused or being cancelled: no date is sent, and what was begun comes to its end."""
    steps = [step for window in seen.windows if (step := _end_of(window, seen, settings)) is not None]
    return steps or [AdvanceRun(reason="nothing of it was lost")]


def _end_of(window: WindowSnapshot, seen: RunSnapshot, settings: RecoverySettings) -> RecoveryStep | None:
    """What was lost is given back, which of a paused run lets it wait, and of one that is cancelled drops it."""
    if window.settled:
        return _gate_of(window, seen, settings)
    drops = seen.state is RunState.CANCELLING and window.queued > 0
    if not (window.abandoned or drops):
        return None
    reason = "nobody takes them up any more"
    return RequeueDates(window=window.number, include_queued=drops, ignore_deaths_before=None, reason=reason)


def _for_window(window: WindowSnapshot, seen: RunSnapshot, settings: RecoverySettings) -> RecoveryStep | None:
    if window.settled:
        return _gate_of(window, seen, settings)
    # A worker that loses its broker ends what it is at, as that can't be acknowledged any more.
    innocent = window.sent_at if window.at_broker else seen.now
    lost = _why_lost(window, seen, settings)
    if lost is not None:
        return RequeueDates(window=window.number, include_queued=True, ignore_deaths_before=innocent, reason=lost)
    if window.abandoned:
        reason = "their workers are dead or past their leases"
        return RequeueDates(window=window.number, include_queued=False, ignore_deaths_before=innocent, reason=reason)
    return None


def _why_lost(window: WindowSnapshot, seen: RunSnapshot, settings: RecoverySettings) -> str | None:
    """Why the messages of dates that wait are no longer at the broker; None where they may be."""
    if not (window.queued or window.abandoned):
        return None
    if seen.lost_tasks:
        return "the broker or a worker died"
    sent = window.queued_at is None or _late(seen, window.queued_at, settings.reconcile_seconds)
    if not window.at_broker and sent:  # one that was opened a moment ago may still be on its way there
        return "the broker lost them"
    return "nothing moves" if _stalled(seen, settings) and not seen.dates_wait else None


def _gate_of(window: WindowSnapshot, seen: RunSnapshot, settings: RecoverySettings) -> CallGate | None:
    """The call of a settled window's gate, unless one works on it or is about to."""
    if window.gated:
        return None
    reasons = {
        "its gate died": window.gate_died,
        "the broker or a worker died": seen.lost_tasks,
        "the broker lost the call of its gate": not window.at_broker,
        "its gate was not called": window.touched_at is None
        or _late(seen, window.touched_at, settings.gate_late_seconds)
        or _stalled(seen, settings),
    }
    why = next((reason for reason, holds in reasons.items() if holds), None)
    waits = seen.gates_wait and not seen.lost_tasks  # its call may be among them, and calls must not pile up
    return None if why is None or waits else CallGate(window=window.number, reason=why)


def _stalled(seen: RunSnapshot, settings: RecoverySettings) -> bool:
    return seen.quiet_since is not None and _late(seen, seen.quiet_since, settings.stalled_seconds)


def _late(seen: RunSnapshot, since: datetime, seconds: float) -> bool:
    return seen.now - since > timedelta(seconds=seconds)


# -- looking and acting ---------------------------------------------------------------------------------------


def reconcile(run_id: str, deps: Deps, *, lost_tasks: bool = False) -> int:
    """Send again what was lost of a run; returns how many windows that touched. Repeating it does no harm.

    With `lost_tasks`, the caller knows that the broker or a worker died. A date that has seen `max_deaths` deaths of
    its workers is failed instead.
    """
    run = deps.ledger.runs.get_run(run_id)
    if run.has_ended:
        return 0
    steps = decide_steps(_look(run, deps, lost_tasks=lost_tasks), deps.settings)
    if any(isinstance(step, StartRun) for step in steps):
        deps.ledger.runs.move_run(run_id, expect=[RunState.PLANNED], to=RunState.RUNNING)
        steps = [AdvanceRun(reason="started")]
    job = find_job(run.job)
    return sum(_carry_out(step, run, job, deps) for step in steps)


def _carry_out(step: RecoveryStep, run: Run, job: Job, deps: Deps) -> int:
    """Returns how many windows were sent again."""
    match step:
        case RequeueDates():
            again = requeue_lost_dates(
                run,
                step.window,
                job,
                deps.ledger,
                deps.dispatcher,
                include_queued=step.include_queued,
                max_deaths=deps.settings.max_deaths,
                ignore_deaths_before=step.ignore_deaths_before,
            )
            if not again:
                return 0
            log.warning("lost_dates_requeued", run=run.id, window=step.window, count=len(again), reason=step.reason)
            return 1
        case CallGate():
            log.warning("gate_called", run=run.id, window=step.window, reason=step.reason)
            deps.dispatcher.send_gate(run.id, step.window, job)
            return 1
        case StartRun() | AdvanceRun():
            advance_run(deps.ledger.runs.get_run(run.id), job, deps)
            return 0


def _look(run: Run, deps: Deps, *, lost_tasks: bool) -> RunSnapshot:
    there = deps.dispatcher.broker_backlog(run.id, queue=RunOptions.from_dict(run.options).queue)
    quiet_since = deps.ledger.dates.last_activity(run.id)
    now = utcnow()
    open_ones = deps.ledger.windows.list_windows(run.id, [WindowState.OPEN, WindowState.CLOSING])
    return RunSnapshot(
        state=run.state,
        now=now,
        created_at=run.created_at,
        owned=run.owner is not None,
        quiet_since=quiet_since,
        lost_tasks=lost_tasks,
        dates_wait=there.waiting_dates > 0,
        gates_wait=there.waiting_gates > 0,
        windows=[_seen(one, deps.ledger.dates.list_dates(run.id, window=one.number), there, now) for one in open_ones],
    )


def _seen(window: WindowRow, rows: Sequence[DateRow], there: BrokerBacklog, now: datetime) -> WindowSnapshot:
    queued = [row for row in rows if row.state is DateState.QUEUED]
    working = [row for row in rows if row.state is DateState.PROCESSING]
    abandoned = [row for row in working if _is_gone(row.lease_owner, row.lease_until, now)]
    waiting = len([row for row in rows if row.state not in READY_FOR_GATE]) - len(working)
    closing = window.state is WindowState.CLOSING
    gate_died = closing and _is_gone(window.lease_owner, window.lease_until, now)
    touched = [moment for row in rows for moment in (row.started_at, row.ended_at) if moment is not None]
    return WindowSnapshot(
        number=window.number,
        at_broker=there.has_window(window.number),
        sent_at=there.window_sent_at(window.number),
        gated=closing and not gate_died,
        gate_died=gate_died,
        queued=waiting,
        working=len(working) - len(abandoned),
        abandoned=len(abandoned),
        queued_at=max((row.queued_at for row in queued if row.queued_at is not None), default=None),
        touched_at=max(touched, default=None),
    )


def _is_gone(owner: str | None, until: datetime | None, now: datetime) -> bool:
    """Whether who held something under a lease is dead, or can't count on it any more."""
    return owner is None or until is None or until < now or is_dead(owner)
