"""The job over every date of a warehouse in one process, all dates at once, with nothing checked or written down."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.seasons import JOB, OLDEST
from common.arrow_types import to_arrow
from common.dates import DateRange
from common.job import Batch, find_job
from common.measure import calendar_facts
from common.options import RunOptions
from common.settings import Settings
from common.warehouse import open_warehouse
from common.warehouse.files import parquet_bytes
from producer.demo.season import LAST_DATE
from worker.build import by_day
from worker.sources import alike, check_sources, read_inputs, read_rows


def main(home: Path, target: Path) -> None:
    job = find_job(JOB)
    warehouse = open_warehouse(Settings(home=home).warehouse_url)  # pyright: ignore[reportCallIssue]
    every = DateRange(start=OLDEST, through=LAST_DATE).days()
    calendar = calendar_facts(warehouse, job, every)
    days = [day for day in every if job.skip(day, calendar) is None]
    options = RunOptions.of(job, window=1, in_flight=1, fallback=None, because=None)
    checks = {day: check for day, check in check_sources(warehouse, job, options, days).items() if check.expected}
    target.mkdir()
    for group in alike(checks):
        rows = read_rows(warehouse, job, checks, group)
        made = job.process(Batch(days=group, rows=rows, inputs=read_inputs(warehouse, job, group)))
        table = to_arrow(made, job.target.columns, "the rows")
        order = [(name, "ascending") for name in dict.fromkeys((job.target.date_column, *job.target.key))]
        for day, of_day in by_day(table.sort_by(order), job.target.date_column, group).items():
            (target / f"{day}.parquet").write_bytes(parquet_bytes(of_day))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
