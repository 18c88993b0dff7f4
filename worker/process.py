"""One date: claim it, choose its source, build its rows, stage them, and write down how it went."""

from __future__ import annotations

import socket
import time
import traceback
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import structlog
from billiard.exceptions import SoftTimeLimitExceeded

from common.clock import utcnow
from common.coverage import Judgement, Verdict, judge_truth
from common.errors import (
    BackfillError,
    ExpectationUnreadable,
    LedgerUnavailable,
    MemoryExhausted,
    NotAllowed,
    ProcessFailed,
    Retryable,
    TookTooLong,
    UserError,
)
from common.interrupted import interruption_behind
from common.job import Batch, Job, find_job
from common.ledger import DateRow, DateState, Ledger
from common.measure import input_fingerprint
from common.options import RunOptions
from common.processes import is_dead
from common.schema import TableName, to_arrow
from common.settings import Settings
from worker.deps import Deps
from worker.sources import SourceCheck, check_sources, read_inputs, read_rows

log = structlog.get_logger()

LONGEST_WAIT_SECONDS = 60.0
MOST_MISSING_NAMES = 500  #: kept in the ledger; the count is always kept
LET_GO_AFTER_SECONDS = (0.0, 0.2, 1.0)  #: that a ledger out of reach is given to come back
NOT_OURS = "not ours to process"


class TryAgain(Exception):
    """The date should be processed again after so many seconds."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"again in {seconds:.1f} s")
        self.seconds = seconds


class _Stopped(Exception):
    """The date is not this worker's any more: its run was paused, or cancelled, or somebody else has it."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How one attempt at one date ended: what a chord's header returns."""

    day: date
    state: str
    detail: str = ""


def backoff(retries: int, first_seconds: float) -> float:
    """Seconds to wait before retry number `retries` (0 is the first): they double, up to a minute."""
    return min(first_seconds * 2**retries, LONGEST_WAIT_SECONDS)


def process_date(run_id: str, day: date, deps: Deps, *, retries: int = 0) -> Outcome:
    """Process one date of a run. A repeated or late call changes nothing.

    The outcome is in the ledger before it is returned. Raises nothing but `TryAgain`: after a transient error, while
    another worker's lease on the date still runs, or while the ledger is out of reach.
    """
    wait = backoff(retries, deps.settings.retry_seconds)
    with structlog.contextvars.bound_contextvars(run=run_id, day=day.isoformat()):
        try:
            return _process(run_id, day, deps, retries)
        except LedgerUnavailable as exc:
            log.warning("ledger_unavailable", error=str(exc))
            _let_go(run_id, day, deps)
            raise TryAgain(wait) from exc


def _process(run_id: str, day: date, deps: Deps, retries: int) -> Outcome:
    run = deps.ledger.run(run_id)
    try:
        job = find_job(run.job)
    except UserError as exc:
        return _without_job(run_id, day, deps, exc, retries)
    until = utcnow() + timedelta(seconds=job.time_limit_seconds) + deps.settings.lease_grace
    claimed = deps.ledger.claim_date(
        run_id, day, deps.owner, until, is_dead=is_dead, max_deaths=deps.settings.max_deaths
    )
    if claimed is None:
        return _not_claimed(run_id, day, deps)
    started = time.monotonic()
    try:
        with _failures_of_the_job(deps.settings):
            outcome = _build(job, RunOptions.restored(run.options), claimed, deps, started)
    except _Stopped:
        log.info("date_not_wanted")
        return Outcome(day=day, state=NOT_OURS)
    except Retryable as exc:
        if retries < deps.settings.max_retries:
            _give_back(claimed, deps, exc)
            raise TryAgain(backoff(retries, deps.settings.retry_seconds)) from exc
        outcome = _failed(claimed, deps, exc, started)
    except ExpectationUnreadable as exc:
        blocked = Judgement(verdict=Verdict.BLOCKED, reason=str(exc))
        outcome = _end(claimed, deps, blocked, facts={}, started=started)
    except BackfillError as exc:
        outcome = _failed(claimed, deps, exc, started)
    return outcome


def _let_go(run_id: str, day: date, deps: Deps) -> None:
    """Give back the date if this worker holds it: its claim, or its end, may have reached the ledger unanswered.

    Nobody else could take it before its lease has run out, and then this worker would count as dead.
    """
    for pause in LET_GO_AFTER_SECONDS:
        time.sleep(pause)
        try:
            deps.ledger.move_date(run_id, day, expect=DateState.PROCESSING, to=DateState.QUEUED, owner=deps.owner)
        except LedgerUnavailable as exc:
            log.warning("date_not_given_back", error=str(exc))
        else:
            return


def _without_job(run_id: str, day: date, deps: Deps, exc: UserError, retries: int) -> Outcome:
    """This worker does not have the job; another may. Once that has been tried, the date is failed."""
    log.error("job_not_loaded", error=str(exc))
    if retries < deps.settings.max_retries:
        raise TryAgain(backoff(retries, deps.settings.retry_seconds)) from exc
    why = f"the worker on {socket.gethostname()} can't work on it: {exc}"
    deps.ledger.move_date(
        run_id,
        day,
        expect=DateState.QUEUED,
        to=DateState.FAILED,
        verdict=Verdict.FAILED.value,
        reason=why,
        error_kind=exc.kind,
        error=why,
    )
    return Outcome(day=day, state=DateState.FAILED.value, detail=why)


def _not_claimed(run_id: str, day: date, deps: Deps) -> Outcome:
    """Another worker may hold the date: it may have died unseen on another host, so come back after its lease."""
    lease = deps.ledger.lease_of(run_id, day)
    if lease is not None:
        raise TryAgain(max((lease - utcnow()).total_seconds(), 0) + 1)
    return Outcome(day=day, state=NOT_OURS)


def out_of_time(run_id: str, day: date, ledger: Ledger, *, owner: str, seconds: float) -> bool:
    """Fail a date that the owner still processes at its hard time limit; returns whether it did.

    It would else be given to one worker after the other, for as long each time.
    """
    why = f"took longer than its hard time limit of {seconds:g} s"
    log.error("date_failed", run=run_id, day=day.isoformat(), error=why)
    return ledger.move_date(
        run_id,
        day,
        expect=DateState.PROCESSING,
        to=DateState.FAILED,
        owner=owner,
        verdict=Verdict.FAILED.value,
        reason=why,
        error_kind=TookTooLong.__name__,
        error=why,
    )


@contextmanager
def _failures_of_the_job(settings: Settings) -> Generator[None]:
    """Whatever a job's code or its data raise is a failed date, never a failed chord."""
    try:
        yield
    except BackfillError as exc:
        if _is_out_of_memory(exc):
            raise _memory_exhausted(exc, settings) from None
        raise
    except _Stopped:
        raise
    except Exception as exc:
        interruption = interruption_behind(exc)
        if isinstance(interruption, SoftTimeLimitExceeded):
            raise ProcessFailed("took longer than its soft time limit") from exc
        if interruption is not None:
            raise interruption from None
        if _is_out_of_memory(exc):
            raise _memory_exhausted(exc, settings) from None
        raise ProcessFailed(f"{type(exc).__name__}: {exc}") from exc


def _is_out_of_memory(exc: BaseException | None) -> bool:
    """Whether that is what it came of: Arrow's and NumPy's errors are Python's, DuckDB's is not."""
    while exc is not None:
        if isinstance(exc, (MemoryError, duckdb.OutOfMemoryException)):
            return True
        exc = exc.__cause__
    return False


def _memory_exhausted(exc: BaseException, settings: Settings) -> MemoryExhausted:
    """The error without what it came of: the frames of that hold on to the memory, which writing it down needs."""
    cause: BaseException | None = exc
    while cause is not None:
        traceback.clear_frames(cause.__traceback__)
        cause = cause.__cause__
    limit = f"more than {settings.worker_memory_mb} MB" if settings.worker_memory_mb else "all that the machine has"
    return MemoryExhausted(f"exhausted its memory: {limit}")


def _build(job: Job, options: RunOptions, claimed: DateRow, deps: Deps, started: float) -> Outcome:
    day = claimed.day
    target = TableName.parse(job.target.table)
    before = deps.warehouse.fingerprints(target, job.target.date_column, [day])[day]
    check = check_sources(deps.warehouse, job, options, day)
    _obey(claimed, deps, begun=False)
    inputs = input_fingerprint(deps.warehouse, job, day)
    facts = _facts(check)
    about_truth = judge_truth(check.truth)
    forced = options.forced_because is not None and bool(check.supplied)
    if about_truth is not None and not forced:
        return _end(claimed, deps, about_truth, facts=facts, started=started)
    rows = _rows(job, check, day, deps)
    _obey(claimed, deps, begun=True)
    staged = deps.staging.write(claimed.run_id, day, claimed.attempt, rows)
    facts |= {
        "staged_path": staged.location,
        "checksum": staged.checksum,
        "rows": staged.rows,
        "target_before": before,
        "inputs": inputs,
        "error": None,
        "error_kind": None,
        "seconds": time.monotonic() - started,
    }
    moved = deps.ledger.move_date(
        claimed.run_id, day, expect=DateState.PROCESSING, to=DateState.STAGED, owner=deps.owner, **facts
    )
    if not moved:  # no gate will ever look for it
        deps.staging.withdraw(claimed.run_id, day, claimed.attempt)
        raise _Stopped
    log.info("date_staged", rows=staged.rows, source=check.choice.label)
    return Outcome(day=day, state=DateState.STAGED.value, detail=check.choice.label)


def _obey(claimed: DateRow, deps: Deps, *, begun: bool) -> None:
    """Raises `_Stopped` when the run was ordered to pause or to stop since, and that concerns this date."""
    if not deps.ledger.obey(claimed.run_id, claimed.day, deps.owner, begun=begun):
        raise _Stopped


def _rows(job: Job, check: SourceCheck, day: date, deps: Deps) -> pa.Table:
    batch = Batch(
        days=(day,),
        rows=read_rows(deps.warehouse, job, check, day),
        inputs=read_inputs(deps.warehouse, job, [day]),
    )
    made = job.process(batch)
    if not isinstance(made, pd.DataFrame):  # pyright: ignore[reportUnnecessaryIsInstance] - an author may err
        raise ProcessFailed(f"process returned a {type(made).__name__}, not a DataFrame", day=day)
    rows = to_arrow(made, job.target.columns, f"the rows of job {job.name}")
    strangers = set(rows[job.target.date_column].unique().to_pylist()) - {day}
    if strangers:
        raise ProcessFailed(f"process returned rows of other dates: {sorted(map(str, strangers))[:3]}", day=day)
    return rows.sort_by([(name, "ascending") for name in (job.target.date_column, *job.target.key)])


def _facts(check: SourceCheck) -> dict[str, Any]:
    return {
        "expected": len(check.expected),
        "found": check.found,
        "source": check.choice.label,
        "source_reason": check.choice.reason,
        "matched": len(check.supplied),
        "missing": sorted(check.expected - check.supplied)[:MOST_MISSING_NAMES],
    }


def _end(claimed: DateRow, deps: Deps, judgement: Judgement, *, facts: Mapping[str, Any], started: float) -> Outcome:
    """End a date that is not staged: skipped or blocked, with the reason."""
    state = {Verdict.SKIPPED: DateState.SKIPPED, Verdict.BLOCKED: DateState.BLOCKED}[judgement.verdict]
    deps.ledger.move_date(
        claimed.run_id,
        claimed.day,
        expect=DateState.PROCESSING,
        to=state,
        owner=deps.owner,
        verdict=judgement.verdict.value,
        reason=judgement.reason,
        seconds=time.monotonic() - started,
        **facts,
    )
    log.info("date_ended", state=state.value, reason=judgement.reason)
    return Outcome(day=claimed.day, state=state.value, detail=judgement.reason)


def _failed(claimed: DateRow, deps: Deps, exc: BackfillError, started: float) -> Outcome:
    cause = exc.__cause__ or exc
    if isinstance(exc, NotAllowed):  # nor would the other dates be allowed
        deps.ledger.fail_rest(claimed.run_id, exc.kind, str(exc))
    log.error("date_failed", error_kind=exc.kind, error=str(exc), exc_info=cause)
    deps.ledger.move_date(
        claimed.run_id,
        claimed.day,
        expect=DateState.PROCESSING,
        to=DateState.FAILED,
        owner=deps.owner,
        verdict=Verdict.FAILED.value,
        reason=f"{exc.kind}: {exc}",
        error_kind=exc.kind,
        error=str(exc),
        seconds=time.monotonic() - started,
    )
    return Outcome(day=claimed.day, state=DateState.FAILED.value, detail=str(exc))


def _give_back(claimed: DateRow, deps: Deps, exc: Retryable) -> None:
    log.warning("date_retried", error_kind=exc.kind, error=str(exc), attempt=claimed.attempt)
    deps.ledger.move_date(
        claimed.run_id,
        claimed.day,
        expect=DateState.PROCESSING,
        to=DateState.QUEUED,
        owner=deps.owner,
        error_kind=exc.kind,
        error=str(exc),
    )
