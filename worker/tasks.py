"""The Celery tasks: each takes ids and ISO dates and calls one function that can be tested without a broker."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Any

import structlog

from gated_backfill.common.broker.celery_app import CLOSE_WINDOW, MAINTAIN, POST_RUN, PROCESS_DATE, RECONCILE
from gated_backfill.common.config.settings import read_settings
from gated_backfill.common.errors import BackfillError, Retryable
from gated_backfill.worker.app import app, deps, deps_or_retry
from gated_backfill.worker.maintenance.schedule import DAILY_LEASE
from gated_backfill.worker.messages.arguments import reject_invalid_arguments

log = structlog.get_logger()

#: Loaded by workers, not by beat or Flower.
DATE_REQUEST = "gated_backfill.worker.dates.hard_time_limit:DateRequest"
GATE_REQUEST = "gated_backfill.worker.gate.request:GateRequest"


@app.task(bind=True, name=PROCESS_DATE, max_retries=None, ignore_result=False, Request=DATE_REQUEST)
@reject_invalid_arguments
def process_date(self: Any, run: str, *days: str) -> dict[str, Any]:
    """Process one date or several."""
    from gated_backfill.worker.dates import outcomes, process
    from gated_backfill.worker.host.checks import HostFaulty
    from gated_backfill.worker.messages.claiming_request import LeftToAnotherHost

    try:
        attempts = process.process_dates(run, _parse_days(days), deps_or_retry(self), retries=self.request.retries)
    except outcomes.RetryLater as exc:
        raise self.retry(countdown=exc.seconds) from None
    except HostFaulty as exc:
        raise LeftToAnotherHost(exc.fault.kind.value, exc.fault.reason) from None
    return outcomes.task_result(attempts)


def _parse_days(days: Sequence[str]) -> list[date]:
    return [date.fromisoformat(day) for day in days]


@app.task(bind=True, name=CLOSE_WINDOW, max_retries=None, Request=GATE_REQUEST)
@reject_invalid_arguments
def close_window(self: Any, run: str, number: int) -> None:
    from gated_backfill.worker.gate import gate
    from gated_backfill.worker.host.checks import HostFaulty
    from gated_backfill.worker.messages.claiming_request import LeftToAnotherHost

    settings, retries = read_settings(), self.request.retries
    try:
        opened = deps_or_retry(self)
        is_last = not settings.date_retries.can_retry(retries)
        gate.close_window(run, number, opened, is_last_attempt=is_last, retries=retries)
    except Retryable as exc:
        raise self.retry(countdown=settings.date_retries.delay_seconds(retries), exc=exc) from exc
    except HostFaulty as exc:
        raise LeftToAnotherHost(exc.fault.kind.value, exc.fault.reason) from None


@app.task(name=RECONCILE)
@reject_invalid_arguments
def reconcile_run(run: str, lost_tasks: bool = False) -> None:
    from gated_backfill.worker.reconcile import reconcile

    reconcile.reconcile(run, deps(), lost_tasks=lost_tasks)


@app.task(name=POST_RUN)
@reject_invalid_arguments
def report_run(run: str) -> None:
    from gated_backfill.worker import post_run

    post_run.report_and_deliver(run, deps())


@app.task(
    name=MAINTAIN,
    acks_late=False,  # if its worker is killed, beat sends it again later; a redelivery would kill the next worker
    reject_on_worker_lost=False,
    soft_time_limit=int(0.9 * DAILY_LEASE.total_seconds()),
    time_limit=int(0.95 * DAILY_LEASE.total_seconds()),  # before its lease expires
)
@reject_invalid_arguments
def maintain(name: str) -> None:
    from gated_backfill.worker.maintenance import runner

    try:
        runner.run_maintenance_task(name, deps())
    except BackfillError as exc:
        log.error("connections_not_opened", error=str(exc))
