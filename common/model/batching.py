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
MAX_DATES_PER_TASK = 5000  #: in a task
AIM_SECONDS = 1.0  #: of work in a task
MOST_SHARE = 4  #: a window is spread over at least so many tasks
SLOW_START = 4  #: dates in a task of a job of which nothing is known, at most


def parse_dates_per_task(text: str) -> int | None:
    """The dates of a task as a user says it: a number, or `auto` (None). Raises `UserError`."""
    if text.strip().lower() == AUTO:
        return None
    if not (text.strip().isdecimal() and 1 <= int(text) <= MAX_DATES_PER_TASK):
        raise UserError(f"{text!r} dates per task: give a number from 1 to {MAX_DATES_PER_TASK}, or auto")
    return int(text)


def split_into_tasks(
    days: Sequence[date], *, dates_per_task: int | None, seconds_per_date: float | None, window_size: int
) -> list[tuple[date, ...]]:
    """The days in tasks of `per_task` dates; with None, of about a second's work when each takes `seconds_each`.

    Of a job that was never seen working (`seconds_each` is None) the first dates are tasks of their own, so that it
    shows what it takes. `window` is how many dates a whole window has: `days` may be what is left of one.
    """
    ordered = sorted(days)
    if dates_per_task is not None:
        return chunk_dates(ordered, dates_per_task)
    if seconds_per_date is None:
        return list(_cut(ordered, _growing(len(ordered))))
    within_aim = min(AIM_SECONDS / seconds_per_date, window_size) if seconds_per_date > 0 else window_size
    most = max(1, min(window_size // MOST_SHARE, int(within_aim)))
    tasks = ceil(len(ordered) / most)
    return list(_cut(ordered, [ceil((len(ordered) - n) / tasks) for n in range(tasks)]))


def _growing(count: int) -> Iterator[int]:
    """1, 1, 1, 1, 2, 2, 2, 2, 4, 4, ... until that is `count` dates."""
    size, given = 1, 0
    while True:
        for _ in range(4):
            if given >= count:
                return
            yield size
            given += size
        size = min(2 * size, SLOW_START)


def _cut(days: Sequence[date], sizes: Iterable[int]) -> Iterator[tuple[date, ...]]:
    begin = 0
    for size in sizes:
        yield tuple(days[begin : begin + size])
        begin += size
