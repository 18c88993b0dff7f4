"""Keeps a worker on a host that cannot work from taking tasks, until a check of the host finds nothing wrong.

It belongs to the worker's main process. The checks themselves run in the processes that run tasks, with their
connections: what hangs there, such as a mount whose server is gone, does not keep the main process from its heartbeat.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import structlog

from gated_backfill.common.model.host_fault import FaultKind, HostFault
from gated_backfill.common.model.scheduling.queues import DATES_QUEUES, GATE_QUEUE
from gated_backfill.common.model.scheduling.retry import RetryPolicy

log = structlog.get_logger()

CHECK_SECONDS = 60.0  #: after which a check that has not ended counts as failed
#: Of checks. A host that fails again soon after a check was passed begins where it was.
CHECKS = RetryPolicy(max_retries=0, first_delay_seconds=2.0, max_delay_seconds=60.0)
SOUND_SECONDS = 600.0  #: after its last fault, in which a host counts as sound again
WATCHED_QUEUES = (*DATES_QUEUES, GATE_QUEUE)


class HostWatch:
    """Whether this worker's host can work. Its methods are called in the main process only."""

    def __init__(self) -> None:
        self.fault: HostFault | None = None  #: why the worker takes no tasks
        self._consumer: Any = None
        self._check: Callable[[], object] | None = None
        self._on_change: Callable[[], object] = lambda: None
        self._cancelled: list[str] = []  #: queues that the worker takes no tasks from
        self._faults = 0  #: in a row
        self._last_fault_at = 0.0
        self._due_at: float | None = None  #: of the next check, by the monotonic clock; None: when there is a fault
        self._is_checking = False
        self._accepted_at: float | None = None  #: when a process began with the check

    def start(self, consumer: Any, check: Callable[[], object], on_change: Callable[[], object]) -> None:
        """Check the host now. `check` is called in a process that runs tasks and returns a fault or None.

        `consumer` is Celery's; `on_change` is called when the worker stops or resumes taking tasks.
        """
        self._consumer, self._check, self._on_change = consumer, check, on_change
        self._due_at = time.monotonic()

    def tick(self) -> None:
        """Have the host checked if that is due. Called every few seconds, by any thread."""
        now = time.monotonic()
        if self._consumer is None:
            return
        if self._accepted_at is not None and now - self._accepted_at > CHECK_SECONDS:
            self._accepted_at = None
            reason = f"the check of this host did not end within {CHECK_SECONDS:.0f} s"
            self._consumer.call_soon(self.report, HostFault(kind=FaultKind.CHECK, reason=reason))
        elif not self._is_checking and self._due_at is not None and now >= self._due_at:
            self._consumer.call_soon(self._begin_check)  # again at the next call, should the worker lose it

    def report(self, fault: HostFault) -> None:
        """Stop taking tasks, as this host cannot work."""
        now = time.monotonic()
        if self.fault is None:
            if now - self._last_fault_at > SOUND_SECONDS:
                self._faults = 0
            log.error("host_faulty", fault=fault.kind.value, reason=fault.reason)
        self._last_fault_at = now
        if self._due_at is None:
            self._due_at = now + CHECKS.delay_seconds(self._faults)
            self._faults += 1
        has_changed, self.fault = fault != self.fault, fault
        self._stop_consuming()
        if has_changed:
            self._on_change()

    def _begin_check(self) -> None:
        if self._is_checking or self._due_at is None:
            return
        self._is_checking, self._due_at = True, None
        self._consumer.pool.apply_async(
            self._check, accept_callback=self._accept_check, callback=self._end_check, error_callback=self._fail_check
        )

    def _accept_check(self, *_: object) -> None:
        self._accepted_at = time.monotonic()

    def _end_check(self, fault: HostFault | None) -> None:
        self._is_checking, self._accepted_at = False, None
        if fault is not None:
            self.report(fault)
        elif self.fault is not None:
            log.info("host_recovered", fault=self.fault.kind.value)
            self.fault, self._due_at = None, None
            self._resume_consuming()
            self._on_change()

    def _fail_check(self, error: Any) -> None:
        """Record that the check itself failed, as when its process was killed."""
        self._is_checking, self._accepted_at = False, None
        log.warning("host_not_checked", error=str(getattr(error, "exception", error)))
        if self.fault is not None and self._due_at is None:
            self._due_at = time.monotonic() + CHECKS.delay_seconds(self._faults)

    def _stop_consuming(self) -> None:
        queues = self._consumer.app.amqp.queues
        for name in [name for name in WATCHED_QUEUES if name in queues.consume_from]:
            self._cancelled.append(name)
            if self._is_connected:
                self._consumer.cancel_task_queue(name)
            else:
                queues.deselect(name)

    def _resume_consuming(self) -> None:
        queues = self._consumer.app.amqp.queues
        for name in self._cancelled:
            if self._is_connected:
                self._consumer.add_task_queue(name)
            else:
                queues.select_add(queues[name])
        self._cancelled = []

    @property
    def _is_connected(self) -> bool:
        """Whether the worker has a broker; when it connects again, it takes tasks from the selected queues."""
        return self._consumer.connection is not None and self._consumer.task_consumer is not None


host_watch = HostWatch()
