"""Every command in the documents is run, and prints what they say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.documents import ROOT, commands_of, run_document

DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text(encoding="utf-8")


def told_wrongly(name: str, folder: Path, **environment: str) -> str:
    """What the document says and is not so; nothing, when all is."""
    return "\n\n".join(run_document((DOCS / name).read_text(encoding="utf-8"), folder, environment))


def block(marker: str, language: str) -> str:
    found = re.search(rf"<!-- {marker} -->\n```{language}\n(.*?)```", README, re.DOTALL)
    assert found is not None
    return found[1]


def csv(header: str, lines: list[str]) -> str:
    return "\n".join([header, *lines]) + "\n"


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A folder with the README's job as a package, and its tables as files."""
    folder = tmp_path / "work"
    (folder / "shop").mkdir(parents=True)
    (folder / "shop" / "shop_jobs.py").write_text(block("job", "python"))
    (folder / "shop" / "pyproject.toml").write_text(
        '[project]\nname = "shop-jobs"\nversion = "1.0"\n\n[tool.setuptools]\npy-modules = ["shop_jobs"]\n\n'
        + block("entry point", "toml")
    )
    days, stores = [f"2024-03-0{n}" for n in (1, 2, 3)], [f"store {n}" for n in range(10)]
    every = [(store, day) for day in days for store in stores]
    (folder / "open_stores.csv").write_text(csv("store,open_on", [f"{s},{d}" for s, d in every]))
    (folder / "bank_settlements.csv").write_text(csv("store,sold_on,amount", [f"{s},{d},4.0" for s, d in every]))
    some = [(s, d) for s, d in every if d == "2024-03-01" or s < "store 5"]
    (folder / "till_sales.csv").write_text(csv("store,sold_on,amount", [f"{s},{d},2.5" for s, d in some]))
    return folder


def test_the_job_authors_guide(shop: Path) -> None:
    assert told_wrongly("jobs.md", shop) == ""


@pytest.mark.parametrize(
    ("document", "wrong"),
    [
        ("```console\n$ echo one two\none ...\n```", 0),
        ("```console\n$ echo one\ntwo\n```", 1),
        ("```console\n$ false\n```", 1),
        ("```console\n$ false    # exit code 1\n```", 0),
        ("```console\n$ true    # exit code 1\n```", 1),
        ("```console\n$ DAY=5\n$ echo day \\\n> $DAY\nday 5\n```", 0),
        ("```console\n$ exit 0\n$ echo never\n```", 2),
        ("no commands", 0),
    ],
)
def test_a_document_that_says_what_is_not_so_is_found_out(document: str, wrong: int, tmp_path: Path) -> None:
    assert len(run_document(document, tmp_path / "work", {})) == wrong


def test_every_document_is_run_here() -> None:
    run_by_a_test = set(re.findall(r'told_wrongly\("([a-z-]+\.md)"', Path(__file__).read_text(encoding="utf-8")))
    with_commands = {found.name for found in DOCS.glob("*.md") if commands_of(found.read_text(encoding="utf-8"))}
    assert with_commands == run_by_a_test
