"""Jobs whose tables are read in every way that a job can declare. Each passes its source's rows on."""

import os
from collections.abc import Sequence
from dataclasses import replace
from datetime import date

import pandas as pd

from gated_backfill import (
    Batch,
    Calendar,
    Column,
    CoveragePolicy,
    Expectation,
    Fallback,
    Job,
    Reconcile,
    Source,
    Target,
)

TYPES = {"name": "STRING", "value": "FLOAT64"}


def job(name: str, columns: dict[str, Column], key: tuple[str, ...], **more) -> Job:
    def process(batch: Batch) -> pd.DataFrame:
        return batch.rows[list(columns)]

    table = f"reading.{name}"
    target = Target(table=table, date_column="day", key=key, columns=columns, **more.pop("target", {}))
    return Job(name=name, version="1", target=target, process=process, **more)


NAMES = Expectation(table="reading.expected", date_column="day", entity="name")
FIRST = Source(name="first", table="reading.first", date_column="day", columns=TYPES)
SECOND = Source(name="second", table="reading.second", date_column="day", columns=TYPES)
VALUES = {"day": Column(type="DATE"), "name": Column(type="STRING"), "value": Column(type="FLOAT64", nullable=True)}


def mean_of_history(history: pd.DataFrame, days: Sequence[date]) -> pd.DataFrame:
    """The mean over all rows that it is given: right only if these are one date's history."""
    means = history.groupby("name", as_index=False)["value"].mean()
    return history[history["day"].isin(pd.to_datetime(list(days)))][["day", "name"]].merge(means, on="name")


def with_python_dates(history: pd.DataFrame, days: Sequence[date]) -> pd.DataFrame:
    return history.assign(day=history["day"].dt.date)


DERIVED = replace(FIRST, name="derived", lookback_days=3, derive=mean_of_history, require_lookback=False)
ROLLING = job("rolling", VALUES, ("name",), expectation=NAMES, sources=(DERIVED,))
ROLLING_TOGETHER = job(
    "rolling_together", VALUES, ("name",), expectation=NAMES, sources=(replace(DERIVED, derive_together=True),)
)
DERIVES_NONE = job(
    "derives_none", VALUES, ("name",), expectation=NAMES, sources=(replace(DERIVED, derive=lambda history, days: None),)
)
DERIVES_NO_DATE = job(
    "derives_no_date",
    VALUES,
    ("name",),
    expectation=NAMES,
    sources=(replace(DERIVED, derive=lambda history, days: history[["name", "value"]]),),
)
FILLED_BY_DERIVED = job(
    "filled_by_derived",
    VALUES,
    ("name",),
    expectation=NAMES,
    sources=(FIRST, replace(SECOND, name="derived", derive=with_python_dates)),
    fallback=Fallback.FILL,
)

QUARTER_COLUMNS = {**VALUES, "quarter": Column(type="INT64")}
QUARTER_TYPES = {**TYPES, "quarter": "INT64"}
QUARTERS = job(
    "quarters",
    QUARTER_COLUMNS,
    ("name", "quarter"),
    expectation=Expectation(table="reading.expected_quarters", date_column="day", entity="name", rows="equal"),
    sources=(
        replace(FIRST, table="reading.first_quarters", columns=QUARTER_TYPES),
        replace(SECOND, table="reading.second_quarters", columns=QUARTER_TYPES),
    ),
)
FILLED_QUARTERS = replace(
    QUARTERS,
    name="filled_quarters",
    target=replace(QUARTERS.target, table="reading.filled_quarters"),
    fallback=Fallback.FILL,
)

ROUTES = job(
    "routes",
    {"day": Column(type="DATE"), "a": Column(type="STRING"), "b": Column(type="STRING"), "seats": Column(type="INT64")},
    ("a", "b"),
    expectation=Expectation(
        table="reading.planned",
        date_column="day",
        entity=("origin", "dest"),
        reconcile=(Reconcile(column="seats", tolerance=0.1),),
    ),
    sources=(
        Source(
            name="flown",
            table="reading.flown",
            date_column="day",
            entity=("a", "b"),
            columns={"a": "STRING", "b": "STRING", "seats": "INT64"},
        ),
    ),
    target={"entity": ("a", "b")},
)

WITH_PAYLOAD = job(
    "with_payload",
    VALUES,
    ("name",),
    expectation=NAMES,
    sources=(replace(FIRST, required=("value",)), replace(SECOND, required=("value",))),
)

BEST_SOURCE = job(
    "best_source",
    VALUES,
    ("name",),
    expectation=NAMES,
    sources=(FIRST, SECOND),
    policy=CoveragePolicy(fallback_below=1.0),
)


def with_its_type(batch: Batch) -> pd.DataFrame:
    return batch.rows[["day", "name", "number"]].assign(type=str(batch.rows["number"].dtype))


NUMBERS = replace(
    job(
        "numbers",
        {
            "day": Column(type="DATE"),
            "name": Column(type="STRING"),
            "number": Column(type="INT64", nullable=True),
            "type": Column(type="STRING"),
        },
        ("name",),
        expectation=NAMES,
        sources=(replace(FIRST, columns={"name": "STRING", "number": "INT64"}),),
    ),
    process=with_its_type,
)

FLOATS = job(
    "floats",
    {
        "day": Column(type="DATE"),
        "name": Column(type="STRING"),
        "any_value": Column(type="FLOAT64", nullable=True),
        "positive": Column(type="FLOAT64", nullable=True, ge=0),
        "filled": Column(type="FLOAT64"),
    },
    ("name",),
    expectation=NAMES,
    sources=(Source(name="first", table="reading.first_floats", date_column="day"),),
)


def filled(name: str, kind: str) -> Job:
    """The column `id` is of one type in the expectation and the first source, and text in the second."""
    return job(
        name,
        {"day": Column(type="DATE"), "id": Column(type=kind), "value": Column(type="FLOAT64")},
        ("id",),
        expectation=Expectation(table=f"reading.{name}_expected", date_column="day", entity="id"),
        sources=tuple(
            Source(name=source, table=f"reading.{name}_{source}", date_column="day") for source in ("first", "second")
        ),
        fallback=Fallback.FILL,
    )


FILLED_NUMBERS = filled("filled_numbers", "INT64")
FILLED_DATES = filled("filled_dates", "DATE")


def halved_on_the_first_date(batch: Batch) -> pd.DataFrame:
    """The first date's first entity becomes half a number, which names no entity."""
    rows = batch.rows[["day", "id", "value"]].astype({"id": "float64"})
    is_halved = (rows["day"] == pd.Timestamp(2023, 2, 23)) & (rows["id"] == 7)
    return rows.assign(id=rows["id"].where(~is_halved, 7.5))


HALVED = replace(filled("halved", "FLOAT64"), process=halved_on_the_first_date)


def with_a_grade(batch: Batch) -> pd.DataFrame:
    return batch.rows[list(VALUES)].assign(grade="A")


GROWN = replace(WITH_PAYLOAD, name="grown", target=replace(WITH_PAYLOAD.target, table="reading.grown"))
if os.environ.get("READING_VERSION") == "2":
    columns = {**VALUES, "grade": Column(type="STRING", nullable=True)}
    GROWN = replace(GROWN, version="2", target=replace(GROWN.target, columns=columns), process=with_a_grade)


def by_calendar_days(batch: Batch) -> pd.DataFrame:
    """Times as dates, those with a zone in New York."""
    moments = batch.rows["day"]
    if moments.dt.tz is not None:
        moments = moments.dt.tz_convert("America/New_York").dt.tz_localize(None)
    return batch.rows[list(VALUES)].assign(day=moments.dt.normalize())


def timed(name: str, time_zone: str | None) -> Job:
    expectation = Expectation(
        table="reading.timed_expected",
        date_column="day",
        entity="name",
        time_zone=time_zone,
        calendar=Calendar(table="reading.timed_calendar", date_column="day", time_zone=time_zone),
    )
    sources = tuple(replace(one, table=f"reading.timed_{one.name}", time_zone=time_zone) for one in (FIRST, SECOND))
    timed_job = job(name, VALUES, ("name",), expectation=expectation, sources=sources)
    return replace(timed_job, process=by_calendar_days)


TIMED = timed("timed", None)
ZONED = timed("zoned", "America/New_York")
