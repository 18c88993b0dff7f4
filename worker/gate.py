"""The gate: recount, judge, publish, checkpoint, in that order, each step repeatable.

It is called as the chord's body, and by reconcile. Being called early, twice, or after another gate died in the middle
does no harm: it takes a window under a lease, reads everything from ledger and staging, and every change names the
state it expects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from enum import Enum
from typing import Any

import structlog

from common.clock import utcnow
from common.coverage import Judgement, Recount, Verdict, judge
from common.errors import BackfillError, ExpectationUnreadable, Retryable
from common.job import Job, find_job
from common.ledger import DateRow, DateState, Run, WindowState
from common.ledger.states import ENDED_DATES, READY_FOR_GATE
from common.options import RunOptions
from common.processes import is_dead
from common.recover import still_published
from common.schema import TableName
from common.warehouse.base import StagedFile
from worker.deps import Deps
from worker.process import MOST_MISSING_NAMES
from worker.recount import recount

log = structlog.get_logger()

MAX_ATTEMPTS = 5  #: of a date whose target keeps changing under it, or whose staged file keeps getting lost


class GateOutcome(Enum):
    """What became of a window."""

    CLOSED = "closed"  #: every date of it has its end
    NOT_READY = "not ready"  #: some dates are still to be processed; nothing was touched
    NOT_OURS = "not ours"  #: another gate has it, or it is closed, or the run has ended
    SENT_BACK = "sent back"  #: some dates are processed again; the others have their end


@dataclass(frozen=True, kw_only=True)
class _Judged:
    """The staged dates of a window with their verdicts."""

    verdicts: Mapping[date, Judgement]
    counts: Mapping[date, Recount] = field(default_factory=dict[date, Recount])

    def days(self, *, passing: bool) -> list[date]:
        return [day for day, judgement in self.verdicts.items() if judgement.verdict.passes is passing]


def close_window(run_id: str, number: int, deps: Deps, *, last_try: bool = False) -> GateOutcome:
    """Give every date of a window its end, and open the next window or end the run.

    Raises `Retryable` for a passing trouble, unless it is the last try: then the dates are blocked or failed with it.
    """
    run = deps.ledger.run(run_id)
    until = utcnow() + timedelta(seconds=deps.settings.gate_lease_seconds)
    if run.ended or not deps.ledger.claim_window(run_id, number, deps.owner, until, is_dead=is_dead):
        return GateOutcome.NOT_OURS
    with structlog.contextvars.bound_contextvars(run=run_id, window=number):
        try:
            outcome = _close(run, number, deps, last_try=last_try)
        except BaseException:
            deps.ledger.leave_window(run_id, number, deps.owner, to=WindowState.OPEN)
            raise
        log.info("window_gated", outcome=outcome.value)
    return outcome


def _close(run: Run, number: int, deps: Deps, *, last_try: bool) -> GateOutcome:
    job = find_job(run.job)
    dates = deps.ledger.dates(run.id, window=number)
    if any(row.state not in READY_FOR_GATE for row in dates):
        deps.ledger.leave_window(run.id, number, deps.owner, to=WindowState.OPEN)
        return GateOutcome.NOT_READY
    try:
        again = _settle(run, number, job, dates, deps, last_try=last_try)
    except Retryable as exc:
        if not last_try:
            raise
        again = _give_up(run, number, exc, deps)
    except Exception as exc:  # noqa: BLE001 - the edge: a window that can't be gated fails its dates, not the run
        again = _give_up(run, number, exc, deps)
    if again:
        deps.ledger.leave_window(run.id, number, deps.owner, to=WindowState.OPEN)
        deps.dispatcher.send_window(run.id, number, job, again)
        return GateOutcome.SENT_BACK
    if any(row.state not in ENDED_DATES for row in deps.ledger.dates(run.id, window=number)):
        deps.ledger.leave_window(run.id, number, deps.owner, to=WindowState.OPEN)
        return GateOutcome.NOT_READY
    deps.ledger.leave_window(run.id, number, deps.owner, to=WindowState.CLOSED)
    go_on(run, job, deps)
    return GateOutcome.CLOSED


def _settle(run: Run, number: int, job: Job, dates: Sequence[DateRow], deps: Deps, *, last_try: bool) -> list[date]:
    """Recount, judge, publish, checkpoint. Returns the dates that have to be processed again."""
    published = [row for row in dates if row.state is DateState.PUBLISHED]
    kept = still_published(published, job, deps.warehouse)  # an earlier gate died here; who knows how long ago
    deps.ledger.checkpoint(run.id, kept)
    staged = {row.day: row for row in dates if row.state is DateState.STAGED}
    files = {day: row.staged_file() for day, row in staged.items()}
    lost = [day for day, file in files.items() if not deps.staging.is_intact(file)]
    whole = {day: file for day, file in files.items() if day not in lost}
    judged = _judge(run, job, list(whole.values()), deps, last_try=last_try)
    deps.ledger.note_verdicts(run.id, _noted(judged))
    _block(run, judged, whole, deps)
    changed = _publish(run, number, job, [staged[day] for day in judged.days(passing=True)], deps)
    again = _send_back(run, [*(staged[day] for day in lost)], "the staged file was lost", deps)
    overwritten = [row for row in published if row.day not in kept]
    overwritten += [staged[day] for day in changed]
    again += _send_back(run, overwritten, "the target changed since it was staged", deps)
    return again


def _judge(run: Run, job: Job, files: Sequence[StagedFile], deps: Deps, *, last_try: bool) -> _Judged:
    """A verdict for each file's date; without a readable expectation, every one of them is blocked."""
    unreadable = (ExpectationUnreadable, *((Retryable,) if last_try else ()))
    options = RunOptions.restored(run.options)
    try:
        counts = recount(deps.warehouse, job, files)
    except unreadable as exc:
        log.error("expectation_unreadable", error=str(exc))
        blocked = Judgement(verdict=Verdict.BLOCKED, reason=str(exc))
        return _Judged(verdicts={staged.day: blocked for staged in files})
    verdicts = {
        day: judge(counted, policy=options.policy, forced_because=options.forced_because)
        for day, counted in counts.items()
    }
    return _Judged(verdicts=verdicts, counts=counts)


def _noted(judged: _Judged) -> dict[date, dict[str, Any]]:
    def noted(day: date, judgement: Judgement) -> dict[str, Any]:
        facts: dict[str, Any] = {"verdict": judgement.verdict.value, "reason": judgement.reason}
        counted = judged.counts.get(day)
        if counted is not None:
            facts |= {
                "expected": counted.truth.expected,
                "matched": counted.matched,
                "rows": counted.rows,
                "missing": list(counted.missing[:MOST_MISSING_NAMES]),
            }
        return facts

    return {day: noted(day, judgement) for day, judgement in judged.verdicts.items()}


def _block(run: Run, judged: _Judged, files: Mapping[date, StagedFile], deps: Deps) -> None:
    for day in judged.days(passing=False):
        verdict = judged.verdicts[day]
        kept = deps.staging.quarantine(run.id, files[day])
        deps.ledger.move_date(run.id, day, expect=DateState.STAGED, to=DateState.BLOCKED, staged_path=str(kept))
        log.warning("date_blocked", day=day.isoformat(), reason=verdict.reason, quarantined=str(kept))


def _publish(run: Run, number: int, job: Job, passing: Sequence[DateRow], deps: Deps) -> frozenset[date]:
    """Publish, then checkpoint: never the other way, so that no checkpoint is without its data.

    Returns the dates left alone because their target changed since they were staged.
    """
    if not passing or not deps.ledger.holds_window(run.id, number, deps.owner):
        return frozenset()
    receipt = deps.warehouse.publish(
        TableName.parse(job.target.table),
        job.target.date_column,
        [row.staged_file() for row in passing],
        unchanged_since={row.day: row.target_before or "" for row in passing},
        publication=f"{run.id}/{number}",
    )
    deps.ledger.move_dates(run.id, receipt.published, expect=DateState.STAGED, to=DateState.PUBLISHED)
    proven = deps.ledger.checkpoint(run.id, receipt.published)
    deps.staging.discard(run.id, frozenset(proven))
    log.info("dates_checkpointed", count=len(proven))
    return receipt.changed


def _send_back(run: Run, rows: Sequence[DateRow], why: str, deps: Deps) -> list[date]:
    """Queue dates again, unless that has been tried too often."""
    again: list[date] = []
    for row in rows:
        log.warning("date_sent_back", day=row.day.isoformat(), reason=why, attempt=row.attempt)
        if row.attempt < MAX_ATTEMPTS:
            deps.ledger.move_date(run.id, row.day, expect=row.state, to=DateState.QUEUED, verdict=None)
            again.append(row.day)
        else:
            _fail(run, row, "SentBackTooOften", f"{why}, {row.attempt} times", deps)
    return again


def _give_up(run: Run, number: int, exc: Exception, deps: Deps) -> list[date]:
    """Fail what is still staged: the gate could not work on it."""
    log.error("gate_failed", error=str(exc), exc_info=exc)
    kind = exc.kind if isinstance(exc, BackfillError) else type(exc).__name__
    for row in deps.ledger.dates(run.id, window=number, states=[DateState.STAGED]):
        _fail(run, row, kind, f"the gate could not publish it: {exc}", deps)
    return []


def _fail(run: Run, row: DateRow, kind: str, why: str, deps: Deps) -> None:
    deps.ledger.move_date(
        run.id,
        row.day,
        expect=row.state,
        to=DateState.FAILED,
        verdict=Verdict.FAILED.value,
        reason=why,
        error_kind=kind,
        error=why,
    )


def go_on(run: Run, job: Job, deps: Deps) -> None:
    """Open the windows that may be open now, and end the run when none is left."""
    in_flight = RunOptions.restored(run.options).in_flight
    for number, days in deps.ledger.open_windows(run.id, in_flight=in_flight).items():
        deps.dispatcher.send_window(run.id, number, job, days)
    end = deps.ledger.finish_run(run.id)
    if end is not None:
        deps.staging.discard(run.id)
        log.info("run_ended", run=run.id, state=end.value)
