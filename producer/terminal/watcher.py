"""How a run is followed on a terminal, and elsewhere."""

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
    """Shows how far a run is: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._started = time.monotonic()
        self._at_start: int | None = None
        self._last_line = 0.0
        self._last_moving = (-1, 0)
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
        turned = state is not self._last_state and bool(PAUSED_OR_CANCELLING & {state, self._last_state})
        due = time.monotonic() - self._last_line > LINE_INTERVAL_SECONDS
        if turned or ((due or progress.run.has_ended) and text != self._last_text):
            self._last_line, self._last_text, self._last_state = time.monotonic(), text, state
            line = f"{progress.run.state.value}: {progress.processed} of {progress.total} dates, {text}"
            self._console.print(line, markup=False)  # a broker's words may be in it

    def _is_idle(self, progress: RunProgress) -> bool:
        """Whether dates have been waiting for a worker for a while and none has come."""
        moving = (progress.processed, progress.count(DateState.PROCESSING))
        held_up = progress.run.state is RunState.PAUSED
        if moving != self._last_moving or held_up or not progress.count(DateState.QUEUED):
            self._last_moving, self._last_moved = moving, time.monotonic()
        return time.monotonic() - self._last_moved > IDLE_WARNING_SECONDS and not progress.count(DateState.PROCESSING)

    def _text(self, progress: RunProgress) -> str:
        if self._at_start is None:
            self._at_start = progress.processed
        seconds = time.monotonic() - self._started
        rate = (progress.processed - self._at_start) / seconds if seconds > 0 else 0.0
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


def _plain(text: str) -> TextColumn:
    """Words as they are, brackets and all."""
    return TextColumn(text, markup=False)
