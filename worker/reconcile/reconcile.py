"""Reconcile a run: take a snapshot of ledger and broker, decide what was lost, and send that again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from functools import cache

import structlog

from gated_backfill.common.broker.dispatcher import BrokerBacklog
from gated_backfill.common.ledger import DateRow, DateState, Run, RunState, WindowRow, WindowState
from gated_backfill.common.ledger.states import READY_FOR_GATE
from gated_backfill.common.model.job import Job
from gated_backfill.common.model.registry import find_job
from gated_backfill.common.model.run_options import RunOptions
from gated_backfill.common.process.clock import utcnow
from gated_backfill.common.runs.enqueue import requeue_lost_dates
from gated_backfill.worker.dependencies import Deps
from gated_backfill.worker.gate.gate import advance_run
from gated_backfill.worker.reconcile.decisions import (
    AdvanceRun,
    CallGate,
    RecoveryStep,
    RequeueDates,
    RunSnapshot,
    StartRun,
    WindowSnapshot,
    decide_steps,
)

log = structlog.get_logger()


def reconcile(run_id: str, deps: Deps, *, lost_tasks: bool = False) -> int:
    """Send again what was lost of a run; returns the number of windows concerned. Repeating it does no harm.

    `lost_tasks`: the caller knows that the broker or a worker died. A date whose workers were lost `max_losses`
    times is failed instead of sent. The version of the job does not matter here: a worker or a gate of another version
    refuses what it is sent, which ends the run.
    """
    run = deps.ledger.runs.get_run(run_id)
    if run.has_ended:
        return 0
    steps = decide_steps(_run_snapshot(run, deps, lost_tasks=lost_tasks), deps.settings)
    if any(isinstance(step, StartRun) for step in steps):
        deps.ledger.runs.move_run(run_id, expect=[RunState.PLANNED], to=RunState.RUNNING)
        steps = [AdvanceRun(reason="started")]
    job = find_job(run.job)
    return sum(_carry_out(step, run, job, deps) for step in steps)


def _carry_out(step: RecoveryStep, run: Run, job: Job, deps: Deps) -> int:
    """Carry out a step; returns how many windows were sent again."""
    match step:
        case RequeueDates():
            requeued = requeue_lost_dates(
                run,
                step.window,
                job,
                deps.ledger,
                deps.dispatcher,
                include_queued=step.include_queued,
                max_losses=deps.settings.max_losses,
            )
            if not requeued:
                return 0
            log.warning("lost_dates_requeued", run=run.id, window=step.window, count=len(requeued), reason=step.reason)
            return 1
        case CallGate():
            log.warning("gate_called", run=run.id, window=step.window, reason=step.reason)
            deps.dispatcher.send_gate(run.id, step.window, job)
            return 1
        case StartRun() | AdvanceRun():
            advance_run(deps.ledger.runs.get_run(run.id), job, deps)
            return 0


def _run_snapshot(run: Run, deps: Deps, *, lost_tasks: bool) -> RunSnapshot:
    backlog = deps.dispatcher.broker_backlog(run.id, queue=RunOptions.from_dict(run.options).queue)
    quiet_since = deps.ledger.dates.last_activity(run.id)
    now, is_lost = utcnow(), cache(deps.ledger.heartbeats.is_lost)  # an owner often has many dates
    windows = deps.ledger.windows.list_windows(run.id, [WindowState.OPEN, WindowState.CLOSING])
    return RunSnapshot(
        state=run.state,
        now=now,
        created_at=run.created_at,
        has_owner=run.owner is not None,
        quiet_since=quiet_since,
        lost_tasks=lost_tasks,
        has_waiting_dates=backlog.waiting_dates > 0,
        has_waiting_gates=backlog.waiting_gates > 0,
        windows=[
            _window_snapshot(
                window, deps.ledger.dates.list_dates(run.id, window=window.number), backlog, now, is_lost=is_lost
            )
            for window in windows
        ],
    )


def _window_snapshot(
    window: WindowRow, rows: Sequence[DateRow], backlog: BrokerBacklog, now: datetime, *, is_lost: Callable[[str], bool]
) -> WindowSnapshot:
    sent_times = [row.queued_at for row in rows if row.state is DateState.QUEUED and row.queued_at is not None]
    processing = [row for row in rows if row.state is DateState.PROCESSING]
    abandoned = [row for row in processing if _has_no_live_owner(row, now, is_lost)]
    unready = [row for row in rows if row.state not in READY_FOR_GATE]
    is_closing = window.state is WindowState.CLOSING
    gate_died = is_closing and _has_no_live_owner(window, now, is_lost)
    touched_times = [time for row in rows for time in (row.started_at, row.ended_at) if time is not None]
    return WindowSnapshot(
        number=window.number,
        is_at_broker=backlog.has_window(window.number),
        has_live_gate=is_closing and not gate_died,
        gate_died=gate_died,
        queued=len(unready) - len(processing),
        unsent=sum(row.state is DateState.QUEUED and row.queued_at is None for row in rows),
        processing=len(processing) - len(abandoned),
        abandoned=len(abandoned),
        queued_at=max(sent_times, default=None),
        touched_at=max(touched_times, default=None),
    )


def _has_no_live_owner(row: DateRow | WindowRow, now: datetime, is_lost: Callable[[str], bool]) -> bool:
    """Whether the lease of a date or window has expired, or its owner is lost."""
    return row.lease_owner is None or row.lease_until is None or row.lease_until < now or is_lost(row.lease_owner)
