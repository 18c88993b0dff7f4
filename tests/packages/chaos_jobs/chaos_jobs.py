"""The job that schedules of faults are run over. What its rows say is obeyed when their date is processed."""

import time

import pandas as pd

from gated_backfill import Batch, Calendar, Column, Expectation, Job, Source, Target

SLOW_SECONDS = 0.4
COLUMNS = {"name": "STRING", "value": "FLOAT64", "trick": "STRING"}


def process(batch: Batch) -> pd.DataFrame:
    return pd.concat([process_date(rows) for _, rows in batch.rows.groupby("day")])


def process_date(rows: pd.DataFrame) -> pd.DataFrame:
    tricks = set(rows["trick"].dropna())
    if "slow" in tricks:
        time.sleep(SLOW_SECONDS)
    made = rows.assign(source=rows["_source"])[["name", "day", "value", "source"]]
    return made.head(len(made) // 2) if "drop" in tricks else made  # as a wrong join would


CHAOS = Job(
    name="chaos",
    version="1",
    description="Does what its rows tell it to",
    target=Target(
        table="chaos.target",
        date_column="day",
        key=("name", "day"),
        columns={
            "name": Column(type="STRING"),
            "day": Column(type="DATE"),
            "value": Column(type="FLOAT64", ge=0),
            "source": Column(type="STRING"),
        },
    ),
    expectation=Expectation(
        table="chaos.expected",
        date_column="day",
        entity="name",
        calendar=Calendar(table="chaos.calendar", date_column="day"),
        floor=5,
    ),
    sources=(
        Source(name="first", table="chaos.first", date_column="day", columns=COLUMNS),
        Source(name="second", table="chaos.second", date_column="day", columns=COLUMNS),
    ),
    process=process,
)
