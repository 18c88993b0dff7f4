"""The token bucket that limits how fast queries are sent. Pure.

A bucket holds at most `burst` tokens and gains `per_second` tokens a second. An empty bucket still hands out tokens,
each for a later moment, so callers are served in the order in which they ask. The only state is the moment at which
the next token becomes available, in microseconds of the clock that the bucket uses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

MICROSECONDS_PER_SECOND = 1_000_000


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
