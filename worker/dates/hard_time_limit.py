"""What happens to the dates of a task that is killed at its hard time limit."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

import structlog

from gated_backfill.common.broker.dispatcher import CeleryDispatcher, Dispatcher
from gated_backfill.common.config.settings import read_settings
from gated_backfill.common.errors import BackfillError, TookTooLong
from gated_backfill.common.ledger import DateRow, DateState, Ledger, Run, open_ledger
from gated_backfill.common.ledger.rows import failure_columns
from gated_backfill.common.model.job import Job
from gated_backfill.common.model.registry import find_job
from gated_backfill.common.process.identity import process_identity
from gated_backfill.common.runs.enqueue import enqueue_dates
from gated_backfill.worker.messages.claiming_request import ClaimingRequest

log = structlog.get_logger()


class DateRequest(ClaimingRequest):
    """A task of dates, as the worker's main process sees it."""

    def record_death(self, owner: str, ledger: Ledger, max_deaths: int) -> None:
        run_id, *texts = self.args
        days = [date.fromisoformat(text) for text in texts]
        ledger.claims.record_deaths(run_id, days, owner=owner, max_deaths=max_deaths)

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """Record the hard time limit before the process is killed, since that process cannot.

        This comes before the chord counts the task: a gate that ran first would find the date still processing and
        not be called again until the run is reconciled.
        """
        try:
            if not soft and self.worker_pid is not None:
                self._end_dates(process_identity(int(self.worker_pid)), timeout)
        except (BackfillError, ProcessLookupError) as exc:  # counted as a loss of the worker instead, and retried
            log.error("hard_time_limit_not_recorded", call=self.args, error=str(exc))
        finally:
            super().on_timeout(soft, timeout)

    def _end_dates(self, owner: str, seconds: float) -> None:
        run_id, *texts = self.args
        days = [date.fromisoformat(text) for text in texts]
        ledger = open_ledger(read_settings().ledger_url, create=False)  # closed again before a child can inherit it
        try:
            requeued = handle_hard_time_limit(run_id, days, ledger, owner=owner, seconds=seconds)
            if requeued:
                run = ledger.runs.get_run(run_id)
                enqueue_separately(run, requeued, find_job(run.job), ledger, CeleryDispatcher(self.task.app))
        finally:
            ledger.close()


def handle_hard_time_limit(
    run_id: str, days: Sequence[date], ledger: Ledger, *, owner: str, seconds: float
) -> list[DateRow]:
    """Fail a task's only date, or requeue its several dates; returns the requeued ones, to be sent one per task.

    A single date is failed, as each further attempt would occupy a worker just as long. Among several it is unknown
    which one took so long.
    """
    processing = ledger.dates.list_dates(run_id, states=[DateState.PROCESSING], days=days)
    owned = [row for row in processing if row.lease_owner == owner]
    reason = f"took longer than its hard time limit of {seconds:g} s"
    log.error("hard_time_limit_reached", run=run_id, days=[row.day.isoformat() for row in owned], error=reason)
    if len(days) > 1:
        for deaths in {row.deaths for row in owned}:
            ledger.dates.move_dates(
                run_id,
                [row.day for row in owned if row.deaths == deaths],
                expect=DateState.PROCESSING,
                to=DateState.QUEUED,
                owner=owner,
                deaths=deaths + 1,
            )
        return ledger.dates.list_dates(run_id, states=[DateState.QUEUED], days=days)
    columns = failure_columns(TookTooLong.__name__, reason, reason)
    for row in owned:
        ledger.dates.move_date(
            run_id, row.day, expect=DateState.PROCESSING, to=DateState.FAILED, owner=owner, **columns
        )
    return []


def enqueue_separately(run: Run, rows: Sequence[DateRow], job: Job, ledger: Ledger, dispatcher: Dispatcher) -> None:
    """Send queued dates of one window, one per task."""
    if rows:
        enqueue_dates(run, rows[0].window or 0, job, [row.day for row in rows], ledger, dispatcher, one_per_task=True)
