"""The Celery app, its queues and task names, and how a window is sent.

The chord is the fast path, never the truth: its body is told a run and a window and reads all else from the ledger.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import wraps
from typing import Any, ParamSpec, Protocol, TypeVar

from celery import Celery, Signature
from celery.utils import uuid
from kombu import Queue
from kombu.exceptions import OperationalError as KombuError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from tenacity import retry, retry_if_exception, stop_after_attempt

from gated_backfill.common.broker.chords import CHORD_SIZE_KEY, COUNTING_BACKEND
from gated_backfill.common.broker.transport import send_in_one_command, translate_broker_errors, use_tolerant_transport
from gated_backfill.common.config.broker_url import BROKER_URL_HINT, parse_broker_url
from gated_backfill.common.config.settings import Settings
from gated_backfill.common.errors import BrokerUnavailable, UserError
from gated_backfill.common.model.dates import summarize_dates
from gated_backfill.common.model.job import Job
from gated_backfill.common.model.queues import DATES_QUEUE, GATE_QUEUE, MAINTENANCE_QUEUE, QUEUES
from gated_backfill.common.process.clock import ClockReading, read_clock, utcnow

#: As Flower lists them, followed by what `argsrepr` says: `process_date player_composite_factors 2023-02-23 run=...`
PROCESS_DATE = "process_date"
CLOSE_WINDOW = "close_window"
RECONCILE = "reconcile"
MAINTAIN = "maintain"
AFTER_RUN = "after_run"

P = ParamSpec("P")
T = TypeVar("T")

STOP_DATES = "stop_dates"  #: a command to workers rather than a task: each obeys at once, whatever it is at
PING_TIMEOUT_SECONDS = 3  #: how long a broker may take to answer when it is only asked how it is
SEVEN_DAYS_SECONDS = 7 * 24 * 3600
PUBLISH_RETRY_POLICY = {"max_retries": 3, "interval_start": 0, "interval_step": 0.2, "interval_max": 0.5}


def make_app(settings: Settings, broker_url: str) -> Celery:
    """The Celery app on that broker, with every setting that a lost worker or a long run depends on.

    Raises `UserError` for a URL that names no broker.
    """
    broker = parse_broker_url(broker_url)
    use_tolerant_transport()
    app = Celery("gated-backfill", broker=broker.url, backend=f"{COUNTING_BACKEND}+{broker.url}")
    transport = {
        "visibility_timeout": settings.visibility_seconds,
        "queue_order_strategy": "round_robin",  # runs share the workers: the queue that gave last is asked last
        "priority_steps": [0],  # there are queues for what is urgent; each step is one more queue to ask
    }
    app.conf.update(
        task_acks_late=True,  # a killed worker's date comes back
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,  # long tasks spread evenly, and less is redelivered
        broker_transport_options=transport,
        result_backend_transport_options=transport,
        broker_use_ssl=broker.tls or False,
        redis_backend_use_ssl=broker.tls or None,
        result_expires=SEVEN_DAYS_SECONDS,  # the default day loses a long chord silently
        result_chord_expires=SEVEN_DAYS_SECONDS,
        task_serializer="json",
        result_serializer="json",
        accept_content=["json"],  # of tasks and of remote control: nothing is ever unpickled
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
        worker_redirect_stdouts=False,
        task_default_queue=MAINTENANCE_QUEUE,
        task_queues=[Queue(name) for name in QUEUES],
        task_routes={
            PROCESS_DATE: {"queue": DATES_QUEUE},
            CLOSE_WINDOW: {"queue": GATE_QUEUE},
            RECONCILE: {"queue": MAINTENANCE_QUEUE},
            AFTER_RUN: {"queue": MAINTENANCE_QUEUE},
            MAINTAIN: {"queue": MAINTENANCE_QUEUE},
        },
        enable_utc=True,
    )
    return app


@dataclass(frozen=True, kw_only=True)
class BrokerBacklog:
    """What the broker has of a run, and how much waits there."""

    first_sent_at: (
        Mapping[int, datetime] | None
    )  #: those of which it has lost nothing since that moment; None for all, ever
    waiting_dates: int = 0  #: messages for dates that wait, of all runs whose dates go to the same queue
    waiting_gates: int = 0  #: messages for gates that wait, of all runs

    def has_window(self, window: int) -> bool:
        return self.first_sent_at is None or window in self.first_sent_at

    def window_sent_at(self, window: int) -> datetime | None:
        """When the window was first sent to the broker that is there now."""
        return None if self.first_sent_at is None else self.first_sent_at.get(window)


class Dispatcher(Protocol):
    """How the dates of a window reach the functions that process them."""

    def send_window(
        self, run: str, number: int, job: Job, batches: Sequence[Sequence[date]], *, queue: str = DATES_QUEUE
    ) -> None:
        """Have each batch of days processed, then the window closed. It may be sent again, also in other batches."""
        ...

    def broker_backlog(self, run: str, *, queue: str) -> BrokerBacklog:
        """What is there of a run with that queue: a broker that came back empty has none of its windows."""
        ...

    def send_gate(self, run: str, number: int, job: Job) -> None:
        """Have the window closed. Sending again does no harm."""
        ...

    def send_post_run(self, run: str) -> None:
        """Have the end of a run told. Sending again does no harm."""
        ...

    def send_maintenance(self, name: str, *, queue: str, expires: float) -> None:
        """Have one of beat's works done if it is due; a message not taken up within so many seconds is dropped."""
        ...


def _its_connection_was_lost(exc: BaseException) -> bool:
    return isinstance(exc, BrokerUnavailable) and isinstance(exc.__cause__, RedisConnectionError)


def _once_more(sends: Callable[P, T]) -> Callable[P, T]:
    """A connection that was kept may be to a broker that is no more, and only its use tells: what fails goes again."""
    twice = retry(retry=retry_if_exception(_its_connection_was_lost), stop=stop_after_attempt(2), reraise=True)(sends)

    @wraps(sends)
    def sent(*args: P.args, **named: P.kwargs) -> T:
        return twice(*args, **named)

    return sent


class CeleryDispatcher:
    """One chord a window: a task per batch of dates, and the gate as its body.

    It is put together from what `celery.chord` consists of, which copies each task several times and sends them one by
    one: that takes longer than all else that is done to have a date processed.
    """

    def __init__(self, app: Celery) -> None:
        self._app = app

    @_once_more
    def send_window(
        self, run: str, number: int, job: Job, batches: Sequence[Sequence[date]], *, queue: str = DATES_QUEUE
    ) -> None:
        group = uuid()
        gate: Any = self._gate(run, number, job)
        gate[CHORD_SIZE_KEY] = len(batches)
        gate.freeze(group_id=group)
        with translate_broker_errors():
            self._note_sent(run, number)  # before its messages: a broker that dies in between has lost both
            with self._app.producer_or_acquire() as producer, send_in_one_command(producer):
                producer.maybe_declare(self._app.amqp.queues[queue])
                for index, days in enumerate(batches):
                    self._app.send_task(
                        PROCESS_DATE,
                        args=(run, *(day.isoformat() for day in days)),
                        queue=queue,
                        soft_time_limit=job.soft_time_limit_seconds,
                        time_limit=job.time_limit_seconds,
                        argsrepr=f"{job.name} {summarize_dates(days)} run={run}",
                        kwargsrepr="",
                        ignore_result=False,  # which Celery asks of the headers of a chord
                        group_id=group,
                        group_index=index,
                        chord=gate,
                        producer=producer,
                        declare=[],
                        add_to_parent=False,
                    )

    @_once_more
    def broker_backlog(self, run: str, *, queue: str) -> BrokerBacklog:
        with translate_broker_errors(), self._client() as client:
            pipe = client.pipeline(transaction=False)
            pipe.hgetall(_sent_key(run))
            pipe.llen(queue)
            pipe.llen(GATE_QUEUE)
            sent, dates, gates = pipe.execute()
        windows = {int(number): datetime.fromtimestamp(float(at), UTC) for number, at in sent.items()}
        return BrokerBacklog(first_sent_at=windows, waiting_dates=dates, waiting_gates=gates)

    @_once_more
    def count_waiting(self, queue: str) -> int:
        """How many messages wait in the queue."""
        with translate_broker_errors(), self._client() as client:
            return client.llen(queue)

    def _note_sent(self, run: str, number: int) -> None:
        with self._client() as client:
            client.hsetnx(_sent_key(run), str(number), utcnow().timestamp())
            client.expire(_sent_key(run), SEVEN_DAYS_SECONDS)

    @contextmanager
    def _client(self) -> Generator[Any]:
        """The client of a connection such as tasks are sent by."""
        pool: Any = self._app.pool
        with pool.acquire(block=True) as connection:
            connection.ensure_connection(**PUBLISH_RETRY_POLICY)  # which without limits would try for ever
            yield connection.default_channel.client

    @_once_more
    def send_gate(self, run: str, number: int, job: Job) -> None:
        with translate_broker_errors():
            self._gate(run, number, job).apply_async()

    @_once_more
    def send_maintenance(self, name: str, *, queue: str, expires: float) -> None:
        with translate_broker_errors():
            self._app.send_task(
                MAINTAIN,
                args=(name,),
                queue=queue,
                ignore_result=True,
                expires=expires,
                argsrepr=name,
                kwargsrepr="",
            )

    @_once_more
    def send_reconcile(self, run: str, *, lost_tasks: bool = False, expires: float | None = None) -> None:
        """Have the run reconciled; a message that is not taken up within so many seconds is dropped."""
        with translate_broker_errors():
            self._app.send_task(
                RECONCILE,
                args=(run, lost_tasks),
                queue=MAINTENANCE_QUEUE,
                ignore_result=True,
                expires=expires,
                argsrepr=f"run={run}",
                kwargsrepr="",
            )

    def stop_dates(self, run: str) -> None:
        """Have every worker kill what builds a date of the run. One that does not hear it finds out by itself."""
        try:
            self._app.control.broadcast(STOP_DATES, arguments={"run": run})
        except (KombuError, OSError) as exc:
            raise BrokerUnavailable(f"the broker does not take commands: {exc}") from exc

    @_once_more
    def send_post_run(self, run: str) -> None:
        with translate_broker_errors():
            self._app.send_task(
                AFTER_RUN,
                args=(run,),
                queue=MAINTENANCE_QUEUE,
                ignore_result=True,
                argsrepr=f"run={run}",
                kwargsrepr="",
            )

    def _gate(self, run: str, number: int, job: Job) -> Signature:
        return self._app.signature(
            CLOSE_WINDOW,
            args=(run, number),
            immutable=True,  # the results are not handed over: the gate reads ledger and staging
            queue=GATE_QUEUE,
            ignore_result=True,
            argsrepr=f"{job.name} window {number} run={run}",
            kwargsrepr="",
        )


def _sent_key(run: str) -> str:
    """Of the windows of a run that were sent: it goes when the broker loses what it holds, as their messages do."""
    return f"backfill:sent:{run}"


@dataclass(frozen=True, kw_only=True)
class BrokerPing:
    """A broker that answers."""

    address: str  #: without user and password
    round_trip_seconds: float  #: that a round trip took
    clock: ClockReading | None  #: None when it does not tell the time


def ping_broker(settings: Settings, url: str) -> BrokerPing:
    """What the broker answers over a connection such as workers have. Changes nothing.

    Raises `UserError` for a URL that names no broker, and `BrokerUnavailable` when it does not answer within
    `ASKING_SECONDS`.
    """
    address = broker_address(url)
    patience = {"socket_timeout": PING_TIMEOUT_SECONDS, "socket_connect_timeout": PING_TIMEOUT_SECONDS}
    app = make_app(settings, url)
    try:
        with app.connection_for_write(transport_options=patience) as connection:
            connection.ensure_connection(max_retries=1, interval_start=0, timeout=PING_TIMEOUT_SECONDS)
            channel: Any = connection.default_channel
            channel.client.ping()  # so that what is timed is a round trip, not the way to one
            started = time.monotonic()
            channel.client.ping()
            seconds = time.monotonic() - started
            return BrokerPing(address=address, round_trip_seconds=seconds, clock=_clock_of(channel.client))
    except (KombuError, RedisError, OSError) as exc:
        raise BrokerUnavailable(f"the broker at {address} does not answer: {exc}") from exc
    except (ValueError, TypeError, KeyError) as exc:  # kombu's words for a wrong URL, which may quote its password
        raise UserError(f"BACKFILL_BROKER is no usable URL: {BROKER_URL_HINT}") from exc


def broker_address(url: str) -> str:
    """The broker's address without user and password. Raises `UserError` for a URL that names no broker."""
    return parse_broker_url(url).address


def _clock_of(client: Any) -> ClockReading | None:
    try:
        return read_clock(lambda: _time_of(client))
    except ResponseError:  # this user may not ask for it
        return None


def _time_of(client: Any) -> datetime:
    seconds, microseconds = client.time()
    return datetime.fromtimestamp(seconds, UTC) + timedelta(microseconds=microseconds)
