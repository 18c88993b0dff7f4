"""Jobs whose `process` and `derive` are queries, and a twin in Python."""

from collections.abc import Mapping
from dataclasses import replace

import pandas as pd

from gated_backfill import Batch, Column, ColumnTypes, Expectation, Fallback, Input, Job, Query, Source, Target

SALES: ColumnTypes = {"store": "STRING", "amount": "FLOAT64"}
REVENUE_COLUMNS = {
    "store": Column(type="STRING"),
    "day": Column(type="DATE"),
    "revenue": Column(type="FLOAT64"),
    "sales": Column(type="INT64"),
    "source": Column(type="STRING"),
    "note": Column(type="STRING", nullable=True),
}


def source(name: str, table: str = "", columns: ColumnTypes | None = SALES, **more) -> Source:
    return Source(name=name, table=f"shop.{table or name}", date_column="day", columns=columns, **more)


def target(name: str, columns: Mapping[str, Column]) -> Target:
    return Target(table=f"shop.{name}", date_column="day", key=("store",), columns=columns)


def revenue_in_python(batch: Batch) -> pd.DataFrame:
    grouped = batch.rows.groupby(["store", "day"], as_index=False)
    sold = grouped.agg(amount=("amount", "sum"), sales=("amount", "size"), source=("_source", "min"))
    rows = sold.merge(batch.inputs["rates"], on="day", how="left")
    notes = batch.inputs["notes"]
    rows = rows.assign(note=None) if notes is None else rows.merge(notes, on=["store", "day"], how="left")
    rows["revenue"] = rows["amount"] * rows["rate"].fillna(1.0)
    return rows[list(REVENUE_COLUMNS)]


REVENUE = Job(
    name="revenue",
    version="1",
    target=target("revenue", REVENUE_COLUMNS),
    expectation=Expectation(table="shop.open_stores", date_column="day", entity="store", floor_share_of_recent=0),
    sources=(source("tills"), source("bank")),
    inputs=(
        Input(name="rates", table="shop.rates", date_column="day", columns={"rate": "FLOAT64"}),
        Input(
            name="notes",
            table="shop.notes",
            date_column="day",
            columns={"store": "STRING", "note": "STRING"},
            optional=True,
        ),
    ),
    process=Query.file("revenue.sql"),
)
REVENUE_PYTHON = replace(
    REVENUE, name="revenue_python", target=target("revenue_python", REVENUE_COLUMNS), process=revenue_in_python
)

FILLED = replace(REVENUE, name="sales_filled", target=target("sales_filled", REVENUE_COLUMNS), fallback=Fallback.FILL)
FILLED_PYTHON = replace(
    REVENUE_PYTHON,
    name="sales_filled_python",
    target=target("sales_filled_python", REVENUE_COLUMNS),
    fallback=Fallback.FILL,
)

#: An entity of two columns, and a fallback that names them, and the date, in another way.
BY_TILL = Job(
    name="by_till",
    version="1",
    target=Target(
        table="shop.by_till",
        date_column="day",
        key=("store", "till"),
        columns={
            "store": Column(type="STRING"),
            "till": Column(type="INT64"),
            "day": Column(type="DATE"),
            "amount": Column(type="FLOAT64"),
            "clerk": Column(type="STRING", nullable=True),
            "source": Column(type="STRING"),
        },
    ),
    expectation=Expectation(
        table="shop.open_tills", date_column="day", entity=("store", "till"), floor_share_of_recent=0
    ),
    sources=(
        Source(name="tills", table="shop.till_totals", date_column="day"),
        Source(
            name="bank",
            table="shop.bank_totals",
            date_column="booked_on",
            entity=("shop", "terminal"),
            columns={"shop": "STRING", "terminal": "INT64", "amount": "FLOAT64", "clerk": "STRING"},
        ),
    ),
    fallback=Fallback.FILL,
    process=Query("SELECT store, till, day, amount, clerk, _source AS source FROM rows"),
)

PAYMENTS: ColumnTypes = {"store": "STRING", "amount": "NUMERIC", "receipt": "BYTES"}
MONEY_COLUMNS = {
    "store": Column(type="STRING"),
    "day": Column(type="DATE"),
    "total": Column(type="NUMERIC"),
    "receipt": Column(type="BYTES", nullable=True),
}


def money_in_python(batch: Batch) -> pd.DataFrame:
    grouped = batch.rows.groupby(["store", "day"], as_index=False)
    return grouped.agg(total=("amount", "sum"), receipt=("receipt", "first"))


#: Exact decimal numbers, and bytes.
MONEY = replace(
    REVENUE,
    name="money",
    target=target("money", MONEY_COLUMNS),
    sources=(source("payments", columns=PAYMENTS), source("bank_payments", columns=PAYMENTS)),
    inputs=(),
    fallback=Fallback.FILL,
    process=Query("SELECT store, day, SUM(amount) AS total, MAX(receipt) AS receipt FROM rows GROUP BY store, day"),
)
MONEY_PYTHON = replace(
    MONEY, name="money_python", target=target("money_python", MONEY_COLUMNS), process=money_in_python
)

TOTALS: ColumnTypes = {"store": "STRING", "amount": "FLOAT64"}
ZONES = replace(
    REVENUE,
    name="zones",
    target=target(
        "zones", {"store": Column(type="STRING"), "day": Column(type="DATE"), "total": Column(type="FLOAT64")}
    ),
    sources=tuple(
        Source(name=name, table=f"shop.{name}_sales", date_column="at", columns=TOTALS, time_zone=zone)
        for name, zone in (("utc", "UTC"), ("new_york", "America/New_York"))
    ),
    inputs=(),
    fallback=Fallback.FILL,
    process=Query("SELECT store, DATE(at) AS day, SUM(amount) AS total FROM rows GROUP BY ALL"),
)


def derived(kind: str) -> Job:
    """Both sources are derived, with dates of the type."""
    name = f"derived_{kind.lower()}"
    history = Query(f"SELECT store, CAST(day AS {kind}) AS day, amount FROM history")
    return replace(
        REVENUE,
        name=name,
        target=target(
            name, {"store": Column(type="STRING"), "day": Column(type="DATE"), "source": Column(type="STRING")}
        ),
        sources=(source("tills", derive=history), source("bank", derive=history)),
        inputs=(),
        fallback=Fallback.FILL,
        process=Query("SELECT store, DATE(day) AS day, MIN(_source) AS source FROM rows GROUP BY ALL"),
    )


DERIVED_DATE, DERIVED_DATETIME = derived("DATE"), derived("DATETIME")

RUNNING_COLUMNS = {"store": Column(type="STRING"), "day": Column(type="DATE"), "total": Column(type="FLOAT64")}
#: The sales of a day and of the two days before.
LAST_DAYS = Query(
    """
    SELECT today.store, today.day, SUM(past.amount) AS total
    FROM history AS today
    JOIN history AS past
    ON past.store = today.store AND past.day BETWEEN DATE_SUB(today.day, INTERVAL 2 DAY) AND today.day
    WHERE today.day IN UNNEST(@days)
    GROUP BY today.store, today.day
    """
)


def running(name: str, **more) -> Job:
    return replace(
        REVENUE,
        name=name,
        target=target(name, RUNNING_COLUMNS),
        sources=(source("derived", "tills", lookback_days=2, require_lookback=False, derive=LAST_DAYS, **more),),
        inputs=(),
        process=Query("SELECT store, day, total FROM rows WHERE _source = 'derived'"),
    )


RUNNING = running("running")
RUNNING_TOGETHER = running("running_together", derive_together=True)

#: A derived primary, filled from another source.
FILLED_RUNNING = replace(
    running("filled_running"),
    sources=(*RUNNING.sources, source("bank", columns={"store": "STRING", "total": "FLOAT64"})),
    fallback=Fallback.FILL,
    process=Query("SELECT store, day, total FROM rows"),
)

#: Each type, from a source of which all columns are read.
TYPED_COLUMNS = {
    "store": Column(type="STRING"),
    "day": Column(type="DATE"),
    "number": Column(type="INT64"),
    "share": Column(type="FLOAT64"),
    "is_open": Column(type="BOOL"),
    "opened_at": Column(type="DATETIME"),
    "seen_at": Column(type="TIMESTAMP"),
    "nothing": Column(type="FLOAT64", nullable=True),
    "new_york": Column(type="DATE"),
    "half": Column(type="FLOAT64"),
}
TYPED = replace(
    REVENUE,
    name="typed",
    target=target("typed", TYPED_COLUMNS),
    sources=(source("tills", columns=None),),
    inputs=(),
    process=Query(
        """
        SELECT
          store, day, 7 AS number, 0.1 AS share, SUM(amount) > 10.5 AS is_open,
          DATETIME '2023-01-02 03:04:05' AS opened_at, TIMESTAMP '2023-01-02 03:04:05+01:00' AS seen_at,
          NULL AS nothing, DATE(TIMESTAMP '2023-01-02 03:04:05+01:00', 'America/New_York') AS new_york,
          1 / 2 AS half
        FROM rows GROUP BY store, day
        """
    ),
)

MISDATED = replace(
    REVENUE,
    name="misdated",
    target=target("misdated", RUNNING_COLUMNS),
    inputs=(),
    process=Query("SELECT store, @first_day AS day, SUM(amount) AS total FROM rows GROUP BY store, day"),
)
