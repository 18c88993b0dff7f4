"""What a task may be told. A broker is shared: whatever stands in a message is looked at before anything acts on it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import structlog

from gated_backfill.common.errors import UserError
from gated_backfill.common.model.batching import MAX_DATES_PER_TASK
from gated_backfill.common.model.dates import parse_date

log = structlog.get_logger()

RUN_ID = re.compile(r"[A-Za-z0-9_-]{1,40}", re.ASCII)
MAINTENANCE_TASK_NAME = re.compile(r"[a-z_]{1,40}", re.ASCII)
MAX_WINDOW_NUMBER = 2**31 - 1
MAX_ERROR_LENGTH = 200  #: characters of what was wrong
REFUSED = "refused"


def _run(value: object) -> bool:
    return isinstance(value, str) and RUN_ID.fullmatch(value) is not None


def _day(value: object) -> bool:
    if not isinstance(value, str) or len(value) != len("2023-02-23"):
        return False
    try:
        parse_date(value)
    except UserError:
        return False
    return True


def _days(value: object) -> bool:
    return isinstance(value, tuple) and 0 < len(value) <= MAX_DATES_PER_TASK and all(map(_day, value))


def _number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_WINDOW_NUMBER


def _flag(value: object) -> bool:
    return isinstance(value, bool)


def _work(value: object) -> bool:
    return isinstance(value, str) and MAINTENANCE_TASK_NAME.fullmatch(value) is not None


#: By the argument's name: whether a value can be one, and what one is.
ARGUMENT_TYPES: Mapping[str, tuple[Callable[[object], bool], str]] = {
    "run": (_run, "the id of a run"),
    "days": (_days, "dates as YYYY-MM-DD"),
    "number": (_number, "the number of a window"),
    "lost_tasks": (_flag, "true or false"),
    "name": (_work, "the name of a work"),
}


def reject_invalid_arguments(function: Callable[..., Any]) -> Callable[..., Any]:
    """The task, done only when told what it can be told; anything else is one line in the log and changes nothing.

    It never raises a `UserError`: what it names is not there, or can't be used, and would not be the next time either.
    """
    signature = inspect.signature(function)

    @wraps(function)
    def told(*args: Any, **kwargs: Any) -> Any:
        wrong = _wrong(signature, args, kwargs)
        if wrong is not None:
            return _refused(function.__name__, wrong)
        try:
            return function(*args, **kwargs)
        except UserError as exc:
            return _refused(function.__name__, str(exc))

    return told


def _wrong(signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
    """What is wrong with the arguments; None when nothing is."""
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as exc:
        return str(exc)
    bound.apply_defaults()
    given = bound.arguments
    for name, (fits, meaning) in ARGUMENT_TYPES.items():
        if name in given and not fits(given[name]):
            return f"{name} is not {meaning}, but a {type(given[name]).__name__}"
    return None


def _refused(task: str, why: str) -> dict[str, str]:
    log.error("task_refused", task=task, error=why[:MAX_ERROR_LENGTH])
    return {"state": REFUSED, "detail": why[:MAX_ERROR_LENGTH]}
