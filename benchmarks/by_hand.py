"""The statement of the SQL job by hand: a loop over dates in one process, with DuckDB as it comes.

Each date's file is read, and its rows are written to another file in the order of the key, compressed as the tool does.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import duckdb

from benchmarks.packages.bench_jobs.bench_sales import STATEMENT


def main(source: Path, target: Path, compression: str, days: Sequence[str]) -> tuple[float, float]:
    """Write the files; returns the seconds, and the CPU seconds."""
    began, cpu_before = time.perf_counter(), time.process_time()
    with duckdb.connect() as connection:
        for day in days:
            rows = connection.read_parquet(str(source / f"day={day}" / "part.parquet"), hive_partitioning=False)
            rows.create_view("rows", replace=True)
            result = connection.sql(STATEMENT + " ORDER BY shop, receipt")
            result.write_parquet(str(target / f"{day}.parquet"), compression=compression)
    return time.perf_counter() - began, time.process_time() - cpu_before


if __name__ == "__main__":
    print(*main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.stdin.read().split()))
