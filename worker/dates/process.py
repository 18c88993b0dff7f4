"""Process the dates of one task: claim them, build and stage their rows, and record how each attempt ended."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from datetime import date

import structlog
from billiard.exceptions import SoftTimeLimitExceeded

from gated_backfill.common.errors import (
    BackfillError,
    ExpectationUnreadable,
    HostError,
    LedgerUnavailable,
    Retryable,
    UserError,
)
from gated_backfill.common.ledger import DateRow, DateState, Run
from gated_backfill.common.ledger.rows import failure_columns
from gated_backfill.common.model.coverage import Verdict
from gated_backfill.common.model.dates import summarize_dates
from gated_backfill.common.model.registry import find_job
from gated_backfill.common.model.run_options import RunOptions
from gated_backfill.common.warehouse.labels import label_work
from gated_backfill.common.warehouse.usage import charging
from gated_backfill.worker.dates.build import BuiltDate, build_dates
from gated_backfill.worker.dates.claims import DatesTask, release_when_stopped, requeue_despite_outage
from gated_backfill.worker.dates.failures import SoftTimeLimitReached, translate_job_errors
from gated_backfill.worker.dates.hard_time_limit import enqueue_separately
from gated_backfill.worker.dates.outcomes import NOT_CLAIMED, AttemptOutcome, RetryLater
from gated_backfill.worker.dependencies import Deps
from gated_backfill.worker.host.checks import HostFaulty, confirm_staging, describe_error, is_suspicious
from gated_backfill.worker.run_job import can_ask_another, check_job_version, describe_missing_job

log = structlog.get_logger()


class _SharedTimeLimitReached(Exception):
    """A task of several dates reached the soft time limit; which of them took so long is unknown."""


def process_dates(run_id: str, days: Sequence[date], deps: Deps, *, retries: int = 0) -> list[AttemptOutcome]:
    """Process dates of a run, together as far as possible. A repeated or late call changes nothing.

    A date that fails does not fail the others: they are processed without it. Outcomes are in the ledger before they
    are returned. `retries` is the number of earlier executions of the task.

    Raises `RetryLater` after a transient error, while the ledger is unavailable, or when the soft time limit is reached
    outside the job's code; `HostFaulty` if this host cannot work, after the dates were given back;
    `SystemExit` and `KeyboardInterrupt` when the process is told to stop. Nothing else.
    """
    with _log_context(run_id, days):
        try:
            return _process(run_id, days, deps, retries)
        except (LedgerUnavailable, SoftTimeLimitExceeded) as exc:  # no date is the cause
            timed_out = isinstance(exc, SoftTimeLimitExceeded)
            log.warning("soft_time_limit_outside_job" if timed_out else "ledger_unavailable", error=str(exc))
            requeue_despite_outage(run_id, days, deps)
            raise RetryLater(deps.settings.date_retries.delay_seconds(retries)) from exc
        except (SystemExit, KeyboardInterrupt):
            release_when_stopped(run_id, days, deps)
            raise


def _log_context(run_id: str, days: Sequence[date]) -> AbstractContextManager[None]:
    fields = {"day": days[0].isoformat()} if len(days) == 1 else {"days": summarize_dates(days)}
    return structlog.contextvars.bound_contextvars(run=run_id, **fields)


def _process(run_id: str, days: Sequence[date], deps: Deps, retries: int) -> list[AttemptOutcome]:
    run = deps.cached_run(run_id)
    with label_work(job=run.job, run=run_id), charging(run_id):
        return _process_run(run, days, deps, retries)


def _process_run(run: Run, days: Sequence[date], deps: Deps, retries: int) -> list[AttemptOutcome]:
    try:
        job = find_job(run.job)
        check_job_version(run, job, "worker")
    except UserError as exc:
        return _fail_without_job(run.id, days, deps, exc, retries)
    options = RunOptions.from_dict(run.options)
    task = DatesTask(run=run, job=job, options=options, deps=deps, retries=retries, is_single=len(days) == 1)
    _check_staging(run, deps)
    outcomes: dict[date, AttemptOutcome] = {}
    while remaining := [day for day in days if day not in outcomes]:
        claimed = task.claim(remaining)
        if not claimed:
            # Another worker has them: if it loses or releases them, reconcile sends them again.
            return [*outcomes.values(), *(AttemptOutcome(day=day, state=NOT_CLAIMED) for day in remaining)]
        try:
            outcomes |= {outcome.day: outcome for outcome in _build_or_fail(task, claimed)}
        except _SharedTimeLimitReached:
            return [*outcomes.values(), *_requeue_separately(task, remaining)]
    return list(outcomes.values())


def _check_staging(run: Run, deps: Deps) -> None:
    """Raise `HostFaulty` if what this host has is not the run's staging: before anything is claimed or built."""
    if deps.is_only_host:
        return
    try:
        confirm_staging(run, deps.staging)
    except HostError as exc:
        if (fault := deps.find_fault(run)) is not None:
            raise HostFaulty(fault) from exc


def _fail_without_job(
    run_id: str, days: Sequence[date], deps: Deps, exc: UserError, retries: int
) -> list[AttemptOutcome]:
    """Retry on a worker that may have the job, in the run's version; after the last retry, fail the dates."""
    log.error("job_not_loaded", error_kind=exc.kind, error=str(exc))
    policy = deps.settings.date_retries
    if can_ask_another(exc, policy, retries):
        raise RetryLater(policy.delay_seconds(retries)) from exc
    reason = describe_missing_job(exc, "worker")
    columns = failure_columns(exc.kind, reason, reason)
    deps.ledger.dates.move_dates(run_id, days, expect=DateState.QUEUED, to=DateState.FAILED, **columns)
    return [AttemptOutcome(day=day, state=DateState.FAILED.value, detail=reason) for day in days]


def _build_or_fail(task: DatesTask, claimed: Sequence[DateRow]) -> list[AttemptOutcome]:
    """Build the claimed dates; on failure, split them until the failing date is alone."""
    started = time.monotonic()
    try:
        with translate_job_errors(task.job, task.deps.settings):
            return _build(task, claimed, started)
    except LedgerUnavailable:
        raise
    except (Retryable, HostError) as exc:
        has_fault = _check_host(task, claimed, exc)
        if has_fault or not task.can_retry:
            return _split_or_fail(task, claimed, exc, started)
        log.warning("dates_retried", error_kind=exc.kind, error=str(exc), attempt=claimed[0].attempt)
        task.requeue([row.day for row in claimed], error_kind=exc.kind, error=str(exc), error_place=exc.job_place)
        raise task.retry_later() from exc
    except BackfillError as exc:
        _check_host(task, claimed, exc)
        return _split_or_fail(task, claimed, exc, started)


def _check_host(task: DatesTask, claimed: Sequence[DateRow], exc: BackfillError) -> bool:
    """Give the dates back and raise `HostFaulty` if the error is of this host, which a check tells.

    Returns whether it is, where no other host could take the dates.
    """
    deps = task.deps
    if not is_suspicious(exc) or (fault := deps.find_fault(task.run)) is None:
        return False
    if deps.is_only_host:
        return True
    days = [row.day for row in claimed]
    log.warning("dates_given_back", dates=summarize_dates(days), error=str(exc), fault=fault.kind.value)
    deps.ledger.claims.return_dates(task.run.id, days, owner=deps.owner)
    raise HostFaulty(fault) from exc


def _build(task: DatesTask, claimed: Sequence[DateRow], started: float) -> list[AttemptOutcome]:
    with label_work(window=claimed[0].window):  # all dates of a task are of one window
        built_dates = build_dates(task.job, task.options, claimed, task.deps)
    seconds = (time.monotonic() - started) / len(claimed)
    used = task.take_usage([row for row in claimed if row.day in {built.day for built in built_dates}])
    released = task.release(
        {
            built.day: (built.state, {**built.columns, **used.get(built.day, {}), "seconds": seconds})
            for built in built_dates
        }
    )
    outcomes: list[AttemptOutcome] = []
    for built in built_dates:
        if built.day in released:
            _log_built(built)
            outcomes.append(AttemptOutcome(day=built.day, state=built.state.value, detail=built.reason))
        elif built.staged is not None:  # no gate will read this file
            task.deps.staging.delete_attempt(task.run.id, built.day, built.staged.attempt)
    unclaimed = [row.day for row in claimed if row.day not in released]
    if unclaimed:
        log.info("date_claims_lost", count=len(unclaimed))
    return outcomes + [AttemptOutcome(day=day, state=NOT_CLAIMED) for day in unclaimed]


def _log_built(built: BuiltDate) -> None:
    day = built.day.isoformat()
    if built.staged is not None:
        log.info("date_staged", day=day, rows=built.staged.rows, source=built.reason)
    else:
        log.info("date_ended", day=day, state=built.state.value, reason=built.reason)


def _split_or_fail(
    task: DatesTask, claimed: Sequence[DateRow], exc: BackfillError, started: float
) -> list[AttemptOutcome]:
    """Fail a single date; build several dates again in two halves, as the others may succeed."""
    if isinstance(exc, SoftTimeLimitReached) and not task.is_single:
        raise _SharedTimeLimitReached from exc
    if len(claimed) == 1 or task.deps.ends_run(exc):
        return [_end_failed(task, row, exc, started) for row in claimed]
    days = summarize_dates([row.day for row in claimed])
    log.warning("failed_batch_split", dates=days, error_kind=exc.kind, error=str(exc))
    middle = len(claimed) // 2
    outcomes: list[AttemptOutcome] = []
    retry: RetryLater | None = None
    for half in (claimed[:middle], claimed[middle:]):
        try:
            outcomes += _build_or_fail(task, half)
        except RetryLater as later:
            retry = later
    if retry is not None:
        raise retry
    return outcomes


def _end_failed(task: DatesTask, row: DateRow, exc: BackfillError, started: float) -> AttemptOutcome:
    """Record a date as failed, or as blocked if its expectation could not be read."""
    day, error = row.day.isoformat(), describe_error(exc, task.deps.owner)
    if isinstance(exc, ExpectationUnreadable):
        state, columns = DateState.BLOCKED, {"verdict": Verdict.BLOCKED.value, "reason": str(exc)}
        log.info("date_ended", day=day, state=state.value, reason=str(exc))
    else:
        state, columns = DateState.FAILED, failure_columns(exc.kind, error, f"{exc.kind}: {error}", exc.job_place)
        log.error("date_failed", day=day, error_kind=exc.kind, error=str(exc), exc_info=exc.__cause__ or exc)
    if task.deps.ends_run(exc):
        task.deps.ledger.dates.fail_remaining_dates(task.run.id, exc.kind, error, exc.job_place)
    used = task.take_usage([row])
    task.release({row.day: (state, {**columns, **used.get(row.day, {}), "seconds": time.monotonic() - started})})
    return AttemptOutcome(day=row.day, state=state.value, detail=str(exc))


def _requeue_separately(task: DatesTask, days: Sequence[date]) -> list[AttemptOutcome]:
    """Requeue the remaining dates in tasks of one date, so that each has the whole time limit."""
    deps = task.deps
    reason = "together they reached the soft time limit"
    log.warning("dates_enqueued_separately", dates=summarize_dates(days), reason=reason)
    task.requeue(days)
    rows = deps.ledger.dates.list_dates(task.run.id, days=days)
    queued = [row for row in rows if row.state is DateState.QUEUED]
    enqueue_separately(task.run, queued, task.job, deps.ledger, deps.dispatcher)
    return [AttemptOutcome(day=row.day, state=row.state.value) for row in rows]
