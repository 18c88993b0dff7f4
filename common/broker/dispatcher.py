"""Send messages to workers: the dates of a window as one Celery chord, gates, reconcile and maintenance.

The ledger is authoritative, and a lost chord costs only time: its body gets a run and a window number and reads
everything else from the ledger.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from functools import wraps
from typing import Any, ParamSpec, Protocol, TypeVar

from celery import Celery, Signature
from celery.utils import uuid
from kombu.exceptions import OperationalError as KombuError
from redis.exceptions import ConnectionError as RedisConnectionError

from gated_backfill.common.broker.celery_app import (
    CLOSE_WINDOW,
    JOB_VERSIONS,
    MAINTAIN,
    POST_RUN,
    PROCESS_DATE,
    PUBLISH_RETRY_POLICY,
    RECONCILE,
    SEVEN_DAYS_SECONDS,
    STOP_DATES,
)
from gated_backfill.common.broker.chords import CHORD_SIZE_KEY
from gated_backfill.common.broker.transport import send_in_one_command, translate_broker_errors
from gated_backfill.common.errors import BrokerUnavailable
from gated_backfill.common.model.dates import summarize_dates
from gated_backfill.common.model.job import Job
from gated_backfill.common.model.scheduling.queues import DATES_QUEUE, GATE_QUEUE, MAINTENANCE_QUEUE
from gated_backfill.common.process.clock import utcnow
from gated_backfill.common.process.printable_text import printable

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class BrokerBacklog:
    """The messages of a run at the broker, and the length of its queues."""

    #: The numbers of the windows of which the broker has lost no message; None: messages can't be lost.
    windows: frozenset[int] | None
    waiting_dates: int = 0  #: waiting date messages, of all runs that use the same queue
    waiting_gates: int = 0  #: waiting gate messages, of all runs

    def has_window(self, window: int) -> bool:
        return self.windows is None or window in self.windows


class Dispatcher(Protocol):
    """Sends messages to workers. Sending a message again does no harm."""

    def send_window(
        self, run: str, number: int, job: Job, batches: Sequence[Sequence[date]], *, queue: str = DATES_QUEUE
    ) -> None:
        """Have the window processed: one task per batch of days, then the gate.

        `queue` is where the run's dates wait. A window that is sent again may be cut into other batches.
        """
        ...

    def broker_backlog(self, run: str, *, queue: str) -> BrokerBacklog:
        """Return the messages of a run whose dates use that queue. Without windows if the broker lost its data."""
        ...

    def send_gate(self, run: str, number: int, job: Job) -> None:
        """Have the gate close the window."""
        ...

    def send_post_run(self, run: str) -> None:
        """Have a worker do the post-run reporting of an ended run."""
        ...

    def send_maintenance(self, name: str, *, queue: str, expires: float) -> None:
        """Have a maintenance task run if it is due. A message that waits longer than `expires` seconds is dropped."""
        ...


def _retry_lost_connection(send: Callable[P, T]) -> Callable[P, T]:
    """Repeat the call once after a lost connection: a restart of the broker shows only when a connection is used."""

    @wraps(send)
    def send_with_retry(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return send(*args, **kwargs)
        except BrokerUnavailable as exc:
            if not isinstance(exc.__cause__, RedisConnectionError):
                raise
        return send(*args, **kwargs)

    return send_with_retry


class CeleryDispatcher:
    """Sends a window as one chord: a task per batch of dates, and the gate as the chord's body.

    The chord is built from its parts, because `celery.chord` copies each task several times and sends the tasks one by
    one, which costs more than everything else that happens to a date.
    """

    def __init__(self, app: Celery) -> None:
        self._app = app

    @_retry_lost_connection
    def send_window(
        self, run: str, number: int, job: Job, batches: Sequence[Sequence[date]], *, queue: str = DATES_QUEUE
    ) -> None:
        group = uuid()
        gate: Any = self._gate(run, number, job)
        gate[CHORD_SIZE_KEY] = len(batches)
        gate.freeze(group_id=group)
        with translate_broker_errors():
            self._record_sent(run, number)  # before its messages: a broker that dies in between loses both
            with self._app.producer_or_acquire() as producer, send_in_one_command(producer):
                producer.maybe_declare(self._app.amqp.queues[queue])
                for index, days in enumerate(batches):
                    self._app.send_task(
                        PROCESS_DATE,
                        args=(run, *(day.isoformat() for day in days)),
                        queue=queue,
                        soft_time_limit=job.soft_time_limit_seconds,
                        time_limit=job.time_limit_seconds,
                        argsrepr=printable(f"{job.name} {summarize_dates(days)} run={run}"),
                        kwargsrepr="",
                        ignore_result=False,  # required by Celery of chord headers
                        group_id=group,
                        group_index=index,
                        chord=gate,
                        producer=producer,
                        declare=[],
                        add_to_parent=False,
                    )

    @_retry_lost_connection
    def broker_backlog(self, run: str, *, queue: str) -> BrokerBacklog:
        with translate_broker_errors(), self._client() as client:
            pipe = client.pipeline(transaction=False)
            pipe.hkeys(_sent_key(run))
            pipe.llen(queue)
            pipe.llen(GATE_QUEUE)
            sent, dates, gates = pipe.execute()
        return BrokerBacklog(windows=frozenset(map(int, sent)), waiting_dates=dates, waiting_gates=gates)

    @_retry_lost_connection
    def count_waiting(self, queue: str) -> int:
        """Return the number of messages that wait in the queue."""
        with translate_broker_errors(), self._client() as client:
            return client.llen(queue)

    def _record_sent(self, run: str, number: int) -> None:
        with self._client() as client:
            client.hsetnx(_sent_key(run), str(number), utcnow().timestamp())
            client.expire(_sent_key(run), SEVEN_DAYS_SECONDS)

    @contextmanager
    def _client(self) -> Generator[Any]:
        """Borrow the Redis client of a pooled connection, as sending tasks does."""
        pool: Any = self._app.pool
        with pool.acquire(block=True) as connection:
            connection.ensure_connection(**PUBLISH_RETRY_POLICY)  # without a limit, it retries for ever
            yield connection.default_channel.client

    @_retry_lost_connection
    def send_gate(self, run: str, number: int, job: Job) -> None:
        with translate_broker_errors():
            self._gate(run, number, job).apply_async()

    @_retry_lost_connection
    def send_maintenance(self, name: str, *, queue: str, expires: float) -> None:
        self._send_task(MAINTAIN, (name,), name, queue=queue, expires=expires)

    @_retry_lost_connection
    def send_reconcile(self, run: str, *, lost_tasks: bool = False, expires: float | None = None) -> None:
        """Have the run reconciled.

        `lost_tasks` says that messages of the run are known to be lost. A message that waits longer than `expires`
        seconds is dropped.
        """
        self._send_task(RECONCILE, (run, lost_tasks), f"run={run}", expires=expires)

    def stop_dates(self, run: str) -> None:
        """Have every worker kill its tasks of the run. A worker that misses the command notices at its next date."""
        try:
            self._app.control.broadcast(STOP_DATES, arguments={"run": run})
        except (KombuError, OSError) as exc:
            raise BrokerUnavailable(f"the broker does not take commands: {exc}") from exc

    def job_versions(self, *, timeout: float) -> dict[str, dict[str, str] | None] | None:
        """Ask every worker which versions of the jobs it has loaded; those that answer within `timeout` seconds.

        A worker that builds and judges no dates has None. Returns None for a broker that no worker uses, and leaves
        nothing there.
        """
        with translate_broker_errors(), self._client() as client:
            if not client.exists(WORKERS_KEY):
                return None
        try:
            replies: list[dict[str, Any]] = self._app.control.broadcast(JOB_VERSIONS, reply=True, timeout=timeout) or []
        except (KombuError, OSError) as exc:
            raise BrokerUnavailable(f"the broker does not take commands: {exc}") from exc
        return {
            worker: versions
            for reply in replies
            for worker, versions in reply.items()
            if versions is None or "error" not in versions  # of a worker of an earlier version of this tool
        }

    @_retry_lost_connection
    def send_post_run(self, run: str) -> None:
        self._send_task(POST_RUN, (run,), f"run={run}")

    def _send_task(
        self,
        name: str,
        args: tuple[object, ...],
        argsrepr: str,
        *,
        queue: str = MAINTENANCE_QUEUE,
        expires: float | None = None,
    ) -> None:
        with translate_broker_errors():
            self._app.send_task(
                name, args=args, queue=queue, ignore_result=True, expires=expires, argsrepr=argsrepr, kwargsrepr=""
            )

    def _gate(self, run: str, number: int, job: Job) -> Signature:
        return self._app.signature(
            CLOSE_WINDOW,
            args=(run, number),
            immutable=True,  # header results are not passed on: the gate reads ledger and staging
            queue=GATE_QUEUE,
            ignore_result=True,
            argsrepr=printable(f"{job.name} window {number} run={run}"),
            kwargsrepr="",
        )


WORKERS_KEY = "_kombu.binding.celery.pidbox"  #: kombu's key of the workers that take commands


def _sent_key(run: str) -> str:
    """Return the key of the run's sent windows. A broker that loses its data loses this key with the messages."""
    return f"backfill:sent:{run}"
