"""Celery's Redis result backend, reduced to counting the headers of a chord. Tried with Celery 5.7.

- Sending a chord subscribes to no result (`add_pending_result`, `on_task_call`). Celery subscribes twice per header and
  unsubscribes when the result object is collected, which prints a traceback if the broker is gone by then.
- Results are not stored (`store_result`): the outcome of a date is in the ledger.
- A chord is one Redis set of header ids (`on_chord_part_return`). Celery keeps the results for the chord's body and
  builds the body for each header. Our body reads the ledger, and may safely be sent twice.
"""

from __future__ import annotations

from typing import Any

import structlog
from celery.backends.redis import RedisBackend
from celery.canvas import maybe_signature

from gated_backfill.common.broker.transport import translate_broker_errors
from gated_backfill.common.errors import BrokerUnavailable

CHORD_SIZE_KEY = "chord_size"  #: key of a chord's body with the number of its headers
COUNTING_BACKEND = f"{__name__}:CountingRedisBackend"

log = structlog.get_logger()


class CountingRedisBackend(RedisBackend):
    """Counts the headers of chords in Redis."""

    app: Any
    chord_expires: int

    def add_pending_result(self, result: Any, weak: bool = False, start_drainer: bool = True) -> Any:
        return result

    def remove_pending_result(self, result: Any) -> Any:
        return result

    def on_task_call(self, producer: Any, task_id: str) -> None:
        """Prepare nothing: the result is never read."""

    def store_result(self, task_id: str, result: Any, *args: Any, **kwargs: Any) -> Any:
        """Store nothing: the outcome of a date is in the ledger."""
        return result

    def on_chord_part_return(self, request: Any, *args: Any, **kwargs: Any) -> None:
        """Count a header once, however often it is delivered, and send the body after the last one.

        If the broker loses the count, reconcile finds the window.
        """
        header_count = (request.chord or {}).get(CHORD_SIZE_KEY)
        if header_count is None:  # sent by an earlier version
            super().on_chord_part_return(request, *args, **kwargs)
            return
        if not request.group or not isinstance(header_count, int):
            return
        count_key = self.get_key_for_group(request.group, ".n")
        client: Any = self.client
        pipe = client.pipeline(transaction=False)
        *_, done = pipe.sadd(count_key, request.id).expire(count_key, self.chord_expires).scard(count_key).execute()
        if done < header_count:
            return
        body: Any = maybe_signature(request.chord, app=self.app)
        try:
            with translate_broker_errors():
                body.apply_async()
                client.delete(count_key)  # redelivered headers start a new count that stays incomplete
        except BrokerUnavailable as exc:  # reconcile will find the window
            log.error("chord_body_not_sent", group=request.group, error=str(exc))
