"""The heartbeat of a worker: a thread that renews it, and looks for others that do not renew theirs.

It runs in the worker's main process, which computes nothing, so that it goes on while a job keeps the interpreter of
its own process busy. It renews the heartbeats of the processes that run tasks as well, as long as they are neither dead
nor suspended.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence

import structlog

from gated_backfill.common.broker.dispatcher import CeleryDispatcher
from gated_backfill.common.config.settings import Settings
from gated_backfill.common.errors import BackfillError
from gated_backfill.common.ledger import Ledger, open_ledger
from gated_backfill.common.ledger.connections import limit_wait
from gated_backfill.common.ledger.stores.heartbeats import Ending, Heartbeat
from gated_backfill.common.model.scheduling.silence import SILENT_BEATS, SilenceWatch
from gated_backfill.common.process.identity import is_dead, is_suspended, process_identity
from gated_backfill.worker.host.watch import HostWatch

log = structlog.get_logger()

LEDGER_SECONDS = 5  #: the longest wait for the ledger, in which the worker can't fork


class HeartbeatThread:
    """Renews the heartbeats of one worker until it is stopped.

    `consumed` returns the queues that the worker takes tasks from now. `host` says whether the worker can work, and is
    called with every heartbeat.
    """

    def __init__(
        self,
        settings: Settings,
        dispatcher: CeleryDispatcher,
        *,
        name: str,
        queues: Sequence[str],
        consumed: Callable[[], Sequence[str]],
        host: HostWatch,
    ) -> None:
        self._settings = settings
        self._dispatcher = dispatcher
        self._name, self._queues, self._consumed, self._host = name, tuple(queues), consumed, host
        self._worker = process_identity()
        self._ledger: Ledger | None = None
        self._watch = SilenceWatch(settings.heartbeat_seconds)
        self._dead_for: dict[str, int] = {}  #: beats since a process of this worker was first found dead
        self._has_failed = False
        self._must_reconcile = False  #: processes were lost, and their runs are not reconciled yet
        self._sender = threading.Thread()  #: sends what has the runs reconciled
        self._stopped = threading.Event()
        self._due = threading.Event()
        self._lock = threading.Lock()  #: held while the ledger is used: no process may be forked meanwhile
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        os.register_at_fork(
            before=self._before_fork, after_in_parent=self._lock.release, after_in_child=self._lock.release
        )
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and tell the others that this worker has stopped."""
        self._stopped.set()
        self._due.set()
        with self._lock:
            try:
                self._open_ledger().heartbeats.end_worker(self._worker)
            except BackfillError as exc:
                log.warning("heartbeat_not_ended", error=str(exc))

    def beat_soon(self) -> None:
        """Renew the heartbeats now: what they say of the worker has changed."""
        self._due.set()

    def _before_fork(self) -> None:
        """Close the connection before a child inherits it."""
        self._lock.acquire()
        if self._ledger is not None:
            self._ledger.close()  # its pool connects anew when it is used

    def _run(self) -> None:
        while not self._stopped.is_set():
            started = time.monotonic()
            self._due.clear()
            self._host.tick()
            with self._lock:
                self._try_beat()
            pause = self._settings.heartbeat_seconds - (time.monotonic() - started)
            self._due.wait(max(pause, 0))

    def _try_beat(self) -> None:
        """Beat; an error must not end the thread, as the worker would then be taken for lost."""
        try:
            self._beat()
        except Exception as exc:
            if not self._has_failed:
                unexpected = None if isinstance(exc, BackfillError) else exc
                log.warning("heartbeat_not_renewed", error=str(exc), exc_info=unexpected)
            self._has_failed = True
        else:
            self._has_failed = False

    def _beat(self) -> None:
        heartbeats = self._open_ledger().heartbeats
        processes = heartbeats.list_running(worker=self._worker)
        own = {process.owner: process for process in processes if process.worker == self._worker}
        if self._worker not in own:
            heartbeats.register(self._worker, worker=self._worker, name=self._name, queues=self._queues)
        consumed = self._consumed()
        known = own[self._worker].consumed if self._worker in own else self._queues
        living = [owner for owner in own if self._is_living(owner)]
        heartbeats.renew(living, consumed={} if set(known or ()) == set(consumed) else {self._worker: consumed})
        fault = self._host.fault
        if fault != (own[self._worker].fault if self._worker in own else None):
            heartbeats.record_fault(self._worker, fault)
        self._dead_for = {owner: beats for owner, beats in self._dead_for.items() if owner in own}
        dead = [owner for owner, beats in self._dead_for.items() if beats >= SILENT_BEATS]
        heartbeats.end({owner: own[owner].beats for owner in dead}, Ending.DIED)
        self._end_silent([process for process in processes if process.ended_at is None])

    def _is_living(self, owner: str) -> bool:
        if is_dead(owner):  # the worker has some time to record why
            self._dead_for[owner] = self._dead_for.get(owner, 0) + 1
            return False
        return not is_suspended(owner)

    def _end_silent(self, processes: Sequence[Heartbeat]) -> None:
        """End the processes that are silent, and have the runs reconciled, so that others get their work."""
        heartbeats = self._open_ledger().heartbeats
        by_owner = {process.owner: process for process in processes}
        counters = {owner: process.beats for owner, process in by_owner.items()}
        on_this_host = [owner for owner, process in by_owner.items() if is_dead(process.worker)]
        died = heartbeats.end({owner: counters[owner] for owner in on_this_host}, Ending.DIED)
        silent = self._watch.find_silent(counters, time.monotonic())
        ended = heartbeats.end({owner: counters[owner] for owner in silent}, Ending.SILENT)
        for process in map(by_owner.__getitem__, ended):
            log.warning("worker_silent", worker=process.name, process=process.owner, since=process.seen_at.isoformat())
        self._must_reconcile = self._must_reconcile or bool(died or ended)
        if self._must_reconcile and not self._sender.is_alive():
            run_ids = [run.id for run in self._open_ledger().runs.list_active_runs() if run.owner is None]
            self._sender = threading.Thread(target=self._send_reconcile, args=(run_ids,), daemon=True)
            self._sender.start()

    def _send_reconcile(self, run_ids: Sequence[str]) -> None:
        """Have the runs reconciled. In a thread of its own, as the broker may not answer."""
        try:
            for run_id in run_ids:
                self._dispatcher.send_reconcile(run_id, expires=self._settings.reconcile_seconds)
        except BackfillError as exc:
            log.warning("reconcile_not_sent", error=str(exc))
        else:
            self._must_reconcile = False

    def _open_ledger(self) -> Ledger:
        if self._ledger is None:
            self._ledger = open_ledger(limit_wait(self._settings.ledger_url, LEDGER_SECONDS), create=False)
        return self._ledger
