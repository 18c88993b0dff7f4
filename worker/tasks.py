"""The Celery tasks: each takes ids and ISO dates and calls one function that can be tested without a broker.

Beat and Flower load this module too, and what works on dates takes seconds to import: it is imported where it is used,
and by a worker of dates before it forks the processes that need it.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import date
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

import structlog
from billiard.exceptions import SoftTimeLimitExceeded
from celery import Celery
from celery.signals import celeryd_after_setup, worker_process_init
from celery.worker.request import Request

from gated_backfill.common.broker.celery_app import (
    AFTER_RUN,
    CLOSE_WINDOW,
    MAINTAIN,
    PROCESS_DATE,
    RECONCILE,
    CeleryDispatcher,
    make_app,
)
from gated_backfill.common.config.settings import read_settings
from gated_backfill.common.errors import BackfillError, Retryable
from gated_backfill.common.model.dates import summarize_dates
from gated_backfill.common.model.queues import DATES_QUEUES, GATE_QUEUE, expand_queues
from gated_backfill.common.model.registry import find_job
from gated_backfill.common.process.identity import die_with_parent, limit_memory, process_identity
from gated_backfill.common.process.imports import freeze_imports
from gated_backfill.common.process.logs import configure_logs
from gated_backfill.common.warehouse import preload_warehouse
from gated_backfill.worker.dates.backoff import backoff
from gated_backfill.worker.flower import prepare_flower
from gated_backfill.worker.maintenance.schedule import LONGEST_WORK, beat_schedule, maintenance_schedules
from gated_backfill.worker.messages import stop_dates as control
from gated_backfill.worker.messages.arguments import reject_invalid_arguments

if TYPE_CHECKING:
    from gated_backfill.worker.dependencies import Deps


def broker_url() -> str:
    broker = read_settings().broker
    if broker is None:
        raise SystemExit("set BACKFILL_BROKER to the broker that the producer uses, e.g. redis://localhost:6379/0")
    return broker.get_secret_value()


app: Celery = make_app(read_settings(), broker_url())
app.conf.worker_consumer = "gated_backfill.worker.messages.consumer:TolerantConsumer"
app.conf.beat_scheduler = "gated_backfill.worker.maintenance.beat:SlotScheduler"
app.conf.beat_schedule = beat_schedule(read_settings(), maintenance_schedules(read_settings()))
prepare_flower(read_settings(), sys.argv, os.environ)
configure_logs()
log = structlog.get_logger()

CONTROL_COMMANDS = (
    control.stop_dates,
)  #: what workers are told, beside their tasks; importing them is what makes them known


@lru_cache(maxsize=1)
def deps() -> Deps:
    """This process's connections, opened on first use: they must not be shared with a forked child."""
    from gated_backfill.worker.dependencies import open_deps

    return open_deps(read_settings(), CeleryDispatcher(app), broker=broker_url())


def deps_or_retry(task: Any) -> Deps:
    """The connections, or the task once more after a while: a header task of a chord never raises."""
    try:
        return deps()
    except (BackfillError, SoftTimeLimitExceeded) as exc:
        log.error("connections_not_opened", error=str(exc))
        raise task.retry(countdown=backoff(task.request.retries, read_settings().retry_seconds)) from None


@celeryd_after_setup.connect
def _prepare_worker(instance: Any, **_: Any) -> None:
    """Whoever is told to consume the dates consumes them from all their queues: `--queues backfill` names them all.

    Its processes step back for others: whoever asks how a run stands is not to wait for what the run has to do.
    """
    os.nice(read_settings().worker_nice)
    queues = instance.app.amqp.queues
    with freeze_imports():  # before its processes are forked
        if not set(DATES_QUEUES).isdisjoint(queues.consume_from):
            import_module("gated_backfill.worker.dates.process")
        if GATE_QUEUE in queues.consume_from:
            import_module("gated_backfill.worker.gate.gate")
            import_module("gated_backfill.worker.gate.recount").preload_schema_checks()
        preload_warehouse(read_settings().warehouse_url)
    for name in expand_queues(queues.consume_from) - set(queues.consume_from):
        queues.select_add(queues[name])


@worker_process_init.connect
def _in_child(**_: Any) -> None:
    die_with_parent()
    deps.cache_clear()
    limit = read_settings().worker_memory_mb
    if limit and not set(DATES_QUEUES).isdisjoint(app.amqp.queues.consume_from):  # dates are what may need too much
        limit_memory(limit)


class DateRequest(Request):
    """A task of dates, as the worker's main process sees it."""

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """Fail what its process is about to be killed for. Here, because that process can't.

        Before its chord counts it: a gate that came first would find it in work, and not come again for a while.
        """
        try:
            if not soft and self.worker_pid is not None:
                self._fail_dates(process_identity(int(self.worker_pid)), timeout)
        except (BackfillError, ProcessLookupError) as exc:  # its death is counted instead, and it is tried again
            log.error("hard_time_limit_not_recorded", call=self.args, error=str(exc))
        finally:
            super().on_timeout(soft, timeout)

    def _fail_dates(self, holder: str, timeout: float) -> None:
        from gated_backfill.common.ledger import open_ledger
        from gated_backfill.worker.dates import process

        run, *days = self.args
        ledger = open_ledger(read_settings().ledger_url, create=False)  # closed before a child may inherit it
        try:
            again = process.handle_hard_time_limit(run, _days(days), ledger, owner=holder, seconds=timeout)
            if again:
                found = ledger.runs.get_run(run)
                process.enqueue_separately(found, again, find_job(found.job), ledger, CeleryDispatcher(app))
        finally:
            ledger.close()


@app.task(bind=True, name=PROCESS_DATE, max_retries=None, ignore_result=False, Request=DateRequest)
@reject_invalid_arguments
def process_date(self: Any, run: str, *days: str) -> dict[str, Any]:
    """Despite its name of one date or of several: all of them are named in its call."""
    from gated_backfill.worker.dates import process

    try:
        outcomes = process.process_dates(run, _days(days), deps_or_retry(self), retries=self.request.retries)
    except process.RetryLater as again:
        raise self.retry(countdown=again.seconds) from None
    if len(outcomes) == 1:
        return {"day": days[0], "state": outcomes[0].state, "detail": outcomes[0].detail}
    return {"days": summarize_dates(_days(days)), **Counter(outcome.state for outcome in outcomes)}


def _days(days: Sequence[str]) -> list[date]:
    return [date.fromisoformat(day) for day in days]


@app.task(bind=True, name=CLOSE_WINDOW, max_retries=None)
@reject_invalid_arguments
def close_window(self: Any, run: str, number: int) -> None:
    from gated_backfill.worker.gate import gate

    settings, retries = deps_or_retry(self).settings, self.request.retries
    try:
        gate.close_window(run, number, deps(), is_last_attempt=retries >= settings.max_retries)
    except Retryable as exc:
        raise self.retry(countdown=backoff(retries, settings.retry_seconds), exc=exc) from exc


@app.task(name=RECONCILE)
@reject_invalid_arguments
def reconcile_run(run: str, lost_tasks: bool = False) -> None:
    from gated_backfill.worker.reconcile import reconcile

    reconcile.reconcile(run, deps(), lost_tasks=lost_tasks)


@app.task(name=AFTER_RUN)
@reject_invalid_arguments
def report_run(run: str) -> None:
    from gated_backfill.worker import post_run as after_run

    after_run.report_and_deliver(run, deps())


@app.task(
    name=MAINTAIN,
    acks_late=False,  # a work whose worker was killed is not redelivered at once, to kill the next: `catch_up` sends it
    reject_on_worker_lost=False,
    soft_time_limit=int(0.9 * LONGEST_WORK.total_seconds()),
    time_limit=int(0.95 * LONGEST_WORK.total_seconds()),  # before its lease is another's
)
@reject_invalid_arguments
def maintain(name: str) -> None:
    from gated_backfill.worker.maintenance import runner as maintenance

    try:
        maintenance.run_maintenance_task(name, deps())
    except BackfillError as exc:
        log.error("connections_not_opened", error=str(exc))
