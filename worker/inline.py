"""The same tasks, in this process, one at a time: what `--sequential` runs."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import date

from common.errors import Retryable
from common.job import Job
from common.ledger import Run, RunState
from common.queue import AtBroker
from common.settings import Settings
from worker.deps import Deps, open_deps
from worker.gate import close_window, go_on
from worker.process import TryAgain, backoff, process_date


class InlineDispatcher:
    """Keeps what is sent until `drain` carries it out, in the order sent."""

    def __init__(self) -> None:
        self._sent: deque[tuple[str, int, date | None]] = deque()
        self.works: list[str] = []  #: those asked for; nothing here does them

    def send_window(self, run: str, number: int, job: Job, days: Sequence[date]) -> None:
        self._sent.extend((run, number, day) for day in days)
        self.send_gate(run, number, job)

    def at_broker(self, run: str) -> AtBroker:
        """All of it: what is kept here can't be lost while this process lives."""
        return AtBroker(windows=None)

    def send_gate(self, run: str, number: int, job: Job) -> None:
        self._sent.append((run, number, None))

    def send_after_run(self, run: str) -> None:
        """Nothing: the command that runs in this process owns the run and tells its end."""

    def send_work(self, name: str, *, queue: str, expires: float) -> None:
        self.works.append(name)

    def drain(self, deps: Deps, step: Callable[[], None]) -> None:
        """Carry out everything sent, and what that sends in turn; `step` is called after each task."""
        while self._sent:
            run, number, day = self._sent.popleft()
            if day is None:
                _gate(run, number, deps)
            else:
                _date(run, day, deps)
            step()


def run_sequentially(run: Run, job: Job, settings: Settings, step: Callable[[], None]) -> None:
    """Run a planned run to its end in this process."""
    dispatcher = InlineDispatcher()
    deps = open_deps(settings, dispatcher)
    deps.ledger.move_run(run.id, expect=[RunState.PLANNED], to=RunState.RUNNING)
    go_on(run, job, deps)
    dispatcher.drain(deps, step)


def _date(run: str, day: date, deps: Deps) -> None:
    retries = 0
    while True:
        try:
            process_date(run, day, deps, retries=retries)
        except TryAgain as again:
            time.sleep(again.seconds)
            retries += 1
        else:
            return


def _gate(run: str, number: int, deps: Deps) -> None:
    retries = 0
    while True:
        try:
            close_window(run, number, deps, last_try=retries >= deps.settings.max_retries)
        except Retryable:
            time.sleep(backoff(retries, deps.settings.retry_seconds))
            retries += 1
        else:
            return
