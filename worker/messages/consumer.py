"""What a worker does with a message that it can't make sense of: one line in the log, and away with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import structlog
from celery.worker.consumer import Consumer
from kombu.exceptions import ContentDisallowed, KombuError

log = structlog.get_logger()

MAX_ERROR_LENGTH = 200  #: characters of what was wrong with it


class TolerantConsumer(Consumer):
    """Refuses what is no task of ours without going on about it, and without coming to an end.

    The stock one prints such a message whole, with a traceback, and ends the worker when a header is of a wrong kind.
    What is refused is acknowledged: given back, it would come again for ever.
    """

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], None]:
        handle = super().create_task_handler(*args, **kwargs)

        def on_task_received(message: Any) -> None:
            try:
                wrong = message_problem(
                    message.headers, message.payload
                )  # once taken up, it would hold a place for ever
                if wrong is not None:
                    return self._refuse(message, wrong)
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

    def _refuse(self, message: Any, why: str) -> None:
        log.error(
            "message_refused", task=_task_of(message), content_type=message.content_type, error=why[:MAX_ERROR_LENGTH]
        )
        if not message.acknowledged:
            message.ack()


def message_problem(headers: Any, payload: Any) -> str | None:
    """What makes it no message of a task; None when nothing does. Whether the task can do with it is not asked here."""
    if not isinstance(headers, dict) or not isinstance(headers.get("task"), str):
        return "it names no task"
    for name, fits in HEADER_TYPES.items():
        if headers.get(name) is not None and not fits(headers[name]):
            return f"its header {name} is a {type(headers[name]).__name__} that can't be one"
    if not isinstance(payload, list | tuple) or len(payload) != len(PAYLOAD_TYPES):
        return "its body is not arguments"
    if not all(isinstance(part, kind) for part, kind in zip(payload, PAYLOAD_TYPES, strict=True)):
        return "its body is not arguments"
    embedded = payload[2]
    if not all(isinstance(embedded.get(name), kind | None) for name, kind in EMBEDDED_TYPES.items()):
        return "what it says is to follow can't be read"
    return None


def _text(value: object) -> bool:
    return isinstance(value, str)


def _count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_NUMBER


def _limits(value: object) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(one is None or _seconds(one) for one in value)


def _seconds(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < MAX_NUMBER


MAX_NUMBER = 2**31
#: What a header can hold where it holds anything; others are not looked at.
HEADER_TYPES: dict[str, Callable[[object], bool]] = {
    **dict.fromkeys(("id", "root_id", "parent_id", "group", "eta", "expires", "origin", "lang", "shadow"), _text),
    **dict.fromkeys(("argsrepr", "kwargsrepr"), _text),
    **dict.fromkeys(("retries", "group_index", "replaced_task_nesting"), _count),
    "timelimit": _limits,
    "stamped_headers": lambda value: isinstance(value, list | tuple),
    "stamps": lambda value: isinstance(value, dict),
}
PAYLOAD_TYPES = (list, dict, dict)  #: arguments by position and by name, and what is to follow
EMBEDDED_TYPES = {"callbacks": list, "errbacks": list, "chain": list, "chord": dict}


def _task_of(message: Any) -> str:
    headers = message.headers
    return str(headers.get("task"))[:MAX_ERROR_LENGTH] if isinstance(headers, dict) else "none"
