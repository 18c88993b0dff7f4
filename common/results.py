"""Celery's results, reduced to what a chord needs: its headers are counted, and nobody ever waits for one.

The stock backend subscribes to each header's result twice, in the process that sends a chord, and unsubscribes when the
result object is collected: cost on every date, and a traceback when that happens after the broker is gone.
"""

from __future__ import annotations

from typing import Any

from celery.backends.redis import RedisBackend

WRITE_ONLY = f"{__name__}:WriteOnlyRedisBackend"


class WriteOnlyRedisBackend(RedisBackend):
    """Redis as a store of results to which nobody subscribes."""

    def add_pending_result(self, result: Any, weak: bool = False, start_drainer: bool = True) -> Any:
        return result

    def remove_pending_result(self, result: Any) -> Any:
        return result

    def on_task_call(self, producer: Any, task_id: str) -> None:
        """Nothing to prepare: the result will not be read."""
