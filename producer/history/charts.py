"""Layout of the history page's charts: calendar months, source lanes, duration bars. Pure functions."""

from __future__ import annotations

import calendar
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from itertools import groupby
from operator import itemgetter
from statistics import median
from typing import Generic, TypeVar

from gated_backfill.common.model.dates import ONE_DAY, DateRange, enclosing_range

T = TypeVar("T")

MAX_BARS = 180
MAX_TICKS = 7
MAX_LARGE_MONTHS = 14  #: above this number, months are drawn small, one row for each year
MIN_WIDTH_PERCENT = 0.25  #: per cent of the width; anything narrower is invisible


@dataclass(frozen=True, kw_only=True)
class Month(Generic[T]):
    """A month as a grid of weeks."""

    name: str
    first_column: int  #: 1 for a Monday
    days: Sequence[T | None]
    day_count: int  #: of days with a cell


@dataclass(frozen=True, kw_only=True)
class CalendarChart(Generic[T]):
    """The months with at least one cell, by year."""

    years: Sequence[tuple[int, Sequence[Month[T]]]]
    dense: bool  #: whether the months are drawn small, grouped by year


def calendar_chart(cells: Mapping[date, T]) -> CalendarChart[T]:
    """Arrange the cells by month; months without a cell are left out."""
    months = sorted({(day.year, day.month) for day in cells})
    dense = len(months) > MAX_LARGE_MONTHS
    years = [
        (year, [_build_month(year, month, cells, dense=dense) for _, month in months_of_year])
        for year, months_of_year in groupby(months, key=itemgetter(0))
    ]
    return CalendarChart(years=years, dense=dense)


def _build_month(year: int, month: int, cells: Mapping[date, T], *, dense: bool) -> Month[T]:
    first_weekday, length = calendar.monthrange(year, month)
    days = [cells.get(date(year, month, day)) for day in range(1, length + 1)]
    name = calendar.month_abbr[month] if dense else f"{calendar.month_abbr[month]} {year}"
    return Month(name=name, first_column=first_weekday + 1, days=days, day_count=sum(day is not None for day in days))


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A time axis on which all dates have the same width."""

    days: DateRange
    ticks: Sequence[tuple[float, str]]  #: (per cent of the width, label)

    def left(self, day: date) -> float:
        """The left edge of the day, in per cent of the width."""
        return (day - self.days.start).days / len(self.days) * 100


def date_axis(days: Iterable[date]) -> Axis:
    """An axis from the first to the last day, labelled at the start of months or years."""
    span = enclosing_range(days)
    axis = Axis(days=span, ticks=())
    tick_days = [day for day in span.days() if day.day == 1]
    if len(tick_days) > MAX_TICKS * 4:
        tick_days = [day for day in tick_days if day.month == 1]
    step = -(-len(tick_days) // MAX_TICKS) or 1
    tick_days = tick_days[::step]
    yearly = len(tick_days) > 1 and all(day.month == 1 for day in tick_days)
    ticks = [(axis.left(day), f"{day:%Y}" if yearly else f"{day:%b %Y}") for day in tick_days]
    return replace(axis, ticks=ticks or [(0.0, f"{span.start:%d %b %Y}")])


@dataclass(frozen=True, kw_only=True)
class SourceLane:
    """The dates on which one source was used."""

    source: str
    fallback: bool
    dates: int
    share: float  #: of all dates, in per cent
    pieces: Sequence[tuple[float, float, str]]  #: left and width in per cent, and the dates as text


def source_lanes(sources: Mapping[date, tuple[str, bool]], axis: Axis) -> list[SourceLane]:
    """Draw one lane for each source, the primary first. `sources` holds (source, is it a fallback) by date."""
    ranges_by_source: dict[tuple[bool, str], list[DateRange]] = {}
    previous: tuple[str, bool] | None = None
    for day, used in sorted(sources.items()):
        source, fallback = used
        ranges = ranges_by_source.setdefault((fallback, source), [])
        if used == previous:  # dates without a source do not split a range
            ranges[-1] = DateRange(start=ranges[-1].start, through=day)
        else:
            ranges.append(DateRange(start=day, through=day))
        previous = used
    counts = Counter(sources.values())
    return [
        SourceLane(
            source=source,
            fallback=fallback,
            dates=counts[source, fallback],
            share=counts[source, fallback] / len(sources) * 100,
            pieces=[_build_piece(days, axis) for days in ranges],
        )
        for (fallback, source), ranges in sorted(ranges_by_source.items())
    ]


def _build_piece(days: DateRange, axis: Axis) -> tuple[float, float, str]:
    width = max(axis.left(days.through + ONE_DAY) - axis.left(days.start), MIN_WIDTH_PERCENT)
    return axis.left(days.start), width, str(days)


@dataclass(frozen=True, kw_only=True)
class DurationBar:
    """The build seconds of one date, or of neighbouring dates that share a bar."""

    left: float
    width: float
    most: float  #: height of the slowest date, in per cent
    middle: float  #: height of the median, in per cent
    label: str


def duration_bars(seconds: Mapping[date, float], axis: Axis) -> list[DurationBar]:
    """Draw the build seconds of the dates as bars, from left to right."""
    longest = max(seconds.values(), default=0) or 1
    days_per_bar = -(-len(axis.days) // MAX_BARS)
    seconds_by_bar: dict[int, dict[date, float]] = {}
    for day, date_seconds in sorted(seconds.items()):
        seconds_by_bar.setdefault((day - axis.days.start).days // days_per_bar, {})[day] = date_seconds
    return [
        _build_bar(axis.days.start + ONE_DAY * (index * days_per_bar), bar_seconds, days_per_bar, longest, axis)
        for index, bar_seconds in seconds_by_bar.items()
    ]


def _build_bar(start: date, seconds: Mapping[date, float], length: int, longest: float, axis: Axis) -> DurationBar:
    slowest, middle = max(seconds.values()), median(seconds.values())
    summary = f"{slowest:.3g} s" if len(seconds) == 1 else f"median {middle:.3g} s, {slowest:.3g} s at most"
    left_edge = axis.left(start)
    return DurationBar(
        left=left_edge,
        width=min(length / len(axis.days) * 100, 100 - left_edge),
        most=slowest / longest * 100,
        middle=middle / longest * 100,
        label=f"{enclosing_range(seconds)}: {summary}",
    )
