"""A task whose process claims dates or a window, as the worker's main process sees it."""

from __future__ import annotations

from contextlib import closing, suppress
from typing import Any

import structlog
from celery.exceptions import Reject, WorkerLostError
from celery.worker import state
from celery.worker.request import Request

from gated_backfill.common.config.settings import read_settings
from gated_backfill.common.errors import BackfillError
from gated_backfill.common.ledger import Ledger, open_ledger
from gated_backfill.common.model.host_fault import FaultKind, HostFault
from gated_backfill.common.process.identity import process_identity
from gated_backfill.worker.host.watch import host_watch

log = structlog.get_logger()


class LeftToAnotherHost(Reject):
    """Raised by a task whose host cannot work: its message goes back to the queue as it was.

    The worker's main process gets it, and takes no further tasks.
    """

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason, requeue=True)
        self.args = (kind, reason)  # with which the other process makes it again

    @property
    def fault(self) -> HostFault:
        kind, reason = self.args
        return HostFault(kind=FaultKind(kind), reason=reason)


class ClaimingRequest(Request):
    """Records in the ledger that the task's process died by itself, before the task is delivered again.

    A task that its host could not carry out is left to another host: this worker takes no further tasks.

    This is the only evidence of a death that counts: the worker lives, its process has ended while it worked, and the
    worker did not end it, as it does after it has lost the broker or when it is stopped.
    """

    _process: str | None = None  #: identity of the process that runs the task

    def on_accepted(self, pid: Any, time_accepted: float) -> None:
        with suppress(ProcessLookupError):
            self._process = process_identity(int(pid))
        super().on_accepted(pid, time_accepted)

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> Any:
        error = getattr(exc_info.exception, "exc", exc_info.exception)  # billiard wraps it for its traceback
        if self._process is not None and isinstance(error, WorkerLostError) and not _is_stopping():
            self._record_death(self._process, str(error))
        if isinstance(error, LeftToAnotherHost):
            host_watch.report(error.fault)  # before its message can come back
        return super().on_failure(exc_info, send_failed_event=send_failed_event, return_ok=return_ok)

    def record_death(self, owner: str, ledger: Ledger, max_deaths: int) -> None:
        """End the claims of the process and count its death."""
        raise NotImplementedError

    def _record_death(self, owner: str, error: str) -> None:
        log.error("worker_process_died", call=self.args, error=error)
        settings = read_settings()
        try:
            with closing(open_ledger(settings.ledger_url, create=False)) as ledger:  # before a child can inherit it
                self.record_death(owner, ledger, settings.max_deaths)
        except BackfillError as exc:  # counted as a loss instead
            log.error("worker_death_not_recorded", call=self.args, error=str(exc))


def _is_stopping() -> bool:
    """Whether the worker was told to stop: its processes were, too, if the signal went to all of them."""
    return any(flag is not None and flag is not False for flag in (state.should_stop, state.should_terminate))
