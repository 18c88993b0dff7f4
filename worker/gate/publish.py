"""Apply the verdicts of a window: publish and checkpoint passing dates, quarantine the blocked ones, requeue others."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import date, timedelta

import structlog

from gated_backfill.common.ledger import DateRow, DateState
from gated_backfill.common.ledger.rows import NOT_COMPARED
from gated_backfill.common.model.publication import PublishResult, StagedFile
from gated_backfill.common.model.tables import TableName
from gated_backfill.worker.gate.publish_lease import publishing_lease
from gated_backfill.worker.gate.verdicts import JudgedDates
from gated_backfill.worker.gate.window import LeasedWindow

log = structlog.get_logger()

MAX_ATTEMPTS = 5  #: attempts at a date whose target keeps changing, or whose staged file keeps getting lost


def publish_and_checkpoint(window: LeasedWindow, passing: Sequence[DateRow]) -> PublishResult:
    """Publish dates, then checkpoint them: in this order no checkpoint is ever without its rows."""
    if not passing:
        return PublishResult(published=frozenset())
    target = window.job.target
    with publishing_lease(window):
        window.renew_lease()
        result = window.deps.warehouse.publish(
            TableName.parse(target.table),
            target.date_column,
            [row.staged_file() for row in passing],
            fingerprints_when_staged={row.day: row.target_before or "" for row in passing},
            publication=window.publication,
        )
    checkpoint_published(window, result.published, result.quick_fingerprints)
    return result


def checkpoint_published(
    window: LeasedWindow, days: Collection[date], quick_fingerprints: Mapping[date, str] | None = None
) -> None:
    """Checkpoint dates whose target holds exactly their staged rows, and delete their staged files.

    `quick_fingerprints` of the target, as far as they are known, are from before these rows were confirmed.
    """
    run, ledger = window.run, window.deps.ledger
    window.renew_lease()  # another gate may have requeued a date, whose rows will then be different ones
    ledger.dates.move_dates(run.id, days, expect=DateState.STAGED, to=DateState.PUBLISHED, gate=window.holder)
    checkpointed = ledger.checkpoints.write(run.id, days, gate=window.holder, quick_fingerprints=quick_fingerprints)
    window.deps.staging.delete(run.id, frozenset(checkpointed))
    log.info("dates_checkpointed", count=len(checkpointed))


def quarantine_blocked(window: LeasedWindow, judged: JudgedDates, staged: Mapping[date, DateRow]) -> None:
    """Move the staged rows of dates that did not pass into quarantine, and record the dates as blocked."""
    for day in judged.days(passing=False):
        window.renew_lease()
        path = _quarantine(window, staged[day].staged_file())
        window.move(staged[day], DateState.BLOCKED, staged_path=path)
        log.warning("date_blocked", day=day.isoformat(), reason=judged.verdicts[day].reason, quarantined=path)


def _quarantine(window: LeasedWindow, staged: StagedFile) -> str:
    """Keep refused rows for inspection: a file in the quarantine, a staging table where it is, until it expires."""
    query_staging = window.deps.warehouse.query_staging
    if staged.table is None or query_staging is None:
        return window.deps.staging.quarantine(window.run.id, staged)
    query_staging.keep_staged(staged, timedelta(days=window.deps.settings.quarantine_days))
    return staged.location


def requeue_dates(window: LeasedWindow, rows: Sequence[DateRow], reason: str) -> list[date]:
    """Queue dates to be built again; a date with `MAX_ATTEMPTS` fails instead. Returns the queued dates."""
    requeued: list[date] = []
    for row in rows:
        if row.attempt >= MAX_ATTEMPTS:
            window.fail(
                row,
                "RequeuedTooOften",
                f"{reason}, {row.attempt} times: fix the cause, then `backfill retry {window.run.id}`",
            )
        elif window.move(row, DateState.QUEUED, verdict=None, **NOT_COMPARED):
            log.warning("date_requeued", day=row.day.isoformat(), reason=reason, attempt=row.attempt)
            requeued.append(row.day)
    return requeued
