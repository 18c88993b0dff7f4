"""Check the arguments of tasks before anything acts on them: a broker is shared, and anything may be in a message."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import structlog

from gated_backfill.common.errors import UserError
from gated_backfill.common.model.dates import parse_date
from gated_backfill.common.model.scheduling.batching import MAX_DATES_PER_TASK

log = structlog.get_logger()

RUN_ID = re.compile(r"[A-Za-z0-9_-]{1,40}", re.ASCII)
MAINTENANCE_TASK_NAME = re.compile(r"[a-z_]{1,40}|[a-z]{1,10} \w{1,50}", re.ASCII)  #: the latter with a job's name
MAX_WINDOW_NUMBER = 2**31 - 1
MAX_ERROR_LENGTH = 200  #: characters of an error in log and result
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


def _task_name(value: object) -> bool:
    return isinstance(value, str) and MAINTENANCE_TASK_NAME.fullmatch(value) is not None


#: By name of the argument: the check of a value, and a description of valid values.
ARGUMENT_TYPES: Mapping[str, tuple[Callable[[object], bool], str]] = {
    "run": (_run, "the id of a run"),
    "days": (_days, "dates as YYYY-MM-DD"),
    "number": (_number, "the number of a window"),
    "lost_tasks": (_flag, "true or false"),
    "name": (_task_name, "the name of a maintenance task"),
}


def reject_invalid_arguments(function: Callable[..., Any]) -> Callable[..., Any]:
    """Have a task log one line and change nothing if its arguments are invalid, or if it raises a `UserError`.

    Such a task must not be retried: it names a run or job that does not exist or cannot be used.
    """
    signature = inspect.signature(function)

    @wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        problem = _argument_problem(signature, args, kwargs)
        if problem is not None:
            return _refuse(function.__name__, problem)
        try:
            return function(*args, **kwargs)
        except UserError as exc:
            return _refuse(function.__name__, str(exc))

    return checked


def _argument_problem(signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
    """The reason why the arguments are invalid; None if they are valid."""
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as exc:
        return str(exc)
    bound.apply_defaults()
    for name, (is_valid, description) in ARGUMENT_TYPES.items():
        if name in bound.arguments and not is_valid(bound.arguments[name]):
            return f"{name} is not {description}, but a {type(bound.arguments[name]).__name__}"
    return None


def _refuse(task: str, reason: str) -> dict[str, str]:
    log.error("task_refused", task=task, error=reason[:MAX_ERROR_LENGTH])
    return {"state": REFUSED, "detail": reason[:MAX_ERROR_LENGTH]}
