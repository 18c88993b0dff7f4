"""What the README shows is what happens: its job is installed from a package of somebody else's and run."""

from __future__ import annotations

import re
from datetime import date, timedelta
from pathlib import Path

from tests.lab import Lab
from tests.shop import README, STORES, install_shop_jobs, readme_block

DAY = date(2024, 3, 1)
#: Options of other commands, of Celery and of pip.
OF_OTHERS = {"--save", "--app", "--queues", "--concurrency", "--hostname", "--no-deps", "--constraint", "--version"}
ROWS = {"store": "STRING", "sold_on": "DATE", "amount": "FLOAT64"}


def test_the_readme_job_runs_on_workers_from_a_package_that_is_not_ours(lab: Lab, tmp_path: Path) -> None:
    install_shop_jobs(tmp_path / "site")
    for n in range(3):
        day = DAY + timedelta(days=n)
        lab.load("shop.open_stores", day, [{"store": one} for one in STORES], {"store": "STRING", "open_on": "DATE"})
        lab.load("shop.till_sales", day, [{"store": one, "amount": 2.5} for one in STORES[: 10 - 4 * n]] * 2, ROWS)
        lab.load("shop.bank_settlements", day, [{"store": one, "amount": 4.0} for one in STORES], ROWS)
    installed = {"PYTHONPATH": str(tmp_path / "site")}

    listed = lab.command("jobs", **installed)
    ran = lab.command("run", "--job", "store_revenue", "--dates", f"{DAY}..{DAY + timedelta(days=2)}", **installed)

    assert "store_revenue  version 1" in listed.stdout
    assert ran.returncode == 0, ran.stdout + ran.stderr
    for n in range(3):
        published = lab.published("marts.store_revenue", DAY + timedelta(days=n), "sold_on")
        revenue = {row["store"]: (row["revenue"], row["source"]) for row in published}
        by_till = 10 - 4 * n
        assert revenue == {one: (5.0, "tills") if at < by_till else (4.0, "bank") for at, one in enumerate(STORES)}


def test_the_readme_job_is_shorter_than_forty_lines() -> None:
    assert len(readme_block("job", "python").splitlines()) < 40


def test_every_option_that_the_readme_names_exists(lab: Lab) -> None:
    named = set(re.findall(r"`[^`]*?(--[a-z][a-z-]+)", README)) - OF_OTHERS
    helped = lab.command("run", "--help", COLUMNS="200").stdout
    assert {option for option in named if option not in helped} == set()
