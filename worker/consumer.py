"""What a worker does with a message that it can't make sense of: one line in the log, and away with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import structlog
from celery.worker.consumer import Consumer

log = structlog.get_logger()

SHOWN = 200  #: characters of what was wrong with it


class TolerantConsumer(Consumer):
    """Refuses what is no task of ours without going on about it, and without coming to an end.

    The stock one prints such a message whole, with a traceback, and ends the worker when a header is of a wrong kind.
    What is refused is acknowledged: given back, it would come again for ever.
    """

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], None]:
        handle = super().create_task_handler(*args, **kwargs)

        def on_task_received(message: Any) -> None:
            try:
                handle(message)
            except (ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError, RecursionError) as exc:
                self._refuse(message, f"{type(exc).__name__}: {exc}")

        return on_task_received

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        self._refuse(message, f"it can't be read: {exc}")

    def on_unknown_message(self, body: Any, message: Any) -> None:
        self._refuse(message, "it names no task")

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:
        self._refuse(message, f"there is no task {_task_of(message)!r}")

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:
        self._refuse(message, str(exc))

    def _refuse(self, message: Any, why: str) -> None:
        log.error("message_refused", task=_task_of(message), content_type=message.content_type, error=why[:SHOWN])
        if not message.acknowledged:
            message.ack()


def _task_of(message: Any) -> str:
    headers = message.headers
    return str(headers.get("task"))[:SHOWN] if isinstance(headers, dict) else "none"
