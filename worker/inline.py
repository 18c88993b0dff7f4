"""Run the tasks of a run in this process, one at a time: `--sequential`."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import date

from gated_backfill.common.broker.dispatcher import BrokerBacklog
from gated_backfill.common.config.settings import Settings
from gated_backfill.common.errors import Retryable
from gated_backfill.common.ledger import Run, RunAction, RunState, WindowState
from gated_backfill.common.ledger.states import ENDED_RUNS
from gated_backfill.common.model.job import Job
from gated_backfill.common.model.scheduling.queues import DATES_QUEUE
from gated_backfill.worker.dates.process import RetryLater, process_dates
from gated_backfill.worker.dependencies import Deps, open_deps
from gated_backfill.worker.gate.gate import advance_run, close_window
from gated_backfill.worker.reconcile.reconcile import reconcile

POLL_SECONDS = 0.2  #: between checks of a run that is paused or waits for other runs


class InlineDispatcher:
    """Keeps messages until `drain` carries them out, in the order they were sent."""

    def __init__(self) -> None:
        self._sent: deque[tuple[str, int, Sequence[date]]] = deque()
        self.requested_maintenance: list[str] = []  #: names only: nothing carries them out here

    def send_window(
        self, run: str, number: int, job: Job, batches: Sequence[Sequence[date]], *, queue: str = DATES_QUEUE
    ) -> None:
        self._sent.extend((run, number, days) for days in batches)
        self.send_gate(run, number, job)

    def broker_backlog(self, run: str, *, queue: str) -> BrokerBacklog:
        """All windows: messages kept in this process cannot be lost while it lives."""
        return BrokerBacklog(windows=None)

    def send_gate(self, run: str, number: int, job: Job) -> None:
        self._sent.append((run, number, ()))

    def send_post_run(self, run: str) -> None:
        """Do nothing: the command that runs this process owns the run and reports it."""

    def send_maintenance(self, name: str, *, queue: str, expires: float) -> None:
        self.requested_maintenance.append(name)

    def drain(self, deps: Deps, step: Callable[[], None]) -> None:
        """Carry out all messages, including those sent meanwhile; `step` is called after each task."""
        while self._sent:
            run, number, days = self._sent.popleft()
            if days:
                _process_with_retries(run, days, deps)
            else:
                _gate_with_retries(run, number, deps)
            step()


def run_sequentially(run: Run, job: Job, settings: Settings, step: Callable[[], None]) -> None:
    """Run a planned run to its end in this process, waiting while it is paused. `step` is called after each task."""
    dispatcher = InlineDispatcher()
    deps = open_deps(settings, dispatcher, is_only_host=True)
    deps.ledger.runs.move_run(run.id, expect=[RunState.PLANNED], to=RunState.RUNNING)
    advance_run(run, job, deps)
    dispatcher.drain(deps, step)
    handled_actions = 0
    while True:
        actions = _count_actions_after_pause(run, deps, step)
        if actions > handled_actions:
            handled_actions = actions
            reconcile(run.id, deps, lost_tasks=True)  # tasks that ran during the pause did nothing
        elif _waits_for_other_runs(run, deps):
            step()
            time.sleep(POLL_SECONDS)
            advance_run(run, job, deps)
        else:
            return
        dispatcher.drain(deps, step)


def _count_actions_after_pause(run: Run, deps: Deps, step: Callable[[], None]) -> int:
    """Wait while the run is paused; returns how often it was resumed or cancelled, 0 if it has ended."""
    while (state := deps.ledger.runs.get_run(run.id).state) is RunState.PAUSED:
        time.sleep(POLL_SECONDS)
        step()
    if state in ENDED_RUNS:
        return 0
    return sum(
        entry.action in (RunAction.RESUMED, RunAction.CANCELLED) for entry in deps.ledger.actions.list_actions(run.id)
    )


def _waits_for_other_runs(run: Run, deps: Deps) -> bool:
    """Whether the job's limit on dates in flight is used up by its other runs."""
    pending = deps.ledger.windows.list_window_numbers(run.id, [WindowState.PENDING])
    opened = deps.ledger.windows.list_window_numbers(run.id, [WindowState.OPEN, WindowState.CLOSING])
    return bool(pending) and not opened and deps.ledger.runs.get_run(run.id).state is RunState.RUNNING


def _process_with_retries(run: str, days: Sequence[date], deps: Deps) -> None:
    retries = 0
    while True:
        try:
            process_dates(run, days, deps, retries=retries)
        except RetryLater as exc:
            time.sleep(exc.seconds)
            retries += 1
        else:
            return


def _gate_with_retries(run: str, number: int, deps: Deps) -> None:
    retries = 0
    while True:
        try:
            is_last = not deps.settings.date_retries.can_retry(retries)
            close_window(run, number, deps, is_last_attempt=is_last, retries=retries)
        except Retryable:
            time.sleep(deps.settings.date_retries.delay_seconds(retries))
            retries += 1
        else:
            return
