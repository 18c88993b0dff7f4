"""Declarations of jobs that contradict themselves are refused when the job is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from gated_backfill.common.errors import UserError
from gated_backfill.common.model.job import Batch, Calendar, Expectation, Input, Job, Reconcile, Source, Target
from gated_backfill.common.model.tables import Column


def process(batch: Batch) -> Any:
    return batch.rows


def derive(rows: Any, days: Any) -> Any:
    return rows


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
        'expectation w.expected: rows is True: it must be "equal" or a share up to 1',
    ),
    "rows-is-a-word": (
        lambda: replace(EXPECTATION, rows="most"),  # pyright: ignore[reportArgumentType]
        'expectation w.expected: rows is most: it must be "equal" or a share up to 1',
    ),
    "rows-is-nan": (
        lambda: replace(EXPECTATION, rows=float("nan")),
        'expectation w.expected: rows is nan: it must be "equal" or a share up to 1',
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
        "input weather: coverage is 1.5: it must be a share up to 1",
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
