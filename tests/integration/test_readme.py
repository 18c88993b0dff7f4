"""What the README shows is what happens: its job is installed from a package of somebody else's and run."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from pathlib import Path

import pytest

from tests.lab import Lab
from tests.shop import README, STORES, install_shop_jobs, readme_block

DAY = date(2024, 3, 1)
#: Options of other commands, of Celery and of pip.
OF_OTHERS = {"--save", "--app", "--queues", "--concurrency", "--hostname", "--no-deps", "--constraint", "--version"}
OPEN_STORES = {"store": "STRING", "open_on": "DATE"}
ROWS = {"store": "STRING", "sold_on": "DATE", "amount": "FLOAT64"}

Amounts = Mapping[str, float | None]


def test_the_readme_job_runs_on_workers_from_a_package_that_is_not_ours(lab: Lab, tmp_path: Path) -> None:
    install_shop_jobs(tmp_path / "site")
    for n in range(3):
        day = DAY + timedelta(days=n)
        lab.load("shop.open_stores", day, [{"store": one} for one in STORES], OPEN_STORES)
        lab.load("shop.till_sales", day, [{"store": one, "amount": 2.5} for one in STORES[: 10 - 4 * n]] * 2, ROWS)
        lab.load("shop.bank_settlements", day, [{"store": one, "amount": 4.0} for one in STORES], ROWS)
    site = str(tmp_path / "site")

    listed = lab.command("jobs", PYTHONPATH=site)
    ran = lab.command("run", "--job", "store_revenue", "--dates", f"{DAY}..{DAY + timedelta(days=2)}", PYTHONPATH=site)

    assert "store_revenue  version 1" in listed.stdout
    assert ran.returncode == 0, ran.stdout + ran.stderr
    for n in range(3):
        published = lab.published("marts.store_revenue", DAY + timedelta(days=n), "sold_on")
        revenue = {row["store"]: (row["revenue"], row["source"]) for row in published}
        by_till = 10 - 4 * n
        assert revenue == {one: (5.0, "tills") if at < by_till else (4.0, "bank") for at, one in enumerate(STORES)}


@pytest.fixture
def shop_lab(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """A laboratory in whose process the README's job is installed."""
    install_shop_jobs(tmp_path / "site")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return lab


def load_day(lab: Lab, day: date, stores: Sequence[str], *, tills: Amounts, bank: Amounts) -> None:
    """Load the open stores of the day and the amounts that its sources have, by store."""
    lab.load("shop.open_stores", day, [{"store": store} for store in stores], OPEN_STORES)
    for table, amounts in {"shop.till_sales": tills, "shop.bank_settlements": bank}.items():
        lab.load(table, day, [{"store": store, "amount": amount} for store, amount in amounts.items()], ROWS)


@pytest.mark.parametrize(
    ("stores_by_day", "problem"),
    [
        pytest.param([1], "1 expected, fewer than 2: the job's floor", id="floor"),
        pytest.param([4, 10, 10, 10], "4 expected, fewer than 5: 10 are usual", id="share of recent"),
    ],
)
def test_the_readme_job_blocks_a_day_on_which_too_few_stores_are_expected(
    shop_lab: Lab, stores_by_day: list[int], problem: str
) -> None:
    days = [DAY + timedelta(days=n) for n in range(len(stores_by_day))]
    for day, count in zip(days, stores_by_day, strict=True):
        load_day(shop_lab, day, STORES[:count], tills=dict.fromkeys(STORES, 2.5), bank={STORES[0]: 4.0})
    asked = ("--job", "store_revenue", "--dates", f"{DAY}..{days[-1]}")

    planned = shop_lab.inside("plan", *asked, "--json")
    ran = shop_lab.inside("run", *asked, "--sequential", "--yes", "--allow-partial")

    assert (planned.returncode, ran.returncode) == (3, 3)
    step, *others = json.loads(planned.stdout)["steps"]
    assert step["action"] == "blocked"
    assert step["reason"].startswith(f"expectation incomplete: {problem}")
    assert {other["action"] for other in others} <= {"build"}
    assert shop_lab.published("marts.store_revenue", DAY, "sold_on") == []


def test_the_readme_job_passes_over_rows_without_an_amount(shop_lab: Lab) -> None:
    whole = dict.fromkeys(STORES, 2.5)
    by_till, by_bank, nowhere = STORES[:8], STORES[8], STORES[9]
    tills: Amounts = {**whole, by_bank: None, nowhere: None}
    load_day(shop_lab, DAY, STORES, tills=tills, bank={by_bank: 4.0, nowhere: None})

    progress = shop_lab.run([DAY], "store_revenue", preflight=True)

    row = shop_lab.outcome(DAY, progress)
    assert row.found == {"tills": 8, "bank": 1}
    assert (row.source, row.expected, row.matched) == ("tills+bank", 10, 9)
    published = shop_lab.published("marts.store_revenue", DAY, "sold_on")
    revenue = {row["store"]: (row["revenue"], row["source"]) for row in published}
    assert revenue == {**dict.fromkeys(by_till, (2.5, "tills")), by_bank: (4.0, "bank")}


def test_the_readme_job_is_shorter_than_forty_lines() -> None:
    assert len(readme_block("job", "python").splitlines()) < 40


def test_every_option_that_the_readme_names_exists(lab: Lab) -> None:
    named = set(re.findall(r"`[^`]*?(--[a-z][a-z-]+)", README)) - OF_OTHERS
    helped = lab.command("run", "--help", COLUMNS="200").stdout
    assert {option for option in named if option not in helped} == set()
