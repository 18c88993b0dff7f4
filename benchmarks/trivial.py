"""The trivial work, 200 rows in one Parquet file per date: by a plain loop, a bare chord, and a checked backfill."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date, timedelta
from pathlib import Path

import pyarrow as pa

from benchmarks.packages.bench_jobs.bench_jobs import TYPES, rows_of
from benchmarks.processes import BACKFILL, Memory, broker, broker_peak_mb, environment, started, workers
from benchmarks.results import Measured
from gated_backfill.common.config.settings import Settings
from gated_backfill.common.ledger import RunState, open_ledger
from gated_backfill.common.model.arrow.types import arrow_schema
from gated_backfill.common.model.tables import TableName
from gated_backfill.common.warehouse.backends import open_warehouse

FIRST = date(1914, 1, 1)
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


def bare_chord(folder: Path, count: int) -> Measured:
    """Measure one chord with one task per date on two started processes, from sending to the last result."""
    with broker(folder) as url:
        env = environment(BARE_BROKER=url)
        with workers("benchmarks.bare", url, env, folder, dates="") as pids, Memory(**pids) as memory:
            seconds = _run(CHORD, folder, days_of(count), {"BARE_BROKER": url})
        peak = broker_peak_mb(url)
    return Measured(
        name="bare chord",
        dates=count,
        dates_per_task=1,
        seconds=seconds,
        peak_mb=memory.total_mb,
        broker_peak_mb=peak,
        ratio_to_bare_chord=1.0,
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


@contextmanager
def running(folder: Path, home: Path) -> Iterator[tuple[dict[str, str], dict[str, int], str]]:
    """Start a broker and workers. Yields the environment of commands, the workers' process ids and the broker's URL."""
    with broker(folder) as url:
        env = environment(BACKFILL_HOME=str(home), BACKFILL_BROKER=url, BACKFILL_TASK_EVENTS="false")
        with workers("gated_backfill.worker.app", url, env, folder, dates="backfill", gate="gate,maintenance") as pids:
            yield env, pids, url


def checked_backfill(folder: Path, home: Path, count: int, per_task: str) -> tuple[Measured, list[Measured]]:
    """Measure a run over the loaded dates. Returns its measurement, and that of `status` during a long run."""
    days = days_of(count)
    arguments = ["--job", "trivial", "--start-date", str(days[0]), "--end-date", str(days[-1])]
    with running(folder, home) as (env, pids, url):
        began = time.time()
        command = [str(BACKFILL), "run", *arguments, "--dates-per-task", per_task, "--yes"]
        with started(command, env, folder / "run.log") as process, Memory(**pids, producer=process.pid) as memory:
            status = _status(env, folder, process, count) if count > 10_000 else None
            assert process.wait() == 0, (folder / "run.log").read_text()[-2000:]
        whole = time.time() - began
        peak = broker_peak_mb(url)
    ledger = open_ledger(Settings(home=home).ledger_url, create=False)  # pyright: ignore[reportCallIssue]
    run = ledger.runs.list_latest_runs(1)[0]
    assert run.state is RunState.SUCCEEDED
    checkpoints = ledger.checkpoints.list_checkpoints("trivial", days[0], days[-1])
    assert len(checkpoints) == count
    first = min(checkpoint.checkpointed_at for checkpoint in checkpoints.values()).timestamp() - began
    ledger.close()
    assert run.started_at is not None
    assert run.finished_at is not None
    gate = _gate_seconds(folder / "gate.log")
    measured = Measured(
        name="checked backfill",
        dates=count,
        dates_per_task=int(per_task) if per_task.isdecimal() else per_task,
        seconds=(run.finished_at - run.started_at).total_seconds(),
        peak_mb=memory.total_mb,
        broker_peak_mb=peak,
        more={
            "whole_command_seconds": whole,
            "first_checkpoint_seconds": first,
            "gate_seconds_per_window": sum(gate) / len(gate),
            **{f"{name}_peak_mb": value for name, value in memory.peak_mb.items()},
        },
    )
    return measured, [status] if status else []


def _status(env: dict[str, str], folder: Path, process: subprocess.Popen[bytes], count: int) -> Measured:
    """Measure `status` during the run: the slowest of three calls."""
    seconds: list[float] = []
    for _ in range(3):
        time.sleep(15)
        assert process.poll() is None
        began = time.perf_counter()
        subprocess.run([str(BACKFILL), "status"], env=env, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - began)
    return Measured(name="status during a run", dates=count, dates_per_task=None, seconds=max(seconds))


def plan(folder: Path, home: Path, count: int) -> Measured:
    days = days_of(count)
    command = [str(BACKFILL), "plan", "--job", "trivial", "--start-date", str(days[0]), "--end-date", str(days[-1])]
    command += ["--reprocess", "all"]
    seconds: list[float] = []
    for _ in range(3):
        began = time.perf_counter()
        subprocess.run(command, env=environment(BACKFILL_HOME=str(home)), cwd=folder, check=True, capture_output=True)
        seconds.append(time.perf_counter() - began)
    return Measured(name="plan", dates=count, dates_per_task=None, seconds=sorted(seconds)[1])


def _gate_seconds(log: Path) -> list[float]:
    events = re.findall(r"^\{.*\"window_gated\".*\}$", log.read_text(), re.MULTILINE)
    return [event["seconds"] for event in map(json.loads, events) if event["outcome"] == "closed"]
