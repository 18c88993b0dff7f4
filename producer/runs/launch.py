"""Opening a run, sending its first windows, and following it to its end through the ledger."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from datetime import date
from typing import Any

from celery import Celery

from gated_backfill.common.broker.celery_app import CeleryDispatcher
from gated_backfill.common.errors import BrokerUnavailable
from gated_backfill.common.ledger import (
    ActionRow,
    DateState,
    NewDate,
    NewRun,
    Run,
    RunProgress,
    RunState,
    WindowState,
    dates_in_use_error,
)
from gated_backfill.common.ledger import RunAction as Ordered
from gated_backfill.common.model.coverage import Verdict
from gated_backfill.common.model.dates import chunk_dates
from gated_backfill.common.model.job import Job
from gated_backfill.common.model.queues import MAINTENANCE_QUEUE, choose_queue
from gated_backfill.common.model.registry import find_job
from gated_backfill.common.model.run_options import RunOptions
from gated_backfill.common.process.identity import process_identity
from gated_backfill.common.runs.enqueue import enqueue_next_windows, requeue_lost_dates
from gated_backfill.common.runs.interrupted import is_interrupted
from gated_backfill.common.runs.release import ITS_PROCESS_DIED, SYSTEM_ACTOR, ReleasedRun, release_run
from gated_backfill.producer.context import CommandContext, current_user
from gated_backfill.producer.planning.plan import Plan, PlanAction, PlanStep, find_missing_entities
from gated_backfill.producer.stack.embedded import EmbeddedStack

SEQUENTIAL_MODULE = "gated_backfill.worker.inline"  #: loaded by name, as tasks are sent by name
POLL_SECONDS = 0.2
MAX_POLL_SECONDS = 1.0
MAX_POLLING_SHARE = 0.02  #: of the time, that asking how a run stands may take
MAX_WAITING_MAINTENANCE = 2  #: messages for maintenance at once that a worker would not leave lying
NO_MAINTENANCE_WORKER = "nothing brings it on after a loss: no worker for the maintenance queue takes anything"


def open_run(plan: Plan, job: Job, options: RunOptions, site: CommandContext, *, owned: bool) -> Run:
    """Write the run down, planned. With `owned` it lives and dies with this process.

    Raises `DatesTaken`, and writes nothing, when an active run of the job holds one of the dates.
    """
    new = NewRun(
        job=job.name,
        job_version=job.version,
        options=options.to_dict(),
        requested=plan.summary(),
        requested_by=current_user(),
        reason=plan.request.reason,
        owner=process_identity() if owned else None,
        dates=tuple(_dates(plan, job, options, site)),
    )
    build = sum(one.window is not None for one in new.dates)
    express = site.settings.express_dates

    def queue(taken: Collection[str]) -> str:
        return choose_queue(build, express_dates=express, active_queues=taken)

    return site.ledger.runs.open_run(new, queue=None if owned else queue)


def _dates(plan: Plan, job: Job, options: RunOptions, site: CommandContext) -> list[NewDate]:
    build = [step.day for step in plan.steps_with(PlanAction.BUILD)]
    window_of = {day: number for number, days in enumerate(chunk_dates(build, options.window), 1) for day in days}
    blocked = {step.day: step for step in plan.steps_with(PlanAction.BLOCKED)}
    names = find_missing_entities(list(blocked), job, blocked, site.warehouse) if blocked else {}
    ends = {
        PlanAction.SKIP: (DateState.SKIPPED, Verdict.SKIPPED),
        PlanAction.BLOCKED: (DateState.BLOCKED, Verdict.BLOCKED),
    }

    def ended(step: PlanStep) -> NewDate:
        state, verdict = ends[step.action]
        facts: dict[str, Any] = {
            "reason": f"pre-flight: {step.reason}" if step.action is PlanAction.BLOCKED else step.reason,
            "verdict": verdict.value,
            "expected": step.expected,
            "found": dict(step.found),
            "source": step.source,
            "matched": step.supplied,
            "missing": names.get(step.day, []),
        }
        return NewDate(day=step.day, state=state, columns=facts)

    return [
        NewDate(day=step.day, window=window_of[step.day]) if step.action is PlanAction.BUILD else ended(step)
        for step in plan.steps
        if step.action is not PlanAction.DONE
    ]


def start_run(run: Run, job: Job, site: CommandContext, app: Celery) -> None:
    """Set a planned run going: open its first windows and send their tasks."""
    site.ledger.runs.move_run(run.id, expect=[RunState.PLANNED], to=RunState.RUNNING)
    dispatcher = CeleryDispatcher(app)
    enqueue_next_windows(run, job, site.ledger, dispatcher)
    end = site.ledger.runs.finish_run(run.id)  # at once, when every date was ended by the plan
    if end is not None and run.owner is None:
        dispatcher.send_post_run(run.id)


def continue_run(run: Run, job: Job, site: CommandContext, dispatcher: CeleryDispatcher) -> None:
    """Set a run going that was paused: send what was consumed meanwhile, and open the next windows."""
    for window in site.ledger.windows.list_windows(run.id, [WindowState.OPEN]):
        requeue_lost_dates(
            run,
            window.number,
            job,
            site.ledger,
            dispatcher,
            include_queued=True,
            max_deaths=site.settings.max_deaths,
        )
    enqueue_next_windows(run, job, site.ledger, dispatcher)


def run_sequentially(run: Run, job: Job, site: CommandContext, show: Callable[[RunProgress], None]) -> RunProgress:
    """Run a planned run to its end in this process, with the functions that the workers' tasks call."""
    shown = time.monotonic()

    def step() -> None:
        nonlocal shown
        if time.monotonic() - shown >= POLL_SECONDS:
            show(site.ledger.runs.get_progress(run.id))
            shown = time.monotonic()

    engine = importlib.import_module(SEQUENTIAL_MODULE)
    engine.run_sequentially(run, job, site.settings, step)
    progress = site.ledger.runs.get_progress(run.id)
    show(progress)
    return progress


def follow_run(
    run_id: str,
    site: CommandContext,
    show: Callable[[RunProgress], None],
    *,
    app: Celery | None,
    stack: EmbeddedStack | None = None,
) -> RunProgress:
    """Watch a run in the ledger until it ends. Restarts what dies of an embedded stack, and has a stuck run reconciled.

    What others order of a run is carried out here when its stack is embedded: nobody else knows its broker.

    Celery's own results are never waited for: that costs more with every date.
    """
    period = site.settings.reconcile_seconds
    last_ended, last_change, note = -1, time.monotonic(), ""
    obeyed = 0
    while True:
        asked = time.monotonic()
        progress = site.ledger.runs.get_progress(run_id)
        took = time.monotonic() - asked
        show(replace(progress, note=note))
        if progress.run.has_ended:
            return progress
        if progress.ended != last_ended:
            last_ended, last_change, note = progress.ended, time.monotonic(), ""
        if stack is not None and app is not None:
            orders = site.ledger.actions.list_actions(run_id)
            for order in orders[obeyed:]:
                _carry_out(order, progress.run, site, CeleryDispatcher(app))
            obeyed = len(orders)
        if stack is not None and stack.restart_dead():
            note = _have_reconciled(app, run_id, lost_tasks=True)
        elif time.monotonic() - last_change > period:
            note = _have_reconciled(app, run_id, expires=period)
            last_change = time.monotonic()
        if stack is None and is_interrupted(progress.run):
            return progress
        time.sleep(_pause(took))


def _pause(took: float) -> float:
    """Seconds until a run is asked after again, which may take long of many dates or over a network."""
    return min(max(POLL_SECONDS, took / MAX_POLLING_SHARE), MAX_POLL_SECONDS)


def _have_reconciled(app: Celery | None, run_id: str, *, lost_tasks: bool = False, expires: float | None = None) -> str:
    """Have a worker bring the run on; returns what speaks against that it will. A broker may be on its way back."""
    if app is None:
        return ""
    dispatcher = CeleryDispatcher(app)
    try:
        untaken = not lost_tasks and dispatcher.count_waiting(MAINTENANCE_QUEUE) >= MAX_WAITING_MAINTENANCE
        dispatcher.send_reconcile(run_id, lost_tasks=lost_tasks, expires=expires)
    except BrokerUnavailable as exc:
        return str(exc)
    return NO_MAINTENANCE_WORKER if untaken else ""


def _carry_out(order: ActionRow, run: Run, site: CommandContext, dispatcher: CeleryDispatcher) -> None:
    """Have the workers do at once what the ledger says already."""
    if order.action is Ordered.RESUMED:
        continue_run(run, find_job(run.job), site, dispatcher)
    elif order.action is Ordered.CANCELLED:
        if order.details.get("now"):
            dispatcher.stop_dates(run.id)
        dispatcher.send_reconcile(run.id, lost_tasks=True)


def release_dead_runs(job: Job, days: tuple[date, ...], site: CommandContext) -> list[ReleasedRun]:
    """Close the active runs on these dates whose process is gone, so that their dates are free again."""
    holders = (site.ledger.runs.get_run(run_id) for run_id in site.ledger.runs.find_conflicting_runs(job.name, days))
    dead = [run for run in holders if is_interrupted(run)]
    return [
        release_run(run, job, site.ledger, site.warehouse, site.staging, by=SYSTEM_ACTOR, reason=ITS_PROCESS_DIED)
        for run in dead
    ]


def check_dates_free(job: Job, days: list[date], site: CommandContext) -> None:
    """Raises `DatesTaken` when an active run of the job holds one of the days."""
    for run_id, held in site.ledger.runs.find_conflicting_runs(job.name, days).items():
        raise dates_in_use_error(site.ledger.runs.get_run(run_id), held)
