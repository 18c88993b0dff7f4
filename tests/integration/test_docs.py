"""Every command in the documents is run, and prints what they say."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path

import pytest
import yaml

from tests.brokers import valkey
from tests.documents import ROOT, commands_of, run_document
from tests.emulator import Emulator
from tests.lab import Lab, players
from tests.shop import readme_block, write_shop_tables

DOCS = ROOT / "docs"


def require_true(name: str, folder: Path, replaced: Mapping[str, str] | None = None) -> None:
    """Fails with all that the document says and is not so."""
    document = (DOCS / name).read_text(encoding="utf-8")
    for what, by in (replaced or {}).items():
        assert what in document
        document = document.replace(what, by)
    if wrong := run_document(document, folder, {}):
        pytest.fail("\n\n".join(wrong), pytrace=False)


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A folder with the README's job as a package, and its tables as files."""
    folder = tmp_path / "work"
    (folder / "shop").mkdir(parents=True)
    (folder / "shop" / "shop_jobs.py").write_text(readme_block("job", "python"))
    (folder / "shop" / "pyproject.toml").write_text(
        '[project]\nname = "shop-jobs"\nversion = "1.0"\n\n[tool.setuptools]\npy-modules = ["shop_jobs"]\n\n'
        + readme_block("entry point", "toml")
    )
    write_shop_tables(folder)
    return folder


def test_the_job_authors_guide(shop: Path) -> None:
    require_true("jobs.md", shop)


@pytest.fixture(scope="session")
def season(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `backfill demo` was run."""
    folder = tmp_path_factory.mktemp("demo") / "work"
    assert run_document("```console\n$ backfill demo\n```", folder, {}) == []
    return folder


@pytest.fixture
def work(season: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of it, in which nothing is up at the end, whatever became of the test."""
    folder = Path(shutil.copytree(season, tmp_path / "work"))
    yield folder
    run_document("```console\n$ backfill down\n```", folder, {})


def test_the_integration_guide(tmp_path: Path) -> None:
    require_true("integration.md", tmp_path / "work")


def test_the_quick_reference(work: Path) -> None:
    require_true("quick-reference.md", work)


def test_the_operations_guide(work: Path) -> None:
    require_true("operations.md", work)


def test_the_deployment_runbook(work: Path, tmp_path: Path) -> None:
    with valkey(tmp_path / "broker") as server:
        broker = {"redis://:PASSWORD@127.0.0.1:6379/0": f"redis://127.0.0.1:{server.port}/0"}
        require_true("deployment.md", work, broker)


def test_bigquery(bigquery_lab: Lab, emulator: Emulator, tmp_path: Path) -> None:
    for day, names in ((date(2023, 2, 23), players(187)), (date(2023, 2, 24), players(175))):
        bigquery_lab.summary(day, names)
        bigquery_lab.upcoming(day, names)
    places = {"bigquery://my-project?location=US": emulator.url, "gs://my-bucket/backfill": str(tmp_path / "staging")}
    require_true("bigquery.md", tmp_path / "work", places)


def test_what_the_runbook_does_with_compose_is_there_to_be_done() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
    lines = re.findall(r"^docker compose (.*)$", (DOCS / "deployment.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(lines) > 8
    for line in lines:
        verb, *words = line.partition("#")[0].split()
        named = [word for word in words if not word.startswith("-") and verb in ("exec", "logs", "run", "stop")]
        of_services = named[:1] if verb in ("exec", "run") else named
        assert set(of_services) <= set(services), line
        if verb == "run":
            assert named[1] in helped_commands()


def helped_commands() -> set[str]:
    from gated_backfill.producer.cli.main import app

    return {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}


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
    run_by_a_test = set(re.findall(r'require_true\("([a-z-]+\.md)"', Path(__file__).read_text(encoding="utf-8")))
    with_commands = {found.name for found in DOCS.glob("*.md") if commands_of(found.read_text(encoding="utf-8"))}
    assert with_commands == run_by_a_test
