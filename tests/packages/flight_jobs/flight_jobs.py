"""Delays by route and day: entities of two columns, rows and distances per entity, and weather that is required."""

import pandas as pd

from gated_backfill import Batch, Column, Expectation, Input, Job, Reconcile, Source, Target

ROUTE = ["day", "origin", "dest"]
FLIGHTS = {"origin": "STRING", "dest": "STRING", "distance": "INT64", "arr_delay": "FLOAT64"}
WEATHER = {"origin": "STRING", "temp": "FLOAT64"}


def process(batch: Batch) -> pd.DataFrame:
    routes = batch.rows.groupby(ROUTE, as_index=False).agg(
        flights=("distance", "size"), distance=("distance", "sum"), mean_delay=("arr_delay", "mean")
    )
    weather = batch.inputs["weather"].groupby(["day", "origin"], as_index=False).agg(mean_temp=("temp", "mean"))
    return routes.merge(weather, on=["day", "origin"], how="left")


ROUTE_DAYS = Job(
    name="route_days",
    version="1",
    target=Target(
        table="air.route_days",
        date_column="day",
        key=("origin", "dest"),
        columns={
            "day": Column(type="DATE"),
            "origin": Column(type="STRING"),
            "dest": Column(type="STRING"),
            "flights": Column(type="INT64", ge=1),
            "distance": Column(type="INT64", ge=1),
            "mean_delay": Column(type="FLOAT64", nullable=True),  # all flights of a route may be cancelled
            "mean_temp": Column(type="FLOAT64", nullable=True),  # some hours lack a temperature
        },
        check_rows=False,  # it has one row for each route
    ),
    expectation=Expectation(
        table="air.schedule",
        date_column="day",
        entity=("origin", "dest"),
        rows="equal",
        reconcile=(Reconcile(column="distance"),),
    ),
    sources=(
        Source(name="live", table="air.live", date_column="day", columns=FLIGHTS),
        Source(name="archive", table="air.archive", date_column="day", columns=FLIGHTS),
    ),
    inputs=(Input(name="weather", table="air.weather", date_column="day", columns=WEATHER),),
    process=process,
)
