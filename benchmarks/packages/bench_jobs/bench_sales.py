"""Receipts of shops with each one's share of its shop's revenue of the day: in SQL and in Python."""

from collections.abc import Callable
from datetime import date

import numpy as np
import pandas as pd
import pyarrow as pa

from gated_backfill import Batch, Column, ColumnTypes, Expectation, Job, Query, Source, Target

SHOPS = 100
RECEIPTS, OPEN_SHOPS = "bench.receipts", "bench.open_shops"
READ_TYPES: ColumnTypes = {"shop": "STRING", "receipt": "INT64", "items": "INT64", "cents": "INT64"}
STATEMENT = """
    SELECT
      shop,
      day,
      receipt,
      cents / items AS cents_per_item,
      cents / SUM(cents) OVER (PARTITION BY shop, day) AS share
    FROM rows
"""


def expected_shops(day: date) -> pa.Table:
    """Return the shops that are open on the date."""
    return pa.table({"shop": _shop_names(), "day": pa.repeat(pa.scalar(day, pa.date32()), SHOPS)})


def _shop_names() -> pa.Array:
    return pa.array([f"shop{number:03d}" for number in range(SHOPS)])


def receipts(day: date, count: int) -> pa.Table:
    """Return random receipts of the date, the same ones on each call, in the order in which they were given out."""
    dice = np.random.default_rng(day.toordinal())
    shops = _shop_names().take(pa.array(np.concatenate([np.arange(SHOPS), dice.integers(0, SHOPS, count - SHOPS)])))
    return pa.table(
        {
            "shop": shops,
            "day": pa.repeat(pa.scalar(day, pa.date32()), count),
            "receipt": np.arange(count),
            "items": dice.integers(1, 20, count),
            "cents": dice.integers(100, 100_000, count),
        }
    )


def process(batch: Batch) -> pd.DataFrame:
    """The same rows as the statement's."""
    rows = batch.rows
    revenue = rows.groupby(["shop", "day"])["cents"].transform("sum")
    rows = rows.assign(cents_per_item=rows["cents"] / rows["items"], share=rows["cents"] / revenue)
    return rows.drop(columns=["items", "cents"])


def _job(language: str, process: Query | Callable[[Batch], pd.DataFrame]) -> Job:
    return Job(
        name=f"bench_sales_{language}",
        version="1",
        description=f"Receipts with their share of the shop's revenue, in {language}",
        target=Target(
            table=f"bench.receipt_shares_{language}",
            date_column="day",
            key=("shop", "day", "receipt"),
            columns={
                "shop": Column(type="STRING"),
                "day": Column(type="DATE"),
                "receipt": Column(type="INT64"),
                "cents_per_item": Column(type="FLOAT64", ge=0),
                "share": Column(type="FLOAT64", ge=0, le=1),
            },
        ),
        expectation=Expectation(table=OPEN_SHOPS, date_column="day", entity="shop"),
        sources=(Source(name="receipts", table=RECEIPTS, date_column="day", columns=READ_TYPES),),
        process=process,
    )


IN_SQL = _job("sql", Query(STATEMENT))
IN_PYTHON = _job("python", process)
