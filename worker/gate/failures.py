"""End the dates of a window that cannot be gated. Dates whose rows readers already see are checkpointed, not failed."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager

import structlog

from gated_backfill.common.errors import BackfillError, LeaseTakenOver, NotAllowed, Retryable, UserError
from gated_backfill.common.ledger import DateRow, DateState, Run, WindowState
from gated_backfill.common.ledger.rows import failure_columns
from gated_backfill.common.runs.release import fence_publications, find_still_published
from gated_backfill.worker.dependencies import Deps
from gated_backfill.worker.gate.publish import checkpoint_published
from gated_backfill.worker.gate.window import LeasedWindow
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
        deps.ledger.windows.release_window(run.id, number, deps.owner, to=WindowState.OPEN)
        raise Retryable(str(exc)) from exc
    unproven = deps.ledger.dates.list_dates(run.id, window=number, states=UNPROVEN)
    try:
        with _tolerating_permanent_errors():
            targets = deps.ledger.targets.list_targets(run.job)
            fence_publications(run, unproven, {number: generation}, targets, deps.warehouse)
    except Retryable:
        deps.ledger.windows.release_window(run.id, number, deps.owner, to=WindowState.OPEN)
        raise
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
    window.renew_lease()
    dates = window.deps.ledger.dates
    if isinstance(exc, NotAllowed):  # the run's other dates would fail alike
        dates.fail_remaining_dates(window.run.id, kind, str(exc))
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
            window.fail(row, kind, f"the gate could not publish it: {exc}")


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


def abandon_window(window: LeasedWindow, dates: Sequence[DateRow], deaths: int) -> None:
    """Fail the dates of a window on which `max_deaths` gates have died.

    The first gate to abandon it checks which dates are published. If it dies too, the next one does not check again.
    """
    log.error("window_abandoned", deaths=deaths)
    window.renew_lease()
    unproven = [row for row in dates if row.state in UNPROVEN]
    is_first = deaths == window.deps.settings.max_deaths
    published = find_still_published(unproven, window.job, window.deps.warehouse) if is_first else []
    checkpoint_published(window, published)
    for row in unproven:
        if row.day not in published:
            window.fail(row, "GateLost", f"the gate died {deaths} times on it (out of memory, a crash, or killed)")
