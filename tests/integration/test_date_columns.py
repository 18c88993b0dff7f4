"""Date columns of every kind that other programs write, in whole runs over each warehouse."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from google.cloud import bigquery

from gated_backfill.common.model.arrow.types import ARROW_TYPES
from gated_backfill.common.model.tables import ColumnType
from tests.builders import FEB_23, FEB_24, FEB_25
from tests.emulator import Emulator
from tests.lab import PACKAGES, Lab

PACKAGE_PATHS = str(PACKAGES / "reading_jobs")
NEW_YORK = ZoneInfo("America/New_York")
FEB_26 = FEB_25 + timedelta(days=1)
DAYS = [FEB_23, FEB_24, FEB_25, FEB_26]
NAMES = ["ann", "ben"]
TIMES = [time(0), time(23, 59, 59)]  #: of the rows of each date
ROLES = {"expectation": "expected", "source first": "first", "calendar": "calendar"}
MOMENTS: dict[ColumnType, Callable[[date, time], Any]] = {
    "DATE": lambda day, _: day,
    "DATETIME": datetime.combine,
    "TIMESTAMP": lambda day, at: datetime.combine(day, at, NEW_YORK).astimezone(UTC),
    "STRING": lambda day, _: day.isoformat(),
}

Write = Callable[[str, ColumnType, Sequence[date]], None]  #: of a table, with the type of its date column


@pytest.fixture(autouse=True)
def _reading_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(PACKAGES / "reading_jobs"))


def command(lab: Lab, name: str, job: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    dates = [] if name == "doctor" else ["--dates", ",".join(map(str, DAYS))]
    return lab.inside(name, "--job", job, *dates, *arguments, PYTHONPATH=PACKAGE_PATHS)


def write_files(lab: Lab, table: str, kind: ColumnType, days: Sequence[date]) -> None:
    """Write a row for each name on each of the dates as files, with nothing of ours."""
    for day in days:
        moments = [MOMENTS[kind](day, at) for at in TIMES]
        file = part_of(lab, f"timed_{table}", day)
        file.parent.mkdir(parents=True, exist_ok=True)
        columns = {"day": pa.array(moments, ARROW_TYPES[kind]), "name": NAMES, "value": [1.0, 2.0]}
        pq.write_table(pa.table(columns), file)


def part_of(lab: Lab, table: str, day: date) -> Path:
    return lab.home / "warehouse" / "reading" / table / f"day={day}" / "part.parquet"


def write_table(
    emulator: Emulator, table: str, kind: ColumnType, days: Sequence[date], partitions: str | None = None
) -> None:
    """Write the same rows into a BigQuery table."""
    client = emulator.client()
    client.create_dataset("reading", exists_ok=True)
    types = {"day": kind, "name": "STRING", "value": "FLOAT64"}
    schema = [bigquery.SchemaField(name, column_type) for name, column_type in types.items()]
    definition = bigquery.Table(f"test-project.reading.timed_{table}", schema=schema)
    if partitions is not None:
        definition.time_partitioning = bigquery.TimePartitioning(type_=partitions, field="day")
    client.create_table(definition)
    rows = [
        f"(CAST('{MOMENTS[kind](day, at)}' AS {kind}), '{name}', 1.0)"
        for day in days
        for name, at in zip(NAMES, TIMES, strict=True)
    ]
    emulator.run(f"INSERT INTO reading.timed_{table} VALUES {', '.join(rows)}")


@pytest.fixture
def write(any_lab: Lab, request: pytest.FixtureRequest) -> Write:
    """Writes tables into the warehouse of the lab, with nothing of ours."""
    if any_lab.settings.warehouse:
        emulator = request.getfixturevalue("emulator")
        return lambda table, kind, days: write_table(emulator, table, kind, days)
    return lambda table, kind, days: write_files(any_lab, table, kind, days)


def check_everyone_reads_the_dates(lab: Lab, job: str) -> None:
    """Check plan, run, gate, coverage and doctor: two dates are built, one has events only, and one has nothing."""
    planned = json.loads(command(lab, "plan", job, "--json").stdout)
    assert [step["action"] for step in planned["steps"]] == ["build", "build", "blocked", "skip"]

    assert command(lab, "run", job, "--sequential", "--yes", "--allow-partial").returncode == 3
    counts = [(row.state.value, row.matched or 0) for row in lab.ledger.dates.list_dates(lab.latest_run().id)]
    assert counts == [("checkpointed", 2), ("checkpointed", 2), ("blocked", 0), ("skipped", 0)]
    for day in DAYS[:2]:
        assert sorted(row["name"] for row in lab.published(f"reading.{job}", day, "day")) == NAMES
    assert all(lab.published(f"reading.{job}", day, "day") == [] for day in DAYS[2:])

    audited = json.loads(command(lab, "coverage", job, "--json").stdout)["dates"]
    assert [(date_["finding"], date_["expected"]) for date_ in audited] == [
        ("complete", 2),
        ("complete", 2),
        ("expectation incomplete", 0),
        ("skipped", 0),
    ]
    checks = json.loads(command(lab, "doctor", job, "--json").stdout)["checks"]
    levels = {check["check"]: check["level"] for check in checks}
    assert {levels[f"{job}: {role}"] for role in [*ROLES, "target"]} <= {"OK", "WARN"}


@pytest.mark.parametrize(("job", "kind"), [("timed", "DATETIME"), ("zoned", "TIMESTAMP"), ("timed", "DATE")])
def test_dates_that_are_written_as_times_are_read_by_everyone(
    any_lab: Lab, write: Write, job: str, kind: ColumnType
) -> None:
    for table, days in {"expected": DAYS[:2], "first": DAYS[:2], "calendar": DAYS[:3]}.items():
        write(table, kind, days)

    check_everyone_reads_the_dates(any_lab, job)


@pytest.mark.parametrize("odd", ["expected", "first", "calendar"])
def test_one_table_with_times_among_tables_with_dates_is_read(any_lab: Lab, write: Write, odd: str) -> None:
    for table, days in {"expected": DAYS[:2], "first": DAYS[:2], "calendar": DAYS[:3]}.items():
        write(table, "DATETIME" if table == odd else "DATE", days)

    check_everyone_reads_the_dates(any_lab, "timed")


@pytest.mark.parametrize("partitions", ["DAY", "MONTH"])
@pytest.mark.parametrize(("job", "kind"), [("timed", "DATE"), ("timed", "DATETIME"), ("zoned", "TIMESTAMP")])
def test_tables_partitioned_by_day_or_month_are_read_by_everyone(
    bigquery_lab: Lab, emulator: Emulator, job: str, kind: ColumnType, partitions: str
) -> None:
    for table, days in {"expected": DAYS[:2], "first": DAYS[:2], "calendar": DAYS[:3]}.items():
        write_table(emulator, table, kind, days, partitions)

    check_everyone_reads_the_dates(bigquery_lab, job)


@pytest.mark.parametrize(
    ("kind", "problem"), [("TIMESTAMP", "is a TIMESTAMP, which has a date"), ("STRING", "is STRING")]
)
@pytest.mark.parametrize("role", ROLES)
def test_a_date_column_without_a_date_is_refused(
    any_lab: Lab, write: Write, role: str, kind: ColumnType, problem: str
) -> None:
    for other, table in ROLES.items():
        write(table, kind if other == role else "DATE", DAYS[:2])

    for arguments in (["plan"], ["run", "--sequential", "--yes"]):
        refused = command(any_lab, arguments[0], "timed", *arguments[1:])
        assert (refused.returncode, refused.stdout, len(refused.stderr.splitlines())) == (2, "", 1)
        assert f"reading.timed_{ROLES[role]}: column day {problem}" in refused.stderr
    checks = json.loads(command(any_lab, "doctor", "timed", "--json").stdout)["checks"]
    (check,) = [check for check in checks if check["check"] == f"timed: {role}"]
    assert (check["level"], problem in check["found"]) == ("FAIL", True)


# -- partitions that cannot be read ---------------------------------------------------------------------------------


def damage(part: Path) -> None:
    part.write_bytes(part.read_bytes()[:-10])


def write_text(part: Path) -> None:
    rows = pq.ParquetFile(part).read()
    pq.write_table(rows.set_column(rows.schema.get_field_index("value"), "value", pa.array(["high", "low"])), part)


def write_beside(part: Path) -> None:
    part.with_name("data_0.parquet").write_bytes(part.read_bytes())


@pytest.mark.parametrize(
    ("table", "spoil", "problem"),
    [
        pytest.param("second", damage, "is not a readable Parquet file", id="damaged"),
        pytest.param("second", write_text, "column value is FLOAT64 in partition day=2023-02-23 and STRING", id="text"),
        pytest.param("second", write_beside, "holds data_0.parquet, which is not ours", id="beside fallback"),
        pytest.param("first", write_beside, "holds data_0.parquet, which is not ours", id="beside primary"),
        pytest.param("expected", write_beside, "holds data_0.parquet, which is not ours", id="beside expectation"),
    ],
)
def test_a_partition_that_cannot_be_read_is_refused_in_one_line(
    lab: Lab, table: str, spoil: Callable[[Path], None], problem: str
) -> None:
    for name in ("expected", "first", "second", "calendar"):
        write_files(lab, name, "DATE", DAYS[:2])
    spoil(part_of(lab, f"timed_{table}", FEB_24))

    for arguments in (["plan"], ["run", "--sequential", "--yes"]):
        refused = command(lab, arguments[0], "timed", *arguments[1:])
        assert (refused.returncode, refused.stdout, len(refused.stderr.splitlines())) == (2, "", 1)
        assert f"reading.timed_{table}" in refused.stderr
        assert problem in refused.stderr


@pytest.mark.parametrize(
    ("has_schema", "problem"),
    [
        pytest.param(
            False,
            "reading.timed_second: column name is INT64 in partition day=2023-02-23 and STRING in partition "
            "day=2023-02-24",
            id="found schema",
        ),
        pytest.param(
            True,
            "reading.timed_second, partition day=2023-02-23: column name holds whole numbers, "
            "the table's column is STRING",
            id="declared schema",
        ),
    ],
)
def test_a_fallback_whose_entities_are_of_two_types_is_refused_in_one_line(
    lab: Lab, has_schema: bool, problem: str
) -> None:
    for name in ("expected", "first", "second", "calendar"):
        write_files(lab, name, "DATE", DAYS[:2])
    part = part_of(lab, "timed_second", FEB_23)
    rows = pq.ParquetFile(part).read()
    pq.write_table(rows.set_column(rows.schema.get_field_index("name"), "name", pa.array([1, 2])), part)
    if has_schema:
        schema = {"date_column": "day", "columns": {"day": "DATE", "name": "STRING", "value": "FLOAT64"}}
        (part.parent.parent / "schema.json").write_text(json.dumps(schema))

    for arguments in (["plan"], ["run", "--sequential", "--yes"]):
        refused = command(lab, arguments[0], "timed", *arguments[1:])
        assert (refused.returncode, refused.stdout) == (2, "")
        assert refused.stderr == f"backfill: {problem}\n"


def test_a_file_beside_the_published_one_is_noticed_by_everyone(lab: Lab) -> None:
    for name in ("expected", "first", "second", "calendar"):
        write_files(lab, name, "DATE", DAYS[:2])
    assert command(lab, "run", "timed", "--sequential", "--yes").returncode == 0
    write_beside(part_of(lab, "timed", FEB_24))

    problem = "reading.timed, partition day=2023-02-24: holds data_0.parquet, which is not ours"
    for name in ("plan", "coverage"):
        refused = command(lab, name, "timed")
        assert (refused.returncode, refused.stdout, len(refused.stderr.splitlines())) == (2, "", 1)
        assert problem in refused.stderr
    run = command(lab, "run", "timed", "--reprocess", "all", "--sequential", "--yes")
    assert (run.returncode, run.stderr) == (3, "")
    assert f"2023-02-24  failed  SchemaMismatch: {problem}" in run.stdout
    checked = command(lab, "doctor", "timed")
    (failed,) = [line for line in checked.stdout.splitlines() if line.startswith("FAIL")]
    assert (checked.returncode, checked.stderr) == (3, "")
    assert failed.startswith("FAIL  timed: target")
    assert problem in failed
