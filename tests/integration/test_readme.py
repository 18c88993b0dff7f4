"""What the README shows is what happens: its job is installed from a package of somebody else's and run."""

from __future__ import annotations

import os
import re
from datetime import date, timedelta
from pathlib import Path

import pytest

from tests.lab import Lab

README = (Path(__file__).parent.parent.parent / "README.md").read_text(encoding="utf-8")
DAY = date(2024, 3, 1)
ROWS = {"store": "STRING", "sold_on": "DATE", "amount": "FLOAT64"}


def block(marker: str, language: str) -> str:
    found = re.search(rf"<!-- {marker} -->\n```{language}\n(.*?)```", README, re.DOTALL)
    assert found is not None
    return found[1]


@pytest.fixture
def shop_jobs(tmp_path: Path) -> Path:
    """A folder as pip leaves it after installing the README's package."""
    site = tmp_path / "site-packages"
    installed = site / "shop_jobs-1.0.dist-info"
    installed.mkdir(parents=True)
    (site / "shop_jobs.py").write_text(block("job", "python"))
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: shop-jobs\nVersion: 1.0\n")
    entry_point = block("entry point", "toml").splitlines()[-1].replace('"', "")
    (installed / "entry_points.txt").write_text(f"[backfill.jobs]\n{entry_point}\n")
    return site


def test_the_readme_job_runs_on_workers_from_a_package_that_is_not_ours(lab: Lab, shop_jobs: Path) -> None:
    stores = [f"store {n}" for n in range(10)]
    for n in range(3):
        day = DAY + timedelta(days=n)
        lab.load("shop.open_stores", day, [{"store": one} for one in stores], {"store": "STRING", "open_on": "DATE"})
        lab.load("shop.till_sales", day, [{"store": one, "amount": 2.5} for one in stores[: 10 - 4 * n]] * 2, ROWS)
        lab.load("shop.bank_settlements", day, [{"store": one, "amount": 4.0} for one in stores], ROWS)
    installed = {"PYTHONPATH": os.pathsep.join([str(shop_jobs)])}

    listed = lab.command("jobs", **installed)
    ran = lab.command("run", "--job", "store_revenue", "--dates", f"{DAY}..{DAY + timedelta(days=2)}", **installed)

    assert "store_revenue  version 1" in listed.stdout
    assert ran.returncode == 0, ran.stdout + ran.stderr
    for n in range(3):
        published = lab.published("marts.store_revenue", DAY + timedelta(days=n), "sold_on")
        revenue = {row["store"]: (row["revenue"], row["source"]) for row in published}
        by_till = 10 - 4 * n
        assert revenue == {one: (5.0, "tills") if at < by_till else (4.0, "bank") for at, one in enumerate(stores)}


def test_the_readme_job_is_shorter_than_forty_lines() -> None:
    assert len(block("job", "python").splitlines()) < 40


def test_every_option_that_the_readme_names_exists(lab: Lab) -> None:
    named = set(re.findall(r"`[^`]*?(--[a-z][a-z-]+)", README)) - {
        "--save",
        "--app",
        "--queues",
        "--concurrency",
        "--hostname",
    }
    helped = lab.command("run", "--help", COLUMNS="200").stdout
    assert {option for option in named if option not in helped} == set()
