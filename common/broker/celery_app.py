"""The Celery app, with its queues and task names."""

from __future__ import annotations

from celery import Celery
from kombu import Queue

from gated_backfill.common.broker.chords import COUNTING_BACKEND
from gated_backfill.common.broker.transport import use_tolerant_transport
from gated_backfill.common.config.broker_url import parse_broker_url
from gated_backfill.common.config.settings import Settings
from gated_backfill.common.model.scheduling.queues import DATES_QUEUE, GATE_QUEUE, MAINTENANCE_QUEUE, QUEUES

# Task names. Flower shows them before the `argsrepr`: `process_date player_composite_factors 2023-02-23 run=...`
PROCESS_DATE = "process_date"
CLOSE_WINDOW = "close_window"
RECONCILE = "reconcile"
MAINTAIN = "maintain"
POST_RUN = "post_run"

STOP_DATES = "stop_dates"  #: a remote-control command: workers obey it at once, also while they run a task
JOB_VERSIONS = "job_versions"  #: a remote-control command: workers tell which versions they have loaded
SEVEN_DAYS_SECONDS = 7 * 24 * 3600
PUBLISH_RETRY_POLICY = {"max_retries": 3, "interval_start": 0, "interval_step": 0.2, "interval_max": 0.5}


def make_app(settings: Settings, broker_url: str) -> Celery:
    """Create the Celery app on that broker, with every setting that lost workers and long runs depend on.

    Raises `UserError` for a URL that names no broker.
    """
    broker = parse_broker_url(broker_url)
    use_tolerant_transport()
    app = Celery("gated-backfill", broker=broker.url, backend=f"{COUNTING_BACKEND}+{broker.url}")
    transport = {
        "visibility_timeout": settings.visibility_seconds,
        "queue_order_strategy": "round_robin",  # the queue that was read last is asked last, so runs share the workers
        "priority_steps": [0],  # one Redis list per queue: urgent messages have a queue instead of a priority
    }
    app.conf.update(
        task_acks_late=True,  # a killed worker's task is delivered again
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,  # spreads long tasks evenly and limits redelivery
        broker_transport_options=transport,
        result_backend_transport_options=transport,
        broker_use_ssl=broker.tls or False,
        redis_backend_use_ssl=broker.tls or None,
        result_expires=SEVEN_DAYS_SECONDS,  # after the default of one day, a longer chord would be lost silently
        result_chord_expires=SEVEN_DAYS_SECONDS,
        task_serializer="json",
        result_serializer="json",
        accept_content=["json"],  # also for remote control: nothing is unpickled
        result_accept_content=["json"],
        task_ignore_result=True,
        task_publish_retry_policy=PUBLISH_RETRY_POLICY,
        worker_max_tasks_per_child=settings.worker_recycle_tasks,
        worker_max_memory_per_child=settings.recycle_kib,
        worker_cancel_long_running_tasks_on_connection_loss=True,
        broker_connection_retry_on_startup=True,
        worker_send_task_events=settings.task_events,
        task_send_sent_event=settings.task_events,
        worker_hijack_root_logger=False,
        worker_log_color=False,  # an escape sequence in a log is never ours
        worker_redirect_stdouts=False,
        task_default_queue=MAINTENANCE_QUEUE,
        task_queues=[Queue(name) for name in QUEUES],
        task_routes={
            PROCESS_DATE: {"queue": DATES_QUEUE},
            CLOSE_WINDOW: {"queue": GATE_QUEUE},
            RECONCILE: {"queue": MAINTENANCE_QUEUE},
            POST_RUN: {"queue": MAINTENANCE_QUEUE},
            MAINTAIN: {"queue": MAINTENANCE_QUEUE},
        },
        enable_utc=True,
    )
    return app
