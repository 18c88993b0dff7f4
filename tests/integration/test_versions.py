"""Several versions of the tool at one ledger: each refuses only what it cannot do, and says what to do about it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic import command
from alembic.config import Config

from gated_backfill.common.errors import LedgerUnusable
from gated_backfill.common.ledger import RunState, open_ledger
from gated_backfill.common.ledger.connections import make_engine
from gated_backfill.common.ledger.migration import MIGRATIONS, oldest_usable_code, read_revision
from gated_backfill.common.ledger.revisions import HEAD_REVISION, SchemaSupport, check_usable
from gated_backfill.common.ledger.users import LedgerUser, LedgerUsers, parse_users
from tests.documents import ROOT
from tests.lab import Lab, players, until
from tests.next_version import NEXT_REVISION, write_next_migrations
from tests.workers import celery, log_file_of

DAYS = [date(2023, 2, 20) + timedelta(days=n) for n in range(6)]
SPAN = ("--job", "probe", "--start-date", str(DAYS[0]), "--end-date", str(DAYS[-1]))
OLDER_REVISION = "0008"
MIGRATE = (
    f"the ledger's tables are at version {OLDER_REVISION}, this program needs {HEAD_REVISION}: run `backfill ledger"
)
LOOKING = (
    ("status",),
    ("plan", *SPAN),
    ("history",),
    ("alerts",),
    ("logs", "a-run"),
    ("watch", "a-run"),
    ("coverage", *SPAN),
    ("kept", "list", "probe.probe"),
)
WRITING = (("run", *SPAN, "--sequential"), ("retry", "a-run"), ("pause", "a-run"), ("undo", "a-run", "--yes"))


def downgrade(url: str) -> None:
    """Give the ledger the tables of an older version."""
    engine = make_engine(url)
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, OLDER_REVISION)
    engine.dispose()


def revision_of(url: str) -> str | None:
    engine = make_engine(url)
    try:
        return read_revision(engine)
    finally:
        engine.dispose()


@pytest.mark.parametrize("words", [*LOOKING, *WRITING, ("doctor",)], ids=lambda words: words[0])
def test_no_command_migrates_a_shared_ledger_unasked(lab: Lab, postgres_url: str, words: Sequence[str]) -> None:
    downgrade(postgres_url)

    refused = lab.inside(*words, BACKFILL_LEDGER=postgres_url)

    assert refused.returncode == (3 if words == ("doctor",) else 2)
    assert MIGRATE in (refused.stdout if words == ("doctor",) else refused.stderr)
    assert revision_of(postgres_url) == OLDER_REVISION


def test_no_command_creates_the_tables_of_a_shared_ledger_unasked(lab: Lab, empty_postgres_url: str) -> None:
    refused = lab.inside("run", *SPAN, "--sequential", BACKFILL_LEDGER=empty_postgres_url)
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    assert "the ledger has no tables yet: run `backfill ledger migrate`, which creates them" in refused.stderr
    assert revision_of(empty_postgres_url) is None
    created = lab.inside("ledger", "migrate", BACKFILL_LEDGER=empty_postgres_url)
    assert (created.returncode, revision_of(empty_postgres_url)) == (0, HEAD_REVISION)
    assert f"the ledger's tables are created, at version {HEAD_REVISION}" in created.stdout


def test_a_ledger_of_ones_own_is_migrated_by_what_writes_and_not_by_what_looks(lab: Lab) -> None:
    url = lab.settings.ledger_url
    lab.ledger.close()
    downgrade(url)
    lab.probe_all(DAYS[:1], players(4))
    for words in LOOKING:
        assert MIGRATE in lab.inside(*words).stderr, words
    assert revision_of(url) == OLDER_REVISION
    ran = lab.inside("run", "--job", "probe", "--dates", str(DAYS[0]), "--sequential")
    assert (ran.returncode, revision_of(url)) == (0, HEAD_REVISION), ran.stderr


def test_a_migration_says_what_uses_the_ledger_and_excludes_nobody_unasked(lab: Lab, postgres_url: str) -> None:
    downgrade(postgres_url)
    older, same = "backfill 0.0.9/0006 builder:77", f"backfill 0.1.0/{OLDER_REVISION} builder:78"
    with connected(postgres_url, older), connected(postgres_url, same), connected(postgres_url, "psql"):
        shown = lab.inside("ledger", "migrate", "--dry-run", "--json", BACKFILL_LEDGER=postgres_url)
        refused = lab.inside("ledger", "migrate", BACKFILL_LEDGER=postgres_url)
        assert revision_of(postgres_url) == OLDER_REVISION
        done = lab.inside("ledger", "migrate", "--yes", BACKFILL_LEDGER=postgres_url)

    assert json.loads(shown.stdout) == {
        "dry_run": True,
        "from": OLDER_REVISION,
        "to": HEAD_REVISION,
        "oldest_code": oldest_usable_code(),
        "processes": [
            {"version": "0.0.9", "tables": "0006", "process": "builder:77"},
            {"version": "0.1.0", "tables": OLDER_REVISION, "process": "builder:78"},
        ],
        "other_connections": 1,
        "excluded": ["builder:77"],
    }
    assert "1 process(es) of version 0.0.9, which knows the tables up to 0006; " in shown.stderr
    assert "1 connection(s) of earlier versions or of other programs" in shown.stderr
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    assert "builder:77 (version 0.0.9, tables 0006); stop them first" in refused.stderr
    assert (done.returncode, revision_of(postgres_url)) == (0, HEAD_REVISION)
    again = lab.inside("ledger", "migrate", BACKFILL_LEDGER=postgres_url)
    assert f"the ledger's tables are up to date: version {HEAD_REVISION}" in again.stdout


@contextmanager
def connected(url: str, name: str) -> Generator[psycopg.Connection[Any]]:
    """A connection to the ledger under that name."""
    with psycopg.connect(url, application_name=name) as connection:
        yield connection


def test_a_process_is_listed_once_and_not_by_itself() -> None:
    names = ["backfill 1.0/0008 a:1", "backfill 1.0/0008 a:1", "backfill 1.1/0009 b:2", "psql", ""]
    assert parse_users(names, "b:2") == LedgerUsers(
        processes=(LedgerUser(version="1.0", tables="0008", process="a:1"),), others=2
    )


@pytest.mark.parametrize(
    ("revision", "oldest_code", "problem"),
    [
        pytest.param(HEAD_REVISION, None, None, id="this-version"),
        pytest.param("9999", HEAD_REVISION, None, id="newer-and-usable"),
        pytest.param("9999", "0001", None, id="newer-and-usable-by-older-ones"),
        pytest.param("9999", "9998", "install version 2.0 of gated-backfill here", id="newer-and-not-usable"),
        pytest.param("9999", None, "install version that migrated them of gated-backfill here", id="newer-and-silent"),
        pytest.param("0001", None, "run `backfill ledger migrate`", id="older"),
        pytest.param(None, None, "has no tables yet: run `backfill ledger migrate`", id="none"),
    ],
)
def test_tables_of_another_version_are_used_if_they_say_so(
    revision: str | None, oldest_code: str | None, problem: str | None
) -> None:
    support = None if oldest_code is None else SchemaSupport(oldest_code=oldest_code, migrated_by="2.0")
    if problem is None:
        check_usable(revision, support)
    else:
        with pytest.raises(LedgerUnusable, match=problem):
            check_usable(revision, support)


# -- versions side by side ------------------------------------------------------------------------------------------


def test_workers_of_this_version_and_of_the_next_work_side_by_side(
    lab: Lab, broker: str, postgres_url: str, tmp_path: Path
) -> None:
    """The workers of the next version wait for the migration, and give their dates back; both work after it."""
    folder = write_next_migrations(tmp_path / "migrations")
    places = {"BACKFILL_BROKER": broker, "BACKFILL_LEDGER": postgres_url, "BACKFILL_RETRY_SECONDS": "0.2"}
    lab.probe_all(DAYS, players(10))
    path = f"{lab.environment()['PYTHONPATH']}:{ROOT}"
    next_version = ("-m", "tests.next_version", str(folder))
    ledger = open_ledger(postgres_url, create=False)

    def run_until(line: str) -> None:
        """Run until the worker of the next version has logged the line: which worker gets a date is not determined."""
        for _ in range(10):
            launched = lab.command("run", *SPAN, "--window", "2", "--reprocess", "all", "--detach", **places)
            assert launched.returncode == 0, launched.stderr
            (run,) = ledger.runs.list_latest_runs(1)
            ended = until(lambda run=run: (now := ledger.runs.get_run(run.id)).has_ended and now, "the end of the run")
            assert ended.state is RunState.SUCCEEDED
            if line in log_file_of(lab, "next").read_text():
                return
        pytest.fail(f"the worker of the next version has not logged {line}")

    words = ("worker", "--concurrency", "1", "--loglevel", "INFO")
    with (
        celery(lab, "this", *words, "--queues", "backfill,gate", "--hostname", "this@%h", **places),
        celery(
            lab,
            "next",
            *words,
            *("--queues", "express,gate", "--hostname", "next@%h"),
            program=(sys.executable, *next_version, "celery", "--app", "gated_backfill.worker.app"),
            **places,
            PYTHONPATH=path,
        ),
    ):
        for name in ("this", "next"):
            until(lambda name=name: " ready." in log_file_of(lab, name).read_text(), f"the worker {name}")
        run_until(f"this program needs {NEXT_REVISION}: run `backfill ledger migrate`")
        migrated = subprocess.run(
            [sys.executable, *next_version, "backfill", "ledger", "migrate"],
            env=lab.environment() | places | {"PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert migrated.returncode == 0, migrated.stderr
        assert f"which knows the tables up to {HEAD_REVISION}" in migrated.stdout
        assert revision_of(postgres_url) == NEXT_REVISION
        run_until("date_staged")

    assert lab.inside("status", BACKFILL_LEDGER=postgres_url).returncode == 0
    ledger.close()
