"""A SQL job beside the same statement by hand, and what big dates take of memory."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, timedelta
from pathlib import Path

import duckdb
import pyarrow as pa

from benchmarks.backfills import RunArguments, measure_backfill
from benchmarks.folders import fresh_folder
from benchmarks.packages.bench_jobs.bench_sales import IN_SQL, OPEN_SHOPS, RECEIPTS, expected_shops, receipts
from benchmarks.processes import environment
from benchmarks.results import Measured, Report, compared_with, median
from gated_backfill.common.config.settings import Settings
from gated_backfill.common.model.tables import TableName
from gated_backfill.common.storage.files import FEW_CELLS
from gated_backfill.common.warehouse.backends import open_warehouse

FIRST = date(2020, 1, 1)
BY_HAND, SQL_JOB, PYTHON_JOB = "statement by hand", "SQL job", "Python job"
JOBS = {SQL_JOB: "bench_sales_sql", PYTHON_JOB: "bench_sales_python"}
TARGET, TARGET_COLUMNS = IN_SQL.target.table, len(IN_SQL.target.columns)
CONTENT = """
    SELECT COUNT(*), SUM(HASH(shop, day, receipt, cents_per_item, share))
    FROM read_parquet($files, hive_partitioning = false)
"""


def sale_days(count: int) -> list[date]:
    return [FIRST + timedelta(days=n) for n in range(count)]


def load(home: Path, days: Sequence[date], rows: int) -> None:
    """Load so many receipts of each day, and the shops that are expected."""
    warehouse = open_warehouse(Settings(home=home).warehouse_url)  # pyright: ignore[reportCallIssue]
    for day in days:
        warehouse.load(TableName.parse(RECEIPTS), "day", receipts(day, rows))
    warehouse.load(TableName.parse(OPEN_SHOPS), "day", pa.concat_tables([expected_shops(day) for day in days]))


def measure_sql(place: Path, dates: int, rows: int, rounds: int, report: Report) -> Iterator[Measured]:
    """Measure the SQL job and the statement by hand in turns; they must give the same rows."""
    source, days = fresh_folder(place) / "home", sale_days(dates)
    load(source, days, rows)
    results: list[list[Measured]] = []
    for turn in range(1, rounds + 1):
        folder = fresh_folder(place)
        by_hand = _by_hand(folder, source, days, rows)
        job = _run(SQL_JOB, folder, source, days, rows, {})
        assert _content_of(folder / "by_hand", "*.parquet") == _content_of(
            _table(folder / "home", TARGET), "*/*.parquet"
        )
        results.append([by_hand, compared_with(job, by_hand)])
        report(f"{dates:,} dates of {rows:,} rows, round {turn} of {rounds}", results[-1])
    yield from (median(list(contestant)) for contestant in zip(*results, strict=True))


def measure_memory(place: Path, name: str, dates: int, rows: int, settings: Mapping[str, str]) -> Measured:
    """Measure one run of a job with big dates."""
    source, days = fresh_folder(place) / "home", sale_days(dates)
    load(source, days, rows)
    try:
        return _run(name, source.parent, source, days, rows, settings)
    finally:
        shutil.rmtree(source)  # gigabytes


def _by_hand(folder: Path, source: Path, days: Sequence[date], rows: int) -> Measured:
    """Measure the statement in one plain process: see `benchmarks.by_hand`."""
    target = folder / "by_hand"
    target.mkdir()
    compression = "snappy" if rows * TARGET_COLUMNS <= FEW_CELLS else "zstd"  # as the tool chooses it
    command = [sys.executable, "-m", "benchmarks.by_hand", str(_table(source, RECEIPTS)), str(target), compression]
    process = subprocess.run(
        command, input="\n".join(map(str, days)), env=environment(), capture_output=True, text=True, check=True
    )
    seconds, cpu = map(float, process.stdout.split())
    more = {"rows_per_date": rows, "cpu_seconds": cpu}
    return Measured(name=BY_HAND, dates=len(days), dates_per_task=None, seconds=seconds, more=more)


def _run(
    name: str, folder: Path, source: Path, days: Sequence[date], rows: int, settings: Mapping[str, str]
) -> Measured:
    """Measure a run over the source's tables."""
    home = folder / "home"
    if home != source:
        shutil.copytree(source, home)
    arguments = RunArguments(job=JOBS[name], days=days, settings=settings)
    measured = measure_backfill(name, folder, home, arguments)
    measured.more["rows_per_date"] = rows
    return measured


def _content_of(folder: Path, files: str) -> tuple[int, int]:
    """Return the number of rows in the folder's Parquet files, and a sum that depends on all their values."""
    with duckdb.connect() as connection:
        row = connection.execute(CONTENT, {"files": str(folder / files)}).fetchone()
    assert row is not None
    return row[0], row[1]


def _table(home: Path, name: str) -> Path:
    table = TableName.parse(name)
    return home / "warehouse" / table.dataset / table.table
