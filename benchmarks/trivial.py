"""The trivial work, 200 rows in one Parquet file per date: by a plain loop, a bare chord, and a checked backfill."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, timedelta
from pathlib import Path

import pyarrow as pa

from benchmarks.backfills import RunArguments, Servers, measure_backfill
from benchmarks.folders import fresh_folder
from benchmarks.packages.bench_jobs.bench_jobs import TYPES, rows_of
from benchmarks.processes import BACKFILL, Memory, broker, broker_peak_mb, environment, workers
from benchmarks.results import Measured, Report, compared_with, median
from gated_backfill.common.config.settings import Settings
from gated_backfill.common.model.arrow.types import arrow_schema
from gated_backfill.common.model.tables import TableName
from gated_backfill.common.warehouse.backends import open_warehouse

FIRST = date(1914, 1, 1)
TEN_YEARS = 3650
DATES_PER_LOAD = 2000
LOOP = """
import sys, time
from datetime import date
from pathlib import Path
from benchmarks.packages.bench_jobs.bench_jobs import parquet_of
folder, days = Path(sys.argv[1]), sys.stdin.read().split()
started = time.perf_counter()
for day in days:
    (folder / f"{day}.parquet").write_bytes(parquet_of(date.fromisoformat(day)))
print(time.perf_counter() - started)
"""
CHORD = """
import sys, time
from datetime import date
from pathlib import Path
from benchmarks.bare import run_chord
days = [date.fromisoformat(day) for day in sys.stdin.read().split()]
started = time.perf_counter()
assert run_chord(Path(sys.argv[1]), days) == len(days)
print(time.perf_counter() - started)
"""


def days_of(count: int) -> list[date]:
    return [FIRST + timedelta(days=n) for n in range(count)]


def plain_loop(folder: Path, count: int) -> Measured:
    seconds = _run(LOOP, folder, days_of(count), {})
    return Measured(name="plain loop", dates=count, dates_per_task=None, seconds=seconds)


def bare_chord(folder: Path, count: int, broker_url: str | None = None) -> Measured:
    """Measure one chord with one task per date on two started processes, from sending to the last result."""
    with broker(folder, broker_url) as url:
        env = environment(BARE_BROKER=url)
        with workers("benchmarks.bare", url, env, folder, dates="") as pids, Memory(**pids) as memory:
            seconds = _run(CHORD, folder, days_of(count), {"BARE_BROKER": url})
        peak = broker_peak_mb(url)
    return Measured(
        name="bare chord", dates=count, dates_per_task=1, seconds=seconds, peak_mb=memory.total_mb, broker_peak_mb=peak
    )


def _run(code: str, folder: Path, days: Sequence[date], more: dict[str, str]) -> float:
    """Run the code and return the seconds that it prints."""
    written = folder / "written"
    written.mkdir(exist_ok=True)
    process = subprocess.run(
        [sys.executable, "-c", code, str(written)],
        input="\n".join(map(str, days)),
        env=environment(**more),
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(list(written.iterdir())) == len(days)
    return float(process.stdout)


def load(home: Path, count: int) -> None:
    """Load the source of the trivial job with `count` dates."""
    warehouse = open_warehouse(Settings(home=home).warehouse_url)  # pyright: ignore[reportCallIssue]
    days = days_of(count)
    for begin in range(0, count, DATES_PER_LOAD):
        frames = [
            pa.Table.from_pandas(rows_of(day), schema=arrow_schema(TYPES), preserve_index=False)
            for day in days[begin : begin + DATES_PER_LOAD]
        ]
        warehouse.load(TableName.parse("bench.source"), "day", pa.concat_tables(frames))


def checked_backfill(
    folder: Path, count: int, per_task: str, servers: Servers | None = None
) -> tuple[Measured, list[Measured]]:
    """Measure a run over the dates. Returns its measurement, and that of `status` during a long run."""
    home = folder / "home"
    load(home, count)
    status: list[Measured] = []

    def measure_status(env: Mapping[str, str], process: subprocess.Popen[bytes]) -> None:
        status.append(_status(env, folder, process, count))

    arguments = RunArguments(job="trivial", days=days_of(count), per_task=per_task, servers=servers or Servers())
    follow = measure_status if count > 10_000 else None
    return measure_backfill("checked backfill", folder, home, arguments, follow=follow), status


def _status(env: Mapping[str, str], folder: Path, process: subprocess.Popen[bytes], count: int) -> Measured:
    """Measure `status` during the run: the slowest of three calls."""
    seconds: list[float] = []
    for _ in range(3):
        time.sleep(15)
        assert process.poll() is None
        began = time.perf_counter()
        subprocess.run([str(BACKFILL), "status"], env=env, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - began)
    return Measured(name="status during a run", dates=count, dates_per_task=None, seconds=max(seconds))


def plan(folder: Path, count: int) -> Measured:
    """Measure a plan of all dates that `checked_backfill` has built in the folder: the median of three."""
    days = days_of(count)
    command = [str(BACKFILL), "plan", "--job", "trivial", "--start-date", str(days[0]), "--end-date", str(days[-1])]
    command += ["--reprocess", "all"]
    env = environment(BACKFILL_HOME=str(folder / "home"))
    seconds: list[float] = []
    for _ in range(3):
        began = time.perf_counter()
        subprocess.run(command, env=env, cwd=folder, check=True, capture_output=True)
        seconds.append(time.perf_counter() - began)
    return Measured(name="plan", dates=count, dates_per_task=None, seconds=sorted(seconds)[1])


def measure(place: Path, count: int, per_task: Sequence[str], rounds: int, report: Report) -> Iterator[Measured]:
    """Measure the trivial work with `count` dates, for each number of dates per task.

    The machine's speed changes by the minute. So the contestants take turns, each checked backfill is compared with the
    bare chord of its round, and the median round of each contestant is reported.
    """
    results: list[list[Measured]] = []
    side_results: list[Measured] = []
    for turn in range(1, rounds + 1):
        chord = bare_chord(fresh_folder(place), count)
        results.append([plain_loop(fresh_folder(place), count), chord])
        for number in per_task:
            folder = fresh_folder(place)
            result, more = checked_backfill(folder, count, number)
            results[-1].append(compared_with(result, chord))
            side_results += more
            if count == TEN_YEARS and turn == rounds:
                side_results.append(plan(folder, count))
        report(f"{count:,} dates, round {turn} of {rounds}", results[-1])
    yield from (median(list(contestant)) for contestant in zip(*results, strict=True))
    yield from side_results
