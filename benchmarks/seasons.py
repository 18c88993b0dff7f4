"""The example job over ten seasons of the demo, compared with one vectorised calculation in one process."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pandas as pd
import pyarrow as pa

from benchmarks.processes import BACKFILL, environment
from benchmarks.results import Measured, compared_with
from gated_backfill.common.config.settings import Settings
from gated_backfill.common.model.arrow.types import arrow_schema
from gated_backfill.common.model.tables import TableName
from gated_backfill.common.warehouse.backends import open_warehouse
from gated_backfill.producer.demo.season import (
    FIRST_DATE,
    LAST_DATE,
    SEED,
    column_types_of,
    date_column_of,
    make_season,
)

SEASONS = 10
YEAR = timedelta(days=364)  #: keeps the weekdays
JOB = "player_composite_factors"
OLDEST = FIRST_DATE - (SEASONS - 1) * YEAR


def make_seasons(count: int) -> dict[str, pd.DataFrame]:
    """Create the tables of so many seasons with different values: that of the demo, and earlier ones."""
    seasons = [{name: _moved(rows, back) for name, rows in make_season(SEED + back).items()} for back in range(count)]
    return {name: pd.concat([season[name] for season in seasons], ignore_index=True) for name in seasons[0]}


def _moved(frame: pd.DataFrame, back: int) -> pd.DataFrame:
    """The rows of a season as many years earlier."""
    dated = date_column_of(frame)
    moved = frame.assign(**{dated: [day - back * YEAR for day in frame[dated]]})
    return moved.assign(season=f"back-{back}") if back and "season" in frame.columns else moved


def load(home: Path) -> int:
    """Load ten seasons. Returns the number of dates with games."""
    warehouse = open_warehouse(Settings(home=home).warehouse_url)  # pyright: ignore[reportCallIssue]
    tables = make_seasons(SEASONS)
    for name, frame in tables.items():
        dated, types = column_types_of(name, frame)
        rows = pa.Table.from_pandas(frame[list(types)], schema=arrow_schema(types), preserve_index=False)
        warehouse.load(TableName.parse(name), dated, rows)
    return tables["nba_reference.schedule"]["game_date"].nunique()


def measure(folder: Path) -> Iterator[Measured]:
    """Measure the example job, and compare what it published."""
    home = folder / "home"
    played = load(home)
    reference = vectorised(folder, home, played)
    yield reference
    yield compared_with(backfill(folder, home, played), reference)


def vectorised(folder: Path, home: Path, dates: int) -> Measured:
    began = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.vectorised", str(home), str(folder / "vectorised")]
    subprocess.run(command, env=environment(), check=True, cwd=folder, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - began
    return Measured(name="ten seasons, vectorised, one process", dates=dates, dates_per_task=None, seconds=seconds)


def backfill(folder: Path, home: Path, dates: int) -> Measured:
    """Measure the whole command with its embedded stack, and compare the published tables."""
    arguments = ["--job", JOB, "--start-date", str(OLDEST), "--end-date", str(LAST_DATE), "--reprocess", "all"]
    began = time.perf_counter()
    command = [str(BACKFILL), "run", *arguments, "--yes", "--allow-partial"]
    env = environment(BACKFILL_HOME=str(home))
    process = subprocess.run(command, env=env, cwd=folder, check=False, capture_output=True, text=True)
    seconds = time.perf_counter() - began
    assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-2000:]
    same_tables(folder / "vectorised", home)
    return Measured(name="ten seasons, backfill run", dates=dates, dates_per_task="auto", seconds=seconds)


def same_tables(expected: Path, home: Path) -> None:
    """Assert that the run published the same bytes as the single process calculated."""
    table = home / "warehouse" / "nba_precompute" / JOB
    published = {folder.name.partition("=")[2]: (folder / "part.parquet") for folder in table.glob("game_date=*")}
    calculated = {file.stem: file for file in expected.glob("*.parquet")}
    assert published.keys() == calculated.keys()
    differing = [day for day, file in published.items() if file.read_bytes() != calculated[day].read_bytes()]
    assert not differing, f"{len(differing)} dates differ, e.g. {differing[:3]}"
