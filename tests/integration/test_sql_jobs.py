"""Jobs that are queries: the same rows as in Python, on every warehouse, alone and together."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gated_backfill.common.ledger import DateState, RunState
from gated_backfill.common.model.arrow.types import ARROW_TYPES
from gated_backfill.common.model.coverage import Fallback
from gated_backfill.common.model.tables import TableName
from gated_backfill.common.warehouse.local.partition_files import PartitionFiles
from tests.builders import DAYS, FEB_23, FEB_24, FEB_25
from tests.lab import PACKAGES, Lab

PATHS = str(PACKAGES / "sql_jobs")
STORES = ("north", "south", "west")
SALES = {"day": "DATE", "store": "STRING", "amount": "FLOAT64"}
FEB_22 = date(2023, 2, 22)
NOTE = """it's a \\ and a "quote\""""

TILLS = [("north|south", 1), ("north", 1), ("a\\", 2), ("a", 2), ("it's", 10)]
PRIMARY = dict.fromkeys(STORES, "tills")
REPLACED = dict.fromkeys(STORES, "bank")  #: on a day on which the tills have one store of three
FILLED = {**REPLACED, "north": "tills"}

both = pytest.mark.parametrize("dates_per_task", [1, 3])


@pytest.fixture(autouse=True)
def _sql_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(PACKAGES / "sql_jobs"))


@pytest.fixture
def _in_new_york() -> Iterator[None]:
    """The time zone of the machine, which changes nothing."""
    with pytest.MonkeyPatch.context() as patches:
        patches.setenv("TZ", "America/New_York")
        time.tzset()
        yield
    time.tzset()


def load(
    lab: Lab, table: str, types: Mapping[str, Any], rows: Sequence[tuple[Any, ...]], date_column: str = "day"
) -> None:
    schema = pa.schema([(name, ARROW_TYPES[kind]) for name, kind in types.items()])
    dicts = [dict(zip(types, row, strict=True)) for row in rows]
    lab.context.warehouse.load(TableName("shop", table), date_column, pa.Table.from_pylist(dicts, schema=schema))


def load_shop(lab: Lab, *, notes: bool) -> None:
    """On 24 February the tills have one store of three, so that day is built from the bank."""
    load(lab, "open_stores", {"day": "DATE", "store": "STRING"}, [(day, store) for day in DAYS for store in STORES])
    sales = [(day, store, 10.1 * number + day.day / 3) for day in DAYS for store in STORES for number in (1, 2, 3)]
    load(lab, "tills", SALES, [row for row in sales if row[0] != FEB_24 or row[1] == "north"])
    load(lab, "bank", SALES, [(day, store, amount + 0.01) for day, store, amount in sales])
    load(lab, "rates", {"day": "DATE", "rate": "FLOAT64"}, [(day, 1.07) for day in DAYS])
    if notes:
        load(lab, "notes", {"day": "DATE", "store": "STRING", "note": "STRING"}, [(FEB_23, "north", NOTE)])


def load_tills(lab: Lab, amount: float, kind: str) -> None:
    """Each day has two tills, three, and four of the five; the bank has all."""
    columns = {"day": "DATE", "store": "STRING", "till": "INT64"}
    load(lab, "open_tills", columns, [(day, *till) for day in DAYS for till in TILLS])
    reporting = [(day, till) for day in DAYS for till in TILLS[: day.day - 21]]
    load(lab, "till_totals", {**columns, "amount": kind}, [(day, *till, amount) for day, till in reporting])
    banked = {"booked_on": "DATE", "shop": "STRING", "terminal": "INT64", "amount": "FLOAT64", "clerk": "STRING"}
    load(lab, "bank_totals", banked, [(day, *till, 2.5, "ann") for day in DAYS for till in TILLS], "booked_on")


def published(lab: Lab, job: str, day: date) -> list[dict[str, Any]]:
    return sorted(lab.published(f"shop.{job}", day, "day"), key=lambda row: row["store"])


@both
@pytest.mark.parametrize("notes", [True, False], ids=["all tables", "without the optional table"])
@pytest.mark.parametrize(("name", "fallback"), [("revenue", REPLACED), ("sales_filled", FILLED)])
def test_a_query_gives_the_rows_of_the_same_job_in_python(
    any_lab: Lab, dates_per_task: int, notes: bool, name: str, fallback: Mapping[str, str]
) -> None:
    load_shop(any_lab, notes=notes)

    for job in (name, f"{name}_python"):
        assert any_lab.run(DAYS, job, preflight=True, dates_per_task=dates_per_task).run.state is RunState.SUCCEEDED

    for day in DAYS:
        rows = published(any_lab, name, day)
        assert rows == published(any_lab, f"{name}_python", day)
        assert {row["store"]: row["source"] for row in rows} == (fallback if day == FEB_24 else PRIMARY)
    assert [row["note"] for row in published(any_lab, name, FEB_23)] == ([NOTE, None, None] if notes else [None] * 3)


@pytest.mark.parametrize("name", ["revenue", "sales_filled"])
def test_duckdb_writes_big_dates_with_the_rows_of_the_same_job_in_python(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(PartitionFiles, "MAX_CACHED_FILE_BYTES", 0)
    load_shop(lab, notes=True)

    for job in (name, f"{name}_python"):
        assert lab.run(DAYS, job, preflight=True, dates_per_task=len(DAYS)).run.state is RunState.SUCCEEDED

    for day in DAYS:
        assert published(lab, name, day) == published(lab, f"{name}_python", day)
        part = lab.home / "warehouse" / "shop" / name / f"day={day}" / "part.parquet"
        assert pq.read_metadata(part).created_by.startswith("DuckDB")


@both
def test_money_is_added_up_exactly(any_lab: Lab, dates_per_task: int) -> None:
    load(any_lab, "open_stores", {"day": "DATE", "store": "STRING"}, [(day, store) for day in DAYS for store in STORES])
    types = {"day": "DATE", "store": "STRING", "amount": "NUMERIC", "receipt": "BYTES"}
    paid = [
        (day, store, Decimal(f"{day.day}.{cents:02}"), None) for day in DAYS for store in STORES for cents in (1, 9)
    ]
    paid += [(day, "south", Decimal("1e20"), b"\x00\xff") for day in DAYS]
    load(any_lab, "payments", types, [row for row in paid if row[1] != "west"])
    load(any_lab, "bank_payments", types, [(day, store, Decimal("0.000000001"), b"") for day, store, *_ in paid])

    for job in ("money", "money_python"):
        assert any_lab.run(DAYS, job, preflight=True, dates_per_task=dates_per_task).run.state is RunState.SUCCEEDED

    for day in DAYS:
        two = 2 * day.day + Decimal("0.1")
        assert [(row["store"], row["total"], row["receipt"]) for row in published(any_lab, "money", day)] == [
            ("north", two, None),
            ("south", two + Decimal("1e20"), b"\x00\xff"),
            ("west", Decimal("0.000000002"), b""),
        ]
        assert published(any_lab, "money", day) == published(any_lab, "money_python", day)


@both
def test_rows_are_filled_by_entities_of_several_columns(any_lab: Lab, dates_per_task: int) -> None:
    load_tills(any_lab, 1.5, "FLOAT64")

    assert any_lab.run(DAYS, "by_till", dates_per_task=dates_per_task).run.state is RunState.SUCCEEDED

    for day in DAYS:
        rows = {(row["store"], row["till"]): row for row in published(any_lab, "by_till", day)}
        present = set(TILLS[: day.day - 21])
        assert {till for till, row in rows.items() if row["source"] == "tills"} == present
        assert {till: (row["amount"], row["clerk"]) for till, row in rows.items()} == {
            till: (1.5, None) if till in present else (2.5, "ann") for till in TILLS
        }


def test_a_fallback_with_other_names_is_read_under_those_of_the_primary(any_lab: Lab) -> None:
    load_tills(any_lab, 1.5, "FLOAT64")

    progress = any_lab.run(DAYS, "by_till", fallback=Fallback.REPLACE)

    assert progress.run.state is RunState.SUCCEEDED
    for day in DAYS:
        rows = {(row["store"], row["till"]): row["source"] for row in published(any_lab, "by_till", day)}
        assert rows == dict.fromkeys(TILLS, "bank")


@both
def test_sources_with_days_of_other_time_zones_are_filled_by_day(lab: Lab, dates_per_task: int) -> None:
    load(lab, "open_stores", {"day": "DATE", "store": "STRING"}, [(day, store) for day in DAYS for store in STORES])
    for day in DAYS:
        late = datetime(day.year, day.month, day.day, 23, 30, tzinfo=UTC)
        write_times(lab, "utc_sales", day, [(late, "north", 1.0)])
        late_there = datetime(day.year, day.month, day.day, 23, 30, tzinfo=ZoneInfo("America/New_York"))
        write_times(lab, "new_york_sales", day, [(late_there, store, float(day.day)) for store in STORES])

    assert lab.run(DAYS, "zones", dates_per_task=dates_per_task).run.state is RunState.SUCCEEDED

    for day in DAYS:
        totals = {row["store"]: row["total"] for row in published(lab, "zones", day)}
        assert totals == {"north": 1.0, "south": day.day, "west": day.day}


def write_times(lab: Lab, table: str, day: date, rows: Sequence[tuple[datetime, str, float]]) -> None:
    """Write the rows of a day as another program does, whose dates are times."""
    file = lab.home / "warehouse" / "shop" / table / f"at={day}" / "part.parquet"
    file.parent.mkdir(parents=True)
    types = {"at": "TIMESTAMP", "store": "STRING", "amount": "FLOAT64"}
    columns = zip(types, zip(*rows, strict=True), strict=True)
    pq.write_table(pa.table({name: pa.array(values, ARROW_TYPES[types[name]]) for name, values in columns}), file)


@both
@pytest.mark.parametrize("kind", ["DATETIME", "DATE"])
def test_derived_sources_are_filled_whatever_type_their_date_has(any_lab: Lab, dates_per_task: int, kind: str) -> None:
    load_shop(any_lab, notes=False)

    assert any_lab.run(DAYS, f"derived_{kind.lower()}", dates_per_task=dates_per_task).run.state is RunState.SUCCEEDED

    sources = {row["store"]: row["source"] for row in published(any_lab, f"derived_{kind.lower()}", FEB_24)}
    assert sources == FILLED


@both
def test_a_derived_primary_is_filled(any_lab: Lab, dates_per_task: int) -> None:
    load_shop(any_lab, notes=False)
    any_lab.drop("shop.bank")
    totals = {"day": "DATE", "store": "STRING", "total": "FLOAT64"}
    load(any_lab, "bank", totals, [(day, store, 0.5) for day in DAYS for store in STORES])

    progress = any_lab.run(DAYS, "filled_running", dates_per_task=dates_per_task)

    assert progress.run.state is RunState.SUCCEEDED
    assert [row["total"] == 0.5 for row in published(any_lab, "filled_running", FEB_24)] == [False, True, True]
    assert not any(row["total"] == 0.5 for row in published(any_lab, "filled_running", FEB_25))


def test_sources_that_differ_in_a_type_fail_the_dates_to_fill(any_lab: Lab) -> None:
    load_tills(any_lab, 1, "INT64")

    progress = any_lab.run([FEB_23], "by_till")

    assert any_lab.outcome(FEB_23, progress).error == (
        "can't fill from source bank: column amount is FLOAT64, and amount of source tills is INT64: "
        "declare both with the same type"
    )


@both
@pytest.mark.parametrize("job", ["running", "running_together"])
def test_a_derived_query_gets_the_days_before(any_lab: Lab, dates_per_task: int, job: str) -> None:
    load(any_lab, "open_stores", {"day": "DATE", "store": "STRING"}, [(day, "north") for day in DAYS])
    amounts = {FEB_22: 1.0, FEB_23: 10.0, FEB_24: 100.0, FEB_25: 1000.0}
    load(any_lab, "tills", SALES, [(day, "north", amount) for day, amount in amounts.items()])

    assert any_lab.run(DAYS, job, dates_per_task=dates_per_task).run.state is RunState.SUCCEEDED

    totals = [row["total"] for day in DAYS for row in published(any_lab, job, day)]
    assert totals == [11.0, 111.0, 1110.0]


@pytest.mark.usefixtures("_in_new_york")
def test_a_query_returns_every_type(any_lab: Lab) -> None:
    load_shop(any_lab, notes=False)
    any_lab.drop("shop.tills")
    # a column of the table itself with the name that each row's source has
    load(any_lab, "tills", {**SALES, "_source": "STRING"}, [(FEB_23, store, 9.9, "x") for store in STORES])

    assert any_lab.run([FEB_23], "typed").run.state is RunState.SUCCEEDED

    assert published(any_lab, "typed", FEB_23)[0] == {
        "store": "north",
        "day": FEB_23,
        "number": 7,
        "share": 0.1,
        "is_open": False,
        "opened_at": datetime(2023, 1, 2, 3, 4, 5),  # noqa: DTZ001 - a DATETIME has no zone
        "seen_at": datetime(2023, 1, 2, 2, 4, 5, tzinfo=UTC),
        "nothing": None,
        "new_york": date(2023, 1, 1),
        "half": 0.5,
    }


def test_rows_under_the_wrong_date_fail_their_dates_only(any_lab: Lab) -> None:
    load_shop(any_lab, notes=False)

    progress = any_lab.run([FEB_23, FEB_25], "misdated", dates_per_task=2)

    # alone, the first day of a statement is its only day
    assert [any_lab.outcome(day, progress).state for day in (FEB_23, FEB_25)] == [DateState.CHECKPOINTED] * 2
    assert [row["day"] for row in published(any_lab, "misdated", FEB_25)] == [FEB_25] * 3


def test_a_query_that_the_warehouse_refuses_fails_its_date_with_its_words(any_lab: Lab) -> None:
    load_shop(any_lab, notes=False)
    any_lab.drop("shop.tills")
    load(any_lab, "tills", {"day": "DATE", "store": "STRING"}, [(FEB_23, store) for store in STORES])

    progress = any_lab.run([FEB_23], "typed")

    outcome = any_lab.outcome(FEB_23, progress)
    assert outcome.state is DateState.FAILED
    assert "amount" in (outcome.error or "")


def test_the_command_builds_a_sql_job_with_workers(lab: Lab) -> None:
    load_shop(lab, notes=True)

    sampled = lab.command("doctor", "--job", "revenue", "--sample", "3", PYTHONPATH=PATHS)
    ran = lab.command("run", "--job", "revenue", "--dates", f"{FEB_23}..{FEB_25}", PYTHONPATH=PATHS)

    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "3 done" in ran.stdout
    assert "revenue" in sampled.stdout
    assert len(published(lab, "revenue", FEB_24)) == len(STORES)


def test_a_job_with_a_wrong_text_is_refused_in_one_line(lab: Lab) -> None:
    dates = ("--dates", str(FEB_23))
    for command in (("plan", "--job", "broken", *dates), ("run", "--job", "broken", *dates)):
        refused = lab.command(*command, PYTHONPATH=PATHS)
        assert (refused.returncode, refused.stdout) == (2, "")
        (line,) = refused.stderr.splitlines()
        assert "broken_sql_job:JOB, line 9: " in line
        assert "process: line 2, column 6: it reads shop.secret: the tables of the text are rows" in line
    assert lab.ledger.runs.list_latest_runs() == []
