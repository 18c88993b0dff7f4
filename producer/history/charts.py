"""Layout of the history page's charts: calendar months, source lanes, duration bars. Pure functions."""

from __future__ import annotations

import calendar
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import groupby
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
    held: int  #: number of days with a cell


@dataclass(frozen=True, kw_only=True)
class CalendarChart(Generic[T]):
    """The months with at least one cell, by year."""

    years: Sequence[tuple[int, Sequence[Month[T]]]]
    dense: bool  #: whether the months are drawn small, grouped by year


def calendar_chart(cells: Mapping[date, T]) -> CalendarChart[T]:
    """Arrange the cells by month; months without a cell are left out."""
    held = sorted({(day.year, day.month) for day in cells})
    dense = len(held) > MAX_LARGE_MONTHS
    years = [
        (year, [_month(year, month, cells, dense=dense) for _, month in months])
        for year, months in groupby(held, key=lambda one: one[0])
    ]
    return CalendarChart(years=years, dense=dense)


def _month(year: int, month: int, cells: Mapping[date, T], *, dense: bool) -> Month[T]:
    first, length = calendar.monthrange(year, month)
    days = [cells.get(date(year, month, day)) for day in range(1, length + 1)]
    name = calendar.month_abbr[month] if dense else f"{calendar.month_abbr[month]} {year}"
    return Month(name=name, first_column=first + 1, days=days, held=sum(day is not None for day in days))


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
    bare = Axis(days=span, ticks=())
    firsts = [day for day in span.days() if day.day == 1]
    if len(firsts) > MAX_TICKS * 4:
        firsts = [day for day in firsts if day.month == 1]
    every = -(-len(firsts) // MAX_TICKS) or 1
    shown = firsts[::every]
    yearly = len(shown) > 1 and all(day.month == 1 for day in shown)
    ticks = [(bare.left(day), f"{day:%Y}" if yearly else f"{day:%b %Y}") for day in shown]
    return Axis(days=span, ticks=ticks or [(0.0, f"{span.start:%d %b %Y}")])


@dataclass(frozen=True, kw_only=True)
class SourceLane:
    """One source over time."""

    source: str
    fallback: bool
    dates: int
    share: float  #: of all dates, in per cent
    pieces: Sequence[tuple[float, float, str]]  #: (left, width, both in per cent; the dates in words)


def source_lanes(sources: Mapping[date, tuple[str, bool]], axis: Axis) -> list[SourceLane]:
    """The dates on which each source was used, as one lane each, the primary first."""
    found: dict[tuple[bool, str], list[DateRange]] = {}
    before: tuple[str, bool] | None = None
    for day, used in sorted(sources.items()):
        source, fallback = used
        pieces = found.setdefault((fallback, source), [])
        if used == before:  # dates without a source do not interrupt a stretch
            pieces[-1] = DateRange(start=pieces[-1].start, through=day)
        else:
            pieces.append(DateRange(start=day, through=day))
        before = used
    counts = {key: sum((fallback, source) == key for source, fallback in sources.values()) for key in found}
    return [
        SourceLane(
            source=key[1],
            fallback=key[0],
            dates=counts[key],
            share=counts[key] / len(sources) * 100,
            pieces=[_piece(one, axis) for one in pieces],
        )
        for key, pieces in sorted(found.items())
    ]


def _piece(days: DateRange, axis: Axis) -> tuple[float, float, str]:
    width = max(axis.left(days.through + ONE_DAY) - axis.left(days.start), MIN_WIDTH_PERCENT)
    return axis.left(days.start), width, str(days)


@dataclass(frozen=True, kw_only=True)
class DurationBar:
    """The build seconds of one date, or of neighbouring dates that share a bar."""

    left: float
    width: float
    most: float  #: height in per cent
    middle: float
    label: str


def duration_bars(seconds: Mapping[date, float], axis: Axis) -> list[DurationBar]:
    """Bars of the seconds that dates took, from left to right."""
    top = max(seconds.values(), default=0) or 1
    size = -(-len(axis.days) // MAX_BARS)
    grouped: dict[int, list[tuple[date, float]]] = {}
    for day, took in sorted(seconds.items()):
        grouped.setdefault((day - axis.days.start).days // size, []).append((day, took))
    return [_column(at, group, size=size, top=top, axis=axis) for at, group in grouped.items()]


def _column(at: int, group: Sequence[tuple[date, float]], *, size: int, top: float, axis: Axis) -> DurationBar:
    took = [seconds for _, seconds in group]
    days = enclosing_range(day for day, _ in group)
    middle = median(took)
    told = f"{max(took):.3g} s" if len(group) == 1 else f"median {middle:.3g} s, {max(took):.3g} s at most"
    left = axis.left(axis.days.start + ONE_DAY * (at * size))
    return DurationBar(
        left=left,
        width=min(size / len(axis.days) * 100, 100 - left),
        most=max(took) / top * 100,
        middle=middle / top * 100,
        label=f"{days}: {told}",
    )
