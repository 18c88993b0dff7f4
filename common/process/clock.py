"""The time, always timezone-aware and in UTC."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from zoneinfo import ZoneInfo


def utcnow() -> datetime:
    return datetime.now(UTC)


def today() -> date:
    """Return today's date in UTC, the last date a backfill may ask for."""
    return utcnow().date()


def today_in(time_zone: str) -> date:
    """Return today's date in the time zone, given by its IANA name."""
    return utcnow().astimezone(ZoneInfo(time_zone)).date()


def midnight(day: date) -> datetime:
    """Return the start of the day in UTC."""
    return datetime.combine(day, time(), UTC)


@dataclass(frozen=True, kw_only=True)
class ClockReading:
    """The time of another clock, between two times of this machine's clock."""

    before: datetime
    other_clock: datetime
    after: datetime

    @property
    def round_trip_seconds(self) -> float:
        """How long reading the other clock took."""
        return (self.after - self.before).total_seconds()

    @property
    def skew_seconds(self) -> float:
        """The smallest difference of the clocks that explains the readings, in seconds."""
        return max(
            (self.before - self.other_clock).total_seconds(), (self.other_clock - self.after).total_seconds(), 0.0
        )


def read_clock(ask: Callable[[], datetime]) -> ClockReading:
    """Read another clock with `ask`, between two readings of this machine's clock."""
    before = utcnow()
    other_clock = ask()
    return ClockReading(before=before, other_clock=other_clock, after=utcnow())
