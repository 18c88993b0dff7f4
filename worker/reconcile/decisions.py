"""Decide what a run needs to continue: steps with reasons, from a snapshot of the ledger and the broker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from gated_backfill.common.config.recovery import RecoverySettings
from gated_backfill.common.ledger import RunState
from gated_backfill.common.ledger.states import ENDED_RUNS


@dataclass(frozen=True, kw_only=True)
class WindowSnapshot:
    """An open window, as far as its next step depends on it."""

    number: int
    is_at_broker: bool = True  #: the broker has lost no message of it
    has_live_gate: bool = False  #: a gate that is not known to be dead has claimed it
    gate_died: bool = False
    queued: int = 0
    unsent: int = 0  #: of the queued dates, those that a worker released without a message for another worker
    processing: int = 0  #: dates whose worker is not known to be dead
    abandoned: int = 0  #: dates whose worker is dead or whose lease has expired
    queued_at: datetime | None = None  #: when one of the dates still queued was last sent
    touched_at: datetime | None = None  #: when one of its dates was last claimed or ended

    @property
    def is_settled(self) -> bool:
        """Whether every date waits for the gate or has ended."""
        return not (self.queued or self.processing or self.abandoned)


@dataclass(frozen=True, kw_only=True)
class RunSnapshot:
    """A run, as far as its next steps depend on it."""

    state: RunState
    now: datetime
    created_at: datetime
    has_owner: bool = False  #: a command started it, has workers for it, and ends it
    quiet_since: datetime | None = None  #: the last change of one of its dates; None while a date is processing
    lost_tasks: bool = False  #: the caller knows that the broker or a worker died
    has_waiting_dates: bool = False  #: messages for dates wait in its queue, of any run
    has_waiting_gates: bool = False  #: messages for gates wait, of any run
    windows: Sequence[WindowSnapshot] = ()


@dataclass(frozen=True, kw_only=True)
class StartRun:
    """Move a planned run to running."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class RequeueDates:
    """Requeue the lost dates of a window and send them; if the run is paused or cancelled, only requeue them."""

    window: int
    include_queued: bool  #: the messages of queued dates are lost as well
    reason: str


@dataclass(frozen=True, kw_only=True)
class CallGate:
    """Send the message that calls a window's gate."""

    window: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class AdvanceRun:
    """Open the windows that the run's limits allow, or end the run."""

    reason: str


RecoveryStep = StartRun | RequeueDates | CallGate | AdvanceRun


def decide_steps(run: RunSnapshot, settings: RecoverySettings) -> list[RecoveryStep]:
    """The steps that a run needs to continue. Each may be repeated, or come too early, without harm."""
    if run.state in ENDED_RUNS:
        return []
    if run.state is RunState.PLANNED:
        is_late = not run.has_owner and _is_late(run, run.created_at, settings.start_late_seconds)
        return [StartRun(reason="its command did not start it")] if is_late else []
    decide = _decide_for_running if run.state is RunState.RUNNING else _decide_for_stopping
    steps = [step for window in run.windows if (step := decide(window, run, settings)) is not None]
    return steps or [AdvanceRun(reason="nothing was lost")]


def _decide_for_stopping(window: WindowSnapshot, run: RunSnapshot, settings: RecoverySettings) -> RecoveryStep | None:
    """A window of a run that is paused or being cancelled. Lost dates wait if it is paused, and end if cancelled."""
    if window.is_settled:
        return _decide_gate(window, run, settings)
    cancels_queued = run.state is RunState.CANCELLING and window.queued > 0
    if not (window.abandoned or cancels_queued):
        return None
    reason = "the run is stopping and no worker has them"
    return RequeueDates(window=window.number, include_queued=cancels_queued, reason=reason)


def _decide_for_running(window: WindowSnapshot, run: RunSnapshot, settings: RecoverySettings) -> RecoveryStep | None:
    if window.is_settled:
        return _decide_gate(window, run, settings)
    reason = _reason_lost(window, run, settings)
    if reason is None and not (window.abandoned or window.unsent):
        return None
    no_worker = "their workers are dead or past their leases" if window.abandoned else "their workers were stopped"
    return RequeueDates(window=window.number, include_queued=reason is not None, reason=reason or no_worker)


def _reason_lost(window: WindowSnapshot, run: RunSnapshot, settings: RecoverySettings) -> str | None:
    """Why the messages of queued dates are no longer at the broker; None if they may be."""
    if not (window.queued or window.abandoned):
        return None
    if run.lost_tasks:
        return "the broker or a worker died"
    sent_long_ago = window.queued_at is None or _is_late(run, window.queued_at, settings.reconcile_seconds)
    if not window.is_at_broker and sent_long_ago:  # a window opened a moment ago may still be on its way there
        return "the broker lost them"
    return "the run is stalled" if _is_stalled(run, settings) and not run.has_waiting_dates else None


def _decide_gate(window: WindowSnapshot, run: RunSnapshot, settings: RecoverySettings) -> CallGate | None:
    """Call a settled window's gate, unless one is running or its message may still wait at the broker."""
    if window.has_live_gate:
        return None
    reasons = {
        "its gate died": window.gate_died,
        "the broker or a worker died": run.lost_tasks,
        "the broker lost the call of its gate": not window.is_at_broker,
        "its gate was not called": window.touched_at is None
        or _is_late(run, window.touched_at, settings.gate_late_seconds)
        or _is_stalled(run, settings),
    }
    reason = next((reason for reason, applies in reasons.items() if applies), None)
    may_be_waiting = run.has_waiting_gates and not run.lost_tasks  # calls of gates must not pile up
    return None if reason is None or may_be_waiting else CallGate(window=window.number, reason=reason)


def _is_stalled(run: RunSnapshot, settings: RecoverySettings) -> bool:
    return run.quiet_since is not None and _is_late(run, run.quiet_since, settings.stalled_seconds)


def _is_late(run: RunSnapshot, since: datetime, seconds: float) -> bool:
    return run.now - since > timedelta(seconds=seconds)
