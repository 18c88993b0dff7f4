"""Jobs that publish what `process` gets of each row: a value as text, the source, and the columns with their types."""

import os
from collections.abc import Sequence
from dataclasses import replace
from datetime import date

import pandas as pd

from gated_backfill import Batch, Column, Expectation, Fallback, Job, Source, Target

COLUMNS = {
    "day": Column(type="DATE"),
    "name": Column(type="STRING"),
    "text": Column(type="STRING"),
    "source": Column(type="STRING"),
    "types": Column(type="STRING"),
}


def describe(batch: Batch) -> pd.DataFrame:
    types = ", ".join(f"{name} {kind}" for name, kind in batch.rows.dtypes.items())
    texts = [str(value) for value in batch.rows["value"]]
    return batch.rows[["day", "name"]].assign(text=texts, source=batch.rows["_source"], types=types)


def source(name: str, table: str = "", **more) -> Source:
    return Source(name=name, table=f"batch.{table or name}", date_column="day", **more)


def job(name: str, *sources: Source, fallback: Fallback = Fallback.FILL) -> Job:
    return Job(
        name=name,
        version="1",
        target=Target(table=f"batch.{name}", date_column="day", key=("name",), columns=COLUMNS),
        expectation=Expectation(table="batch.expected", date_column="day", entity="name", floor_share_of_recent=0),
        sources=sources,
        fallback=fallback,
        process=describe,
    )


def value_of_the_day_before(history: pd.DataFrame, days: Sequence[date]) -> pd.DataFrame:
    """A name that is new has no value, which makes the column one of floats."""
    today = pd.Timestamp(days[0])
    rows = history[history["day"] == today][["day", "name"]]
    before = history[history["day"] < today].groupby("name")["value"].sum().astype("int64")
    return rows.merge(before, left_on="name", right_index=True, how="left")


NUMBERS = {"name": "STRING", "value": "INT64"}
DERIVED = source(
    "derived", "first", columns=NUMBERS, lookback_days=1, require_lookback=False, derive=value_of_the_day_before
)
FIRST = source("first", columns={"name": "STRING", "value": "FLOAT64", "note": "STRING", "born": "DATE", "won": "BOOL"})
SECOND = source("second")

DAY_BEFORE = job("day_before", DERIVED)
FILLED = job("filled", FIRST, SECOND)
FILLED_DERIVED = job("filled_derived", DERIVED, SECOND)
RECENT = replace(DERIVED, name="recent", table="batch.second", derive=lambda history, days: history)
FILLED_WITH_HISTORY = job("filled_with_history", DERIVED, RECENT)
LOOKED_UP = job("looked_up", source("first"), source("second", entity="lookup"))
if os.environ.get("BATCH_DECLARES_SOURCE"):
    FIRST = replace(FIRST, columns={**NUMBERS, "_source": "STRING"})
    WITH_SOURCE = job("with_source", FIRST)
else:
    WITH_SOURCE = job("with_source", source("first"))
