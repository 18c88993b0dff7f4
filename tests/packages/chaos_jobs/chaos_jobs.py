"""The job that schedules of faults are run over, in Python and in SQL. What its rows say is obeyed when it runs."""

import time
from dataclasses import replace

import pandas as pd

from gated_backfill import Batch, Calendar, Column, Expectation, Job, Query, Source, Target

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

#: In SQL nothing is slow.
CHAOS_SQL = replace(
    CHAOS,
    process=Query(
        """
        SELECT name, day, value, _source AS source
        FROM (
            SELECT
                name, day, value, _source, trick,
                ROW_NUMBER() OVER (PARTITION BY day ORDER BY name) AS place,
                COUNT(*) OVER (PARTITION BY day) AS total
            FROM rows
        ) AS numbered
        WHERE trick IS NULL OR trick != 'drop' OR place <= DIV(total, 2)
        """
    ),
)
