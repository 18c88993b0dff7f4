"""Acknowledge messages that are not tasks of this package, with one line in the log."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import structlog
from celery.worker.consumer import Consumer
from kombu.exceptions import ContentDisallowed, KombuError

log = structlog.get_logger()

MAX_ERROR_LENGTH = 200  #: characters of an error in the log


class TolerantConsumer(Consumer):
    """A consumer that survives malformed messages.

    Celery's own consumer logs such a message in full with a traceback, and ends the worker if a header has the wrong
    type. Here the message is acknowledged: requeued, it would be delivered again without end.
    """

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], None]:
        handle = super().create_task_handler(*args, **kwargs)

        def on_task_received(message: Any) -> None:
            try:
                problem = message_problem(message.headers, message.payload)
                if problem is not None:  # if accepted, it would block a prefetch slot
                    return self._refuse(message, problem)
                return handle(message)
            except (ContentDisallowed, KombuError) as exc:
                self._refuse(message, f"it can't be read: {exc}")
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

    def _refuse(self, message: Any, reason: str) -> None:
        log.error(
            "message_refused",
            task=_task_of(message),
            content_type=message.content_type,
            error=reason[:MAX_ERROR_LENGTH],
        )
        if not message.acknowledged:
            message.ack()


def message_problem(headers: Any, payload: Any) -> str | None:
    """The reason why this is not the message of a task; None if it is one. The arguments are checked by the task."""
    if not isinstance(headers, dict) or not isinstance(headers.get("task"), str):
        return "it names no task"
    for name, is_valid in HEADER_TYPES.items():
        if headers.get(name) is not None and not is_valid(headers[name]):
            return f"its header {name} has an invalid value of type {type(headers[name]).__name__}"
    if not isinstance(payload, list | tuple) or len(payload) != len(PAYLOAD_TYPES):
        return "its body is not arguments"
    if not all(isinstance(part, kind) for part, kind in zip(payload, PAYLOAD_TYPES, strict=True)):
        return "its body is not arguments"
    embedded = payload[2]
    if not all(isinstance(embedded.get(name), kind | None) for name, kind in EMBEDDED_TYPES.items()):
        return "its callbacks or chord can't be read"
    return None


def _text(value: object) -> bool:
    return isinstance(value, str)


def _count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_NUMBER


def _limits(value: object) -> bool:
    return (
        isinstance(value, list | tuple) and len(value) == 2 and all(limit is None or _seconds(limit) for limit in value)
    )


def _seconds(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < MAX_NUMBER


MAX_NUMBER = 2**31
#: Checks of the headers that are not null; other headers are ignored.
HEADER_TYPES: dict[str, Callable[[object], bool]] = {
    **dict.fromkeys(("id", "root_id", "parent_id", "group", "eta", "expires", "origin", "lang", "shadow"), _text),
    **dict.fromkeys(("argsrepr", "kwargsrepr"), _text),
    **dict.fromkeys(("retries", "group_index", "replaced_task_nesting"), _count),
    "timelimit": _limits,
    "stamped_headers": lambda value: isinstance(value, list | tuple),
    "stamps": lambda value: isinstance(value, dict),
}
PAYLOAD_TYPES = (list, dict, dict)  #: positional arguments, keyword arguments, callbacks
EMBEDDED_TYPES = {"callbacks": list, "errbacks": list, "chain": list, "chord": dict}


def _task_of(message: Any) -> str:
    headers = message.headers
    return str(headers.get("task"))[:MAX_ERROR_LENGTH] if isinstance(headers, dict) else "none"
