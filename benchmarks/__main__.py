"""Time the commands as their user would, several runs each, on a demo season in a home folder of its own."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil
import typer
from rich.console import Console
from rich.table import Table

from common.settings import Settings
from common.warehouse import open_warehouse
from producer.demo.season import FIRST_DATE, LAST_DATE, load_season

BACKFILL = Path(sys.executable).parent / "backfill"
RESULTS = Path(__file__).parent / "results.json"
SEASON = ("--job", "player_composite_factors", "--start-date", str(FIRST_DATE), "--end-date", str(LAST_DATE))


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One command, timed as a whole process, start-up included."""

    name: str
    dates: int
    seconds: list[float]
    peak_mb: float  #: resident memory of the command and all its processes together, the highest seen

    def as_json(self) -> dict[str, object]:
        median = statistics.median(self.seconds)
        return {
            "name": self.name,
            "dates": self.dates,
            "seconds": round(median, 3),
            "seconds_min": round(min(self.seconds), 3),
            "seconds_max": round(max(self.seconds), 3),
            "seconds_per_date": round(median / self.dates, 5),
            "peak_mb": round(self.peak_mb),
            "runs": len(self.seconds),
        }


def timed(arguments: tuple[str, ...], home: Path) -> tuple[float, float]:
    """Seconds and peak MB of one command. Raises `CalledProcessError` when it fails: a failure is no measurement."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [str(BACKFILL), *arguments], env={**os.environ, "BACKFILL_HOME": str(home)}, stdout=subprocess.DEVNULL
    )
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, _resident_mb(process.pid))
        time.sleep(0.02)
    seconds = time.perf_counter() - started
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args)
    return seconds, peak


def _resident_mb(pid: int) -> float:
    total = 0
    try:
        for one in (process := psutil.Process(pid), *process.children(recursive=True)):
            total += one.memory_info().rss
    except psutil.Error:
        return 0.0
    return total / 1e6


def measure(name: str, arguments: tuple[str, ...], home: Path, runs: int, dates: int) -> Measured:
    found = [timed(arguments, home) for _ in range(runs)]
    return Measured(name=name, dates=dates, seconds=[s for s, _ in found], peak_mb=max(p for _, p in found))


def machine() -> dict[str, object]:
    return {
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "measured_at": f"{datetime.now(UTC):%Y-%m-%d}",
    }


def main(runs: int = typer.Option(3, min=1, help="Runs of each command; the median is told.")) -> None:
    """Measure a season: the plan, the run, the run one date after the other, and the run that finds it done."""
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        dates = load_season(open_warehouse(Settings(home=home).warehouse_url))  # pyright: ignore[reportCallIssue]
        again = (*SEASON, "--reprocess", "all")
        cases: list[tuple[str, tuple[str, ...]]] = [
            ("plan over a season", ("plan", *SEASON)),
            ("run a season, 2 workers", ("run", *again)),
            ("run a season, sequentially", ("run", *again, "--sequential")),
            ("run a season that is done", ("run", *SEASON)),
            ("status of the run", ("status",)),
        ]
        measured = [measure(name, arguments, home, runs, dates) for name, arguments in cases]
    RESULTS.write_text(json.dumps({"machine": machine(), "results": [m.as_json() for m in measured]}, indent=1) + "\n")
    _print(console, measured)


def _print(console: Console, measured: list[Measured]) -> None:
    table = Table(box=None)
    columns: list[tuple[str, Callable[[dict[str, object]], str]]] = [
        ("what", lambda row: str(row["name"])),
        ("dates", lambda row: str(row["dates"])),
        ("seconds", lambda row: f"{row['seconds']:.2f}"),
        ("min..max", lambda row: f"{row['seconds_min']:.2f}..{row['seconds_max']:.2f}"),
        ("peak MB", lambda row: str(row["peak_mb"])),
    ]
    for name, _ in columns:
        table.add_column(name)
    for one in measured:
        table.add_row(*(text(one.as_json()) for _, text in columns))
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
