"""The job over all dates of a warehouse at once, in one process, without checks or ledger."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.seasons import JOB, OLDEST
from gated_backfill.common.config.settings import Settings
from gated_backfill.common.model.arrow.frames import to_arrow
from gated_backfill.common.model.dates import DateRange
from gated_backfill.common.model.job import Batch
from gated_backfill.common.model.registry import find_job
from gated_backfill.common.model.run_options import RunOptions
from gated_backfill.common.storage.files import parquet_bytes
from gated_backfill.common.warehouse.backends import open_warehouse
from gated_backfill.common.warehouse.coverage_queries import read_calendar
from gated_backfill.producer.demo.season import LAST_DATE
from gated_backfill.worker.dates.build import split_by_day
from gated_backfill.worker.dates.sources import check_sources, group_by_source, read_batches, read_inputs


def main(home: Path, target: Path) -> None:
    job = find_job(JOB)
    warehouse = open_warehouse(Settings(home=home).warehouse_url)  # pyright: ignore[reportCallIssue]
    all_days = DateRange(start=OLDEST, through=LAST_DATE).days()
    calendar = read_calendar(warehouse, job, all_days)
    days = [day for day in all_days if job.skip(day, calendar) is None]
    options = RunOptions.for_job(job, window=1, in_flight=1, fallback=None, forced_because=None)
    checks = {day: check for day, check in check_sources(warehouse, job, options, days).items() if check.expected}
    target.mkdir()
    for group in group_by_source(checks):
        for batch_days, rows in read_batches(warehouse, job, checks, group).items():
            inputs = read_inputs(warehouse, job, batch_days)
            frame = job.process(Batch(days=batch_days, rows=rows, inputs=inputs))
            table = to_arrow(frame, job.target.columns, "the rows")
            order = [(name, "ascending") for name in dict.fromkeys((job.target.date_column, *job.target.key))]
            for day, of_day in split_by_day(table.sort_by(order), job.target.date_column, batch_days).items():
                (target / f"{day}.parquet").write_bytes(parquet_bytes(of_day))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
