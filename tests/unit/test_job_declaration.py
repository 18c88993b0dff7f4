"""Declarations of jobs that contradict themselves are refused when the job is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from datetime import date
from types import FunctionType
from typing import Any

import pytest

from gated_backfill.common.errors import UserError
from gated_backfill.common.model.coverage import CoveragePolicy
from gated_backfill.common.model.job import (
    Batch,
    Calendar,
    CalendarEvents,
    Expectation,
    Input,
    Job,
    Reconcile,
    Source,
    StaleTable,
    Target,
)
from gated_backfill.common.model.tables import Column


def process(batch: Batch) -> Any:
    return batch.rows


def derive(rows: Any, days: Any) -> Any:
    return rows


class Stop(BaseException):
    """An error that `except Exception` does not catch."""


def stop() -> None:
    raise Stop("at once")


EXPECTATION = Expectation(table="w.expected", date_column="day", entity="e")
SOURCE = Source(name="first", table="w.first", date_column="day")
INPUT = Input(name="weather", table="w.weather", date_column="day")
TARGET = Target(
    table="w.target",
    date_column="day",
    key=("e", "day"),
    columns={"e": Column(type="STRING"), "day": Column(type="DATE"), "value": Column(type="FLOAT64", nullable=True)},
)
JOB = Job(name="checked", version="1", target=TARGET, expectation=EXPECTATION, sources=(SOURCE,), process=process)


def with_columns(**columns: Column) -> Job:
    return replace(JOB, target=replace(TARGET, columns={**TARGET.columns, **columns}))


def with_composite_entity(coverage: float | None) -> Job:
    """A job with two entity columns everywhere but in its input."""
    return replace(
        JOB,
        target=replace(TARGET, entity=("e", "value")),
        expectation=replace(EXPECTATION, entity=("e", "f"), reconcile=()),
        inputs=(replace(INPUT, entity="e", coverage=coverage),),
    )


COLUMN_TYPES = " or ".join(
    map(repr, ("STRING", "INT64", "FLOAT64", "NUMERIC", "BOOL", "BYTES", "DATE", "DATETIME", "TIMESTAMP"))
)

REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "zone-of-expectation": (
        lambda: replace(EXPECTATION, time_zone="Nowhere/X"),
        "expectation w.expected: 'Nowhere/X' is not a known time zone: write it as in Europe/Berlin",
    ),
    "zone-of-calendar": (
        lambda: Calendar(table="w.games", date_column="day", time_zone="Europe"),
        "calendar w.games: 'Europe' is not a known time zone: write it as in Europe/Berlin",
    ),
    "zone-of-source": (
        lambda: replace(SOURCE, time_zone="/etc/passwd"),
        "source first: '/etc/passwd' is not a known time zone: write it as in Europe/Berlin",
    ),
    "zone-of-input": (
        lambda: replace(INPUT, time_zone=""),
        "input weather: '' is not a known time zone: write it as in Europe/Berlin",
    ),
    "rows-is-true": (
        lambda: replace(EXPECTATION, rows=True),
        'expectation w.expected: rows is True: it must be "equal" or a share above 0 and at most 1',
    ),
    "rows-is-a-word": (
        lambda: replace(EXPECTATION, rows="most"),  # pyright: ignore[reportArgumentType]
        'expectation w.expected: rows is most: it must be "equal" or a share above 0 and at most 1',
    ),
    "rows-is-nan": (
        lambda: replace(EXPECTATION, rows=float("nan")),
        'expectation w.expected: rows is nan: it must be "equal" or a share above 0 and at most 1',
    ),
    "floor-is-a-fraction": (
        lambda: replace(EXPECTATION, floor=2.5),  # pyright: ignore[reportArgumentType]
        "expectation w.expected: floor is 2.5: it must be a whole number, and not negative",
    ),
    "floor-is-negative": (
        lambda: replace(EXPECTATION, floor=-1),
        "expectation w.expected: floor is -1: it must be a whole number, and not negative",
    ),
    "entity-twice": (
        lambda: replace(EXPECTATION, entity=("e", "e")),
        "expectation w.expected names an entity column twice: e, e",
    ),
    "no-entity": (lambda: replace(EXPECTATION, entity=()), "expectation w.expected names no entity column"),
    "no-entity-of-source": (lambda: replace(SOURCE, entity=()), "source first names no entity column"),
    "entity-twice-in-target": (
        lambda: replace(TARGET, entity=("e", "e")),
        "target w.target names an entity column twice: e, e",
    ),
    "no-entity-of-input": (lambda: replace(INPUT, entity=(), coverage=0.5), "input weather names no entity column"),
    "entity-without-coverage": (
        lambda: replace(INPUT, entity="e"),
        "input weather: entity is declared, but not the coverage that it is for",
    ),
    "coverage-of-one-of-two-columns": (
        lambda: with_composite_entity(coverage=0.5),
        "job checked: input weather has 1 entity column(s), the expectation 2",
    ),
    "coverage-above-one": (
        lambda: replace(INPUT, coverage=1.5),
        "input weather: coverage is 1.5: it must be a share above 0 and at most 1",
    ),
    "negative-lookback-of-source": (
        lambda: replace(SOURCE, lookback_days=-1, derive=derive),
        "source first: lookback_days is -1: it must be a whole number, and not negative",
    ),
    "negative-lookback-of-input": (
        lambda: replace(INPUT, lookback_days=-3),
        "input weather: lookback_days is -3: it must be a whole number, and not negative",
    ),
    "fraction-of-a-lookback": (
        lambda: replace(INPUT, lookback_days=1.5),  # pyright: ignore[reportArgumentType]
        "input weather: lookback_days is 1.5: it must be a whole number, and not negative",
    ),
    "lookback-without-derive": (
        lambda: replace(SOURCE, lookback_days=3),
        "source first: lookback_days is 3, but there is no derive to use those days",
    ),
    "entity-type-of-target": (
        lambda: with_columns(e=Column(type="DATETIME")),
        "job checked: the target's entity column e is DATETIME, not STRING, INT64, BOOL, DATE, FLOAT64",
    ),
    "sum-type-of-target": (
        lambda: replace(JOB, expectation=replace(EXPECTATION, reconcile=(Reconcile(column="n", target_column="e"),))),
        "job checked: the target's reconciled column e is STRING, not INT64, FLOAT64",
    ),
    "plus-in-the-name-of-a-source": (
        lambda: replace(SOURCE, name="tills+bank"),
        "source tills+bank: name is 'tills+bank': it must be a name of letters, digits, _ and -",
    ),
    "blank-in-the-name-of-an-input": (
        lambda: replace(INPUT, name="the weather"),
        "input the weather: name is 'the weather': it must be a name of letters, digits, _ and -",
    ),
    "two-inputs-of-one-name": (
        lambda: replace(JOB, inputs=(INPUT, INPUT)),
        "job checked declares two inputs of the same name: ['weather', 'weather']",
    ),
    "fallback-as-text": (
        lambda: replace(JOB, fallback="fill"),  # pyright: ignore[reportArgumentType]
        "job checked: fallback is 'fill': it must be Fallback.REPLACE or Fallback.FILL or Fallback.OFF",
    ),
    "version-as-number": (
        lambda: replace(JOB, version=2),  # pyright: ignore[reportArgumentType]
        "job checked: version is 2: it must be text such as '1', and not blank",
    ),
    "blank-version": (
        lambda: replace(JOB, version=" "),
        "job checked: version is ' ': it must be text such as '1', and not blank",
    ),
    "process-as-text": (
        lambda: replace(JOB, process="x"),  # pyright: ignore[reportArgumentType]
        "job checked: process is 'x': it must be a function or a Query",
    ),
    "sources-as-a-mapping": (
        lambda: replace(JOB, sources={"first": 1}),  # pyright: ignore[reportArgumentType]
        "job checked: sources is {'first': 1}: it must be a tuple of Source (a single one as (x,))",
    ),
    "text-among-the-sources": (
        lambda: replace(JOB, sources=(SOURCE, "second")),  # pyright: ignore[reportArgumentType]
        "job checked: sources[1] is 'second': it must be a Source",
    ),
    "no-time": (
        lambda: replace(JOB, soft_time_limit_seconds=0),
        "job checked: soft_time_limit_seconds is 0: it must be a whole number, at least 1",
    ),
    "time-limit-below-the-soft-one": (
        lambda: replace(JOB, time_limit_seconds=60),
        "job checked: time_limit_seconds is 60: it must be more than soft_time_limit_seconds, which is 300",
    ),
    "key-as-text": (
        lambda: replace(TARGET, key="e"),  # pyright: ignore[reportArgumentType]
        "target w.target: key is 'e': it must be a tuple of one or several columns, each once",
    ),
    "no-key": (
        lambda: replace(TARGET, key=()),
        "target w.target: key is (): it must be a tuple of one or several columns, each once",
    ),
    "column-twice-in-the-key": (
        lambda: replace(TARGET, key=("e", "e")),
        "target w.target: key is ('e', 'e'): it must be a tuple of one or several columns, each once",
    ),
    "column-as-text": (
        lambda: replace(TARGET, columns={"e": "STRING"}),  # pyright: ignore[reportArgumentType]
        "target w.target: columns['e'] is 'STRING': it must be a Column",
    ),
    "number-as-name-of-a-column": (
        lambda: replace(TARGET, columns={1: Column(type="STRING")}),  # pyright: ignore[reportArgumentType]
        "target w.target: a key of columns is 1: it must be text",
    ),
    "quoted-name-of-a-column": (
        lambda: replace(TARGET, columns={"e`": Column(type="STRING")}),
        "'e`' is not a valid column name of target w.target: letters, digits and _ only, not starting with a digit",
    ),
    "required-as-text": (
        lambda: replace(SOURCE, required="e"),  # pyright: ignore[reportArgumentType]
        "source first: required is 'e': it must be a tuple of str (a single one as (x,))",
    ),
    "unknown-type-of-a-source-column": (
        lambda: replace(SOURCE, columns={"n": "int"}),  # pyright: ignore[reportArgumentType]
        f"source first: columns['n'] is 'int': it must be {COLUMN_TYPES}",
    ),
    "unknown-column-type": (
        lambda: Column(type="DECIMAL"),  # pyright: ignore[reportArgumentType]
        f"a Column: type is 'DECIMAL': it must be {COLUMN_TYPES}",
    ),
    "bound-of-text": (
        lambda: Column(type="STRING", ge=0),
        "a Column: ge is 0, but only INT64, FLOAT64 and NUMERIC may have bounds, not STRING",
    ),
    "bound-of-a-date": (
        lambda: Column(type="DATE", le=0),
        "a Column: le is 0, but only INT64, FLOAT64 and NUMERIC may have bounds, not DATE",
    ),
    "bound-of-bytes": (
        lambda: Column(type="BYTES", ge=0),
        "a Column: ge is 0, but only INT64, FLOAT64 and NUMERIC may have bounds, not BYTES",
    ),
    "bound-with-more-digits-than-a-decimal-number": (
        lambda: Column(type="NUMERIC", ge=1e-10),
        "a Column: ge is 1e-10: it must be a number of at most 29 digits before the point and 9 behind it",
    ),
    "infinite-bound-of-a-decimal-number": (
        lambda: Column(type="NUMERIC", le=float("inf")),
        "a Column: le is inf: it must be a number of at most 29 digits before the point and 9 behind it",
    ),
    "bound-as-text": (
        lambda: Column(type="FLOAT64", ge="0"),  # pyright: ignore[reportArgumentType]
        "a Column: ge is '0': it must be a number or None",
    ),
    "nan-as-bound": (
        lambda: Column(type="FLOAT64", ge=float("nan")),
        "a Column: ge is nan: it must be a number or None",
    ),
    "bound-beyond-64-bits": (
        lambda: Column(type="INT64", le=2**63),
        "a Column: le is 9223372036854775808: it must be a number of at most 64 bits",
    ),
    "bound-beyond-floats": (
        lambda: Column(type="FLOAT64", ge=-(10**400)),
        f"a Column: ge is -1{'0' * 400}: it must be a number of at most 64 bits",
    ),
    "bounds-that-allow-nothing": (
        lambda: Column(type="FLOAT64", ge=2, le=1),
        "a Column: ge is 2, above le, which is 1: no value is allowed",
    ),
    "share-of-nulls-above-one": (
        lambda: Column(type="FLOAT64", max_null_share=5),
        "a Column: max_null_share is 5: it must be a share between 0 and 1",
    ),
    "tolerance-as-text": (
        lambda: Reconcile(column="n", tolerance="x"),  # pyright: ignore[reportArgumentType]
        "reconcile n: tolerance is 'x': it must be a finite number, and not negative",
    ),
    "tolerance-is-nan": (
        lambda: Reconcile(column="n", tolerance=float("nan")),
        "reconcile n: tolerance is nan: it must be a finite number, and not negative",
    ),
    "floor-as-text": (
        lambda: Calendar(table="w.games", date_column="day", floor_per_event="1"),  # pyright: ignore[reportArgumentType]
        "calendar w.games: floor_per_event is '1': it must be a whole number, and not negative",
    ),
    "half-a-season-filter": (
        lambda: Calendar(table="w.games", date_column="day", season_filter=("kind",)),  # pyright: ignore[reportArgumentType]
        "calendar w.games: season_filter is ('kind',): it must be a tuple (str, str) or None",
    ),
    "number-among-entity-columns": (
        lambda: replace(EXPECTATION, entity=("e", 1)),  # pyright: ignore[reportArgumentType]
        "expectation w.expected: entity[1] is 1: it must be text",
    ),
    "ratio-as-text": (
        lambda: CoveragePolicy(accept_ratio="0.9"),  # pyright: ignore[reportArgumentType]
        "a CoveragePolicy: accept_ratio is '0.9': it must be a number",
    ),
    "nulls-in-the-key": (
        lambda: with_columns(e=Column(type="STRING", max_null_share=0.1)),
        "job checked: column e of the target's key has a max_null_share: no key is null",
    ),
}


@pytest.mark.parametrize(("declare", "error"), REFUSED.values(), ids=REFUSED)
def test_a_declaration_that_contradicts_itself_is_refused(declare: Callable[[], object], error: str) -> None:
    with pytest.raises(UserError) as refused:
        declare()

    assert str(refused.value) == error


DECLARATIONS: tuple[Any, ...] = (
    JOB,
    TARGET,
    Column(type="FLOAT64"),
    EXPECTATION,
    Calendar(table="w.games", date_column="day"),
    Reconcile(column="n"),
    SOURCE,
    INPUT,
    StaleTable(table="w.stale"),
    CoveragePolicy(),
)


@pytest.mark.parametrize(
    ("declaration", "field"),
    [
        pytest.param(declaration, field.name, id=f"{type(declaration).__name__}-{field.name}")
        for declaration in DECLARATIONS
        for field in fields(declaration)
    ],
)
@pytest.mark.parametrize(
    "wrong", [object(), [1], {"a": object()}, b"x", 1j, float("nan")], ids=lambda wrong: type(wrong).__name__
)
def test_no_field_takes_a_value_of_another_type(declaration: Any, field: str, wrong: object) -> None:
    with pytest.raises(UserError, match=rf"\b{field}\b.* is .*: it must be "):
        replace(declaration, **{field: wrong})


def test_a_long_value_is_cut_and_takes_one_line() -> None:
    with pytest.raises(UserError) as refused:
        replace(JOB, description=["a line\n"] * 1000)  # pyright: ignore[reportArgumentType]

    assert len(str(refused.value)) < 200
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("skip", "problem"),
    [
        (lambda day, calendar: calendar.count_on(day) and None, "raised AttributeError: 'NoneType' object has no"),
        (lambda day: None, "raised TypeError: "),
        (lambda day, calendar: {}["a\nb"], "raised KeyError: 'a"),
        (lambda day, calendar: stop(), "raised Stop: at once"),
        (lambda day, calendar: True, "returned True: it must be the reason to skip the date, or None to build it"),
        (lambda day, calendar: 1, "returned 1: it must be"),
        (lambda day, calendar: " ", "returned ' ': it must be"),
    ],
)
def test_a_skip_rule_that_fails_is_named_with_the_date(skip: Any, problem: str) -> None:
    with pytest.raises(UserError) as refused:
        replace(JOB, skip=skip).skip_reason(date(2024, 5, 1), None)

    assert str(refused.value).startswith(f"job checked: skip(2024-05-01, None) {problem}")


def handle() -> None:
    raise interruption  # noqa: F821 # pyright: ignore[reportUndefinedVariable] - see `handler_of_celery`


def handler_of_celery(interruption: type[BaseException]) -> Callable[[], None]:
    """A function of a module of Celery, as its handlers of signals are, which raises the error."""
    return FunctionType(handle.__code__, {"__name__": "celery.apps.worker", "interruption": interruption})


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_a_signal_during_a_skip_rule_is_no_failure_of_it(interruption: type[BaseException]) -> None:
    handler = handler_of_celery(interruption)

    def skip(day: date, calendar: CalendarEvents | None) -> str | None:
        handler()

    with pytest.raises(interruption):
        replace(JOB, skip=skip).skip_reason(date(2024, 5, 1), None)


@pytest.mark.parametrize(("returned", "reason"), [(None, None), ("no game", "no game"), (False, None), ("", None)])
def test_a_skip_rule_gives_a_reason_or_none(returned: Any, reason: str | None) -> None:
    job = replace(JOB, skip=lambda day, calendar: returned)

    assert job.skip_reason(date(2024, 5, 1), CalendarEvents(count_by_date={})) == reason


@pytest.mark.parametrize("rows", [None, "equal", 0.5, 1])
def test_rows_may_be_equal_or_a_share(rows: Any) -> None:
    assert replace(EXPECTATION, rows=rows).rows == rows


def test_what_belongs_together_is_accepted() -> None:
    source = replace(SOURCE, lookback_days=3, derive=derive, time_zone="America/New_York")
    job = replace(
        JOB,
        expectation=replace(EXPECTATION, floor=2, time_zone="UTC", reconcile=(Reconcile(column="value"),)),
        sources=(source,),
        inputs=(replace(INPUT, entity="station", coverage=0.9, lookback_days=1), replace(INPUT, name="bare")),
        target=replace(TARGET, columns={**TARGET.columns, "value": Column(type="FLOAT64", max_null_share=0.1)}),
    )

    assert job.input_entity(job.inputs[0]) == ("station",)
