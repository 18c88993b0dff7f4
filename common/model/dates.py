"""Dates, ranges and windows. Ranges include both ends."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from zoneinfo import ZoneInfo

from gated_backfill.common.errors import UserError

ONE_DAY = timedelta(days=1)
FIRST_SUPPORTED_DATE = date(1900, 1, 1)  #: leaves room for every lookback
ISO_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")


def parse_date(text: str) -> date:
    """Parse a date written as YYYY-MM-DD. Raises `UserError` for anything else, 2023-02-30 included."""
    if not ISO_DATE.fullmatch(text.strip()):
        raise UserError(f"{text!r} is not a date: write it as YYYY-MM-DD")
    try:
        return date.fromisoformat(text.strip())
    except ValueError as exc:
        raise UserError(f"{text.strip()} is not a date on the calendar") from exc


def validate_time_zone(name: str | None, owner: str) -> None:
    """Check the name of a time zone; None names none. Raises `UserError`, naming the owner, for an unknown one."""
    if name is None:
        return
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError) as exc:  # OSError: it names a folder of zones
        raise UserError(f"{owner}: {name!r} is not a known time zone: write it as in Europe/Berlin") from exc


@dataclass(frozen=True, kw_only=True)
class DateRange:
    """The dates from `start` through `through`, both included."""

    start: date
    through: date

    def __post_init__(self) -> None:
        if self.through < self.start:
            raise UserError(f"the end date {self.through} is before the start date {self.start}")

    def __str__(self) -> str:
        return str(self.start) if self.start == self.through else f"{self.start}..{self.through}"

    def __len__(self) -> int:
        return (self.through - self.start).days + 1

    def days(self) -> list[date]:
        return [self.start + ONE_DAY * n for n in range(len(self))]


ALL_DATES = DateRange(start=date.min, through=date.max)


def days_before(day: date, count: int) -> DateRange:
    """Return the `count` days before the day, which is not included."""
    return DateRange(start=day - ONE_DAY * count, through=day - ONE_DAY)


def enclosing_range(days: Iterable[date]) -> DateRange:
    """Return the smallest range that contains all days. Raises `ValueError` without a day."""
    dates = list(days)
    return DateRange(start=min(dates), through=max(dates))


def chunk_dates(days: Sequence[date], size: int) -> list[tuple[date, ...]]:
    """Cut the days into groups of at most `size`, keeping their order."""
    return [tuple(days[at : at + size]) for at in range(0, len(days), size)]


def days_in(ranges: Iterable[DateRange]) -> list[date]:
    """Return the days of the ranges, one range after the other."""
    return [day for span in ranges for day in span.days()]


def days_with_lookback(days: Iterable[date], lookback: int) -> list[date]:
    """Return the days and `lookback` days before each, each once, oldest first."""
    asked = {*days}
    return sorted(asked.union(day - ONE_DAY * n for day in asked for n in range(1, lookback + 1)))


def consecutive_ranges(days: Iterable[date], *, lookback: int = 0) -> list[DateRange]:
    """Return the ranges of consecutive days that cover the days and `lookback` days before each, oldest first."""
    ordered = days_with_lookback(days, lookback)
    firsts = [n for n, day in enumerate(ordered) if not n or day - ordered[n - 1] != ONE_DAY]
    ends = [*firsts[1:], len(ordered)] if firsts else []
    return [DateRange(start=ordered[first], through=ordered[end - 1]) for first, end in zip(firsts, ends, strict=True)]


def format_dates(days: Iterable[date], *, max_ranges: int = 5) -> str:
    """Format the days, e.g. `2023-02-23..2023-02-24, 2023-03-01`, with at most `max_ranges` ranges."""
    all_ranges = consecutive_ranges(days)
    text = ", ".join(map(str, all_ranges[:max_ranges]))
    return text if len(all_ranges) <= max_ranges else f"{text} and {len(all_ranges) - max_ranges} more"


def summarize_dates(days: Sequence[date]) -> str:
    """Format the days of one task: `2023-02-23`, or `2023-02-23..2023-03-24 (30 dates)`."""
    return str(days[0]) if len(days) == 1 else f"{enclosing_range(days)} ({len(days)} dates)"


def season_start(day: date, starts: Iterable[date]) -> date | None:
    """Return the latest season start on or before the day, or None."""
    return max((start for start in starts if start <= day), default=None)
