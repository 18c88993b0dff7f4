"""Claiming the dates of a task, and releasing or requeueing them. Every change requires this worker's own claim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import structlog

from gated_backfill.common.ledger import DateRow, DateState, Run
from gated_backfill.common.ledger.rows import DateColumns, usage_values
from gated_backfill.common.model.job import Job
from gated_backfill.common.model.run_options import RunOptions
from gated_backfill.common.model.usage import split_usage
from gated_backfill.common.process.clock import utcnow
from gated_backfill.common.warehouse.usage import take_usage
from gated_backfill.worker.dates.outcomes import RetryLater
from gated_backfill.worker.dependencies import Deps
from gated_backfill.worker.releases import release_despite_outage

log = structlog.get_logger()


@dataclass(frozen=True, kw_only=True)
class DatesTask:
    """One execution of a task of dates."""

    run: Run
    job: Job
    options: RunOptions
    deps: Deps
    retries: int  #: 0 for the first execution
    is_single: bool  #: it has one date, so a time limit that it reaches is that date's

    @property
    def can_retry(self) -> bool:
        return self.deps.settings.date_retries.can_retry(self.retries)

    def retry_later(self) -> RetryLater:
        return RetryLater(self.deps.settings.date_retries.delay_seconds(self.retries))

    def claim(self, days: Sequence[date]) -> list[DateRow]:
        """Claim the dates that can be claimed, under a lease that outlasts the job's hard time limit."""
        deps = self.deps
        until = utcnow() + timedelta(seconds=self.job.time_limit_seconds) + deps.settings.lease_grace
        return deps.ledger.claims.claim_dates(
            self.run.id,
            days,
            deps.owner,
            until,
            is_dead=deps.ledger.heartbeats.is_lost,
            max_losses=deps.settings.max_losses,
        )

    def release(self, ends: Mapping[date, tuple[DateState, DateColumns]]) -> frozenset[date]:
        """Record the state and columns in which dates ended; returns the dates whose claim was still this worker's."""
        return self.deps.ledger.claims.release_dates(self.run.id, ends, owner=self.deps.owner)

    def take_usage(self, rows: Sequence[DateRow]) -> dict[date, DateColumns]:
        """Return the columns with what the warehouse has billed for these dates by now, an equal share each.

        What this process was billed for earlier attempts is in it. Empty if the warehouse bills nothing.
        """
        usage = take_usage(self.run.id) if rows else None
        if usage is None:
            return {}
        shares = split_usage(usage, len(rows))
        return {row.day: usage_values(share, before=row) for row, share in zip(rows, shares, strict=True)}

    def requeue(self, days: Sequence[date], **columns: Any) -> None:
        requeue_claimed(self.run.id, days, self.deps, **columns)


def requeue_claimed(run_id: str, days: Sequence[date], deps: Deps, **columns: Any) -> None:
    """Queue the dates that this worker has claimed; others are left as they are."""
    deps.ledger.dates.move_dates(
        run_id, days, expect=DateState.PROCESSING, to=DateState.QUEUED, owner=deps.owner, **columns
    )


def requeue_despite_outage(run_id: str, days: Sequence[date], deps: Deps) -> None:
    """Queue the claimed dates of a task that will be repeated. The claim may have been committed without a reply."""
    release_despite_outage(lambda: requeue_claimed(run_id, days, deps), is_stopped=False)


def release_when_stopped(run_id: str, days: Sequence[date], deps: Deps) -> None:
    """Queue the claimed dates of a worker process that is told to stop, as when it lost its broker.

    The broker may have given their message to another worker while they were still claimed, or have lost it. So no
    message is known to wait for them, and reconcile sends one.
    """
    log.info("dates_released", reason="the worker is being stopped")
    release_despite_outage(lambda: requeue_claimed(run_id, days, deps, queued_at=None), is_stopped=True)
