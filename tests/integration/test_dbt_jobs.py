"""Models of a dbt project as jobs: the rows that `dbt run` gives, on every warehouse."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import date

import pyarrow as pa
import pytest

from gated_backfill.common.ledger import RunState
from gated_backfill.common.model.arrow.types import arrow_schema
from gated_backfill.common.model.registry import find_job
from gated_backfill.common.model.tables import ColumnTypes, TableName
from tests.builders import DAYS, FEB_23, FEB_24, FEB_25
from tests.lab import PACKAGES, Lab

PACKAGE = PACKAGES / "dbt_jobs"
STORES = ("north", "south", "west")
AMOUNTS: ColumnTypes = {"sold_on": "DATE", "store": "STRING", "amount": "FLOAT64"}
FEB = date(2023, 2, 1)

#: What `dbt build --select daily_revenue daily_margin` of dbt-core 1.10.23 with dbt-duckdb 1.11.1 left, in the order of
#: date and store, of the rows of `load_shop`.
REVENUE_OF_DBT = [
    ("north", FEB_23, 93.75, 3),
    ("south", FEB_23, 93.75, 3),
    ("west", FEB_23, 90.75, 3),
    ("north", FEB_24, 94.5, 3),
    ("south", FEB_24, 94.5, 3),
    ("west", FEB_24, 91.5, 3),
    ("north", FEB_25, 95.25, 3),
    ("south", FEB_25, 95.25, 3),
    ("west", FEB_25, 92.25, 3),
]
MARGIN_OF_DBT = [
    ("north", FEB_23, FEB, -32.75, 1, "the best"),
    ("south", FEB_23, FEB, -32.75, 2, None),
    ("west", FEB_23, FEB, 90.75, 3, None),
    ("north", FEB_24, FEB, -37.5, 1, "the best"),
    ("south", FEB_24, FEB, -37.5, 2, None),
    ("west", FEB_24, FEB, 91.5, 3, None),
    ("north", FEB_25, FEB, -42.25, 1, "the best"),
    ("south", FEB_25, FEB, -42.25, 2, None),
    ("west", FEB_25, FEB, 92.25, 3, None),
]


@pytest.fixture(autouse=True)
def _dbt_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(PACKAGE))


def load(lab: Lab, table: str, types: ColumnTypes, rows: Sequence[tuple[object, ...]]) -> None:
    content = pa.Table.from_pylist([dict(zip(types, row, strict=True)) for row in rows], schema=arrow_schema(types))
    lab.context.warehouse.load(TableName("shop", table), next(iter(types)), content)


def load_shop(lab: Lab) -> None:
    sales = [(day, store, 10.25 * n + day.day / 4 + len(store)) for day in DAYS for store in STORES for n in (1, 2, 3)]
    costs = [(day, store, 5.5 * day.day) for day in DAYS for store in ("north", "south")]
    load(lab, "till_sales", AMOUNTS, [*sales, (FEB_23, "north", None)])
    load(lab, "bank_settlements", AMOUNTS, [(day, store, amount + 1) for day, store, amount in sales])
    load(lab, "daily_costs", {"sold_on": "DATE", "store": "STRING", "cost": "FLOAT64"}, costs)
    load(lab, "open_stores", {"open_on": "DATE", "store": "STRING"}, [(day, store) for day in DAYS for store in STORES])


def published(lab: Lab, job: str) -> list[tuple[object, ...]]:
    """The target's rows, by date and store, each in the order of the declared columns."""
    target = find_job(job).target
    rows = [row for day in DAYS for row in lab.published(target.table, day, target.date_column)]
    rows.sort(key=lambda row: (row["sold_on"], row["store"]))
    return [tuple(row[name] for name in target.columns) for row in rows]


@pytest.mark.parametrize("dates_per_task", [1, 3])
@pytest.mark.parametrize("compiled_for", ["", "_google"], ids=["dbt-duckdb", "dbt-bigquery"])
def test_a_job_gives_the_rows_of_dbt(any_lab: Lab, compiled_for: str, dates_per_task: int) -> None:
    load_shop(any_lab)

    jobs = ("daily_revenue", f"daily_revenue{compiled_for}", f"daily_margin{compiled_for}")
    for job in dict.fromkeys(jobs):
        assert any_lab.run(DAYS, job, preflight=True, dates_per_task=dates_per_task).run.state is RunState.SUCCEEDED

    assert published(any_lab, jobs[1]) == REVENUE_OF_DBT
    assert published(any_lab, jobs[2]) == MARGIN_OF_DBT


def test_a_date_that_the_first_source_covers_in_part_is_filled(lab: Lab) -> None:
    load_shop(lab)
    lab.keep_only("shop.till_sales", FEB_24, "store", "north", "sold_on")

    assert lab.run(DAYS, "daily_revenue").run.state is RunState.SUCCEEDED

    filled = {row["store"]: row["revenue"] for row in lab.published("marts.daily_revenue", FEB_24, "sold_on")}
    assert filled == {"north": 94.5, "south": 97.5, "west": 94.5}


def test_a_model_that_declares_no_job_is_refused_in_one_line(lab: Lab) -> None:
    load_shop(lab)

    planned = lab.inside("plan", "--job", "store_visits", "--dates", str(FEB_23))
    listed = lab.inside("jobs")

    assert (planned.returncode, planned.stdout) == (2, "")
    (line,) = planned.stderr.splitlines()
    assert "dbt model store_visits (models/store_visits.sql) is no job: it declares none: add meta.backfill" in line
    assert listed.returncode == 3
    assert "daily_margin  version dbt-" in listed.stdout


def test_the_command_shows_what_each_model_is(lab: Lab) -> None:
    shown = lab.inside("dbt", str(PACKAGE / "shop"))
    as_json = lab.inside("dbt", str(PACKAGE / "shop_bigquery.json"), "--json")
    missing = lab.inside("dbt", str(PACKAGE / "shop" / "models"))

    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.splitlines()[:6] == [
        f"daily_margin  version {find_job('daily_margin').version}  models/daily_margin.sql",
        "  target               marts.daily_margin",
        "  expectation          marts.daily_revenue",
        "  source daily_revenue marts.daily_revenue",
        "  input daily_costs_input shop.daily_costs",
        "  test not_null_daily_margin_sold_in is no rule of the job: it may fail without an error",
    ]
    assert "store_visits  incremental, and declares no job  models/store_visits.sql" in shown.stdout
    assert [(model["name"], model["problem"]) for model in json.loads(as_json.stdout)] == [
        ("daily_margin", None),
        ("daily_revenue", None),
        ("store_visits", None),
    ]
    assert missing.returncode == 2
    assert "models/target/manifest.json: run `dbt compile --full-refresh` in the project first" in missing.stderr
