"""Open a run, enqueue its first windows, and follow it in the ledger to its end."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from datetime import date, timedelta
from typing import Any

from celery import Celery

from gated_backfill.common.broker.dispatcher import CeleryDispatcher
from gated_backfill.common.errors import BrokerUnavailable, WrongStaging
from gated_backfill.common.ledger import (
    ActionRow,
    DateState,
    NewDate,
    NewRun,
    Run,
    RunAction,
    RunProgress,
    RunState,
    WindowState,
)
from gated_backfill.common.ledger.rows import entity_columns
from gated_backfill.common.model.coverage import Verdict
from gated_backfill.common.model.dates import chunk_dates
from gated_backfill.common.model.job import Job
from gated_backfill.common.model.registry import find_job
from gated_backfill.common.model.run_options import RunOptions
from gated_backfill.common.model.scheduling.queues import MAINTENANCE_QUEUE, choose_queue
from gated_backfill.common.process.clock import utcnow
from gated_backfill.common.process.identity import process_identity
from gated_backfill.common.runs.enqueue import enqueue_next_windows, requeue_lost_dates
from gated_backfill.common.runs.faulty_workers import list_faulty_workers
from gated_backfill.common.runs.interrupted import is_interrupted
from gated_backfill.common.runs.release import ITS_PROCESS_DIED, SYSTEM_ACTOR, ReleasedRun, release_run
from gated_backfill.common.runs.silent_workers import list_silent_workers
from gated_backfill.common.runs.targets import check_target_free
from gated_backfill.common.warehouse.usage import LAUNCH, charging, take_usage
from gated_backfill.producer.context import CommandContext, current_user
from gated_backfill.producer.planning.plan import Plan, PlanAction, PlanStep, compare_entities
from gated_backfill.producer.stack.embedded import EmbeddedStack

SEQUENTIAL_MODULE = "gated_backfill.worker.inline"  #: imported by name: producer and worker must not import each other
POLL_SECONDS = 0.2
MAX_POLL_SECONDS = 1.0
QUIET_SECONDS = 3.0  #: without a date that ends, after which the reason is looked for
SILENCE_SHOWN_FOR = timedelta(minutes=5)
MAX_POLLING_SHARE = 0.02  #: share of the time that polling a run may take
MAX_WAITING_MAINTENANCE = 2  #: at this queue length, no worker consumes maintenance messages
NO_MAINTENANCE_WORKER = "lost tasks are not recovered: no worker consumes the maintenance queue"


def open_run(plan: Plan, job: Job, options: RunOptions, context: CommandContext, *, owned: bool) -> Run:
    """Store the planned run. An `owned` run ends with this process.

    The run records the identity of the staging here, which is given one if it is new.

    Raises, and stores nothing, `HostError` when the staging can't be written or is another one than that of an active
    run on the same workers, `DatesInUse` when an active run of the job has one of the dates, `CheckpointedMeanwhile`
    when another run has checkpointed one of them since the plan, `TargetTaken` when the target belongs to another job.
    """
    identity = context.staging.mark()
    if not owned:
        _check_same_staging(identity, context)
    with charging(LAUNCH):
        dates = tuple(_new_dates(plan, job, options, context))
    new = NewRun(
        job=job.name,
        job_version=job.version,
        options=replace(options, staging=identity).to_dict(),
        requested=plan.summary(),
        requested_by=current_user(context.settings),
        reason=plan.request.reason,
        owner=process_identity() if owned else None,
        target=job.target.table,
        replaced_owner=check_target_free(job, context.ledger),
        dates=dates,
        planned_with=plan.checkpointed_by,
        usage=take_usage(LAUNCH),
    )
    date_count = sum(date_row.window is not None for date_row in new.dates)
    express_dates = context.settings.express_dates

    def select_queue(active_queues: Collection[str]) -> str:
        return choose_queue(date_count, express_dates=express_dates, active_queues=active_queues)

    return context.ledger.runs.open_run(new, queue=None if owned else select_queue)


def _check_same_staging(identity: str, context: CommandContext) -> None:
    """Raise `WrongStaging` if an active run on the same workers has another staging: they have one only."""
    for run in context.ledger.runs.list_active_runs():
        other = RunOptions.from_dict(run.options).staging
        if run.owner is None and other not in (None, identity):
            raise WrongStaging(
                f"{context.settings.staging_url} is not the staging of run {run.id}, which is active on the same "
                f"workers: mount the right folder here, or wait until that run has ended; nothing was started"
            )


def _new_dates(plan: Plan, job: Job, options: RunOptions, context: CommandContext) -> list[NewDate]:
    days_to_build = [step.day for step in plan.steps_with(PlanAction.BUILD)]
    windows = enumerate(chunk_dates(days_to_build, options.window), 1)
    window_by_day = {day: number for number, days in windows for day in days}
    blocked = {step.day: step for step in plan.steps_with(PlanAction.BLOCKED)}
    compared = compare_entities(list(blocked), job, blocked, context.warehouse) if blocked else {}
    outcomes = {
        PlanAction.SKIP: (DateState.SKIPPED, Verdict.SKIPPED),
        PlanAction.BLOCKED: (DateState.BLOCKED, Verdict.BLOCKED),
    }

    def decided_date(step: PlanStep) -> NewDate:
        state, verdict = outcomes[step.action]
        columns: dict[str, Any] = {
            "reason": f"pre-flight: {step.reason}" if step.action is PlanAction.BLOCKED else step.reason,
            "verdict": verdict.value,
            "expected": step.expected,
            "found": dict(step.found),
            "source": step.source,
            "matched": step.supplied,
            **entity_columns(*compared.get(step.day, ((), ()))),
        }
        return NewDate(day=step.day, state=state, columns=columns)

    def date_to_build(step: PlanStep) -> NewDate:
        columns = {"floor": step.floor, "floor_reason": step.floor_reason}
        return NewDate(day=step.day, window=window_by_day[step.day], columns=columns)

    return [
        date_to_build(step) if step.action is PlanAction.BUILD else decided_date(step)
        for step in plan.steps
        if step.action not in (PlanAction.DONE, PlanAction.STALE, PlanAction.UNDONE)
    ]


def start_run(run: Run, job: Job, context: CommandContext, app: Celery) -> None:
    """Start a planned run: open its first windows and enqueue their tasks."""
    context.ledger.runs.move_run(run.id, expect=[RunState.PLANNED], to=RunState.RUNNING)
    dispatcher = CeleryDispatcher(app)
    enqueue_next_windows(run, job, context.ledger, dispatcher)
    final_state = context.ledger.runs.finish_run(run.id)  # the plan may have decided every date
    if final_state is not None and run.owner is None:
        dispatcher.send_post_run(run.id)


def continue_run(run: Run, job: Job, context: CommandContext, dispatcher: CeleryDispatcher) -> None:
    """Continue a paused run: requeue tasks that workers consumed meanwhile, and open the next windows."""
    for window in context.ledger.windows.list_windows(run.id, [WindowState.OPEN]):
        requeue_lost_dates(
            run,
            window.number,
            job,
            context.ledger,
            dispatcher,
            include_queued=True,
            max_losses=context.settings.max_losses,
        )
    enqueue_next_windows(run, job, context.ledger, dispatcher)


def run_sequentially(run: Run, job: Job, context: CommandContext, show: Callable[[RunProgress], None]) -> RunProgress:
    """Run a planned run to its end in this process, with the functions that the workers' tasks call."""
    last_shown = time.monotonic()

    def show_progress() -> None:
        nonlocal last_shown
        if time.monotonic() - last_shown >= POLL_SECONDS:
            show(context.ledger.runs.get_progress(run.id))
            last_shown = time.monotonic()

    engine = importlib.import_module(SEQUENTIAL_MODULE)
    engine.run_sequentially(run, job, context.settings, show_progress)
    progress = context.ledger.runs.get_progress(run.id)
    show(progress)
    return progress


def follow_run(
    run_id: str,
    context: CommandContext,
    show: Callable[[RunProgress], None],
    *,
    app: Celery | None,
    stack: EmbeddedStack | None = None,
) -> RunProgress:
    """Poll a run in the ledger until it ends, and have a stuck run reconciled.

    With an embedded `stack`, also restart its dead processes and carry out orders of other commands, which cannot
    reach its broker. Without `app`, nothing is reconciled. Awaiting Celery's results would cost more with every date.
    """
    period = context.settings.reconcile_seconds
    last_ended, last_change, note = -1, time.monotonic(), ""
    orders_done = 0
    while True:
        started = time.monotonic()
        progress = context.ledger.runs.get_progress(run_id)
        poll_seconds = time.monotonic() - started
        is_quiet = time.monotonic() - last_change > QUIET_SECONDS
        show(replace(progress, note=_join_notes(note, *(_quiet_notes(progress.run, context) if is_quiet else ()))))
        if progress.run.has_ended:
            return progress
        if progress.ended != last_ended:
            last_ended, last_change, note = progress.ended, time.monotonic(), ""
        if stack is not None and app is not None:
            orders = context.ledger.actions.list_actions(run_id)
            for order in orders[orders_done:]:
                _carry_out_order(order, progress.run, context, CeleryDispatcher(app))
            orders_done = len(orders)
        if stack is not None and stack.restart_dead():
            note = _ask_reconcile(app, run_id, lost_tasks=True)
        elif time.monotonic() - last_change > period:
            note = _ask_reconcile(app, run_id, expires=period)
            last_change = time.monotonic()
        if stack is None and is_interrupted(progress.run):
            return progress
        time.sleep(_poll_delay(poll_seconds))


def _quiet_notes(run: Run, context: CommandContext) -> Sequence[str]:
    """Why nothing moves: the workers that fell silent lately, and those that cannot work."""
    lately = utcnow() - SILENCE_SHOWN_FOR
    silent = [worker for worker in list_silent_workers(run, context.ledger) if worker.seen_at > lately]
    faulty = list_faulty_workers(context.ledger, run)
    faults = [faulty.describe_stop() or "; ".join(worker.describe_fault() for worker in faulty.workers)]
    return [*(worker.describe_silence() for worker in silent), *faults]


def _join_notes(*notes: str) -> str:
    return "; ".join(filter(None, notes))


def _poll_delay(poll_seconds: float) -> float:
    """Seconds until the next poll, longer when polling is slow."""
    return min(max(POLL_SECONDS, poll_seconds / MAX_POLLING_SHARE), MAX_POLL_SECONDS)


def _ask_reconcile(app: Celery | None, run_id: str, *, lost_tasks: bool = False, expires: float | None = None) -> str:
    """Ask a worker to reconcile the run; returns a warning when that may not happen, else an empty text."""
    if app is None:
        return ""
    dispatcher = CeleryDispatcher(app)
    try:
        is_unconsumed = not lost_tasks and dispatcher.count_waiting(MAINTENANCE_QUEUE) >= MAX_WAITING_MAINTENANCE
        dispatcher.send_reconcile(run_id, lost_tasks=lost_tasks, expires=expires)
    except BrokerUnavailable as exc:
        return str(exc)
    return NO_MAINTENANCE_WORKER if is_unconsumed else ""


def _carry_out_order(order: ActionRow, run: Run, context: CommandContext, dispatcher: CeleryDispatcher) -> None:
    """Send the workers the messages for an order in the ledger."""
    if order.action is RunAction.RESUMED:
        continue_run(run, find_job(run.job), context, dispatcher)
    elif order.action is RunAction.CANCELLED:
        if order.details.get("now"):
            dispatcher.stop_dates(run.id)
        dispatcher.send_reconcile(run.id, lost_tasks=True)


def release_dead_runs(job: Job, days: tuple[date, ...], context: CommandContext) -> list[ReleasedRun]:
    """Release the active runs on these dates whose process has died."""
    conflicting_ids = context.ledger.runs.find_conflicting_runs(job.name, days)
    dead = [run for run in map(context.ledger.runs.get_run, conflicting_ids) if is_interrupted(run)]
    return [
        release_run(
            run, job, context.ledger, context.warehouse, context.staging, by=SYSTEM_ACTOR, reason=ITS_PROCESS_DIED
        )
        for run in dead
    ]
