"""The Celery app: `celery --app gated_backfill.worker.app worker`, `beat` and `flower`.

Beat and Flower load this module too. It therefore imports nothing that processes dates, which takes seconds: tasks
import that when they run, and a worker imports it before it forks.
"""

from __future__ import annotations

import atexit
import gc
import logging
import multiprocessing
import os
import sys
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib import import_module
from tempfile import gettempdir
from typing import TYPE_CHECKING, Any

import structlog
from billiard.exceptions import SoftTimeLimitExceeded
from celery import Celery
from celery.signals import (
    after_setup_logger,
    after_setup_task_logger,
    celeryd_after_setup,
    worker_process_init,
    worker_ready,
    worker_shutdown,
)

from gated_backfill.common.broker.celery_app import make_app
from gated_backfill.common.broker.dispatcher import CeleryDispatcher
from gated_backfill.common.config.settings import read_settings
from gated_backfill.common.errors import BackfillError, HostError
from gated_backfill.common.ledger import Run
from gated_backfill.common.model.host_fault import FaultKind, HostFault
from gated_backfill.common.model.scheduling.queues import DATES_QUEUES, EMBEDDED, GATE_QUEUE, expand_queues
from gated_backfill.common.process.identity import die_with_parent, limit_memory, process_identity
from gated_backfill.common.process.logs import configure_logs, make_printable
from gated_backfill.common.warehouse.backends import preload_warehouse
from gated_backfill.worker.flower import prepare_flower
from gated_backfill.worker.host.watch import host_watch
from gated_backfill.worker.maintenance.schedule import beat_schedule
from gated_backfill.worker.stopping import end_in_time

if TYPE_CHECKING:
    from gated_backfill.worker.dependencies import Deps
    from gated_backfill.worker.heartbeat import HeartbeatThread


def broker_url() -> str:
    broker = read_settings().broker
    if broker is None:
        raise SystemExit("set BACKFILL_BROKER to the broker that the producer uses, e.g. redis://localhost:6379/0")
    return broker.get_secret_value()


app: Celery = make_app(read_settings(), broker_url())
app.conf.include = (
    "gated_backfill.worker.tasks",
    "gated_backfill.worker.messages.stop_dates",
    "gated_backfill.worker.messages.job_versions",
)
app.conf.worker_consumer = "gated_backfill.worker.messages.consumer:TolerantConsumer"
app.conf.beat_scheduler = "gated_backfill.worker.maintenance.beat:SlotScheduler"
app.conf.beat_schedule = beat_schedule(read_settings())
prepare_flower(read_settings(), sys.argv, os.environ)
configure_logs()
log = structlog.get_logger()

LATEST_RUNS = 20  #: looked through for one that was built with the same workers


@dataclass
class ThisWorker:
    """The worker of this process."""

    name: str = ""  #: as Celery shows it
    identity: str = ""  #: of its main process; empty in other programs
    run_owner: str | None = None  #: the process whose runs alone it serves; None: it serves the runs without an owner
    heartbeat: HeartbeatThread | None = None


this_worker = ThisWorker()


@lru_cache(maxsize=1)
def deps() -> Deps:
    """This process's connections, opened on first use: they must not be shared with a forked child."""
    from gated_backfill.worker.dependencies import open_deps

    opened = open_deps(read_settings(), CeleryDispatcher(app), broker=broker_url())
    if this_worker.identity:  # before it claims anything
        opened.ledger.heartbeats.register(opened.owner, worker=this_worker.identity, name=this_worker.name)
    return opened


def deps_or_retry(task: Any) -> Deps:
    """This process's connections.

    Raises Celery's `Retry` if they cannot be opened, as a chord's header must not fail, or `HostFaulty` if this host is
    the cause.
    """
    try:
        return deps()
    except HostError as exc:
        from gated_backfill.worker.host.checks import HostFaulty

        raise HostFaulty(HostFault(kind=FaultKind.STAGING, reason=str(exc))) from exc
    except (BackfillError, SoftTimeLimitExceeded) as exc:
        log.error("connections_not_opened", error=str(exc))
        raise task.retry(countdown=read_settings().date_retries.delay_seconds(task.request.retries)) from None


@after_setup_logger.connect
@after_setup_task_logger.connect
def _prepare_logger(logger: logging.Logger, **_: Any) -> None:
    make_printable(logger)


@celeryd_after_setup.connect
def _prepare_worker(instance: Any, **_: Any) -> None:
    """Set up a worker before it forks: priority, imports, and every queue of dates for a worker of one of them."""
    worker_process_init.connect(partial(_prepare_child, os.getpid()), weak=False)
    end_in_time(_stop_heartbeat)
    this_worker.name, this_worker.identity = str(instance.hostname), process_identity()
    if this_worker.name.endswith(f"@{EMBEDDED}"):
        this_worker.run_owner = process_identity(os.getppid())
    os.nice(read_settings().worker_nice)  # commands that only look at a run are served first
    queues = instance.app.amqp.queues
    # Celery's pool keeps shared memory in a file, in a temporary folder of its own that a killed worker leaves behind.
    multiprocessing.current_process()._config["tempdir"] = gettempdir()  # pyright: ignore - has no public setting
    for name in expand_queues(queues.consume_from) - set(queues.consume_from):
        queues.select_add(queues[name])
    gc.disable()  # collections during the imports would take a tenth of their time
    try:
        _import_before_fork(closes_windows=GATE_QUEUE in queues.consume_from)
        gc.freeze()  # forked children then neither rescan what was imported nor copy its pages
        atexit.register(gc.unfreeze)  # DuckDB warns at exit about objects that cannot be collected
    finally:
        gc.enable()


@worker_ready.connect
def _start_heartbeat(sender: Any, **_: Any) -> None:
    """Start the heartbeat of a worker that takes tasks now; `sender` is its consumer."""
    from gated_backfill.worker.heartbeat import HeartbeatThread

    def consumed() -> list[str]:
        consumer = sender.task_consumer if sender.connection is not None else None
        return [] if consumer is None else [queue.name for queue in consumer.queues]

    queues = sorted(app.amqp.queues.consume_from)
    this_worker.heartbeat = HeartbeatThread(
        read_settings(), CeleryDispatcher(app), name=this_worker.name, queues=queues, consumed=consumed, host=host_watch
    )
    if consumes_dates() or GATE_QUEUE in queues:
        host_watch.start(sender, check_host, this_worker.heartbeat.beat_soon)
    this_worker.heartbeat.start()


def check_host() -> HostFault | None:
    """Return what keeps this worker's host from working; None if nothing does, or if the ledger does not answer.

    It runs in a process that runs tasks.
    """
    from gated_backfill.worker.host.checks import find_fault

    try:
        opened = deps()
        return find_fault(find_runs_to_serve(opened), opened.staging, opened.warehouse, publishes=publishes())
    except HostError as exc:
        return HostFault(kind=FaultKind.STAGING, reason=str(exc))
    except BackfillError as exc:  # tasks will say so as well, and be tried again
        log.error("connections_not_opened", error=str(exc))
        return None


def find_runs_to_serve(opened: Deps) -> list[Run]:
    """Return the active runs that this worker serves; if there is none, the latest that one like it has served."""
    store, owner = opened.ledger.runs, this_worker.run_owner
    active = [run for run in store.list_active_runs() if run.owner == owner]
    return active or [run for run in store.list_latest_runs(LATEST_RUNS) if run.owner == owner][:1]


def publishes() -> bool:
    """Whether this worker closes windows, for which it writes to the warehouse."""
    return GATE_QUEUE in app.amqp.queues.consume_from


@worker_shutdown.connect
def _stop_heartbeat(**_: Any) -> None:
    if this_worker.heartbeat is not None:
        this_worker.heartbeat.stop()


def _import_before_fork(*, closes_windows: bool) -> None:
    """Import what this worker's children use, so that they share its memory."""
    if consumes_dates():
        import_module("gated_backfill.worker.dates.process")
    if closes_windows:
        import_module("gated_backfill.worker.gate.gate")
    if consumes_dates() or closes_windows:
        import_module("gated_backfill.worker.messages.job_versions").preload_jobs()
    preload_warehouse(read_settings().warehouse_url)


def _prepare_child(worker: int, **_: Any) -> None:
    if os.getpid() != worker:  # the solo pool has no children
        die_with_parent(worker)
    deps.cache_clear()
    limit = read_settings().worker_memory_mb
    if limit and consumes_dates():  # jobs may use any amount of memory
        limit_memory(limit)


def consumes_dates() -> bool:
    """Whether this worker takes tasks from a queue of dates."""
    return not set(DATES_QUEUES).isdisjoint(app.amqp.queues.consume_from)
