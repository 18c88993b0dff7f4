"""Queues that no worker takes tasks from any more, although one was started for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from gated_backfill.common.ledger import Ledger, NewAlert
from gated_backfill.common.ledger.stores.heartbeats import Heartbeat
from gated_backfill.common.model.alert_kinds import AlertKind

LOST_AFTER = timedelta(seconds=30)  #: a worker that lost its broker for a moment takes tasks again before


@dataclass(frozen=True, kw_only=True)
class LostConsumer:
    """A worker that takes no tasks from a queue that it was started for."""

    queue: str
    worker: Heartbeat
    is_silent: bool  #: the worker does not renew its heartbeat; otherwise it lives, but does not take tasks
    has_other: bool  #: another worker takes tasks from the queue

    @property
    def since(self) -> datetime:
        return self.worker.seen_at if self.is_silent else self.worker.consumed_at

    def describe(self) -> str:
        if self.is_silent:
            text = self.worker.describe_silence()
        else:
            text = f"{self.worker.name} takes no tasks from the queue {self.queue} since {self.since:%H:%M:%S} UTC"
        return text if self.has_other else f"{text}, and no other worker takes tasks from {self.queue}"


def find_lost_consumers(
    running: Sequence[Heartbeat], lost_workers: Sequence[Heartbeat], silent_after: timedelta
) -> list[LostConsumer]:
    """Return the workers that do not take tasks from a queue that they were started for, oldest first.

    A worker that is lost counts only as long as no other one takes tasks from the queue: it was replaced. One whose
    host cannot work has an alert of its own. `silent_after`: see `Heartbeat.is_silent`.
    """
    workers = [worker for worker in running if worker.is_worker and not worker.is_embedded]
    living = [worker for worker in workers if not worker.is_silent(silent_after)]
    gone = [worker for worker in (*lost_workers, *workers) if worker not in living and not worker.is_embedded]
    consumed = {queue for worker in living for queue in worker.consumed or ()}
    lost = [
        LostConsumer(queue=queue, worker=worker, is_silent=False, has_other=queue in consumed)
        for worker in living
        for queue in (worker.unconsumed if worker.fault is None else ())
        if worker.read_at - worker.consumed_at > LOST_AFTER
    ]
    lost += [
        LostConsumer(queue=queue, worker=worker, is_silent=True, has_other=False)
        for worker in gone
        for queue in worker.queues or ()
        if queue not in consumed
    ]
    return sorted(lost, key=lambda consumer: (consumer.since, consumer.queue))


def list_lost_consumers(ledger: Ledger, silent_after: timedelta) -> list[LostConsumer]:
    """Return the lost consumers of all workers that use the ledger."""
    return find_lost_consumers(ledger.heartbeats.list_running(), ledger.heartbeats.list_lost_workers(), silent_after)


def consumer_alerts(lost: Sequence[LostConsumer]) -> list[NewAlert]:
    """Return one alert for each loss of a consumer."""
    return [
        NewAlert(
            key=f"{AlertKind.CONSUMER_LOST} {consumer.queue} {consumer.worker.owner} {consumer.since.isoformat()}",
            kind=AlertKind.CONSUMER_LOST,
            title=f"the queue {consumer.queue} has lost a worker: {consumer.worker.name}",
            lines=[f"{consumer.describe()}. Restart the worker; `backfill doctor` shows all that are missing."],
        )
        for consumer in lost
    ]


def fault_alerts(running: Sequence[Heartbeat]) -> list[NewAlert]:
    """Return one alert for each worker whose host has not been able to work for a while."""
    return [
        NewAlert(
            key=f"{AlertKind.HOST_FAULTY} {worker.owner} {worker.faulty_since.isoformat()}",
            kind=AlertKind.HOST_FAULTY,
            title=f"a host cannot work: {worker.host}",
            lines=[f"{worker.describe_fault()}. Correct that on this host; the worker notices it by itself."],
        )
        for worker in running
        if worker.faulty_since is not None
        and not worker.is_embedded
        and not worker.is_long_silent
        and worker.read_at - worker.faulty_since > LOST_AFTER
    ]
