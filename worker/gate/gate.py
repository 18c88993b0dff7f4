"""The gate: recount, judge, publish, checkpoint, in that order, each step repeatable.

It is called as the chord's body, and by reconcile. Being called early, twice, or after another gate died in the middle
does no harm: it takes a window under a lease, reads everything from ledger and staging, and every change names the
state it expects.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from enum import Enum
from typing import Any

import pyarrow as pa
import structlog

from gated_backfill.common.errors import (
    BackfillError,
    ExpectationUnreadable,
    NotAllowed,
    Retryable,
    StagedFileLost,
    UserError,
)
from gated_backfill.common.ledger import DateRow, DateState, Run, WindowState
from gated_backfill.common.ledger.states import READY_FOR_GATE, UNFINISHED_DATES
from gated_backfill.common.model.coverage import MISSING_NAMES_STORED, Judgement, Recount, Verdict, judge_date
from gated_backfill.common.model.job import Job
from gated_backfill.common.model.publication import PublishResult
from gated_backfill.common.model.registry import find_job
from gated_backfill.common.model.run_options import RunOptions
from gated_backfill.common.model.tables import TableName
from gated_backfill.common.process.clock import utcnow
from gated_backfill.common.process.identity import is_dead
from gated_backfill.common.process.signals import find_interruption
from gated_backfill.common.runs.enqueue import enqueue_dates, enqueue_next_windows
from gated_backfill.common.runs.release import find_still_published
from gated_backfill.worker.dependencies import Deps
from gated_backfill.worker.gate.recount import recount
from gated_backfill.worker.post_run import schedule_post_run

log = structlog.get_logger()

MAX_ATTEMPTS = 5  #: of a date whose target keeps changing under it, or whose staged file keeps getting lost


class GateOutcome(Enum):
    """What became of a window."""

    CLOSED = "closed"  #: every date of it has its end
    NOT_READY = "not ready"  #: some dates are still to be processed; nothing was touched
    NOT_CLAIMED = "not ours"  #: another gate has it, or it is closed, or the run has ended
    REQUEUED = "sent back"  #: some dates are processed again; the others have their end


@dataclass(frozen=True, kw_only=True)
class _Held:
    """A window under this gate's lease. Another gate may take it over once the lease has run out."""

    run: Run
    number: int
    job: Job
    deps: Deps

    def hold(self) -> None:
        """Renew the lease: asked before each step that changes anything. Raises `_LeaseLost`."""
        until = utcnow() + self.deps.settings.gate_lease
        if not self.deps.ledger.windows.renew_window(self.run.id, self.number, self.deps.owner, until):
            raise _LeaseLost(f"window {self.number} of run {self.run.id}")

    def move(self, row: DateRow, to: DateState, **facts: Any) -> bool:
        """Move a date, if it is still where it was and the window is still this gate's."""
        holder = (self.number, self.deps.owner)
        return self.deps.ledger.dates.move_date(self.run.id, row.day, expect=row.state, to=to, gate=holder, **facts)

    def leave(self, to: WindowState) -> bool:
        return self.deps.ledger.windows.release_window(self.run.id, self.number, self.deps.owner, to=to)


class _LeaseLost(Exception):
    """This gate took so long that its window is another's, or the run was ended meanwhile."""


@dataclass(frozen=True, kw_only=True)
class _Judged:
    """The staged dates of a window with their verdicts."""

    verdicts: Mapping[date, Judgement]
    counts: Mapping[date, Recount] = field(default_factory=dict[date, Recount])

    def days(self, *, passing: bool) -> list[date]:
        return [day for day, judgement in self.verdicts.items() if judgement.verdict.is_passing is passing]


def close_window(run_id: str, number: int, deps: Deps, *, is_last_attempt: bool = False) -> GateOutcome:
    """Give every date of a window its end, and open the next window or end the run.

    Raises `Retryable` for a passing trouble, unless it is the last try: then the dates are blocked or failed with it.
    """
    run = deps.ledger.runs.get_run(run_id)
    began, until = time.monotonic(), utcnow() + deps.settings.gate_lease
    if run.has_ended or not deps.ledger.windows.claim_window(run_id, number, deps.owner, until, is_dead=is_dead):
        return GateOutcome.NOT_CLAIMED
    with structlog.contextvars.bound_contextvars(run=run_id, window=number):
        try:
            job = find_job(run.job)
        except UserError as exc:
            return _without_job(run, number, deps, exc, last_try=is_last_attempt)
        window = _Held(run=run, number=number, job=job, deps=deps)
        try:
            outcome = _close(window, last_try=is_last_attempt)
        except _LeaseLost:
            log.warning("gate_lease_lost")
            outcome = GateOutcome.NOT_CLAIMED
        except BaseException:
            window.leave(WindowState.OPEN)
            raise
        log.info("window_gated", outcome=outcome.value, seconds=round(time.monotonic() - began, 4))
    return outcome


def _without_job(run: Run, number: int, deps: Deps, exc: UserError, *, last_try: bool) -> GateOutcome:
    """This gate does not have the job; another may. Once that has been tried, its dates and the run's rest fail."""
    log.error("job_not_loaded", error=str(exc))
    if not last_try:
        deps.ledger.windows.release_window(run.id, number, deps.owner, to=WindowState.OPEN)
        raise Retryable(str(exc)) from exc
    why = f"the gate on {socket.gethostname()} can't work on it: {exc}"
    facts = {"verdict": Verdict.FAILED.value, "reason": why, "error_kind": exc.kind, "error": why}
    for row in deps.ledger.dates.list_dates(run.id, window=number):
        if row.state in (DateState.STAGED, DateState.PUBLISHED):
            holder = (number, deps.owner)
            deps.ledger.dates.move_date(run.id, row.day, expect=row.state, to=DateState.FAILED, gate=holder, **facts)
    deps.ledger.dates.fail_remaining_dates(run.id, exc.kind, why)
    deps.ledger.windows.release_window(run.id, number, deps.owner, to=WindowState.CLOSED)
    if deps.ledger.runs.finish_run(run.id) is not None:
        schedule_post_run(run, deps)
    return GateOutcome.CLOSED


def _close(window: _Held, *, last_try: bool) -> GateOutcome:
    run, number, deps = window.run, window.number, window.deps
    dates = deps.ledger.dates.list_dates(run.id, window=number)
    if any(row.state not in READY_FOR_GATE for row in dates):
        window.leave(WindowState.OPEN)
        return GateOutcome.NOT_READY
    try:
        if (deaths := deps.ledger.windows.get_window(run.id, number).deaths) >= deps.settings.max_deaths:
            again = _bury(window, dates, deaths)
        else:
            again = _settle(window, dates, last_try=last_try)
    except _LeaseLost:
        raise
    except Retryable as exc:
        if not last_try:
            raise
        again = _give_up(window, exc)
    except Exception as exc:  # noqa: BLE001 - the edge: a window that can't be gated fails its dates, not the run
        if (interruption := find_interruption(exc)) is not None:
            raise interruption from None
        again = _give_up(window, exc)
    if again:
        window.leave(WindowState.OPEN)
        enqueue_dates(run, number, window.job, again, deps.ledger, deps.dispatcher)
        return GateOutcome.REQUEUED
    if deps.ledger.dates.list_dates(run.id, window=number, states=UNFINISHED_DATES):
        window.leave(WindowState.OPEN)
        return GateOutcome.NOT_READY
    if not window.leave(WindowState.CLOSED):
        return GateOutcome.NOT_CLAIMED
    advance_run(run, window.job, deps)
    return GateOutcome.CLOSED


def _settle(window: _Held, dates: Sequence[DateRow], *, last_try: bool) -> list[date]:
    """Recount, judge, publish, checkpoint. Returns the dates that have to be processed again."""
    run, deps = window.run, window.deps
    published = [row for row in dates if row.state is DateState.PUBLISHED]
    kept = find_still_published(published, window.job, deps.warehouse)  # an earlier gate died here; who knows when
    deps.ledger.checkpoints.write(run.id, kept, gate=(window.number, deps.owner))
    staged = {row.day: row for row in dates if row.state is DateState.STAGED}
    tables, lost = _read(staged.values(), deps)
    judged = _judge(window, tables, last_try=last_try)
    del tables  # the rows are not needed to publish their files
    window.hold()
    deps.ledger.dates.record_verdicts(run.id, _noted(judged), gate=(window.number, deps.owner))
    _block(window, judged, staged)
    receipt = _publish(window, [staged[day] for day in judged.days(passing=True)])
    again = _send_back(window, [staged[day] for day in sorted(lost | receipt.lost)], "the staged file was lost")
    overwritten = [row for row in published if row.day not in kept]
    overwritten += [staged[day] for day in sorted(receipt.conflicting)]
    again += _send_back(window, overwritten, "the target changed since it was staged")
    return again


def _read(staged: Iterable[DateRow], deps: Deps) -> tuple[dict[date, pa.Table], frozenset[date]]:
    """What was staged, by its day, and the days of which it is lost."""
    found: dict[date, pa.Table] = {}
    lost: set[date] = set()
    for row in staged:
        try:
            found[row.day] = deps.staging.rows(row.staged_file())
        except StagedFileLost:
            lost.add(row.day)
    return found, frozenset(lost)


def _judge(window: _Held, staged: Mapping[date, pa.Table], *, last_try: bool) -> _Judged:
    """A verdict for each date's rows; without a readable expectation, every one of them is blocked."""
    unreadable = (ExpectationUnreadable, *((Retryable,) if last_try else ()))
    options = RunOptions.from_dict(window.run.options)
    try:
        counts = recount(window.deps.warehouse, window.job, staged, require_calendar=options.calendar)
    except unreadable as exc:
        log.error("expectation_unreadable", error=str(exc))
        blocked = Judgement(verdict=Verdict.BLOCKED, reason=str(exc))
        return _Judged(verdicts=dict.fromkeys(staged, blocked))
    verdicts = {
        day: judge_date(counted, policy=options.policy, forced_because=options.forced_because)
        for day, counted in counts.items()
    }
    return _Judged(verdicts=verdicts, counts=counts)


def _noted(judged: _Judged) -> dict[date, dict[str, Any]]:
    def noted(day: date, judgement: Judgement) -> dict[str, Any]:
        facts: dict[str, Any] = {"verdict": judgement.verdict.value, "reason": judgement.reason}
        counted = judged.counts.get(day)
        if counted is not None:
            facts |= {
                "expected": counted.expectation.expected,
                "matched": counted.matched,
                "rows": counted.rows,
                "missing": list(counted.missing[:MISSING_NAMES_STORED]),
            }
        return facts

    return {day: noted(day, judgement) for day, judgement in judged.verdicts.items()}


def _block(window: _Held, judged: _Judged, staged: Mapping[date, DateRow]) -> None:
    for day in judged.days(passing=False):
        window.hold()
        verdict = judged.verdicts[day]
        kept = window.deps.staging.quarantine(window.run.id, staged[day].staged_file())
        window.move(staged[day], DateState.BLOCKED, staged_path=kept)
        log.warning("date_blocked", day=day.isoformat(), reason=verdict.reason, quarantined=kept)


def _publish(window: _Held, passing: Sequence[DateRow]) -> PublishResult:
    """Publish, then checkpoint: never the other way, so that no checkpoint is without its data."""
    if not passing:
        return PublishResult(published=frozenset())
    run, target, deps = window.run, window.job.target, window.deps
    window.hold()
    receipt = deps.warehouse.publish(
        TableName.parse(target.table),
        target.date_column,
        [row.staged_file() for row in passing],
        fingerprints_when_staged={row.day: row.target_before or "" for row in passing},
        publication=f"{run.id}/{window.number}",
    )
    _prove(window, receipt.published)
    return receipt


def _prove(window: _Held, days: Collection[date]) -> None:
    """Checkpoint dates whose target holds exactly what was staged."""
    run, ledger = window.run, window.deps.ledger
    window.hold()  # a date that another gate has sent back since is no longer what was published
    holder = (window.number, window.deps.owner)
    ledger.dates.move_dates(run.id, days, expect=DateState.STAGED, to=DateState.PUBLISHED, gate=holder)
    proven = ledger.checkpoints.write(run.id, days, gate=holder)
    window.deps.staging.delete(run.id, frozenset(proven))
    log.info("dates_checkpointed", count=len(proven))


def _send_back(window: _Held, rows: Sequence[DateRow], why: str) -> list[date]:
    """Queue dates again, unless that has been tried too often."""
    again: list[date] = []
    for row in rows:
        log.warning("date_requeued", day=row.day.isoformat(), reason=why, attempt=row.attempt)
        if row.attempt >= MAX_ATTEMPTS:
            _fail(window, row, "SentBackTooOften", f"{why}, {row.attempt} times")
        elif window.move(row, DateState.QUEUED, verdict=None):
            again.append(row.day)
    return again


def _give_up(window: _Held, exc: Exception) -> list[date]:
    """Fail what is still staged: the gate could not work on it. What did get published is proven, not failed."""
    log.error("gate_failed", error=str(exc), exc_info=exc)
    kind = exc.kind if isinstance(exc, BackfillError) else type(exc).__name__
    window.hold()
    if isinstance(exc, NotAllowed):
        window.deps.ledger.dates.fail_remaining_dates(window.run.id, kind, str(exc))
    staged = window.deps.ledger.dates.list_dates(window.run.id, window=window.number, states=[DateState.STAGED])
    try:
        visible = find_still_published(staged, window.job, window.deps.warehouse)
    except Retryable as unknown:  # readers may see their rows, or not: neither is known, so neither is said
        log.error("target_unreadable", error=str(unknown))
        return []
    _prove(window, visible)
    for row in staged:
        if row.day not in visible:
            _fail(window, row, kind, f"the gate could not publish it: {exc}")
    return []


def _bury(window: _Held, dates: Sequence[DateRow], deaths: int) -> list[date]:
    """Fail the dates of a window on which gate after gate died. What is published is proven, not failed.

    Should even looking that up have killed a gate, it is not looked up again.
    """
    log.error("window_abandoned", deaths=deaths)
    window.hold()
    unproven = [row for row in dates if row.state in (DateState.STAGED, DateState.PUBLISHED)]
    look = deaths == window.deps.settings.max_deaths
    visible = find_still_published(unproven, window.job, window.deps.warehouse) if look else []
    _prove(window, visible)
    for row in unproven:
        if row.day not in visible:
            _fail(window, row, "GateLost", f"the gate died {deaths} times on it (out of memory, a crash, or killed)")
    return []


def _fail(window: _Held, row: DateRow, kind: str, why: str) -> None:
    window.move(
        row,
        DateState.FAILED,
        verdict=Verdict.FAILED.value,
        reason=why,
        error_kind=kind,
        error=why,
    )


def advance_run(run: Run, job: Job, deps: Deps) -> None:
    """Open the windows that may be open now, and end the run when none is left."""
    enqueue_next_windows(run, job, deps.ledger, deps.dispatcher)
    end = deps.ledger.runs.finish_run(run.id)
    if end is not None:
        deps.staging.delete(run.id)
        log.info("run_ended", run=run.id, state=end.value)
        schedule_post_run(run, deps)
