"""The dates of one task: claim them, build and stage their rows, and write down how each went."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import structlog
from billiard.exceptions import SoftTimeLimitExceeded

from gated_backfill.common.broker.celery_app import Dispatcher
from gated_backfill.common.errors import (
    BackfillError,
    ExpectationUnreadable,
    LedgerUnavailable,
    NotAllowed,
    Retryable,
    TookTooLong,
    UserError,
)
from gated_backfill.common.ledger import DateRow, DateState, Ledger, Run
from gated_backfill.common.ledger.rows import DateColumns
from gated_backfill.common.model.coverage import Verdict
from gated_backfill.common.model.dates import summarize_dates
from gated_backfill.common.model.job import Job
from gated_backfill.common.model.registry import find_job
from gated_backfill.common.model.run_options import RunOptions
from gated_backfill.common.process.clock import utcnow
from gated_backfill.common.process.identity import is_dead
from gated_backfill.common.runs.enqueue import enqueue_dates
from gated_backfill.worker.dates.backoff import backoff
from gated_backfill.worker.dates.build import BuiltDate, build_dates
from gated_backfill.worker.dates.failures import SoftTimeLimitReached, translate_job_errors
from gated_backfill.worker.dependencies import Deps

log = structlog.get_logger()

RELEASE_DELAYS_SECONDS = (0.0, 0.2, 1.0)  #: that a ledger out of reach is given to come back
NOT_CLAIMED = "not ours to process"


class RetryLater(Exception):
    """The dates should be processed again after so many seconds."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"again in {seconds:.1f} s")
        self.seconds = seconds


class _TimeIsUp(Exception):
    """The soft time limit was reached by a task of several dates: which of them took so long is not known."""


@dataclass(frozen=True, kw_only=True)
class AttemptOutcome:
    """How one attempt at one date ended."""

    day: date
    state: str
    detail: str = ""


def process_dates(run_id: str, days: Sequence[date], deps: Deps, *, retries: int = 0) -> list[AttemptOutcome]:
    """Process dates of a run, together as far as they can be. A repeated or late call changes nothing.

    One that fails fails alone: those with it are processed without it. The outcomes are in the ledger before they are
    returned. Raises nothing but `TryAgain`: after a transient error, while another worker's lease on one of the dates
    still runs, while the ledger is out of reach, or when the soft time limit is reached outside the job's work.
    """
    wait = backoff(retries, deps.settings.retry_seconds)
    with _logged(run_id, days):
        try:
            return _process(run_id, days, deps, retries)
        except (LedgerUnavailable, SoftTimeLimitExceeded) as exc:  # on the way to the job or back: no date is to blame
            up = isinstance(exc, SoftTimeLimitExceeded)
            log.warning("soft_time_limit_outside_job" if up else "ledger_unavailable", error=str(exc))
            _let_go(run_id, days, deps)
            raise RetryLater(wait) from exc


def _logged(run_id: str, days: Sequence[date]) -> AbstractContextManager[None]:
    named = {"day": days[0].isoformat()} if len(days) == 1 else {"days": summarize_dates(days)}
    return structlog.contextvars.bound_contextvars(run=run_id, **named)


@dataclass(frozen=True, kw_only=True)
class _Task:
    """What a task works on, and for the how-many-eth time."""

    run: Run
    job: Job
    options: RunOptions
    deps: Deps
    retries: int
    alone: bool  #: it has one date, which has the time limit to itself

    @property
    def may_be_retried(self) -> bool:
        return self.retries < self.deps.settings.max_retries

    def again(self) -> RetryLater:
        return RetryLater(backoff(self.retries, self.deps.settings.retry_seconds))

    def claim(self, days: Sequence[date]) -> list[DateRow]:
        deps = self.deps
        until = utcnow() + timedelta(seconds=self.job.time_limit_seconds) + deps.settings.lease_grace
        return deps.ledger.claims.claim_dates(
            self.run.id, days, deps.owner, until, is_dead=is_dead, max_deaths=deps.settings.max_deaths
        )

    def leave(self, ends: dict[date, tuple[DateState, DateColumns]]) -> frozenset[date]:
        return self.deps.ledger.claims.release_dates(self.run.id, ends, owner=self.deps.owner)


def _process(run_id: str, days: Sequence[date], deps: Deps, retries: int) -> list[AttemptOutcome]:
    run = deps.cached_run(run_id)
    try:
        job = find_job(run.job)
    except UserError as exc:
        return _without_job(run_id, days, deps, exc, retries)
    options = RunOptions.from_dict(run.options)
    task = _Task(run=run, job=job, options=options, deps=deps, retries=retries, alone=len(days) == 1)
    outcomes: dict[date, AttemptOutcome] = {}
    while left := [day for day in days if day not in outcomes]:
        claimed = task.claim(left)
        if not claimed:
            return [*outcomes.values(), *_not_claimed(task, left)]
        try:
            outcomes |= {one.day: one for one in _work_on(task, claimed)}
        except _TimeIsUp:
            return [*outcomes.values(), *_sent_alone(task, left)]
    return list(outcomes.values())


def _work_on(task: _Task, claimed: Sequence[DateRow]) -> list[AttemptOutcome]:
    """Build the claimed dates; what fails is split until the one that is to blame is alone."""
    started = time.monotonic()
    try:
        with translate_job_errors(task.deps.settings):
            return _built(task, claimed, started)
    except LedgerUnavailable:
        raise
    except Retryable as exc:
        if task.may_be_retried:
            _give_back(task, claimed, exc)
            raise task.again() from exc
        return _narrowed(task, claimed, exc, started)
    except BackfillError as exc:
        return _narrowed(task, claimed, exc, started)


def _built(task: _Task, claimed: Sequence[DateRow], started: float) -> list[AttemptOutcome]:
    built = build_dates(task.job, task.options, claimed, task.deps)
    seconds = (time.monotonic() - started) / len(claimed)
    left = task.leave({one.day: (one.state, {**one.columns, "seconds": seconds}) for one in built})
    for one in built:
        if one.day in left:
            _tell(one)
        elif one.staged is not None:  # no gate will ever look for it
            task.deps.staging.delete_attempt(task.run.id, one.day, one.staged.attempt)
    if unwanted := [row.day for row in claimed if row.day not in left]:
        log.info("date_claims_lost", count=len(unwanted))
    return [
        *(AttemptOutcome(day=one.day, state=one.state.value, detail=one.reason) for one in built if one.day in left),
        *(AttemptOutcome(day=day, state=NOT_CLAIMED) for day in unwanted),
    ]


def _tell(built: BuiltDate) -> None:
    day = built.day.isoformat()
    if built.staged is not None:
        log.info("date_staged", day=day, rows=built.staged.rows, source=built.reason)
    else:
        log.info("date_ended", day=day, state=built.state.value, reason=built.reason)


def _narrowed(task: _Task, claimed: Sequence[DateRow], exc: BackfillError, started: float) -> list[AttemptOutcome]:
    """What becomes of dates of which one, or more, can't be built."""
    if isinstance(exc, SoftTimeLimitReached) and not task.alone:
        raise _TimeIsUp from exc
    if len(claimed) == 1:
        return [_ended(task, claimed[0], exc, started)]
    if isinstance(exc, NotAllowed):  # which none of them is
        return [_ended(task, row, exc, started) for row in claimed]
    log.warning(
        "failed_batch_split", dates=summarize_dates([row.day for row in claimed]), error_kind=exc.kind, error=str(exc)
    )
    middle = len(claimed) // 2
    outcomes: list[AttemptOutcome] = []
    again: RetryLater | None = None
    for half in (claimed[:middle], claimed[middle:]):
        try:
            outcomes += _work_on(task, half)
        except RetryLater as later:
            again = later
    if again is not None:
        raise again
    return outcomes


def _sent_alone(task: _Task, days: Sequence[date]) -> list[AttemptOutcome]:
    """Have each of the dates that is not done processed in a task of its own, with the time limit to itself."""
    deps = task.deps
    log.warning(
        "dates_enqueued_separately",
        dates=summarize_dates(days),
        reason="the time limit was reached by all of them together",
    )
    deps.ledger.dates.move_dates(task.run.id, days, expect=DateState.PROCESSING, to=DateState.QUEUED, owner=deps.owner)
    rows = deps.ledger.dates.list_dates(task.run.id, days=days)
    queued = [row for row in rows if row.state is DateState.QUEUED]
    enqueue_separately(task.run, queued, task.job, deps.ledger, deps.dispatcher)
    return [AttemptOutcome(day=row.day, state=row.state.value) for row in rows]


def enqueue_separately(run: Run, rows: Sequence[DateRow], job: Job, ledger: Ledger, dispatcher: Dispatcher) -> None:
    """Send queued dates of one window, each in a task of its own."""
    if rows:
        enqueue_dates(run, rows[0].window or 0, job, [row.day for row in rows], ledger, dispatcher, one_per_task=True)


def _let_go(run_id: str, days: Sequence[date], deps: Deps) -> None:
    """Give back what this worker holds of the dates: a claim, or an end, may have reached the ledger unanswered.

    Nobody else could take them before its lease has run out, and then this worker would count as dead.
    """
    for pause in RELEASE_DELAYS_SECONDS:
        time.sleep(pause)
        try:
            deps.ledger.dates.move_dates(
                run_id, days, expect=DateState.PROCESSING, to=DateState.QUEUED, owner=deps.owner
            )
        except LedgerUnavailable as exc:
            log.warning("dates_not_released", error=str(exc))
        else:
            return


def _without_job(run_id: str, days: Sequence[date], deps: Deps, exc: UserError, retries: int) -> list[AttemptOutcome]:
    """This worker does not have the job; another may. Once that has been tried, the dates are failed."""
    log.error("job_not_loaded", error=str(exc))
    if retries < deps.settings.max_retries:
        raise RetryLater(backoff(retries, deps.settings.retry_seconds)) from exc
    why = f"the worker on {socket.gethostname()} can't work on it: {exc}"
    facts = _failure(exc.kind, why, why)
    deps.ledger.dates.move_dates(run_id, days, expect=DateState.QUEUED, to=DateState.FAILED, **facts)
    return [AttemptOutcome(day=day, state=DateState.FAILED.value, detail=why) for day in days]


def _not_claimed(task: _Task, days: Sequence[date]) -> list[AttemptOutcome]:
    """Another worker may hold one of them: it may have died unseen on another host, so come back after its lease."""
    lease = task.deps.ledger.claims.earliest_lease_end(task.run.id, days)
    if lease is not None:
        raise RetryLater(max((lease - utcnow()).total_seconds(), 0) + 1)
    return [AttemptOutcome(day=day, state=NOT_CLAIMED) for day in days]


def handle_hard_time_limit(
    run_id: str, days: Sequence[date], ledger: Ledger, *, owner: str, seconds: float
) -> list[DateRow]:
    """What becomes of a task that is killed at its hard time limit; returns the dates that are to be sent again, alone.

    A date that had the limit to itself is failed: it would else be given to one worker after the other, for as long
    each time. Of several nobody knows which took so long.
    """
    held = [
        row
        for row in ledger.dates.list_dates(run_id, states=[DateState.PROCESSING], days=days)
        if row.lease_owner == owner
    ]
    why = f"took longer than its hard time limit of {seconds:g} s"
    log.error("hard_time_limit_reached", run=run_id, days=[row.day.isoformat() for row in held], error=why)
    if len(days) > 1:
        for deaths in {row.deaths for row in held}:
            alike = [row.day for row in held if row.deaths == deaths]
            ledger.dates.move_dates(
                run_id,
                alike,
                expect=DateState.PROCESSING,
                to=DateState.QUEUED,
                owner=owner,
                deaths=deaths + 1,
            )
        return ledger.dates.list_dates(run_id, states=[DateState.QUEUED], days=days)
    facts = _failure(TookTooLong.__name__, why, why)
    for row in held:
        ledger.dates.move_date(run_id, row.day, expect=DateState.PROCESSING, to=DateState.FAILED, owner=owner, **facts)
    return []


def _ended(task: _Task, row: DateRow, exc: BackfillError, started: float) -> AttemptOutcome:
    """The end of a date that can't be built: blocked or failed, with the reason."""
    state, facts = DateState.FAILED, _failure(exc.kind, str(exc), f"{exc.kind}: {exc}")
    if isinstance(exc, ExpectationUnreadable):
        state, facts = DateState.BLOCKED, {"verdict": Verdict.BLOCKED.value, "reason": str(exc)}
        log.info("date_ended", day=row.day.isoformat(), state=state.value, reason=str(exc))
    else:
        log.error(
            "date_failed", day=row.day.isoformat(), error_kind=exc.kind, error=str(exc), exc_info=exc.__cause__ or exc
        )
    if isinstance(exc, NotAllowed):  # nor would the other dates be allowed
        task.deps.ledger.dates.fail_remaining_dates(task.run.id, exc.kind, str(exc))
    task.leave({row.day: (state, {**facts, "seconds": time.monotonic() - started})})
    return AttemptOutcome(day=row.day, state=state.value, detail=str(exc))


def _failure(kind: str, error: str, reason: str) -> dict[str, Any]:
    return {"verdict": Verdict.FAILED.value, "reason": reason, "error_kind": kind, "error": error}


def _give_back(task: _Task, claimed: Sequence[DateRow], exc: Retryable) -> None:
    days = [row.day for row in claimed]
    log.warning("dates_retried", error_kind=exc.kind, error=str(exc), attempt=claimed[0].attempt)
    task.deps.ledger.dates.move_dates(
        task.run.id,
        days,
        expect=DateState.PROCESSING,
        to=DateState.QUEUED,
        owner=task.deps.owner,
        error_kind=exc.kind,
        error=str(exc),
    )
