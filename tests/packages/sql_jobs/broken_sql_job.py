"""A job whose query reads a table that the job does not declare."""

from dataclasses import replace

from sql_jobs import TYPED, target

from gated_backfill import Column, Query

JOB = replace(
    TYPED,
    name="broken",
    target=target("broken", {"store": Column(type="STRING"), "day": Column(type="DATE")}),
    process=Query("SELECT store, day\nFROM shop.secret"),
)
