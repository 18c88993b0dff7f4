"""A token bucket: how soon the next query may be sent, over all that share the bucket.

It holds at most `burst` tokens and gains `per_second` of them a second. A token is reserved even while the bucket is
empty: whoever takes it waits for the moment from which it is there, so they are served in the order of asking. All that
has to be kept is one moment, that from which the next token is there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

MICROSECONDS_PER_SECOND = 1_000_000  #: in microseconds, in which a bucket counts


@dataclass(frozen=True, kw_only=True)
class RateLimit:
    """How many tokens there are."""

    per_second: float
    burst: int
    max_wait_seconds: float  #: who would have to wait longer is not given a token

    @property
    def interval_microseconds(self) -> int:
        """Microseconds that a token takes, rounded up so that the rate is never exceeded."""
        return math.ceil(MICROSECONDS_PER_SECOND / self.per_second)

    @property
    def max_wait_microseconds(self) -> int:
        return int(self.max_wait_seconds * MICROSECONDS_PER_SECOND)


@dataclass(frozen=True, kw_only=True)
class TokenReservation:
    """What came of asking for a token."""

    wait_microseconds: int  #: microseconds until it is there
    next_at: int | None  #: from when the one after it is there; None when none was taken, because the wait is too long


def reserve_token(next_at: int, now: int, rate: RateLimit) -> TokenReservation:
    """Take a token at the moment `now` from a bucket whose next one is there from `next_at` on.

    In any stretch of time, no more become there than `burst` and those gained in it.
    """
    if (
        next_at > now + rate.max_wait_microseconds + rate.interval_microseconds
    ):  # no bucket comes to this, unless its clock was set back
        next_at = now
    at = max(next_at, now - (rate.burst - 1) * rate.interval_microseconds)
    wait = max(at - now, 0)
    return TokenReservation(
        wait_microseconds=wait, next_at=None if wait > rate.max_wait_microseconds else at + rate.interval_microseconds
    )
