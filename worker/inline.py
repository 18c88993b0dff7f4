"""The same tasks, in this process, one at a time: what `--sequential` runs."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import date

from gated_backfill.common.broker.celery_app import BrokerBacklog
from gated_backfill.common.config.settings import Settings
from gated_backfill.common.errors import Retryable
from gated_backfill.common.ledger import Run, RunAction, RunState, WindowState
from gated_backfill.common.ledger.states import ENDED_RUNS
from gated_backfill.common.model.job import Job
from gated_backfill.common.model.queues import DATES_QUEUE
from gated_backfill.worker.dates.backoff import backoff
from gated_backfill.worker.dates.process import RetryLater, process_dates
from gated_backfill.worker.dependencies import Deps, open_deps
from gated_backfill.worker.gate.gate import advance_run, close_window
from gated_backfill.worker.reconcile.reconcile import reconcile

POLL_SECONDS = 0.2  #: between two looks at a run that is paused or held back


class InlineDispatcher:
    """Keeps what is sent until `drain` carries it out, in the order sent."""

    def __init__(self) -> None:
        self._sent: deque[tuple[str, int, Sequence[date]]] = deque()
        self.requested_maintenance: list[str] = []  #: those asked for; nothing here does them

    def send_window(
        self, run: str, number: int, job: Job, batches: Sequence[Sequence[date]], *, queue: str = DATES_QUEUE
    ) -> None:
        self._sent.extend((run, number, days) for days in batches)
        self.send_gate(run, number, job)

    def broker_backlog(self, run: str, *, queue: str) -> BrokerBacklog:
        """All of it: what is kept here can't be lost while this process lives."""
        return BrokerBacklog(first_sent_at=None)

    def send_gate(self, run: str, number: int, job: Job) -> None:
        self._sent.append((run, number, ()))

    def send_post_run(self, run: str) -> None:
        """Nothing: the command that runs in this process owns the run and tells its end."""

    def send_maintenance(self, name: str, *, queue: str, expires: float) -> None:
        self.requested_maintenance.append(name)

    def drain(self, deps: Deps, step: Callable[[], None]) -> None:
        """Carry out everything sent, and what that sends in turn; `step` is called after each task."""
        while self._sent:
            run, number, days = self._sent.popleft()
            if days:
                _dates(run, days, deps)
            else:
                _gate(run, number, deps)
            step()


def run_sequentially(run: Run, job: Job, settings: Settings, step: Callable[[], None]) -> None:
    """Run a planned run to its end in this process; while it is paused, wait."""
    dispatcher = InlineDispatcher()
    deps = open_deps(settings, dispatcher)
    deps.ledger.runs.move_run(run.id, expect=[RunState.PLANNED], to=RunState.RUNNING)
    advance_run(run, job, deps)
    dispatcher.drain(deps, step)
    obeyed = 0
    while True:
        ordered = _ordered(run, deps, step)
        if ordered > obeyed:
            obeyed = ordered
            reconcile(run.id, deps, lost_tasks=True)  # what was sent while it was paused is gone
        elif _is_held_back(run, deps):
            step()
            time.sleep(POLL_SECONDS)
            advance_run(run, job, deps)
        else:
            return
        dispatcher.drain(deps, step)


def _ordered(run: Run, deps: Deps, step: Callable[[], None]) -> int:
    """How often a run that has not ended was told to go on or to stop, once it is no longer paused."""
    while (state := deps.ledger.runs.get_run(run.id).state) is RunState.PAUSED:
        time.sleep(POLL_SECONDS)
        step()
    if state in ENDED_RUNS:
        return 0
    return sum(
        one.action in (RunAction.RESUMED, RunAction.CANCELLED) for one in deps.ledger.actions.list_actions(run.id)
    )


def _is_held_back(run: Run, deps: Deps) -> bool:
    """Other runs of the job have so much in flight that nothing of this one may be begun."""
    left = deps.ledger.windows.list_window_numbers(run.id, [WindowState.PENDING])
    begun = deps.ledger.windows.list_window_numbers(run.id, [WindowState.OPEN, WindowState.CLOSING])
    return bool(left) and not begun and deps.ledger.runs.get_run(run.id).state is RunState.RUNNING


def _dates(run: str, days: Sequence[date], deps: Deps) -> None:
    retries = 0
    while True:
        try:
            process_dates(run, days, deps, retries=retries)
        except RetryLater as again:
            time.sleep(again.seconds)
            retries += 1
        else:
            return


def _gate(run: str, number: int, deps: Deps) -> None:
    retries = 0
    while True:
        try:
            close_window(run, number, deps, is_last_attempt=retries >= deps.settings.max_retries)
        except Retryable:
            time.sleep(backoff(retries, deps.settings.retry_seconds))
            retries += 1
        else:
            return
