"""Decide when a failed operation is tried again, and when to give up. Pure."""

from __future__ import annotations

from dataclasses import dataclass

MAX_DOUBLINGS = 100  #: of a delay: 2**1024 is no float any more


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """Exponential backoff: the delay doubles with each retry, up to a maximum."""

    max_retries: int  #: after the first attempt
    first_delay_seconds: float  #: before the first retry
    max_delay_seconds: float  #: before any retry

    def delay_seconds(self, retries: int) -> float:
        """Return the seconds to wait before the next retry, after `retries` earlier ones."""
        doublings = min(retries, MAX_DOUBLINGS)
        return min(self.first_delay_seconds * 2**doublings, self.max_delay_seconds)

    def can_retry(self, retries: int) -> bool:
        """Return whether another retry is allowed after `retries` earlier ones."""
        return retries < self.max_retries
