"""A laboratory: a home folder, tables by the name of who is on which date, and runs in this process or as commands."""

from __future__ import annotations

import io
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from datetime import date
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from google.api_core.exceptions import NotFound
from sqlalchemy import create_engine, text

from gated_backfill.common.config.settings import Settings
from gated_backfill.common.ledger import DateRow, Ledger, Run, RunProgress, RunState, open_ledger
from gated_backfill.common.model.arrow.types import arrow_schema
from gated_backfill.common.model.coverage import Fallback
from gated_backfill.common.model.registry import find_job
from gated_backfill.common.model.run_options import RunOptions
from gated_backfill.common.model.tables import TableName
from gated_backfill.producer.cli.main import app, main
from gated_backfill.producer.context import CommandContext, open_context
from gated_backfill.producer.planning.plan import Plan, Reprocess, RunRequest
from gated_backfill.producer.runs.launch import open_run
from gated_backfill.producer.runs.post_run import post_run_reporting
from gated_backfill.producer.runs.session import Launch, check_nothing_blocked, execute_plan, plan_launch
from gated_backfill.worker.dependencies import Deps, open_deps
from gated_backfill.worker.gate.gate import advance_run
from gated_backfill.worker.inline import InlineDispatcher
from gated_backfill.worker.jobs.player_composite_factors import JOB as PLAYER_JOB
from tests.emulator import Emulator
from tests.prepared import BACKFILL, prepared_programs

PACKAGES = Path(__file__).parent / "packages"
PATIENCE_SECONDS = 60.0
PLAYER_TYPES = PLAYER_JOB.declared_types()
SUMMARY = PLAYER_JOB.sources[1].table
UPCOMING = PLAYER_JOB.sources[0].table
SCHEDULE = {"game_id": "STRING", "season": "STRING", "season_type": "STRING", "game_date": "DATE"}
PROBE_TYPES = {"name": "STRING", "day": "DATE", "value": "FLOAT64", "trick": "STRING", "spoil": "STRING"}
NEUTRAL = {"STRING": "x", "INT64": 1, "FLOAT64": 20.0, "BOOL": False}


def players(count: int, prefix: str = "player") -> list[str]:
    return [f"{prefix}{n:03d}" for n in range(count)]


def probe_rows(
    days: Sequence[date], names: Sequence[str], *, lowest: float = 0.0, trick: str | None = None, spoil: str = ""
) -> pa.Table:
    """Rows for a table of the probe jobs, with a value for each name that begins with the lowest."""
    values = [(name, day, lowest + n) for day in days for n, name in enumerate(names)]
    rows = [{"name": name, "day": day, "value": value, "trick": trick, "spoil": spoil} for name, day, value in values]
    return pa.Table.from_pylist(rows, schema=arrow_schema(PROBE_TYPES))


def until(condition: Callable[[], Any], what: str, *, patience: float = PATIENCE_SECONDS, pause: float = 0.02) -> Any:
    """What the condition returns once it is true. Fails the test when it does not become so; times in seconds."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        if result := condition():
            return result
        time.sleep(pause)
    raise AssertionError(f"waited {patience:.0f} s in vain for {what}")


class Tables(Protocol):
    """The tables of a lab, seen with nothing of ours."""

    def drop(self, table: TableName) -> None: ...

    def rows(self, table: TableName, day: date, date_column: str) -> list[dict[str, Any]]: ...

    def partitions(self, table: TableName) -> dict[str, bytes]: ...

    def keep(self, table: TableName, day: date, date_column: str, column: str, value: str) -> None:
        """Delete every row of the day but those with the value."""
        ...


class LocalTables:
    """Parquet files below a folder."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def drop(self, table: TableName) -> None:
        folder = self._root / table.dataset / table.table
        folder.rename(self._root.parent / f"dropped-{table.table}")

    def rows(self, table: TableName, day: date, date_column: str) -> list[dict[str, Any]]:
        part = self._root / table.dataset / table.table / f"{date_column}={day}" / "part.parquet"
        if not part.exists():
            return []
        with duckdb.connect() as connection:
            return connection.sql("SELECT * FROM read_parquet($1)", params=[str(part)]).to_arrow_table().to_pylist()

    def partitions(self, table: TableName) -> dict[str, bytes]:
        folder = self._root / table.dataset / table.table
        return {str(part.relative_to(folder)): part.read_bytes() for part in folder.glob("*=*/part.parquet")}

    def keep(self, table: TableName, day: date, date_column: str, column: str, value: str) -> None:
        part = self._root / table.dataset / table.table / f"{date_column}={day}" / "part.parquet"
        rows = pq.ParquetFile(part).read()
        pq.write_table(rows.filter(pc.field(column) == value), part)


class EmulatedTables:
    """Tables of a BigQuery emulator, through the client."""

    def __init__(self, emulator: Emulator) -> None:
        self._client = emulator.client()

    def drop(self, table: TableName) -> None:
        self._client.delete_table(str(table))

    def rows(self, table: TableName, day: date, date_column: str) -> list[dict[str, Any]]:
        return [row for row in self._all(table) if row[date_column] == day]

    def partitions(self, table: TableName) -> dict[str, bytes]:
        """By each distinct date of the rows, the rows in a fixed order, every value to the last digit."""
        found: dict[str, list[str]] = {}
        for row in self._all(table):
            day = next(str(value) for value in row.values() if isinstance(value, date))
            found.setdefault(day, []).append(repr(sorted(row.items())))
        return {day: "\n".join(sorted(rows)).encode() for day, rows in sorted(found.items())}

    def keep(self, table: TableName, day: date, date_column: str, column: str, value: str) -> None:
        where = f"{date_column} = DATE '{day}' AND {column} != '{value}'"
        self._client.query(f"DELETE FROM {table} WHERE {where}").result()

    def _all(self, table: TableName) -> list[dict[str, Any]]:
        try:
            found = self._client.query(f"SELECT * FROM {table}").result()
        except NotFound:
            return []
        return found.to_arrow(create_bqstorage_client=False).to_pylist()


@dataclass
class Lab:
    """A home of its own, its tables, and its runs."""

    home: Path
    settings: Settings
    context: CommandContext
    marks: Path
    tables: Tables
    running: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def ledger(self) -> Ledger:
        return self.context.ledger

    # -- tables --

    def load(self, table: str, day: date, rows: Sequence[Mapping[str, Any]], types: Mapping[str, Any]) -> None:
        date_column = next(name for name, kind in types.items() if kind == "DATE")
        columns = {
            name: [day if name == date_column else row.get(name, NEUTRAL.get(kind)) for row in rows]
            for name, kind in types.items()
        }
        self.context.warehouse.load(TableName.parse(table), date_column, pa.table(columns, schema=arrow_schema(types)))

    def summary(self, day: date, names: Sequence[str]) -> None:
        """These players played on the day."""
        rows = [{"player_lookup": name, "game_id": "1"} for name in names]
        self.load(SUMMARY, day, rows, PLAYER_TYPES[SUMMARY] | {"game_date": "DATE"})

    def upcoming(self, day: date, names: Sequence[str]) -> None:
        """The primary source has these players on the day."""
        rows = [{"player_lookup": name, "game_id": "1"} for name in names]
        self.load(UPCOMING, day, rows, PLAYER_TYPES[UPCOMING] | {"game_date": "DATE"})

    def schedule(self, day: date, games: int) -> None:
        rows = [{"game_id": str(n), "season": "2022-23", "season_type": "regular"} for n in range(games)]
        self.load("nba_reference.schedule", day, rows, SCHEDULE)

    def probe(self, table: str, day: date, names: Sequence[str], *, trick: str | None = None, spoil: str = "") -> None:
        """One table of the probe jobs: `expected`, `first` or `second`."""
        self._load_probe(table, [day], names, trick=trick, spoil=spoil)

    def probe_all(
        self, days: Sequence[date], names: Sequence[str], *, first: Sequence[str] | None = None, **more: Any
    ) -> None:
        """The tables `expected` and `first` of the probe jobs on all of the days, in one load each.

        `first` is who is in the first source, if others than are expected; `more` is how its rows differ.
        """
        self._load_probe("expected", days, names)
        self._load_probe("first", days, names if first is None else first, **more)

    def _load_probe(self, table: str, days: Sequence[date], names: Sequence[str], **more: Any) -> None:
        self.context.warehouse.load(TableName("probe", table), "day", probe_rows(days, names, **more))

    def keep_only(self, table: str, day: date, column: str, value: str, date_column: str = "game_date") -> None:
        """Delete the other published rows of a day, with nothing of ours."""
        self.tables.keep(TableName.parse(table), day, date_column, column, value)

    def drop(self, table: str) -> None:
        self.tables.drop(TableName.parse(table))

    def published(self, table: str, day: date, date_column: str = "game_date") -> list[dict[str, Any]]:
        """The published rows of a day, read with nothing of ours."""
        return self.tables.rows(TableName.parse(table), day, date_column)

    def table_bytes(self, table: str) -> dict[str, bytes]:
        """What every partition of a table holds, by a name for it."""
        return self.tables.partitions(TableName.parse(table))

    # -- runs in this process --

    def request(self, days: Sequence[date], job: str = PLAYER_JOB.name, **more: Any) -> RunRequest:
        return RunRequest(job=job, days=tuple(sorted(days)), **more)

    def plan(self, days: Sequence[date], job: str = PLAYER_JOB.name, **more: Any) -> Plan:
        launch = Launch(request=self.request(days, job, **more), window=100, workers=1)
        return plan_launch(launch, find_job(job), self.context)

    def run(
        self,
        days: Sequence[date],
        job: str = PLAYER_JOB.name,
        *,
        preflight: bool = False,
        allow_partial: bool = False,
        window: int = 100,
        fallback: Fallback | None = None,
        because: str | None = None,
        reprocess: Reprocess = Reprocess.FAILED,
        dates_per_task: int | None = 1,
    ) -> RunProgress:
        """Run the days sequentially, by default without pre-flight: the gate is what is on trial."""
        request = self.request(days, job, fallback=fallback, forced_because=because, reprocess=reprocess)
        options = {"window": window, "preflight": preflight, "dates_per_task": dates_per_task}
        launch = Launch(request=request, workers=1, sequential=True, **options)
        plan = plan_launch(launch, find_job(job), self.context)
        check_nothing_blocked(plan, allow_partial=allow_partial)
        with post_run_reporting(self.context) as opened:
            return execute_plan(launch, plan, self.context, lambda _: None, opened)

    def opened(
        self, days: Sequence[date], job: str = PLAYER_JOB.name, *, because: str | None = None, **request: Any
    ) -> tuple[Run, Deps, InlineDispatcher]:
        """A running run with its one window open, and what a worker needs to work on it."""
        dispatcher = InlineDispatcher()
        deps = open_deps(self.settings, dispatcher)
        installed, plan = find_job(job), self.plan(days, job, **request)
        given = {"window": len(days), "calendar": plan.has_calendar}
        options = RunOptions.for_job(installed, in_flight=1, fallback=None, forced_because=because, **given)
        run = open_run(plan, installed, options, self.context, owned=True)
        deps.ledger.runs.move_run(run.id, expect=[RunState.PLANNED], to=RunState.RUNNING)
        advance_run(run, installed, deps)
        return run, deps, dispatcher

    def opened_again(self) -> Deps:
        """What a worker that has just started needs."""
        return open_deps(self.settings, InlineDispatcher())

    # -- the ledger --

    def outcome(self, day: date, progress: RunProgress) -> DateRow:
        (row,) = self.ledger.dates.list_dates(progress.run.id, days=[day])
        return row

    def latest_run(self) -> Run:
        return self.ledger.runs.list_latest_runs(1)[0]

    def states(self, run_id: str) -> list[str]:
        """The states of the run's dates, oldest date first."""
        return [row.state.value for row in self.ledger.dates.list_dates(run_id)]

    def change_ledger(self, statement: str, **values: object) -> None:
        """Change what the tool itself cannot: the past, or what a process left that died."""
        with create_engine(self.settings.ledger_url).begin() as connection:
            connection.execute(text(statement), values)

    def end_cleanup_leases(self) -> None:
        """The process of a cleanup that is not finished is suspended for longer than its lease."""
        self.change_ledger("UPDATE cleanup_operations SET lease_until = '2023-01-01 00:00:00.000000' WHERE active")

    # -- commands --

    def environment(self) -> dict[str, str]:
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith("BACKFILL_")},
            "BACKFILL_HOME": str(self.home),
            "PYTHONPATH": str(PACKAGES / "probe_jobs"),
            "PROBE_MARKS": str(self.marks),
            **({"BACKFILL_WAREHOUSE": self.settings.warehouse} if self.settings.warehouse else {}),
        }

    def start(
        self, *arguments: str, program: Path = BACKFILL, cwd: Path | None = None, **environment: str
    ) -> subprocess.Popen[str]:
        """Start the console script; it is killed at the end of the test if it still runs."""
        process = subprocess.Popen(
            [str(program), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment() | environment,
            cwd=cwd,
        )
        self.running.append(process)
        return process

    def command(self, *arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, in a process that has imported it already."""
        return _ended(self.start(*arguments, program=prepared_programs() / "backfill", cwd=cwd, **environment))

    def script(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the console script itself to its end: for a test that watches the processes which it starts."""
        return _ended(self.start(*arguments, **environment))

    def invoke(self, *arguments: str, **environment: str) -> Result:
        """The command in this process, which spares its start. An error of ours is left as `exception`."""
        return CliRunner().invoke(app, arguments, env=self.environment() | environment)

    def inside(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """As `command`, in this process: for what a command says and decides, where its process is not the point."""
        given = self.environment() | environment
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            for name in given.keys() | os.environ.keys():
                patch.setenv(name, given[name]) if name in given else patch.delenv(name)
            patch.setattr("sys.argv", ["backfill", *arguments])
            with pytest.raises(SystemExit) as ended:
                main()
        code = ended.value.code
        assert isinstance(code, int)
        return subprocess.CompletedProcess([*arguments], code, out.getvalue(), err.getvalue())

    def status(self, *arguments: str) -> dict[str, Any]:
        return json.loads(self.inside("status", *arguments, "--json").stdout)


def _ended(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    out, err = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """Everything embedded: Parquet files, SQLite, a folder."""
    yield from made_lab(tmp_path, monkeypatch, LocalTables(tmp_path / "home" / "warehouse"))


@pytest.fixture
def bigquery_lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, emulator: Emulator) -> Iterator[Lab]:
    """The warehouse is BigQuery, through the real client."""
    emulator.empty()
    yield from made_lab(tmp_path / "bigquery", monkeypatch, EmulatedTables(emulator), warehouse=emulator.url)


@pytest.fixture(params=["local", "bigquery"])
def any_lab(request: pytest.FixtureRequest) -> Lab:
    """A lab over each warehouse."""
    return request.getfixturevalue("lab" if request.param == "local" else "bigquery_lab")


@lru_cache(maxsize=1)
def migrated_ledger() -> bytes:
    """A ledger without runs, as a file: to make its tables anew takes a quarter of the time of most tests."""
    with TemporaryDirectory() as folder:
        open_ledger(f"sqlite:///{folder}/ledger.db").close()
        return (Path(folder) / "ledger.db").read_bytes()


def made_lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tables: Tables, **settings: Any) -> Iterator[Lab]:
    home, marks = tmp_path / "home", tmp_path / "marks"
    marks.mkdir(parents=True)
    monkeypatch.syspath_prepend(str(PACKAGES / "probe_jobs"))
    monkeypatch.setenv("PROBE_MARKS", str(marks))
    home.mkdir(mode=0o700)
    (home / "ledger.db").write_bytes(migrated_ledger())
    (home / "ledger.db").chmod(0o600)
    made = Settings(home=home, retry_seconds=0.05, **settings)  # pyright: ignore[reportCallIssue]
    lab = Lab(home=home, settings=made, context=open_context(made), marks=marks, tables=tables)
    yield lab
    for process in lab.running:
        if process.poll() is None:
            process.kill()
        process.communicate()
    lab.ledger.close()
