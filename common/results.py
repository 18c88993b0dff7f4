"""Celery's results, reduced to what a chord needs: its headers are counted, and nobody ever asks for one.

The stock backend subscribes to each header's result twice, in the process that sends a chord, and unsubscribes when the
result object is collected: cost on every date, and a traceback when that happens after the broker is gone. It also
looks up and stores each result by itself, for a week, beside what the chord counts.
"""

from __future__ import annotations

from typing import Any

from celery.backends.redis import RedisBackend

COUNTING = f"{__name__}:CountingRedisBackend"


class CountingRedisBackend(RedisBackend):
    """Redis as the place where the headers of chords are counted."""

    def add_pending_result(self, result: Any, weak: bool = False, start_drainer: bool = True) -> Any:
        return result

    def remove_pending_result(self, result: Any) -> Any:
        return result

    def on_task_call(self, producer: Any, task_id: str) -> None:
        """Nothing to prepare: the result will not be read."""

    def store_result(self, task_id: str, result: Any, *args: Any, **kwargs: Any) -> Any:
        """Nothing to store: what became of a date is in the ledger, and the chord counts by itself."""
        return result
