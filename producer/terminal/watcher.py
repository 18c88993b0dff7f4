"""Progress of a run: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta

from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from gated_backfill.common.ledger import DateState, RunProgress, RunState
from gated_backfill.common.process.printable_text import shorten
from gated_backfill.producer.terminal.console import Console

LINE_INTERVAL_SECONDS = 5.0
IDLE_WARNING_SECONDS = 15.0  #: time without a started date after which the user is warned
PAUSED_OR_CANCELLING = frozenset({RunState.PAUSED, RunState.CANCELLING})  #: printed at once on entry and exit


class RunWatcher:
    """Prints the progress of a run: a bar on a terminal, a line every few seconds elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._started = time.monotonic()
        self._built_at_start: int | None = None
        self._last_line = 0.0
        self._last_activity = (-1, 0)
        self._idle_since = time.monotonic()
        self._last_text = ""
        self._last_state: RunState | None = None

    @contextmanager
    def live_display(self) -> Generator[RunWatcher]:
        if not self._console.is_terminal:
            yield self
            return
        columns = (_text_column("{task.fields[state]}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Bar(*columns, _text_column("{task.fields[text]}"), console=self._console) as bar:
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
        is_notable = state is not self._last_state and bool(PAUSED_OR_CANCELLING & {state, self._last_state})
        has_ended = state is not self._last_state and progress.run.has_ended
        is_due = time.monotonic() - self._last_line > LINE_INTERVAL_SECONDS
        if is_notable or has_ended or (is_due and text != self._last_text):
            self._last_line, self._last_text, self._last_state = time.monotonic(), text, state
            line = f"{progress.run.state.value}: {progress.processed} of {progress.total} dates, {text}"
            self._console.print(line)  # the text may contain an error of the broker

    def _is_idle(self, progress: RunProgress) -> bool:
        """Whether dates have waited for a worker longer than `IDLE_WARNING_SECONDS`."""
        activity = (progress.processed, progress.count(DateState.PROCESSING))
        is_paused = progress.run.state is RunState.PAUSED
        if activity != self._last_activity or is_paused or not progress.count(DateState.QUEUED):
            self._last_activity, self._idle_since = activity, time.monotonic()
        return time.monotonic() - self._idle_since > IDLE_WARNING_SECONDS and not progress.count(DateState.PROCESSING)

    def _text(self, progress: RunProgress) -> str:
        if self._built_at_start is None:
            self._built_at_start, self._started = _count_built(progress), time.monotonic()
        seconds = time.monotonic() - self._started
        rate = (_count_built(progress) - self._built_at_start) / seconds if seconds > 0 else 0.0
        unprocessed = progress.total - progress.processed
        parts = [
            f"{progress.count(DateState.CHECKPOINTED)} done",
            f"{progress.count(DateState.BLOCKED)} blocked",
            f"{progress.count(DateState.FAILED)} failed",
        ]
        if self._is_idle(progress):
            parts.append("no worker takes a date: are workers running on this broker?")
        if progress.note:
            parts.append(shorten(progress.note))
        staged = progress.count(DateState.STAGED, DateState.PUBLISHED)
        if staged:
            parts.append(f"{staged} waiting for the gate")
        if rate > 0:
            parts.append(f"{rate:.1f} dates/s")
        if rate > 0 and unprocessed:
            parts.append(f"{timedelta(seconds=int(unprocessed / rate))} left")
        return ", ".join(parts)


def _count_built(progress: RunProgress) -> int:
    """Processed dates without the skipped ones, which take no time and would make the estimate too short."""
    return progress.processed - progress.count(DateState.SKIPPED)


def _text_column(text: str) -> TextColumn:
    """A column of literal text, in which brackets are not markup."""
    return TextColumn(text, markup=False)
