"""Progress of a run: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from gated_backfill.common.ledger import DateState, RunProgress, RunState

LINE_INTERVAL_SECONDS = 5.0
IDLE_WARNING_SECONDS = 15.0  #: without a worker taking a date, after which the user is asked whether there are any
PAUSED_OR_CANCELLING = frozenset({RunState.PAUSED, RunState.CANCELLING})  #: told as soon as it is so, and no longer so


class RunWatcher:
    """Prints the progress of a run: a bar on a terminal, a line every few seconds elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._started = time.monotonic()
        self._at_start: int | None = None
        self._last_line = 0.0
        self._last_activity = (-1, 0)
        self._last_moved = time.monotonic()
        self._last_text = ""
        self._last_state: RunState | None = None

    @contextmanager
    def live_display(self) -> Generator[RunWatcher]:
        if not self._console.is_terminal:
            yield self
            return
        columns = (_plain("{task.fields[state]}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Bar(*columns, _plain("{task.fields[text]}"), console=self._console) as bar:
            self._bar = bar
            self._task = bar.add_task("", total=None, state="planned", text="")
            yield self

    def update(self, progress: RunProgress) -> None:
        text = self._text(progress)
        if self._bar is not None and self._task is not None:
            state = progress.run.state.value
            self._bar.update(self._task, total=progress.total, completed=progress.processed, state=state, text=text)
            return
        state = progress.run.state
        has_turned = state is not self._last_state and bool(PAUSED_OR_CANCELLING & {state, self._last_state})
        has_ended = state is not self._last_state and progress.run.has_ended
        is_due = time.monotonic() - self._last_line > LINE_INTERVAL_SECONDS
        if has_turned or has_ended or (is_due and text != self._last_text):
            self._last_line, self._last_text, self._last_state = time.monotonic(), text, state
            line = f"{progress.run.state.value}: {progress.processed} of {progress.total} dates, {text}"
            self._console.print(line, markup=False)  # it may hold an error text of the broker

    def _is_idle(self, progress: RunProgress) -> bool:
        """Whether dates have waited for a worker longer than `IDLE_WARNING_SECONDS`."""
        activity = (progress.processed, progress.count(DateState.PROCESSING))
        is_paused = progress.run.state is RunState.PAUSED
        if activity != self._last_activity or is_paused or not progress.count(DateState.QUEUED):
            self._last_activity, self._last_moved = activity, time.monotonic()
        return time.monotonic() - self._last_moved > IDLE_WARNING_SECONDS and not progress.count(DateState.PROCESSING)

    def _text(self, progress: RunProgress) -> str:
        if self._at_start is None:
            self._at_start, self._started = _worked(progress), time.monotonic()
        seconds = time.monotonic() - self._started
        rate = (_worked(progress) - self._at_start) / seconds if seconds > 0 else 0.0
        left = progress.total - progress.processed
        parts = [
            f"{progress.count(DateState.CHECKPOINTED)} done",
            f"{progress.count(DateState.BLOCKED)} blocked",
            f"{progress.count(DateState.FAILED)} failed",
        ]
        if self._is_idle(progress):
            parts.append("no worker takes a date: are workers running on this broker?")
        if progress.note:
            parts.append(progress.note)
        staged = progress.count(DateState.STAGED, DateState.PUBLISHED)
        if staged:
            parts.append(f"{staged} waiting for the gate")
        if rate > 0:
            parts.append(f"{rate:.1f} dates/s")
        if rate > 0 and left:
            parts.append(f"{timedelta(seconds=int(left / rate))} left")
        return ", ".join(parts)


def _worked(progress: RunProgress) -> int:
    """Processed dates that took work. Skipped dates take none and would make the estimate too short."""
    return progress.processed - progress.count(DateState.SKIPPED)


def _plain(text: str) -> TextColumn:
    """A column of literal text: brackets are no markup."""
    return TextColumn(text, markup=False)
