"""The gate: recount, judge, publish, checkpoint, in that order; each step can be repeated.

A chord calls it when the dates of a window are processed, and so does reconcile. Calling it early, twice, or after
another gate died does no harm: it claims the window under a lease, reads everything from ledger and staging, and every
change names the state it expects.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import date
from enum import Enum

import structlog

from gated_backfill.common.errors import HostError, LeaseTakenOver, Retryable, StagedFileLost, UserError
from gated_backfill.common.ledger import DateRow, DateState, Run, WindowState
from gated_backfill.common.ledger.states import READY_FOR_GATE, UNFINISHED_DATES
from gated_backfill.common.model.job import Job
from gated_backfill.common.model.registry import find_job
from gated_backfill.common.process.clock import utcnow
from gated_backfill.common.process.signals import find_interruption
from gated_backfill.common.runs.enqueue import enqueue_dates, enqueue_next_windows
from gated_backfill.common.runs.release import find_still_published
from gated_backfill.common.warehouse.labels import label_work
from gated_backfill.common.warehouse.usage import charging
from gated_backfill.worker.dependencies import Deps
from gated_backfill.worker.gate.failures import (
    UNPROVEN,
    abandon_window,
    decide_abandonment,
    fail_staged,
    fail_without_job,
)
from gated_backfill.worker.gate.publish import (
    checkpoint_published,
    publish_and_checkpoint,
    quarantine_blocked,
    requeue_dates,
)
from gated_backfill.worker.gate.staged_contents import read_staged_contents
from gated_backfill.worker.gate.verdicts import JudgedDates, judge_staged
from gated_backfill.worker.gate.window import LeasedWindow, LeaseLost
from gated_backfill.worker.host.checks import HostFaulty, confirm_staging
from gated_backfill.worker.post_run import schedule_post_run
from gated_backfill.worker.releases import release_despite_outage
from gated_backfill.worker.run_job import can_ask_another, check_job_version

log = structlog.get_logger()


class GateOutcome(Enum):
    """How a gate left its window."""

    CLOSED = "closed"  #: all its dates have ended
    NOT_READY = "not ready"  #: some dates have not ended yet: the window stays open, and a later gate finishes it
    NOT_CLAIMED = "not claimed"  #: another gate has claimed it, or it is closed, or the run has ended
    REQUEUED = "requeued"  #: some dates are built again; the others have ended


def close_window(
    run_id: str, number: int, deps: Deps, *, is_last_attempt: bool = False, retries: int = 0
) -> GateOutcome:
    """End every date of a window, then open the next window or end the run.

    `number` is the window's, from 1; `retries` the number of earlier calls by this task. Raises `Retryable` for a
    transient error, unless `is_last_attempt`: then the dates are blocked or failed with that error. If this host cannot
    work, raises `HostFaulty` and leaves the window to another gate.
    """
    run = deps.ledger.runs.get_run(run_id)
    started, until = time.monotonic(), utcnow() + deps.settings.gate_lease
    if run.has_ended:
        return GateOutcome.NOT_CLAIMED
    generation = deps.ledger.windows.claim_window(
        run_id, number, deps.owner, until, is_dead=deps.ledger.heartbeats.is_lost
    )
    if generation is None:
        return GateOutcome.NOT_CLAIMED
    with (
        structlog.contextvars.bound_contextvars(run=run_id, window=number),
        label_work(job=run.job, run=run_id, window=number),
        charging(run_id),
    ):
        try:
            outcome = _close_leased(run, number, generation, deps, is_last_attempt=is_last_attempt, retries=retries)
        except (LeaseLost, LeaseTakenOver):
            log.warning("gate_lease_lost")
            outcome = GateOutcome.NOT_CLAIMED
        except BaseException as exc:
            windows, owner = deps.ledger.windows, deps.owner
            release_despite_outage(
                lambda: windows.release_window(run_id, number, owner, to=WindowState.OPEN),
                is_stopped=not isinstance(exc, Exception),
            )
            raise
        log.info("window_gated", outcome=outcome.value, seconds=round(time.monotonic() - started, 4))
    return outcome


def _close_leased(
    run: Run, number: int, generation: int, deps: Deps, *, is_last_attempt: bool, retries: int
) -> GateOutcome:
    try:
        job = find_job(run.job)
        check_job_version(run, job, "gate")
    except UserError as exc:
        is_last = is_last_attempt or not can_ask_another(exc, deps.settings.date_retries, retries)
        fail_without_job(run, number, generation, deps, exc, is_last_attempt=is_last)
        return GateOutcome.CLOSED
    window = LeasedWindow(run=run, number=number, generation=generation, job=job, deps=deps)
    return _close(window, is_last_attempt=is_last_attempt)


def _close(window: LeasedWindow, *, is_last_attempt: bool) -> GateOutcome:
    run, number, deps = window.run, window.number, window.deps
    dates = deps.ledger.dates.list_dates(run.id, window=number)
    if any(row.state not in READY_FOR_GATE for row in dates):
        window.release(WindowState.OPEN)
        return GateOutcome.NOT_READY
    requeued = _gate_or_fail(window, dates, is_last_attempt=is_last_attempt)
    if requeued:
        window.release(WindowState.OPEN)
        enqueue_dates(run, number, window.job, requeued, deps.ledger, deps.dispatcher)
        return GateOutcome.REQUEUED
    if deps.ledger.dates.list_dates(run.id, window=number, states=UNFINISHED_DATES):
        window.release(WindowState.OPEN)
        return GateOutcome.NOT_READY
    if not window.release(WindowState.CLOSED):
        return GateOutcome.NOT_CLAIMED
    advance_run(run, window.job, deps)
    return GateOutcome.CLOSED


def _gate_or_fail(window: LeasedWindow, dates: Sequence[DateRow], *, is_last_attempt: bool) -> list[date]:
    """Gate the window; an error that a retry cannot help fails its dates. Returns the dates to build again."""
    try:
        confirm_staging(window.run, window.deps.staging)
        window.fence_earlier_gates(dates)
        leased = window.deps.ledger.windows.get_window(window.run.id, window.number)
        abandonment = decide_abandonment(leased, window.deps.settings)
        if abandonment is None:
            return _gate(window, dates, is_last_attempt=is_last_attempt)
        abandon_window(window, dates, abandonment)
    except (LeaseLost, LeaseTakenOver, HostFaulty):
        raise
    except Retryable as exc:
        if not is_last_attempt:
            raise
        fail_staged(window, exc)
    except Exception as exc:
        interruption = find_interruption(exc)
        if interruption is not None:
            raise interruption from None
        if window.find_fault(exc) is None and isinstance(exc, HostError) and not is_last_attempt:
            raise Retryable(str(exc)) from exc
        fail_staged(window, exc)
    return []


def _gate(window: LeasedWindow, dates: Sequence[DateRow], *, is_last_attempt: bool) -> list[date]:
    """Recount, judge, publish, checkpoint. Returns the dates to build again."""
    run, deps = window.run, window.deps
    published = [row for row in dates if row.state is DateState.PUBLISHED]
    passed = [row for row in dates if row.state in UNPROVEN]  # by an earlier gate, which may have published them
    unchanged = find_still_published(passed, window.job, deps.warehouse)
    if unchanged:
        checkpoint_published(window, unchanged)
    staged = {row.day: row for row in dates if row.state is DateState.STAGED and row.day not in unchanged}
    judgements, missing_files = _judge_intact(window, staged, is_last_attempt=is_last_attempt)
    window.renew_lease()
    deps.ledger.dates.record_verdicts(run.id, judgements.ledger_columns(), gate=window.holder)
    quarantine_blocked(window, judgements, staged)
    result = publish_and_checkpoint(window, [staged[day] for day in judgements.days(passing=True)])
    target_changed = [row for row in published if row.day not in unchanged]
    target_changed += [staged[day] for day in sorted(result.conflicting | judgements.changed)]
    return [
        *requeue_dates(
            window, [staged[day] for day in sorted(missing_files | result.lost)], "its staged file was lost"
        ),
        *requeue_dates(window, target_changed, "another program changed its rows in the target after it was staged"),
    ]


def _judge_intact(
    window: LeasedWindow, staged: Mapping[date, DateRow], *, is_last_attempt: bool
) -> tuple[JudgedDates, frozenset[date]]:
    """Judge the dates whose staged file is there and unchanged; return their verdicts, and the other dates."""
    run, staging = window.run, window.deps.staging
    for _ in range(len(staged) + 1):
        contents, missing_files = read_staged_contents(
            staged.values(), window.job, staging, window.deps.warehouse.query_staging
        )
        if missing_files:
            confirm_staging(run, staging)  # they may only be missing here
        try:
            return judge_staged(window, staged, contents, is_last_attempt=is_last_attempt), missing_files
        except StagedFileLost as exc:  # in the meantime: it is missing when the files are read again
            log.warning("staged_file_lost", day=exc.file_day.isoformat(), reason=str(exc))
    raise Retryable("the staged files keep changing while they are counted")


def advance_run(run: Run, job: Job, deps: Deps) -> None:
    """Open the windows that the run's limits allow, and end the run when none is left."""
    enqueue_next_windows(run, job, deps.ledger, deps.dispatcher)
    end = deps.ledger.runs.finish_run(run.id)
    if end is not None:
        log.info("run_ended", run=run.id, state=end.value)
        schedule_post_run(run, deps)
        try:
            deps.staging.delete(run.id)
        except (HostError, Retryable) as exc:  # retention deletes them later
            log.warning("staged_files_left", run=run.id, error=str(exc))
