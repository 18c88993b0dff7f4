"""What a model's `meta: {backfill: ...}` says of its job: the fields of a `Job`, as YAML. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from gated_backfill.common.errors import UserError
from gated_backfill.common.model.coverage import CoveragePolicy, Fallback
from gated_backfill.common.model.job import Calendar, Expectation, Input, Reconcile, Source, Target

META_KEY = "backfill"  #: the key in a model's `meta`
Fields = dict[str, Any]
Declared = TypeVar("Declared")


@dataclass(frozen=True, kw_only=True)
class JobDeclaration:
    """The declaration, of which tables are still written as the author of the project writes them."""

    target: Fields
    expectation: Fields
    sources: tuple[Fields, ...]
    inputs: tuple[Fields, ...]
    others: Fields  #: fields of the job itself


OTHER_FIELDS = ("soft_time_limit_seconds", "time_limit_seconds", "max_in_flight")
#: Fields that are code, or that only code uses: a job that needs them is completed in Python.
CODE_FIELDS = ("derive", "derive_together", "lookback_days", "require_lookback")


def read_declaration(declared: Any) -> JobDeclaration:
    """Read what is declared below the key. Raises `UserError` for what a job does not have."""
    place = f"meta.{META_KEY}"
    job = _mapping(declared, place, ("target", "expectation", "sources", "inputs", "policy", "fallback", *OTHER_FIELDS))
    if missing := [name for name in ("expectation", "sources") if name not in job]:
        raise UserError(f"{place} lacks {' and '.join(missing)}")
    if job["sources"] == []:
        raise UserError(f"{place}.sources is empty: the first one is the table that the model reads")
    others = {name: job[name] for name in OTHER_FIELDS if name in job}
    if "policy" in job:
        others["policy"] = make(CoveragePolicy, _fields(CoveragePolicy, job["policy"], f"{place}.policy"))
    if "fallback" in job:
        others["fallback"] = _fallback(job["fallback"], f"{place}.fallback")
    return JobDeclaration(
        target=_fields(Target, job.get("target", {}), f"{place}.target", without=("table", "columns")),
        expectation=_expectation(job["expectation"], f"{place}.expectation"),
        sources=tuple(
            _fields(Source, source, f"{place}.sources[{at}]", without=CODE_FIELDS)
            for at, source in enumerate(_list(job["sources"], f"{place}.sources"))
        ),
        inputs=tuple(
            _fields(Input, declared_input, f"{place}.inputs[{at}]")
            for at, declared_input in enumerate(_list(job.get("inputs", []), f"{place}.inputs"))
        ),
        others=others,
    )


def make(kind: Callable[..., Declared], fields: Fields) -> Declared:
    """Make the dataclass. Raises `UserError`, also where the dataclass raises `ValueError`."""
    try:
        return kind(**fields)
    except ValueError as exc:
        raise UserError(str(exc)) from exc


def with_tables(fields: Fields, name_of: Callable[[str], str]) -> Fields:
    """Return the fields with the names of their tables as a job writes them, that of a calendar included."""
    named = dict(fields)
    if "table" in fields:
        named["table"] = name_of(fields["table"])
    if fields.get("calendar") is not None:
        named["calendar"] = make(Calendar, with_tables(fields["calendar"], name_of))
    return named


def _expectation(declared: Any, place: str) -> Fields:
    fields = _fields(Expectation, declared, place)
    if fields.get("calendar") is not None:
        fields["calendar"] = _fields(Calendar, fields["calendar"], f"{place}.calendar")
    if "reconcile" in fields:
        fields["reconcile"] = tuple(
            make(Reconcile, _fields(Reconcile, one, f"{place}.reconcile[{at}]"))
            for at, one in enumerate(_list(declared["reconcile"], f"{place}.reconcile"))
        )
    return fields


def _fields(kind: Any, declared: Any, place: str, *, without: Collection[str] = ()) -> Fields:
    """The fields of a dataclass, with tuples for lists."""
    allowed = [field for field in dataclasses.fields(kind) if field.name not in without]
    values = _mapping(declared, place, [field.name for field in allowed])
    needed = [field.name for field in allowed if field.default is dataclasses.MISSING]
    optional = ("name",) if kind in (Source, Input) else ("date_column", "key") if kind is Target else ()
    if missing := [name for name in needed if name not in values and name not in optional]:
        raise UserError(f"{place} lacks {', '.join(missing)}")
    for name in ("table", "name"):
        if not isinstance(values.get(name, ""), str):
            raise UserError(f"{place}.{name} is {values[name]!r}: it must be text")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def _mapping(declared: Any, place: str, keys: Collection[str]) -> Fields:
    if not isinstance(declared, Mapping):
        raise UserError(f"{place} is {declared!r}: it must be a mapping")
    if unknown := [str(key) for key in declared if key not in keys]:
        raise UserError(f"{place} has no key {unknown[0]}: its keys are {', '.join(keys)}")
    return dict(declared)


def _list(declared: Any, place: str) -> list[Any]:
    if not isinstance(declared, list):
        raise UserError(f"{place} is {declared!r}: it must be a list")
    return declared


def _fallback(declared: Any, place: str) -> Fallback:
    try:
        return Fallback.OFF if declared is False else Fallback(declared)  # YAML reads `off` as false
    except ValueError as exc:
        allowed = ", ".join(fallback.value for fallback in Fallback)
        raise UserError(f"{place} is {declared!r}: it must be one of {allowed}") from exc
