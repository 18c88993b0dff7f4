"""Group dates into tasks. Pure.

Each task costs some milliseconds, and losing a task repeats all its dates. So cheap dates share a task, and expensive
dates have one each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import date
from math import ceil

from gated_backfill.common.errors import UserError
from gated_backfill.common.model.dates import chunk_dates

AUTO = "auto"
MAX_DATES_PER_TASK = 5000
TARGET_TASK_SECONDS = 1.0  #: of work in one task
MIN_TASKS_PER_WINDOW = 4
MAX_UNTIMED_DATES_PER_TASK = 4  #: while the time of a date of the job is not known


def parse_dates_per_task(text: str) -> int | None:
    """Parse the number of dates per task, or `auto` (None). Raises `UserError` for anything else."""
    if text.strip().lower() == AUTO:
        return None
    if not (text.strip().isdecimal() and 1 <= int(text) <= MAX_DATES_PER_TASK):
        raise UserError(f"{text!r} dates per task: give a number from 1 to {MAX_DATES_PER_TASK}, or auto")
    return int(text)


def split_into_tasks(
    days: Sequence[date], *, dates_per_task: int | None, seconds_per_date: float | None, window_size: int
) -> list[tuple[date, ...]]:
    """Split the days into tasks of `dates_per_task` dates, or of about a second of work if that is None.

    `seconds_per_date` is the measured time of a date. If it is None, the first tasks have one date each, to measure it.
    `window_size` is the number of dates of a complete window; `days` may be the rest of one.
    """
    ordered = sorted(days)
    if dates_per_task is not None:
        return chunk_dates(ordered, dates_per_task)
    if seconds_per_date is None:
        return list(_cut(ordered, _growing_sizes(len(ordered))))
    within_target = min(TARGET_TASK_SECONDS / seconds_per_date, window_size) if seconds_per_date > 0 else window_size
    max_dates = max(1, min(window_size // MIN_TASKS_PER_WINDOW, int(within_target)))
    tasks = ceil(len(ordered) / max_dates)
    return list(_cut(ordered, [ceil((len(ordered) - n) / tasks) for n in range(tasks)]))


def _growing_sizes(count: int) -> Iterator[int]:
    """Yield the task sizes 1, 1, 1, 1, 2, 2, 2, 2, 4, 4, ... until their sum is at least `count`."""
    size, total = 1, 0
    while True:
        for _ in range(4):
            if total >= count:
                return
            yield size
            total += size
        size = min(2 * size, MAX_UNTIMED_DATES_PER_TASK)


def _cut(days: Sequence[date], sizes: Iterable[int]) -> Iterator[tuple[date, ...]]:
    begin = 0
    for size in sizes:
        yield tuple(days[begin : begin + size])
        begin += size
