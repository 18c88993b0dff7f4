"""The trivial work: 200 rows in one Parquet file per date, the same rows for every contestant."""

import io
from datetime import date

import numpy as np
import pandas as pd

from gated_backfill import Batch, Column, Expectation, Job, Source, Target

ROWS = 200
NAMES = [f"player{n:03d}" for n in range(ROWS)]
TYPES = {"name": "STRING", "day": "DATE", "value": "FLOAT64"}


def rows_of(day: date) -> pd.DataFrame:
    """Return the rows of one date."""
    return pd.DataFrame({"name": NAMES, "day": pd.Timestamp(day), "value": np.arange(ROWS) * 1.5 + day.day})


def parquet_of(day: date) -> bytes:
    """Return the rows of one date as a Parquet file."""
    sink = io.BytesIO()
    rows_of(day).to_parquet(sink, compression="snappy", index=False)
    return sink.getvalue()


def process(batch: Batch) -> pd.DataFrame:
    return batch.rows


TRIVIAL = Job(
    name="trivial",
    version="1",
    description="200 rows per date, unchanged",
    target=Target(
        table="bench.target",
        date_column="day",
        key=("name", "day"),
        columns={name: Column(type=kind) for name, kind in TYPES.items()},
    ),
    expectation=Expectation(table="bench.source", date_column="day", entity="name"),
    sources=(Source(name="source", table="bench.source", date_column="day", columns=TYPES),),
    process=process,
)
