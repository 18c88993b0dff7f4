"""End the dates of a window that cannot be gated. Dates whose rows readers already see are checkpointed, not failed."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date

import structlog

from gated_backfill.common.config.recovery import RecoverySettings
from gated_backfill.common.errors import BackfillError, LeaseTakenOver, Retryable, UserError
from gated_backfill.common.ledger import DateRow, DateState, Run, WindowRow, WindowState
from gated_backfill.common.ledger.rows import failure_columns
from gated_backfill.common.runs.release import fence_publications, find_still_published
from gated_backfill.worker.dependencies import Deps
from gated_backfill.worker.gate.publish import checkpoint_published
from gated_backfill.worker.gate.window import LeasedWindow
from gated_backfill.worker.host.checks import describe_error
from gated_backfill.worker.post_run import schedule_post_run
from gated_backfill.worker.run_job import describe_missing_job

log = structlog.get_logger()

UNPROVEN = (DateState.STAGED, DateState.PUBLISHED)


def fail_without_job(
    run: Run, number: int, generation: int, deps: Deps, exc: UserError, *, is_last_attempt: bool
) -> None:
    """Fail the run's remaining dates, as the job cannot be loaded here, or has another version than the run needs.

    `generation` is that of the lease on window `number`. Raises `Retryable` unless this is the last attempt, as another
    gate may have the job, and also then if the warehouse does not answer; `LeaseTakenOver`.
    """
    log.error("job_not_loaded", error_kind=exc.kind, error=str(exc))
    if not is_last_attempt:
        raise Retryable(str(exc)) from exc
    unproven = deps.ledger.dates.list_dates(run.id, window=number, states=UNPROVEN)
    with _tolerating_permanent_errors():
        targets = deps.ledger.targets.list_targets(run.job)
        fence_publications(run, unproven, {number: generation}, targets, deps.warehouse)
    reason = describe_missing_job(exc, "gate")
    columns = failure_columns(exc.kind, reason, reason)
    for row in unproven:
        holder = (number, deps.owner)
        deps.ledger.dates.move_date(run.id, row.day, expect=row.state, to=DateState.FAILED, gate=holder, **columns)
    deps.ledger.dates.fail_remaining_dates(run.id, exc.kind, reason)
    deps.ledger.windows.release_window(run.id, number, deps.owner, to=WindowState.CLOSED)
    if deps.ledger.runs.finish_run(run.id) is not None:
        schedule_post_run(run, deps)


def fail_staged(window: LeasedWindow, exc: Exception) -> None:
    """Fail the dates that are still staged after an error of the gate."""
    log.error("gate_failed", error=str(exc), exc_info=exc)
    kind = exc.kind if isinstance(exc, BackfillError) else type(exc).__name__
    text = describe_error(exc, window.deps.owner) if isinstance(exc, BackfillError) else str(exc)
    window.renew_lease()
    dates = window.deps.ledger.dates
    if window.deps.ends_run(exc):
        dates.fail_remaining_dates(window.run.id, kind, text)
    staged = dates.list_dates(window.run.id, window=window.number, states=[DateState.STAGED])
    try:
        with _tolerating_permanent_errors():
            window.fence_own_publication(staged)
        published = find_still_published(staged, window.job, window.deps.warehouse)
    except Retryable as unreadable:  # unknown whether readers see the rows: the dates stay staged for a later gate
        log.error("target_unreadable", error=str(unreadable))
        return
    checkpoint_published(window, published)
    for row in staged:
        if row.day not in published:
            window.fail(row, kind, f"the gate could not publish it: {text}")


@contextmanager
def _tolerating_permanent_errors() -> Generator[None]:
    """Log a permanent error of the fence, so that the dates can be failed and the run ends.

    What the warehouse refuses to this gate for good, such as a write, it refuses to the gates before it, too.
    """
    try:
        yield
    except (Retryable, LeaseTakenOver):
        raise
    except BackfillError as exc:
        log.error("fence_not_raised", error=str(exc))


@dataclass(frozen=True, kw_only=True)
class Abandonment:
    """Why a window is given up."""

    reason: str  #: of its unpublished dates
    checks_target: bool  #: look up which dates are published; no more if an earlier gate died while it did


def decide_abandonment(window: WindowRow, settings: RecoverySettings) -> Abandonment | None:
    """Return why the window must be given up: too many gates died or were lost on it. None if it need not be."""
    if window.deaths >= settings.max_deaths:
        reason = f"the gate died {window.deaths} times on it (out of memory, or a crash)"
    elif window.losses >= settings.max_losses:
        cause = "its host or network failed, or its whole container ran out of memory"
        reason = f"the gate was lost {window.losses} times on it, and no cause was reported ({cause})"
    else:
        return None
    is_first = window.deaths <= settings.max_deaths and window.losses <= settings.max_losses
    return Abandonment(reason=reason, checks_target=is_first)


def abandon_window(window: LeasedWindow, dates: Sequence[DateRow], abandonment: Abandonment) -> None:
    """Checkpoint the dates of the window whose rows readers already see, and fail its other dates."""
    log.error("window_abandoned", reason=abandonment.reason)
    window.renew_lease()
    unproven = [row for row in dates if row.state in UNPROVEN]
    published: list[date] = []
    if abandonment.checks_target:
        published = find_still_published(unproven, window.job, window.deps.warehouse)
    checkpoint_published(window, published)
    for row in unproven:
        if row.day not in published:
            window.fail(row, "GateLost", abandonment.reason)
