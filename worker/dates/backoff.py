"""How long to wait before a task is tried again."""

from __future__ import annotations

MAX_DELAY_SECONDS = 60.0


def backoff(retries: int, first_seconds: float) -> float:
    """Seconds to wait before retry number `retries` (0 is the first): they double, up to a minute."""
    return min(first_seconds * 2**retries, MAX_DELAY_SECONDS)
