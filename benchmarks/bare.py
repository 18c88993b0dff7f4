"""A bare Celery chord over the trivial work, without checks, ledger or gate: the reference for all other results."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from celery import Celery, chord

from benchmarks.packages.bench_jobs.bench_jobs import parquet_of

app = Celery("bare", broker=os.environ.get("BARE_BROKER"), backend=os.environ.get("BARE_BROKER"))
app.conf.worker_hijack_root_logger = False


@app.task
def write(folder: str, day: str) -> int:
    """Write one date's rows to one Parquet file: the trivial work."""
    return (Path(folder) / f"{day}.parquet").write_bytes(parquet_of(date.fromisoformat(day)))


@app.task
def gather(sizes: list[int]) -> int:
    return len(sizes)


def run_chord(folder: Path, days: Sequence[date]) -> int:
    """Write all dates with one chord. Returns the number of written dates."""
    result = chord(write.s(str(folder), day.isoformat()) for day in days)(gather.s())
    result.parent = None  # following the header's results would slow down the waiting for the last one
    return result.get(timeout=3600)
