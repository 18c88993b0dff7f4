"""Celery's results, reduced to what a chord needs: its headers are counted, and nobody ever asks for one.

The stock backend subscribes to each header's result twice, in the process that sends a chord, and unsubscribes when the
result object is collected: cost on every date, and a traceback when that happens after the broker is gone. It also
looks up and stores each result by itself, for a week, beside what the chord counts. And it keeps the results to hand
them to the chord's body, which is made anew for each header, and goes to lengths to have it sent once. Our body reads
the ledger instead, and may be sent twice.
"""

from __future__ import annotations

from typing import Any

import structlog
from celery.backends.redis import RedisBackend
from celery.canvas import maybe_signature

from gated_backfill.common.broker.transport import translate_broker_errors
from gated_backfill.common.errors import BrokerUnavailable

CHORD_SIZE_KEY = "chord_size"  #: where a chord's body says how many headers it waits for
COUNTING_BACKEND = f"{__name__}:CountingRedisBackend"

log = structlog.get_logger()


class CountingRedisBackend(RedisBackend):
    """Redis as the place where the headers of chords are counted."""

    app: Any
    chord_expires: int

    def add_pending_result(self, result: Any, weak: bool = False, start_drainer: bool = True) -> Any:
        return result

    def remove_pending_result(self, result: Any) -> Any:
        return result

    def on_task_call(self, producer: Any, task_id: str) -> None:
        """Nothing to prepare: the result will not be read."""

    def store_result(self, task_id: str, result: Any, *args: Any, **kwargs: Any) -> Any:
        """Nothing to store: what became of a date is in the ledger, and the chord counts by itself."""
        return result

    def on_chord_part_return(self, request: Any, *args: Any, **kwargs: Any) -> None:
        """Count a header, once however often it is delivered; the last one sends the body.

        What the broker has lost of the count is missing from it: reconcile will find the window.
        """
        wanted = (request.chord or {}).get(CHORD_SIZE_KEY)
        if wanted is None:  # as the version before sent it
            super().on_chord_part_return(request, *args, **kwargs)
            return
        if not request.group or not isinstance(wanted, int):
            return
        counted = self.get_key_for_group(request.group, ".n")
        client: Any = self.client
        pipe = client.pipeline(transaction=False)
        *_, done = pipe.sadd(counted, request.id).expire(counted, self.chord_expires).scard(counted).execute()
        if done < wanted:
            return
        body: Any = maybe_signature(request.chord, app=self.app)
        try:
            with translate_broker_errors():
                body.apply_async()
                client.delete(counted)  # later copies of its headers begin anew, and do not get far
        except BrokerUnavailable as exc:  # reconcile will find the window
            log.error("chord_body_not_sent", group=request.group, error=str(exc))
