"""Limits: which windows of a run may be opened now, and how fast queries are sent. Pure.

A date is in flight from the opening of its window until its final state: queued, processing, or waiting for the gate.

A token bucket limits the rate. It holds at most `burst` tokens and gains `per_second` tokens a second. An empty bucket
still hands out tokens, each for a later moment, so callers are served in the order in which they ask. The only state is
the moment at which the next token becomes available, in microseconds of the clock that the bucket uses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MICROSECONDS_PER_SECOND = 1_000_000


@dataclass(frozen=True, kw_only=True)
class ConcurrencyLimits:
    """The limits of one run. None: no limit on dates, only on windows."""

    windows: int  #: of the run
    dates: int | None = None  #: of the run
    job_dates: int | None = None  #: of all active runs of its job together

    def window_size(self, requested: int) -> int:
        """Limit the window size so that two windows fit: workers stay busy while one is gated."""
        return min([requested, *(max(limit // 2, 1) for limit in (self.dates, self.job_dates) if limit is not None)])


@dataclass(frozen=True, kw_only=True)
class InFlight:
    """The windows and dates in flight when a run may open windows."""

    windows: int  #: of the run
    dates: int  #: of the run
    job_dates: int = 0  #: of all active runs of its job, this one included


def windows_to_open(pending: Mapping[int, int], in_flight: InFlight, limits: ConcurrencyLimits) -> list[int]:
    """Return the windows to open now, in order. `pending` maps unopened windows to their number of dates."""
    opened: list[int] = []
    dates = 0
    for number, size in sorted(pending.items()):
        dates += size
        if (
            in_flight.windows + len(opened) >= limits.windows
            or _exceeds(in_flight.dates + dates, limits.dates)
            or _exceeds(in_flight.job_dates + dates, limits.job_dates)
        ):
            break
        opened.append(number)
    return opened


def is_next_in_line(run: str, waiting: Sequence[str]) -> bool:
    """Return whether the run may open windows before the other runs of its job.

    `waiting` lists the job's runs that have windows left and nothing in flight, the longest waiting first. Without this
    rule, a run of small windows would starve a run of larger ones.
    """
    return not waiting or waiting[0] == run


def _exceeds(dates: int, limit: int | None) -> bool:
    return limit is not None and dates > limit


@dataclass(frozen=True, kw_only=True)
class RateLimit:
    """The size and speed of a token bucket."""

    per_second: float  #: tokens gained a second
    burst: int  #: tokens that a full bucket holds
    max_wait_seconds: float  #: a caller that would wait longer gets no token

    @property
    def interval_microseconds(self) -> int:
        """The time in which one token is gained, rounded up so that the rate is never exceeded."""
        return math.ceil(MICROSECONDS_PER_SECOND / self.per_second)

    @property
    def max_wait_microseconds(self) -> int:
        return int(self.max_wait_seconds * MICROSECONDS_PER_SECOND)


@dataclass(frozen=True, kw_only=True)
class TokenReservation:
    """The answer to a request for a token."""

    wait_microseconds: int  #: until the token may be used
    next_at: int | None  #: the new state of the bucket; None: the wait is too long and no token was taken


def reserve_token(next_at: int, now: int, rate: RateLimit) -> TokenReservation:
    """Reserve a token at the moment `now` in a bucket whose next token is available at `next_at`.

    No stretch of time has more tokens than `burst` plus those gained in it.
    """
    if next_at > now + rate.max_wait_microseconds + rate.interval_microseconds:  # the clock was set back
        next_at = now
    at = max(next_at, now - (rate.burst - 1) * rate.interval_microseconds)
    wait = max(at - now, 0)
    too_long = wait > rate.max_wait_microseconds
    return TokenReservation(wait_microseconds=wait, next_at=None if too_long else at + rate.interval_microseconds)
