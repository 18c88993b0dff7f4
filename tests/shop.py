"""The README's job `store_revenue`, as an installed package of somebody else, and its tables as CSV files."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from tests.documents import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
DAYS = ("2024-03-01", "2024-03-02", "2024-03-03")
STORES = [f"store {number}" for number in range(10)]


def readme_block(marker: str, language: str) -> str:
    """The README's code block that follows the comment `marker`."""
    return document_block("README.md", marker, language)


def document_block(document: str, marker: str, language: str) -> str:
    """The document's code block that follows the comment `marker`."""
    text = (ROOT / document).read_text(encoding="utf-8")
    match = re.search(rf"<!-- {marker} -->\n```{language}\n(.*?)```", text, re.DOTALL)
    assert match is not None
    return match[1]


def install_shop_jobs(site: Path) -> None:
    """Leave the package in the folder as pip does."""
    metadata = site / "shop_jobs-1.0.dist-info"
    metadata.mkdir(parents=True)
    (site / "shop_jobs.py").write_text(readme_block("job", "python"))
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: shop-jobs\nVersion: 1.0\n")
    entry_point = readme_block("entry point", "toml").splitlines()[-1].replace('"', "")
    (metadata / "entry_points.txt").write_text(f"[backfill.jobs]\n{entry_point}\n")


def write_shop_tables(folder: Path) -> None:
    """Ten stores on three days; half of the tills do not report after the first day."""
    store_days = [(store, day) for day in DAYS for store in STORES]
    reporting = [(store, day) for store, day in store_days if day == DAYS[0] or store < "store 5"]
    _write_csv(folder / "open_stores.csv", "store,open_on", (f"{store},{day}" for store, day in store_days))
    _write_csv(folder / "bank_settlements.csv", "store,sold_on,amount", (f"{s},{day},4.0" for s, day in store_days))
    _write_csv(folder / "till_sales.csv", "store,sold_on,amount", (f"{s},{day},2.5" for s, day in reporting))


def _write_csv(file: Path, header: str, lines: Iterable[str]) -> None:
    file.write_text("\n".join([header, *lines]) + "\n")
