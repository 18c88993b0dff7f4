"""Check the fields of a declaration: their types, as they are annotated, and what else each field allows."""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from gated_backfill.common.errors import UserError

SHOWN_CHARACTERS = 80  #: of a wrong value
#: Names in annotations that only type checkers import.
UNIMPORTED = {"pd": types.SimpleNamespace(DataFrame=object)}


@dataclass(frozen=True, kw_only=True)
class FieldRule:
    """What a field allows beyond its type: in words, which also describe its type, and as a function."""

    allowed: str
    permits: Callable[[Any], bool]


NOT_BLANK = FieldRule(allowed="text such as '1', and not blank", permits=lambda text: bool(text.strip()))
NOT_NEGATIVE = FieldRule(allowed="a whole number, and not negative", permits=lambda number: number >= 0)
AT_LEAST_1 = FieldRule(allowed="a whole number, at least 1", permits=lambda number: number >= 1)
SHARE = FieldRule(allowed="a share between 0 and 1", permits=lambda share: 0 <= share <= 1)
POSITIVE_SHARE = FieldRule(allowed="a share above 0 and at most 1", permits=lambda share: 0 < share <= 1)


def check_fields(declaration: Any, owner: str, **rules: FieldRule) -> None:
    """Check each field of a dataclass against its annotated type, and those with a rule against it.

    None is checked against no rule. Raises `UserError` for the first wrong field, with the owner, the field, its value
    and what is allowed.
    """
    for name, hint in _field_types(type(declaration)).items():
        value = getattr(declaration, name)
        rule = rules.get(name)
        problem = _find_problem(name, value, hint)
        if problem is None and (rule is None or value is None or rule.permits(value)):
            continue
        if rule is not None:
            problem = _describe_problem(name, value, rule.allowed)
        raise UserError(f"{owner}: {problem}")


@lru_cache
def _field_types(declared: type) -> dict[str, Any]:
    return get_type_hints(declared, localns=UNIMPORTED)


def _describe_problem(name: str, value: Any, allowed: str) -> str:
    shown = " ".join(repr(value).split())
    if len(shown) > SHOWN_CHARACTERS:
        shown = f"{shown[:SHOWN_CHARACTERS]}..."
    return f"{name} is {shown}: it must be {allowed}"


def _find_problem(name: str, value: Any, hint: Any) -> str | None:
    """Say which value, the field's own or one within it, has another type than annotated; None if all have it."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        problems = [_find_problem(name, value, choice) for choice in arguments if _is_instance(value, choice)]
        if not problems:
            return _describe_problem(name, value, _describe_type(hint))
        return None if None in problems else problems[0]
    if not _is_instance(value, hint):
        return _describe_problem(name, value, _describe_type(hint))
    if origin is tuple:
        item_types = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        items = [(f"{name}[{at}]", item, kind) for at, (item, kind) in enumerate(zip(value, item_types, strict=True))]
    elif isinstance(value, Mapping) and arguments:
        keys = [(f"a key of {name}", key, arguments[0]) for key in value]
        items = [*keys, *((f"{name}[{key!r}]", item, arguments[1]) for key, item in value.items())]
    else:
        return None
    return next((problem for item in items if (problem := _find_problem(*item))), None)


def _is_instance(value: Any, hint: Any) -> bool:
    """Whether the value has the annotated type, apart from the values within it."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return isinstance(value, str) and value in arguments
    if origin is tuple:
        return isinstance(value, tuple) and (arguments[-1] is Ellipsis or len(value) == len(arguments))
    if hint is float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and not (isinstance(value, float) and math.isnan(value))
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, origin or hint)


def _describe_type(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_describe_type(choice) for choice in arguments)
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return f"a tuple of {arguments[0].__name__} (a single one as (x,))"
        return f"a tuple ({', '.join(kind.__name__ for kind in arguments)})"
    if isinstance(hint, type) and issubclass(hint, Enum):
        return " or ".join(map(str, hint))
    return SIMPLE_TYPES.get(origin or hint) or f"a {hint.__name__}"


SIMPLE_TYPES: dict[Any, str] = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    type(None): "None",
    Mapping: "a mapping such as a dict",
    Callable: "a function",
}
