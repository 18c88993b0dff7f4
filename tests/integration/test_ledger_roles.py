"""Roles of PostgreSQL, with the grants of the deployment guide: who may look, who may run, who may migrate."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from pydantic import SecretStr
from sqlalchemy.engine import URL, make_url

from gated_backfill.common.process.user import describe_user
from tests.documents import ROOT
from tests.lab import Lab, LocalTables, made_lab, players
from tests.postgres import execute

#: A command leaves its connection to the end of its process, which here is the one of the tests.
pytestmark = pytest.mark.filterwarnings("ignore:.*was deleted while still open:ResourceWarning")
DAYS = ("2023-02-23", "2023-02-24")
DATES = ("--job", "probe", "--dates", ",".join(DAYS))
GRANTS = re.search(r"```sql\n(.*?)```", (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def roles(postgres_url: str) -> Iterator[dict[str, str]]:
    """The URLs of the ledger for the roles of the guide, by their names there. Roles belong to the whole server."""
    assert GRANTS is not None
    url = make_url(postgres_url)
    statements = GRANTS[1].replace("FOR ROLE backfill ", f"FOR ROLE {url.username} ")
    unique_names = {name: f"{name}_{uuid4().hex[:8]}" for name in ("backfill_operator", "backfill_reader")}
    for name, unique in unique_names.items():
        assert name in statements
        statements = statements.replace(name, unique)
    execute(postgres_url, statements)
    yield {name: of_user(url, unique) for name, unique in unique_names.items()}
    for unique in unique_names.values():
        execute(postgres_url, f"DROP OWNED BY {unique}; DROP ROLE {unique}")


def of_user(url: URL, user: str) -> str:
    return url.set(username=user).render_as_string(hide_password=False)


@pytest.fixture
def shared_lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, postgres_url: str) -> Iterator[Lab]:
    tables = LocalTables(tmp_path / "home" / "warehouse")
    for lab in made_lab(tmp_path, monkeypatch, tables, ledger=SecretStr(postgres_url)):
        lab.probe_all([date.fromisoformat(day) for day in DAYS], players(3))
        yield lab
        gc.collect()  # while the warning is ignored


def test_a_role_that_may_only_read_is_enough_to_look(shared_lab: Lab, roles: dict[str, str]) -> None:
    run = shared_lab.run([date.fromisoformat(DAYS[0])], "probe").run.id
    reader = {"BACKFILL_LEDGER": roles["backfill_reader"]}

    for arguments in (
        ("status",),
        ("status", run, "--every-date"),
        ("plan", *DATES),
        ("history",),
        ("history", "--csv", "-"),
        ("coverage", "--job", "probe", "--dates", DAYS[0]),
        ("logs", run),
        ("alerts",),
        ("jobs",),
        ("cleanup", "list"),
    ):
        looked = shared_lab.inside(*arguments, **reader)
        assert looked.returncode == 0, (arguments, looked.stderr)
    assert run in shared_lab.inside("status", **reader).stdout


def test_a_role_that_may_only_read_changes_nothing(shared_lab: Lab, roles: dict[str, str]) -> None:
    run = shared_lab.run([date.fromisoformat(DAYS[0])], "probe").run.id
    before = shared_lab.table_bytes("probe.probe")

    for arguments in (
        ("run", *DATES, "--reprocess", "all", "--sequential"),
        ("undo", run, "--yes"),
        ("coverage", "--job", "probe", "--dates", DAYS[0], "--flag-incomplete"),
    ):
        refused = shared_lab.inside(*arguments, BACKFILL_LEDGER=roles["backfill_reader"])
        assert refused.returncode == 2, (arguments, refused.stdout)
        assert len(refused.stderr.splitlines()) == 1
        assert "permission denied for table" in refused.stderr
    assert shared_lab.table_bytes("probe.probe") == before
    assert shared_lab.latest_run().id == run


def test_a_role_that_runs_can_neither_migrate_nor_change_the_audit_trail(
    shared_lab: Lab, roles: dict[str, str]
) -> None:
    operator = roles["backfill_operator"]

    variables = {"BACKFILL_LEDGER": operator, "BACKFILL_USER": "ada", "LOGNAME": "ceo"}

    ran = shared_lab.inside("run", *DATES, "--sequential", "--reason", "as usual", **variables)
    undone = shared_lab.inside("undo", shared_lab.latest_run().id, "--yes", **variables)

    assert ran.returncode == 0, ran.stderr
    assert f"(by {describe_user('ada')}: as usual)" in ran.stdout
    assert undone.returncode == 0, undone.stderr
    with psycopg.connect(operator, autocommit=True) as connection:
        for statement in (
            "ALTER TABLE actions DISABLE TRIGGER ALL",
            "TRUNCATE actions",
            "DROP TABLE actions",
            "CREATE TABLE further (id int)",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement)  # pyright: ignore[reportArgumentType]
        with pytest.raises(psycopg.Error, match="actions"):
            connection.execute("DELETE FROM actions")
